//! Rounds of the checker: whatever fails, nothing acknowledged is lost. `make chaos` holds any number of them.

use crate::checker::{
    faults::Menu,
    round::{self, Plan},
    topology::{Cluster, Single, Topology},
};

/// The first of the seeds that are always the same.
const SEED: u64 = 20_260;

async fn hold(topology: Box<dyn Topology>, setup: &str, seed: u64) {
    let outcome = round::run(topology, Plan::drawn(seed)).await.unwrap();
    println!("{setup}: {}", outcome.summary());
    assert!(outcome.violations.is_empty(), "make chaos ROUNDS=1 SEED={seed} ON={setup}\n{}", outcome.report());
}

async fn single(seeds: impl IntoIterator<Item = u64>) {
    for seed in seeds {
        hold(Box::new(Single::start("chatbox-core", Vec::new(), Menu::Single).await.unwrap()), "single", seed).await;
    }
}

/// Two cores over so many servers.
async fn cluster(seeds: impl IntoIterator<Item = u64>, nodes: usize) {
    for seed in seeds {
        let setup = format!("cluster-{nodes}");
        hold(Box::new(Cluster::start(2, nodes).await.unwrap()), &setup, seed).await;
    }
}

/// From `CHATBOX_CHAOS_SEED`, else further known ones: what a check before a change says must be about that change. Seeds
/// nobody knows are drawn by `make chaos`.
fn drawn() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a failed run is held again by its seed")]
    let given = std::env::var("CHATBOX_CHAOS_SEED").ok();
    given.and_then(|seed| seed.parse().ok()).unwrap_or(2 * SEED)
}

#[tokio::test]
async fn heavy_known_seeds_on_one_core() {
    single(SEED..SEED + 16).await;
}

#[tokio::test]
async fn heavy_a_drawn_seed_on_one_core() {
    let seed = drawn();
    single(seed..seed + 8).await;
}

#[tokio::test]
async fn heavy_known_seeds_on_two_cores_and_one_database_server() {
    cluster(SEED..SEED + 10, 1).await;
}

#[tokio::test]
async fn heavy_known_seeds_on_two_cores_and_a_replica_set() {
    cluster(SEED..SEED + 8, 3).await;
}

#[tokio::test]
async fn heavy_a_drawn_seed_on_two_cores() {
    let seed = drawn();
    cluster(seed..seed + 4, 1).await;
    cluster(seed..seed + 4, 3).await;
}

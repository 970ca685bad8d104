//! Rounds of the checker: whatever fails, nothing acknowledged is lost.

use crate::checker::{
    faults::Menu,
    round::{self, Plan},
    topology::Single,
};

/// Rounds of one test.
const ROUNDS: u64 = 10;

/// The seed that is always the same.
const SEED: u64 = 20_260;

async fn rounds(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let topology = Single::start("chatbox-core", Vec::new(), Menu::Single).await.unwrap();
        let outcome = round::run(Box::new(topology), Plan::drawn(seed)).await.unwrap();
        println!("{}", outcome.summary());
        assert!(outcome.violations.is_empty(), "make chaos ROUNDS=1 SEED={seed}\n{}", outcome.report());
    }
}

#[tokio::test]
async fn heavy_rounds_with_known_seeds() {
    rounds(SEED..SEED + ROUNDS).await;
}

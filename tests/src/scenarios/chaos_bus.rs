//! The store is the truth and the bus is a hint: whatever a bus does that has no keys, nothing changes; and what is forged
//! under a session's own seal, where a receiving side has nothing to see by, the checker finds.

use std::{collections::BTreeSet, time::Duration};

use crate::checker::{
    faulty::{BUS_LIE, BusLie},
    proof::Class,
    round::{self, Outcome, Plan},
    topology::Cluster,
    workload::{Amount, Habits},
};

async fn cluster(lie: BusLie) -> Box<Cluster> {
    let vars = vec![(BUS_LIE.to_owned(), lie.name().to_owned())];
    Box::new(Cluster::start_as("faulty-core", vars, 2, 1).await.unwrap())
}

/// A round on two cores whose buses lie.
async fn outcome(lie: BusLie) -> Outcome {
    let habits = Habits { stops: !lie.hinders_questions(), ends_sessions: false, restless: true };
    let plan = Plan {
        seed: 60,
        amount: Amount { users: 2, devices: 4, habits },
        faults: 0,
        calm: Duration::from_millis(1_200),
        patience: Duration::from_secs(if BusLie::HARMLESS.contains(&lie) { 30 } else { 8 }),
    };
    let outcome = round::run(cluster(lie).await, plan).await.unwrap();
    println!("{}: {} deceived; {}", lie.name(), outcome.deceived, outcome.summary());
    assert!(outcome.deceived > 0, "{} was never told\n{}", lie.name(), outcome.report());
    outcome
}

async fn changes_nothing(lies: &[BusLie]) {
    for &lie in lies {
        let outcome = outcome(lie).await;
        assert!(outcome.violations.is_empty(), "{}\n{}", lie.name(), outcome.report());
    }
}

#[tokio::test]
async fn heavy_a_bus_that_repeats_reorders_and_mixes_up_changes_nothing() {
    changes_nothing(&[BusLie::Double, BusLie::Swapped, BusLie::Late, BusLie::Foreign, BusLie::Moved]).await;
}

#[tokio::test]
async fn heavy_a_bus_that_loses_breaks_and_does_not_answer_changes_nothing() {
    changes_nothing(&[
        BusLie::Lost,
        BusLie::Broken,
        BusLie::Marked,
        BusLie::Mute,
        BusLie::StaleAnswer,
        BusLie::FarHead,
    ])
    .await;
}

#[test]
fn every_lie_that_must_change_nothing_is_told_above() {
    let text = include_str!("chaos_bus.rs");
    for lie in BusLie::HARMLESS {
        assert!(text.contains(&format!("BusLie::{lie:?},")) || text.contains(&format!("BusLie::{lie:?}]")), "{lie:?}");
    }
}

/// Hints are lost without a word while everything else fails as well.
#[tokio::test]
async fn heavy_rounds_of_faults_on_a_bus_that_silently_loses_half_keep_the_promise() {
    for seed in 20_400..20_403 {
        let outcome = round::run(cluster(BusLie::Lost).await, Plan::drawn(seed)).await.unwrap();
        println!("{}", outcome.summary());
        assert!(outcome.violations.is_empty(), "make chaos ROUNDS=1 SEED={seed} ON=lossy\n{}", outcome.report());
    }
}

#[tokio::test]
async fn heavy_what_is_forged_under_the_seal_of_a_session_is_found() {
    for lie in BusLie::FORGED {
        let outcome = outcome(lie).await;
        let found: BTreeSet<Class> = outcome.violations.iter().map(|violation| violation.kind).collect();
        println!("{}: {found:?}", lie.name());
        for class in lie.found_as() {
            assert!(found.contains(class), "{} was not found as {class:?}\n{}", lie.name(), outcome.report());
        }
    }
}

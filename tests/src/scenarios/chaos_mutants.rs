//! The checker finds the opposite: a store that lies is caught, each lie as what it is; and an honest one is not.

use std::{collections::BTreeSet, time::Duration};

use crate::checker::{
    faults::Menu,
    faulty::{LIE, Lie},
    proof::Class,
    round::{self, Outcome, Plan},
    topology::{Cluster, Single, Topology},
    workload::{Amount, Habits},
};

async fn on_sqlite(lie: Option<Lie>) -> Outcome {
    outcome(lie, Box::new(Single::start("faulty-core", vars(lie), Menu::Kills).await.unwrap())).await
}

async fn on_mongodb(lie: Option<Lie>) -> Outcome {
    let cluster = Cluster::start_as("faulty-core", vars(lie), 1, 1).await.unwrap();
    outcome(lie, Box::new(cluster.broken_by(Menu::Kills))).await
}

fn vars(lie: Option<Lie>) -> Vec<(String, String)> {
    lie.map(|lie| (LIE.to_owned(), lie.name().to_owned())).into_iter().collect()
}

async fn outcome(lie: Option<Lie>, topology: Box<dyn Topology>) -> Outcome {
    // What a checkpoint is for shows only when a reply has run for a while and its core dies.
    let cut = lie == Some(Lie::LostCheckpoint);
    let plan = Plan {
        seed: 40,
        amount: Amount { users: 2, devices: 3, habits: Habits { stops: !cut, ends_sessions: false, restless: !cut } },
        faults: usize::from(cut),
        calm: if cut { Duration::from_millis(4_500) } else { Duration::from_millis(2_000) },
        patience: Duration::from_secs(8),
    };
    round::run(topology, plan).await.unwrap()
}

fn is_found(lie: Lie, outcome: &Outcome) {
    let found: BTreeSet<Class> = outcome.violations.iter().map(|violation| violation.kind).collect();
    println!("{}: {found:?}", lie.name());
    for class in lie.found_as() {
        assert!(found.contains(class), "{} was not found as {class:?}\n{}", lie.name(), outcome.report());
    }
}

#[tokio::test]
async fn heavy_every_lie_of_a_store_is_found() {
    for lie in Lie::ALL {
        is_found(lie, &on_sqlite(Some(lie)).await);
    }
}

/// The short form: lies about what is written, each of another kind. What is read is the same over any store.
#[tokio::test]
async fn heavy_lies_over_mongodb_are_found_and_an_honest_store_is_not_accused() {
    for lie in [Lie::AckUnwritten, Lie::SecondEnd, Lie::LostRepeat, Lie::StaleState] {
        is_found(lie, &on_mongodb(Some(lie)).await);
    }
    let outcome = on_mongodb(None).await;
    assert!(outcome.violations.is_empty(), "{}", outcome.report());
}

#[tokio::test]
async fn heavy_an_honest_store_behind_the_same_decorator_is_not_accused() {
    let outcome = on_sqlite(None).await;
    assert!(outcome.violations.is_empty(), "{}", outcome.report());
    let entries: usize = outcome.sessions.iter().map(|session| session.entries.len()).sum();
    assert!(entries > 30, "{}", outcome.summary());
}

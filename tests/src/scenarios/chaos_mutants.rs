//! The checker finds the opposite: a store that lies is caught, each lie as what it is; and an honest one is not.

use std::{collections::BTreeSet, time::Duration};

use crate::checker::{
    faults::Menu,
    faulty::{LIE, Lie},
    proof::Class,
    round::{self, Outcome, Plan},
    topology::Single,
    workload::{Amount, Habits},
};

async fn outcome(lie: Option<Lie>) -> Outcome {
    let vars = lie.map(|lie| (LIE.to_owned(), lie.name().to_owned())).into_iter().collect();
    // What a checkpoint is for shows only when a reply has run for a while and its core dies.
    let cut = lie == Some(Lie::LostCheckpoint);
    let plan = Plan {
        seed: 40,
        amount: Amount { users: 2, devices: 3, habits: Habits { stops: !cut, ends_sessions: false, restless: !cut } },
        faults: usize::from(cut),
        calm: if cut { Duration::from_millis(4_500) } else { Duration::from_millis(2_000) },
        patience: Duration::from_secs(8),
    };
    let topology = Single::start("faulty-core", vars, Menu::Kills).await.unwrap();
    round::run(Box::new(topology), plan).await.unwrap()
}

#[tokio::test]
async fn heavy_every_lie_of_a_store_is_found() {
    for lie in Lie::ALL {
        let outcome = outcome(Some(lie)).await;
        let found: BTreeSet<Class> = outcome.violations.iter().map(|violation| violation.kind).collect();
        println!("{}: {found:?}", lie.name());
        for class in lie.found_as() {
            assert!(found.contains(class), "{} was not found as {class:?}\n{}", lie.name(), outcome.report());
        }
    }
}

#[tokio::test]
async fn heavy_an_honest_store_behind_the_same_decorator_is_not_accused() {
    let outcome = outcome(None).await;
    assert!(outcome.violations.is_empty(), "{}", outcome.report());
    let entries: usize = outcome.sessions.iter().map(|session| session.entries.len()).sum();
    assert!(entries > 30, "{}", outcome.summary());
}

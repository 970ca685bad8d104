//! `kill -9` right before and right after every write of the store: what the next start finds is consistent, by the same
//! proof as always. On MongoDB it is the short form: one core, each write once or twice.

use std::time::Duration;

use crate::checker::{
    faults::{Fault, Menu, Victim},
    faulty::{ABORT, Call, FORGETFUL, Failpoint, Side},
    round::{self, Plan},
    topology::{Cluster, Single, Topology},
    workload::{Amount, Habits},
};

/// Which store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Sqlite,
    Mongo,
}

impl On {
    async fn start(self, vars: Vec<(String, String)>) -> Box<dyn Topology> {
        match self {
            Self::Sqlite => Box::new(Single::start("faulty-core", vars, Menu::Kills).await.unwrap()),
            Self::Mongo => {
                let cluster = Cluster::start_as("faulty-core", vars, 1, 1).await.unwrap();
                Box::new(cluster.broken_by(Menu::Kills))
            }
        }
    }
}

/// Dies at one point, twice at no point, and comes to rest.
async fn dies_at(failpoint: Failpoint, on: On) {
    let vars = vec![(ABORT.to_owned(), failpoint.to_string()), (FORGETFUL.to_owned(), "1".to_owned())];
    let plan = Plan {
        seed: 7_000 + failpoint.nth,
        amount: Amount { users: 2, devices: 2, habits: Habits { stops: true, ends_sessions: false, restless: false } },
        // A folded state is repaired by whoever opens the session after a death.
        faults: if failpoint.call == Call::ReplaceDerived { 1 } else { 0 },
        calm: Duration::from_millis(900),
        patience: Duration::from_secs(30),
    };
    let outcome = round::run(on.start(vars).await, plan).await.unwrap();
    println!("{on:?}, {failpoint}: {}", outcome.summary());
    assert!(outcome.violations.is_empty(), "{failpoint}\n{}", outcome.report());
    let reached = outcome.record.faults.iter().any(|inflicted| inflicted.fault == Fault::Fell(Victim::Core(0)));
    assert!(reached, "{failpoint} was not reached\n{}", outcome.report());
}

/// Each call on one side, the first time and later.
async fn dies(side: Side, on: On) {
    for call in Call::ALL {
        let times: &[u64] = match (call, on) {
            (Call::Append, _) => &[1, 9],
            (Call::RenewReply, On::Sqlite) => &[1, 5],
            (Call::CreateSession | Call::InitInstallationValue, On::Sqlite) => &[1, 2],
            (Call::InitInstallationValue, On::Mongo) => &[2],
            (Call::RenewReply, On::Mongo) => &[5],
            (Call::CreateSession, On::Mongo) | (Call::ReplaceDerived | Call::MarkRead, _) => &[1],
            // `keys`: whoever is erased is in no round.
            (Call::EraseSession, _) => &[],
        };
        for &nth in times {
            dies_at(Failpoint { call, side, nth }, on).await;
        }
    }
}

#[tokio::test]
async fn heavy_a_death_before_any_write_leaves_a_consistent_store() {
    dies(Side::Before, On::Sqlite).await;
}

#[tokio::test]
async fn heavy_a_death_after_any_write_leaves_a_consistent_store() {
    dies(Side::After, On::Sqlite).await;
}

#[tokio::test]
async fn heavy_a_death_before_any_write_to_mongodb_leaves_a_consistent_store() {
    dies(Side::Before, On::Mongo).await;
}

#[tokio::test]
async fn heavy_a_death_after_any_write_to_mongodb_leaves_a_consistent_store() {
    dies(Side::After, On::Mongo).await;
}

/// The trait's methods that change something, so that a new one is not forgotten here.
#[test]
fn every_write_of_the_store_has_its_failpoints() {
    let contract = include_str!("../../../core/src/store/mod.rs");
    let methods: Vec<&str> = contract
        .lines()
        .filter_map(|line| line.trim().strip_prefix("async fn ")?.split_once('(').map(|(name, _)| name))
        .collect();
    let reads = [
        "session",
        "active_session",
        "active_sessions",
        "list_sessions",
        "find_append",
        "find_message",
        "head",
        "heads",
        "read_after",
        "read_before",
        "unfinished_sessions",
        "reply_row",
        "reply_rows",
        "wrapped_keys",
        "read_marks",
        "installation_value",
        "ping",
        "close",
    ];
    // Rotation of keys, renewals of the register, and what the sweep removes on a shared store: done again by whoever comes next.
    let by_hand = ["replace_wrapped_key", "replace_installation_value", "remove_reply"];
    assert!(methods.len() > reads.len(), "{methods:?}");
    for method in methods {
        let known =
            reads.contains(&method) || by_hand.contains(&method) || Call::ALL.iter().any(|call| call.name() == method);
        assert!(known, "`{method}` is neither a read nor has a failpoint");
    }
}

//! The outbox.

use std::collections::BTreeSet;

use super::*;
use crate::store::outbox::{AlertId, AlertRow, AlertState, Attempted, OutboxStore};

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn row(number: u8, due: i64) -> AlertRow {
    AlertRow {
        id: [number; 16],
        channel: "mail".to_owned(),
        event: "help_requested".to_owned(),
        entry: Some((SessionId::from_bytes([number; 16]), u64::from(number))),
        detail: String::new(),
        created_at: at(i64::from(number)),
        due_at: at(due),
        attempts: 0,
        state: AlertState::Waiting,
        error: String::new(),
    }
}

fn ids(rows: &[AlertRow]) -> Vec<u8> {
    rows.iter().map(|row| row.id[0]).collect()
}

async fn all(outbox: &Arc<dyn OutboxStore>, state: AlertState) -> Vec<AlertRow> {
    outbox.alerts(state, None, 100).await.unwrap()
}

pub(crate) async fn an_alert_is_read_back_as_it_was_made(f: &mut impl Fixture) {
    let about_a_session = row(1, 5);
    let about_a_provider = AlertRow { entry: None, detail: "openai".to_owned(), ..row(2, 6) };
    for row in [&about_a_session, &about_a_provider] {
        assert!(f.stores().outbox.enqueue(row.clone()).await.unwrap());
    }
    f.reopen().await;
    assert_eq!(all(&f.stores().outbox, AlertState::Waiting).await, [about_a_session, about_a_provider]);
}

pub(crate) async fn of_fifty_racing_equal_alerts_one_is_made(f: &mut impl Fixture) {
    let outbox = f.stores().outbox;
    let made = race((0..50).map(|n| {
        let outbox = Arc::clone(&outbox);
        async move { outbox.enqueue(AlertRow { detail: n.to_string(), ..row(1, 0) }).await.unwrap() }
    }))
    .await;
    assert_eq!(made.iter().filter(|made| **made).count(), 1);
    assert_eq!(all(&outbox, AlertState::Waiting).await.len(), 1);
}

pub(crate) async fn alerts_are_claimed_when_they_are_due(f: &mut impl Fixture) {
    let outbox = f.stores().outbox;
    for (number, due) in [(1, 30), (2, 10), (3, 20), (4, 40)] {
        outbox.enqueue(row(number, due)).await.unwrap();
    }
    assert_eq!(outbox.claim(at(9), at(100), 10).await.unwrap(), []);
    let first = outbox.claim(at(30), at(100), 2).await.unwrap();
    assert_eq!(ids(&first), [2, 3], "those due first first");
    assert_eq!(first[0], AlertRow { attempts: 1, due_at: at(100), ..row(2, 10) });
    assert_eq!(ids(&outbox.claim(at(30), at(100), 2).await.unwrap()), [1], "what is claimed is not due");
    let again = outbox.claim(at(100), at(200), 10).await.unwrap();
    assert_eq!(ids(&again), [4, 1, 2, 3], "who claimed it may be dead");
    assert_eq!(again.iter().map(|row| row.attempts).collect::<Vec<_>>(), [1, 2, 2, 2]);
}

pub(crate) async fn of_those_who_claim_at_once_one_gets_a_row(f: &mut impl Fixture) {
    let outbox = f.stores().outbox;
    for number in 0..20 {
        outbox.enqueue(row(number, 0)).await.unwrap();
    }
    let claimed = race((0..8).map(|_| {
        let outbox = Arc::clone(&outbox);
        async move { outbox.claim(at(1), at(100), 5).await.unwrap() }
    }))
    .await;
    let claimed: Vec<u8> = claimed.iter().flat_map(|rows| ids(rows)).collect();
    assert_eq!(claimed.len(), 20);
    assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), 20);
}

pub(crate) async fn a_try_settles_what_it_claimed_and_nothing_later(f: &mut impl Fixture) {
    let outbox = f.stores().outbox;
    for number in 1..=3 {
        outbox.enqueue(row(number, 0)).await.unwrap();
    }
    outbox.claim(at(0), at(10), 3).await.unwrap();
    let error = "it was busy".to_owned();
    assert!(outbox.settle([1; 16], 1, Attempted::Delivered).await.unwrap());
    assert!(!outbox.settle([1; 16], 1, Attempted::Delivered).await.unwrap(), "once");
    let retry = Attempted::Retry { due_at: at(50), error: error.clone() };
    assert!(outbox.settle([2; 16], 1, retry.clone()).await.unwrap());
    assert!(outbox.settle([3; 16], 1, Attempted::Dead { error: error.clone() }).await.unwrap());
    assert_eq!(outbox.claim(at(49), at(60), 9).await.unwrap(), []);
    let expected = AlertRow { attempts: 2, due_at: at(60), error: error.clone(), ..row(2, 0) };
    assert_eq!(outbox.claim(at(50), at(60), 9).await.unwrap(), [expected]);
    assert!(!outbox.settle([2; 16], 1, retry).await.unwrap(), "it was claimed again since");
    assert!(!outbox.settle([9; 16], 1, Attempted::Delivered).await.unwrap(), "unknown");
    assert_eq!(ids(&all(&outbox, AlertState::Delivered).await), [1]);
    assert_eq!(
        all(&outbox, AlertState::Dead).await,
        [AlertRow { attempts: 1, due_at: at(10), state: AlertState::Dead, error, ..row(3, 0) }]
    );
    assert!(!outbox.enqueue(row(1, 0)).await.unwrap(), "what was delivered does not come back");
}

pub(crate) async fn alerts_are_listed_page_by_page_oldest_first(f: &mut impl Fixture) {
    let outbox = f.stores().outbox;
    for number in [3, 1, 2] {
        outbox.enqueue(row(number, 0)).await.unwrap();
    }
    outbox.enqueue(AlertRow { created_at: at(2), ..row(9, 0) }).await.unwrap();
    let (mut seen, mut after): (Vec<u8>, Option<(Timestamp, AlertId)>) = (Vec::new(), None);
    loop {
        let page = outbox.alerts(AlertState::Waiting, after, 1).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.created_at, last.id));
        seen.extend(ids(&page));
    }
    assert_eq!(seen, [1, 2, 9, 3]);
}

pub(crate) async fn only_old_delivered_alerts_are_removed(f: &mut impl Fixture) {
    let outbox = f.stores().outbox;
    for number in 1..=5 {
        outbox.enqueue(row(number, 0)).await.unwrap();
    }
    outbox.claim(at(0), at(10), 4).await.unwrap();
    for number in 1..=3 {
        outbox.settle([number; 16], 1, Attempted::Delivered).await.unwrap();
    }
    outbox.settle([4; 16], 1, Attempted::Dead { error: String::new() }).await.unwrap();
    assert_eq!(outbox.prune_delivered(at(3), 1).await.unwrap(), 1);
    assert_eq!(outbox.prune_delivered(at(3), 10).await.unwrap(), 1);
    assert_eq!(outbox.prune_delivered(at(3), 10).await.unwrap(), 0);
    assert_eq!(ids(&all(&outbox, AlertState::Delivered).await), [3]);
    assert_eq!(ids(&all(&outbox, AlertState::Dead).await), [4]);
    assert_eq!(ids(&all(&outbox, AlertState::Waiting).await), [5]);
}

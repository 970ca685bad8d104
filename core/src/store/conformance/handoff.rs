//! Sessions that wait for a person or are held by one.

use super::*;
use crate::store::{HandoffRow, Stage};

fn waiting(session_id: SessionId, since: i64, mark: u64) -> HandoffRow {
    HandoffRow { session_id, stage: Stage::Waiting { since: time(since) }, mark }
}

pub(crate) async fn a_row_is_written_replaced_and_removed_by_its_mark(f: &mut impl Fixture) {
    let store = f.stores().handoffs;
    let id = SessionId::generate();
    assert_eq!(store.handoff(id).await.unwrap(), None);
    assert!(!store.remove_handoff(id, 1).await.unwrap());
    let largest = u64::MAX >> 1;
    for row in [waiting(id, 7, 1), HandoffRow { session_id: id, stage: Stage::Held, mark: largest }, waiting(id, 9, 3)]
    {
        store.put_handoff(row).await.unwrap();
        assert_eq!(store.handoff(id).await.unwrap(), Some(row));
    }
    assert!(!store.remove_handoff(id, 1).await.unwrap(), "an old mark");
    f.reopen().await;
    let store = f.stores().handoffs;
    assert_eq!(store.handoffs(None, 10).await.unwrap(), [waiting(id, 9, 3)]);
    assert!(store.remove_handoff(id, 3).await.unwrap());
    assert_eq!(store.handoff(id).await.unwrap(), None);
}

pub(crate) async fn those_who_wait_come_longest_first(f: &mut impl Fixture) {
    let store = f.stores().handoffs;
    let mut ids: Vec<SessionId> = (0..6).map(|_| SessionId::generate()).collect();
    ids.sort_unstable();
    let rows = [30, 10, -5, 10, 20].map(time).into_iter().zip(&ids);
    for (since, id) in rows {
        store.put_handoff(waiting(*id, since.millis(), 1)).await.unwrap();
    }
    store.put_handoff(HandoffRow { session_id: ids[5], stage: Stage::Held, mark: 1 }).await.unwrap();
    let order = |rows: Vec<HandoffRow>| rows.iter().map(|row| row.session_id).collect::<Vec<_>>();
    let expected = [2, 1, 3, 4, 0].map(|index| ids[index]);
    assert_eq!(order(store.waiting(10).await.unwrap()), expected);
    assert_eq!(order(store.waiting(2).await.unwrap()), expected[..2]);
    store.put_handoff(HandoffRow { session_id: ids[2], stage: Stage::Held, mark: 2 }).await.unwrap();
    assert_eq!(order(store.waiting(10).await.unwrap()), expected[1..]);
}

pub(crate) async fn all_rows_come_page_by_page_in_the_order_of_ids(f: &mut impl Fixture) {
    let store = f.stores().handoffs;
    let mut rows: Vec<HandoffRow> = (0..12).map(|n| waiting(SessionId::generate(), n, 1)).collect();
    for row in &rows {
        store.put_handoff(*row).await.unwrap();
    }
    rows.sort_unstable_by_key(|row| row.session_id);
    for limit in [1, 5, 100] {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = store.handoffs(after, limit).await.unwrap();
            assert!(page.len() <= limit as usize);
            let Some(last) = page.last() else { break };
            after = Some(last.session_id);
            all.extend(page);
        }
        assert_eq!(all, rows, "pages of {limit}");
    }
}

pub(crate) async fn of_many_writers_of_one_row_the_last_one_is_left_whole(f: &mut impl Fixture) {
    let store = f.stores().handoffs;
    let id = SessionId::generate();
    let writes = (1..=30_u64).map(|mark| {
        let store = Arc::clone(&store);
        async move { store.put_handoff(waiting(id, i64::try_from(mark).unwrap(), mark)).await.unwrap() }
    });
    race(writes).await;
    let row = store.handoff(id).await.unwrap().unwrap();
    assert_eq!(row, waiting(id, i64::try_from(row.mark).unwrap(), row.mark));
    assert_eq!(store.handoffs(None, 10).await.unwrap().len(), 1);
}

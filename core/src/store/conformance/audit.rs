//! The audit trail.

use super::*;
use crate::store::{AuditQuery, AuditRow};

fn record(seq: u64, actor: &str, action: &str, session_id: Option<SessionId>) -> AuditRow {
    AuditRow {
        seq,
        at: time(1000 + i64::try_from(seq).unwrap()),
        actor: actor.to_owned(),
        action: action.to_owned(),
        session_id,
        sealed: vec![1, 2, 3],
        hash: [u8::try_from(seq).unwrap(); 32],
    }
}

fn query(limit: u32) -> AuditQuery {
    AuditQuery { limit, ..AuditQuery::default() }
}

pub(crate) async fn records_are_numbered_without_gaps(f: &mut impl Fixture) {
    let store = f.stores().audit;
    assert_eq!(store.last_audit().await.unwrap(), None);
    for (seq, fits) in [(0, false), (2, false), (1, true), (1, false), (3, false), (2, true), (3, true), (2, false)] {
        let row = record(seq, "ann", "TakeOver", None);
        assert_eq!(store.append_audit(row).await.unwrap(), fits, "{seq}");
    }
    assert_eq!(store.last_audit().await.unwrap(), Some(record(3, "ann", "TakeOver", None)));
}

pub(crate) async fn of_fifty_racing_records_with_one_number_one_is_written(f: &mut impl Fixture) {
    let store = f.stores().audit;
    store.append_audit(record(1, "ann", "Release", None)).await.unwrap();
    let writes = (0..50).map(|n| {
        let store = Arc::clone(&store);
        async move { store.append_audit(record(2, &format!("admin {n}"), "Release", None)).await.unwrap() }
    });
    assert_eq!(race(writes).await.into_iter().filter(|written| *written).count(), 1);
    assert_eq!(store.audit_after(0, 10).await.unwrap().len(), 2);
}

pub(crate) async fn records_are_listed_newest_first_by_every_filter(f: &mut impl Fixture) {
    let store = f.stores().audit;
    let (one, two) = (SessionId::generate(), SessionId::generate());
    let rows = [
        record(1, "ann", "TakeOver", Some(one)),
        record(2, "bob", "TakeOver", Some(one)),
        record(3, "ann", "Release", Some(one)),
        record(4, "ann", "ListAudit", None),
        record(5, "bob", "TakeOver", Some(two)),
    ];
    for row in rows {
        assert!(store.append_audit(row).await.unwrap());
    }
    let numbers = |query: AuditQuery| async {
        let rows = f.stores().audit.audit_before(query).await.unwrap();
        rows.iter().map(|row| row.seq).collect::<Vec<_>>()
    };
    let (ann, takeover) = (Some("ann".to_owned()), Some("TakeOver".to_owned()));
    assert_eq!(numbers(query(10)).await, [5, 4, 3, 2, 1]);
    assert_eq!(numbers(AuditQuery { before: Some(4), ..query(2) }).await, [3, 2]);
    assert_eq!(numbers(AuditQuery { actor: ann.clone(), ..query(10) }).await, [4, 3, 1]);
    assert_eq!(numbers(AuditQuery { action: takeover.clone(), before: Some(5), ..query(10) }).await, [2, 1]);
    assert_eq!(numbers(AuditQuery { session_id: Some(one), ..query(10) }).await, [3, 2, 1]);
    let all = AuditQuery { actor: ann, action: takeover, session_id: Some(one), ..query(10) };
    assert_eq!(numbers(all).await, [1]);
    let window = AuditQuery { from: Some(time(1002)), until: Some(time(1004)), ..query(10) };
    assert_eq!(numbers(window).await, [3, 2]);
    let nobody = AuditQuery { actor: Some("carol".to_owned()), ..query(10) };
    assert_eq!(numbers(nobody).await, Vec::<u64>::new());
}

pub(crate) async fn the_trail_is_read_in_order_and_survives_reopening(f: &mut impl Fixture) {
    let session_id = Some(SessionId::generate());
    let rows: Vec<AuditRow> = (1..=7).map(|seq| record(seq, "ann", "GetSession", session_id)).collect();
    for row in &rows {
        assert!(f.stores().audit.append_audit(row.clone()).await.unwrap());
    }
    f.reopen().await;
    let store = f.stores().audit;
    assert_eq!(store.audit_after(0, 3).await.unwrap(), rows[..3]);
    assert_eq!(store.audit_after(3, 100).await.unwrap(), rows[3..]);
    assert_eq!(store.audit_after(7, 100).await.unwrap(), []);
}

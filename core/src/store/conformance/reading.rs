//! Reading the log from either end, and finding what is in it.

use super::*;

/// Documents of 1, 3, 2, 4 entries: 1 | 2 3 4 | 5 6 | 7 8 9 10.
const SIZES: [u32; 4] = [1, 3, 2, 4];

fn firsts(documents: &[LogDocument]) -> Vec<Seq> {
    documents.iter().map(|document| document.first_seq).collect()
}

pub(crate) async fn reading_after_starts_in_the_document_that_holds_the_next_entry(f: &mut impl Fixture) {
    let store = f.store();
    let (id, documents) = logged(&store, &SIZES).await;
    for (after, from) in [(0, 0), (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3), (9, 3), (10, 4)] {
        assert_eq!(store.read_after(id, after, 1000).await.unwrap(), documents[from..], "after {after}");
    }
}

pub(crate) async fn reading_after_stops_at_the_limit(f: &mut impl Fixture) {
    let store = f.store();
    let (id, _) = logged(&store, &SIZES).await;
    for (after, limit, expected) in [
        (0, 1, &[1][..]),
        (0, 2, &[1, 2]),
        (0, 4, &[1, 2]),
        (0, 5, &[1, 2, 5]),
        (0, 6, &[1, 2, 5]),
        (0, 7, &[1, 2, 5, 7]),
        // Only entries above `after` count: of 2 3 4, one is above 3.
        (3, 1, &[2]),
        (3, 2, &[2, 5]),
        (3, 4, &[2, 5, 7]),
        (9, 1, &[7]),
        (9, 50, &[7]),
    ] {
        let documents = store.read_after(id, after, limit).await.unwrap();
        assert_eq!(firsts(&documents), expected, "after {after}, limit {limit}");
    }
}

pub(crate) async fn reading_before_is_newest_first(f: &mut impl Fixture) {
    let store = f.store();
    let (id, mut documents) = logged(&store, &SIZES).await;
    documents.reverse();
    for (before, from) in
        [(u64::MAX, 0), (11, 0), (10, 0), (8, 0), (7, 1), (6, 1), (5, 2), (4, 2), (3, 2), (2, 3), (1, 4)]
    {
        assert_eq!(store.read_before(id, before, 1000).await.unwrap(), documents[from..], "before {before}");
    }
}

pub(crate) async fn reading_before_stops_at_the_limit(f: &mut impl Fixture) {
    let store = f.store();
    let (id, _) = logged(&store, &SIZES).await;
    for (before, limit, expected) in [
        (11, 1, &[7][..]),
        (11, 4, &[7]),
        (11, 5, &[7, 5]),
        (u64::MAX, 4, &[7]),
        (u64::MAX, 5, &[7, 5]),
        // Only entries below `before` count: of 7 8 9 10, one is below 8.
        (8, 1, &[7]),
        (8, 2, &[7, 5]),
        (8, 4, &[7, 5, 2]),
        (3, 1, &[2]),
        (3, 2, &[2, 1]),
        (2, 50, &[1]),
    ] {
        let documents = store.read_before(id, before, limit).await.unwrap();
        assert_eq!(firsts(&documents), expected, "before {before}, limit {limit}");
    }
}

pub(crate) async fn bounds_beyond_the_log_are_not_an_error(f: &mut impl Fixture) {
    let store = f.store();
    let (id, documents) = logged(&store, &SIZES).await;
    for after in [10, 11, 1 << 40, i64::MAX as u64, u64::MAX - 1, u64::MAX] {
        assert_eq!(store.read_after(id, after, 5).await.unwrap(), [], "after {after}");
    }
    for before in [0, 1] {
        assert_eq!(store.read_before(id, before, 5).await.unwrap(), [], "before {before}");
    }
    assert_eq!(store.read_after(id, 0, u32::MAX).await.unwrap(), documents);
    assert_eq!(store.read_before(id, u64::MAX, u32::MAX).await.unwrap().len(), documents.len());
}

pub(crate) async fn an_unknown_session_reads_as_nothing(f: &mut impl Fixture) {
    let store = f.store();
    logged(&store, &SIZES).await;
    let unknown = SessionId::generate();
    assert_eq!(store.session(unknown).await.unwrap(), None);
    assert_eq!(store.head(unknown).await.unwrap(), 0);
    assert_eq!(store.read_after(unknown, 0, 10).await.unwrap(), []);
    assert_eq!(store.read_before(unknown, 10, 10).await.unwrap(), []);
    assert_eq!(store.find_message(unknown, hash(1)).await.unwrap(), None);
    assert_eq!(store.reply_row(unknown).await.unwrap(), None);
    assert!(!store.replace_derived(unknown, 0, derived(1, 1)).await.unwrap());
    assert!(!store.renew_reply(MessageId::generate(), hash(1), 0, Vec::new()).await.unwrap());
}

pub(crate) async fn heads_of_many_sessions_leave_unknown_ones_out(f: &mut impl Fixture) {
    let store = f.store();
    let (one, _) = logged(&store, &[1, 2]).await;
    let (two, _) = logged(&store, &[4]).await;
    let empty = made(&store, "alice").await.id;
    let mut heads = store.heads(&[two, SessionId::generate(), empty, one]).await.unwrap();
    heads.sort_unstable();
    assert_eq!(heads, [(one, 3), (two, 4), (empty, 0)]);
    assert_eq!(store.heads(&[]).await.unwrap(), []);
}

pub(crate) async fn a_read_sees_what_was_acknowledged_before_it(f: &mut impl Fixture) {
    let store = f.store();
    let sessions = (0..8).map(|_| {
        let store = Arc::clone(&store);
        async move {
            let id = made(&store, "alice").await.id;
            for head in 0..25 {
                let append =
                    Append { messages: vec![message(head, u64::from(head) + 1)], ..entries(id, head.into(), 1) };
                let expected = document(&append);
                let head = done(&store, append).await;
                assert_eq!(store.head(id).await.unwrap(), head);
                assert_eq!(store.read_after(id, head - 1, 1).await.unwrap(), [expected]);
                assert_eq!(store.session(id).await.unwrap().unwrap().derived.applied_seq, head);
            }
        }
    });
    race(sessions).await;
}

pub(crate) async fn a_message_is_found_by_its_key(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let messages = vec![message(1, 1), message(2, 3)];
    done(&store, Append { messages: messages.clone(), ..entries(id, 0, 3) }).await;
    for message in messages {
        assert_eq!(store.find_message(id, message.key).await.unwrap(), Some(message));
    }
    assert_eq!(store.find_message(id, hash(3)).await.unwrap(), None);
}

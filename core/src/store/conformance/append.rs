//! Optimistic append: one winner per head, all or nothing, and a final answer about what was written.

use super::*;

pub(crate) async fn an_empty_log_has_head_zero(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    assert_eq!(store.head(id).await.unwrap(), 0);
    assert_eq!(store.read_after(id, 0, 10).await.unwrap(), []);
}

pub(crate) async fn entries_are_numbered_without_gaps(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let mut head = 0;
    for count in [1, 2, 1, 7, 3] {
        let expected = head + u64::from(count);
        head = done(&store, entries(id, head, count)).await;
        assert_eq!(head, expected);
        assert_eq!(store.head(id).await.unwrap(), head);
    }
    let documents = store.read_after(id, 0, 1000).await.unwrap();
    let mut next = 1;
    for document in documents {
        assert_eq!(document.first_seq, next);
        next += u64::from(document.count);
    }
    assert_eq!(next, head + 1);
}

/// What a refused append must leave as it was.
async fn snapshot(
    store: &Arc<dyn SessionStore>,
    id: SessionId,
) -> (Option<Header>, Vec<LogDocument>, Option<ReplyRow>) {
    (store.session(id).await.unwrap(), store.read_after(id, 0, 1000).await.unwrap(), store.reply_row(id).await.unwrap())
}

pub(crate) async fn a_wrong_head_conflicts_in_both_directions(f: &mut impl Fixture) {
    let store = f.store();
    let (id, _) = logged(&store, &[1, 3, 1]).await;
    let before = snapshot(&store, id).await;
    for wrong in [0, 1, 2, 3, 4, 6, 7, 1_000_000, u64::MAX - 1, u64::MAX] {
        let mut append = entries(id, wrong, 1);
        append.messages = vec![MessageKey { seq: 1, ..message(1, 1) }];
        append.ends_session = true;
        assert_eq!(store.append(append).await.unwrap(), Appended::Conflict, "at {wrong}");
    }
    assert_eq!(snapshot(&store, id).await, before);
    assert_eq!(store.find_message(id, hash(1)).await.unwrap(), None);
}

pub(crate) async fn a_message_key_that_exists_conflicts_and_nothing_is_written(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let first = message(1, 1);
    done(&store, Append { messages: vec![first.clone()], ..entries(id, 0, 1) }).await;
    let before = snapshot(&store, id).await;
    // The right head; the existing key stands behind a new one, which must not stay either.
    let reply = ReplyRow {
        session_id: id,
        message_id: MessageId::generate(),
        started_seq: 3,
        boot_id: hash(9),
        renewals: 0,
        checkpoint: Vec::new(),
    };
    let append = Append {
        messages: vec![message(2, 2), message(1, 3)],
        ends_session: true,
        reply_started: Some(reply),
        ..entries(id, 1, 2)
    };
    let append_id = append.append_id;
    assert_eq!(store.append(append).await.unwrap(), Appended::Conflict);
    assert_eq!(snapshot(&store, id).await, before);
    assert_eq!(store.find_message(id, hash(2)).await.unwrap(), None);
    assert_eq!(store.find_message(id, hash(1)).await.unwrap(), Some(first));
    assert_eq!(store.find_append(id, append_id).await.unwrap(), None);
    done(&store, Append { messages: vec![message(2, 2)], ..entries(id, 1, 1) }).await;
}

pub(crate) async fn a_message_key_twice_in_one_append_conflicts(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let append = Append { messages: vec![message(1, 1), message(1, 2)], ..entries(id, 0, 2) };
    assert_eq!(store.append(append).await.unwrap(), Appended::Conflict);
    assert_eq!(store.head(id).await.unwrap(), 0);
}

pub(crate) async fn message_keys_belong_to_their_session(f: &mut impl Fixture) {
    let store = f.store();
    let (one, two) = (made(&store, "alice").await.id, made(&store, "alice").await.id);
    for id in [one, two] {
        done(&store, Append { messages: vec![message(1, 1)], ..entries(id, 0, 1) }).await;
    }
    assert_ne!(store.find_message(one, hash(1)).await.unwrap(), store.find_message(two, hash(1)).await.unwrap());
}

pub(crate) async fn an_unknown_session_conflicts(f: &mut impl Fixture) {
    let store = f.store();
    let id = SessionId::generate();
    assert_eq!(store.append(entries(id, 0, 1)).await.unwrap(), Appended::Conflict);
    assert_eq!(store.append(entries(id, 3, 1)).await.unwrap(), Appended::Conflict);
    assert_eq!(store.head(id).await.unwrap(), 0);
    assert_eq!(store.session(id).await.unwrap(), None);
}

pub(crate) async fn of_fifty_racing_appends_one_wins_per_head(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    for round in 0..5 {
        let appends = (0..50_u8).map(|n| {
            let store = Arc::clone(&store);
            let append = Append { sealed: vec![n], ..entries(id, round, 1) };
            async move { (n, store.append(append).await.unwrap()) }
        });
        let verdicts = race(appends).await;
        let winners: Vec<u8> = verdicts
            .iter()
            .filter_map(|(n, verdict)| matches!(verdict, Appended::Done(head) if *head == round + 1).then_some(*n))
            .collect();
        let conflicts = verdicts.iter().filter(|(_, verdict)| *verdict == Appended::Conflict).count();
        assert_eq!((winners.len(), conflicts), (1, 49));
        let stored = store.read_after(id, round, 10).await.unwrap();
        assert_eq!(stored, [LogDocument { first_seq: round + 1, count: 1, sealed: winners }]);
    }
}

pub(crate) async fn appends_of_many_sessions_have_their_own_verdicts(f: &mut impl Fixture) {
    let store = f.store();
    let mut ids = Vec::new();
    for _ in 0..40 {
        ids.push(made(&store, "alice").await.id);
    }
    // Every fourth is wrong, in one of two ways.
    let wrong = |n: usize| n % 4 == 3;
    let appends = ids.iter().enumerate().map(|(n, id)| {
        let mut append = entries(*id, if n % 8 == 3 { 5 } else { 0 }, 2);
        append.messages = if n % 8 == 7 { vec![message(1, 1), message(1, 2)] } else { vec![message(1, 1)] };
        let store = Arc::clone(&store);
        async move { store.append(append).await.unwrap() }
    });
    // Polled in one task, so that they are accepted together.
    for (n, verdict) in join_all(appends).await.into_iter().enumerate() {
        assert_eq!(verdict, if wrong(n) { Appended::Conflict } else { Appended::Done(2) }, "session {n}");
        assert_eq!(store.head(ids[n]).await.unwrap(), if wrong(n) { 0 } else { 2 }, "session {n}");
        assert_eq!(store.find_message(ids[n], hash(1)).await.unwrap().is_some(), !wrong(n), "session {n}");
    }
}

pub(crate) async fn an_append_is_found_by_its_id_and_only_there(f: &mut impl Fixture) {
    let store = f.store();
    let (one, two) = (made(&store, "alice").await.id, made(&store, "alice").await.id);
    let mut written = Vec::new();
    let mut head = 0;
    for count in [1, 3, 2] {
        let append = entries(one, head, count);
        let id = append.append_id;
        head = done(&store, append).await;
        written.push((id, head));
    }
    for (append_id, head) in written {
        assert_eq!(store.find_append(one, append_id).await.unwrap(), Some(head));
        assert_eq!(store.find_append(two, append_id).await.unwrap(), None);
    }
    assert_eq!(store.find_append(one, hash(1)).await.unwrap(), None);
    assert_eq!(store.find_append(SessionId::generate(), hash(1)).await.unwrap(), None);
}

/// Attempts are abandoned at every stage; whatever the store then says of them must stay true.
pub(crate) async fn after_none_the_attempt_is_never_written(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let mut head = 0;
    let mut outcomes = [0; 2];
    for n in 0..60 {
        let append = entries(id, head, 1);
        let append_id = append.append_id;
        let mut attempt = Box::pin(store.append(append));
        if n % 3 > 0 {
            // Once: it is under way, and its outcome is not waited for.
            let _ = futures_util::poll!(&mut attempt);
        }
        drop(attempt);
        let found = store.find_append(id, append_id).await.unwrap();
        let stored = store.head(id).await.unwrap();
        assert_eq!(found, (stored == head + 1).then_some(head + 1), "attempt {n}");
        outcomes[usize::from(found.is_some())] += 1;
        // Another writer takes the place if it is free; an attempt that came late would conflict or double it.
        head = if found.is_some() { stored } else { done(&store, entries(id, stored, 1)).await };
        assert_eq!(store.find_append(id, append_id).await.unwrap(), found, "attempt {n}");
    }
    assert!(outcomes[0] >= 20, "attempts that never began are not found: {outcomes:?}");
    assert_eq!(store.head(id).await.unwrap(), 60);
}

pub(crate) async fn a_large_payload_is_stored_whole(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let sealed: Vec<u8> = (0_u32..1 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let mut append = Append { sealed: sealed.clone(), ..entries(id, 0, 1) };
    append.derived.state = sealed.clone();
    done(&store, append).await;
    f.reopen().await;
    let store = f.store();
    assert_eq!(
        store.read_after(id, 0, 1).await.unwrap(),
        [LogDocument { first_seq: 1, count: 1, sealed: sealed.clone() }]
    );
    assert_eq!(store.session(id).await.unwrap().unwrap().derived.state, sealed);
}

//! Read marks, values of the installation, and the life of the store itself.

use super::*;
use crate::store::{SessionQuery, StoreErrorKind};

pub(crate) async fn read_marks_only_rise(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    assert_eq!(store.read_marks(id).await.unwrap(), []);
    for (user, seq) in [("bob", 3), ("alice", 5), ("bob", 2), ("alice", 5), ("bob", 4), ("alice", 0)] {
        store.mark_read(id, user, seq).await.unwrap();
    }
    assert_eq!(store.read_marks(id).await.unwrap(), [("alice".to_owned(), 5), ("bob".to_owned(), 4)]);
    let other = made(&store, "alice").await.id;
    assert_eq!(store.read_marks(other).await.unwrap(), []);
}

pub(crate) async fn read_marks_are_kept_for_a_hundred_participants(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let marks = (0..130).map(|n| {
        let store = &store;
        async move { store.mark_read(id, &format!("user {n}"), 1).await.unwrap() }
    });
    join_all(marks).await;
    let kept = store.read_marks(id).await.unwrap();
    assert_eq!(kept.len(), 100);
    assert!(kept.is_sorted(), "by user id");
    // Those that are kept still rise.
    store.mark_read(id, &kept[99].0, 2).await.unwrap();
    assert_eq!(store.read_marks(id).await.unwrap()[99], (kept[99].0.clone(), 2));
}

pub(crate) async fn read_marks_of_an_unknown_session_are_nothing(f: &mut impl Fixture) {
    let store = f.store();
    let unknown = SessionId::generate();
    store.mark_read(unknown, "alice", 1).await.unwrap();
    assert_eq!(store.read_marks(unknown).await.unwrap(), []);
}

pub(crate) async fn an_installation_value_is_set_once(f: &mut impl Fixture) {
    let store = f.store();
    assert_eq!(store.installation_value("a").await.unwrap(), None);
    assert_eq!(store.init_installation_value("a", vec![1]).await.unwrap(), [1]);
    assert_eq!(store.init_installation_value("a", vec![2]).await.unwrap(), [1]);
    assert_eq!(store.init_installation_value("b", vec![]).await.unwrap(), Vec::<u8>::new());
    f.reopen().await;
    let store = f.store();
    assert_eq!(store.installation_value("a").await.unwrap(), Some(vec![1]));
    assert_eq!(store.installation_value("b").await.unwrap(), Some(vec![]));
}

pub(crate) async fn racing_initial_values_agree(f: &mut impl Fixture) {
    let store = f.store();
    let values = (0..30_u8).map(|n| {
        let store = Arc::clone(&store);
        async move { store.init_installation_value("a", vec![n]).await.unwrap() }
    });
    let values = race(values).await;
    assert!(values.iter().all(|value| value == &values[0]));
    assert_eq!(store.installation_value("a").await.unwrap().as_ref(), Some(&values[0]));
}

pub(crate) async fn an_installation_value_is_replaced_by_compare_and_set(f: &mut impl Fixture) {
    let store = f.store();
    assert!(!store.replace_installation_value("a", vec![], vec![1]).await.unwrap(), "it was never set");
    assert_eq!(store.installation_value("a").await.unwrap(), None);
    store.init_installation_value("a", vec![1]).await.unwrap();
    store.init_installation_value("b", vec![1]).await.unwrap();
    assert!(!store.replace_installation_value("a", vec![2], vec![3]).await.unwrap());
    assert!(store.replace_installation_value("a", vec![1], vec![2]).await.unwrap());
    assert!(!store.replace_installation_value("a", vec![1], vec![4]).await.unwrap());
    f.reopen().await;
    let store = f.store();
    assert_eq!(store.installation_value("a").await.unwrap(), Some(vec![2]));
    assert_eq!(store.installation_value("b").await.unwrap(), Some(vec![1]));
}

pub(crate) async fn ping_answers(f: &mut impl Fixture) {
    f.store().ping().await.unwrap();
}

pub(crate) async fn everything_is_there_after_reopening(f: &mut impl Fixture) {
    let store = f.store();
    let call = NewSession {
        request: Some(RequestKey { id: hash(1), content: hash(2) }),
        ..new_session("alice", SlotRule::First)
    };
    let id = call.id;
    store.create_session(call.clone()).await.unwrap();
    let mut expected = Vec::new();
    for head in 0..20 {
        let append = Append { messages: vec![message(head, u64::from(head) + 1)], ..entries(id, head.into(), 1) };
        expected.push((document(&append), append.append_id, append.messages[0].clone()));
        done(&store, append).await;
    }
    store.mark_read(id, "alice", 7).await.unwrap();
    let header = store.session(id).await.unwrap();
    for _ in 0..3 {
        f.reopen().await;
    }
    let store = f.store();
    assert_eq!(store.session(id).await.unwrap(), header);
    let documents: Vec<_> = expected.iter().map(|(document, ..)| document.clone()).collect();
    assert_eq!(store.read_after(id, 0, 1000).await.unwrap(), documents);
    for (document, append_id, message) in expected {
        assert_eq!(store.find_append(id, append_id).await.unwrap(), Some(document.first_seq));
        assert_eq!(store.find_message(id, message.key).await.unwrap(), Some(message));
    }
    assert_eq!(store.read_marks(id).await.unwrap(), [("alice".to_owned(), 7)]);
    assert!(matches!(store.create_session(call).await.unwrap(), Created::Repeated(_)));
    let created = store.create_session(new_session("alice", SlotRule::First)).await.unwrap();
    assert!(matches!(created, Created::SlotTaken(_)), "{created:?}");
    assert_eq!(done(&store, entries(id, 20, 1)).await, 21);
}

pub(crate) async fn close_is_idempotent_and_ends_service(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let both = (Arc::clone(&store), Arc::clone(&store));
    tokio::join!(both.0.close(), both.1.close());
    store.close().await;
    let query = SessionQuery { owner: "alice".to_owned(), ended: None, after: None, limit: 1 };
    let kinds = [
        store.create_session(new_session("alice", SlotRule::First)).await.unwrap_err().kind(),
        store.session(id).await.unwrap_err().kind(),
        store.active_session("alice").await.unwrap_err().kind(),
        store.list_sessions(query).await.unwrap_err().kind(),
        store.append(entries(id, 0, 1)).await.unwrap_err().kind(),
        store.find_append(id, hash(1)).await.unwrap_err().kind(),
        store.find_message(id, hash(1)).await.unwrap_err().kind(),
        store.head(id).await.unwrap_err().kind(),
        store.heads(&[id]).await.unwrap_err().kind(),
        store.read_after(id, 0, 1).await.unwrap_err().kind(),
        store.read_before(id, 9, 1).await.unwrap_err().kind(),
        store.replace_derived(id, 0, derived(1, 1)).await.unwrap_err().kind(),
        store.unfinished_sessions(None, 1).await.unwrap_err().kind(),
        store.reply_row(id).await.unwrap_err().kind(),
        store.renew_reply(MessageId::generate(), hash(1), 0, Vec::new()).await.unwrap_err().kind(),
        store.mark_read(id, "alice", 1).await.unwrap_err().kind(),
        store.read_marks(id).await.unwrap_err().kind(),
        store.installation_value("a").await.unwrap_err().kind(),
        store.init_installation_value("a", Vec::new()).await.unwrap_err().kind(),
        store.replace_installation_value("a", Vec::new(), Vec::new()).await.unwrap_err().kind(),
        store.reply_rows(None, 1).await.unwrap_err().kind(),
        store.replace_wrapped_key(id, Vec::new(), Vec::new()).await.unwrap_err().kind(),
        store.wrapped_keys(None, 1).await.unwrap_err().kind(),
        store.ping().await.unwrap_err().kind(),
    ];
    assert_eq!(kinds, [StoreErrorKind::Unavailable; 24]);
    f.reopen().await;
    assert_eq!(f.store().head(id).await.unwrap(), 0);
}

pub(crate) async fn work_accepted_before_close_is_finished(f: &mut impl Fixture) {
    let store = f.store();
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(made(&store, "alice").await.id);
    }
    let appends = join_all(ids.iter().map(|id| store.append(entries(*id, 0, 1))));
    // Polled in this order: the appends are accepted before the store is closed.
    let (verdicts, ()) = tokio::join!(biased; appends, store.close());
    f.reopen().await;
    let store = f.store();
    for (id, verdict) in ids.iter().zip(verdicts) {
        assert_eq!(verdict.unwrap(), Appended::Done(1));
        assert_eq!(store.head(*id).await.unwrap(), 1);
    }
}

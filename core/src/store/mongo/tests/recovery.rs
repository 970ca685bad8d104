//! What a crash between an append and its companions leaves, and attempts that arrive late.

use mongodb::bson::doc;

use super::*;
use crate::{
    domain::time::Timestamp,
    store::{Append, Appended, Created, Derived, Header, MessageKey, NewSession, SlotRule, mongo::document::binary},
};
use chatbox_proto::ids::MessageId;

fn derived(applied_seq: u64) -> Derived {
    let last_activity = Timestamp::from_millis(5);
    Derived { applied_seq, state: Vec::new(), last_activity, ended: false, unfinished: false }
}

fn append(session_id: SessionId, expected_head: u64) -> Append {
    Append {
        session_id,
        append_id: *MessageId::generate().as_bytes(),
        expected_head,
        count: 1,
        sealed: vec![2],
        messages: Vec::new(),
        ends_session: false,
        takes_slot: None,
        derived: derived(expected_head + 1),
        reply_started: None,
        reply_finished: None,
    }
}

async fn created(store: &dyn SessionStore) -> Created {
    let new = NewSession {
        id: SessionId::generate(),
        owner: "alice".to_owned(),
        slot: SlotRule::First,
        wrapped_key: vec![1],
        created_at: Timestamp::from_millis(5),
        request: None,
        derived: derived(0),
    };
    store.create_session(new).await.unwrap()
}

async fn new_session(store: &dyn SessionStore) -> Header {
    match created(store).await {
        Created::New(header) => header,
        other @ (Created::SlotTaken(_) | Created::Repeated(_) | Created::RequestReused) => panic!("{other:?}"),
    }
}

/// Whoever dies right after the append leaves the document alone.
async fn append_and_die(fixture: &MongoFixture, append: Append) {
    let dying = MongoStore::open(&options(&fixture.database)).await.unwrap();
    dying.shared.companions.close();
    let head = append.expected_head + u64::from(append.count);
    assert_eq!(dying.append(append).await.unwrap(), Appended::Done(head));
    dying.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_is_free_when_the_end_is_in_the_log_although_freeing_it_was_lost() {
    let fixture = MongoFixture::new().await;
    let store = &*fixture.store;
    let first = new_session(store).await.id;
    append_and_die(&fixture, Append { ends_session: true, ..append(first, 0) }).await;
    let stored = fixture.database().collection::<Document>("sessions");
    let header = stored.find_one(doc! { "_id": binary(first.as_bytes()) }).await.unwrap().unwrap();
    assert_eq!(header.get_i64("slot").unwrap(), 0, "it was lost");
    assert_eq!(store.session(first).await.unwrap().unwrap().slot, None);
    assert_ne!(new_session(store).await.id, first);
    assert!(matches!(created(store).await, Created::SlotTaken(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_needs_looking_after_is_found_although_its_folded_state_was_lost() {
    let fixture = MongoFixture::new().await;
    let id = new_session(&*fixture.store).await.id;
    append_and_die(&fixture, Append { derived: Derived { unfinished: true, ..derived(1) }, ..append(id, 0) }).await;
    assert_eq!(fixture.store.unfinished_sessions(None, 10).await.unwrap(), [(id, 0)]);
    let finished = append(id, 1);
    assert_eq!(fixture.store.append(finished).await.unwrap(), Appended::Done(2));
    assert_eq!(fixture.store.unfinished_sessions(None, 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folded_state_that_comes_late_does_not_hide_that_a_later_append_left_the_session_unfinished() {
    let fixture = MongoFixture::new().await;
    let store = &*fixture.store;
    let id = new_session(store).await.id;
    append_and_die(&fixture, append(id, 0)).await;
    append_and_die(&fixture, Append { derived: Derived { unfinished: true, ..derived(2) }, ..append(id, 1) }).await;
    // That of the first append, which says that all is done.
    assert!(store.replace_derived(id, 0, derived(1)).await.unwrap());
    assert_eq!(store.unfinished_sessions(None, 10).await.unwrap(), [(id, 1)]);
    assert!(store.replace_derived(id, 1, derived(2)).await.unwrap());
    assert_eq!(store.unfinished_sessions(None, 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_was_there_already_leaves_no_session_marked() {
    let fixture = MongoFixture::new().await;
    let (store, other) = (&*fixture.store, fixture.another().await);
    let id = new_session(store).await.id;
    let message_id = MessageId::generate();
    let message = MessageKey { key: [1; 16], content: [2; 16], message_id, seq: 1 };
    let first = Append { messages: vec![message.clone()], ..append(id, 0) };
    assert_eq!(store.append(first).await.unwrap(), Appended::Done(1));
    let again =
        Append { messages: vec![message], derived: Derived { unfinished: true, ..derived(2) }, ..append(id, 1) };
    assert_eq!(other.append(again).await.unwrap(), Appended::Conflict);
    assert_eq!(other.unfinished_sessions(None, 10).await.unwrap(), []);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_conflicts_leaves_no_session_marked() {
    let fixture = MongoFixture::new().await;
    let (store, other) = (&*fixture.store, fixture.another().await);
    let id = new_session(store).await.id;
    let unfinished = || Derived { unfinished: true, ..derived(1) };
    let racers = (0..20).map(|n| {
        let append = Append { derived: if n == 0 { derived(1) } else { unfinished() }, ..append(id, 0) };
        let store: &dyn SessionStore = if n % 2 == 0 { store } else { &*other };
        async move { store.append(append).await.unwrap() }
    });
    let verdicts = futures_util::future::join_all(racers).await;
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Appended::Done(1)).count(), 1);
    let expected = if verdicts[0] == Appended::Done(1) { vec![] } else { vec![(id, 1)] };
    // Each waits for what its own core has still to write.
    other.unfinished_sessions(None, 10).await.unwrap();
    store.unfinished_sessions(None, 10).await.unwrap();
    assert_eq!(store.unfinished_sessions(None, 10).await.unwrap(), expected);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_arrives_after_its_outcome_was_asked_for_finds_its_id_taken() {
    let fixture = MongoFixture::new().await;
    let (store, other) = (&*fixture.store, fixture.another().await);
    let id = new_session(store).await.id;
    let late = append(id, 0);
    assert_eq!(other.find_append(id, late.append_id).await.unwrap(), None);
    assert_eq!(store.append(late.clone()).await.unwrap(), Appended::Conflict);
    assert_eq!(store.append(append(id, 0)).await.unwrap(), Appended::Done(1));
    assert_eq!(other.find_append(id, late.append_id).await.unwrap(), None);
    assert_eq!(other.head(id).await.unwrap(), 1);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_for_the_outcome_while_the_attempt_is_under_way_settles_it_once() {
    let fixture = MongoFixture::new().await;
    let (store, other) = (&*fixture.store, fixture.another().await);
    let id = new_session(store).await.id;
    let mut head = 0;
    let mut written = 0;
    for _ in 0..40 {
        let append = append(id, head);
        let append_id = append.append_id;
        let (verdict, found) = tokio::join!(store.append(append), other.find_append(id, append_id));
        let expected = (verdict.unwrap() != Appended::Conflict).then_some(head + 1);
        assert_eq!(found.unwrap(), expected);
        head += u64::from(expected.is_some());
        written += u32::from(expected.is_some());
        assert_eq!(store.head(id).await.unwrap(), head);
    }
    assert!(written > 0 || head == 0);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_was_written_and_came_back_without_an_answer_is_done() {
    let fixture = MongoFixture::new().await;
    let id = new_session(&*fixture.store).await.id;
    let twice = append(id, 0);
    // As when the driver's own second try finds what its first one wrote.
    assert_eq!(fixture.store.append(twice.clone()).await.unwrap(), Appended::Done(1));
    let other = fixture.another().await;
    assert_eq!(other.append(twice).await.unwrap(), Appended::Done(1));
    assert_eq!(other.head(id).await.unwrap(), 1);
    other.close().await;
}

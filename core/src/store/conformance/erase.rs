//! Sessions whose content is destroyed, and rows that are left over.

use super::*;
use crate::store::SessionQuery;

fn row(session_id: SessionId, message_id: MessageId, started_seq: Seq) -> ReplyRow {
    ReplyRow { session_id, message_id, started_seq, boot_id: [1; 16], renewals: 0, checkpoint: b"sealed".to_vec() }
}

async fn listed(store: &Arc<dyn SessionStore>, ended: Option<bool>) -> Vec<SessionId> {
    let query = SessionQuery { owner: "alice".to_owned(), ended, after: None, limit: 10 };
    store.list_sessions(query).await.unwrap().into_iter().map(|header| header.id).collect()
}

pub(crate) async fn of_an_erased_session_nothing_is_left_that_could_be_read(f: &mut impl Fixture) {
    let store = f.store();
    let (id, other) = (made(&store, "alice").await.id, made(&store, "alice").await.id);
    for session in [id, other] {
        let reply = MessageId::generate();
        let started = Append { reply_started: Some(row(session, reply, 1)), ..entries(session, 0, 1) };
        done(&store, started).await;
        store.mark_read(session, "bob", 1).await.unwrap();
    }
    let mut fence = entries(id, 1, 2);
    fence.derived.unfinished = true;
    done(&store, fence).await;
    assert_eq!(store.unfinished_sessions(None, 10).await.unwrap(), [(id, 3)]);
    assert!(store.erase_session(id, 3).await.unwrap());
    f.reopen().await;
    let store = f.store();
    let header = store.session(id).await.unwrap().expect("its header remains");
    assert_eq!((header.owner.as_str(), header.slot, header.id), ("alice", None, id));
    assert!(header.wrapped_key.is_empty() && header.derived.state.is_empty());
    assert!(header.derived.ended && !header.derived.unfinished);
    assert_eq!(header.derived.applied_seq, 3);
    assert_eq!(store.reply_row(id).await.unwrap(), None);
    assert_eq!(store.read_marks(id).await.unwrap(), []);
    assert_eq!(store.unfinished_sessions(None, 10).await.unwrap(), []);
    assert_eq!(store.wrapped_keys(None, 10).await.unwrap().iter().filter(|(_, key)| key.is_empty()).count(), 1);
    // The log has its entries and its numbers, and nobody has the key to them.
    assert_eq!(store.head(id).await.unwrap(), 3);
    // Another session is as it was.
    assert_eq!(store.session(other).await.unwrap().unwrap().wrapped_key, b"wrapped");
    assert!(store.reply_row(other).await.unwrap().is_some());
    assert_eq!(store.read_marks(other).await.unwrap(), [("bob".to_owned(), 1)]);
}

pub(crate) async fn erasing_is_done_twice_and_for_nobody_without_harm(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    done(&store, entries(id, 0, 2)).await;
    for _ in 0..2 {
        assert!(store.erase_session(id, 2).await.unwrap());
    }
    assert!(!store.erase_session(SessionId::generate(), 2).await.unwrap());
    assert!(!store.replace_wrapped_key(id, Vec::new(), b"back".to_vec()).await.unwrap());
    assert!(!store.replace_wrapped_key(id, b"wrapped".to_vec(), b"back".to_vec()).await.unwrap());
    assert_eq!(store.session(id).await.unwrap().unwrap().derived.applied_seq, 2);
}

pub(crate) async fn an_erased_session_is_in_no_list_and_frees_its_slot(f: &mut impl Fixture) {
    let store = f.store();
    let Created::New(first) = store.create_session(new_session("alice", SlotRule::First)).await.unwrap() else {
        panic!("the slot was free")
    };
    let id = first.id;
    done(&store, entries(id, 0, 1)).await;
    assert_eq!(store.active_session("alice").await.unwrap().map(|header| header.id), Some(id));
    assert!(store.erase_session(id, 1).await.unwrap());
    assert_eq!(store.active_session("alice").await.unwrap(), None);
    let other = store.create_session(new_session("alice", SlotRule::First)).await.unwrap();
    let Created::New(other) = other else { panic!("{other:?}") };
    assert_eq!(listed(&store, None).await, [other.id]);
    assert_eq!(listed(&store, Some(false)).await, [other.id]);
    assert_eq!(listed(&store, Some(true)).await, []);
}

pub(crate) async fn nothing_that_goes_with_earlier_appends_changes_an_erased_session(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    done(&store, entries(id, 0, 3)).await;
    assert!(store.erase_session(id, 3).await.unwrap());
    let before = store.session(id).await.unwrap();
    for (expected, applied) in [(0, 2), (2, 3), (0, 3)] {
        assert!(!store.replace_derived(id, expected, derived(applied, 9)).await.unwrap(), "{expected} to {applied}");
    }
    let rival = Append { derived: Derived { unfinished: true, ..derived(4, 9) }, ..entries(id, 1, 3) };
    assert_eq!(store.append(rival).await.unwrap(), Appended::Conflict);
    store.mark_read(id, "bob", 1).await.unwrap();
    assert_eq!(store.read_marks(id).await.unwrap(), []);
    f.reopen().await;
    let store = f.store();
    assert_eq!(store.session(id).await.unwrap(), before);
    assert_eq!(store.unfinished_sessions(None, 10).await.unwrap(), []);
}

pub(crate) async fn a_row_of_a_reply_is_removed_alone(f: &mut impl Fixture) {
    let store = f.store();
    let mut replies = Vec::new();
    for _ in 0..2 {
        let (id, reply) = (made(&store, "alice").await.id, MessageId::generate());
        done(&store, Append { reply_started: Some(row(id, reply, 1)), ..entries(id, 0, 1) }).await;
        replies.push((id, reply));
    }
    for _ in 0..2 {
        store.remove_reply(replies[0].1).await.unwrap();
    }
    store.remove_reply(MessageId::generate()).await.unwrap();
    assert_eq!(store.reply_row(replies[0].0).await.unwrap(), None);
    assert_eq!(store.reply_row(replies[1].0).await.unwrap().map(|row| row.message_id), Some(replies[1].1));
}

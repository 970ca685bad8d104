//! Sending, repeating, ending; conflicts and unknown outcomes.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use chatbox_proto::{
    error_code::ErrorCode,
    ids::{MessageId, SessionId},
    v1,
};

use super::fixture::{Core, patiently, sender};
use crate::{
    session::Frame,
    store::{
        Append, AppendId, Appended, BootId, Created, Derived, Header, KeyedHash, LogDocument, MessageKey, NewSession,
        ReplyLease, ReplyRow, SessionQuery, SessionStore, StoreError, StoreErrorKind,
    },
};

fn session_id(opened: &v1::chat_response::Opened) -> SessionId {
    opened.session.as_ref().unwrap().session_id.parse().unwrap()
}

#[tokio::test]
async fn fifty_first_opens_meet_in_one_session() {
    let core = Core::start().await;
    let opens = futures_util::future::join_all((0..50).map(|_| core.open("alice"))).await;
    let mut ids = Vec::new();
    let mut created = 0;
    for mut client in opens {
        let opened = client.opened().await;
        ids.push(session_id(&opened));
        created += u32::from(opened.created);
    }
    ids.dedup();
    assert_eq!((ids.len(), created), (1, 1));
    core.stop().await;
}

#[tokio::test]
async fn a_repeated_send_yields_the_same_entry_and_other_content_is_refused() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    let first = client.send("m1", "hello").await;
    let again = client.send("m1", "hello").await;
    assert_eq!((again.message_id, again.seq, again.duplicate), (first.message_id, first.seq, true));
    let frame = client.message("m1", "other");
    let error = client.frame(frame).await.unwrap_err();
    assert_eq!(error.code(), v1::ErrorCode::AlreadyExists);
    core.stop().await;
}

#[tokio::test]
async fn a_repeat_is_recognised_when_nothing_new_would_be_taken() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    let _turn = {
        client.send("m0", "0").await;
        core.turn().await
    };
    for n in 1..=8 {
        client.send(&format!("m{n}"), "text").await;
    }
    let frame = client.message("m9", "text");
    let error = client.frame(frame).await.unwrap_err();
    assert_eq!(error.code(), v1::ErrorCode::ResourceExhausted);
    assert!(error.retry_after.is_some());
    assert!(client.send("m8", "text").await.duplicate);
    client.frame(Frame::EndSession).await.unwrap();
    assert!(client.send("m8", "text").await.duplicate);
    let frame = client.message("m10", "text");
    assert_eq!(client.frame(frame).await.unwrap_err().reason, "SESSION_ENDED");
    core.stop().await;
}

#[tokio::test]
async fn entries_are_numbered_without_gaps_for_every_device() {
    let core = Core::start().await;
    let mut phone = core.open("alice").await;
    let mut laptop = core.open("alice").await;
    for n in 0..3 {
        phone.post("", phone.message(&format!("p{n}"), "p")).await;
        laptop.post("", laptop.message(&format!("l{n}"), "l")).await;
    }
    let mut seen = [Vec::new(), Vec::new()];
    for (client, seen) in [&mut phone, &mut laptop].into_iter().zip(&mut seen) {
        while seen.len() < 7 {
            seen.push(client.entry().await.seq);
        }
    }
    assert_eq!(seen[0], [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(seen[0], seen[1]);
    core.stop().await;
}

#[tokio::test]
async fn ending_twice_is_ending_once_and_frees_the_slot() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    let id = session_id(&client.opened().await);
    let first = core.sessions.end(&sender("alice"), id).await.unwrap();
    let second = core.sessions.end(&sender("alice"), id).await.unwrap();
    assert!(first.end_time.is_some());
    assert_eq!(first.end_time, second.end_time);
    assert_eq!(first.head, second.head);
    let mut next = core.open("alice").await;
    assert_ne!(session_id(&next.opened().await), id);
    core.stop().await;
}

#[tokio::test]
async fn foreign_and_unknown_sessions_get_the_same_answer_and_the_owner_notices_nothing() {
    let core = Core::start().await;
    let mut owner = core.open("alice").await;
    let id = session_id(&owner.opened().await);
    let unknown = SessionId::generate();
    let bob = sender("bob");
    for id in [id, unknown] {
        let mut failures = vec![
            core.sessions.get("bob", id).await.unwrap_err(),
            core.sessions.end(&bob, id).await.unwrap_err(),
            core.sessions.messages_before("bob", id, None, 0, 10).await.unwrap_err(),
            core.sessions.messages_after("bob", id, 0, 10).await.unwrap_err(),
            core.resume("bob", Some(id), None, None).await.err().unwrap(),
        ];
        failures.dedup();
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].code, ErrorCode::NotFound);
    }
    owner.send("m1", "still here").await;
    core.stop().await;
}

#[tokio::test]
async fn a_create_with_the_same_request_id_is_the_same_session() {
    let core = Core::start().await;
    let first = core.sessions.create("alice", "led", "req-1").await.unwrap();
    let again = core.sessions.create("alice", "led", "req-1").await.unwrap();
    assert_eq!(first.session_id, again.session_id);
    let reused = core.sessions.create("alice", "panics", "req-1").await.unwrap_err();
    assert_eq!(reused.code, ErrorCode::AlreadyExists);
    let full = core.sessions.create("alice", "led", "req-2").await.unwrap_err();
    assert_eq!(full.reason, "SESSION_LIMIT");
    let unknown = core.sessions.create("bob", "nope", "").await.unwrap_err();
    assert_eq!(unknown.violations[0].0, "model");
    core.stop().await;
}

/// Lets some appends fail in one way, after or before they were really written.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn SessionStore>,
    appends: AtomicU32,
    fails: Range<u32>,
    written: bool,
    kind: StoreErrorKind,
}

macro_rules! pass {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        #[async_trait::async_trait]
        impl SessionStore for Faulty {
            async fn append(&self, append: Append) -> Result<Appended, StoreError> {
                if !self.fails.contains(&self.appends.fetch_add(1, Ordering::SeqCst)) {
                    return self.inner.append(append).await;
                }
                if self.written {
                    self.inner.append(append).await?;
                }
                Err(StoreError::bare(self.kind, "append"))
            }
            fn is_shared(&self) -> bool {
                self.inner.is_shared()
            }
            async fn close(&self) {
                self.inner.close().await;
            }
            $(async fn $name(&self, $($arg: $type),*) -> Result<$out, StoreError> {
                self.inner.$name($($arg),*).await
            })*
        }
    };
}

pass! {
    create_session(new: NewSession) -> Created;
    session(id: SessionId) -> Option<Header>;
    active_session(owner: &str) -> Option<Header>;
    list_sessions(query: SessionQuery) -> Vec<Header>;
    find_append(session_id: SessionId, append_id: AppendId) -> Option<u64>;
    find_message(session_id: SessionId, key: KeyedHash) -> Option<MessageKey>;
    head(session_id: SessionId) -> u64;
    heads(sessions: &[SessionId]) -> Vec<(SessionId, u64)>;
    read_after(session_id: SessionId, after: u64, limit: u32) -> Vec<LogDocument>;
    read_before(session_id: SessionId, before: u64, limit: u32) -> Vec<LogDocument>;
    replace_derived(session_id: SessionId, expected: u64, derived: Derived) -> bool;
    unfinished_sessions(after: Option<SessionId>, limit: u32) -> Vec<(SessionId, u64)>;
    reply_rows(after: Option<MessageId>, limit: u32) -> Vec<ReplyLease>;
    replace_wrapped_key(session_id: SessionId, expected: Vec<u8>, new: Vec<u8>) -> bool;
    wrapped_keys(after: Option<SessionId>, limit: u32) -> Vec<(SessionId, Vec<u8>)>;
    replace_installation_value(name: &str, expected: Vec<u8>, new: Vec<u8>) -> bool;
    reply_row(session_id: SessionId) -> Option<ReplyRow>;
    renew_reply(message_id: MessageId, boot_id: BootId, expected: u64, checkpoint: Vec<u8>) -> bool;
    mark_read(session_id: SessionId, user_id: &str, seq: u64) -> ();
    read_marks(session_id: SessionId) -> Vec<(String, u64)>;
    installation_value(name: &str) -> Option<Vec<u8>>;
    init_installation_value(name: &str, value: Vec<u8>) -> Vec<u8>;
    ping() -> ();
}

async fn faulty(kind: StoreErrorKind, written: bool, fails: Range<u32>) -> Core {
    Core::start_with(|inner| Arc::new(Faulty { inner, appends: AtomicU32::new(0), fails, written, kind })).await
}

#[tokio::test]
async fn a_refused_write_is_not_acknowledged_and_the_next_one_works() {
    for kind in [StoreErrorKind::Unavailable, StoreErrorKind::Full] {
        let core = faulty(kind, false, 0..1).await;
        let mut client = core.open("alice").await;
        let frame = client.message("m1", "hello");
        let error = client.frame(frame).await.unwrap_err();
        assert_eq!(error.code(), v1::ErrorCode::Unavailable);
        assert!(!error.outcome_unknown);
        let ack = client.send("m1", "hello").await;
        assert_eq!((ack.seq, ack.duplicate), (1, false));
        core.stop().await;
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_resolved_before_anything_else_is_decided() {
    for written in [true, false] {
        let core = faulty(StoreErrorKind::OutcomeUnknown, written, 0..1).await;
        let mut client = core.open("alice").await;
        let frame = client.message("m1", "hello");
        let error = client.frame(frame).await.unwrap_err();
        assert!(error.outcome_unknown);
        let ack = client.send("m1", "hello").await;
        assert_eq!((ack.seq, ack.duplicate), (1, written));
        // The reply it starts runs, whichever try started it.
        core.turn().await.finish().await;
        assert_eq!(client.finished().await.finish_reason(), v1::FinishReason::Stop);
        core.stop().await;
    }
}

#[tokio::test]
async fn the_end_of_a_reply_is_tried_until_it_is_written() {
    // The message and the start of its reply pass.
    let core = faulty(StoreErrorKind::Unavailable, false, 1..4).await;
    let mut client = core.open("alice").await;
    client.send("m1", "hello").await;
    let turn = core.turn().await;
    turn.say("answer").await;
    turn.finish().await;
    assert_eq!(client.finished().await.text, "answer");
    core.stop().await;
}

#[tokio::test]
async fn rooms_end_when_nobody_is_there() {
    let core = Core::start().await;
    drop(core.open("alice").await);
    core.directory.start_draining();
    patiently("rooms to end", core.directory.drained()).await;
    assert_eq!(core.directory.tasks_left(), 0);
}

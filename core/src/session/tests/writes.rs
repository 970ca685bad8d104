//! Sending, repeating, ending; conflicts and unknown outcomes.

use std::ops::Range;

use chatbox_proto::{
    error_code::ErrorCode,
    ids::SessionId,
    v1::{self, chat_response::Event},
};

use super::{
    faults::{Fault, faulty},
    fixture::{Core, patiently, sender},
};
use crate::{
    domain::time::Timestamp,
    seal::KeyRing,
    session::Frame,
    store::{Created, Derived, NewSession, SlotRule, StoreErrorKind},
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

/// A core whose store fails some appends, after or before they were really written.
async fn failing_appends(kind: StoreErrorKind, written: bool, fails: Range<u32>) -> Core {
    let (core, faults) = faulty().await;
    let fault = if written { Fault::DoneAndFail(kind) } else { Fault::Fail(kind) };
    faults.plan("append", fails.start, fails.end - fails.start, fault);
    core
}

#[tokio::test]
async fn a_session_that_cannot_be_read_is_listed_without_what_is_sealed_and_costs_no_other() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    let good = session_id(&client.opened().await);
    // Wrapped by a key that is not in the ring.
    let id = SessionId::generate();
    let (at, key) = (Timestamp::from_millis(1_700_000_000_123), KeyRing::generate_key());
    let (_, wrapped_key) = KeyRing::from_config("lost", [("lost", key.as_str())]).unwrap().new_data_key(id);
    let derived = Derived { applied_seq: 4, state: vec![1; 64], last_activity: at, ended: true, unfinished: false };
    let (owner, slot) = ("alice".to_owned(), SlotRule::Unlimited);
    let new = NewSession { id, owner, slot, wrapped_key, created_at: at, request: None, derived };
    assert!(matches!(core.store.create_session(new).await.unwrap(), Created::New(_)));
    let listed = core.sessions.list("alice", None, None, 10).await.unwrap().sessions;
    let ids: Vec<_> = listed.iter().map(|session| session.session_id.clone()).collect();
    assert_eq!(ids, [good.to_string(), id.to_string()]);
    assert_eq!(listed[0].model, "led");
    let lost = &listed[1];
    assert_eq!((lost.owner.as_str(), lost.status(), lost.head), ("alice", v1::SessionStatus::Ended, 4));
    assert_eq!((lost.model.as_str(), lost.responder()), ("", v1::Responder::Unspecified));
    assert_eq!(lost.last_activity_time.unwrap().seconds, 1_700_000_000);
    for failure in [
        core.sessions.get("alice", id).await.unwrap_err(),
        core.sessions.messages_before("alice", id, None, 0, 10).await.unwrap_err(),
        core.resume("alice", Some(id), None, None).await.err().unwrap(),
    ] {
        assert_eq!(failure.reason, "UNREADABLE_PAYLOAD");
    }
    core.stop().await;
}

#[tokio::test]
async fn a_refused_write_is_not_acknowledged_and_the_next_one_works() {
    for kind in [StoreErrorKind::Unavailable, StoreErrorKind::Full] {
        let core = failing_appends(kind, false, 0..1).await;
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
        let core = failing_appends(StoreErrorKind::OutcomeUnknown, written, 0..1).await;
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
    let core = failing_appends(StoreErrorKind::Unavailable, false, 1..4).await;
    let mut client = core.open("alice").await;
    client.send("m1", "hello").await;
    let turn = core.turn().await;
    turn.say("answer").await;
    turn.finish().await;
    assert_eq!(client.finished().await.text, "answer");
    core.stop().await;
}

#[tokio::test]
async fn while_the_store_stands_still_64_frames_wait_and_more_are_refused() {
    let (core, faults) = faulty().await;
    faults.plan("append", 0, u32::MAX, Fault::Held);
    let mut client = core.open("alice").await;
    // One is being written.
    for n in 0..1 + 64 + 3 {
        client.post(&format!("r{n}"), client.message(&format!("m{n}"), "text")).await;
    }
    for n in 65..68 {
        let error = client.until(|event| if let Event::Error(error) = event { Some(error) } else { None }).await;
        assert_eq!((error.request_id.as_str(), error.reason.as_str()), (format!("r{n}").as_str(), "TOO_MANY_WRITES"));
    }
    faults.release();
    let ack = client.until(|event| if let Event::Ack(ack) = event { Some(ack) } else { None }).await;
    assert_eq!((ack.request_id.as_str(), ack.seq), ("r0", 1));
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

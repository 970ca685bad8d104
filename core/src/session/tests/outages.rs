//! What becomes of sessions while the store hangs, answers too late, or was written by somebody else. Time is paused: what
//! takes minutes for an operator takes none here, and no busy machine makes a time limit pass.

use std::collections::BTreeMap;

use chatbox_proto::{
    ids::{MessageId, SessionId},
    v1::{self, FinishReason, chat_response::Event},
};

use super::{
    faults::{Fault, faulty},
    fixture::{Client, Core, patiently, sender},
};
use crate::{
    domain::{
        entry::{Entry, EntryKind, Fact, Message, ReplyStarted},
        time::Timestamp,
    },
    session::Frame,
    store::{Append, Appended, ReplyRow, StoreErrorKind},
};

/// So often that it does not end by itself.
const ALWAYS: u32 = u32::MAX;

async fn opened(client: &mut Client) -> SessionId {
    client.opened().await.session.unwrap().session_id.parse().unwrap()
}

async fn error(client: &mut Client) -> v1::Error {
    client.until(|event| if let Event::Error(error) = event { Some(error) } else { None }).await
}

async fn delta(client: &mut Client) {
    client.until(|event| matches!(event, Event::ReplyDelta(_)).then_some(())).await;
}

fn texts(messages: &[v1::Message]) -> Vec<&str> {
    messages.iter().map(|message| message.text.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_was_written_and_not_heard_of_does_not_cost_the_reply() {
    let (core, faults) = faulty().await;
    let mut client = core.open("alice").await;
    let id = opened(&mut client).await;
    client.send("m1", "question").await;
    let turn = core.turn().await;
    faults.plan("renew_reply", 0, 1, Fault::DoneAndHang);
    turn.say("one ").await;
    delta(&mut client).await;
    turn.say("two").await;
    delta(&mut client).await;
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(100));
    let renewed = async {
        // The first one is written and times out; those after it have to find that out.
        while core.store.reply_row(id).await.unwrap().is_none_or(|row| row.renewals < 3) {
            looks.tick().await;
        }
    };
    patiently("renewals after the lost one", renewed).await;
    turn.finish().await;
    let finished = client.finished().await;
    assert_eq!((finished.finish_reason(), finished.text.as_str()), (FinishReason::Stop, "one two"));
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_waited_too_long_is_told_so_and_never_written() {
    let (core, faults) = faulty().await;
    let mut client = core.open("alice").await;
    let id = opened(&mut client).await;
    faults.plan("append", 0, 1, Fault::Hang);
    faults.plan("find_append", 0, ALWAYS, Fault::Hang);
    client.post("first", client.message("m1", "one")).await;
    client.post("second", client.message("m2", "two")).await;
    let mut told = BTreeMap::new();
    while told.len() < 2 {
        let error = error(&mut client).await;
        told.insert(error.request_id, (error.code, error.reason, error.outcome_unknown));
    }
    let timeout = |unknown| (v1::ErrorCode::Unavailable.into(), "STORE_TIMEOUT".to_owned(), unknown);
    // What was submitted may have been written; what never was, was not.
    assert_eq!(told["first"], timeout(true));
    assert_eq!(told["second"], timeout(false));
    faults.clear();
    let ack = client.send("m3", "three").await;
    assert_eq!((ack.seq, ack.duplicate), (1, false));
    let turn = core.turn().await;
    assert_eq!(turn.prompt.messages.iter().map(|m| m.text.as_str()).collect::<Vec<_>>(), ["three"]);
    turn.say("answer").await;
    turn.finish().await;
    client.finished().await;
    assert_eq!(texts(&core.history("alice", id).await), ["three", "answer"]);
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_append_that_timed_out_is_looked_up_until_the_store_can_tell() {
    for (fault, written) in [(Fault::DoneAndHang, true), (Fault::Hang, false)] {
        let (core, faults) = faulty().await;
        let mut client = core.open("alice").await;
        let id = opened(&mut client).await;
        faults.plan("append", 0, 1, fault);
        faults.plan("find_append", 0, 3, Fault::Fail(StoreErrorKind::Unavailable));
        let frame = client.message("m1", "hello");
        assert!(client.frame(frame).await.unwrap_err().outcome_unknown);
        let ack = client.send("m1", "hello").await;
        assert_eq!((ack.seq, ack.duplicate), (1, written));
        let turn = core.turn().await;
        turn.say("answer").await;
        turn.finish().await;
        assert_eq!(client.finished().await.text, "answer");
        assert_eq!(texts(&core.history("alice", id).await), ["hello", "answer"]);
        core.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_room_ends_after_an_open_whose_position_never_came() {
    let (core, _faults) = faulty().await;
    let id = core.sessions.create("alice", "", "").await.unwrap().session_id.parse().unwrap();
    let failure = core.resume("alice", Some(id), Some(7), None).await.err().unwrap();
    assert_eq!(failure.reason, "POSITION_AHEAD");
    assert!(failure.code.retryable() && failure.retry_after.is_some());
    let room = core.directory.live(id).expect("it stays for a moment, so that a reload finds it");
    patiently("the room to end", room.closed()).await;
    core.directory.start_draining();
    patiently("its task to end", core.directory.drained()).await;
    assert!(core.directory.live(id).is_none());
}

/// Appends a message and the start of a reply to it behind the room's back, as a core that is dead by now did.
async fn somebody_elses_reply(core: &Core, id: SessionId, checkpoint: &str) -> MessageId {
    let header = core.store.session(id).await.unwrap().unwrap();
    let log = core.directory.log(&header).unwrap();
    let mut state = log.state(&header.derived).await.unwrap();
    let head = state.head;
    let (message_id, reply_id) = (MessageId::generate(), MessageId::generate());
    let message = Message {
        id: message_id,
        sender: sender("alice"),
        client_message_id: None,
        text: "theirs".into(),
        file_ids: Vec::new(),
    };
    let answers = vec![message_id];
    let started = ReplyStarted { id: reply_id, model: "led".into(), answers, supersedes: None, charge: None };
    let facts =
        [EntryKind::Message(message), EntryKind::ReplyStarted(started)].map(|kind| Fact { at: Timestamp::now(), kind });
    for (seq, fact) in (head + 1..).zip(facts.clone()) {
        state.apply(&Entry { seq, fact }).unwrap();
    }
    let row = ReplyRow {
        session_id: id,
        message_id: reply_id,
        started_seq: head + 2,
        boot_id: [7; 16],
        renewals: 0,
        checkpoint: log.seal_checkpoint(reply_id, checkpoint),
    };
    let append = Append {
        session_id: id,
        append_id: [7; 16],
        expected_head: head,
        count: 2,
        sealed: log.seal(head + 1, &facts.iter().collect::<Vec<_>>()).unwrap(),
        messages: Vec::new(),
        ends_session: false,
        takes_slot: None,
        derived: log.derive(&state).unwrap(),
        reply_started: Some(row),
        reply_finished: None,
    };
    assert_eq!(core.store.append(append).await.unwrap(), Appended::Done(head + 2));
    reply_id
}

#[tokio::test(start_paused = true)]
async fn a_reply_without_a_task_that_a_conflict_brings_up_is_finished_and_what_waits_is_answered() {
    let (core, faults) = faulty().await;
    let mut client = core.open("alice").await;
    let id = opened(&mut client).await;
    let theirs = somebody_elses_reply(&core, id, "as far as it c\u{e4}me").await;
    // A store that cannot show the checkpoint at once is asked again, rather than the text being lost.
    faults.plan("reply_row", 0, 2, Fault::Fail(StoreErrorKind::Unavailable));
    client.post("r", client.message("m1", "mine")).await;
    let finished = client.finished().await;
    assert_eq!(finished.message_id, theirs.to_string());
    assert_eq!(
        (finished.finish_reason(), finished.text.as_str()),
        (FinishReason::Interrupted, "as far as it c\u{e4}me")
    );
    let ack = client.until(|event| if let Event::Ack(ack) = event { Some(ack) } else { None }).await;
    assert_eq!((ack.seq, ack.duplicate), (4, false));
    let turn = core.turn().await;
    turn.say("yours").await;
    turn.finish().await;
    assert_eq!(client.finished().await.text, "yours");
    let history = core.history("alice", id).await;
    assert_eq!(texts(&history), ["theirs", "as far as it c\u{e4}me", "mine", "yours"]);
    assert_eq!(history[3].reply.as_ref().unwrap().answers, [ack.message_id]);
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_of_what_does_not_run_is_an_ack_and_touches_nothing_that_runs() {
    let (core, _faults) = faulty().await;
    let mut client = core.open("alice").await;
    client.send("m1", "question").await;
    let turn = core.turn().await;
    let never = MessageId::generate();
    let ack = client.frame(Frame::Stop(never)).await.unwrap();
    assert_eq!((ack.message_id, ack.seq), (never.to_string(), 0));
    turn.say("still here").await;
    turn.finish().await;
    let finished = client.finished().await;
    assert_eq!((finished.finish_reason(), finished.text.as_str()), (FinishReason::Stop, "still here"));
    core.stop().await;
}

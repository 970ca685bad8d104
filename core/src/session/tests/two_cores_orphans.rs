//! Replies that nobody runs, and those that only seem so.

use std::time::Duration;

use chatbox_proto::{
    ids::{MessageId, SessionId},
    v1::{self, chat_response::Event},
};
use tokio::time::Instant;

use super::{
    fixture::{Core, limits, sender},
    shared::{Cluster, Seat},
};
use crate::{
    domain::{
        entry::{Entry, EntryKind, Fact, Message, ReplyStarted},
        time::Timestamp,
    },
    session::room::Command,
    store::{Append, Appended, BootId, ReplyRow},
};

/// A session whose log says that a reply runs, as a core leaves it that dies there; with a row of that core, or without.
async fn left_behind(core: &Core, owner: Option<BootId>) -> SessionId {
    let session = core.sessions.create("alice", "led", "").await.unwrap();
    let id: SessionId = session.session_id.parse().unwrap();
    let header = core.directory.header(id).await.unwrap().unwrap();
    let log = core.directory.log(&header).unwrap();
    let mut state = log.state(&header.derived).await.unwrap();
    let message = Message {
        id: MessageId::generate(),
        sender: sender("alice"),
        client_message_id: None,
        text: "question".into(),
        file_ids: Vec::new(),
    };
    let reply = MessageId::generate();
    let answers = vec![message.id];
    let started = ReplyStarted { id: reply, model: "led".into(), answers, supersedes: None, charge: None };
    let at = Timestamp::now();
    let facts = [EntryKind::Message(message), EntryKind::ReplyStarted(started)].map(|kind| Fact { at, kind });
    for (seq, fact) in (1..).zip(facts.clone()) {
        state.apply(&Entry { seq, fact }).unwrap();
    }
    let append = Append {
        session_id: id,
        append_id: rand::random(),
        expected_head: 0,
        count: 2,
        sealed: log.seal(1, &facts.iter().collect::<Vec<_>>()).unwrap(),
        messages: Vec::new(),
        ends_session: false,
        takes_slot: None,
        derived: log.derive(&state).unwrap(),
        reply_started: owner.map(|boot_id| ReplyRow {
            session_id: id,
            message_id: reply,
            started_seq: 2,
            boot_id,
            renewals: 3,
            checkpoint: log.seal_checkpoint(reply, "as far as it came"),
        }),
        reply_finished: None,
    };
    assert_eq!(core.store.append(append).await.unwrap(), Appended::Done(2));
    id
}

/// How long it takes until the reply has ended, and with which words.
async fn interrupted(core: &Core, id: SessionId) -> (Duration, String) {
    let began = Instant::now();
    loop {
        let history = core.history("alice", id).await;
        if let Some(reply) = history[1].reply.as_ref().filter(|reply| reply.finished_seq > 0) {
            assert_eq!(reply.finish_reason(), v1::FinishReason::Interrupted);
            return (began.elapsed(), history[1].text.clone());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_of_this_very_core_that_nobody_runs_is_finished_at_once() {
    let cluster = Cluster::new();
    let one = cluster.core().await;
    let id = left_behind(&one.core, Some(one.core.directory.shared.boot_id)).await;
    let (took, text) = interrupted(&one.core, id).await;
    assert_eq!(text, "as far as it came");
    assert!(took <= Duration::from_secs(1), "{took:?}");
    one.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_reply_of_a_core_that_is_gone_is_finished_after_the_lapse_with_or_without_a_row() {
    let cluster = Cluster::new();
    let one = cluster.core().await;
    for (owner, left) in [(Some([7; 16]), "as far as it came"), (None, "")] {
        let id = left_behind(&one.core, owner).await;
        let (took, text) = interrupted(&one.core, id).await;
        assert_eq!(text, left);
        let lapse = limits().reply_lapse;
        assert!(took >= lapse - Duration::from_millis(50) && took <= lapse + Duration::from_millis(2_100), "{took:?}");
        let by = sender("alice");
        one.core.sessions.end(&by, id).await.unwrap();
    }
    one.leave().await;
}

/// A row of a reply whose end is in the log, as it stays when its removal is lost with a core.
async fn left_over(core: &Core, id: SessionId, reply: MessageId, owner: BootId) {
    let header = core.directory.header(id).await.unwrap().unwrap();
    let log = core.directory.log(&header).unwrap();
    let mut state = log.state(&header.derived).await.unwrap();
    let head = state.head;
    let fact = Fact { at: Timestamp::now(), kind: EntryKind::ModelSelected { model: "led".into() } };
    state.apply(&Entry { seq: head + 1, fact: fact.clone() }).unwrap();
    let append = Append {
        session_id: id,
        append_id: rand::random(),
        expected_head: head,
        count: 1,
        sealed: log.seal(head + 1, &[&fact]).unwrap(),
        messages: Vec::new(),
        ends_session: false,
        takes_slot: None,
        derived: log.derive(&state).unwrap(),
        reply_started: Some(ReplyRow {
            session_id: id,
            message_id: reply,
            started_seq: 2,
            boot_id: owner,
            renewals: 3,
            checkpoint: log.seal_checkpoint(reply, "half"),
        }),
        reply_finished: None,
    };
    assert_eq!(core.store.append(append).await.unwrap(), Appended::Done(head + 1));
}

#[tokio::test(start_paused = true)]
async fn the_row_of_a_reply_that_is_over_is_removed_after_the_lapse_whoever_left_it_and_that_of_a_running_one_stays() {
    let cluster = Cluster::new();
    let one = cluster.core().await;
    for owner in [[7; 16], one.core.directory.shared.boot_id] {
        // It stays attached: the room is live when the row is looked at.
        let mut client = one.core.open("alice").await;
        let id: SessionId = client.opened().await.session.unwrap().session_id.parse().unwrap();
        client.post("", client.message("m1", "hello")).await;
        let reply: MessageId = client.started().await.message_id.parse().unwrap();
        one.core.turn().await.finish().await;
        client.finished().await;
        left_over(&one.core, id, reply, owner).await;
        let began = Instant::now();
        while one.core.store.reply_row(id).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(began.elapsed() <= limits().reply_lapse + Duration::from_millis(2_100), "{:?}", began.elapsed());
        client.post("", client.message("m2", "and on")).await;
        client.started().await;
        let turn = one.core.turn().await;
        tokio::time::sleep(2 * limits().reply_lapse).await;
        assert!(one.core.store.reply_row(id).await.unwrap().is_some(), "it runs");
        turn.finish().await;
        assert_eq!(client.finished().await.finish_reason(), v1::FinishReason::Stop);
        one.core.sessions.end(&sender("alice"), id).await.unwrap();
    }
    one.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_moves_after_all_is_left_alone() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let mut first = one.core.open("alice").await;
    let id: SessionId = first.opened().await.session.unwrap().session_id.parse().unwrap();
    first.post("", first.message("m1", "hello")).await;
    let turn = one.core.turn().await;
    let message_id: MessageId = first.started().await.message_id.parse().unwrap();
    turn.say("on and").await;
    while one.core.store.reply_row(id).await.unwrap().unwrap().renewals == 0 {
        tokio::time::sleep(limits().checkpoint).await;
    }
    let room = two.core.directory.room(id).await.unwrap();
    for judgement in [Some((message_id, 0)), None, Some((MessageId::generate(), 9))] {
        room.command(Command::Dead(judgement)).await.ok().unwrap();
    }
    let mut second = two.core.resume("alice", Some(id), Some(0), None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    turn.say(" on").await;
    turn.finish().await;
    let finished = second.finished().await;
    assert_eq!((finished.finish_reason(), finished.text.as_str()), (v1::FinishReason::Stop, "on and on"));
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn who_opens_on_a_core_that_knows_it_hears_nothing_is_told_what_the_store_has() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let mut first = one.core.open("alice").await;
    let id: SessionId = first.opened().await.session.unwrap().session_id.parse().unwrap();
    let mut second = two.core.resume("alice", Some(id), None, None).await.unwrap();
    assert_eq!(second.opened().await.head, 0);
    two.cut_off();
    first.send("m1", "hello").await;
    let mut third = two.core.resume("alice", Some(id), None, None).await.unwrap();
    assert_eq!(third.opened().await.head, 2);
    // And those who were there before are shown it within a second.
    let began = Instant::now();
    one.core.turn().await.finish().await;
    second.finished().await;
    assert!(began.elapsed() <= Duration::from_millis(1_500), "{:?}", began.elapsed());
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn of_three_cores_one_stands_in_and_all_show_the_same() {
    let cluster = Cluster::new();
    let (one, two, three) = (cluster.core().await, cluster.core().await, cluster.core().await);
    let mut first = one.core.open("alice").await;
    let id: SessionId = first.opened().await.session.unwrap().session_id.parse().unwrap();
    let mut others = Vec::new();
    for seat in [&two, &three] {
        others.push(seat.core.resume("alice", Some(id), Some(0), None).await.unwrap());
    }
    first.post("", first.message("m1", "one")).await;
    let turn = one.core.turn().await;
    for client in &mut others {
        client.started().await;
    }
    first.send("m2", "two").await;
    one.stop();
    let mut ends = Vec::new();
    for client in &mut others {
        let finished = client.until(|event| if let Event::Entry(entry) = event { terminal(entry) } else { None }).await;
        ends.push((finished, client.started().await));
    }
    assert_eq!(ends[0], ends[1]);
    answer_anywhere(&[&two, &three]).await.finish().await;
    assert_eq!(others[0].finished().await, others[1].finished().await);
    drop(turn);
    for seat in [one, two, three] {
        seat.leave().await;
    }
}

fn terminal(entry: v1::Entry) -> Option<v1::entry::ReplyFinished> {
    if let Some(v1::entry::Kind::ReplyFinished(finished)) = entry.kind { Some(finished) } else { None }
}

/// The turn of whichever core stands in.
async fn answer_anywhere(seats: &[&Seat; 2]) -> super::fixture::Turn {
    tokio::select! {
        turn = seats[0].core.turn() => turn,
        turn = seats[1].core.turn() => turn,
    }
}

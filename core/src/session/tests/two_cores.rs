//! One session through two cores: the same order, the same running reply, and every frame through either.

use std::time::Duration;

use chatbox_proto::{
    ids::{MessageId, SessionId},
    v1::{self, chat_response::Event},
};
use tokio::time::Instant;

use super::{
    fixture::{Client, limits},
    shared::{Cluster, Losses, Seat},
};
use crate::session::Frame;

/// What a client has seen of the reply that runs, put together as clients do.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    text: String,
}

impl Seen {
    fn take(&mut self, event: &Event) {
        let (offset, next, text) = if let Event::ReplySnapshot(snapshot) = event {
            (snapshot.offset, snapshot.next_offset, &snapshot.text)
        } else if let Event::ReplyDelta(delta) = event {
            assert_eq!(delta.offset as usize, self.text.len(), "a delta goes on where the text ends");
            (delta.offset, delta.next_offset, &delta.text)
        } else {
            return;
        };
        self.text.truncate(offset as usize);
        self.text.push_str(text);
        assert_eq!(self.text.len(), next as usize);
    }

    /// Reads on until so much has been seen.
    async fn until(&mut self, client: &mut Client, text: &str) {
        while self.text != text {
            assert!(text.starts_with(&self.text), "{:?} instead of {text:?}", self.text);
            self.take(&client.event().await);
        }
    }
}

async fn both(one: &Seat, two: &Seat) -> (Client, Client, SessionId) {
    let mut first = one.core.open("alice").await;
    let id: SessionId = first.opened().await.session.unwrap().session_id.parse().unwrap();
    let mut second = two.core.resume("alice", Some(id), Some(0), None).await.unwrap();
    second.opened().await;
    (first, second, id)
}

async fn entries(client: &mut Client, n: usize) -> Vec<v1::Entry> {
    let mut entries = Vec::new();
    for _ in 0..n {
        entries.push(client.entry().await);
    }
    entries
}

fn reply_id(entry: &v1::Entry) -> MessageId {
    let Some(v1::entry::Kind::ReplyStarted(started)) = &entry.kind else { panic!("{entry:?} starts no reply") };
    started.message_id.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn subscribers_of_two_cores_see_the_same_entries_and_the_same_running_reply() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut first, mut second, _) = both(&one, &two).await;
    first.post("", first.message("m1", "hello")).await;
    let turn = one.core.turn().await;
    let (here, there) = (entries(&mut first, 2).await, entries(&mut second, 2).await);
    assert_eq!(here, there);
    let (mut seen_here, mut seen_there) = (Seen::default(), Seen::default());
    let mut text = String::new();
    for piece in ["grün ", "und ", "gut"] {
        turn.say(piece).await;
        text.push_str(piece);
        seen_here.until(&mut first, &text).await;
        seen_there.until(&mut second, &text).await;
    }
    turn.finish().await;
    assert_eq!(first.entry().await, second.entry().await);
    // And the other way round.
    second.post("", second.message("m2", "again")).await;
    let turn = two.core.turn().await;
    assert_eq!(entries(&mut first, 2).await, entries(&mut second, 2).await);
    turn.finish().await;
    assert_eq!(first.entry().await, second.entry().await);
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn who_opens_elsewhere_in_mid_reply_gets_all_of_it_so_far_and_what_follows() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let mut first = one.core.open("alice").await;
    let id: SessionId = first.opened().await.session.unwrap().session_id.parse().unwrap();
    first.post("", first.message("m1", "hello")).await;
    let turn = one.core.turn().await;
    // More than one answer holds.
    let long = "x".repeat(300 * 1024);
    turn.say(&long).await;
    Seen::default().until(&mut first, &long).await;
    let mut second = two.core.resume("alice", Some(id), Some(0), None).await.unwrap();
    let mut seen = Seen::default();
    seen.until(&mut second, &long).await;
    turn.say(" and on").await;
    seen.until(&mut second, &format!("{long} and on")).await;
    // From where a client already is.
    let position = Some((second_reply(&mut first).await, 300 * 1024));
    let mut third = two.core.resume("alice", Some(id), Some(2), position).await.unwrap();
    let snapshot = third.until(|event| if let Event::ReplySnapshot(s) = event { Some(s) } else { None }).await;
    assert_eq!((snapshot.offset, snapshot.text.as_str()), (300 * 1024, " and on"));
    turn.finish().await;
    assert_eq!(second.finished().await.text, format!("{long} and on"));
    one.leave().await;
    two.leave().await;
}

/// The id of the reply that runs, from its next delta.
async fn second_reply(client: &mut Client) -> MessageId {
    client.until(|event| if let Event::ReplyDelta(delta) = event { delta.message_id.parse().ok() } else { None }).await
}

#[tokio::test(start_paused = true)]
async fn entries_whose_hints_are_lost_without_a_word_come_with_the_comparison_of_heads() {
    let cluster = Cluster::new();
    let deaf = Losses { lost: 100, ..Losses::default() };
    let (one, two) = (cluster.core_with(1, deaf).await, cluster.core().await);
    let (mut first, mut second, _) = both(&one, &two).await;
    let began = Instant::now();
    first.post("", first.message("m1", "hello")).await;
    assert_eq!(entries(&mut first, 2).await, entries(&mut second, 2).await);
    assert!(began.elapsed() <= Duration::from_millis(5_500), "{:?}", began.elapsed());
    // The reply is followed by its checkpoint.
    let turn = one.core.turn().await;
    turn.say("slower, and right").await;
    Seen::default().until(&mut second, "slower, and right").await;
    turn.finish().await;
    assert_eq!(first.finished().await, second.finished().await);
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_piece_that_was_lost_is_asked_for_when_the_next_one_shows_the_gap() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut first, mut second, _) = both(&one, &two).await;
    first.post("", first.message("m1", "hello")).await;
    let turn = one.core.turn().await;
    let (mut here, mut there) = (Seen::default(), Seen::default());
    turn.say("a").await;
    here.until(&mut first, "a").await;
    there.until(&mut second, "a").await;
    one.lose(1);
    turn.say("b").await;
    here.until(&mut first, "ab").await;
    let began = Instant::now();
    turn.say("c").await;
    there.until(&mut second, "abc").await;
    assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
    turn.finish().await;
    second.finished().await;
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_mark_of_loss_has_heads_compared_at_once() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut first, mut second, _) = both(&one, &two).await;
    // Past the comparison that every core begins with.
    tokio::time::sleep(Duration::from_millis(500)).await;
    one.lose(1);
    first.post("", first.message("m1", "hello")).await;
    let here = entries(&mut first, 2).await;
    let began = Instant::now();
    two.mark_loss();
    assert_eq!(here, entries(&mut second, 2).await);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_through_another_core_ends_the_reply_with_all_of_its_text() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut first, mut second, _) = both(&one, &two).await;
    first.post("", first.message("m1", "hello")).await;
    let turn = one.core.turn().await;
    turn.say("half a sen").await;
    let id = reply_id(&entries(&mut second, 2).await[1]);
    Seen::default().until(&mut first, "half a sen").await;
    let ack = second.frame(Frame::Stop(id)).await.unwrap();
    assert_eq!(ack.message_id, id.to_string());
    let finished = first.finished().await;
    assert_eq!((finished.finish_reason(), finished.text.as_str()), (v1::FinishReason::Cancelled, "half a sen"));
    super::fixture::patiently("the request upstream to be dropped", turn.chunks.closed()).await;
    // Stopping what has ended is an ack.
    second.frame(Frame::Stop(id)).await.unwrap();
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_whose_core_does_not_answer_is_written_here_and_its_core_gives_in() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut first, mut second, _) = both(&one, &two).await;
    first.post("", first.message("m1", "hello")).await;
    let turn = one.core.turn().await;
    turn.say("checkpointed").await;
    let id = reply_id(&entries(&mut second, 2).await[1]);
    Seen::default().until(&mut second, "checkpointed").await;
    one.unplug();
    let began = Instant::now();
    second.frame(Frame::Stop(id)).await.unwrap();
    assert!(began.elapsed() <= Duration::from_millis(1_500), "{:?}", began.elapsed());
    let finished = first.finished().await;
    // What its core may have shown since is not known here: it is not called a stop with all of its text.
    assert_eq!((finished.finish_reason(), finished.text.as_str()), (v1::FinishReason::Interrupted, "checkpointed"));
    super::fixture::patiently("the request upstream to be dropped", turn.chunks.closed()).await;
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_elsewhere_during_a_reply_is_answered_when_it_ends() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut first, mut second, _) = both(&one, &two).await;
    first.post("", first.message("m1", "one")).await;
    let turn = one.core.turn().await;
    entries(&mut second, 2).await;
    let (two_ack, three_ack) = (second.send("m2", "two").await, first.send("m3", "three").await);
    turn.finish().await;
    let started = second.started().await;
    assert_eq!(started.answers, [two_ack.message_id, three_ack.message_id]);
    one.core.turn().await.finish().await;
    second.finished().await;
    // A repeat through the other core is the same message.
    let again = first.send("m2", "two").await;
    assert!(again.duplicate);
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn an_end_through_another_core_keeps_the_words_of_the_running_reply() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut first, mut second, _) = both(&one, &two).await;
    first.post("", first.message("m1", "hello")).await;
    let turn = one.core.turn().await;
    turn.say("so far").await;
    Seen::default().until(&mut second, "so far").await;
    // A piece that only its own core has shown.
    one.lose(1);
    turn.say(" and more").await;
    Seen::default().until(&mut first, "so far and more").await;
    second.frame(Frame::EndSession).await.unwrap();
    let finished = first.finished().await;
    assert_eq!((finished.finish_reason(), finished.text.as_str()), (v1::FinishReason::Cancelled, "so far and more"));
    assert!(matches!(first.entry().await.kind, Some(v1::entry::Kind::Ended(_))));
    super::fixture::patiently("the request upstream to be dropped", turn.chunks.closed()).await;
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn an_end_whose_other_core_does_not_answer_keeps_what_is_known_and_says_that_it_was_cut() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut first, mut second, _) = both(&one, &two).await;
    first.post("", first.message("m1", "hello")).await;
    let turn = one.core.turn().await;
    turn.say("so far").await;
    Seen::default().until(&mut second, "so far").await;
    one.unplug();
    turn.say(" and more").await;
    Seen::default().until(&mut first, "so far and more").await;
    let began = Instant::now();
    second.post("", Frame::EndSession).await;
    let finished = second.finished().await;
    assert!(began.elapsed() <= Duration::from_millis(1_500), "{:?}", began.elapsed());
    assert_eq!(finished.finish_reason(), v1::FinishReason::Interrupted);
    assert!("so far and more".starts_with(&finished.text) && finished.text.len() >= "so far".len(), "{finished:?}");
    assert_eq!(first.finished().await, finished);
    assert!(matches!(first.entry().await.kind, Some(v1::entry::Kind::Ended(_))));
    super::fixture::patiently("the request upstream to be dropped", turn.chunks.closed()).await;
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn an_end_through_another_core_is_one_end_also_of_the_reply_that_begins_in_between() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (first, mut second, id) = both(&one, &two).await;
    first.post("", first.message("m1", "hello")).await;
    let turn = one.core.turn().await;
    turn.say("one").await;
    Seen::default().until(&mut second, "one").await;
    // It waits: the end of the reply that runs begins another one.
    second.send("m2", "and this").await;
    second.frame(Frame::EndSession).await.unwrap();
    let history = two.core.history("alice", id).await;
    let replies: Vec<_> = history.iter().filter_map(|message| message.reply.as_ref()).collect();
    assert_eq!(replies.len(), 2);
    for reply in replies {
        assert_eq!(reply.finish_reason(), v1::FinishReason::Cancelled);
        assert_eq!(reply.answers.len(), 1);
    }
    assert_eq!(two.core.sessions.get("alice", id).await.unwrap().status(), v1::SessionStatus::Ended);
    drop(turn);
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn who_is_here_and_who_is_typing_is_known_in_every_core_and_lapses() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut first, second, _) = both(&one, &two).await;
    second.post("", Frame::Typing(true)).await;
    let typing = |active| move |event| matches!(event, Event::Typing(t) if t.active == active).then_some(());
    first.until(typing(true)).await;
    let began = Instant::now();
    first.until(typing(false)).await;
    assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
    first.send("m1", "hello").await;
    second.post("", Frame::Read(1)).await;
    let read = |event| {
        let Event::Presence(presence) = event else { return None };
        presence.participants.iter().any(|p| p.online && p.read_seq == 1).then_some(())
    };
    first.until(read).await;
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_cores_reply_is_interrupted_with_its_checkpoint_and_what_waits_is_answered_in_time() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (first, mut second, id) = both(&one, &two).await;
    first.post("", first.message("m1", "one")).await;
    let turn = one.core.turn().await;
    turn.say("as far as it came").await;
    Seen::default().until(&mut second, "as far as it came").await;
    second.send("m2", "two").await;
    // Until the checkpoint is written.
    while one.core.store.reply_row(id).await.unwrap().unwrap().renewals == 0 {
        tokio::time::sleep(limits().checkpoint).await;
    }
    one.stop();
    let died = Instant::now();
    let finished = second.finished().await;
    let took = died.elapsed();
    assert!(took <= limits().reply_lapse + Duration::from_secs(1), "{took:?}");
    assert!(took >= limits().reply_lapse - Duration::from_secs(4), "not before its time: {took:?}");
    assert_eq!(finished.finish_reason(), v1::FinishReason::Interrupted);
    assert_eq!(finished.text, "as far as it came");
    second.started().await;
    two.core.turn().await.finish().await;
    second.finished().await;
    drop((first, turn));
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_needs_to_be_there_for_a_dead_core_to_be_noticed() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let mut first = one.core.open("alice").await;
    let id: SessionId = first.opened().await.session.unwrap().session_id.parse().unwrap();
    first.post("", first.message("m1", "one")).await;
    let turn = one.core.turn().await;
    turn.say("something").await;
    Seen::default().until(&mut first, "something").await;
    one.stop();
    tokio::time::sleep(limits().reply_lapse + Duration::from_secs(1)).await;
    let history = two.core.history("alice", id).await;
    assert_eq!(history[1].reply.as_ref().unwrap().finish_reason(), v1::FinishReason::Interrupted);
    drop((first, turn));
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_core_that_was_stopped_and_comes_back_adds_nothing() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut first, mut second, _) = both(&one, &two).await;
    first.post("", first.message("m1", "one")).await;
    let turn = one.core.turn().await;
    turn.say("before").await;
    Seen::default().until(&mut second, "before").await;
    Seen::default().until(&mut first, "before").await;
    // As by a signal: text is on its way, and when the core can look at it, its time is over.
    one.stop();
    turn.say(" and never this").await;
    tokio::time::advance(limits().reply_lapse + Duration::from_secs(1)).await;
    second.finished().await;
    one.go_on();
    let mut entries = 0;
    let finished = loop {
        let event = first.event().await;
        assert!(!matches!(event, Event::ReplyDelta(_)), "{event:?} after the lease lapsed");
        if let Event::Entry(entry) = event {
            entries += 1;
            if let Some(v1::entry::Kind::ReplyFinished(finished)) = entry.kind {
                break finished;
            }
        }
    };
    assert_eq!(entries, 1, "one terminal entry");
    assert_eq!((finished.finish_reason(), finished.text.as_str()), (v1::FinishReason::Interrupted, "before"));
    super::fixture::patiently("the request upstream to be dropped", turn.chunks.closed()).await;
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_core_that_still_renews_is_left_alone() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut first, mut second, _) = both(&one, &two).await;
    first.post("", first.message("m1", "one")).await;
    let turn = one.core.turn().await;
    turn.say("thinking").await;
    Seen::default().until(&mut second, "thinking").await;
    one.unplug();
    tokio::time::sleep(5 * limits().reply_lapse).await;
    turn.say(" done").await;
    turn.finish().await;
    let finished = second.finished().await;
    assert_eq!((finished.finish_reason(), finished.text.as_str()), (v1::FinishReason::Stop, "thinking done"));
    assert_eq!(first.finished().await, finished);
    one.leave().await;
    two.leave().await;
}

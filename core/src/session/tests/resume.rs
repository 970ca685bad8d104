//! Opening and resuming: verdicts, replay, snapshots, several devices, slow readers.

use chatbox_proto::{
    error_code::ErrorCode,
    ids::SessionId,
    v1::{self, chat_response::Event, chat_response::ResumeVerdict},
};
use futures_util::StreamExt as _;

use super::{
    faults::faulty,
    fixture::{Client, Core},
};
use crate::session::{
    Frame,
    history::{Bounds, HistoryReader},
    log::SessionLog,
};

fn session_id(opened: &v1::chat_response::Opened) -> SessionId {
    opened.session.as_ref().unwrap().session_id.parse().unwrap()
}

/// A session with `n` answered messages: 3 entries each.
async fn with_messages(core: &Core, n: usize) -> (Client, SessionId) {
    let mut client = core.open("alice").await;
    let id = session_id(&client.opened().await);
    for i in 0..n {
        client.send(&format!("m{i}"), &format!("question {i}")).await;
        let turn = core.turn().await;
        turn.say(&format!("answer {i}")).await;
        turn.finish().await;
        client.finished().await;
    }
    (client, id)
}

/// Events up to `caught_up`.
async fn opening(client: &mut Client) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let event = client.event().await;
        let done = matches!(event, Event::CaughtUp(_));
        events.push(event);
        if done {
            return events;
        }
    }
}

fn seqs(events: &[Event]) -> Vec<u64> {
    events.iter().filter_map(|event| if let Event::Entry(entry) = event { Some(entry.seq) } else { None }).collect()
}

fn verdict(events: &[Event]) -> (ResumeVerdict, u64) {
    let Event::Opened(opened) = &events[0] else { panic!("opened comes first") };
    (opened.verdict(), opened.head)
}

#[tokio::test]
async fn a_position_is_replayed_from_and_nothing_comes_twice() {
    let core = Core::start().await;
    let (_first, id) = with_messages(&core, 3).await;
    let mut again = core.resume("alice", Some(id), Some(4), None).await.unwrap();
    let events = opening(&mut again).await;
    assert_eq!(verdict(&events), (ResumeVerdict::Replayed, 9));
    assert_eq!(seqs(&events), [5, 6, 7, 8, 9]);
    assert!(matches!(events.last(), Some(Event::CaughtUp(caught_up)) if caught_up.seq == 9));
    again.post("", again.message("next", "q")).await;
    assert_eq!(again.entry().await.seq, 10);
    core.stop().await;
}

#[tokio::test]
async fn a_replay_crosses_pages_and_the_limit_is_a_gap() {
    let core = Core::start().await;
    let (_first, id) = with_messages(&core, 7).await;
    let mut all = core.resume("alice", Some(id), Some(1), None).await.unwrap();
    assert_eq!(seqs(&opening(&mut all).await), (2..=21).collect::<Vec<_>>());
    let mut gap = core.resume("alice", Some(id), Some(0), None).await.unwrap();
    let events = opening(&mut gap).await;
    assert_eq!(verdict(&events), (ResumeVerdict::Gap, 21));
    assert!(seqs(&events).is_empty());
    core.stop().await;
}

#[tokio::test]
async fn without_a_position_live_starts_at_the_head() {
    let core = Core::start().await;
    let (_first, id) = with_messages(&core, 1).await;
    let mut fresh = core.resume("alice", Some(id), None, None).await.unwrap();
    let events = opening(&mut fresh).await;
    assert_eq!(verdict(&events), (ResumeVerdict::Fresh, 3));
    assert!(seqs(&events).is_empty());
    core.stop().await;
}

#[tokio::test]
async fn a_position_above_the_head_is_waited_for_and_then_unavailable() {
    let core = Core::start().await;
    let (_first, id) = with_messages(&core, 1).await;
    let failure = core.resume("alice", Some(id), Some(99), None).await.err().unwrap();
    assert_eq!((failure.code, failure.reason.as_ref()), (ErrorCode::Unavailable, "POSITION_AHEAD"));
    core.stop().await;
}

#[tokio::test]
async fn a_running_reply_is_snapshotted_from_where_the_client_is() {
    let core = Core::start().await;
    let mut first = core.open("alice").await;
    let id = session_id(&first.opened().await);
    first.send("m1", "q").await;
    let turn = core.turn().await;
    turn.say("grün ").await;
    let delta = first.until(|event| if let Event::ReplyDelta(delta) = event { Some(delta) } else { None }).await;
    turn.say("und gut").await;
    first.until(|event| matches!(event, Event::ReplyDelta(_)).then_some(())).await;
    let message_id = delta.message_id.parse().unwrap();
    // At the client's position; inside a character; beyond the end; in another reply.
    for (position, expected) in [(6, "und gut"), (3, "grün und gut"), (4000, "grün und gut")] {
        let mut again = core.resume("alice", Some(id), Some(2), Some((message_id, position))).await.unwrap();
        let events = opening(&mut again).await;
        let snapshot = events.iter().find_map(|e| if let Event::ReplySnapshot(s) = e { Some(s) } else { None });
        let snapshot = snapshot.unwrap();
        assert_eq!(snapshot.text, expected);
        assert_eq!(snapshot.next_offset as usize, "grün und gut".len());
    }
    turn.say("!").await;
    let next = first.until(|event| if let Event::ReplyDelta(delta) = event { Some(delta) } else { None }).await;
    assert_eq!(next.offset as usize, "grün und gut".len());
    core.stop().await;
}

#[tokio::test]
async fn a_slow_reader_is_closed_with_a_resumable_failure_and_hurts_nobody() {
    let core = Core::start().await;
    let (mut quick, id) = with_messages(&core, 0).await;
    let slow = core.open("alice").await;
    for n in 0..300 {
        // Each read mark of the quick one is a presence event for the slow one.
        quick.frame(Frame::Typing(n % 2 == 0)).await.unwrap();
    }
    let last = slow.events.collect::<Vec<_>>().await.pop().unwrap().unwrap_err();
    assert_eq!(last.reason, "SLOW_CONSUMER");
    assert!(last.code.retryable());
    quick.send("m1", "unharmed").await;
    let mut back = core.resume("alice", Some(id), Some(0), None).await.unwrap();
    assert_eq!(verdict(&opening(&mut back).await).0, ResumeVerdict::Replayed);
    core.stop().await;
}

#[tokio::test]
async fn a_half_closed_stream_ends_after_the_reply_it_caused() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    client.post("r1", client.message("m1", "q")).await;
    client.open.room.half_close(client.open.subscriber).await;
    let turn = core.turn().await;
    turn.say("answer").await;
    turn.finish().await;
    assert_eq!(client.finished().await.text, "answer");
    assert!(client.events.next().await.is_none_or(|event| event.is_ok()));
    assert!(client.events.next().await.is_none());
    core.stop().await;
}

#[tokio::test]
async fn others_see_who_types_and_how_far_they_have_read() {
    let core = Core::start().await;
    let (mut phone, id) = with_messages(&core, 1).await;
    let mut laptop = core.resume("alice", Some(id), None, None).await.unwrap();
    opening(&mut laptop).await;
    phone.frame(Frame::Typing(true)).await.unwrap();
    let typing = laptop.until(|event| if let Event::Typing(typing) = event { Some(typing) } else { None }).await;
    assert!(typing.active);
    phone.frame(Frame::Read(3)).await.unwrap();
    phone.frame(Frame::Read(1)).await.unwrap();
    let read = laptop
        .until(|event| {
            let Event::Presence(presence) = event else { return None };
            presence.participants.iter().map(|p| p.read_seq).max().filter(|seq| *seq > 0)
        })
        .await;
    assert_eq!(read, 3);
    let error = phone.frame(Frame::Read(100)).await.unwrap_err();
    assert_eq!(error.field_violations[0].field, "read.seq");
    core.stop().await;
}

#[tokio::test]
async fn pages_of_messages_cover_everything_once_in_both_directions() {
    let core = Core::start().await;
    let (_client, id) = with_messages(&core, 6).await;
    for size in [1, 2, 3, 5, 12, 50] {
        let (mut newest, mut before) = (Vec::new(), None);
        loop {
            let page = core.sessions.messages_before("alice", id, before, 0, size).await.unwrap();
            newest.splice(0..0, page.messages);
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        let (mut oldest, mut after) = (Vec::new(), 0);
        loop {
            let page = core.sessions.messages_after("alice", id, after, size).await.unwrap();
            oldest.extend(page.messages);
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        assert_eq!(newest.len(), 12, "page size {size}");
        assert_eq!(newest, oldest);
        assert!(newest.iter().all(|m| !m.text.is_empty()));
    }
    core.stop().await;
}

/// All messages, page by page from one end or the other, oldest first; and how many there were on each page.
async fn in_pages(log: &SessionLog, newest_first: bool, floor: u64, bounds: Bounds) -> (Vec<v1::Message>, Vec<usize>) {
    let (mut messages, mut sizes) = (Vec::new(), Vec::new());
    let mut position = if newest_first { u64::MAX } else { floor };
    loop {
        // A reader of its own for each page, as each call has.
        let mut reader = HistoryReader::new(log);
        let page = if newest_first {
            reader.page_before(position, floor, bounds).await.unwrap()
        } else {
            reader.page_after(position, bounds).await.unwrap()
        };
        let bytes: usize = page.messages.iter().map(prost::Message::encoded_len).sum();
        assert!(bytes <= bounds.bytes || page.messages.len() == 1, "a page of {bytes} bytes");
        assert!(page.messages.len() <= bounds.messages && (!page.more || !page.messages.is_empty()));
        sizes.push(page.messages.len());
        position = page.messages.last().map_or(position, |message| message.seq);
        messages.extend(page.messages);
        if !page.more {
            if newest_first {
                messages.reverse();
            }
            return (messages, sizes);
        }
    }
}

#[tokio::test]
async fn pages_are_bounded_by_bytes_and_go_on_exactly_where_they_ended() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    let id = session_id(&client.opened().await);
    // One is longer than a page: it fills one alone, and does not keep the others from coming.
    let lengths = [1_000, 1, 9_000, 40, 2_500, 1, 1, 1, 1_200, 700, 3_000];
    for (number, length) in lengths.into_iter().enumerate() {
        client.send(&format!("m{number}"), &format!("question {number}")).await;
        let turn = core.turn().await;
        turn.say(&"x".repeat(length)).await;
        turn.finish().await;
        client.finished().await;
    }
    let header = core.store.session(id).await.unwrap().unwrap();
    let log = core.directory.log(&header).unwrap();
    let all = core.history("alice", id).await;
    assert_eq!(all.iter().filter(|m| m.reply.is_some()).map(|m| m.text.len()).collect::<Vec<_>>(), lengths);
    for (messages, bytes, pages) in
        [(1_000, 4_000, 5..=9), (3, 4_000, 8..=13), (1_000, 1, 22..=22), (1_000, 1 << 20, 1..=1)]
    {
        let bounds = Bounds { messages, bytes };
        for newest_first in [true, false] {
            let (found, sizes) = in_pages(&log, newest_first, 0, bounds).await;
            assert_eq!(found, all);
            assert!(pages.contains(&sizes.len()), "{bounds:?}: {sizes:?}");
            for floor in [all[5].seq, all[6].seq, all[20].seq, all[21].seq] {
                let (found, _) = in_pages(&log, newest_first, floor, bounds).await;
                assert!(found.iter().eq(all.iter().filter(|message| message.seq > floor)), "above {floor}");
            }
        }
    }
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_lies_at_and_below_the_floor_is_not_read() {
    let (core, faults) = faulty().await;
    let (_client, id) = with_messages(&core, 10).await;
    let all = core.history("alice", id).await;
    let floor = all[17].seq;
    let head = all[19].reply.as_ref().unwrap().finished_seq;
    faults.take_read_before();
    let page = core.sessions.messages_before("alice", id, None, floor, 50).await.unwrap();
    assert_eq!((page.messages, page.next), (all[18..].to_vec(), None));
    // One read, of what lies between.
    assert_eq!(faults.take_read_before(), [u32::try_from(head - floor).unwrap()]);
    core.stop().await;
}

#[tokio::test]
async fn a_session_has_64_streams_and_the_next_is_refused_until_one_leaves() {
    let core = Core::start().await;
    let mut clients = Vec::new();
    for _ in 0..64 {
        clients.push(core.open("alice").await);
    }
    let Err(failure) = core.resume("alice", None, None, None).await else { panic!("a 65th stream was attached") };
    assert_eq!((failure.code, failure.reason.as_ref()), (ErrorCode::ResourceExhausted, "TOO_MANY_SUBSCRIBERS"));
    let left = clients.pop().unwrap();
    left.open.room.detach(left.open.subscriber).await;
    core.open("alice").await.opened().await;
    core.stop().await;
}

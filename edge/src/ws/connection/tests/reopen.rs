//! A core that goes, and another stream that takes its place while the socket stays.

use chatbox_proto::v1::{Entry, Message as Said, Sender, Session as WireSession, entry};

use super::*;

fn resuming() -> Config {
    let mut config = config();
    config.core.reopen_timeout = after(30);
    config
}

fn opened(verdict: chat_response::ResumeVerdict, head: u64) -> chat_response::Event {
    let session = WireSession { session_id: "s".into(), ..Default::default() };
    let opened = chat_response::Opened { session: Some(session), verdict: verdict.into(), head, ..Default::default() };
    chat_response::Event::Opened(opened)
}

const FRESH: chat_response::ResumeVerdict = chat_response::ResumeVerdict::Fresh;
const REPLAYED: chat_response::ResumeVerdict = chat_response::ResumeVerdict::Replayed;

fn entry(seq: u64) -> chat_response::Event {
    chat_response::Event::Entry(Entry { seq, ..Default::default() })
}

fn said(seq: u64, user_id: &str, client_message_id: &str) -> chat_response::Event {
    let sender = Sender { user_id: user_id.into(), ..Default::default() };
    let message = Said { sender: Some(sender), client_message_id: client_message_id.into(), seq, ..Default::default() };
    chat_response::Event::Entry(Entry { seq, kind: Some(entry::Kind::Message(message)), ..Default::default() })
}

fn delta(next_offset: u32) -> chat_response::Event {
    let delta =
        chat_response::ReplyDelta { message_id: "m".into(), next_offset, text: "x".into(), ..Default::default() };
    chat_response::Event::ReplyDelta(delta)
}

fn caught_up(seq: u64) -> chat_response::Event {
    chat_response::Event::CaughtUp(chat_response::CaughtUp { seq })
}

fn ack(request_id: &str) -> chat_response::Event {
    chat_response::Event::Ack(chat_response::Ack { request_id: request_id.into(), ..Default::default() })
}

fn going_away() -> chat_response::Event {
    chat_response::Event::GoingAway(chat_response::GoingAway { close_code: 1001, ..Default::default() })
}

fn numbered(id: &str) -> chat_request::Frame {
    chat_request::Frame::Send(chat_request::Send {
        client_message_id: id.into(),
        text: id.into(),
        ..Default::default()
    })
}

fn resume(after_seq: u64, reply: Option<(&str, u32)>) -> chat_request::Frame {
    let reply = reply.map(|(id, next_offset)| chat_request::ReplyPosition { message_id: id.into(), next_offset });
    let open = chat_request::Open { session_id: "s".into(), after_seq: Some(after_seq), reply, ..Default::default() };
    chat_request::Frame::Open(open)
}

impl Client {
    /// Live at this head.
    async fn live(&mut self, head: u64) -> Chat {
        let mut chat = self.open(&token("alice")).await;
        for event in [opened(FRESH, head), caught_up(head)] {
            chat.send(event.clone()).await;
            assert_eq!(self.event().await, event);
        }
        chat
    }

    /// The next stream, from its open frame on.
    async fn again(&mut self, expected: &chat_request::Frame) -> Chat {
        let mut chat = self.core.chat().await;
        assert_eq!(chat.frame().await.as_ref(), Some(expected));
        chat
    }

    /// The next stream, resumed where the client is.
    async fn resumed(&mut self, after_seq: u64) -> Chat {
        let mut chat = self.again(&resume(after_seq, None)).await;
        chat.send(opened(REPLAYED, after_seq)).await;
        chat.send(caught_up(after_seq)).await;
        chat
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Fails,
    EndsUnasked,
    GoesAway,
    FallsSilent,
}

#[tokio::test(start_paused = true)]
async fn however_core_goes_the_client_sees_no_second_opened_no_hole_and_no_double() {
    for dialect in [Dialect::Json, Dialect::Proto] {
        for loss in [Loss::Fails, Loss::EndsUnasked, Loss::GoesAway, Loss::FallsSilent] {
            let mut config = resuming();
            config.core.heartbeat = after(4);
            let mut client = Client::connect_with(dialect, config, &FakeCore::new()).await;
            let mut chat = client.live(5).await;
            for event in [entry(6), delta(3), delta(8)] {
                chat.send(event.clone()).await;
                assert_eq!(client.event().await, event, "{loss:?}");
            }
            let started = Instant::now();
            let silent = match loss {
                Loss::Fails => {
                    chat.fail(core_unavailable()).await;
                    None
                }
                Loss::EndsUnasked => {
                    drop(chat);
                    None
                }
                Loss::GoesAway => {
                    chat.send(going_away()).await;
                    Some(chat)
                }
                Loss::FallsSilent => Some(chat),
            };
            let mut chat = client.again(&resume(6, Some(("m", 8)))).await;
            assert!(started.elapsed() <= after(if loss == Loss::FallsSilent { 11 } else { 1 }), "{loss:?}");
            assert!(silent.is_none_or(|chat| chat.is_gone()), "{loss:?}");
            for event in [opened(REPLAYED, 8), entry(6), entry(7), entry(8), delta(9), caught_up(8), entry(8), entry(9)]
            {
                chat.send(event).await;
            }
            for event in [entry(7), entry(8), delta(9), entry(9)] {
                assert_eq!(client.event().await, event, "{loss:?}");
            }
            // And once more, from where it is now.
            chat.fail(core_unavailable()).await;
            client.again(&resume(9, Some(("m", 9)))).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeats_keep_a_quiet_stream() {
    let mut config = resuming();
    config.core.heartbeat = after(4);
    let mut client = Client::connect_with(Dialect::Json, config, &FakeCore::new()).await;
    let mut chat = client.live(5).await;
    for _ in 0..20 {
        tokio::time::advance(after(9)).await;
        chat.send(heartbeat(5)).await;
        assert_eq!(client.event().await, heartbeat(5));
    }
    assert!(!chat.is_gone());
}

#[tokio::test(start_paused = true)]
async fn a_caught_up_that_did_not_come_comes_from_the_next_stream() {
    let mut client = Client::connect_with(Dialect::Proto, resuming(), &FakeCore::new()).await;
    let mut chat = client.open(&token("alice")).await;
    chat.send(opened(FRESH, 5)).await;
    assert_eq!(client.event().await, opened(FRESH, 5));
    chat.fail(core_unavailable()).await;
    let mut chat = client.resumed(5).await;
    assert_eq!(client.event().await, caught_up(5));
    chat.send(caught_up(5)).await;
    chat.send(entry(6)).await;
    assert_eq!(client.event().await, entry(6));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_lost_before_it_is_open_is_asked_for_again() {
    let mut client = Client::connect_with(Dialect::Json, resuming(), &FakeCore::new()).await;
    let open = chat_request::Open { token: token("alice"), after_seq: Some(3), ..Default::default() };
    client.send(chat_request::Frame::Open(open)).await;
    let asked = chat_request::Frame::Open(chat_request::Open { after_seq: Some(3), ..Default::default() });
    client.again(&asked).await.fail(core_unavailable()).await;
    let mut chat = client.again(&asked).await;
    for event in [opened(REPLAYED, 5), entry(4), entry(5), caught_up(5)] {
        chat.send(event.clone()).await;
        assert_eq!(client.event().await, event);
    }
    chat.fail(core_unavailable()).await;
    client.resumed(5).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_leaves_entries_out_is_no_good() {
    let mut client = Client::connect_with(Dialect::Json, resuming(), &FakeCore::new()).await;
    let mut chat = client.live(5).await;
    chat.send(entry(7)).await;
    let mut chat = client.resumed(5).await;
    for seq in 6..=7 {
        chat.send(entry(seq)).await;
        assert_eq!(client.event().await, entry(seq));
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_bring_nothing_are_not_opened_for_ever() {
    let mut client = Client::connect_with(Dialect::Json, resuming(), &FakeCore::new()).await;
    client.live(5).await.fail(core_unavailable()).await;
    let presence = chat_response::Event::Presence(Default::default());
    for _ in 0..8 {
        let mut chat = client.resumed(5).await;
        // Every stream begins with it.
        chat.send(presence.clone()).await;
        assert_eq!(client.event().await, presence);
        chat.fail(core_unavailable()).await;
    }
    assert_eq!(client.closed_after_error().await.close_code, 4013);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_outlives_any_number_of_cores() {
    let mut config = resuming();
    // This client has no time to answer pings in.
    config.socket.ping_interval = after(600);
    let mut client = Client::connect_with(Dialect::Json, config, &FakeCore::new()).await;
    let mut chat = client.live(5).await;
    for _ in 0..20 {
        tokio::time::advance(after(11)).await;
        chat.send(heartbeat(5)).await;
        assert_eq!(client.event().await, heartbeat(5));
        chat.fail(core_unavailable()).await;
        chat = client.resumed(5).await;
    }
    chat.send(entry(6)).await;
    assert_eq!(client.event().await, entry(6));
}

#[tokio::test(start_paused = true)]
async fn what_was_not_answered_is_sent_again_in_order_and_the_rest_is_told() {
    let mut client = Client::connect_with(Dialect::Json, resuming(), &FakeCore::new()).await;
    let mut chat = client.live(5).await;
    let select = chat_request::Frame::SelectModel(Default::default());
    let stop = chat_request::Frame::Stop(Default::default());
    let read = chat_request::Frame::Read(Default::default());
    let typing = chat_request::Frame::Typing(chat_request::Typing { active: true });
    let frames = [
        ("1", numbered("a")),
        ("2", numbered("b")),
        ("3", select.clone()),
        ("4", stop.clone()),
        ("", numbered("c")),
        ("", numbered("d")),
        ("5", read.clone()),
        ("6", typing.clone()),
    ];
    for (request_id, frame) in frames {
        client.send_as(request_id, frame.clone()).await;
        assert_eq!(chat.frame().await, Some(frame));
    }
    // One is answered by its ack, one by its entry; somebody else's id answers nothing.
    for event in [ack("1"), said(6, "bob", "d"), said(7, "alice", "c")] {
        chat.send(event.clone()).await;
        assert_eq!(client.event().await, event);
    }
    chat.fail(core_unavailable()).await;
    let error = client.error().await;
    assert_eq!((code(&error), error.request_id.as_str()), (ErrorCode::Unavailable, "3"));
    assert!(error.outcome_unknown && error.close_code == 0);
    // What comes meanwhile waits behind them; somebody who is writing is not announced late.
    client.send_as("7", typing).await;
    client.send_as("8", numbered("e")).await;
    client.send_as("9", select.clone()).await;
    let mut chat = client.resumed(7).await;
    for frame in [numbered("b"), stop, numbered("d"), read, numbered("e"), select] {
        assert_eq!(chat.frame().await, Some(frame));
    }
    let duplicate = chat_response::Ack { request_id: "2".into(), duplicate: true, ..Default::default() };
    let duplicate = chat_response::Event::Ack(duplicate);
    chat.send(duplicate.clone()).await;
    assert_eq!(client.event().await, duplicate);
}

#[tokio::test(start_paused = true)]
async fn a_full_buffer_holds_the_reader_and_loses_nothing() {
    let mut config = resuming();
    (config.socket.unanswered_frames, config.limits.frames_per_second) = (4, 1000);
    let core = FakeCore::new();
    let mut client = Client::connect_with(Dialect::Proto, config, &core).await;
    let chat = client.live(5).await;
    core.down.store(true, Ordering::Relaxed);
    chat.fail(core_unavailable()).await;
    for number in 0..20 {
        client.send_as(&number.to_string(), numbered(&number.to_string())).await;
    }
    tokio::time::advance(after(20)).await;
    core.down.store(false, Ordering::Relaxed);
    let mut chat = client.resumed(5).await;
    for number in 0..20 {
        assert_eq!(chat.frame().await, Some(numbered(&number.to_string())));
        if number >= 3 {
            // Four wait for their answer: there is no fifth before one has come.
            assert!(tokio::time::timeout(after(1), chat.frame()).await.is_err());
            chat.send(ack(&(number - 3).to_string())).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn frames_that_are_sent_again_come_no_faster_than_core_takes_them() {
    let mut client = Client::connect_with(Dialect::Json, resuming(), &FakeCore::new()).await;
    let mut chat = client.live(5).await;
    for number in 0..45 {
        tokio::time::advance(std::time::Duration::from_millis(40)).await;
        client.send_as(&number.to_string(), numbered(&number.to_string())).await;
        chat.frame().await;
    }
    chat.fail(core_unavailable()).await;
    let mut chat = client.resumed(5).await;
    let started = Instant::now();
    for number in 0..45 {
        assert_eq!(chat.frame().await, Some(numbered(&number.to_string())));
    }
    // 29 at once, after the open frame, and the others one by one.
    assert!(started.elapsed() >= std::time::Duration::from_millis(500), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_last_token_opens_the_next_stream_and_its_frame_is_answered() {
    let mut client = Client::connect_with(Dialect::Json, resuming(), &FakeCore::new()).await;
    let mut chat = client.live(5).await;
    let new = token_for("alice", after(7200), &[Role::User]);
    let refresh = chat_request::Frame::RefreshToken(chat_request::RefreshToken { token: new.clone() });
    client.send_as("t", refresh.clone()).await;
    assert_eq!(chat.frame().await, Some(refresh));
    chat.fail(core_unavailable()).await;
    let mut chat = client.resumed(5).await;
    assert_eq!(chat.caller.token, new);
    assert_eq!(client.event().await, ack("t"));
    client.send(send("on")).await;
    assert_eq!(chat.frame().await, Some(send("on")));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_the_end_and_a_position_ahead_is_tried_again() {
    let ahead = Failure::new(ErrorCode::Unavailable, "POSITION_AHEAD", "try again");
    let gap = opened(chat_response::ResumeVerdict::Gap, 5000);
    let error = |failure: Failure| chat_response::Event::Error(failure.into_event(String::new()));
    for (answer, close_code) in [
        (gap, 4003),
        (error(Failure::session_not_found()), 4104),
        (error(Failure::unauthenticated()), 4101),
        (error(Failure::new(ErrorCode::PermissionDenied, "NO", "no")), 4103),
    ] {
        let mut client = Client::connect_with(Dialect::Json, resuming(), &FakeCore::new()).await;
        client.live(5).await.fail(core_unavailable()).await;
        for again in [error(ahead.clone()), going_away()] {
            client.again(&resume(5, None)).await.send(again).await;
        }
        client.again(&resume(5, None)).await.send(answer).await;
        assert_eq!(client.closed_after_error().await.close_code, close_code);
    }
    // Refused without a stream.
    let mut client = Client::connect_with(Dialect::Json, resuming(), &FakeCore::new()).await;
    let chat = client.live(5).await;
    client.core.refusals.lock().unwrap().extend([ahead, Failure::unauthenticated()]);
    chat.fail(core_unavailable()).await;
    assert_eq!(client.closed_after_error().await.close_code, 4101);
}

#[tokio::test(start_paused = true)]
async fn when_no_core_comes_back_the_socket_is_closed_at_the_deadline() {
    for hangs in [true, false] {
        let core = FakeCore::new();
        let mut client = Client::connect_with(Dialect::Json, resuming(), &core).await;
        let mut chat = client.live(5).await;
        core.hang.store(hangs, Ordering::Relaxed);
        core.down.store(!hangs, Ordering::Relaxed);
        chat.send(going_away()).await;
        let started = Instant::now();
        let error = client.closed_after_error().await;
        assert_eq!((error.close_code, error.reason.as_str()), (4013, "CORE_UNAVAILABLE"));
        let waited = started.elapsed();
        assert!(waited <= after(31) && waited >= after(25), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_so_many_are_opened_at_once_and_all_get_their_turn() {
    let mut config = resuming();
    config.core.reopens = 3;
    let core = FakeCore::slow(std::time::Duration::from_millis(10));
    let edge = edge_with(config, &core);
    let mut clients = Vec::new();
    let mut chats = Vec::new();
    for number in 0..50 {
        let mut client = Client::connect_to(Dialect::Proto, &edge, &core).await;
        let mut chat = client.open(&token(&format!("user-{number}"))).await;
        chat.send(opened(FRESH, 5)).await;
        assert_eq!(client.event().await, opened(FRESH, 5));
        clients.push(client);
        chats.push(chat);
    }
    core.most_opening.store(0, Ordering::Relaxed);
    for chat in chats.drain(..) {
        chat.fail(core_unavailable()).await;
    }
    for _ in 0..50 {
        let mut chat = core.chat().await;
        assert_eq!(chat.frame().await, Some(resume(5, None)));
        for event in [opened(REPLAYED, 5), entry(6)] {
            chat.send(event).await;
        }
        chats.push(chat);
    }
    for client in &mut clients {
        assert_eq!(client.event().await, entry(6));
    }
    let most = core.most_opening.load(Ordering::Relaxed);
    assert!((1..=3).contains(&most), "{most}");
    assert_eq!(edge.metrics.reopening.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_was_leaving_has_left_and_who_was_ending_must_look() {
    for (frame, request_id, code) in [
        (chat_request::Frame::Detach(Default::default()), "r", 1000),
        (chat_request::Frame::EndSession(Default::default()), "r", 4013),
        (chat_request::Frame::EndSession(Default::default()), "", 4013),
    ] {
        let mut client = Client::connect_with(Dialect::Json, resuming(), &FakeCore::new()).await;
        let mut chat = client.live(5).await;
        client.send_as(request_id, frame.clone()).await;
        assert_eq!(chat.frame().await, Some(frame));
        chat.fail(core_unavailable()).await;
        let closed =
            if code == 1000 { client.closed().await } else { client.closed_after_error().await.close_code as u16 };
        assert_eq!(closed, code);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_not_helped_by_another_stream() {
    let mut client = Client::connect_with(Dialect::Json, resuming(), &FakeCore::new()).await;
    let chat = client.live(5).await;
    chat.fail(Failure::new(ErrorCode::Unavailable, "SLOW_CONSUMER", "too slow")).await;
    assert_eq!(client.closed_after_error().await.close_code, 4010);
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_stream_that_is_being_opened() {
    let core = FakeCore::new();
    let mut client = Client::connect_with(Dialect::Json, resuming(), &core).await;
    let chat = client.live(5).await;
    core.down.store(true, Ordering::Relaxed);
    chat.fail(core_unavailable()).await;
    client.edge.draining.cancel();
    assert!(matches!(client.event().await, chat_response::Event::GoingAway(_)));
    assert_eq!(client.closed().await, 1001);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_about_a_token_before_the_stream_is_open() {
    let expiring = chat_response::Event::TokenExpiring(Default::default());
    let mut client = Client::connect_with(Dialect::Json, resuming(), &FakeCore::new()).await;
    // Within the time of warning already.
    let mut chat = client.open(&token_for("alice", after(30), &[Role::User])).await;
    chat.send(expiring).await;
    chat.send(opened(FRESH, 5)).await;
    assert_eq!(client.event().await, opened(FRESH, 5));
    assert!(matches!(client.event().await, chat_response::Event::TokenExpiring(told) if told.expire_time.is_some()));
    chat.send(heartbeat(5)).await;
    assert_eq!(client.event().await, heartbeat(5));
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_its_connection_with_a_close_code_and_no_other() {
    let core = FakeCore::new();
    let edge = edge_with(resuming(), &core);
    let mut other = Client::connect_to(Dialect::Json, &edge, &core).await;
    let mut steady = other.live(5).await;
    let mut client = Client::connect_to(Dialect::Json, &edge, &core).await;
    core.panics.store(true, Ordering::Relaxed);
    client.send(open(&token("mallory"))).await;
    let error = client.closed_after_error().await;
    assert_eq!((error.close_code, error.reason.as_str()), (1011, "INTERNAL"));
    assert_eq!(edge.metrics.panics.get(), 1);
    steady.send(entry(6)).await;
    assert_eq!(other.event().await, entry(6));
}

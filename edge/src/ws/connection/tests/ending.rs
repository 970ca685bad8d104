//! How it ends: every close code, with the event before it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_closed() {
    let started = Instant::now();
    let client = Client::connect(Dialect::Json).await;
    let error = client.closed_after_error().await;
    assert_eq!((error.close_code, started.elapsed()), (4015, after(5)));
}

#[tokio::test(start_paused = true)]
async fn another_frame_before_open_is_the_end() {
    let mut client = Client::connect(Dialect::Json).await;
    client.send(send("hello")).await;
    let error = client.closed_after_error().await;
    assert_eq!((error.close_code, error.request_id.as_str()), (4015, "r"));
}

#[tokio::test(start_paused = true)]
async fn a_bad_token_in_open_is_the_end_with_one_answer_for_all() {
    let expired = {
        // Past the leeway.
        let long_ago = std::time::SystemTime::now() - after(3600);
        let claims = chatbox_proto::token::MintClaims {
            user_id: "alice".into(),
            display_name: String::new(),
            roles: vec![Role::User],
            scopes: Vec::new(),
            issuer: String::new(),
            audience: String::new(),
            issued_at: long_ago,
            lifetime: after(60),
        };
        chatbox_proto::token::mint_hs256(&chatbox_proto::token::Secret::new(crate::testing::SECRET), &claims)
    };
    let forged = format!("{}A", token("alice"));
    let mut answers = Vec::new();
    for token in ["", "junk", &forged, &expired] {
        let mut client = Client::connect(Dialect::Json).await;
        client.send(open(token)).await;
        answers.push(client.closed_after_error().await);
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    assert_eq!((answers[0].close_code, code(&answers[0])), (4101, ErrorCode::Unauthenticated));
}

#[tokio::test(start_paused = true)]
async fn the_tenth_malformed_frame_within_a_minute_is_the_last() {
    for (dialect, message) in [(Dialect::Json, Message::text("{")), (Dialect::Proto, Message::binary(vec![0xff]))] {
        let mut client = Client::connect(dialect).await;
        let _chat = client.open(&token("alice")).await;
        for _ in 0..9 {
            client.send_raw(message.clone()).await;
            assert_eq!(client.error().await.close_code, 0);
        }
        client.send_raw(message).await;
        let error = client.closed_after_error().await;
        assert_eq!((error.close_code, code(&error)), (1008, ErrorCode::InvalidArgument));
    }
}

#[tokio::test(start_paused = true)]
async fn malformed_frames_are_forgiven_with_time() {
    let mut client = Client::connect(Dialect::Json).await;
    let _chat = client.open(&token("alice")).await;
    for _ in 0..30 {
        client.send_raw(Message::text("{")).await;
        assert_eq!(client.error().await.close_code, 0);
        tokio::time::advance(after(7)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn payloads_of_the_wrong_kind_are_the_end() {
    for (dialect, message) in [(Dialect::Json, Message::binary(vec![1])), (Dialect::Proto, Message::text("{}"))] {
        let mut client = Client::connect(dialect).await;
        let _chat = client.open(&token("alice")).await;
        client.send_raw(message).await;
        assert_eq!(client.closed_after_error().await.close_code, 1003);
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_above_the_limit_is_the_end_and_strangers_have_less_room() {
    for (limit, known) in [(8 * 1024, false), (64 * 1024, true)] {
        for (size, fits) in [(limit, true), (limit + 1, false)] {
            let mut client = Client::connect(Dialect::Json).await;
            let _chat = if known { Some(client.open(&token("alice")).await) } else { None };
            let frame = format!("{{{}", " ".repeat(size - 1));
            let edge = Arc::clone(&client.edge);
            let (sink, stream) = client.ws.split();
            // The edge stops reading in the middle: the rest is not taken before the answer is there.
            edge.tasks.spawn("sender", async move {
                let mut sink = sink;
                let _ = sink.send(Message::text(frame)).await;
                std::future::pending::<()>().await;
            });
            let answer = stream.filter_map(|m| async { m.ok() }).boxed().next().await.unwrap();
            let answer: ChatResponse = json::from_slice(&answer.into_data()).unwrap();
            let Some(chat_response::Event::Error(error)) = answer.event else { panic!("not an error") };
            if fits {
                assert_eq!((code(&error), error.close_code), (ErrorCode::InvalidArgument, 0), "{size}");
            } else {
                assert_eq!((code(&error), error.close_code), (ErrorCode::ResourceExhausted, 1009), "{size}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn text_that_is_not_utf8_is_the_end() {
    use tokio_tungstenite::tungstenite::protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    };
    let mut client = Client::connect(Dialect::Json).await;
    let frame = Frame::message(vec![0xff, 0xfe], OpCode::Data(Data::Text), true);
    client.send_raw(Message::Frame(frame)).await;
    assert_eq!(client.closed().await, 1007);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_slow_down_is_closed() {
    let mut client = Client::connect(Dialect::Json).await;
    let mut chat = client.open(&token("alice")).await;
    client.edge.tasks.spawn("core", async move { while chat.frame().await.is_some() {} });
    for _ in 0..29 {
        client.send(send("x")).await;
    }
    for _ in 0..30 {
        client.send(send("x")).await;
        assert_eq!(client.error().await.close_code, 0);
    }
    client.send(send("x")).await;
    assert_eq!(client.closed_after_error().await.close_code, 4014);
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_core_ends_with_the_code_of_the_table() {
    for class in error_code::ALL {
        let mut client = Client::connect(Dialect::Proto).await;
        let chat = client.open(&token("alice")).await;
        chat.fail(Failure::new(*class, "SOME_REASON", "a sentence")).await;
        let error = client.closed_after_error().await;
        assert_eq!((code(&error), error.close_code), (*class, u32::from(class.close())));
        assert_eq!(error.reason, "SOME_REASON");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_core_is_4013_and_so_is_one_that_ends_unasked() {
    let mut client = Client::connect(Dialect::Json).await;
    client.open(&token("alice")).await.fail(core_unavailable()).await;
    let error = client.closed_after_error().await;
    assert_eq!((error.close_code, code(&error)), (4013, ErrorCode::Unavailable));

    let mut client = Client::connect(Dialect::Json).await;
    drop(client.open(&token("alice")).await);
    assert_eq!(client.closed_after_error().await.close_code, 4013);
}

#[tokio::test(start_paused = true)]
async fn a_core_that_does_not_take_the_stream_is_4013_within_the_deadline() {
    let core = FakeCore::new();
    core.hang.store(true, Ordering::Relaxed);
    let mut client = Client::connect_with(Dialect::Json, config(), &core).await;
    let started = Instant::now();
    client.send(open(&token("alice"))).await;
    let error = client.closed_after_error().await;
    assert_eq!((error.close_code, error.request_id.as_str(), started.elapsed()), (4013, "r", after(5)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_core_refuses_ends_with_its_failure() {
    let core = FakeCore::new();
    core.refusals.lock().unwrap().push_back(Failure::session_not_found());
    let mut client = Client::connect_with(Dialect::Json, config(), &core).await;
    client.send(open(&token("alice"))).await;
    assert_eq!(client.closed_after_error().await.close_code, 4104);
}

#[tokio::test(start_paused = true)]
async fn leaving_ends_in_order() {
    for frame in [chat_request::Frame::Detach(Default::default()), chat_request::Frame::EndSession(Default::default())]
    {
        let mut client = Client::connect(Dialect::Json).await;
        let mut chat = client.open(&token("alice")).await;
        client.send(frame.clone()).await;
        assert_eq!(chat.frame().await, Some(frame));
        drop(chat);
        assert_eq!(client.closed().await, 1000);
    }
}

#[tokio::test(start_paused = true)]
async fn a_code_that_core_announced_is_used_without_a_second_event() {
    let mut client = Client::connect(Dialect::Json).await;
    let mut chat = client.open(&token("alice")).await;
    let event = v1::Error { close_code: 4010, reason: "SLOW_CONSUMER".into(), ..Default::default() };
    chat.send(chat_response::Event::Error(event)).await;
    drop(chat);
    assert_eq!(client.closed_after_error().await.close_code, 4010);
}

#[tokio::test(start_paused = true)]
async fn a_user_has_a_number_of_connections_and_gets_them_back() {
    let mut config = config();
    config.limits.connections_per_user = 2;
    let core = FakeCore::new();
    let edge = edge_with(config, &core);
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect_to(Dialect::Json, &edge, &core).await;
        let chat = client.open(&token("alice")).await;
        clients.push((client, chat));
    }
    let mut third = Client::connect_to(Dialect::Json, &edge, &core).await;
    third.send(open(&token("alice"))).await;
    assert_eq!(third.closed_after_error().await.close_code, 4110);
    let mut other = Client::connect_to(Dialect::Json, &edge, &core).await;
    other.open(&token("bob")).await;
    let (mut first, chat) = clients.remove(0);
    first.ws.close(None).await.unwrap();
    first.ended.await.unwrap();
    drop(chat);
    let mut again = Client::connect_to(Dialect::Json, &edge, &core).await;
    again.open(&token("alice")).await;
}

#[tokio::test(start_paused = true)]
async fn when_the_client_goes_the_stream_ends() {
    for clean in [true, false] {
        let mut client = Client::connect(Dialect::Json).await;
        let mut chat = client.open(&token("alice")).await;
        client.send(send("last words")).await;
        if clean {
            client.ws.close(None).await.unwrap();
            assert!(client.next().await.is_some() && client.next().await.is_none());
        } else {
            drop(client.ws);
        }
        assert_eq!(chat.frame().await, Some(send("last words")));
        assert_eq!(chat.frame().await, None);
        drop(chat);
        assert_eq!(client.ended.await.unwrap(), (if clean { 1005 } else { 1006 }, By::Client));
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_tells_the_client_and_closes_with_1001() {
    let mut client = Client::connect(Dialect::Json).await;
    let _chat = client.open(&token("alice")).await;
    client.edge.draining.cancel();
    let chat_response::Event::GoingAway(going) = client.event().await else { panic!("not going away") };
    assert_eq!(going.close_code, 1001);
    assert!(going.retry_after.is_some());
    assert_eq!(client.closed().await, 1001);
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_client_that_does_not_read_or_open() {
    for opened in [true, false] {
        let mut client = Client::connect(Dialect::Json).await;
        let mut chat = None;
        if opened {
            let mut opened = client.open(&token("alice")).await;
            let delta = chat_response::ReplyDelta { text: "x".repeat(4096), ..Default::default() };
            while tokio::time::timeout(after(1), opened.send(chat_response::Event::ReplyDelta(delta.clone())))
                .await
                .is_ok()
            {}
            chat = Some(opened);
        }
        let started = Instant::now();
        client.edge.draining.cancel();
        assert_eq!(client.ended.await.unwrap().0, 1001);
        assert!(started.elapsed() <= after(4), "{:?}", started.elapsed());
        drop(chat);
    }
}

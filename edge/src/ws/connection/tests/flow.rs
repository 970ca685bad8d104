//! What goes through.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_first_frame_opens_the_stream_with_the_token_in_the_metadata() {
    for dialect in [Dialect::Json, Dialect::Proto] {
        let mut client = Client::connect(dialect).await;
        let token = token("alice");
        client.send(open(&token)).await;
        let mut chat = client.core.chat().await;
        assert_eq!(chat.caller.token, token);
        let Some(chat_request::Frame::Open(open)) = chat.frame().await else { panic!("not an open frame") };
        assert_eq!(open.token, "");
        chat.send(heartbeat(7)).await;
        assert_eq!(client.event().await, heartbeat(7));
        client.send(send("hello")).await;
        assert_eq!(chat.frame().await, Some(send("hello")));
    }
}

#[tokio::test(start_paused = true)]
async fn binary_payloads_pass_unchanged_in_both_directions() {
    let mut client = Client::connect(Dialect::Proto).await;
    let mut chat = client.open(&token("alice")).await;
    let mut frame = ChatRequest { request_id: "r".into(), frame: Some(send("text")) }.encode_to_vec();
    frame.extend([0xf8, 0x07, 0x01]);
    client.send_raw(Message::binary(frame.clone())).await;
    assert_eq!(chat.frames.next().await.unwrap(), frame);
    let mut event = ChatResponse { event: Some(heartbeat(1)) }.encode_to_vec();
    event.extend([0xf8, 0x07, 0x01]);
    chat.events.send(Ok(event.clone().into())).await.unwrap();
    assert_eq!(client.next().await.unwrap().into_data(), event);
}

#[tokio::test(start_paused = true)]
async fn frames_that_come_while_the_stream_comes_up_are_kept_in_order() {
    let mut client = Client::connect(Dialect::Json).await;
    client.send(open(&token("alice"))).await;
    for i in 0..20 {
        client.send(send(&format!("{i}"))).await;
    }
    let mut chat = client.core.chat().await;
    assert!(matches!(chat.frame().await, Some(chat_request::Frame::Open(_))));
    for i in 0..20 {
        assert_eq!(chat.frame().await, Some(send(&format!("{i}"))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_malformed_frame_is_answered_and_the_connection_lives() {
    for (dialect, message) in [
        (Dialect::Json, Message::text(r#"{"requestId":"x","send":{"text":1}}"#)),
        (Dialect::Proto, Message::binary(vec![0xff])),
    ] {
        let mut client = Client::connect(dialect).await;
        let mut chat = client.open(&token("alice")).await;
        client.send_raw(message).await;
        let error = client.error().await;
        assert_eq!(code(&error), ErrorCode::InvalidArgument);
        assert_eq!(error.close_code, 0);
        assert!(!error.field_violations[0].field.is_empty());
        client.send(send("still here")).await;
        assert_eq!(chat.frame().await, Some(send("still here")));
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_frames_are_refused_one_by_one() {
    let mut client = Client::connect(Dialect::Json).await;
    let mut chat = client.open(&token("alice")).await;
    let (tx, mut taken) = futures_channel::mpsc::channel(100);
    client.edge.tasks.spawn("core", async move {
        let mut tx = tx;
        while let Some(frame) = chat.frame().await {
            let _ = tx.send(frame).await;
        }
    });
    // The open frame was one of the 30.
    for i in 0..30 {
        client.send_as(&format!("r{i}"), send("x")).await;
    }
    let error = client.error().await;
    assert_eq!((code(&error), error.request_id.as_str()), (ErrorCode::ResourceExhausted, "r29"));
    assert!(error.retry_after.is_some() && error.close_code == 0);
    tokio::time::advance(after(1)).await;
    client.send(send("again")).await;
    for _ in 0..29 {
        assert_eq!(taken.next().await, Some(send("x")));
    }
    assert_eq!(taken.next().await, Some(send("again")));
}

/// A client that does not read gets no more events, and core keeps the rest; but what it says is heard.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_can_still_stop() {
    let mut client = Client::connect(Dialect::Json).await;
    let mut chat = client.open(&token("alice")).await;
    let delta = chat_response::ReplyDelta { text: "x".repeat(4096), ..Default::default() };
    let mut taken = 0;
    // Until the edge asks for no more.
    while tokio::time::timeout(after(1), chat.send(chat_response::Event::ReplyDelta(delta.clone()))).await.is_ok() {
        taken += 1;
        assert!(taken < 100, "nothing holds core back");
    }
    let stop = chat_request::Frame::Stop(chat_request::Stop { message_id: "m".into() });
    client.send(stop.clone()).await;
    assert_eq!(chat.frame().await, Some(stop));
    for _ in 0..taken {
        assert!(matches!(client.event().await, chat_response::Event::ReplyDelta(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_core_that_takes_no_frames_holds_the_reader_not_the_writer() {
    let mut config = config();
    config.limits.frames_per_second = 1000;
    let mut client = Client::connect_with(Dialect::Json, config, &FakeCore::new()).await;
    let mut chat = client.open(&token("alice")).await;
    let text = "x".repeat(8 * 1024);
    let mut sent = 0;
    while tokio::time::timeout(after(1), client.send(send(&text))).await.is_ok() {
        sent += 1;
        assert!(sent < 100, "nothing holds the client back");
    }
    chat.send(heartbeat(1)).await;
    assert_eq!(client.event().await, heartbeat(1));
    tokio::time::advance(after(10)).await;
    assert_eq!(client.closed_after_error().await.close_code, 4013);
}

#[tokio::test(start_paused = true)]
async fn many_small_events_arrive_complete_and_in_order() {
    let mut client = Client::connect(Dialect::Proto).await;
    let mut chat = client.open(&token("alice")).await;
    client.edge.tasks.spawn("core", async move {
        for head in 0..1000 {
            chat.send(heartbeat(head)).await;
        }
        chat.fail(Failure::internal()).await;
    });
    for head in 0..1000 {
        assert_eq!(client.event().await, heartbeat(head));
    }
    assert_eq!(client.closed_after_error().await.close_code, 1011);
}

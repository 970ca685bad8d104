//! One conversation is the same over every transport: what each client sees, and what is kept.

use std::collections::BTreeSet;

use chatbox_proto::{
    json,
    v1::{
        ChatRequest, ChatResponse, FinishReason, ListSessionsRequest,
        chat_request::{EndSession, Frame, Open, Send, Stop},
        chat_response::Event,
        entry::Kind,
    },
};
use futures_util::future::try_join_all;
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message as WsMessage;

use crate::harness::{
    client::{Answer, Client, Received, Transport},
    history,
    provider::{Provider, Script},
    stack::{Setup, Stack},
    transcript,
    ws::{Auth, Connect, Encoding},
};

const TEXTS: [&str; 2] = ["hello", "<b> & \"q\" 'x' ünï 𝄞\r\n"];

/// Everything one client can do today, with every answer waited for. Returns the session.
async fn converse(client: &mut Client) -> String {
    let opened = client.open(Open::default()).await.unwrap();
    assert!(opened.created);
    client.caught_up().await.unwrap();
    for (number, text) in TEXTS.into_iter().enumerate() {
        let ack = client.say(&format!("c{number}"), text).await.unwrap();
        assert!(!ack.duplicate && ack.seq > 0, "{ack:?}");
        let reply = client.reply().await.unwrap();
        assert_eq!((reply.finished.finish_reason(), &reply.streamed), (FinishReason::Stop, &reply.finished.text));
    }
    // The same message again, and another one under its id.
    assert!(client.say("c0", TEXTS[0]).await.unwrap().duplicate);
    let other = Send { client_message_id: "c0".to_owned(), text: "another".to_owned(), file_ids: Vec::new() };
    assert!(matches!(client.request(Frame::Send(other)).await.unwrap(), Answer::Error(_)));
    // A reply that is stopped, twice.
    client.say("c-stop", "go on for ever").await.unwrap();
    let message_id = delta_of(client, "partial").await;
    for _ in 0..2 {
        let stop = Frame::Stop(Stop { message_id: message_id.clone() });
        assert!(matches!(client.request(stop).await.unwrap(), Answer::Ack(_)));
    }
    let stopped = client.reply_of(&message_id).await.unwrap();
    assert_eq!(
        (stopped.finished.finish_reason(), stopped.finished.text.as_str()),
        (FinishReason::Cancelled, "partial")
    );
    // The end, after which nothing can be written.
    assert!(matches!(client.request(Frame::EndSession(EndSession {})).await.unwrap(), Answer::Ack(_)));
    client
        .until_seen(
            "the end",
            |event| matches!(event, Event::Entry(entry) if matches!(entry.kind, Some(Kind::Ended(_)))),
        )
        .await
        .unwrap();
    opened.session.unwrap().session_id
}

/// Waits for a reply whose text so far is `text`.
async fn delta_of(client: &mut Client, text: &str) -> String {
    let is_there = |event: &Event| match event {
        Event::ReplyDelta(delta) if delta.text == text => Some(delta.message_id.clone()),
        _ => None,
    };
    if let Some(id) = client.seen.iter().rev().find_map(is_there) {
        return id;
    }
    client.until("the first piece", is_there).await.unwrap()
}

#[tokio::test]
async fn the_same_conversation_looks_the_same_and_is_kept_the_same_over_every_transport() {
    let provider = Provider::start().await.unwrap();
    let stack = Stack::start(Setup::new().unwrap().with_models(&provider, &["scripted"])).await.unwrap();
    let (mut events, mut histories) = (Vec::new(), Vec::new());
    for (number, transport) in Transport::ALL.into_iter().enumerate() {
        provider.script("scripted", Script::reply(["Hel", "lo. ", "ünï"]));
        provider.script("scripted", Script::reply(["again"]));
        provider.script("scripted", Script::stream().delta("partial").hang());
        let user = format!("user-{number}");
        let mut client = stack.connect(transport, &user).await.unwrap();
        let session_id = converse(&mut client).await;
        events.push(transcript::of_events(&client.seen, &user));
        let (mut core, http) = (stack.core(&user).unwrap(), stack.http(&user).unwrap());
        let messages = history::agreed(&mut core, &http, &session_id).await.unwrap();
        assert_eq!(messages.len(), 6, "{messages:#?}");
        histories.push(transcript::of_messages(&messages, &user));
    }
    for (number, transport) in Transport::ALL.into_iter().enumerate() {
        assert_eq!(events[number], events[0], "{transport:?}");
        assert_eq!(histories[number], histories[0], "{transport:?}");
    }
    stack.shutdown().await.unwrap();
}

/// Opens, says one thing, and returns the text frames up to the end of the reply, as they came.
async fn json_frames(stack: &Stack, text: &str) -> Vec<String> {
    let token = stack.token("alice", "user").unwrap();
    let mut socket = Connect::new(stack.addresses().http).auth(Auth::Subprotocol(token)).connect().await.unwrap();
    let frame = |request_id: &str, frame| ChatRequest { request_id: request_id.to_owned(), frame: Some(frame) };
    socket.send(&frame("o", Frame::Open(Open::default()))).await.unwrap();
    let send = Send { client_message_id: "json".to_owned(), text: text.to_owned(), file_ids: Vec::new() };
    socket.send(&frame("s", Frame::Send(send))).await.unwrap();
    let mut frames = Vec::new();
    while frames.last().is_none_or(|frame: &String| !frame.contains("replyFinished")) {
        match socket.receive_message().await.unwrap() {
            WsMessage::Text(text) => frames.push(text.to_string()),
            WsMessage::Ping(_) => {}
            other => panic!("{other:?} on the JSON subprotocol"),
        }
    }
    frames
}

#[tokio::test]
async fn a_json_frame_is_the_canonical_json_of_the_event_that_grpc_gets() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let mut grpc = stack.connect(Transport::Grpc, "alice").await.unwrap();
    grpc.open(Open::default()).await.unwrap();
    grpc.caught_up().await.unwrap();
    let mut binary = stack.connect(Transport::Socket(Encoding::Proto), "alice").await.unwrap();
    binary.open(Open::default()).await.unwrap();
    binary.caught_up().await.unwrap();
    let frames = json_frames(&stack, TEXTS[1]).await;
    grpc.reply().await.unwrap();
    binary.reply().await.unwrap();
    let canonical = |client: &Client| -> Vec<String> {
        let entries = client.seen.iter().filter(|event| matches!(event, Event::Entry(_)));
        entries.map(|event| json::to_string(&ChatResponse { event: Some(event.clone()) })).collect()
    };
    let entries: Vec<String> = frames.iter().filter(|frame| frame.starts_with("{\"entry\"")).cloned().collect();
    assert_eq!(entries.len(), 3, "{frames:#?}");
    assert_eq!((&entries, &entries), (&canonical(&grpc), &canonical(&binary)));
    for frame in frames {
        let event: ChatResponse = json::from_slice_strict(frame.as_bytes()).unwrap();
        assert_eq!(json::to_string(&event), frame);
        let Value::Object(fields) = serde_json::from_str(&frame).unwrap() else { panic!("{frame}") };
        assert_eq!(fields.len(), 1, "{frame}");
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn fifty_parallel_first_messages_make_one_session() {
    let stack = Stack::start(Setup::new().unwrap().with(|setup| setup.core.session.unanswered = 100)).await.unwrap();
    // Half of them are one message that is tried again and again.
    let one = |number: usize| {
        let stack = &stack;
        async move {
            let mut client = stack.connect(Transport::ALL[number % 3], "alice").await?;
            let opened = client.open(Open::default()).await?;
            let id = if number.is_multiple_of(2) { "first".to_owned() } else { format!("m{number}") };
            let ack = client.say(&id, "hello").await?;
            let session = opened.session.unwrap_or_default();
            anyhow::Ok((session.session_id, opened.created, id, ack.seq, ack.duplicate))
        }
    };
    let all = try_join_all((0..50).map(one)).await.unwrap();
    let ids: BTreeSet<_> = all.iter().map(|(id, ..)| id).collect();
    assert_eq!(ids.len(), 1, "{all:?}");
    assert_eq!(all.iter().filter(|(_, created, ..)| *created).count(), 1, "{all:?}");
    let first: BTreeSet<_> = all.iter().filter(|(_, _, id, ..)| id == "first").map(|(_, _, _, seq, _)| seq).collect();
    assert_eq!(first.len(), 1, "{all:?}");
    assert_eq!(all.iter().filter(|(.., duplicate)| *duplicate).count(), 24, "{all:?}");

    let mut core = stack.core("alice").unwrap();
    let sessions = core.list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner().sessions;
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    let messages = history::by_grpc(&mut core, &sessions[0].session_id, 0).await.unwrap();
    assert_eq!(messages.iter().filter(|message| message.text == "hello").count(), 26);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn grpc_half_close_lets_the_reply_finish_and_ends_well() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let mut client = stack.connect(Transport::Grpc, "alice").await.unwrap();
    client.open(Open::default()).await.unwrap();
    let send = Send { client_message_id: "c1".to_owned(), text: "hello".to_owned(), file_ids: Vec::new() };
    client.send(Frame::Send(send)).await.unwrap();
    client.grpc().unwrap().half_close();
    let closed = client.until_closed().await.unwrap();
    assert_eq!(closed.code, Some(0), "{closed:?}");
    let finished = client.entries().into_iter().filter_map(crate::harness::client::finished).count();
    assert_eq!(finished, 1, "{:#?}", client.seen);
    assert!(matches!(client.receive().await.unwrap(), Received::Closed(_)));
    stack.shutdown().await.unwrap();
}

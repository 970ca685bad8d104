//! The first seven rows of the table of bad input, on both transports: each mistake gets one answer, and the connection
//! lives as long as it should.

use bytes::Bytes;
use chatbox_proto::v1::{
    ChatRequest, CreateSessionRequest, Error, ErrorCode, ListMessagesRequest, ListSessionsRequest,
    chat_request::{Frame, Open, Read, Send},
    chat_response::Event,
};
use prost::Message as _;
use reqwest::Method;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tonic::Code;

use crate::harness::{
    client::{Client, Transport},
    contract::error_info,
    pair::{Pair, Role, Settings},
    stack::{Setup, Stack},
    ws::{Auth, Connect, Encoding},
};

/// A frame as it goes over the wire.
#[derive(Debug, Clone)]
enum Raw {
    Text(String),
    Bytes(Vec<u8>),
}

async fn send_raw(client: &mut Client, raw: Raw) {
    match raw {
        Raw::Text(text) => client.socket().unwrap().send_message(WsMessage::text(text)).await.unwrap(),
        Raw::Bytes(bytes) => match client.grpc() {
            Ok(stream) => stream.send_bytes(bytes.into()).await.unwrap(),
            Err(_) => client.socket().unwrap().send_message(WsMessage::binary(bytes)).await.unwrap(),
        },
    }
}

/// Frames that cannot be decoded or are of no known kind, with the field that the answer has to name.
fn malformed(transport: Transport) -> Vec<(&'static str, Raw, &'static str)> {
    if transport == Transport::Socket(Encoding::Json) {
        let text = |text: &str| Raw::Text(text.to_owned());
        return vec![
            ("not JSON", text("hello"), "frame"),
            ("half of an object", text("{\"send\":{"), "send.?"),
            ("a list", text("[]"), "frame"),
            ("nothing", text(""), "frame"),
            ("an empty object", text("{}"), "frame"),
            ("an unknown frame", text("{\"launchMissiles\":{}}"), "frame"),
            ("a wrong type", text("{\"send\":{\"clientMessageId\":\"a\",\"text\":7}}"), "send.text"),
            ("a wrong type of a frame", text("{\"send\":\"hello\"}"), "send"),
            ("a negative number", text("{\"read\":{\"seq\":-1}}"), "read.seq"),
        ];
    }
    let request_id = [b"\x0a\x41".to_vec(), vec![b'x'; 65], b"\x3a\x00".to_vec()].concat();
    vec![
        ("wire type 7", Raw::Bytes(vec![0xff, 0xff]), "frame"),
        ("a length beyond the end", Raw::Bytes(vec![0x1a, 0x7f, 0x01]), "frame"),
        ("nothing", Raw::Bytes(Vec::new()), "frame"),
        ("an unknown frame", Raw::Bytes(vec![0xfa, 0x07, 0x00]), "frame"),
        ("a request id of 65 characters", Raw::Bytes(request_id), "request_id"),
    ]
}

fn is_end(event: &Event) -> bool {
    matches!(event, Event::Ack(_))
}

/// The errors between now and the ack of a frame that is fine: all answers to what was sent before it.
async fn errors_until_ack(client: &mut Client) -> Vec<Error> {
    let before = client.seen.len();
    client.send(Frame::Read(Read { seq: 0 })).await.unwrap();
    client.until("an ack", |event| is_end(event).then_some(())).await.unwrap();
    let errors = client.seen[before..].iter().filter_map(|event| match event {
        Event::Error(error) => Some(error.clone()),
        _ => None,
    });
    errors.collect()
}

async fn opened(stack: &Stack, transport: Transport, user: &str) -> (Client, String) {
    let mut client = stack.connect(transport, user).await.unwrap();
    let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
    client.caught_up().await.unwrap();
    (client, session_id)
}

#[tokio::test]
async fn a_malformed_frame_gets_one_error_that_names_the_field_and_the_connection_lives() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    for transport in Transport::ALL {
        for (what, raw, field) in malformed(transport) {
            let (mut client, _) = opened(&stack, transport, "alice").await;
            send_raw(&mut client, raw).await;
            let errors = errors_until_ack(&mut client).await;
            let [error] = errors.as_slice() else { panic!("{what} on {transport:?}: {errors:?}") };
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{what} on {transport:?}: {error:?}");
            let fields: Vec<_> = error.field_violations.iter().map(|violation| violation.field.as_str()).collect();
            assert_eq!(fields, [field], "{what} on {transport:?}: {error:?}");
            assert_eq!(error.close_code, 0, "{what} on {transport:?}");
        }
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_well_formed_frame_with_a_bad_field_gets_one_error() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let send =
        |id: &str, text: String| Frame::Send(Send { client_message_id: id.to_owned(), text, file_ids: Vec::new() });
    let frames = [
        ("no id", send("", "x".to_owned()), ErrorCode::InvalidArgument),
        ("an id of 65", send(&"x".repeat(65), "x".to_owned()), ErrorCode::InvalidArgument),
        ("an id of 129", send(&"x".repeat(129), "x".to_owned()), ErrorCode::InvalidArgument),
        ("an id with a space", send("a b", "x".to_owned()), ErrorCode::InvalidArgument),
        ("no text", send("a", String::new()), ErrorCode::InvalidArgument),
        ("a text of 32 KiB and one", send("a", "x".repeat((32 << 10) + 1)), ErrorCode::InvalidArgument),
        ("a second open", Frame::Open(Open::default()), ErrorCode::FailedPrecondition),
        ("a model", Frame::Open(Open { model: "x".repeat(129), ..Open::default() }), ErrorCode::InvalidArgument),
    ];
    for transport in Transport::ALL {
        let (mut client, session_id) = opened(&stack, transport, "alice").await;
        for (what, frame, code) in &frames {
            let request_id = client.send(frame.clone()).await.unwrap();
            let errors = errors_until_ack(&mut client).await;
            let [error] = errors.as_slice() else { panic!("{what} on {transport:?}: {errors:?}") };
            assert_eq!((error.code(), &error.request_id), (*code, &request_id), "{what} on {transport:?}: {error:?}");
        }
        let messages = crate::harness::history::by_grpc(&mut stack.core("alice").unwrap(), &session_id, 0).await;
        assert_eq!(messages.unwrap(), [], "{transport:?}");
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn ten_malformed_frames_end_the_connection() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    for transport in Transport::ALL {
        let (mut client, _) = opened(&stack, transport, "alice").await;
        let before = client.seen.len();
        let (_, raw, _) = malformed(transport).swap_remove(0);
        for _ in 0..10 {
            send_raw(&mut client, raw.clone()).await;
        }
        let closed = client.until_closed().await.unwrap();
        let grpc = transport == Transport::Grpc;
        let expected = if grpc { Code::InvalidArgument as u16 } else { 1008 };
        assert_eq!(closed.code, Some(expected), "{transport:?}: {closed:?}");
        let codes: Vec<_> = client.seen[before..]
            .iter()
            .filter_map(|event| match event {
                Event::Error(error) => Some(error.close_code),
                _ => None,
            })
            .collect();
        assert_eq!(codes, [vec![0; 9], vec![1008]].concat(), "{transport:?}");
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn frames_above_the_rate_are_refused_by_core_too() {
    const RATE: u32 = 5;
    let setup = Setup::new().unwrap().with(|setup| setup.core.limits.frames_per_second = RATE);
    let stack = Stack::start(setup).await.unwrap();
    let (mut client, _) = opened(&stack, Transport::Grpc, "alice").await;
    let mut sent = Vec::new();
    for _ in 0..RATE + 3 {
        sent.push(client.send(Frame::Read(Read { seq: 0 })).await.unwrap());
    }
    let refused = |event: &Event| match event {
        Event::Error(error) => Some(error.clone()),
        _ => None,
    };
    let error = client.until("a refusal", refused).await.unwrap();
    assert_eq!((error.code(), error.reason.as_str()), (ErrorCode::ResourceExhausted, "TOO_MANY_FRAMES"));
    assert!(error.retry_after.is_some() && error.close_code == 0 && sent.contains(&error.request_id), "{error:?}");
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn whatever_comes_before_open_ends_the_connection_or_is_refused() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    for transport in Transport::ALL {
        let mut client = stack.connect(transport, "alice").await.unwrap();
        let send = Send { client_message_id: "early".to_owned(), text: "x".to_owned(), file_ids: Vec::new() };
        let request_id = client.send(Frame::Send(send)).await.unwrap();
        let is_error = |event: &Event| match event {
            Event::Error(error) => Some(error.clone()),
            _ => None,
        };
        let error = client.until("an error", is_error).await.unwrap();
        assert_eq!((error.code(), error.request_id), (ErrorCode::FailedPrecondition, request_id), "{transport:?}");
        if transport == Transport::Grpc {
            client.open(Open::default()).await.unwrap();
        } else {
            assert_eq!(client.until_closed().await.unwrap().code, Some(4015));
        }
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_unknown_model_is_refused_and_nothing_is_made() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    for transport in Transport::ALL {
        let user = format!("{transport:?}");
        let mut client = stack.connect(transport, &user).await.unwrap();
        let open = Open { model: "nope".to_owned(), ..Open::default() };
        let Ok(crate::harness::client::Answer::Error(error)) = client.request(Frame::Open(open)).await else {
            panic!("{transport:?} took an unknown model")
        };
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{transport:?}: {error:?}");
        let mut core = stack.core(&user).unwrap();
        let listed = core.list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner();
        assert_eq!(listed.sessions, [], "{transport:?}");
    }
    let mut core = stack.core("alice").unwrap();
    let request = CreateSessionRequest { model: "nope".to_owned(), ..CreateSessionRequest::default() };
    let status = core.create_session(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    error_info(&status).unwrap();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn page_sizes_have_a_default_a_maximum_and_no_sign() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let (_client, session_id) = opened(&stack, Transport::Grpc, "alice").await;
    let (mut core, http) = (stack.core("alice").unwrap(), stack.http("alice").unwrap());
    for (asked, used) in [(0, Some(50)), (7, Some(7)), (1_000_000_000, Some(1_000)), (-1, None), (i32::MIN, None)] {
        let sessions = core.list_sessions(ListSessionsRequest { page_size: asked, ..Default::default() }).await;
        let session_id = session_id.clone();
        let messages = ListMessagesRequest { session_id, page_size: asked, ..Default::default() };
        let messages = core.list_messages(messages).await;
        match used {
            Some(used) => {
                assert_eq!(sessions.unwrap().into_inner().page_size, used);
                assert_eq!(messages.unwrap().into_inner().page_size, used);
            }
            None => {
                for status in [sessions.unwrap_err(), messages.unwrap_err()] {
                    assert_eq!(status.code(), Code::InvalidArgument, "{asked}: {status:?}");
                    error_info(&status).unwrap();
                }
            }
        }
    }
    for (asked, status) in [("", 400), ("0", 200), ("1000000000", 200), ("-1", 400), ("10abc", 400), ("1e9", 400)] {
        for list in ["/api/v1/sessions".to_owned(), format!("/api/v1/sessions/{session_id}/messages")] {
            let answer = http.send(Method::GET, &format!("{list}?pageSize={asked}"), None).await.unwrap();
            assert_eq!(answer.status, status, "{list} {asked:?}: {}", answer.text());
            assert!(status == 200 || answer.text().contains("page_size") || answer.text().contains("pageSize"));
        }
    }
    for junk in ["junk", "AAAA", "%00"] {
        let path = format!("/api/v1/sessions?pageToken={junk}");
        let answer = http.send(Method::GET, &path, None).await.unwrap();
        assert_eq!(answer.status, 400, "{junk}: {}", answer.text());
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_is_too_big_is_refused_and_memory_stays_flat() {
    const BIG: usize = 10 << 20;
    let drain = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"".to_owned();
    let settings = Settings { core: drain.clone(), edge: drain, vars: Vec::new() };
    let mut pair = Pair::start(settings).await.unwrap();
    let address = pair.addresses().http;
    // What the first of its kind costs (buffers, code pages) is not growth.
    oversized(&mut pair, 256 << 10).await;
    let before: Vec<u64> = Role::ALL.map(|role| pair.process(role).resident_bytes().unwrap()).to_vec();
    for _ in 0..4 {
        oversized(&mut pair, BIG).await;
    }
    for (role, before) in Role::ALL.into_iter().zip(before) {
        let grown = pair.process(role).resident_bytes().unwrap().saturating_sub(before);
        assert!(grown < (4 << 20), "{role:?} grew by {grown} bytes");
    }
    // It still serves.
    let token = pair.token("alice", "user").unwrap();
    let socket = Connect::new(address).auth(Auth::Header(token)).connect().await.unwrap();
    Client::over_socket(socket).open(Open::default()).await.unwrap();
    pair.shutdown().await.unwrap();
}

/// A frame, a gRPC message, a body and a header of this size, each refused in its own way.
async fn oversized(pair: &mut Pair, size: usize) {
    let text = "x".repeat(size);
    for transport in Transport::ALL {
        let mut client = pair.connect(transport, "alice").await.unwrap();
        client.open(Open::default()).await.unwrap();
        let send = Send { client_message_id: "big".to_owned(), text: text.clone(), file_ids: Vec::new() };
        let request = ChatRequest { request_id: String::new(), frame: Some(Frame::Send(send)) };
        let grpc = transport == Transport::Grpc;
        if grpc {
            client.grpc().unwrap().send_bytes(Bytes::from(request.encode_to_vec())).await.unwrap();
        } else {
            // The edge may close before all of it was taken.
            let _ = client.socket().unwrap().send(&request).await;
        }
        let closed = client.until_closed().await.unwrap();
        let expected = if grpc { Code::ResourceExhausted as u16 } else { 1009 };
        assert_eq!(closed.code, Some(expected), "{size} on {transport:?}: {closed:?}");
    }
    let http = pair.http("alice").unwrap();
    let body = format!("{{\"model\":\"{text}\"}}");
    // A connection that is closed while the client still writes is a refusal too.
    if let Ok(answer) = http.send(Method::POST, "/api/v1/sessions", Some(body)).await {
        assert_eq!(answer.status, 413, "{}", answer.text());
    }
    let huge = crate::harness::http::client().get(format!("http://{}/chatbox/healthz", pair.addresses().http));
    if let Ok(answer) = huge.header("x-huge", text).send().await {
        assert_eq!(answer.status(), 431);
    }
}

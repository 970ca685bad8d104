//! Nobody speaks for another: a session that is somebody else's and one that does not exist get the same answer from every
//! call and frame of the contract, and its owner notices nothing.

use bytes::Bytes;
use chatbox_proto::v1::{
    ChatResponse, ErrorCode,
    chat_request::{Detach, Frame, Open, Read, Send, Stop, Typing},
    chat_response::Event,
};
use prost::Message as _;
use reqwest::Method;
use tonic::Code;

use crate::harness::{
    client::{Answer, Client, Transport},
    contract::{self, bearer, call, error_info},
    gate::Gate,
    grpc,
    http::Http,
    provider::{Provider, Script},
    stack::{Setup, Stack},
    wait::LIMIT,
    ws::Encoding,
};

/// Well-formed, and of nobody.
const UNKNOWN: &str = "0193e3a8-7c1b-7d3e-8f4a-2b6c9d0e1f23";

/// Calls that are declared and not built yet. A call that leaves this list has to tell foreign sessions by `NOT_FOUND`.
const LATER: [&str; 1] = ["UploadFile"];

/// An owner with an open session, who has read everything that came so far.
async fn owner(stack: &Stack, transport: Transport) -> (Client, String) {
    let mut owner = stack.connect(transport, "alice").await.unwrap();
    let session_id = owner.open(Open::default()).await.unwrap().session.unwrap().session_id;
    owner.caught_up().await.unwrap();
    owner.say("mine", "hello").await.unwrap();
    owner.reply().await.unwrap();
    settled(&mut owner).await;
    (owner, session_id)
}

/// Reads everything that has been sent to this client: an answer comes after what was queued before it.
async fn settled(client: &mut Client) {
    let answer = client.request(Frame::Read(Read { seq: 0 })).await.unwrap();
    assert!(matches!(answer, Answer::Ack(_)), "{answer:?}");
}

/// Whether nothing has come since, but the answer to the question itself and what comes by the clock.
async fn assert_unaware(owner: &mut Client) {
    let before = owner.seen.len();
    settled(owner).await;
    let unasked = |event: &&Event| !matches!(event, Event::Heartbeat(_) | Event::Ack(_));
    let came: Vec<_> = owner.seen[before..].iter().filter(unasked).collect();
    assert!(came.is_empty(), "the owner received {came:?}");
}

/// What a call says about a session, as far as a caller can tell: code, text, details, and every error event.
async fn said(stack: &Stack, path: &str, token: &str, message: Bytes) -> (Code, String, Vec<Bytes>) {
    let channel = grpc::channel(stack.addresses().grpc).unwrap();
    let answered = call(&channel, path, bearer(token).unwrap(), vec![message]).await.unwrap();
    let mut seen = vec![Bytes::copy_from_slice(answered.status.details())];
    seen.extend(answered.messages);
    (answered.status.code(), answered.status.message().to_owned(), seen)
}

#[tokio::test]
async fn every_call_answers_alike_for_foreign_and_unknown_sessions() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let (mut owner, foreign) = owner(&stack, Transport::Socket(Encoding::Json)).await;
    let mallory = stack.token("mallory", "user").unwrap();
    let mut covered = 0;
    for method in contract::methods().unwrap() {
        let Some(about_foreign) = method.request_for(&foreign) else { continue };
        let about_unknown = method.request_for(UNKNOWN).unwrap();
        let answer = said(&stack, &method.path, &mallory, about_foreign).await;
        assert_eq!(answer, said(&stack, &method.path, &mallory, about_unknown).await, "{}", method.path);
        let expected = match method.name() {
            _ if method.is_admin() => Code::PermissionDenied,
            "Chat" => {
                let event = ChatResponse::decode(answer.2[1].clone()).unwrap().event;
                let is_not_found = matches!(&event, Some(Event::Error(e)) if e.code() == ErrorCode::NotFound);
                assert!(is_not_found && answer.2.len() == 2, "{event:?}");
                Code::Ok
            }
            name if LATER.contains(&name) => Code::Unimplemented,
            _ => Code::NotFound,
        };
        assert_eq!(answer.0, expected, "{}: {}", method.path, answer.1);
        assert_unaware(&mut owner).await;
        covered += 1;
    }
    assert!(covered >= 14, "only {covered} calls name a session");
    owner.say("still", "here").await.unwrap();
    owner.reply().await.unwrap();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn every_route_answers_alike_for_foreign_and_unknown_sessions() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let (mut owner, foreign) = owner(&stack, Transport::Socket(Encoding::Proto)).await;
    let mallory = stack.http("mallory").unwrap();
    let routes = [
        (Method::GET, "", None, 404),
        (Method::PATCH, "", Some("{\"name\":\"mine now\"}"), 404),
        (Method::DELETE, "", None, 404),
        (Method::POST, "/end", Some("{}"), 404),
        (Method::POST, "/reopen", Some("{}"), 404),
        (Method::POST, "/shares", Some("{}"), 404),
        (Method::GET, "/shares", None, 404),
        (Method::POST, "/shares/0193e3a8-7c1b-7d3e-8f4a-2b6c9d0e1f23/revoke", Some("{}"), 404),
        (Method::GET, "/messages", None, 404),
    ];
    for (method, rest, body, status) in routes {
        let ask = |id: &str| {
            let path = format!("/api/v1/sessions/{id}{rest}");
            let (http, method, body): (Http, _, _) = (mallory.clone(), method.clone(), body.map(str::to_owned));
            async move { http.send(method, &path, body).await.unwrap() }
        };
        let (about_foreign, about_unknown) = (ask(&foreign).await, ask(UNKNOWN).await);
        assert_eq!(about_foreign.status, status, "{method} {rest}: {}", about_foreign.text());
        assert_eq!((about_foreign.status, about_foreign.text()), (about_unknown.status, about_unknown.text()));
        assert_unaware(&mut owner).await;
    }
    stack.shutdown().await.unwrap();
}

/// Every frame that can name something of another session's, or act on one.
fn frames(foreign_message: &str) -> Vec<(&'static str, Frame)> {
    let message_id = foreign_message.to_owned();
    let send = Send { client_message_id: "x".to_owned(), text: "intruder".to_owned(), file_ids: Vec::new() };
    vec![
        ("open", Frame::Open(Open { session_id: UNKNOWN.to_owned(), ..Open::default() })),
        ("send", Frame::Send(send)),
        ("stop", Frame::Stop(Stop { message_id: message_id.clone() })),
        ("regenerate", Frame::Regenerate(chatbox_proto::v1::chat_request::Regenerate { message_id })),
        ("selectModel", Frame::SelectModel(chatbox_proto::v1::chat_request::SelectModel { model: "demo".to_owned() })),
        ("requestHelp", Frame::RequestHelp(chatbox_proto::v1::chat_request::RequestHelp { reason: String::new() })),
        ("typing", Frame::Typing(Typing { active: true })),
        ("read", Frame::Read(Read { seq: 1 })),
        ("refreshToken", Frame::RefreshToken(chatbox_proto::v1::chat_request::RefreshToken { token: "x".to_owned() })),
        ("detach", Frame::Detach(Detach {})),
        ("endSession", Frame::EndSession(chatbox_proto::v1::chat_request::EndSession {})),
    ]
}

#[tokio::test]
async fn no_frame_reaches_a_foreign_session_on_any_transport() {
    let provider = Provider::start().await.unwrap();
    let patient = |setup: &mut Setup| {
        for provider in setup.core.providers.values_mut() {
            (provider.first_byte_timeout, provider.chunk_timeout) = (LIMIT, LIMIT);
        }
    };
    let setup = Setup::new().unwrap().with_models(&provider, &["scripted"]).with(patient);
    let stack = Stack::start(setup).await.unwrap();
    provider.script("scripted", Script::reply(["fine"]));
    let (mut owner, foreign) = owner(&stack, Transport::Grpc).await;
    // The owner waits for a reply that the others would like to stop.
    let gate = Gate::new();
    provider.script("scripted", Script::stream().delta("begun").gate(&gate).delta(", and done").finish("stop").done());
    owner.say("running", "go on").await.unwrap();
    let is_delta = |event: &Event| match event {
        Event::ReplyDelta(delta) => Some(delta.message_id.clone()),
        _ => None,
    };
    let running = owner.until("the first piece", is_delta).await.unwrap();
    settled(&mut owner).await;

    let names: Vec<_> = frames("").into_iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(contract::client_frames().unwrap(), names, "the contract has other frames than this scenario");
    for transport in Transport::ALL {
        for (name, frame) in frames(&running) {
            // Refused at the door, then every frame on a stream that was never attached to the foreign session.
            let mut mallory = stack.connect(transport, "mallory").await.unwrap();
            let mut open = Open { session_id: foreign.clone(), ..Open::default() };
            let Ok(Answer::Error(refused)) = mallory.request(Frame::Open(open.clone())).await else {
                panic!("{transport:?} opened a foreign session");
            };
            open.session_id = UNKNOWN.to_owned();
            let mut other = stack.connect(transport, "mallory").await.unwrap();
            let Ok(Answer::Error(unknown)) = other.request(Frame::Open(open)).await else { panic!("{transport:?}") };
            assert_eq!(refused, unknown);
            assert_eq!(refused.code(), ErrorCode::NotFound);
            // The stream may have ended with the refusal: then the frame does not leave.
            let _ = mallory.send(frame).await;
            assert_unaware(&mut owner).await;
            drop((name, mallory, other));
        }
        // From a session of their own: the id of a foreign reply is as unknown as any.
        let mut mallory = stack.connect(transport, "mallory").await.unwrap();
        mallory.open(Open::default()).await.unwrap();
        mallory.caught_up().await.unwrap();
        let mut answers = Vec::new();
        for message_id in [running.clone(), UNKNOWN.to_owned()] {
            answers.push(match mallory.request(Frame::Stop(Stop { message_id })).await.unwrap() {
                Answer::Ack(mut ack) => {
                    (ack.request_id, ack.message_id) = Default::default();
                    Answer::Ack(ack)
                }
                Answer::Error(mut error) => {
                    error.request_id.clear();
                    Answer::Error(error)
                }
            });
        }
        assert_eq!(answers[0], answers[1], "{transport:?}");
        assert_unaware(&mut owner).await;
    }
    gate.open();
    let reply = owner.reply_of(&running).await.unwrap();
    assert_eq!((reply.streamed.as_str(), reply.finished.text.as_str()), ("begun, and done", "begun, and done"));
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn identity_comes_from_the_token_and_from_no_metadata() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let (mut owner, foreign) = owner(&stack, Transport::Grpc).await;
    let channel = grpc::channel(stack.addresses().grpc).unwrap();
    let method = contract::methods().unwrap().into_iter().find(|m| m.name() == "GetSession").unwrap();
    let names = ["user-id", "x-user-id", "x-chatbox-user", "x-forwarded-user", "x-chatbox-roles", "sub"];
    for token in [None, Some(stack.token("mallory", "user").unwrap())] {
        let expected = if token.is_none() { Code::Unauthenticated } else { Code::NotFound };
        let mut metadata = token.map(|token| bearer(&token).unwrap()).unwrap_or_default();
        for name in names {
            metadata.insert(name, "alice".parse().unwrap());
        }
        let request = method.request_for(&foreign).unwrap();
        let answered = call(&channel, &method.path, metadata, vec![request]).await.unwrap();
        assert_eq!(answered.status.code(), expected, "{:?}", answered.status);
        error_info(&answered.status).unwrap();
    }
    assert_unaware(&mut owner).await;
    stack.shutdown().await.unwrap();
}

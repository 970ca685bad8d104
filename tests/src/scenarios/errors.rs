//! Every failed call carries google.rpc details with exactly one `ErrorInfo`: every call of the contract, whatever is wrong
//! with it, and calls that there are not.

use bytes::Bytes;
use chatbox_proto::v1::{ChatResponse, chat_response::Event};
use prost::Message as _;
use tonic::{Code, metadata::MetadataMap};

use crate::harness::{
    contract::{self, Answered, bearer, call, error_info},
    grpc,
    stack::{Setup, Stack},
    wait::LIMIT,
};

/// More than one request may have (1 MiB), less than what fills a window.
const OVERSIZE: usize = 5 << 20;

/// Wire type 7 does not exist.
const GARBAGE: &[u8] = &[0xff, 0xff, 0xff];

fn assert_typed(path: &str, what: &str, answered: &Answered) {
    if answered.status.code() == Code::Ok {
        return;
    }
    if let Err(error) = error_info(&answered.status) {
        panic!("{path} with {what}: {error:#}");
    }
}

/// Whether the answer is an error event on a stream that ended well.
fn error_event(answered: &Answered) -> bool {
    let is_error = |message: &Bytes| {
        let event = ChatResponse::decode(message.clone()).ok().and_then(|response| response.event);
        matches!(event, Some(Event::Error(_)))
    };
    answered.messages.iter().any(is_error)
}

#[tokio::test]
async fn every_failed_call_has_exactly_one_error_info() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let channel = grpc::channel(stack.addresses().grpc).unwrap();
    for method in contract::methods().unwrap() {
        let path = method.path.as_str();
        let nobody = call(&channel, path, MetadataMap::new(), vec![Bytes::new()]).await.unwrap();
        assert_eq!(nobody.status.code(), Code::Unauthenticated, "{path}");
        assert_typed(path, "no token", &nobody);
        for role in ["user", "admin", "chat_admin", "service", "unheard-of"] {
            let metadata = bearer(&stack.token("caller", role).unwrap()).unwrap();
            for (what, messages) in [
                ("nothing", vec![]),
                ("an empty message", vec![Bytes::new()]),
                ("garbage", vec![Bytes::from_static(GARBAGE)]),
                ("a truncated field", vec![Bytes::from_static(&[0x0a, 0x7f, b'x'])]),
                ("a session id that is none", vec![method.request_for("../etc").unwrap_or_default()]),
            ] {
                let answered = call(&channel, path, metadata.clone(), messages).await.unwrap();
                assert_typed(path, &format!("{what} as {role}"), &answered);
                let refused = answered.status.code() != Code::Ok || error_event(&answered);
                let is_bad = what == "garbage" || what == "a truncated field";
                assert!(refused || !is_bad, "{path} took {what} as {role}");
            }
        }
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_message_that_is_too_big_is_refused_and_says_so() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let channel = grpc::channel(stack.addresses().grpc).unwrap();
    for method in contract::methods().unwrap() {
        let role = if method.is_admin() { "admin" } else { "user" };
        let metadata = bearer(&stack.token("caller", role).unwrap()).unwrap();
        let big = vec![Bytes::from(vec![b' '; OVERSIZE])];
        let answered = call(&channel, &method.path, metadata, big).await.unwrap();
        assert_typed(&method.path, "5 MiB", &answered);
        // What is refused by its caller's rights is refused before it is read.
        let early = [Code::PermissionDenied, Code::Unimplemented].contains(&answered.status.code());
        let streams = method.client_streams && method.name() != "Chat";
        assert!(
            answered.status.code() == Code::ResourceExhausted || (early && streams),
            "{}: {:?}",
            method.path,
            answered.status
        );
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn calls_that_there_are_not_are_unimplemented_and_typed() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let channel = grpc::channel(stack.addresses().grpc).unwrap();
    let metadata = bearer(&stack.token("caller", "user").unwrap()).unwrap();
    for path in ["/chatbox.v1.ChatCore/NoSuchCall", "/chatbox.v9.Other/Call", "/x", "/chatbox.v1.ChatCore/"] {
        let answered = call(&channel, path, metadata.clone(), vec![Bytes::new()]).await.unwrap();
        assert_eq!(answered.status.code(), Code::Unimplemented, "{path}");
        assert_typed(path, "a good token", &answered);
    }
    stack.shutdown().await.unwrap();
}

/// What is built of the team's calls.
const ADMIN_BUILT: [&str; 8] =
    ["RotateKeys", "GetSession", "WatchSessions", "TakeOver", "Release", "Reassign", "EndSession", "ListAudit"];

#[tokio::test]
async fn what_is_declared_and_not_built_says_so_with_one_error_info() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let channel = grpc::channel(stack.addresses().grpc).unwrap();
    let built = [
        "Chat",
        "Generate",
        "ListModels",
        "CreateSession",
        "GetSession",
        "ListSessions",
        "ListMessages",
        "UpdateSession",
        "EndSession",
        "ReopenSession",
        "DeleteSession",
        "CreateShare",
        "ListShares",
        "RevokeShare",
        "GetSharedSession",
    ];
    let service = serde_json::json!({"scope": "generate files sessions"});
    for method in contract::methods().unwrap() {
        let built = if method.is_admin() { &ADMIN_BUILT[..] } else { &built };
        if built.contains(&method.name()) {
            continue;
        }
        let role = if method.is_admin() { "admin" } else { "service" };
        let mut claims = crate::harness::token::claims("caller", role);
        claims["scope"] = service["scope"].clone();
        let metadata = bearer(&stack.token_of(&claims).unwrap()).unwrap();
        let answered = call(&channel, &method.path, metadata, vec![Bytes::new()]).await.unwrap();
        assert_eq!(answered.status.code(), Code::Unimplemented, "{}: {:?}", method.path, answered.status);
        assert_eq!(error_info(&answered.status).unwrap().reason, "NOT_IMPLEMENTED", "{}", method.path);
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_deadline_that_passes_is_typed_too() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    // A message that is announced and never comes.
    let begun = tokio_stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(&[0, 0, 0, 0, 9]))]);
    let begun = futures_util::StreamExt::chain(begun, tokio_stream::pending());
    // Not by tonic's client, which keeps the deadline itself and does not wait for the server's word.
    let http = reqwest::Client::builder().http2_prior_knowledge().no_proxy().timeout(LIMIT).build().unwrap();
    let answer = http
        .post(format!("http://{}/chatbox.v1.ChatCore/ListModels", stack.addresses().grpc))
        .bearer_auth(stack.token("alice", "user").unwrap())
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "50m")
        .body(reqwest::Body::wrap_stream(begun));
    let answer = answer.send().await.unwrap();
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(error_info(&status).unwrap().reason, "DEADLINE_EXCEEDED");
    stack.shutdown().await.unwrap();
}

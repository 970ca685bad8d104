//! The conformance suite over chat messages, and what is special to them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::{Dify, DifySettings};
use crate::domain::entry::{FinishReason, Usage};
use crate::llm::conformance::{self, Dialect, MAX_EVENT_BYTES, SECRET, provider_conformance, read};
use crate::llm::http::Access;
use crate::llm::scripted::{Received, STREAM, ScriptedServer, Step};
use crate::llm::{Chunk, Prompt, PromptMessage, PromptRole, Provider, ProviderError};

struct ChatMessages;

fn dify(base_url: &str) -> Dify {
    let access = Access { api_key: Some(SECRET.to_owned()), max_event_bytes: MAX_EVENT_BYTES, ..Access::new(base_url) };
    Dify::new(&DifySettings { access }).expect("settings")
}

fn event(data: impl AsRef<[u8]>) -> Vec<u8> {
    [b"data: ", data.as_ref(), b"\n\n"].concat()
}

fn error(code: &str) -> Vec<u8> {
    event(format!(r#"{{"event":"error","task_id":"t-1","status":500,"code":"{code}","message":"{SECRET}"}}"#))
}

impl Dialect for ChatMessages {
    const USAGE: Usage = Usage { cached_tokens: 0, ..conformance::USAGE };

    fn provider(base_url: &str) -> Arc<dyn Provider> {
        Arc::new(dify(base_url))
    }

    /// Without a task: an answer that breaks off is not stopped, as the suite counts requests.
    fn text(text: &str) -> Vec<u8> {
        event(format!(
            r#"{{"event":"message","conversation_id":"c-1","message_id":"m-1","answer":"{text}","created_at":1}}"#
        ))
    }

    fn keep_alive() -> Vec<u8> {
        b"event: ping\n\n: comment\r\n\r\n".to_vec()
    }

    fn end() -> Vec<u8> {
        event(
            r#"{"event":"message_end","metadata":{"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}}"#,
        )
    }

    fn error() -> Vec<u8> {
        error("internal_server_error")
    }

    fn broken(broken: &[u8]) -> Vec<u8> {
        event(broken)
    }
}

provider_conformance!(ChatMessages);

fn with_task(text: &str) -> Step {
    Step::Data(event(format!(r#"{{"event":"message","task_id":"task-1","answer":"{text}"}}"#)))
}

fn json(request: &Received) -> serde_json::Value {
    serde_json::from_slice(&request.body).expect("JSON")
}

fn stopped() -> Vec<Step> {
    vec![
        Step::Head("200 OK\r\ncontent-type: application/json"),
        Step::Data(br#"{"result":"success"}"#.to_vec()),
        Step::End,
    ]
}

#[tokio::test]
async fn the_request_carries_the_key_and_the_hash_of_the_user() {
    let server = ScriptedServer::start(vec![vec![STREAM, Step::Data(ChatMessages::end()), Step::End]]).await;
    read(&dify(&server.base_url())).await;
    let request = &server.received()[0];
    assert!(request.head.starts_with("post /v1/chat-messages http/1.1\r\n"), "{}", request.head);
    assert!(request.head.lines().any(|line| line == "authorization: bearer sk-secret"), "{}", request.head);
    let body = json(request);
    assert_eq!((&body["user"], &body["response_mode"]), (&"u-1".into(), &"streaming".into()));
    assert_eq!((&body["conversation_id"], &body["inputs"]), (&"".into(), &serde_json::json!({})));
}

#[tokio::test]
async fn an_answer_that_nobody_wants_any_more_is_stopped_once() {
    let server = ScriptedServer::start(vec![vec![STREAM, with_task("Hel"), Step::Hang], stopped()]).await;
    let dify = dify(&server.base_url());
    let mut stream = dify.generate(conformance::prompt()).await.expect("accepted");
    while stream.next().await.expect("open").expect("chunk") != Chunk::Text("Hel".to_owned()) {}
    drop(stream);
    tokio::time::timeout(Duration::from_secs(5), dify.settled()).await.expect("the call ends");
    let received = server.received();
    assert_eq!(received.len(), 2);
    assert!(received[1].head.starts_with("post /v1/chat-messages/task-1/stop http/1.1\r\n"), "{}", received[1].head);
    assert!(received[1].head.contains("authorization: bearer sk-secret"));
    assert_eq!(json(&received[1]), serde_json::json!({"user": "u-1"}));
}

#[tokio::test]
async fn an_answer_that_has_ended_is_not_stopped_and_one_that_broke_is() {
    let whole = vec![STREAM, with_task("Hel"), Step::Data(ChatMessages::end()), Step::End];
    let failed = vec![STREAM, with_task("Hel"), Step::Data(error("invalid_param")), Step::End];
    let server = ScriptedServer::start(vec![whole, failed]).await;
    let dify_there = dify(&server.base_url());
    for _ in 0..2 {
        read(&dify_there).await;
    }
    dify_there.settled().await;
    assert_eq!(server.received().len(), 2);

    let server = ScriptedServer::start(vec![vec![STREAM, with_task("Hel"), Step::End], stopped()]).await;
    let dify_there = dify(&server.base_url());
    assert_eq!(read(&dify_there).await.1, Some(ProviderError::Truncated));
    dify_there.settled().await;
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn a_task_whose_name_is_no_name_is_not_put_into_a_path() {
    let text = event(r#"{"event":"message","task_id":"../../admin","answer":"Hel"}"#);
    let server = ScriptedServer::start(vec![vec![STREAM, Step::Data(text), Step::End]]).await;
    let dify = dify(&server.base_url());
    assert_eq!(read(&dify).await.1, Some(ProviderError::Truncated));
    dify.settled().await;
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn stopping_is_bounded_in_time_and_in_number() {
    let scripts = (0..70).map(|_| vec![STREAM, with_task("Hel"), Step::Hang]).collect::<Vec<_>>();
    let hanging = (0..70).map(|_| vec![Step::Hang]);
    let server = ScriptedServer::start(scripts.into_iter().chain(hanging).collect()).await;
    let dify = dify(&server.base_url());
    let mut streams = Vec::new();
    for _ in 0..70 {
        let mut stream = dify.generate(conformance::prompt()).await.expect("accepted");
        while stream.next().await.expect("open").expect("chunk") != Chunk::Text("Hel".to_owned()) {}
        streams.push(stream);
    }
    let begun = std::time::Instant::now();
    drop(streams);
    tokio::time::timeout(Duration::from_secs(15), dify.settled()).await.expect("the calls end");
    assert!(begun.elapsed() >= Duration::from_secs(4), "they hang until their limit");
    assert_eq!(server.received().len(), 70 + 64);
}

#[tokio::test]
async fn a_conversation_that_is_gone_begins_anew_with_everything_that_was_said() {
    let gone = vec![Step::Head("404 Not Found"), Step::Data(br#"{"code":"not_found"}"#.to_vec()), Step::End];
    let good = || vec![STREAM, Step::Data(ChatMessages::text("Hi")), Step::Data(ChatMessages::end()), Step::End];
    let server = ScriptedServer::start(vec![good(), gone, good()]).await;
    let dify = dify(&server.base_url());
    let message = |role, text: &str| PromptMessage { role, text: text.to_owned() };
    let prompt = Prompt {
        messages: vec![
            message(PromptRole::User, "one"),
            message(PromptRole::Assistant, "two"),
            message(PromptRole::User, "three"),
        ],
        user_hash: "u-1".to_owned(),
        conversation: Some("c-1".to_owned()),
        ..Prompt::default()
    };
    for _ in 0..2 {
        let chunks: Vec<_> = dify.generate(prompt.clone()).await.expect("accepted").collect().await;
        assert!(chunks.contains(&Ok(Chunk::Conversation("c-1".to_owned()))));
        assert_eq!(chunks.last(), Some(&Ok(Chunk::Finished(FinishReason::Stop))));
    }
    let asked: Vec<_> = server.received().iter().map(json).collect();
    assert_eq!((&asked[0]["conversation_id"], &asked[0]["query"]), (&"c-1".into(), &"three".into()));
    let all = "User: one\n\nAssistant: two\n\nUser: three";
    assert_eq!((&asked[2]["conversation_id"], &asked[2]["query"]), (&"".into(), &all.into()));
}

#[test]
fn no_secret_is_in_debug_output() {
    let shown = format!("{:?}", dify("http://127.0.0.1:1/v1"));
    assert!(!shown.contains(SECRET), "{shown}");
}

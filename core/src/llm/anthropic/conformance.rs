//! The conformance suite over the Messages API, and what is special to it.

use std::sync::Arc;

use super::{Anthropic, AnthropicSettings};
use crate::domain::entry::FinishReason;
use crate::llm::conformance::{Dialect, MAX_EVENT_BYTES, SECRET, provider_conformance, read};
use crate::llm::guard::{Guard, GuardLimits};
use crate::llm::http::Access;
use crate::llm::scripted::{ScriptedServer, Step};
use crate::llm::{Chunk, Provider, ProviderError};

struct Messages;

fn settings(base_url: &str) -> AnthropicSettings {
    let access = Access { api_key: Some(SECRET.to_owned()), max_event_bytes: MAX_EVENT_BYTES, ..Access::new(base_url) };
    AnthropicSettings { access, send_user: true }
}

fn event(name: &str, data: impl AsRef<[u8]>) -> Vec<u8> {
    [b"event: ", name.as_bytes(), b"\ndata: ", data.as_ref(), b"\n\n"].concat()
}

fn error(kind: &str) -> Vec<u8> {
    event("error", format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"{SECRET}"}}}}"#))
}

impl Dialect for Messages {
    const HEAD: Step = Step::Head("200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nrequest-id: req-7");

    fn provider(base_url: &str) -> Arc<dyn Provider> {
        Arc::new(Anthropic::new(&settings(base_url)).expect("settings"))
    }

    fn text(text: &str) -> Vec<u8> {
        let data =
            format!(r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{text}"}}}}"#);
        event("content_block_delta", data)
    }

    fn keep_alive() -> Vec<u8> {
        [event("ping", r#"{"type": "ping"}"#), b": comment\r\n\r\n".to_vec()].concat()
    }

    fn end() -> Vec<u8> {
        let start = r#"{"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":3,"cache_creation_input_tokens":2,"cache_read_input_tokens":4,"output_tokens":1}}}"#;
        let delta = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}"#;
        [
            event("message_start", start),
            event("content_block_stop", r#"{"type":"content_block_stop","index":0}"#),
            event("message_delta", delta),
            event("message_stop", r#"{"type":"message_stop"}"#),
        ]
        .concat()
    }

    fn error() -> Vec<u8> {
        error("api_error")
    }

    fn broken(broken: &[u8]) -> Vec<u8> {
        event("content_block_delta", broken)
    }
}

provider_conformance!(Messages);

#[tokio::test]
async fn the_request_carries_key_and_version_and_no_bearer_token() {
    let server = ScriptedServer::start(vec![vec![Messages::HEAD, Step::Data(Messages::end()), Step::End]]).await;
    read(&*Messages::provider(&server.base_url())).await;
    let request = &server.received()[0];
    assert!(request.head.starts_with("post /v1/messages http/1.1\r\n"), "{}", request.head);
    for header in ["x-api-key: sk-secret", "anthropic-version: 2023-06-01", "accept: text/event-stream"] {
        assert!(request.head.lines().any(|line| line == header), "{header} in {}", request.head);
    }
    assert!(!request.head.contains("authorization"), "{}", request.head);
    let body: serde_json::Value = serde_json::from_slice(&request.body).expect("JSON");
    assert_eq!((&body["model"], &body["max_tokens"], &body["stream"]), (&"m-1".into(), &4000.into(), &true.into()));
    assert_eq!(body["metadata"]["user_id"], "u-1");
}

#[tokio::test]
async fn an_overloaded_service_is_asked_again_before_the_first_text_only() {
    let quick = GuardLimits { backoff: std::time::Duration::from_millis(1), ..GuardLimits::default() };
    let overloaded = || Step::Data(error("overloaded_error"));
    let good = || vec![Messages::HEAD, Step::Data(Messages::text("Hi")), Step::Data(Messages::end()), Step::End];
    let refused = vec![Step::Head("529 Overloaded"), Step::Data(SECRET.as_bytes().to_vec()), Step::End];
    let server = ScriptedServer::start(vec![refused, vec![Messages::HEAD, overloaded(), Step::End], good()]).await;
    let (chunks, error) = read(&Guard::new(Messages::provider(&server.base_url()), quick.clone())).await;
    assert_eq!((chunks.last(), error), (Some(&Chunk::Finished(FinishReason::Stop)), None));
    assert_eq!(server.received().len(), 3);

    let late = vec![Messages::HEAD, Step::Data(Messages::text("Hi")), overloaded(), Step::End];
    let server = ScriptedServer::start(vec![late, good()]).await;
    let (_, error) = read(&Guard::new(Messages::provider(&server.base_url()), quick)).await;
    assert_eq!(error, Some(ProviderError::Overloaded("overloaded_error")));
    assert_eq!(server.received().len(), 1);
}

#[test]
fn no_secret_is_in_debug_output() {
    let settings = settings("http://127.0.0.1:1/v1");
    let shown = format!("{settings:?} {:?}", Anthropic::new(&settings).expect("settings"));
    assert!(!shown.contains(SECRET), "{shown}");
}

//! The Messages API as servers speak it that we did not write: llama.cpp with a real model, and llmock with its faults.

use std::time::Duration;

use chatbox_core::config::{ModelConfig, ProviderConfig, ProviderKind};
use chatbox_proto::v1::{FinishReason, chat_request::Open};
use serde_json::json;

use super::routing::{add, ask, model, settled};
use crate::harness::{
    client::Transport,
    history,
    llama::Llama,
    llmock::Llmock,
    stack::{Setup, Stack},
    wait::LIMIT,
};

fn anthropic(base_url: String, silence: Duration) -> ProviderConfig {
    ProviderConfig {
        kind: ProviderKind::Anthropic,
        base_url,
        first_byte_timeout: silence,
        chunk_timeout: silence,
        backoff: Duration::from_millis(20),
        ..ProviderConfig::default()
    }
}

#[tokio::test]
async fn heavy_a_real_model_answers_in_the_words_of_anthropic() {
    let llama = Llama::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    let model = ModelConfig {
        context_tokens: 2_048,
        max_output_tokens: 24,
        system_prompt: "You are kind.".to_owned(),
        ..model("smollm2")
    };
    add(&mut setup, anthropic(llama.base_url(), 3 * LIMIT), model);
    let stack = Stack::start(setup).await.unwrap();
    let mut client = stack.connect(Transport::ALL[0], "alice").await.unwrap();
    let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
    for (id, question) in [("c1", "Say hello in one short sentence."), ("c2", "And once more.")] {
        client.say(id, question).await.unwrap();
        let reply = client.reply().await.unwrap();
        let finish = reply.finished.finish_reason();
        assert!(matches!(finish, FinishReason::Stop | FinishReason::Length), "{reply:?}");
        assert!(!reply.streamed.trim().is_empty());
        assert_eq!(reply.streamed, reply.finished.text);
        let usage = reply.finished.usage.unwrap();
        assert!(
            usage.prompt_tokens > 5 && (1..=24).contains(&usage.completion_tokens) && !usage.estimated,
            "{usage:?}"
        );
        assert!(usage.cached_tokens <= usage.prompt_tokens, "{usage:?}");
    }
    let (mut core, http) = (stack.core("alice").unwrap(), stack.http("alice").unwrap());
    assert_eq!(history::agreed(&mut core, &http, &session_id).await.unwrap().len(), 4);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_faults_of_a_server_that_we_did_not_write_are_typed_outcomes() {
    use FinishReason::{ProviderError, Stop, Timeout};
    let llmock = Llmock::start().await.unwrap();
    let base_url = llmock.base_url().replace("/v1", "/anthropic/v1");
    let mut setup = Setup::new().unwrap();
    add(&mut setup, anthropic(base_url.clone(), LIMIT), model("patient"));
    add(&mut setup, anthropic(base_url, Duration::from_millis(500)), model("quick"));
    let stack = Stack::start(setup).await.unwrap();
    let breaks = |kind: &str| json!({"type": "stream_fault", "kind": kind, "after_chunks": 4, "stall_seconds": 60});
    let cases = [
        ("disconnect", "patient", breaks("disconnect"), ProviderError, true),
        ("truncate", "patient", breaks("truncate"), ProviderError, true),
        ("stall", "quick", breaks("stall"), Timeout, true),
        ("400", "patient", json!({"type": "fail", "status": 400, "message": "boom"}), ProviderError, false),
        ("429", "patient", json!({"type": "fail", "status": 429, "retry_after": 1}), Stop, true),
        ("529", "patient", json!({"type": "fail", "status": 529, "message": "boom"}), Stop, true),
    ];
    for (name, model, behaviour, finish, has_text) in cases {
        llmock.scenario(&json!({"behaviors": [behaviour]})).await.unwrap();
        let (mut client, session_id) = ask(&stack, Transport::Grpc, name, model).await;
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.finished.finish_reason(), finish, "{name}");
        assert_eq!(reply.finished.text.is_empty(), !has_text, "{name}");
        assert_eq!(reply.streamed, reply.finished.text, "{name}");
        settled(&stack, &mut client, name, &session_id).await;
        if name == "429" {
            let verdict = llmock.verdict().await.unwrap();
            assert!(verdict.contains("PASS"), "{name}: {verdict}");
        }
    }
    stack.shutdown().await.unwrap();
}

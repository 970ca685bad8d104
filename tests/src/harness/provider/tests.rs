use std::time::Duration;

use serde_json::json;

use super::*;
use crate::harness::{gate::Gate, http::client};

async fn ask(provider: &Provider, model: &str, text: &str) -> reqwest::Result<reqwest::Response> {
    let body = json!({"model": model, "stream": true, "messages": [{"role": "user", "content": text}]}).to_string();
    client().post(format!("{}/chat/completions", provider.base_url())).body(body).send().await
}

#[tokio::test]
async fn without_a_script_it_answers_what_it_was_asked_and_remembers_it() {
    let provider = Provider::start().await.unwrap();
    let body = ask(&provider, "any", "héllo").await.unwrap().text().await.unwrap();
    assert!(body.contains("You said: héllo") && body.ends_with("data: [DONE]\n\n"), "{body}");
    let requests = provider.wait_requests(1).await.unwrap();
    assert_eq!(requests[0].messages(), [("user".to_owned(), "héllo".to_owned())]);
    assert_eq!(requests[0].path, "/v1/chat/completions");
}

#[tokio::test]
async fn scripts_of_a_model_are_followed_in_order() {
    let provider = Provider::start().await.unwrap();
    provider.script("m", Script::too_many_requests(Duration::from_secs(2)));
    provider.script("m", Script::reply(["one ", "two"]));
    let refused = ask(&provider, "m", "x").await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, "2"));
    let body = ask(&provider, "m", "x").await.unwrap().text().await.unwrap();
    for part in [r#""content":"one ""#, r#""content":"two""#, r#""finish_reason":"stop""#, r#""prompt_tokens":7"#] {
        assert!(body.contains(part), "{part} in {body}");
    }
}

#[tokio::test]
async fn a_gate_holds_the_stream_until_it_is_opened() {
    let provider = Provider::start().await.unwrap();
    let gate = Gate::new();
    provider.script("m", Script::stream().delta("first").gate(&gate).delta("second").done());
    let mut response = ask(&provider, "m", "x").await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("first"));
    gate.reached().await;
    gate.open();
    assert!(response.text().await.unwrap().contains("second"));
}

#[tokio::test]
async fn a_client_that_leaves_a_silent_provider_is_noticed() {
    let provider = Provider::start().await.unwrap();
    provider.script("before", Script::stream().hang_before_head());
    provider.script("middle", Script::stream().delta("a").hang());
    {
        let mut silent = Box::pin(ask(&provider, "before", "x"));
        tokio::select! {
            _ = &mut silent => panic!("it answered"),
            requests = provider.wait_requests(1) => assert_eq!(requests.unwrap().len(), 1),
        }
    }
    provider.wait_left(1).await.unwrap();
    let mut response = ask(&provider, "middle", "x").await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    provider.wait_left(2).await.unwrap();
}

#[tokio::test]
async fn resets_and_truncation_are_errors_to_the_client() {
    let provider = Provider::start().await.unwrap();
    provider.script("m", Script::stream().reset_before_head());
    assert!(ask(&provider, "m", "x").await.is_err());
    for broken in [Script::stream().delta("a").reset(), Script::stream().delta("a").truncate()] {
        provider.script("m", broken);
        assert!(ask(&provider, "m", "x").await.unwrap().bytes().await.is_err());
    }
}

#[tokio::test]
async fn garbage_is_sent_as_it_is() {
    let provider = Provider::start().await.unwrap();
    provider
        .script("m", Script::stream().bad_json().null_choices().invalid_utf8().error_event("boom").huge_line(100_000));
    let body = ask(&provider, "m", "x").await.unwrap().bytes().await.unwrap();
    assert!(std::str::from_utf8(&body).is_err());
    let text = String::from_utf8_lossy(&body);
    assert!(text.contains(r#""choices":null"#) && text.contains(r#""message":"boom""#) && body.len() > 100_000);
}

#[tokio::test]
async fn the_same_script_is_told_in_the_words_of_each_service() {
    let provider = Provider::start().await.unwrap();
    provider.always("m", Script::reply(["one"]));
    let ask = |url: String, body: serde_json::Value| async move {
        client().post(url).body(body.to_string()).send().await.unwrap().text().await.unwrap()
    };
    let messages = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
    let body = ask(format!("{}/messages", provider.base_url()), messages).await;
    for part in ["event: message_start", r#""text_delta""#, r#""stop_reason":"end_turn""#, r#""output_tokens":3"#] {
        assert!(body.contains(part), "{part} in {body}");
    }
    assert!(body.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"), "{body}");
    let body = ask(format!("{}/chat-messages", provider.dify_url("m")), json!({"query": "x"})).await;
    for part in [r#""answer":"one""#, r#""task_id":"task-2""#, r#""event":"message_end""#, r#""prompt_tokens":7"#] {
        assert!(body.contains(part), "{part} in {body}");
    }
    ask(format!("{}/chat-messages/task-2/stop", provider.dify_url("m")), json!({"user": "u"})).await;
    assert_eq!(provider.wait_stops(1).await.unwrap()[0].path, "/m/v1/chat-messages/task-2/stop");
    assert_eq!(provider.requests().len(), 2, "a stop is no question");
}

//! Whatever a provider does, each message is answered by one reply with one typed outcome, and partial text is kept.

use std::time::Duration;

use chatbox_proto::v1::{FinishReason, chat_request::Open};

use crate::harness::{
    client::Transport,
    history,
    provider::{Provider, Script},
    stack::{Setup, Stack},
};

/// Larger than what core takes as one event.
const HUGE_LINE: usize = 2 << 20;

/// A name, what the provider does, and what must come of it: the outcome and the text.
fn faults() -> Vec<(&'static str, Script, FinishReason, &'static str)> {
    let partial = || Script::stream().delta("so far ").delta("so good");
    vec![
        ("hang-before-head", Script::stream().hang_before_head(), FinishReason::Timeout, ""),
        ("hang-mid-stream", partial().hang(), FinishReason::Timeout, "so far so good"),
        ("reset-before-head", Script::stream().reset_before_head(), FinishReason::ProviderError, ""),
        ("reset-mid-stream", partial().reset(), FinishReason::ProviderError, "so far so good"),
        ("truncation", partial().truncate(), FinishReason::ProviderError, "so far so good"),
        ("end-without-mark", partial(), FinishReason::ProviderError, "so far so good"),
        ("bad-json", partial().bad_json().hang(), FinishReason::ProviderError, "so far so good"),
        ("invalid-utf8", partial().invalid_utf8().hang(), FinishReason::ProviderError, "so far so good"),
        ("huge-line", partial().huge_line(HUGE_LINE).hang(), FinishReason::ProviderError, "so far so good"),
        ("error-event", partial().error_event("boom").done(), FinishReason::ProviderError, "so far so good"),
        ("server-error", Script::status(500, &serde_json::json!({})), FinishReason::ProviderError, ""),
        ("bad-request", Script::status(400, &serde_json::json!({})), FinishReason::ProviderError, ""),
        ("busy-for-long", Script::too_many_requests(Duration::from_secs(3_600)), FinishReason::ProviderError, ""),
        ("null-choices", partial().null_choices().finish("stop").done(), FinishReason::Stop, "so far so good"),
        ("length", partial().finish("length").done(), FinishReason::Length, "so far so good"),
        ("filtered", partial().finish("content_filter").done(), FinishReason::Filtered, "so far so good"),
    ]
}

async fn each_fault_has_its_outcome(transport: Transport) {
    let provider = Provider::start().await.unwrap();
    let faults = faults();
    let models: Vec<&str> = faults.iter().map(|(name, ..)| *name).collect();
    let stack = Stack::start(Setup::new().unwrap().with_models(&provider, &models)).await.unwrap();
    for (name, script, outcome, text) in faults {
        provider.always(name, script);
        let mut client = stack.connect(transport, name).await.unwrap();
        let opened = client.open(Open { model: name.to_owned(), ..Open::default() }).await.unwrap();
        let ack = client.say("c1", "hello").await.unwrap();
        let reply = client.reply().await.unwrap();
        assert_eq!((reply.finished.finish_reason(), reply.finished.text.as_str()), (outcome, text), "{name}");
        assert_eq!(reply.streamed, text, "{name}");
        let session_id = opened.session.unwrap().session_id;
        let (mut core, http) = (stack.core(name).unwrap(), stack.http(name).unwrap());
        let messages = history::agreed(&mut core, &http, &session_id).await.unwrap();
        assert_eq!(messages.len(), 2, "{name}: {messages:#?}");
        assert_eq!(messages[1].reply.as_ref().unwrap().answers, [ack.message_id], "{name}");
        assert_eq!(messages[1].text, text, "{name}");
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn each_fault_of_a_provider_has_its_outcome_on_a_socket() {
    each_fault_has_its_outcome(Transport::ALL[0]).await;
}

#[tokio::test]
async fn each_fault_of_a_provider_has_its_outcome_on_grpc() {
    each_fault_has_its_outcome(Transport::Grpc).await;
}

#[tokio::test]
async fn a_short_retry_after_is_waited_for_and_then_it_is_tried_again() {
    let provider = Provider::start().await.unwrap();
    provider.script("m", Script::too_many_requests(Duration::from_secs(1)));
    provider.script("m", Script::reply(["now"]));
    let stack = Stack::start(Setup::new().unwrap().with_models(&provider, &["m"])).await.unwrap();
    let mut client = stack.connect(Transport::Grpc, "alice").await.unwrap();
    client.open(Open::default()).await.unwrap();
    let asked = std::time::Instant::now();
    client.say("c1", "hello").await.unwrap();
    let reply = client.reply().await.unwrap();
    assert_eq!((reply.finished.finish_reason(), reply.finished.text.as_str()), (FinishReason::Stop, "now"));
    assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(provider.requests().len(), 2);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_reply_goes_on_without_its_socket_and_a_stop_reaches_the_provider() {
    let provider = Provider::start().await.unwrap();
    provider.script("m", Script::stream().delta("first ").hang());
    let mut setup = Setup::new().unwrap().with_models(&provider, &["m"]);
    for settings in setup.core.providers.values_mut() {
        settings.chunk_timeout = Duration::from_secs(60);
    }
    let stack = Stack::start(setup).await.unwrap();
    let mut first = stack.connect(Transport::ALL[0], "alice").await.unwrap();
    let session_id = first.open(Open::default()).await.unwrap().session.unwrap().session_id;
    first.say("c1", "hello").await.unwrap();
    provider.wait_requests(1).await.unwrap();
    drop(first);

    let mut second = stack.connect(Transport::Grpc, "alice").await.unwrap();
    second.open(Open { session_id, after_seq: Some(0), ..Open::default() }).await.unwrap();
    let message_id = second
        .until("the running reply", |event| match event {
            chatbox_proto::v1::chat_response::Event::ReplySnapshot(shot) => Some(shot.message_id.clone()),
            chatbox_proto::v1::chat_response::Event::ReplyDelta(delta) => Some(delta.message_id.clone()),
            _ => None,
        })
        .await
        .unwrap();
    let stop = chatbox_proto::v1::chat_request::Stop { message_id };
    second.send(chatbox_proto::v1::chat_request::Frame::Stop(stop)).await.unwrap();
    let reply = second.reply().await.unwrap();
    assert_eq!(reply.finished.finish_reason(), FinishReason::Cancelled);
    assert_eq!((reply.finished.text.as_str(), reply.streamed.as_str()), ("first ", "first "));
    provider.wait_left(1).await.unwrap();
    stack.shutdown().await.unwrap();
}

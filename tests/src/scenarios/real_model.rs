//! A real model behind llama.cpp's own server: what is stored is what was streamed.

use std::time::Duration;

use chatbox_proto::v1::{FinishReason, chat_request::Open};

use crate::harness::{
    client::Transport,
    history,
    llama::Llama,
    stack::{Setup, Stack},
};

#[tokio::test]
async fn heavy_a_real_model_answers_and_its_text_is_stored_as_it_was_streamed() {
    let llama = Llama::start().await.unwrap();
    let mut setup = Setup::new().unwrap().with_server(&llama.base_url(), &["smollm2"]);
    for settings in setup.core.providers.values_mut() {
        (settings.first_byte_timeout, settings.chunk_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
    }
    for model in &mut setup.core.models {
        (model.context_tokens, model.max_output_tokens) = (2_048, 24);
    }
    let stack = Stack::start(setup).await.unwrap();
    let mut client = stack.connect(Transport::ALL[0], "alice").await.unwrap();
    let opened = client.open(Open::default()).await.unwrap();
    client.say("c1", "Say hello in one short sentence.").await.unwrap();
    let reply = client.reply().await.unwrap();
    assert!(matches!(reply.finished.finish_reason(), FinishReason::Stop | FinishReason::Length), "{reply:?}");
    assert!(!reply.streamed.trim().is_empty());
    assert_eq!(reply.streamed, reply.finished.text);
    let usage = reply.finished.usage.unwrap();
    assert!(usage.prompt_tokens > 0 && usage.completion_tokens > 0 && !usage.estimated, "{usage:?}");
    let session_id = opened.session.unwrap().session_id;
    let (mut core, http) = (stack.core("alice").unwrap(), stack.http("alice").unwrap());
    let messages = history::agreed(&mut core, &http, &session_id).await.unwrap();
    assert_eq!(messages[1].text, reply.streamed);
    stack.shutdown().await.unwrap();
}

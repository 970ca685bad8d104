//! Whatever a provider does, in whichever dialect: one typed outcome, the text so far is kept, what it told about usage is
//! stored to the token.

use std::time::Duration;

use chatbox_core::config::ProviderConfig;
use chatbox_proto::{
    settings::ByteSize,
    v1::{FinishReason, chat_response::Event},
};
use futures_util::future::join_all;
use serde_json::json;

use super::routing::{add, ask, model, patient, settled};
use crate::harness::{
    client::Transport,
    gate::Gate,
    provider::{Dialect, Provider, Script},
    stack::{Setup, Stack},
};

/// What the provider says before it fails.
const PART: &str = "pärt ";
/// Sessions of the storm, per dialect.
const SESSIONS: usize = 100;

/// A name, what the provider does, how long it may be silent, and what must come of it.
type Fault = (&'static str, Script, Option<Duration>, FinishReason, &'static str);

/// The gate opens once the client has the text: a reset may overtake what was sent before it.
fn faults(dialect: Dialect, gate: &Gate) -> Vec<Fault> {
    use FinishReason::{Filtered, Length, ProviderError, Stop, Timeout};
    let begun = || Script::stream().delta(PART);
    let status = |code| Script::status(code, &json!({"error": {"message": "timeout"}}));
    let short = Some(Duration::from_millis(300));
    let mut faults = vec![
        ("hang-before-head", Script::stream().hang_before_head(), short, Timeout, ""),
        ("hang-before-text", Script::stream().hang(), short, Timeout, ""),
        ("hang-after-thought", Script::stream().thought("hm").hang(), short, Timeout, ""),
        ("hang-in-text", begun().hang(), short, Timeout, PART),
        ("reset-before-head", Script::stream().reset_before_head(), None, ProviderError, ""),
        ("reset-in-text", begun().gate(gate).reset(), None, ProviderError, PART),
        ("truncated", begun().gate(gate).truncate(), None, ProviderError, PART),
        ("ends-without-mark", begun(), None, ProviderError, PART),
        ("bad-json", begun().bad_json().done(), None, ProviderError, PART),
        ("not-an-object", begun().data("[1]").done(), None, ProviderError, PART),
        ("invalid-utf8", begun().invalid_utf8().done(), None, ProviderError, PART),
        ("huge-line", begun().huge_line(200_000), None, ProviderError, PART),
        ("error-event", begun().error_event("boom").finish("stop").done(), None, ProviderError, PART),
        ("error-event-first", Script::stream().error_event("boom"), None, ProviderError, ""),
        ("overloaded-later", begun().overloaded(), None, ProviderError, PART),
        ("overloaded-first", Script::stream().overloaded(), None, ProviderError, ""),
        ("status-400", status(400), None, ProviderError, ""),
        ("status-401", status(401), None, ProviderError, ""),
        ("status-429", Script::too_many_requests(Duration::ZERO), None, ProviderError, ""),
        ("status-529", status(529), None, ProviderError, ""),
        ("not-a-stream", status(200), None, ProviderError, ""),
        ("filtered", begun().finish("content_filter").usage(7, 3).done(), None, Filtered, PART),
        ("thoughtful", Script::stream().thought("hm").delta(PART).finish("stop").usage(7, 3).done(), None, Stop, PART),
        ("whole", Script::reply([PART]), None, Stop, PART),
    ];
    if dialect != Dialect::Dify {
        // An application does not tell that it stopped at a limit.
        faults.push(("at-its-limit", begun().finish("length").usage(7, 3).done(), None, Length, PART));
    }
    faults
}

async fn ends_once(stack: &Stack, provider: &Provider, dialect: Dialect, index: usize) {
    let gate = Gate::new();
    let (name, script, _, finish, text) = faults(dialect, &gate).swap_remove(index);
    let has_usage = matches!(name, "filtered" | "thoughtful" | "whole" | "at-its-limit");
    for transport in [Transport::ALL[0], Transport::Grpc] {
        provider.script(name, script.clone());
        let user = format!("{name}-{transport:?}");
        let (mut client, session_id) = ask(stack, transport, &user, name).await;
        if !text.is_empty() {
            client.until("text", |event| matches!(event, Event::ReplyDelta(_)).then_some(())).await.unwrap();
        }
        gate.open();
        let reply = client.reply().await.unwrap();
        assert_eq!(
            (reply.finished.finish_reason(), reply.finished.text.as_str()),
            (finish, text),
            "{dialect:?} {name}"
        );
        assert_eq!(reply.streamed, text, "{dialect:?} {name}");
        let usage = reply.finished.usage.unwrap();
        assert_eq!(usage.estimated, !has_usage, "{dialect:?} {name}: {usage:?}");
        if has_usage {
            let cached = if dialect == Dialect::Anthropic { 3 } else { 0 };
            let told = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens);
            assert_eq!(told, (7, 3, cached), "{dialect:?} {name}");
        }
        let stored = settled(stack, &mut client, &user, &session_id).await;
        assert_eq!(stored.len(), 2, "{dialect:?} {name}");
    }
}

async fn each_fault_has_its_outcome(dialect: Dialect) {
    let provider = Provider::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    let all = faults(dialect, &Gate::new());
    for (name, _, silence, ..) in &all {
        let mut config = ProviderConfig { event_bytes: ByteSize::kib(64), ..patient(dialect, &provider, name) };
        if let Some(silence) = silence {
            // Each of them says nothing at all in one of the two.
            let in_text = *name == "hang-in-text" || *name == "hang-after-thought";
            *(if in_text { &mut config.chunk_timeout } else { &mut config.first_byte_timeout }) = *silence;
        }
        add(&mut setup, config, model(name));
    }
    let stack = Stack::start(setup).await.unwrap();
    let (stack_ref, provider_ref) = (&stack, &provider);
    join_all((0..all.len()).map(|index| Box::pin(ends_once(stack_ref, provider_ref, dialect, index)))).await;
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn each_fault_of_anthropic_has_its_outcome() {
    each_fault_has_its_outcome(Dialect::Anthropic).await;
}

#[tokio::test]
async fn each_fault_of_dify_has_its_outcome() {
    each_fault_has_its_outcome(Dialect::Dify).await;
}

#[tokio::test]
async fn each_fault_of_openai_has_its_outcome() {
    each_fault_has_its_outcome(Dialect::OpenAi).await;
}

/// A small generator: the same numbers in every run.
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*state >> 33).unwrap()
}

/// A random answer: good or broken off, after a random number of pieces.
fn answer(state: &mut u64) -> Script {
    let said = (0..next(state) % 20).fold(Script::stream(), |script, n| script.delta(&format!("wörd{n} ")));
    match next(state) % 8 {
        0 => said.reset(),
        1 => said.truncate(),
        2 => said.bad_json(),
        3 => said.error_event("boom"),
        4 => Script::status(503, &json!({})),
        _ => said.finish("stop").usage(7, 3).done(),
    }
}

/// A hundred sessions at once, each with two messages and whatever the provider does with them.
async fn storm(dialect: Dialect) {
    let provider = Provider::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    let id = format!("{dialect:?}");
    // The breaker would spare most of them the storm.
    let config = ProviderConfig { breaker_failures: 0, retries: 1, ..patient(dialect, &provider, &id) };
    add(&mut setup, config, model(&id));
    let stack = Stack::start(setup).await.unwrap();
    let (stack_ref, provider_ref, id) = (&stack, &provider, id.as_str());
    let each = (0..SESSIONS).map(|n| {
        Box::pin(async move {
            let mut state = n as u64 * 3 + dialect as u64;
            let user = format!("{id}-{n}");
            provider_ref.script(id, answer(&mut state));
            let (mut client, session_id) = ask(stack_ref, Transport::ALL[n % 3], &user, id).await;
            for round in 0..2 {
                if round > 0 {
                    provider_ref.script(id, answer(&mut state));
                    client.say("second", "question").await.unwrap();
                }
                let reply = client.reply().await.unwrap();
                let usage = reply.finished.usage.unwrap();
                match reply.finished.finish_reason() {
                    FinishReason::Stop => assert!(!usage.estimated && reply.streamed == reply.finished.text),
                    FinishReason::ProviderError => assert!(reply.finished.text.starts_with(&reply.streamed)),
                    other => panic!("{user}: {other:?}"),
                }
            }
            assert_eq!(settled(stack_ref, &mut client, &user, &session_id).await.len(), 4);
        })
    });
    join_all(each).await;
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn heavy_in_a_storm_of_faults_of_openai_every_message_is_answered_once() {
    storm(Dialect::OpenAi).await;
}

#[tokio::test]
async fn heavy_in_a_storm_of_faults_of_anthropic_every_message_is_answered_once() {
    storm(Dialect::Anthropic).await;
}

#[tokio::test]
async fn heavy_in_a_storm_of_faults_of_dify_every_message_is_answered_once() {
    storm(Dialect::Dify).await;
}

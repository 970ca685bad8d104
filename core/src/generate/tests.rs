use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream;

use super::*;
use crate::llm::{ModelInfo, PromptRole, Provider};

/// Answers with these chunks, then hangs, or panics where it is told to.
#[derive(Debug, Clone)]
struct Says {
    chunks: Vec<Result<Chunk, ProviderError>>,
    panics_at: Option<usize>,
    expect: usize,
}

#[async_trait]
impl Provider for Says {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        assert_eq!(prompt.messages.len(), self.expect);
        assert!(self.panics_at != Some(0), "the provider panics");
        let panics_at = self.panics_at;
        let chunks = stream::iter(self.chunks.clone().into_iter().enumerate()).map(move |(index, chunk)| {
            assert!(panics_at != Some(index + 1), "the stream panics");
            chunk
        });
        Ok(chunks.chain(stream::pending()).boxed())
    }
}

fn text(text: &str) -> Result<Chunk, ProviderError> {
    Ok(Chunk::Text(text.to_owned()))
}

fn generator(chunks: Vec<Result<Chunk, ProviderError>>, panics_at: Option<usize>) -> Generator {
    let info = ModelInfo { id: "m".to_owned(), system_prompt: Some("be kind".to_owned()), ..ModelInfo::default() };
    let provider = Arc::new(Says { chunks, panics_at, expect: 2 });
    Generator::new(Models::new(vec![Model { info, provider }], "m").unwrap())
}

fn begin(generator: &Generator, role: PromptRole) -> Turn {
    let mut messages = vec![PromptMessage { role: PromptRole::User, text: "four".to_owned() }];
    if role == PromptRole::System {
        messages.insert(0, PromptMessage { role, text: "own instructions".to_owned() });
    }
    generator.begin(TurnStart {
        model: generator.model("").unwrap().clone(),
        messages,
        max_output_tokens: 10,
        sampling: Sampling::default(),
        user_hash: String::new(),
        deadline: None,
        trace: None,
    })
}

async fn all(mut turn: Turn) -> Vec<TurnEvent> {
    let mut events = Vec::new();
    while let Some(event) = turn.next().await {
        events.push(event);
    }
    events
}

fn end(events: &[TurnEvent]) -> &TurnEnd {
    let ends = events.iter().filter(|event| matches!(event, TurnEvent::Finished(_))).count();
    match events.last() {
        Some(TurnEvent::Finished(end)) if ends == 1 => end,
        _ => panic!("not one end: {events:?}"),
    }
}

#[tokio::test]
async fn a_turn_is_started_says_its_text_and_ends_with_what_the_provider_said_of_it() {
    let usage = Usage { prompt_tokens: 9, completion_tokens: 2, cached_tokens: 1, estimated: false };
    let chunks = vec![
        Ok(Chunk::RequestId("lost".to_owned())),
        Ok(Chunk::Model("other".to_owned())),
        Ok(Chunk::RequestId("req-1".to_owned())),
        Ok(Chunk::Reasoning),
        text("he"),
        text("y"),
        Ok(Chunk::Usage(usage)),
        Ok(Chunk::Finished(FinishReason::Length)),
    ];
    let generator = generator(chunks, None);
    for role in [PromptRole::User, PromptRole::System] {
        let events = all(begin(&generator, role)).await;
        let said = |text: &str| TurnEvent::Text(text.to_owned());
        assert_eq!(events[..3], [TurnEvent::Started("other".to_owned()), said("he"), said("y")]);
        let expect = TurnEnd { finish: FinishReason::Length, usage, provider_request_id: "req-1".to_owned() };
        assert_eq!(end(&events), &expect);
    }
    assert_eq!(generator.running(), 0);
}

#[tokio::test]
async fn a_fallback_in_the_middle_is_started_visibly() {
    let chunks = vec![text("a"), Ok(Chunk::Model("b".to_owned())), text("c"), Ok(Chunk::Finished(FinishReason::Stop))];
    let events = all(begin(&generator(chunks, None), PromptRole::User)).await;
    let started = |id: &str| TurnEvent::Started(id.to_owned());
    assert_eq!((&events[0], &events[2]), (&started("m"), &started("b")));
}

#[tokio::test]
async fn every_failure_is_one_typed_end_and_usage_is_estimated_once_something_was_asked() {
    let failed = |error| vec![text("abcd"), Err(error)];
    for (chunks, finish) in [
        (failed(ProviderError::Timeout("total")), FinishReason::Timeout),
        (failed(ProviderError::Truncated), FinishReason::ProviderError),
        (vec![text("abcd"), Ok(Chunk::Finished(FinishReason::Filtered))], FinishReason::Filtered),
    ] {
        let events = all(begin(&generator(chunks, None), PromptRole::User)).await;
        let end = end(&events);
        assert_eq!((end.finish, end.usage.completion_tokens, end.usage.estimated), (finish, 1, true));
    }
    let events = all(begin(&generator(vec![Err(ProviderError::CircuitOpen)], None), PromptRole::User)).await;
    assert_eq!(end(&events).usage, Usage::default(), "nothing was generated");
}

#[tokio::test]
async fn a_panic_of_the_provider_is_one_end_before_and_after_the_first_text() {
    for (panics_at, texts) in [(0, 0), (2, 1)] {
        let events = all(begin(&generator(vec![text("a"), text("b")], Some(panics_at)), PromptRole::User)).await;
        assert_eq!(end(&events).finish, FinishReason::ProviderError);
        assert_eq!(events.iter().filter(|event| matches!(event, TurnEvent::Text(_))).count(), texts);
    }
}

#[tokio::test(start_paused = true)]
async fn turns_that_run_are_waited_for_and_end_when_they_are_cut() {
    let generator = generator(vec![text("a")], None);
    let mut turn = begin(&generator, PromptRole::User);
    assert!(matches!(turn.next().await, Some(TurnEvent::Started(_))));
    assert!(matches!(turn.next().await, Some(TurnEvent::Text(_))));
    assert_eq!(generator.running(), 1);
    let drained = tokio::time::timeout(Duration::from_secs(60), generator.drained()).await;
    assert!(drained.is_err(), "it still runs");
    generator.cut();
    generator.cutting().await;
    turn.end(FinishReason::Interrupted);
    turn.end(FinishReason::Stop);
    let events = all(turn).await;
    assert_eq!((end(&events).finish, events.len()), (FinishReason::Interrupted, 1));
    generator.drained().await;
}

use std::collections::VecDeque;
use std::sync::Mutex;

use super::*;
use crate::domain::entry::FinishReason;
use crate::llm::{PromptMessage, PromptRole};

type Items = Vec<Result<Chunk, ProviderError>>;

/// Answers one turn after the other with these.
#[derive(Debug, Default)]
struct Scripted {
    turns: Mutex<VecDeque<Result<Items, ProviderError>>>,
    asked: Mutex<Vec<Prompt>>,
}

#[async_trait]
impl Provider for Scripted {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        self.asked.lock().expect("lock").push(prompt);
        let turn = self.turns.lock().expect("lock").pop_front();
        match turn {
            Some(turn) => Ok(stream::iter(turn?).boxed()),
            None => std::future::pending().await,
        }
    }
}

fn text(text: &str) -> Chunk {
    Chunk::Text(text.to_owned())
}

fn named(id: &str) -> Chunk {
    Chunk::Model(id.to_owned())
}

const USAGE: Usage = Usage { prompt_tokens: 10, completion_tokens: 5, cached_tokens: 0, estimated: false };

fn whole(word: &str) -> Result<Items, ProviderError> {
    Ok(vec![Ok(text(word)), Ok(Chunk::Usage(USAGE)), Ok(Chunk::Finished(FinishReason::Stop))])
}

fn broken(word: &str) -> Result<Items, ProviderError> {
    Ok(vec![Ok(text(word)), Err(ProviderError::Truncated)])
}

fn status(status: u16) -> ProviderError {
    ProviderError::Status { status, retry_after: None }
}

/// `a` and what stands in for it, with what each of them answers.
fn route(on_loss: OnLoss, scripts: Vec<Vec<Result<Items, ProviderError>>>) -> (Route, Vec<Arc<Scripted>>) {
    let providers: Vec<_> = scripts
        .into_iter()
        .map(|turns| Arc::new(Scripted { turns: Mutex::new(turns.into()), ..Scripted::default() }))
        .collect();
    let mut candidates = providers.iter().zip(["a", "b", "c"]).map(|(provider, id)| Candidate {
        id: id.to_owned(),
        upstream_model: format!("up-{id}"),
        max_output_tokens: if id == "b" { 50 } else { 500 },
        provider: provider.clone(),
    });
    let model = candidates.next().expect("a model");
    let fallbacks = candidates.collect();
    (Route::new(model, fallbacks, on_loss, Duration::from_secs(300)), providers)
}

fn prompt() -> Prompt {
    Prompt {
        upstream_model: "up-a".to_owned(),
        messages: vec![PromptMessage { role: PromptRole::User, text: "hello".to_owned() }],
        max_output_tokens: 100,
        user_hash: "u".to_owned(),
        conversation: Some("c-1".to_owned()),
        ..Prompt::default()
    }
}

async fn read(route: &Route) -> (Vec<Chunk>, Option<ProviderError>) {
    let mut stream = match route.generate(prompt()).await {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut chunks = Vec::new();
    while let Some(item) = stream.next().await {
        match item {
            Ok(chunk) => chunks.push(chunk),
            Err(error) => return (chunks, Some(error)),
        }
    }
    (chunks, None)
}

fn whole_chunks(word: &str) -> Vec<Chunk> {
    vec![text(word), Chunk::Usage(USAGE), Chunk::Finished(FinishReason::Stop)]
}

#[tokio::test(start_paused = true)]
async fn a_model_that_answers_is_not_named_and_its_fallback_is_not_asked() {
    for on_loss in [OnLoss::Finish, OnLoss::Restart] {
        let (route, providers) = route(on_loss, vec![vec![whole("hi")], vec![]]);
        assert_eq!(read(&route).await, (whole_chunks("hi"), None));
        assert_eq!(providers[0].asked.lock().expect("lock")[0].conversation.as_deref(), Some("c-1"));
        assert!(providers[1].asked.lock().expect("lock").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_that_begins_to_answer_is_named_and_asked_as_itself() {
    let failures = [
        status(503),
        status(429),
        status(401),
        status(404),
        ProviderError::CircuitOpen,
        ProviderError::QueueFull,
        ProviderError::Timeout("first byte"),
        ProviderError::Connection("refused".into()),
    ];
    for failure in failures {
        for on_loss in [OnLoss::Finish, OnLoss::Restart] {
            let scripts = vec![vec![Err(failure.clone())], vec![Err(failure.clone())], vec![whole("hi")]];
            let (route, providers) = route(on_loss, scripts);
            let expect: Vec<Chunk> = [named("c")].into_iter().chain(whole_chunks("hi")).collect();
            assert_eq!(read(&route).await, (expect, None), "{failure}");
            for (provider, (name, tokens)) in providers.iter().zip([("up-a", 100), ("up-b", 50), ("up-c", 100)]) {
                let asked = provider.asked.lock().expect("lock");
                assert_eq!((asked[0].upstream_model.as_str(), asked[0].max_output_tokens), (name, tokens));
                assert_eq!((asked[0].messages.len(), asked[0].user_hash.as_str()), (1, "u"));
                assert_eq!(asked[0].conversation.is_some(), name == "up-a", "it is the first one's");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_the_last_failure_counts_and_a_bad_prompt_goes_no_further() {
    let (all, _) = route(OnLoss::Finish, vec![vec![Err(status(503))], vec![Err(ProviderError::CircuitOpen)]]);
    assert_eq!(read(&all).await, (vec![], Some(ProviderError::CircuitOpen)));
    for failure in [status(400), status(413), status(422), ProviderError::Prompt("x")] {
        let (route, providers) = route(OnLoss::Finish, vec![vec![Err(failure.clone())], vec![whole("hi")]]);
        assert_eq!(read(&route).await, (vec![], Some(failure)));
        assert!(providers[1].asked.lock().expect("lock").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn all_tries_together_stay_within_the_total_limit() {
    let (route, _) = route(OnLoss::Finish, vec![vec![], vec![whole("hi")]]);
    let begun = Instant::now();
    assert_eq!(read(&route).await.1, Some(ProviderError::Timeout("total")));
    assert_eq!(begun.elapsed(), Duration::from_secs(300));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_ends_where_it_is_unless_it_may_begin_again() {
    let scripts = || vec![vec![broken("half")], vec![whole("hi")]];
    let (finish, providers) = route(OnLoss::Finish, scripts());
    assert_eq!(read(&finish).await, (vec![text("half")], Some(ProviderError::Truncated)));
    assert!(providers[1].asked.lock().expect("lock").is_empty());

    let (restart, _) = route(OnLoss::Restart, scripts());
    // What was lost: 5 tokens of the question with its frame, 1 of "half".
    let both = Usage { prompt_tokens: 10 + 6, completion_tokens: 5 + 1, cached_tokens: 0, estimated: true };
    let expect = vec![
        text("half"),
        named("b"),
        text(RESTART_MARK),
        text("hi"),
        Chunk::Usage(both),
        Chunk::Finished(FinishReason::Stop),
    ];
    assert_eq!(read(&restart).await, (expect, None));
}

#[tokio::test(start_paused = true)]
async fn an_answer_begins_again_once_and_only_if_somebody_is_left() {
    let (twice, _) = route(OnLoss::Restart, vec![vec![broken("one")], vec![broken("two")], vec![whole("three")]]);
    let (chunks, error) = read(&twice).await;
    assert_eq!(chunks, [text("one"), named("b"), text(RESTART_MARK), text("two")]);
    assert_eq!(error, Some(ProviderError::Truncated));

    let (nobody, _) = route(OnLoss::Restart, vec![vec![Err(status(503))], vec![broken("half")]]);
    assert_eq!(read(&nobody).await, (vec![named("b"), text("half")], Some(ProviderError::Truncated)));

    let (failing, _) = route(OnLoss::Restart, vec![vec![broken("half")], vec![Err(status(503))]]);
    assert_eq!(read(&failing).await, (vec![text("half")], Some(status(503))));
}

//! With a provider that does as it is told, on a paused clock.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;

use super::*;
use crate::domain::entry::Usage;
use crate::llm::breaker::{BreakerLimits, Phase};
use crate::llm::{PromptMessage, PromptRole};

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Give(Chunk),
    Fail(ProviderError),
    Panic,
    Hang,
}

/// Each try plays the next list; `Fail` as the first step refuses the try before there is a stream.
#[derive(Debug, Default)]
struct Scripted {
    tries: Mutex<VecDeque<Vec<Step>>>,
    started: Mutex<Vec<Instant>>,
    dropped: Arc<AtomicBool>,
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl Provider for Scripted {
    async fn generate(&self, _prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        self.started.lock().expect("lock").push(Instant::now());
        let steps = self.tries.lock().expect("lock").pop_front().expect("no further try expected");
        if let Some(Step::Fail(error)) = steps.first() {
            return Err(error.clone());
        }
        let alive = SetOnDrop(self.dropped.clone());
        let stream = stream::unfold((steps.into_iter(), alive), |(mut steps, alive)| async move {
            loop {
                let item = match steps.next()? {
                    Step::Wait(seconds) => {
                        sleep(Duration::from_secs(seconds)).await;
                        continue;
                    }
                    Step::Give(chunk) => Ok(chunk),
                    Step::Fail(error) => Err(error),
                    Step::Panic => panic!("provider panicked"),
                    Step::Hang => std::future::pending().await,
                };
                return Some((item, (steps, alive)));
            }
        });
        Ok(stream.boxed())
    }
}

fn text(text: &str) -> Chunk {
    Chunk::Text(text.to_owned())
}

fn prompt() -> Prompt {
    Prompt {
        upstream_model: "m".to_owned(),
        messages: vec![PromptMessage { role: PromptRole::User, text: "hello".to_owned() }],
        max_output_tokens: 100,
        ..Prompt::default()
    }
}

const ESTIMATE: Usage = Usage { prompt_tokens: 6, completion_tokens: 0, cached_tokens: 0, estimated: true };

fn estimate(completion_tokens: u64) -> Chunk {
    Chunk::Usage(Usage { completion_tokens, ..ESTIMATE })
}

fn stop() -> Chunk {
    Chunk::Finished(FinishReason::Stop)
}

fn status(status: u16, retry_after: Option<u64>) -> Vec<Step> {
    vec![Step::Fail(ProviderError::Status { status, retry_after: retry_after.map(Duration::from_secs) })]
}

struct Outcome {
    chunks: Vec<Chunk>,
    error: Option<ProviderError>,
    tries: usize,
    took: Duration,
    /// From one try to the next.
    pauses: Vec<Duration>,
    closed: bool,
}

async fn run_with(limits: GuardLimits, tries: Vec<Vec<Step>>) -> Outcome {
    let provider = Arc::new(Scripted { tries: Mutex::new(tries.into()), ..Scripted::default() });
    let begun = Instant::now();
    let mut outcome =
        Outcome { chunks: Vec::new(), error: None, tries: 0, took: Duration::ZERO, pauses: Vec::new(), closed: false };
    match Guard::new(provider.clone(), limits).generate(prompt()).await {
        Ok(mut stream) => {
            while let Some(item) = stream.next().await {
                assert!(outcome.error.is_none(), "nothing comes after an error");
                match item {
                    Ok(chunk) => outcome.chunks.push(chunk),
                    Err(error) => outcome.error = Some(error),
                }
            }
            // The stream itself is still there: it is the guard that let go of the provider's.
            outcome.closed = provider.dropped.load(Ordering::SeqCst);
        }
        Err(error) => outcome.error = Some(error),
    }
    let started = provider.started.lock().expect("lock");
    outcome.tries = started.len();
    outcome.took = begun.elapsed();
    outcome.pauses = started.windows(2).map(|pair| pair[1] - pair[0]).collect();
    outcome
}

async fn run(tries: Vec<Vec<Step>>) -> Outcome {
    run_with(GuardLimits::default(), tries).await
}

#[tokio::test(start_paused = true)]
async fn an_answer_passes_through_and_usage_is_estimated_only_when_missing() {
    let outcome =
        run(vec![vec![Step::Give(Chunk::RequestId("r".into())), Step::Give(text("hello")), Step::Give(stop())]]).await;
    assert_eq!(outcome.chunks, [Chunk::RequestId("r".into()), text("hello"), estimate(2), stop()]);
    assert!(outcome.closed && outcome.error.is_none());

    let usage = Chunk::Usage(Usage { prompt_tokens: 1, ..Usage::default() });
    let outcome = run(vec![vec![Step::Give(text("a")), Step::Give(usage.clone()), Step::Give(stop())]]).await;
    assert_eq!(outcome.chunks, [text("a"), usage, stop()]);
}

#[tokio::test(start_paused = true)]
async fn an_end_without_marker_is_truncated_before_and_after_text() {
    let outcome = run(vec![vec![Step::Give(text("a"))]]).await;
    assert_eq!((outcome.chunks, outcome.error), (vec![text("a")], Some(ProviderError::Truncated)));
    let outcome = run(vec![vec![]]).await;
    assert_eq!((outcome.tries, outcome.error), (1, Some(ProviderError::Truncated)));
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_is_an_answer() {
    let outcome = run(vec![vec![Step::Give(text("")), Step::Give(stop())]]).await;
    assert_eq!(outcome.chunks, [estimate(0), stop()]);
}

#[tokio::test(start_paused = true)]
async fn silence_before_the_first_text_ends_after_the_first_byte_limit() {
    for steps in [vec![Step::Hang], vec![Step::Give(Chunk::RequestId("r".into())), Step::Hang]] {
        let outcome = run(vec![steps]).await;
        assert_eq!(outcome.error, Some(ProviderError::Timeout("first byte")));
        assert_eq!((outcome.took, outcome.tries), (Duration::from_secs(30), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_in_the_middle_ends_after_the_limit_between_chunks() {
    let outcome =
        run(vec![vec![Step::Wait(29), Step::Give(text("a")), Step::Wait(29), Step::Give(text("b")), Step::Hang]]).await;
    assert_eq!(outcome.chunks, [text("a"), text("b")]);
    assert_eq!(outcome.error, Some(ProviderError::Timeout("between chunks")));
    assert_eq!(outcome.took, Duration::from_secs(29 + 29 + 30));
    assert!(outcome.closed);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_never_ends_is_cut_at_the_total_limit() {
    let drip: Vec<Step> = (0..100).flat_map(|_| [Step::Wait(7), Step::Give(text("x"))]).collect();
    let outcome = run(vec![drip]).await;
    assert_eq!(outcome.error, Some(ProviderError::Timeout("total")));
    assert_eq!((outcome.took, outcome.chunks.len()), (Duration::from_secs(300), 42));
}

#[tokio::test(start_paused = true)]
async fn retries_stay_within_the_total_limit() {
    let limits = GuardLimits { total: Duration::from_secs(40), ..GuardLimits::default() };
    let slow = || vec![Step::Wait(29), Step::Fail(ProviderError::Connection("reset".into()))];
    let outcome = run_with(limits, vec![slow(), slow(), slow()]).await;
    assert_eq!(outcome.error, Some(ProviderError::Timeout("total")));
    assert_eq!((outcome.took, outcome.tries), (Duration::from_secs(40), 2));
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_three_times_with_growing_random_pauses() {
    let refusals = [
        status(429, None),
        status(500, None),
        status(503, None),
        status(599, None),
        vec![Step::Fail(ProviderError::Connection("refused".into()))],
        vec![Step::Give(Chunk::RequestId("r".into())), Step::Fail(ProviderError::Connection("reset".into()))],
    ];
    for refusal in refusals {
        let outcome = run(vec![refusal.clone(), refusal.clone(), refusal.clone()]).await;
        assert_eq!(outcome.tries, 3, "{refusal:?}");
        assert!(outcome.error.is_some() && outcome.chunks.is_empty());
        assert!(outcome.pauses[0] <= Duration::from_millis(501) && outcome.pauses[1] <= Duration::from_millis(1001));
        let outcome = run(vec![refusal, vec![Step::Give(text("a")), Step::Give(stop())]]).await;
        assert_eq!((outcome.tries, outcome.chunks), (2, vec![text("a"), estimate(1), stop()]));
    }
}

#[tokio::test(start_paused = true)]
async fn pauses_differ_from_turn_to_turn() {
    let mut pauses = std::collections::HashSet::new();
    for _ in 0..20 {
        let outcome = run(vec![status(503, None), vec![Step::Give(stop())]]).await;
        pauses.insert(outcome.pauses[0]);
    }
    assert!(pauses.len() > 10, "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn what_will_not_pass_is_tried_once() {
    let mut refusals = vec![
        vec![Step::Fail(ProviderError::Event("server_error".into()))],
        vec![Step::Fail(ProviderError::Malformed("event is not JSON"))],
        vec![Step::Fail(ProviderError::Truncated)],
        vec![Step::Fail(ProviderError::Timeout("connect"))],
    ];
    refusals.extend([302, 400, 401, 403, 404, 413, 422, 600].map(|code| status(code, None)));
    for refusal in refusals {
        assert_eq!(run(vec![refusal.clone()]).await.tries, 1, "{refusal:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_tried_again_after_the_first_text() {
    let reset = ProviderError::Connection("reset".into());
    let outcome = run(vec![vec![Step::Give(text("a")), Step::Fail(reset.clone())]]).await;
    assert_eq!((outcome.tries, outcome.chunks, outcome.error), (1, vec![text("a")], Some(reset)));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured_up_to_ten_seconds() {
    let outcome = run(vec![status(429, Some(10)), vec![Step::Give(stop())]]).await;
    assert!(
        (Duration::from_secs(10)..=Duration::from_millis(10_501)).contains(&outcome.pauses[0]),
        "{:?}",
        outcome.pauses
    );
    let outcome = run(vec![status(429, Some(11))]).await;
    assert_eq!((outcome.tries, outcome.took), (1, Duration::ZERO));
    assert_eq!(outcome.error, Some(ProviderError::Status { status: 429, retry_after: Some(Duration::from_secs(11)) }));
}

#[tokio::test(start_paused = true)]
async fn text_is_cut_at_the_limit_on_a_character_boundary_and_ends_with_length() {
    let limits = GuardLimits { max_text_bytes: 6, ..GuardLimits::default() };
    let outcome =
        run_with(limits.clone(), vec![vec![Step::Give(text("abcd")), Step::Give(text("e😀")), Step::Hang]]).await;
    assert_eq!(outcome.chunks, [text("abcd"), text("e"), estimate(2), Chunk::Finished(FinishReason::Length)]);
    assert!(outcome.closed, "the request upstream is closed");

    let outcome = run_with(limits, vec![vec![Step::Give(text("abcdef")), Step::Give(stop())]]).await;
    assert_eq!(outcome.chunks, [text("abcdef"), estimate(2), stop()], "exactly full is not cut");
}

#[tokio::test(start_paused = true)]
async fn reasoning_is_life_and_is_swallowed() {
    let thinks = (0..5).flat_map(|_| [Step::Wait(29), Step::Give(Chunk::Reasoning)]);
    let outcome = run(vec![thinks.clone().chain([Step::Give(text("a")), Step::Give(stop())]).collect()]).await;
    assert_eq!((outcome.chunks, outcome.took), (vec![text("a"), estimate(1), stop()], Duration::from_secs(5 * 29)));
    let outcome = run(vec![thinks.chain([Step::Hang]).collect()]).await;
    assert_eq!(outcome.error, Some(ProviderError::Timeout("between chunks")));
    let outcome = run(vec![vec![Step::Give(text("a")), Step::Give(Chunk::Reasoning), Step::Hang]]).await;
    assert_eq!(outcome.chunks, [text("a")]);
}

#[tokio::test(start_paused = true)]
async fn overload_that_is_told_inside_the_stream_passes_too() {
    let refusal =
        || vec![Step::Give(Chunk::RequestId("r".into())), Step::Fail(ProviderError::Overloaded("overloaded_error"))];
    let outcome = run(vec![refusal(), refusal(), vec![Step::Give(text("a")), Step::Give(stop())]]).await;
    assert_eq!((outcome.tries, outcome.chunks), (3, vec![text("a"), estimate(1), stop()]));
}

#[tokio::test(start_paused = true)]
async fn each_try_counts_for_the_breaker_and_none_goes_through_when_it_is_open() {
    let limits = BreakerLimits { failures: 3, window: Duration::from_secs(600), ..BreakerLimits::default() };
    let breaker = Arc::new(Breaker::new("p", limits));
    let provider = Arc::new(Scripted::default());
    provider.tries.lock().expect("lock").extend([
        vec![Step::Give(text("a")), Step::Fail(ProviderError::Truncated)],
        vec![Step::Hang],
        status(503, None),
        status(503, None),
    ]);
    let guard = Guard::new(provider.clone(), GuardLimits::default()).with_breaker(breaker.clone());
    let mut stream = guard.generate(prompt()).await.expect("begun");
    while stream.next().await.is_some() {}
    assert_eq!(guard.generate(prompt()).await.err(), Some(ProviderError::Timeout("first byte")));
    assert_eq!(breaker.phase(), (Phase::Closed, 0));
    // The third failure of four tries opens it, and the retry does not go through.
    assert_eq!(guard.generate(prompt()).await.err(), Some(ProviderError::CircuitOpen));
    assert_eq!((breaker.phase(), provider.started.lock().expect("lock").len()), ((Phase::Open, 1), 3));
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_provider_passes_through() {
    let provider =
        Scripted { tries: Mutex::new(vec![vec![Step::Give(text("a")), Step::Panic]].into()), ..Scripted::default() };
    let mut stream = Guard::new(Arc::new(provider), GuardLimits::default()).generate(prompt()).await.expect("begun");
    assert_eq!(stream.next().await, Some(Ok(text("a"))));
    assert!(std::panic::AssertUnwindSafe(stream.next()).catch_unwind().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_stream_or_the_start_drops_the_providers() {
    let provider = Arc::new(Scripted::default());
    provider.tries.lock().expect("lock").extend([vec![Step::Give(text("a")), Step::Hang], vec![Step::Hang]]);
    let guard = Guard::new(provider.clone(), GuardLimits::default());
    drop(guard.generate(prompt()).await.expect("begun"));
    assert!(provider.dropped.swap(false, Ordering::SeqCst));

    assert!(timeout_at(Instant::now() + Duration::from_secs(1), guard.generate(prompt())).await.is_err());
    assert!(provider.dropped.load(Ordering::SeqCst));
}

//! One configured provider as all its models share it: nobody waits for it while it is left alone, its places are given out
//! in turn, and every try is guarded.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures_util::{Stream, StreamExt};
use tokio::time::timeout_at;

use super::breaker::{Breaker, BreakerLimits};
use super::guard::{Guard, GuardLimits};
use super::queue::{Place, Queue, QueueLimits};
use super::{Chunk, ChunkStream, Load, Prompt, Provider, ProviderError};

/// All limits of one provider.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamLimits {
    /// Of each turn.
    pub guard: GuardLimits,
    /// Of all together.
    pub queue: QueueLimits,
    /// When it is left alone.
    pub breaker: BreakerLimits,
}

/// A provider within all its limits.
#[derive(Debug)]
pub struct Upstream {
    guard: Guard,
    queue: Queue,
    breaker: Arc<Breaker>,
}

impl Upstream {
    /// Wraps a provider. `name` is its name in the configuration.
    #[must_use]
    pub fn new(name: &str, bare: Arc<dyn Provider>, limits: UpstreamLimits) -> Self {
        let breaker = Arc::new(Breaker::new(name, limits.breaker));
        let guard = Guard::new(bare, limits.guard).with_breaker(Arc::clone(&breaker));
        Self { guard, queue: Queue::new(limits.queue), breaker }
    }
}

#[async_trait]
impl Provider for Upstream {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        // Nobody waits for what would be refused.
        self.breaker.check()?;
        let place = self.queue.enter(&prompt.user_hash);
        let place = match prompt.deadline {
            Some(deadline) => timeout_at(deadline, place).await.map_err(|_| ProviderError::Timeout("total"))??,
            None => place.await?,
        };
        let stream = self.guard.generate(prompt).await?;
        Ok(Placed { stream, place: Some(place) }.boxed())
    }

    fn is_demo(&self) -> bool {
        self.guard.is_demo()
    }

    fn load(&self) -> Option<Load> {
        let (breaker, opened) = self.breaker.phase();
        Some(Load { breaker, opened, queue: self.queue.load() })
    }

    async fn settled(&self) {
        self.guard.settled().await;
    }
}

/// A stream that holds a place until it ends.
struct Placed {
    stream: ChunkStream,
    place: Option<Place>,
}

impl Stream for Placed {
    type Item = Result<Chunk, ProviderError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = std::task::ready!(self.stream.poll_next_unpin(cx));
        if !matches!(next, Some(Ok(ref chunk)) if !matches!(chunk, Chunk::Finished(_))) {
            self.place = None;
        }
        Poll::Ready(next)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, poll, stream};

    use super::*;
    use crate::domain::entry::FinishReason;
    use crate::llm::breaker::Phase;

    /// Says one word and then ends, breaks or goes on for ever, as the model's name says.
    #[derive(Debug)]
    struct OneWord;

    #[async_trait]
    impl Provider for OneWord {
        async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
            let word = Ok(Chunk::Text("word".to_owned()));
            Ok(match prompt.upstream_model.as_str() {
                "ends" => stream::iter([word, Ok(Chunk::Finished(FinishReason::Stop))]).boxed(),
                "breaks" => stream::iter([word, Err(ProviderError::Truncated)]).boxed(),
                "hangs" => stream::iter([word]).chain(stream::pending()).boxed(),
                _ => return Err(ProviderError::Truncated),
            })
        }
    }

    fn upstream() -> Upstream {
        let queue = QueueLimits { running: 1, waiting: 1, wait: Duration::from_secs(30) };
        let breaker = BreakerLimits { failures: 2, ..BreakerLimits::default() };
        let guard = GuardLimits { retries: 0, ..GuardLimits::default() };
        Upstream::new("p", Arc::new(OneWord), UpstreamLimits { guard, queue, breaker })
    }

    fn prompt(model: &str) -> Prompt {
        Prompt { upstream_model: model.to_owned(), ..Prompt::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_held_until_the_stream_ends_breaks_or_is_dropped() {
        let upstream = upstream();
        let running = || upstream.load().expect("limited").queue.running;
        for model in ["ends", "breaks"] {
            let mut stream = upstream.generate(prompt(model)).await.expect("begun");
            assert_eq!(running(), 1);
            while let Some(Ok(chunk)) = stream.next().await {
                assert!(matches!(chunk, Chunk::Finished(_)) || running() == 1);
            }
            assert_eq!(running(), 0, "{model}, and the stream is still there");
        }
        let hanging = upstream.generate(prompt("hangs")).await.expect("begun");
        let mut waits = upstream.generate(prompt("ends"));
        assert!(poll!(&mut waits).is_pending());
        assert_eq!(upstream.generate(prompt("ends")).await.err(), Some(ProviderError::QueueFull));
        let load = upstream.load().expect("limited").queue;
        assert_eq!((load.running, load.waiting, load.refused), (1, 1, 1));
        drop(hanging);
        assert!(waits.now_or_never().is_some_and(|begun| begun.is_ok()));
        assert_eq!(running(), 0);
        assert!(upstream.generate(prompt("fails")).await.is_err());
        assert_eq!(running(), 0, "a failed try leaves its place too");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_provider_that_is_left_alone() {
        let upstream = upstream();
        let _hanging = upstream.generate(prompt("hangs")).await.expect("begun");
        upstream.breaker.broke_off(&ProviderError::Truncated);
        upstream.breaker.broke_off(&ProviderError::Truncated);
        assert_eq!(upstream.load().map(|load| load.breaker), Some(Phase::Open));
        let refused = upstream.generate(prompt("ends")).now_or_never().expect("at once");
        assert_eq!(refused.err(), Some(ProviderError::CircuitOpen));
    }
}

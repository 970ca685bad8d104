//! What all providers share: time limits, retries before the first text, and a bound on the text.
//!
//! A panic of the provider passes through: the task that owns the reply turns it into an outcome.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};

use super::breaker::Breaker;
use super::tokens::{estimate_prompt_tokens, estimate_usage};
use super::{Chunk, ChunkStream, Prompt, Provider, ProviderError};
use crate::domain::entry::FinishReason;

/// Limits of one turn. The limit for connecting is the client's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardLimits {
    /// From the start of a try to its first text or reasoning. A model that thinks in silence needs more.
    pub first_byte: Duration,
    /// Between two chunks after that.
    pub between_chunks: Duration,
    /// The whole turn, retries and their pauses included.
    pub total: Duration,
    /// UTF-8 bytes of text, after which the reply ends as if the model had reached its limit.
    pub max_text_bytes: usize,
    /// Tries after the first.
    pub retries: u32,
    /// Longest pause before the first retry; doubled for each further one. The pause is random, from zero on.
    pub backoff: Duration,
    /// A provider that asks for a longer pause than this is not tried again.
    pub max_retry_after: Duration,
}

impl Default for GuardLimits {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(30),
            between_chunks: Duration::from_secs(30),
            total: Duration::from_secs(300),
            max_text_bytes: 1024 * 1024,
            retries: 2,
            backoff: Duration::from_millis(500),
            max_retry_after: Duration::from_secs(10),
        }
    }
}

/// A provider within limits. `generate` resolves with the first text (or the end, if there is none): until then a failed
/// try leaves no trace and may be repeated. Its stream always holds [`Chunk::Usage`] before [`Chunk::Finished`],
/// estimated when the provider sent none.
#[derive(Debug, Clone)]
pub struct Guard {
    inner: Arc<dyn Provider>,
    limits: GuardLimits,
    breaker: Option<Arc<Breaker>>,
}

impl Guard {
    /// Wraps a provider.
    #[must_use]
    pub fn new(inner: Arc<dyn Provider>, limits: GuardLimits) -> Self {
        Self { inner, limits, breaker: None }
    }

    /// Each try is let through by this breaker and counted there.
    #[must_use]
    pub fn with_breaker(mut self, breaker: Arc<Breaker>) -> Self {
        self.breaker = Some(breaker);
        self
    }

    /// One try up to its first text or its end.
    async fn attempt(&self, prompt: Prompt, deadline: Instant) -> Result<Attempt, ProviderError> {
        let trial = self.breaker.as_ref().map(Breaker::admit).transpose()?;
        let attempt = self.begin(prompt, deadline).await;
        if let Some(trial) = trial {
            trial.ended(attempt.as_ref().map(|_| ()));
        }
        attempt
    }

    async fn begin(&self, prompt: Prompt, deadline: Instant) -> Result<Attempt, ProviderError> {
        let until = |limit: Duration, name| {
            let at = Instant::now() + limit;
            if at < deadline { (at, name) } else { (deadline, "total") }
        };
        let mut limit = until(self.limits.first_byte, "first byte");
        let begun = timeout_at(limit.0, self.inner.generate(prompt)).await;
        let mut stream = begun.unwrap_or(Err(ProviderError::Timeout(limit.1)))?;
        let mut head: Vec<Chunk> = Vec::new();
        loop {
            let next = timeout_at(limit.0, stream.next()).await.map_err(|_| ProviderError::Timeout(limit.1))?;
            let chunk = next.ok_or(ProviderError::Truncated)??;
            let begun = match &chunk {
                Chunk::Text(text) => !text.is_empty(),
                Chunk::Finished(_) => true,
                Chunk::Reasoning => {
                    limit = until(self.limits.between_chunks, "between chunks");
                    continue;
                }
                Chunk::RequestId(_) | Chunk::Model(_) | Chunk::Conversation(_) | Chunk::Usage(_) => {
                    // The last one of each kind counts: a provider that repeats itself cannot fill the memory.
                    head.retain(|earlier| std::mem::discriminant(earlier) != std::mem::discriminant(&chunk));
                    false
                }
            };
            head.push(chunk);
            if begun {
                return Ok(Attempt { head, stream });
            }
        }
    }

    /// How long to wait before another try. `None`: there is none.
    fn pause(&self, error: &ProviderError, retry: u32) -> Option<Duration> {
        if retry >= self.limits.retries {
            return None;
        }
        let wished = match error {
            ProviderError::Connection(_) | ProviderError::Overloaded(_) => None,
            ProviderError::Status { status: 429 | 500..=599, retry_after } => *retry_after,
            ProviderError::Status { .. }
            | ProviderError::Event(_)
            | ProviderError::Malformed(_)
            | ProviderError::Truncated
            | ProviderError::Timeout(_)
            | ProviderError::CircuitOpen
            | ProviderError::QueueFull
            | ProviderError::Prompt(_) => return None,
        };
        let wished = wished.unwrap_or(Duration::ZERO);
        // On top of what the provider asked for, or all that were refused together come back together.
        let longest = self.limits.backoff.saturating_mul(1 << retry.min(16));
        let jitter = longest.mul_f64(rand::random::<f64>());
        (wished <= self.limits.max_retry_after).then(|| wished + jitter)
    }
}

#[async_trait]
impl Provider for Guard {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        let deadline = sooner(Instant::now() + self.limits.total, prompt.deadline);
        let prompt_tokens = estimate_prompt_tokens(&prompt.messages);
        let mut retry = 0;
        let attempt = loop {
            let error = match self.attempt(prompt.clone(), deadline).await {
                Ok(attempt) => break attempt,
                Err(error) => error,
            };
            let pause = self.pause(&error, retry).filter(|pause| Instant::now() + *pause < deadline);
            let Some(pause) = pause else { return Err(error) };
            retry += 1;
            tracing::info!(provider.error = %error, provider.retry = retry, "provider failed before its first text, trying again");
            sleep(pause).await;
        };
        let guarded = Guarded {
            ready: VecDeque::with_capacity(2),
            head: attempt.head.into_iter(),
            stream: Some(attempt.stream),
            limits: self.limits.clone(),
            breaker: self.breaker.clone(),
            deadline,
            alarm: Box::pin(sleep_until(deadline)),
            prompt_tokens,
            text_bytes: 0,
            usage: false,
        };
        Ok(stream::unfold(guarded, |mut guarded| async move { Some((guarded.next().await?, guarded)) }).boxed())
    }

    fn is_demo(&self) -> bool {
        self.inner.is_demo()
    }

    async fn settled(&self) {
        self.inner.settled().await;
    }
}

fn sooner(own: Instant, asked: Option<Instant>) -> Instant {
    asked.map_or(own, |asked| asked.min(own))
}

/// A try that has begun to answer.
struct Attempt {
    head: Vec<Chunk>,
    stream: ChunkStream,
}

/// The stream of a try that has begun to answer.
struct Guarded {
    /// Checked and ready to be given out.
    ready: VecDeque<Chunk>,
    /// Received and not checked yet.
    head: std::vec::IntoIter<Chunk>,
    /// `None` once it is over; dropping it ends the request upstream.
    stream: Option<ChunkStream>,
    limits: GuardLimits,
    breaker: Option<Arc<Breaker>>,
    deadline: Instant,
    /// Rings at the limit of some chunk, or earlier: it is only moved when it would ring too late, since setting a timer for
    /// each chunk would cost more than the chunk.
    alarm: Pin<Box<Sleep>>,
    prompt_tokens: u64,
    text_bytes: usize,
    usage: bool,
}

impl Guarded {
    async fn next(&mut self) -> Option<Result<Chunk, ProviderError>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(Ok(chunk));
            }
            match self.receive().await? {
                Ok(chunk) => self.check(chunk),
                Err(error) => {
                    self.stream = None;
                    if let Some(breaker) = &self.breaker {
                        breaker.broke_off(&error);
                    }
                    return Some(Err(error));
                }
            }
        }
    }

    /// The next chunk of the provider. `None`: the stream is over.
    async fn receive(&mut self) -> Option<Result<Chunk, ProviderError>> {
        let stream = self.stream.as_mut()?;
        if let Some(chunk) = self.head.next() {
            return Some(Ok(chunk));
        }
        let pause = Instant::now() + self.limits.between_chunks;
        let (limit, name) = if pause < self.deadline { (pause, "between chunks") } else { (self.deadline, "total") };
        loop {
            if limit < self.alarm.deadline() || self.alarm.is_elapsed() {
                self.alarm.as_mut().reset(limit);
            }
            tokio::select! {
                biased;
                chunk = stream.next() => return Some(chunk.unwrap_or(Err(ProviderError::Truncated))),
                () = self.alarm.as_mut() => {}
            }
            if Instant::now() >= limit {
                return Some(Err(ProviderError::Timeout(name)));
            }
        }
    }

    fn check(&mut self, chunk: Chunk) {
        match chunk {
            Chunk::Text(text) => self.text(text),
            Chunk::Finished(finish) => self.end(finish),
            Chunk::Usage(usage) => {
                self.usage = true;
                self.ready.push_back(Chunk::Usage(usage));
            }
            Chunk::Reasoning => {}
            Chunk::RequestId(_) | Chunk::Model(_) | Chunk::Conversation(_) => self.ready.push_back(chunk),
        }
    }

    fn text(&mut self, mut text: String) {
        let room = self.limits.max_text_bytes - self.text_bytes;
        let fits = text.len() <= room;
        text.truncate(text.floor_char_boundary(room));
        self.text_bytes += text.len();
        if !text.is_empty() {
            self.ready.push_back(Chunk::Text(text));
        }
        if !fits {
            self.end(FinishReason::Length);
        }
    }

    fn end(&mut self, finish: FinishReason) {
        self.stream = None;
        if !self.usage {
            self.ready.push_back(Chunk::Usage(estimate_usage(self.prompt_tokens, self.text_bytes)));
        }
        self.ready.push_back(Chunk::Finished(finish));
    }
}

#[cfg(test)]
mod tests;

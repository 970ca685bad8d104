//! A model and the ones that stand in for it, in order.
//!
//! Before the first text a model that fails is replaced by the next, and the reader is told: the stream names the one
//! that answers with [`Chunk::Model`]. Once there was text, a model decides by its [`OnLoss`] what becomes of the answer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use super::tokens::{estimate_prompt_tokens, estimate_usage};
use super::{Chunk, ChunkStream, Prompt, Provider, ProviderError};
use crate::domain::entry::Usage;

/// Stands between what was written before a loss and the answer that begins again. A rule in Markdown.
pub const RESTART_MARK: &str = "\n\n---\n\n";

/// What becomes of an answer whose provider is lost in the middle of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLoss {
    /// It ends there, with what was written and the kind of the failure.
    #[default]
    Finish,
    /// A fallback begins again, below what was written and a mark. Once.
    Restart,
}

/// Who may answer.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Id of the model.
    pub id: String,
    /// Its name at the provider.
    pub upstream_model: String,
    /// At most this many tokens of answer.
    pub max_output_tokens: u32,
    /// Who runs it.
    pub provider: Arc<dyn Provider>,
}

/// A model with fallbacks, as one provider.
#[derive(Debug)]
pub struct Route {
    candidates: Arc<[Candidate]>,
    on_loss: OnLoss,
    total: Duration,
}

impl Route {
    /// The model itself and what stands in for it, in order. All tries together begin within `total`.
    #[must_use]
    pub fn new(model: Candidate, fallbacks: Vec<Candidate>, on_loss: OnLoss, total: Duration) -> Self {
        Self { candidates: std::iter::once(model).chain(fallbacks).collect(), on_loss, total }
    }
}

#[async_trait]
impl Provider for Route {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        let now = Instant::now();
        let mut turn = Turn {
            candidates: Arc::clone(&self.candidates),
            next: 0,
            deadline: prompt.deadline.unwrap_or(now + self.total).min(now + self.total),
            prompt,
            lost: None,
            begins: None,
            stream: None,
            written: 0,
        };
        let stream = turn.begin(ProviderError::Truncated).await?;
        if self.on_loss == OnLoss::Finish || turn.next == turn.candidates.len() {
            // Nothing is left to decide. The usual case costs nothing for each chunk.
            let named = turn.begins.take();
            return Ok(match named {
                Some(named) => stream::iter([Ok(named)]).chain(stream).boxed(),
                None => stream,
            });
        }
        turn.stream = Some(stream);
        Ok(stream::unfold(turn, |mut turn| async move { Some((turn.chunk().await?, turn)) }).boxed())
    }

    fn is_demo(&self) -> bool {
        self.candidates.first().is_some_and(|model| model.provider.is_demo())
    }

    fn load(&self) -> Option<super::Load> {
        self.candidates.first().and_then(|model| model.provider.load())
    }

    async fn settled(&self) {
        for candidate in self.candidates.iter() {
            candidate.provider.settled().await;
        }
    }
}

/// One turn on its way through the candidates.
struct Turn {
    candidates: Arc<[Candidate]>,
    /// The one that is tried next.
    next: usize,
    deadline: Instant,
    prompt: Prompt,
    /// What was used by the answer that was lost; an estimate.
    lost: Option<Usage>,
    /// Goes out before everything else of the present stream.
    begins: Option<Chunk>,
    stream: Option<ChunkStream>,
    /// Bytes of text of the present stream.
    written: usize,
}

impl Turn {
    /// The stream of the first candidate that begins to answer. `failed` is returned when there is none left.
    async fn begin(&mut self, mut failed: ProviderError) -> Result<ChunkStream, ProviderError> {
        while let Some(candidate) = self.candidates.get(self.next) {
            let (first, last) = (self.next == 0, self.next + 1 == self.candidates.len());
            self.next += 1;
            let prompt = Prompt {
                upstream_model: candidate.upstream_model.clone(),
                max_output_tokens: candidate.max_output_tokens.min(self.prompt.max_output_tokens),
                // Another provider knows nothing of it.
                conversation: self.prompt.conversation.clone().filter(|_| first),
                ..if last { std::mem::take(&mut self.prompt) } else { self.prompt.clone() }
            };
            let begun = timeout_at(self.deadline, candidate.provider.generate(prompt)).await;
            match begun.unwrap_or(Err(ProviderError::Timeout("total"))) {
                Ok(stream) => {
                    self.begins = (!first).then(|| Chunk::Model(candidate.id.clone()));
                    self.written = 0;
                    return Ok(stream);
                }
                Err(error) => {
                    tracing::warn!(%error, model = candidate.id, last, "a model does not answer");
                    if error.is_of_the_prompt() || Instant::now() >= self.deadline {
                        return Err(error);
                    }
                    failed = error;
                }
            }
        }
        Err(failed)
    }

    /// The next chunk of an answer that may begin again.
    async fn chunk(&mut self) -> Option<Result<Chunk, ProviderError>> {
        if let Some(chunk) = self.begins.take() {
            return Some(Ok(chunk));
        }
        let error = match self.stream.as_mut()?.next().await? {
            Ok(Chunk::Text(text)) => {
                self.written += text.len();
                return Some(Ok(Chunk::Text(text)));
            }
            Ok(Chunk::Usage(mut usage)) => {
                if let Some(lost) = self.lost {
                    usage += lost;
                }
                return Some(Ok(Chunk::Usage(usage)));
            }
            Ok(chunk) => return Some(Ok(chunk)),
            Err(error) => error,
        };
        self.stream = None;
        if self.lost.is_some() {
            return Some(Err(error));
        }
        tracing::warn!(%error, "a model was lost in the middle of its answer, which begins again");
        self.lost = Some(estimate_usage(estimate_prompt_tokens(&self.prompt.messages), self.written));
        match self.begin(error).await {
            Ok(stream) => {
                self.stream = Some(stream::iter([Ok(Chunk::Text(RESTART_MARK.to_owned()))]).chain(stream).boxed());
                self.begins.take().map(Ok)
            }
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests;

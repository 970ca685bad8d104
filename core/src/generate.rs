//! Turns for services: what a model writes, without a session. Nothing of it is stored.
//!
//! A [`Turn`] belongs to whoever asked for it: dropping it closes the request upstream. [`Generator`] begins turns and
//! counts those that run, so that a server that leaves can wait for them and cut the rest. Whatever a provider does, a
//! panic included, a turn has exactly one [`TurnEvent::Finished`], and it is the last event.

use std::{any::Any, collections::VecDeque, panic::AssertUnwindSafe};

use chatbox_proto::trace::TraceContext;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture};
use tokio::time::Instant;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFuture},
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use crate::{
    domain::entry::{FinishReason, Usage},
    llm::{
        Chunk, ChunkStream, Model, Models, Prompt, PromptMessage, PromptRole, ProviderError, Sampling,
        tokens::{estimate_prompt_tokens, estimate_usage},
    },
};

/// Begins turns. A clone counts with it.
#[derive(Debug, Clone)]
pub struct Generator {
    models: Models,
    running: TaskTracker,
    cut: CancellationToken,
}

/// What a turn is made from.
#[derive(Debug, Clone)]
pub struct TurnStart {
    /// Who answers.
    pub model: Model,
    /// The whole conversation, oldest first. The model's own instructions are put before it when it has none.
    pub messages: Vec<PromptMessage>,
    /// At most this many tokens of output.
    pub max_output_tokens: u32,
    /// How the model picks its words.
    pub sampling: Sampling,
    /// Opaque, per caller: for abuse detection at the provider, and for fairness in its queue.
    pub user_hash: String,
    /// Nobody waits for the answer after this.
    pub deadline: Option<Instant>,
    /// Where it belongs in a trace.
    pub trace: Option<TraceContext>,
}

impl Generator {
    /// Over these models.
    #[must_use]
    pub fn new(models: Models) -> Self {
        let running = TaskTracker::new();
        // Closed from the start: nothing is spawned here, it only counts.
        running.close();
        Self { models, running, cut: CancellationToken::new() }
    }

    /// The model with this id; the default model for an empty one.
    #[must_use]
    pub fn model(&self, id: &str) -> Option<&Model> {
        if id.is_empty() { Some(self.models.default_model()) } else { self.models.get(id) }
    }

    /// Begins a turn. Nothing is asked before its first [`Turn::next`].
    #[must_use]
    pub fn begin(&self, start: TurnStart) -> Turn {
        let TurnStart { model, mut messages, max_output_tokens, sampling, user_hash, deadline, trace } = start;
        if let Some(text) = &model.info.system_prompt
            && messages.first().is_none_or(|first| first.role != PromptRole::System)
        {
            messages.insert(0, PromptMessage { role: PromptRole::System, text: text.clone() });
        }
        let prompt_tokens = estimate_prompt_tokens(&messages);
        let prompt = Prompt {
            upstream_model: model.info.upstream_model.clone(),
            messages,
            max_output_tokens,
            user_hash,
            conversation: None,
            sampling,
            deadline,
            trace,
        };
        let provider = model.provider.clone();
        Turn {
            model: model.info.id,
            stage: Stage::Asking(Box::pin(async move { provider.generate(prompt).await })),
            ready: VecDeque::new(),
            started: false,
            prompt_tokens,
            text_bytes: 0,
            usage: None,
            provider_request_id: String::new(),
            _running: self.running.token(),
        }
    }

    /// Turns that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Waits until none runs.
    pub async fn drained(&self) {
        self.running.wait().await;
    }

    /// Whoever runs a turn ends it as [`FinishReason::Interrupted`] from now on.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Resolves when turns are to end.
    pub fn cutting(&self) -> WaitForCancellationFuture<'_> {
        self.cut.cancelled()
    }
}

/// What happens in a turn.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnEvent {
    /// Id of the model that answers; another one when a fallback begins again in the middle.
    Started(String),
    /// Text; never empty.
    Text(String),
    /// The last event.
    Finished(TurnEnd),
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnEnd {
    /// How.
    pub finish: FinishReason,
    /// What it used; an estimate when the provider did not say.
    pub usage: Usage,
    /// The provider's own id of the request; may be empty.
    pub provider_request_id: String,
}

enum Stage {
    Asking(BoxFuture<'static, Result<ChunkStream, ProviderError>>),
    Answering(ChunkStream),
    Over,
}

/// One turn that runs. Dropping it ends the request upstream.
pub struct Turn {
    model: String,
    stage: Stage,
    ready: VecDeque<TurnEvent>,
    started: bool,
    prompt_tokens: u64,
    text_bytes: usize,
    usage: Option<Usage>,
    provider_request_id: String,
    _running: TaskTrackerToken,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Turn {
    /// The next event; `None` after the last one. Cancel-safe.
    pub async fn next(&mut self) -> Option<TurnEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match &mut self.stage {
                Stage::Asking(asking) => match AssertUnwindSafe(asking.as_mut()).catch_unwind().await {
                    Ok(Ok(chunks)) => self.stage = Stage::Answering(chunks),
                    Ok(Err(error)) => self.failed(&error),
                    Err(panic) => self.panicked(panic),
                },
                Stage::Answering(chunks) => match AssertUnwindSafe(chunks.next()).catch_unwind().await {
                    Ok(Some(Ok(chunk))) => self.chunk(chunk),
                    Ok(Some(Err(error))) => self.failed(&error),
                    Ok(None) => self.failed(&ProviderError::Truncated),
                    Err(panic) => self.panicked(panic),
                },
                Stage::Over => return None,
            }
        }
    }

    /// Ends it for a reason of the caller's: nothing more is read, the request upstream is closed. What was read and not
    /// taken is kept. Without effect on a turn that has ended.
    pub fn end(&mut self, finish: FinishReason) {
        if matches!(self.stage, Stage::Over) {
            return;
        }
        // Dropped here, which closes the request.
        self.stage = Stage::Over;
        let asked = self.started || finish != FinishReason::ProviderError;
        let estimate = || if asked { estimate_usage(self.prompt_tokens, self.text_bytes) } else { Usage::default() };
        let usage = self.usage.unwrap_or_else(estimate);
        let provider_request_id = std::mem::take(&mut self.provider_request_id);
        self.ready.push_back(TurnEvent::Finished(TurnEnd { finish, usage, provider_request_id }));
    }

    fn chunk(&mut self, chunk: Chunk) {
        match chunk {
            Chunk::RequestId(id) => self.provider_request_id = id,
            Chunk::Model(id) => {
                self.model = id;
                // The request is another one.
                self.provider_request_id.clear();
                if self.started {
                    self.ready.push_back(TurnEvent::Started(self.model.clone()));
                }
            }
            // A turn has its whole conversation with it.
            Chunk::Conversation(_) | Chunk::Reasoning => {}
            Chunk::Text(text) => {
                self.start();
                self.text_bytes += text.len();
                self.ready.push_back(TurnEvent::Text(text));
            }
            Chunk::Usage(usage) => self.usage = Some(usage),
            Chunk::Finished(finish) => {
                self.start();
                self.end(finish);
            }
        }
    }

    fn start(&mut self) {
        if !self.started {
            self.started = true;
            self.ready.push_back(TurnEvent::Started(self.model.clone()));
        }
    }

    fn failed(&mut self, error: &ProviderError) {
        tracing::warn!(%error, model = self.model, "provider failed");
        self.end(error.finish_reason());
    }

    /// The hook has logged and counted it; its text may quote a person's.
    fn panicked(&mut self, _panic: Box<dyn Any + Send>) {
        self.end(FinishReason::ProviderError);
    }
}

#[cfg(test)]
mod tests;

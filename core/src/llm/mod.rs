//! Providers: who generates text, behind one trait.
//!
//! A provider turns a prompt into a stream of [`Chunk`]s. It knows the wire format of its service and nothing of sessions;
//! timeouts between chunks, retries before the first token and the total limit are the same for all and live in
//! `guard`. The end of the stream without [`Chunk::Finished`] is an error: a truncated answer must never look complete.
//!
//! From a model down to the wire: `observed` (figures and spans) → `route` (the model, then its fallbacks) → `upstream` (one configured provider: `breaker`
//! and `queue`) → `guard` (limits, retries) → a dialect (`openai`, `anthropic`, `dify`, `demo`) → `stream` and `http`.

pub mod anthropic;
pub mod breaker;
pub mod demo;
pub mod dify;
pub mod guard;
pub mod http;
pub mod observed;
pub mod openai;
pub mod queue;
pub mod registry;
pub mod route;
pub mod sse;
pub mod stream;
pub mod tokens;
pub mod upstream;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod scripted;

pub use registry::{Model, ModelInfo, Models, ModelsError};
pub use tokens::{estimate_message_tokens, estimate_tokens};

use async_trait::async_trait;
use chatbox_proto::trace::TraceContext;
use futures_util::stream::BoxStream;
use serde::Serialize;
use tokio::time::Instant;

use crate::domain::entry::{FinishReason, Usage};

/// A prompt for one turn.
#[derive(Debug, Clone, Default)]
pub struct Prompt {
    /// The model's name at the provider.
    pub upstream_model: String,
    /// Oldest first; at most one system message, first.
    pub messages: Vec<PromptMessage>,
    /// At most this many tokens of output.
    pub max_output_tokens: u32,
    /// Stable, opaque, per user: for abuse detection at the provider, and for fairness in its queue. Never the user id itself.
    pub user_hash: String,
    /// What the provider said in [`Chunk::Conversation`] in an earlier turn of the same session: it knows what was said
    /// before. `None`: everything it has to know is in `messages`.
    pub conversation: Option<String>,
    /// How the model picks its words.
    pub sampling: Sampling,
    /// Nobody waits for the answer after this; the provider's own limits hold all the same.
    pub deadline: Option<Instant>,
    /// The place in a trace that the request belongs to, which the provider is told.
    pub trace: Option<TraceContext>,
}

/// How a model picks its words; what is not set is as the provider has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// Temperature.
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// Strings that end the output.
    pub stop: StopStrings,
}

/// Strings that end the output.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
pub struct StopStrings(pub Vec<String>);

impl StopStrings {
    /// None is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for StopStrings {
    /// Without the text: it must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StopStrings").field("count", &self.0.len()).finish()
    }
}

/// One message of a prompt.
#[derive(Clone, PartialEq, Eq)]
pub struct PromptMessage {
    /// Who speaks.
    pub role: PromptRole,
    /// The text, as its author wrote it.
    pub text: String,
}

impl std::fmt::Debug for PromptMessage {
    /// Without the text: it must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PromptMessage").field("role", &self.role).field("bytes", &self.text.len()).finish()
    }
}

/// Who speaks in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptRole {
    /// Instructions.
    System,
    /// A person.
    User,
    /// The model.
    Assistant,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// The provider's own id of the request; at most once, at most 200 bytes.
    RequestId(String),
    /// Id of the model that answers instead of the one that was asked: a fallback. Before the text it wrote.
    Model(String),
    /// The provider keeps the conversation under this name, at most 200 bytes; at most once.
    Conversation(String),
    /// The model works on something that is not for the reader, as its reasoning. Nothing of it is kept.
    Reasoning,
    /// Text; never empty.
    Text(String),
    /// What the turn used, from the provider; the last one counts.
    Usage(Usage),
    /// The provider's end marker was seen: [`FinishReason::Stop`], [`FinishReason::Length`] or [`FinishReason::Filtered`]. The last chunk.
    Finished(FinishReason),
}

/// What went wrong with a provider, as a class; nothing the provider said is passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// No connection, or it broke.
    #[error("connection: {0}")]
    Connection(String),
    /// The provider answered with an error status.
    #[error("status {status}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// From `Retry-After`.
        retry_after: Option<std::time::Duration>,
    },
    /// An error event inside the stream.
    #[error("error event: {0}")]
    Event(String),
    /// The stream is not what the wire format says.
    #[error("malformed stream: {0}")]
    Malformed(&'static str),
    /// The stream ended before its end marker.
    #[error("truncated stream")]
    Truncated,
    /// A time limit passed.
    #[error("time limit: {0}")]
    Timeout(&'static str),
    /// An error event that says that the provider has too much to do; it passes.
    #[error("overloaded: {0}")]
    Overloaded(&'static str),
    /// It failed too often lately and is left alone for a while; nothing was sent.
    #[error("circuit open")]
    CircuitOpen,
    /// Too many replies wait for it; nothing was sent.
    #[error("queue full")]
    QueueFull,
    /// The prompt cannot be said in its format; nothing was sent.
    #[error("prompt: {0}")]
    Prompt(&'static str),
}

impl ProviderError {
    /// The outcome of a reply that ends with this error.
    #[must_use]
    pub fn finish_reason(&self) -> FinishReason {
        match self {
            Self::Timeout(_) => FinishReason::Timeout,
            Self::Connection(_)
            | Self::Status { .. }
            | Self::Event(_)
            | Self::Malformed(_)
            | Self::Truncated
            | Self::Overloaded(_)
            | Self::CircuitOpen
            | Self::QueueFull
            | Self::Prompt(_) => FinishReason::ProviderError,
        }
    }

    /// The prompt itself was refused: nobody else will take it either.
    #[must_use]
    pub fn is_of_the_prompt(&self) -> bool {
        matches!(self, Self::Status { status: 400 | 413 | 422, .. } | Self::Prompt(_))
    }
}

/// A stream of chunks. Dropping it closes the request to the provider.
pub type ChunkStream = BoxStream<'static, Result<Chunk, ProviderError>>;

/// Who generates text.
#[async_trait]
pub trait Provider: Send + Sync + std::fmt::Debug + 'static {
    /// Starts a turn. Resolves when the provider has accepted it (response head received), before the first token.
    ///
    /// Dropping the future or the stream ends the request upstream. After an `Err` item the stream ends.
    ///
    /// # Errors
    /// Whatever [`ProviderError`] says; nothing was generated then.
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError>;

    /// Built in and without intelligence.
    fn is_demo(&self) -> bool {
        false
    }

    /// How it does just now, for the figures. `None`: nothing limits it.
    fn load(&self) -> Option<Load> {
        None
    }

    /// Resolves when nothing of it runs in the background any more. What does is bounded in number and time.
    async fn settled(&self) {}
}

/// How a provider does just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Whether it is left alone.
    pub breaker: breaker::Phase,
    /// How often it was left alone so far.
    pub opened: u64,
    /// The replies that it generates, and those that wait for a place.
    pub queue: queue::QueueLoad,
}

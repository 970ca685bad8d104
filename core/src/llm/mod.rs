//! Providers: who generates text, behind one trait.
//!
//! A provider turns a prompt into a stream of [`Chunk`]s. It knows the wire format of its service and nothing of sessions;
//! timeouts between chunks, retries before the first token and the total limit are the same for all and live in
//! `guard`. The end of the stream without [`Chunk::Finished`] is an error: a truncated answer must never look complete.

pub mod demo;
pub mod guard;
pub mod http;
pub mod openai;
pub mod registry;
pub mod sse;
pub mod tokens;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod scripted;

pub use registry::{Model, ModelInfo, Models, ModelsError};
pub use tokens::{estimate_message_tokens, estimate_tokens};

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::domain::entry::{FinishReason, Usage};

/// A prompt for one turn.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The model's name at the provider.
    pub upstream_model: String,
    /// Oldest first; at most one system message, first.
    pub messages: Vec<PromptMessage>,
    /// At most this many tokens of output.
    pub max_output_tokens: u32,
    /// Stable, opaque, per user: for abuse detection at the provider. Never the user id itself.
    pub user_hash: String,
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
}

impl ProviderError {
    /// The outcome of a reply that ends with this error.
    #[must_use]
    pub fn finish_reason(&self) -> FinishReason {
        match self {
            Self::Timeout(_) => FinishReason::Timeout,
            Self::Connection(_) | Self::Status { .. } | Self::Event(_) | Self::Malformed(_) | Self::Truncated => {
                FinishReason::ProviderError
            }
        }
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
}

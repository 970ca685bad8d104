//! The `openai` provider: chat completions, streamed. Also every server that speaks the same: vLLM, Ollama, llama.cpp,
//! `LiteLLM`, Azure.
//!
//! `request` and `wire` are the format and pure; `client` is the transport. Neither knows of time limits or retries, except one: how
//! long to wait for the rest of a stream whose text is already complete.

mod client;
mod request;
mod wire;

pub use client::{OpenAi, OpenAiSettings};
pub use request::OutputLimitField;

#[cfg(test)]
mod conformance;

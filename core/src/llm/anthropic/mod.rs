//! The `anthropic` provider: the Messages API, streamed. Also servers that speak the same, as llama.cpp.
//!
//! `request` and `wire` are the format and pure; `client` is the transport.

mod client;
mod request;
mod wire;

pub use client::{Anthropic, AnthropicSettings};

#[cfg(test)]
mod conformance;

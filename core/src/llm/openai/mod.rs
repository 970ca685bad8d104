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

use std::collections::VecDeque;

use bytes::Bytes;

use super::{
    Chunk, ProviderError,
    sse::SseDecoder,
    stream::{Decoder as _, Progress},
};

/// Reads a recorded response body that arrived in these pieces, as a live one is read: the chunks up to the end or the
/// first fault, which comes with the fault.
pub fn decode_recorded(
    pieces: impl IntoIterator<Item = Bytes>,
    max_event_bytes: usize,
) -> (Vec<Chunk>, Result<(), ProviderError>) {
    let mut ready = VecDeque::new();
    let outcome = decode_into(pieces, max_event_bytes, &mut ready);
    (ready.into(), outcome)
}

fn decode_into(
    pieces: impl IntoIterator<Item = Bytes>,
    max_event_bytes: usize,
    ready: &mut VecDeque<Chunk>,
) -> Result<(), ProviderError> {
    let mut events = SseDecoder::new(max_event_bytes);
    let mut decoder = wire::ReplyDecoder::new(None, ready);
    for mut piece in pieces {
        while let Some(event) = events.decode(&mut piece).map_err(|_| ProviderError::Malformed("event too large"))? {
            if decoder.event(&event, ready)? == Progress::Done {
                return Ok(());
            }
        }
    }
    decoder.end(ready).map(|_| ())
}

#[cfg(test)]
mod conformance;

//! The format of a streamed message: the part of each event that is read.
//!
//! A message is a list of blocks; only text of text blocks is for the reader. `stop_reason` is the model's word that it is
//! done, `message_stop` the end of the stream; usage is in the first event and, as running totals, in `message_delta`.
//! Event types are added over time and unknown ones have to be ignored.

use std::borrow::Cow;
use std::collections::VecDeque;

use serde::Deserialize;

use crate::domain::entry::{FinishReason, Usage};
use crate::llm::sse::SseEvent;
use crate::llm::stream::{Decoder, Progress, usable_id};
use crate::llm::{Chunk, ProviderError};

/// Text that borrows from the event unless it holds an escape. (Serde borrows a bare `Cow`, but not one in an `Option`.)
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow, default)]
    message: Option<Message<'a>>,
    #[serde(borrow, default)]
    content_block: Option<Part<'a>>,
    #[serde(borrow, default)]
    delta: Option<Part<'a>>,
    #[serde(default)]
    usage: Option<UsageWire>,
    #[serde(borrow, default)]
    error: Option<ErrorWire<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    #[serde(default)]
    usage: Option<UsageWire>,
}

/// A block as it begins, a piece of one, or what `message_delta` says of the whole message.
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    stop_reason: Option<Text<'a>>,
}

/// Figures that are absent stay as they were.
#[derive(Deserialize)]
struct UsageWire {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct ErrorWire<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Text<'a>>,
}

/// The errors of the service. Anything else could be anything, a key for instance.
const ERROR_NAMES: [&str; 9] = [
    "invalid_request_error",
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "api_error",
    "timeout_error",
    "exceed_context_size_error",
];
/// The ones that pass by themselves.
const PASSING: [&str; 2] = ["overloaded_error", "rate_limit_error"];

/// Totals so far. The service counts what it reads from its cache and what it writes there apart from the rest of the
/// prompt.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    input: u64,
    cache_creation: u64,
    cache_read: u64,
    output: u64,
}

impl Totals {
    fn take(&mut self, wire: &UsageWire) {
        for (total, figure) in [
            (&mut self.input, wire.input_tokens),
            (&mut self.output, wire.output_tokens),
            (&mut self.cache_creation, wire.cache_creation_input_tokens),
            (&mut self.cache_read, wire.cache_read_input_tokens),
        ] {
            *total = figure.unwrap_or(*total);
        }
    }
}

impl From<Totals> for Usage {
    fn from(totals: Totals) -> Self {
        let Totals { input, cache_creation, cache_read, output } = totals;
        Self {
            prompt_tokens: input.saturating_add(cache_creation).saturating_add(cache_read),
            completion_tokens: output,
            cached_tokens: cache_read,
            estimated: false,
        }
    }
}

/// Turns the events of one stream into chunks.
#[derive(Debug, Default)]
pub(super) struct ReplyDecoder {
    request_id: bool,
    finish: Option<FinishReason>,
    usage: Option<Totals>,
}

impl ReplyDecoder {
    /// A decoder for a stream whose head named the request.
    pub(super) fn new(request_id: Option<&str>, out: &mut VecDeque<Chunk>) -> Self {
        let mut decoder = Self::default();
        decoder.take_request_id(request_id, out);
        decoder
    }

    fn take_request_id(&mut self, id: Option<&str>, out: &mut VecDeque<Chunk>) {
        if !self.request_id
            && let Some(id) = id.filter(|id| usable_id(id))
        {
            self.request_id = true;
            out.push_back(Chunk::RequestId(id.to_owned()));
        }
    }

    fn take_usage(&mut self, usage: Option<&UsageWire>) {
        if let Some(usage) = usage {
            self.usage.get_or_insert_default().take(usage);
        }
    }

    fn part(part: Option<Part<'_>>, text_kind: &str, out: &mut VecDeque<Chunk>) {
        let Some(part) = part else { return };
        if part.kind.is_some_and(|kind| kind.0 == text_kind) {
            let text = part.text.filter(|text| !text.0.is_empty());
            out.extend(text.map(|text| Chunk::Text(text.0.into_owned())));
        } else {
            // Thoughts and their signatures, tools, citations.
            out.push_back(Chunk::Reasoning);
        }
    }
}

impl Decoder for ReplyDecoder {
    fn event(&mut self, event: &SseEvent, out: &mut VecDeque<Chunk>) -> Result<Progress, ProviderError> {
        let data = std::str::from_utf8(&event.data).map_err(|_| ProviderError::Malformed("event is not UTF-8"))?;
        let data = data.trim_ascii();
        if data.is_empty() {
            return Ok(Progress::More);
        }
        let named_error = event.name.as_ref() == b"error";
        // Serde would take a list for a struct.
        if !data.starts_with('{') && !named_error {
            return Err(ProviderError::Malformed("event is not an object"));
        }
        let parsed = match serde_json::from_str::<Event<'_>>(data) {
            Ok(parsed) => parsed,
            Err(_) if named_error => return Err(ProviderError::Event("unnamed".to_owned())),
            Err(error) if error.is_data() => return Err(ProviderError::Malformed("event has an unexpected shape")),
            Err(_) => return Err(ProviderError::Malformed("event is not JSON")),
        };
        match parsed.kind.0.as_ref() {
            "message_start" => {
                if let Some(message) = &parsed.message {
                    self.take_request_id(message.id.as_ref().map(|id| id.0.as_ref()), out);
                    self.take_usage(message.usage.as_ref());
                }
            }
            "content_block_start" => Self::part(parsed.content_block, "text", out),
            "content_block_delta" => Self::part(parsed.delta, "text_delta", out),
            "message_delta" => {
                self.take_usage(parsed.usage.as_ref());
                if let Some(reason) = parsed.delta.and_then(|delta| delta.stop_reason) {
                    self.finish = Some(finish(&reason.0));
                }
            }
            "message_stop" => return self.end(out),
            "error" => return Err(failure(parsed.error)),
            _ if named_error => return Err(failure(parsed.error)),
            // `ping`, `content_block_stop`, and what is not known yet.
            _ => {}
        }
        Ok(Progress::More)
    }

    fn end(&mut self, out: &mut VecDeque<Chunk>) -> Result<Progress, ProviderError> {
        let finish = self.finish.ok_or(ProviderError::Truncated)?;
        out.extend(self.usage.take().map(|totals| Chunk::Usage(totals.into())));
        out.push_back(Chunk::Finished(finish));
        Ok(Progress::Done)
    }

    fn text_is_complete(&self) -> bool {
        self.finish.is_some()
    }
}

fn finish(reason: &str) -> FinishReason {
    match reason {
        // `pause_turn`: a long turn that would go on if it were asked to.
        "max_tokens" | "model_context_window_exceeded" | "pause_turn" => FinishReason::Length,
        "refusal" => FinishReason::Filtered,
        // `end_turn`, `stop_sequence`, a tool nobody offered, or what is not known yet: the model chose to end.
        _ => FinishReason::Stop,
    }
}

fn failure(error: Option<ErrorWire<'_>>) -> ProviderError {
    let kind = error.and_then(|error| error.kind);
    let kind = kind.as_ref().map_or("", |kind| kind.0.as_ref());
    if let Some(passes) = PASSING.iter().find(|name| **name == kind) {
        return ProviderError::Overloaded(passes);
    }
    let known = ERROR_NAMES.iter().find(|name| **name == kind);
    ProviderError::Event((*known.unwrap_or(&"unnamed")).to_owned())
}

#[cfg(test)]
mod tests;

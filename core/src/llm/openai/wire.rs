//! The format of streamed chat completions: the part of each event that is read.
//!
//! What ends an answer: `finish_reason` is the model's word that it is done, and the only one that is believed. Servers
//! write `[DONE]` after failures too (vLLM does so unconditionally), so `[DONE]` without a `finish_reason` is a truncated
//! answer; and some never write it (or keep the connection open), so a `finish_reason` without it is a complete one.
//! The usage event comes between the two, so the end is only reported at `[DONE]` or at the end of the stream.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::domain::entry::{FinishReason, Usage};
use crate::llm::http::Refused;
use crate::llm::sse::SseEvent;
use crate::llm::stream::{Decoder, Progress, usable_id};
use crate::llm::{Chunk, ProviderError};

/// Text that borrows from the event unless it holds an escape. (Serde borrows a bare `Cow`, but not one in an `Option`.)
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    /// `error` in what some versions of vLLM send instead of an `error` object.
    #[serde(borrow, default)]
    object: Option<Text<'a>>,
    #[serde(borrow, default)]
    choices: FirstChoice<'a>,
    #[serde(default)]
    usage: Option<UsageWire>,
    #[serde(borrow, default)]
    error: Option<ErrorWire<'a>>,
}

/// The first of `choices`: one is asked for. `null` and an empty list are none.
#[derive(Default)]
struct FirstChoice<'a>(Option<Choice<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for FirstChoice<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;
        impl<'de> Visitor<'de> for First {
            type Value = FirstChoice<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of choices or null")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(FirstChoice(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let first = seq.next_element()?;
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(FirstChoice(first))
            }
        }
        deserializer.deserialize_any(First)
    }
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Content<'a>,
    #[serde(borrow, default)]
    refusal: Option<Text<'a>>,
    /// How a model came to its answer, under the two names that servers give it. Never shown.
    #[serde(default)]
    reasoning_content: Option<IgnoredAny>,
    #[serde(default)]
    reasoning: Option<IgnoredAny>,
}

/// Text, or a list of parts of which some are text.
#[derive(Default)]
enum Content<'a> {
    #[default]
    None,
    Text(Cow<'a, str>),
    Parts(Vec<Part<'a>>),
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    refusal: Option<Text<'a>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrParts;
        impl<'de> Visitor<'de> for TextOrParts {
            type Value = Content<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a list of parts or null")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Content::None)
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Content::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Content::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = seq.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }
        deserializer.deserialize_any(TextOrParts)
    }
}

#[derive(Deserialize)]
struct UsageWire {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Deserialize)]
struct PromptTokensDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl From<UsageWire> for Usage {
    fn from(wire: UsageWire) -> Self {
        Self {
            prompt_tokens: wire.prompt_tokens.unwrap_or(0),
            completion_tokens: wire.completion_tokens.unwrap_or(0),
            cached_tokens: wire.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0),
            estimated: false,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorWire<'a> {
    Object {
        #[serde(borrow, default, rename = "type")]
        kind: Option<Text<'a>>,
        #[serde(borrow, default)]
        code: Option<ErrorCode<'a>>,
    },
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorCode<'a> {
    Number(u16),
    Name(#[serde(borrow)] Text<'a>),
    Other(IgnoredAny),
}

/// Names of errors that are passed on to the log. Anything else could be anything, a key for instance.
const ERROR_NAMES: [&str; 12] = [
    "server_error",
    "api_error",
    "insufficient_quota",
    "invalid_request_error",
    "context_length_exceeded",
    "exceed_context_size_error",
    "timeout_error",
    "authentication_error",
    "model_not_found",
    "BadRequestError",
    "InternalServerError",
    "upstream_error",
];

/// Of those, the ones that pass by themselves.
const PASSING: [&str; 4] = ["rate_limit_exceeded", "rate_limit_error", "overloaded_error", "unavailable_error"];

/// A refusal by a filter, by its code.
pub(super) fn is_content_filter(refused: &Refused) -> bool {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        error: ErrorWire<'a>,
    }
    if !matches!(refused.error, ProviderError::Status { status: 400, .. }) {
        return false;
    }
    match serde_json::from_slice::<Body<'_>>(&refused.body).map(|body| body.error) {
        Ok(ErrorWire::Object { code: Some(ErrorCode::Name(name)), .. }) => name.0 == "content_filter",
        Ok(ErrorWire::Object { .. } | ErrorWire::Other(_)) | Err(_) => false,
    }
}

// === From events to chunks ===

/// Turns the events of one stream into chunks.
#[derive(Debug, Default)]
pub(super) struct ReplyDecoder {
    request_id: bool,
    refused: bool,
    finish: Option<FinishReason>,
    usage: Option<Usage>,
}

impl ReplyDecoder {
    /// A decoder for a stream whose head named the request.
    pub(super) fn new(request_id: Option<&str>, out: &mut VecDeque<Chunk>) -> Self {
        let mut decoder = Self::default();
        decoder.take_request_id(request_id, out);
        decoder
    }
}

impl Decoder for ReplyDecoder {
    fn text_is_complete(&self) -> bool {
        self.finish.is_some()
    }

    fn event(&mut self, event: &SseEvent, out: &mut VecDeque<Chunk>) -> Result<Progress, ProviderError> {
        let named_error = event.name.as_ref() == b"error";
        let data = std::str::from_utf8(&event.data).map_err(|_| ProviderError::Malformed("event is not UTF-8"))?;
        match data.trim_ascii() {
            "" => return Ok(Progress::More),
            "[DONE]" => return self.end(out),
            // Serde would take a list for a struct.
            data if !data.starts_with('{') && !named_error => {
                return Err(ProviderError::Malformed("event is not an object"));
            }
            _ => {}
        }
        let parsed = match serde_json::from_str::<Event<'_>>(data) {
            Ok(parsed) => parsed,
            Err(_) if named_error => return Err(ProviderError::Event("unnamed".to_owned())),
            Err(error) if error.is_data() => return Err(ProviderError::Malformed("event has an unexpected shape")),
            Err(_) => return Err(ProviderError::Malformed("event is not JSON")),
        };
        if let Some(error) = parsed.error {
            return self.error(&error, out);
        }
        if named_error || parsed.object.is_some_and(|object| object.0 == "error") {
            return Err(ProviderError::Event("unnamed".to_owned()));
        }
        self.take_request_id(parsed.id.as_ref().map(|id| id.0.as_ref()), out);
        if let Some(usage) = parsed.usage {
            // Some servers repeat running totals in every event; only the last counts.
            self.usage = Some(usage.into());
        }
        match parsed.choices.0 {
            Some(choice) => self.choice(choice, out),
            None => Ok(Progress::More),
        }
    }

    fn end(&mut self, out: &mut VecDeque<Chunk>) -> Result<Progress, ProviderError> {
        let finish = self.finish.ok_or(ProviderError::Truncated)?;
        self.finished(finish, out);
        Ok(Progress::Done)
    }
}

impl ReplyDecoder {
    fn finished(&mut self, finish: FinishReason, out: &mut VecDeque<Chunk>) {
        out.extend(self.usage.take().map(Chunk::Usage));
        // A refusal ends with `stop`, but it is not the answer that was asked for.
        out.push_back(Chunk::Finished(if self.refused { FinishReason::Filtered } else { finish }));
    }

    fn choice(&mut self, choice: Choice<'_>, out: &mut VecDeque<Chunk>) -> Result<Progress, ProviderError> {
        if let Some(delta) = choice.delta {
            self.delta(delta, out);
        }
        if let Some(reason) = choice.finish_reason {
            self.finish = match reason.0.as_ref() {
                "length" | "max_tokens" | "model_length" => Some(FinishReason::Length),
                "content_filter" => Some(FinishReason::Filtered),
                // The server gave up (vLLM, OpenRouter): what is there is not an answer.
                "abort" | "error" | "cancelled" => return Err(ProviderError::Event("aborted".to_owned())),
                // Servers that stream put "" where others put null.
                "" => self.finish,
                // `stop`, the name of a stop token, or a tool call nobody offered: the model chose to end.
                _ => Some(FinishReason::Stop),
            };
        }
        Ok(Progress::More)
    }

    fn delta(&mut self, delta: Delta<'_>, out: &mut VecDeque<Chunk>) {
        let before = out.len();
        let mut say = |text: Cow<'_, str>| {
            if !text.is_empty() {
                out.push_back(Chunk::Text(text.into_owned()));
            }
        };
        let mut refusals = Vec::new();
        match delta.content {
            Content::None => {}
            Content::Text(text) => say(text),
            Content::Parts(parts) => {
                for part in parts {
                    // A part of another kind is a thought, a picture, or what nobody asked for.
                    match part.kind.as_ref().map(|kind| kind.0.as_ref()) {
                        Some("text" | "output_text") | None => part.text.into_iter().for_each(|text| say(text.0)),
                        Some("refusal") => refusals.extend(part.refusal),
                        Some(_) => {}
                    }
                }
            }
        }
        for refusal in refusals.into_iter().chain(delta.refusal) {
            self.refused |= !refusal.0.is_empty();
            say(refusal.0);
        }
        let reasons = delta.reasoning_content.is_some() || delta.reasoning.is_some();
        if reasons && out.len() == before {
            out.push_back(Chunk::Reasoning);
        }
    }

    fn error(&mut self, error: &ErrorWire<'_>, out: &mut VecDeque<Chunk>) -> Result<Progress, ProviderError> {
        let ErrorWire::Object { kind, code } = error else {
            return Err(ProviderError::Event("unnamed".to_owned()));
        };
        let names = [
            match code {
                Some(ErrorCode::Name(name)) => Some(name.0.as_ref()),
                Some(ErrorCode::Number(_) | ErrorCode::Other(_)) | None => None,
            },
            kind.as_ref().map(|kind| kind.0.as_ref()),
        ];
        if names.contains(&Some("content_filter")) {
            self.finished(FinishReason::Filtered, out);
            return Ok(Progress::Done);
        }
        if let Some(passes) = names.into_iter().flatten().find_map(|name| PASSING.iter().find(|known| **known == name))
        {
            return Err(ProviderError::Overloaded(passes));
        }
        match code {
            Some(ErrorCode::Number(429)) => return Err(ProviderError::Overloaded("429")),
            Some(ErrorCode::Number(503)) => return Err(ProviderError::Overloaded("503")),
            Some(ErrorCode::Number(_) | ErrorCode::Name(_) | ErrorCode::Other(_)) | None => {}
        }
        let known = names.into_iter().flatten().find(|name| ERROR_NAMES.contains(name));
        Err(ProviderError::Event(match (known, code) {
            (Some(name), _) => name.to_owned(),
            (None, Some(ErrorCode::Number(code))) => code.to_string(),
            (None, Some(ErrorCode::Name(_) | ErrorCode::Other(_)) | None) => "unnamed".to_owned(),
        }))
    }

    fn take_request_id(&mut self, id: Option<&str>, out: &mut VecDeque<Chunk>) {
        if !self.request_id
            && let Some(id) = id.filter(|id| usable_id(id))
        {
            self.request_id = true;
            out.push_back(Chunk::RequestId(id.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests;

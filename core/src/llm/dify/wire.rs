//! The format of a streamed chat message: the part of each event that is read.
//!
//! `message_end` is the end and carries the usage. `message_replace` comes when a filter strikes: text that has been given
//! out cannot be taken back, so what was said stays, the rest is withheld, and the answer is marked as filtered. Steps of a
//! workflow and of an agent are signs of life; sound and files are not for us. Unknown events are ignored.

use std::borrow::Cow;
use std::collections::VecDeque;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::stop::StopHandle;
use crate::domain::entry::{FinishReason, Usage};
use crate::llm::sse::SseEvent;
use crate::llm::stream::{Decoder, Progress, usable_id};
use crate::llm::{Chunk, ProviderError};

/// Text that borrows from the event unless it holds an escape. (Serde borrows a bare `Cow`, but not one in an `Option`.)
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    event: Text<'a>,
    #[serde(borrow, default)]
    task_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    message_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    conversation_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    answer: Option<Text<'a>>,
    #[serde(default)]
    metadata: Option<Metadata>,
    #[serde(borrow, default)]
    data: Option<Data<'a>>,
    #[serde(borrow, default)]
    code: Option<Text<'a>>,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    usage: Option<UsageWire>,
}

#[derive(Deserialize)]
struct UsageWire {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
}

impl From<UsageWire> for Usage {
    fn from(wire: UsageWire) -> Self {
        Self {
            prompt_tokens: wire.prompt_tokens.unwrap_or(0),
            completion_tokens: wire.completion_tokens.unwrap_or(0),
            cached_tokens: 0,
            estimated: false,
        }
    }
}

/// Of a workflow: how it went. What it is for other events is none of ours.
#[derive(Deserialize)]
#[serde(untagged)]
enum Data<'a> {
    Workflow {
        #[serde(borrow)]
        status: Text<'a>,
    },
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Status {
    Number(u16),
    Other(IgnoredAny),
}

/// The errors of the service. Anything else could be anything, a key for instance.
const ERROR_NAMES: [&str; 9] = [
    "invalid_param",
    "bad_request",
    "app_unavailable",
    "provider_not_initialize",
    "provider_quota_exceeded",
    "model_currently_not_support",
    "completion_request_error",
    "internal_server_error",
    "unauthorized",
];
/// The ones that pass by themselves.
const PASSING: [&str; 2] = ["rate_limit_error", "too_many_requests"];

/// Turns the events of one stream into chunks.
#[derive(Debug)]
pub(super) struct ReplyDecoder {
    stop: StopHandle,
    request_id: bool,
    conversation: bool,
    said: bool,
    replaced: bool,
}

impl ReplyDecoder {
    /// A decoder for a stream whose head named the request.
    pub(super) fn new(request_id: Option<&str>, stop: StopHandle, out: &mut VecDeque<Chunk>) -> Self {
        let mut decoder = Self { stop, request_id: false, conversation: false, said: false, replaced: false };
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

    fn take_ids(&mut self, event: &Event<'_>, out: &mut VecDeque<Chunk>) {
        if let Some(task) = &event.task_id {
            self.stop.works_on(&task.0);
        }
        self.take_request_id(event.message_id.as_ref().map(|id| id.0.as_ref()), out);
        if !self.conversation
            && let Some(id) = event.conversation_id.as_ref().filter(|id| usable_id(&id.0))
        {
            self.conversation = true;
            out.push_back(Chunk::Conversation(id.0.as_ref().to_owned()));
        }
    }

    fn say(&mut self, answer: Option<Text<'_>>, out: &mut VecDeque<Chunk>) {
        if let Some(text) = answer.filter(|text| !text.0.is_empty() && !self.replaced) {
            self.said = true;
            out.push_back(Chunk::Text(text.0.into_owned()));
        }
    }

    fn finished(&mut self, out: &mut VecDeque<Chunk>) -> Progress {
        self.stop.ended();
        let finish = if self.replaced { FinishReason::Filtered } else { FinishReason::Stop };
        out.push_back(Chunk::Finished(finish));
        Progress::Done
    }

    fn failed(&mut self, error: ProviderError) -> Result<Progress, ProviderError> {
        self.stop.ended();
        Err(error)
    }
}

impl Decoder for ReplyDecoder {
    fn event(&mut self, event: &SseEvent, out: &mut VecDeque<Chunk>) -> Result<Progress, ProviderError> {
        let data = std::str::from_utf8(&event.data).map_err(|_| ProviderError::Malformed("event is not UTF-8"))?;
        let data = data.trim_ascii();
        if data.is_empty() || event.name.as_ref() == b"ping" {
            return Ok(Progress::More);
        }
        // Serde would take a list for a struct.
        if !data.starts_with('{') {
            return Err(ProviderError::Malformed("event is not an object"));
        }
        let parsed = match serde_json::from_str::<Event<'_>>(data) {
            Ok(parsed) => parsed,
            Err(error) if error.is_data() => return Err(ProviderError::Malformed("event has an unexpected shape")),
            Err(_) => return Err(ProviderError::Malformed("event is not JSON")),
        };
        self.take_ids(&parsed, out);
        match parsed.event.0.as_ref() {
            "message" | "agent_message" => self.say(parsed.answer, out),
            "message_replace" => {
                if !self.said {
                    self.say(parsed.answer, out);
                }
                self.replaced = true;
            }
            "message_end" => {
                let usage = parsed.metadata.and_then(|metadata| metadata.usage);
                out.extend(usage.map(|usage| Chunk::Usage(usage.into())));
                return Ok(self.finished(out));
            }
            "workflow_finished" => match &parsed.data {
                Some(Data::Workflow { status }) if matches!(status.0.as_ref(), "failed" | "stopped") => {
                    return self.failed(ProviderError::Event(format!("workflow_{}", status.0)));
                }
                Some(Data::Workflow { .. } | Data::Other(_)) | None => {}
            },
            "error" => return self.failed(failure(&parsed)),
            "agent_thought"
            | "agent_log"
            | "workflow_started"
            | "node_started"
            | "node_finished"
            | "node_retry"
            | "iteration_started"
            | "iteration_next"
            | "iteration_completed"
            | "loop_started"
            | "loop_next"
            | "loop_completed" => out.push_back(Chunk::Reasoning),
            // `ping`, `message_file`, `tts_message`, `tts_message_end`, and what is not known yet.
            _ => {}
        }
        Ok(Progress::More)
    }

    fn end(&mut self, out: &mut VecDeque<Chunk>) -> Result<Progress, ProviderError> {
        // After a replacement nothing of the text is awaited any more, only usage.
        if self.replaced { Ok(self.finished(out)) } else { Err(ProviderError::Truncated) }
    }

    fn text_is_complete(&self) -> bool {
        self.replaced
    }
}

fn failure(event: &Event<'_>) -> ProviderError {
    let code = event.code.as_ref().map_or("", |code| code.0.as_ref());
    if let Some(passes) = PASSING.iter().find(|name| **name == code) {
        return ProviderError::Overloaded(passes);
    }
    match (ERROR_NAMES.iter().find(|name| **name == code), &event.status) {
        (Some(name), _) => ProviderError::Event((*name).to_owned()),
        (None, Some(Status::Number(429))) => ProviderError::Overloaded("429"),
        (None, Some(Status::Number(status))) => ProviderError::Event(status.to_string()),
        (None, Some(Status::Other(_)) | None) => ProviderError::Event("unnamed".to_owned()),
    }
}

#[cfg(test)]
mod tests;

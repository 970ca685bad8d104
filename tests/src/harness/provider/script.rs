//! What the scripted provider does with one request.

use std::time::Duration;

use serde_json::{Value, json};

use super::dialect::Part;
use crate::harness::gate::Gate;

/// One thing that the provider does, in order.
#[derive(Debug, Clone)]
pub enum Step {
    /// Send these bytes of the body.
    Bytes(Vec<u8>),
    /// Send this in the words of the service that is asked for.
    Part(Part),
    /// Wait at a gate, or until the client leaves.
    Gate(Gate),
    /// Pause between two pieces, or until the client leaves.
    Pause(Duration),
    /// Send nothing more; wait until the client leaves.
    Hang,
    /// Drop the connection with a reset.
    Reset,
    /// Close the connection without ending the body.
    Truncate,
}

/// What the provider does with one request. Steps before the head is sent happen before any byte of the answer.
#[derive(Debug, Clone)]
pub struct Script {
    pub(super) before_head: Vec<Step>,
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) steps: Vec<Step>,
}

impl Script {
    /// An empty stream with status 200; everything else is added.
    #[must_use]
    pub fn stream() -> Self {
        Self {
            before_head: Vec::new(),
            status: 200,
            headers: vec![("content-type".to_owned(), "text/event-stream".to_owned())],
            steps: Vec::new(),
        }
    }

    /// A whole good answer in these pieces, with usage.
    #[must_use]
    pub fn reply<I: IntoIterator<Item: AsRef<str>>>(pieces: I) -> Self {
        pieces
            .into_iter()
            .fold(Self::stream(), |script, piece| script.delta(piece.as_ref()))
            .finish("stop")
            .usage(7, 3)
            .done()
    }

    /// An answer without a stream, as for errors.
    #[must_use]
    pub fn status(status: u16, body: &Value) -> Self {
        Self {
            status,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            ..Self::stream().bytes(body.to_string())
        }
    }

    /// 429 with `Retry-After` in whole seconds.
    #[must_use]
    pub fn too_many_requests(retry_after: Duration) -> Self {
        let error =
            json!({"error": {"message": "slow down", "type": "rate_limit_exceeded", "code": "rate_limit_exceeded"}});
        Self::status(429, &error).header("retry-after", &retry_after.as_secs().to_string())
    }

    /// Adds a header of the answer.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Waits at a gate before the head of the answer.
    #[must_use]
    pub fn gate_before_head(mut self, gate: &Gate) -> Self {
        self.before_head.push(Step::Gate(gate.clone()));
        self
    }

    /// Never sends a head.
    #[must_use]
    pub fn hang_before_head(mut self) -> Self {
        self.before_head.push(Step::Hang);
        self
    }

    /// Drops the connection with a reset before the head.
    #[must_use]
    pub fn reset_before_head(mut self) -> Self {
        self.before_head.push(Step::Reset);
        self
    }

    /// Adds a step.
    #[must_use]
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Bytes of the body as they are.
    #[must_use]
    pub fn bytes(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.step(Step::Bytes(bytes.into()))
    }

    /// One event with this data.
    #[must_use]
    pub fn data(self, data: &str) -> Self {
        self.bytes(format!("data: {data}\n\n"))
    }

    /// One chunk of text.
    #[must_use]
    pub fn delta(self, text: &str) -> Self {
        self.step(Step::Part(Part::Text(text.to_owned())))
    }

    /// Something that is not for the reader.
    #[must_use]
    pub fn thought(self, text: &str) -> Self {
        self.step(Step::Part(Part::Thought(text.to_owned())))
    }

    /// Why the text ends, as chat completions call it.
    #[must_use]
    pub fn finish(self, reason: &str) -> Self {
        self.step(Step::Part(Part::Finish(reason.to_owned())))
    }

    /// The usage.
    #[must_use]
    pub fn usage(self, prompt: u64, completion: u64) -> Self {
        self.step(Step::Part(Part::Usage(prompt, completion)))
    }

    /// The end mark.
    #[must_use]
    pub fn done(self) -> Self {
        self.step(Step::Part(Part::Done))
    }

    /// An error inside the stream.
    #[must_use]
    pub fn error_event(self, message: &str) -> Self {
        self.step(Step::Part(Part::Error(message.to_owned())))
    }

    /// An error inside the stream that says that there is too much to do.
    #[must_use]
    pub fn overloaded(self) -> Self {
        self.step(Step::Part(Part::Overloaded))
    }

    /// A chunk whose choices are null.
    #[must_use]
    pub fn null_choices(self) -> Self {
        self.data(r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":null,"usage":null}"#)
    }

    /// A chunk that is not JSON.
    #[must_use]
    pub fn bad_json(self) -> Self {
        self.data(r#"{"choices": [{"delta":"#)
    }

    /// A chunk whose text is not UTF-8.
    #[must_use]
    pub fn invalid_utf8(self) -> Self {
        self.bytes(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\xff\xfe\"}}]}\n\n".to_vec())
    }

    /// A line of this many bytes without an end in sight.
    #[must_use]
    pub fn huge_line(self, bytes: usize) -> Self {
        let mut line = b"data: ".to_vec();
        line.resize(bytes, b'x');
        self.bytes(line)
    }

    /// Waits at a gate.
    #[must_use]
    pub fn gate(self, gate: &Gate) -> Self {
        self.step(Step::Gate(gate.clone()))
    }

    /// Pauses, as a model does while it thinks.
    #[must_use]
    pub fn pause(self, pause: Duration) -> Self {
        self.step(Step::Pause(pause))
    }

    /// Sends nothing more.
    #[must_use]
    pub fn hang(self) -> Self {
        self.step(Step::Hang)
    }

    /// Drops the connection with a reset.
    #[must_use]
    pub fn reset(self) -> Self {
        self.step(Step::Reset)
    }

    /// Closes the connection without ending the body.
    #[must_use]
    pub fn truncate(self) -> Self {
        self.step(Step::Truncate)
    }
}

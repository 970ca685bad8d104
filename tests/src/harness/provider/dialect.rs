//! What a script says, in the words of each service.

use serde_json::{Value, json};

use super::script::{Script, Step};

/// What an answer consists of, whatever the service.
#[derive(Debug, Clone)]
pub enum Part {
    /// A piece of text.
    Text(String),
    /// Why the text ends, as chat completions call it.
    Finish(String),
    /// Tokens of prompt and completion.
    Usage(u64, u64),
    /// The end mark.
    Done,
    /// An error inside the stream with this message.
    Error(String),
    /// An error inside the stream that says that there is too much to do.
    Overloaded,
    /// Something is thought, called or looked up that is not for the reader.
    Thought(String),
}

/// The services that the scripted provider can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Chat completions.
    OpenAi,
    /// Messages.
    Anthropic,
    /// Chat messages of an application.
    Dify,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::OpenAi, Self::Anthropic, Self::Dify];

    /// Which one is asked for at a path.
    pub(super) fn of(path: &str) -> Option<Self> {
        let path = path.split('?').next().unwrap_or_default();
        let ends =
            [("/chat/completions", Self::OpenAi), ("/messages", Self::Anthropic), ("/chat-messages", Self::Dify)];
        ends.into_iter().find(|(end, _)| path.ends_with(end)).map(|(_, dialect)| dialect)
    }

    /// The steps of a script with every part as bytes. `id` is unique among all requests.
    pub(super) fn render(self, script: &Script, id: usize) -> Vec<Step> {
        let usage = script.steps.iter().find_map(|step| {
            if let Step::Part(Part::Usage(prompt, completion)) = step { Some((*prompt, *completion)) } else { None }
        });
        let mut steps = Vec::new();
        if self == Self::Anthropic && script.status == 200 {
            steps.push(bytes(&[message_start(id, usage), block_start()]));
        }
        for step in &script.steps {
            steps.push(match step {
                Step::Part(part) => match self {
                    Self::OpenAi => bytes(&openai(part)),
                    Self::Anthropic => bytes(&anthropic(part, usage)),
                    Self::Dify => bytes(&dify(part, usage, id)),
                },
                Step::Bytes(_) | Step::Gate(_) | Step::Pause(_) | Step::Hang | Step::Reset | Step::Truncate => {
                    step.clone()
                }
            });
        }
        steps
    }
}

fn bytes(events: &[String]) -> Step {
    Step::Bytes(events.concat().into_bytes())
}

fn data(data: &Value) -> String {
    format!("data: {data}\n\n")
}

fn chunk(choices: &Value, usage: Option<&Value>) -> Vec<String> {
    vec![data(&json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "scripted",
        "choices": choices, "usage": usage,
    }))]
}

fn openai(part: &Part) -> Vec<String> {
    let error =
        |kind: &str, message: &str| vec![data(&json!({"error": {"message": message, "type": kind, "code": kind}}))];
    match part {
        Part::Text(text) => chunk(&json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}]), None),
        Part::Thought(text) => {
            chunk(&json!([{"index": 0, "delta": {"reasoning_content": text}, "finish_reason": null}]), None)
        }
        Part::Finish(reason) => chunk(&json!([{"index": 0, "delta": {}, "finish_reason": reason}]), None),
        Part::Usage(prompt, completion) => {
            let usage = json!({
                "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": 0},
            });
            chunk(&json!([]), Some(&usage))
        }
        Part::Done => vec!["data: [DONE]\n\n".to_owned()],
        Part::Error(message) => error("server_error", message),
        Part::Overloaded => error("overloaded_error", "too much to do"),
    }
}

fn named(event: &Value) -> String {
    format!("event: {}\n{}", event["type"].as_str().unwrap_or_default(), data(event))
}

/// The first event; a few tokens of the prompt come from a cache.
fn message_start(id: usize, usage: Option<(u64, u64)>) -> String {
    let usage = usage.map(|(prompt, _)| {
        let cached = prompt.min(3);
        json!({"input_tokens": prompt - cached, "cache_read_input_tokens": cached, "output_tokens": 1})
    });
    named(&json!({
        "type": "message_start",
        "message": {"id": format!("msg_{id}"), "role": "assistant", "content": [], "stop_reason": null, "usage": usage},
    }))
}

fn block_start() -> String {
    named(&json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}))
}

fn anthropic(part: &Part, usage: Option<(u64, u64)>) -> Vec<String> {
    let delta = |delta: Value| vec![named(&json!({"type": "content_block_delta", "index": 0, "delta": delta}))];
    let error =
        |kind: &str, message: &str| vec![named(&json!({"type": "error", "error": {"type": kind, "message": message}}))];
    match part {
        Part::Text(text) => delta(json!({"type": "text_delta", "text": text})),
        Part::Thought(text) => delta(json!({"type": "thinking_delta", "thinking": text})),
        Part::Finish(reason) => {
            let reason = match reason.as_str() {
                "stop" => "end_turn",
                "length" => "max_tokens",
                "content_filter" => "refusal",
                other => other,
            };
            let usage = usage.map(|(_, completion)| json!({"output_tokens": completion}));
            let delta = json!({"stop_reason": reason, "stop_sequence": null});
            vec![
                named(&json!({"type": "content_block_stop", "index": 0})),
                named(&json!({"type": "message_delta", "delta": delta, "usage": usage})),
            ]
        }
        Part::Usage(..) => Vec::new(),
        Part::Done => vec![named(&json!({"type": "message_stop"}))],
        Part::Error(message) => error("api_error", message),
        Part::Overloaded => error("overloaded_error", "Overloaded"),
    }
}

fn dify(part: &Part, usage: Option<(u64, u64)>, id: usize) -> Vec<String> {
    let event = |mut event: Value| {
        event["task_id"] = json!(format!("task-{id}"));
        event["message_id"] = json!(format!("message-{id}"));
        event["conversation_id"] = json!(format!("conversation-{id}"));
        vec![data(&event)]
    };
    match part {
        Part::Text(text) => event(json!({"event": "message", "answer": text, "created_at": 1_700_000_000})),
        Part::Thought(text) => event(json!({"event": "agent_thought", "thought": text, "position": 1})),
        Part::Finish(reason) if reason == "content_filter" => {
            event(json!({"event": "message_replace", "answer": "This was replaced.", "reason": "output_moderation"}))
        }
        Part::Finish(_) | Part::Usage(..) => Vec::new(),
        Part::Done => {
            let usage = usage.map(|(prompt, completion)| {
                json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_price": "0.01", "latency": 1.3})
            });
            event(json!({"event": "message_end", "metadata": {"usage": usage, "retriever_resources": []}}))
        }
        Part::Error(message) => {
            event(json!({"event": "error", "status": 500, "code": "internal_server_error", "message": message}))
        }
        Part::Overloaded => {
            event(json!({"event": "error", "status": 429, "code": "too_many_requests", "message": "x"}))
        }
    }
}

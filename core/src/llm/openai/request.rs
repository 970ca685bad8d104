//! The body of a chat completions request. Texts are borrowed and go out as they are.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::llm::{Prompt, PromptRole, StopStrings};

/// Name of the field that bounds the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputLimitField {
    /// Understood by every compatible server; refused by OpenAI's reasoning models.
    MaxTokens,
    /// OpenAI's present name.
    MaxCompletionTokens,
}

/// The body.
#[derive(Debug, Serialize)]
pub(super) struct Request<'a> {
    model: &'a str,
    messages: Vec<RequestMessage<'a>>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "StopStrings::is_empty")]
    stop: &'a StopStrings,
}

#[derive(Serialize)]
struct RequestMessage<'a> {
    role: &'static str,
    content: &'a str,
}

impl fmt::Debug for RequestMessage<'_> {
    /// Without the text: it must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestMessage").field("role", &self.role).finish_non_exhaustive()
    }
}

#[derive(Debug, Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl<'a> Request<'a> {
    pub(super) fn new(prompt: &'a Prompt, limit: OutputLimitField, include_usage: bool, send_user: bool) -> Self {
        let bound = |field| (field == limit).then_some(prompt.max_output_tokens);
        Self {
            model: &prompt.upstream_model,
            messages: prompt
                .messages
                .iter()
                .map(|message| RequestMessage { role: role(message.role), content: &message.text })
                .collect(),
            stream: true,
            stream_options: include_usage.then_some(StreamOptions { include_usage }),
            max_tokens: bound(OutputLimitField::MaxTokens),
            max_completion_tokens: bound(OutputLimitField::MaxCompletionTokens),
            user: (send_user && !prompt.user_hash.is_empty()).then_some(prompt.user_hash.as_str()),
            temperature: prompt.sampling.temperature,
            top_p: prompt.sampling.top_p,
            stop: &prompt.sampling.stop,
        }
    }
}

fn role(role: PromptRole) -> &'static str {
    match role {
        PromptRole::System => "system",
        PromptRole::User => "user",
        PromptRole::Assistant => "assistant",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::PromptMessage;

    fn prompt(user_hash: &str) -> Prompt {
        let message = |role, text: &str| PromptMessage { role, text: text.to_owned() };
        Prompt {
            upstream_model: "m-1".to_owned(),
            messages: vec![
                message(PromptRole::System, "be kind"),
                message(PromptRole::User, "<b> & \"q\" 'x' \n ünï 😀 \u{2028}"),
                message(PromptRole::Assistant, "ok"),
            ],
            max_output_tokens: 7,
            user_hash: user_hash.to_owned(),
            conversation: None,
            ..Prompt::default()
        }
    }

    #[test]
    fn the_body_is_what_the_servers_expect() {
        let body =
            serde_json::to_string(&Request::new(&prompt("u"), OutputLimitField::MaxTokens, true, true)).expect("JSON");
        assert_eq!(
            body,
            "{\"model\":\"m-1\",\"messages\":[{\"role\":\"system\",\"content\":\"be kind\"},\
             {\"role\":\"user\",\"content\":\"<b> & \\\"q\\\" 'x' \\n ünï 😀 \u{2028}\"},\
             {\"role\":\"assistant\",\"content\":\"ok\"}],\"stream\":true,\
             \"stream_options\":{\"include_usage\":true},\"max_tokens\":7,\"user\":\"u\"}"
        );
    }

    #[test]
    fn optional_fields_are_left_out_when_switched_off() {
        let prompt = prompt("");
        let body = serde_json::to_string(&Request::new(&prompt, OutputLimitField::MaxCompletionTokens, false, true))
            .expect("JSON");
        assert!(body.ends_with("\"stream\":true,\"max_completion_tokens\":7}"), "{body}");
    }

    #[test]
    fn the_text_of_a_message_is_not_in_debug_output() {
        let prompt = prompt("u");
        let request = Request::new(&prompt, OutputLimitField::MaxTokens, true, true);
        assert!(!format!("{request:?}{prompt:?}").contains("be kind"));
    }
}

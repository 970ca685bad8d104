//! The body of a Messages request. Texts are borrowed and go out as they are.
//!
//! What the format demands of a conversation: instructions apart, turns of one side joined, the first of them a person's,
//! and no text that is blank.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::llm::{Prompt, PromptRole, ProviderError, StopStrings};

/// Where the range of the format ends.
const MAX_TEMPERATURE: f32 = 1.0;

/// The body.
#[derive(Debug, Serialize)]
pub(super) struct Request<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    #[serde(skip_serializing_if = "Texts::is_empty")]
    system: Texts<'a>,
    messages: Vec<Turn<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "StopStrings::is_empty")]
    stop_sequences: &'a StopStrings,
}

#[derive(Debug, Serialize)]
struct Metadata<'a> {
    user_id: &'a str,
}

#[derive(Debug, Serialize)]
struct Turn<'a> {
    role: Side,
    content: Texts<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    User,
    Assistant,
}

/// One text, or several as blocks, so that each stays as it was written.
#[derive(Default)]
struct Texts<'a>(Vec<&'a str>);

#[derive(Serialize)]
struct Block<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
}

impl Texts<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Texts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [text] => serializer.serialize_str(text),
            texts => serializer.collect_seq(texts.iter().map(|text| Block { kind: "text", text })),
        }
    }
}

impl fmt::Debug for Texts<'_> {
    /// Without the texts: they must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Texts").field("count", &self.0.len()).finish()
    }
}

impl<'a> Request<'a> {
    /// # Errors
    /// [`ProviderError::Prompt`]: nobody but the model has said anything.
    pub(super) fn new(prompt: &'a Prompt, send_user: bool) -> Result<Self, ProviderError> {
        let mut system = Texts::default();
        let mut messages: Vec<Turn<'a>> = Vec::new();
        for message in &prompt.messages {
            let text = message.text.as_str();
            if text.trim().is_empty() {
                continue;
            }
            let role = match message.role {
                PromptRole::System => {
                    system.0.push(text);
                    continue;
                }
                // Its question was cut off with the oldest part of the history.
                PromptRole::Assistant if messages.is_empty() => continue,
                PromptRole::Assistant => Side::Assistant,
                PromptRole::User => Side::User,
            };
            match messages.last_mut().filter(|turn| turn.role == role) {
                Some(turn) => turn.content.0.push(text),
                None => messages.push(Turn { role, content: Texts(vec![text]) }),
            }
        }
        if messages.is_empty() {
            return Err(ProviderError::Prompt("holds no text of a user"));
        }
        let sampling = &prompt.sampling;
        if sampling.temperature.is_some_and(|temperature| temperature > MAX_TEMPERATURE) {
            return Err(ProviderError::Prompt("asks for a temperature above 1"));
        }
        Ok(Self {
            model: &prompt.upstream_model,
            max_tokens: prompt.max_output_tokens,
            stream: true,
            system,
            messages,
            metadata: (send_user && !prompt.user_hash.is_empty()).then_some(Metadata { user_id: &prompt.user_hash }),
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            stop_sequences: &sampling.stop,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::llm::{PromptMessage, Sampling};
    use PromptRole::{Assistant, System, User};

    fn prompt(messages: &[(PromptRole, &str)]) -> Prompt {
        let message = |(role, text): &(PromptRole, &str)| PromptMessage { role: *role, text: (*text).to_owned() };
        Prompt {
            upstream_model: "claude-x".to_owned(),
            messages: messages.iter().map(message).collect(),
            max_output_tokens: 7,
            user_hash: "u".to_owned(),
            ..Prompt::default()
        }
    }

    fn body(prompt: &Prompt) -> Value {
        serde_json::to_value(Request::new(prompt, true).expect("sayable")).expect("JSON")
    }

    #[test]
    fn the_body_is_what_the_service_expects() {
        let prompt = prompt(&[(System, "be kind"), (User, "<b> & \"q\" \u{fc} 😀"), (Assistant, "ok"), (User, "and?")]);
        let expect = json!({
            "model": "claude-x", "max_tokens": 7, "stream": true, "system": "be kind",
            "messages": [
                {"role": "user", "content": "<b> & \"q\" \u{fc} 😀"},
                {"role": "assistant", "content": "ok"},
                {"role": "user", "content": "and?"},
            ],
            "metadata": {"user_id": "u"},
        });
        assert_eq!(body(&prompt), expect);
        let bare = serde_json::to_value(Request::new(&prompt, false).expect("sayable")).expect("JSON");
        assert!(bare.get("metadata").is_none());
    }

    #[test]
    fn turns_of_one_side_are_joined_and_each_text_stays_as_it_is() {
        let body = body(&prompt(&[(User, "one"), (User, " two "), (Assistant, ""), (User, "three"), (Assistant, "a")]));
        let blocks = json!([
            {"type": "text", "text": "one"}, {"type": "text", "text": " two "}, {"type": "text", "text": "three"},
        ]);
        assert_eq!(
            body["messages"],
            json!([{"role": "user", "content": blocks}, {"role": "assistant", "content": "a"}])
        );
        assert!(body.get("system").is_none());
    }

    #[test]
    fn a_conversation_begins_with_a_person() {
        let body = body(&prompt(&[(Assistant, "cut off"), (Assistant, "too"), (User, "hello")]));
        assert_eq!(body["messages"], json!([{"role": "user", "content": "hello"}]));
        for messages in [&[][..], &[(Assistant, "alone")], &[(System, "be kind")], &[(User, " \n")]] {
            let prompt = prompt(messages);
            assert!(matches!(Request::new(&prompt, true), Err(ProviderError::Prompt(_))), "{messages:?}");
        }
    }

    #[test]
    fn sampling_goes_out_as_it_was_asked_for_within_the_range_of_the_format() {
        let mut prompt = prompt(&[(User, "hello")]);
        for name in ["temperature", "top_p", "stop_sequences"] {
            assert!(body(&prompt).get(name).is_none(), "{name}");
        }
        let stop = StopStrings(vec!["END".to_owned()]);
        prompt.sampling = Sampling { temperature: Some(0.5), top_p: Some(0.25), stop };
        let body = body(&prompt);
        assert_eq!(
            (&body["temperature"], &body["top_p"], &body["stop_sequences"]),
            (&json!(0.5), &json!(0.25), &json!(["END"]))
        );
        prompt.sampling.temperature = Some(1.5);
        assert!(matches!(Request::new(&prompt, true), Err(ProviderError::Prompt(_))));
    }

    #[test]
    fn no_text_is_in_debug_output() {
        let mut prompt = prompt(&[(System, "be kind"), (User, "secret")]);
        prompt.sampling.stop = StopStrings(vec!["secret".to_owned()]);
        let shown = format!("{:?}", Request::new(&prompt, true).expect("sayable"));
        assert!(!shown.contains("be kind") && !shown.contains("secret"), "{shown}");
    }
}

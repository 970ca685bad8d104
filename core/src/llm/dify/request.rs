//! The body of a chat-messages request. It has one text, the query: in a conversation that the service knows it is what the
//! user said last, otherwise the whole context, each turn under the name of its side.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

use crate::llm::{Prompt, PromptMessage, PromptRole, ProviderError, Sampling};

/// The body.
#[derive(Serialize)]
pub(super) struct Request<'a> {
    inputs: Inputs,
    query: Cow<'a, str>,
    response_mode: &'static str,
    conversation_id: &'a str,
    user: &'a str,
    auto_generate_name: bool,
}

/// Variables of the application: it has to do without.
#[derive(Debug, Serialize)]
struct Inputs {}

impl fmt::Debug for Request<'_> {
    /// Without the text: it must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("bytes", &self.query.len()).finish_non_exhaustive()
    }
}

impl<'a> Request<'a> {
    /// # Errors
    /// [`ProviderError::Prompt`]: nobody but the model has said anything.
    pub(super) fn new(prompt: &'a Prompt, user: &'a str, conversation: Option<&'a str>) -> Result<Self, ProviderError> {
        if prompt.sampling != Sampling::default() {
            return Err(ProviderError::Prompt("asks for sampling, which the application decides"));
        }
        let said: Vec<_> = prompt.messages.iter().filter(|message| !message.text.trim().is_empty()).collect();
        let known = match conversation {
            Some(_) => {
                said.iter().rposition(|message| message.role == PromptRole::Assistant).map_or(0, |last| last + 1)
            }
            None => 0,
        };
        let new = &said[known..];
        if !new.iter().any(|message| message.role == PromptRole::User) {
            return Err(ProviderError::Prompt("holds no text of a user"));
        }
        let query = match (new, conversation) {
            ([only], _) => Cow::Borrowed(only.text.as_str()),
            (several, Some(_)) => Cow::Owned(joined(several.iter().filter(|m| m.role == PromptRole::User), |_| "")),
            (several, None) => Cow::Owned(joined(several.iter(), name)),
        };
        Ok(Self {
            inputs: Inputs {},
            query,
            response_mode: "streaming",
            conversation_id: conversation.unwrap_or_default(),
            user,
            auto_generate_name: false,
        })
    }
}

fn joined<'a>(messages: impl Iterator<Item = &'a &'a PromptMessage>, name: fn(PromptRole) -> &'static str) -> String {
    let texts: Vec<_> = messages.map(|message| format!("{}{}", name(message.role), message.text)).collect();
    texts.join("\n\n")
}

fn name(role: PromptRole) -> &'static str {
    match role {
        PromptRole::System => "",
        PromptRole::User => "User: ",
        PromptRole::Assistant => "Assistant: ",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use PromptRole::{Assistant, System, User};

    fn prompt(messages: &[(PromptRole, &str)]) -> Prompt {
        let message = |(role, text): &(PromptRole, &str)| PromptMessage { role: *role, text: (*text).to_owned() };
        Prompt { messages: messages.iter().map(message).collect(), ..Prompt::default() }
    }

    fn query(messages: &[(PromptRole, &str)], conversation: Option<&str>) -> String {
        let prompt = prompt(messages);
        Request::new(&prompt, "u", conversation).expect("sayable").query.into_owned()
    }

    #[test]
    fn the_body_is_what_the_service_expects() {
        let prompt = prompt(&[(User, "<b> & \"q\" \u{fc} 😀")]);
        let body: Value = serde_json::to_value(Request::new(&prompt, "u", None).expect("sayable")).expect("JSON");
        let expect = json!({
            "inputs": {}, "query": "<b> & \"q\" \u{fc} 😀", "response_mode": "streaming", "conversation_id": "",
            "user": "u", "auto_generate_name": false,
        });
        assert_eq!(body, expect);
        let known: Value = serde_json::to_value(Request::new(&prompt, "u", Some("c")).expect("sayable")).expect("JSON");
        assert_eq!(known["conversation_id"], "c");
    }

    #[test]
    fn a_new_conversation_is_told_everything_and_a_known_one_only_what_is_new() {
        let messages =
            [(System, "be kind"), (User, "one"), (Assistant, "two"), (User, "three"), (User, " "), (User, "four")];
        let all = "be kind\n\nUser: one\n\nAssistant: two\n\nUser: three\n\nUser: four";
        assert_eq!(query(&messages, None), all);
        assert_eq!(query(&messages, Some("c")), "three\n\nfour");
        assert_eq!(query(&messages[..2], Some("c")), "one", "instructions are the application's");
        assert_eq!(query(&messages[..4], Some("c")), "three");
    }

    #[test]
    fn without_a_text_of_a_user_there_is_no_query() {
        for (messages, conversation) in [
            (&[][..], None),
            (&[(System, "be kind")], None),
            (&[(Assistant, "alone")], None),
            (&[(User, "\n ")], None),
            (&[(User, "one"), (Assistant, "two")], Some("c")),
        ] {
            let prompt = prompt(messages);
            assert!(matches!(Request::new(&prompt, "u", conversation), Err(ProviderError::Prompt(_))), "{messages:?}");
        }
    }

    #[test]
    fn no_text_is_in_debug_output() {
        let prompt = prompt(&[(User, "secret")]);
        assert!(!format!("{:?}", Request::new(&prompt, "u", None).expect("sayable")).contains("secret"));
    }
}

//! What a model gets to see: the newest turns that fit into its budget, oldest dropped whole.

use std::collections::HashSet;

use chatbox_proto::ids::MessageId;

use crate::{
    domain::entry::SenderRole,
    llm::{PromptMessage, PromptRole, tokens::estimate_message_tokens},
    session::history::{Content, HistoryMessage},
};

/// Collects turns, newest first, until the budget is used up.
#[derive(Debug)]
pub(super) struct ContextBuilder {
    budget: u64,
    used: u64,
    newest_first: Vec<PromptMessage>,
    /// Replies that others have replaced.
    replaced: HashSet<MessageId>,
}

impl ContextBuilder {
    /// With room for `budget` tokens, as estimated.
    pub(super) fn new(budget: u64) -> Self {
        Self { budget, used: 0, newest_first: Vec::new(), replaced: HashSet::new() }
    }

    /// This reply is not part of the conversation any more.
    pub(super) fn without(mut self, replaced: Option<MessageId>) -> Self {
        self.replaced.extend(replaced);
        self
    }

    /// Takes the next older message; `false` when it does not fit, and nothing older is wanted. The newest one is always
    /// taken: a prompt without the question is of no use, and the provider says it best if it is too long.
    pub(super) fn offer(&mut self, message: HistoryMessage) -> bool {
        if let Content::Reply(started, _) = &message.content {
            // Whatever replaced it is newer, and was offered before it.
            self.replaced.extend(started.supersedes);
            if self.replaced.contains(&started.id) {
                return true;
            }
        }
        let Some(turn) = turn(message) else { return true };
        let cost = estimate_message_tokens(&turn.text);
        if !self.newest_first.is_empty() && self.used + cost > self.budget {
            return false;
        }
        self.used += cost;
        self.newest_first.push(turn);
        true
    }

    /// The prompt, oldest first, behind the system prompt; and its estimated size.
    pub(super) fn finish(mut self, system: Option<&str>) -> (Vec<PromptMessage>, u64) {
        if let Some(text) = system {
            self.used += estimate_message_tokens(text);
            self.newest_first.push(PromptMessage { role: PromptRole::System, text: text.to_owned() });
        }
        self.newest_first.reverse();
        (self.newest_first, self.used)
    }
}

/// Whoever answered, the model sees its own side of the conversation: admins speak for the product, as it does.
fn turn(message: HistoryMessage) -> Option<PromptMessage> {
    let (role, text) = match message.content {
        Content::Message(message) => match message.sender.role {
            SenderRole::User => (PromptRole::User, message.text),
            SenderRole::Admin => (PromptRole::Assistant, message.text),
            SenderRole::System => return None,
        },
        Content::Reply(_, end) => (PromptRole::Assistant, end?.finished.text),
    };
    (!text.is_empty()).then_some(PromptMessage { role, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        entry::{FinishReason, Message, ReplyFinished, ReplyStarted, Sender, Usage},
        time::Timestamp,
    };
    use crate::session::history::End;

    fn message(role: SenderRole, text: &str) -> HistoryMessage {
        let sender = Sender { role, user_id: "alice".into(), display_name: String::new() };
        let id = MessageId::generate();
        let message = Message { id, sender, client_message_id: None, text: text.into(), file_ids: Vec::new() };
        HistoryMessage { seq: 1, at: Timestamp::default(), content: Content::Message(message) }
    }

    fn reply(text: Option<&str>) -> HistoryMessage {
        let id = MessageId::generate();
        let started = ReplyStarted { id, model: "m".into(), answers: Vec::new(), supersedes: None, charge: None };
        let end = text.map(|text| End {
            seq: 3,
            at: Timestamp::default(),
            finished: ReplyFinished {
                id,
                started_seq: 2,
                text: text.into(),
                finish: FinishReason::Stop,
                usage: Usage::default(),
                provider_request_id: None,
                model: "m".into(),
                conversation: None,
            },
        });
        HistoryMessage { seq: 2, at: Timestamp::default(), content: Content::Reply(started, end) }
    }

    fn texts(context: ContextBuilder, system: Option<&str>) -> Vec<String> {
        context.finish(system).0.into_iter().map(|m| m.text).collect()
    }

    #[test]
    fn the_oldest_are_dropped_whole() {
        let long = "x".repeat(400);
        let mut context = ContextBuilder::new(estimate_message_tokens(&long) * 2);
        assert!(context.offer(message(SenderRole::User, &long)));
        assert!(context.offer(reply(Some(&long))));
        assert!(!context.offer(message(SenderRole::User, "older")));
        assert_eq!(texts(context, Some("system")), ["system".to_owned(), long.clone(), long]);
    }

    #[test]
    fn the_question_is_kept_however_long_it_is() {
        let mut context = ContextBuilder::new(1);
        assert!(context.offer(message(SenderRole::User, &"x".repeat(400))));
        assert_eq!(texts(context, None).len(), 1);
    }

    #[test]
    fn running_and_empty_replies_and_system_messages_are_left_out() {
        let mut context = ContextBuilder::new(1000);
        for item in [reply(None), reply(Some("")), message(SenderRole::System, "nobody is online")] {
            assert!(context.offer(item));
        }
        assert!(texts(context, None).is_empty());
    }

    #[test]
    fn replies_that_were_replaced_are_left_out_and_what_replaced_them_is_not() {
        let (first, mut second) = (reply(Some("first try")), reply(Some("second try")));
        if let (Content::Reply(old, _), Content::Reply(new, _)) = (&first.content, &mut second.content) {
            new.supersedes = Some(old.id);
        }
        let Content::Reply(third, _) = &second.content else { unreachable!("a reply") };
        let third = third.id;
        let mut context = ContextBuilder::new(1000);
        assert!(context.offer(second.clone()) && context.offer(first.clone()));
        assert_eq!(texts(context, None), ["second try"]);
        // While a third one is generated in the place of the second.
        let mut context = ContextBuilder::new(1000).without(Some(third));
        assert!(context.offer(second) && context.offer(first));
        assert!(texts(context, None).is_empty());
    }

    #[test]
    fn what_an_admin_said_is_the_products_side() {
        let mut context = ContextBuilder::new(1000);
        context.offer(message(SenderRole::Admin, "hello"));
        assert_eq!(context.finish(None).0[0].role, PromptRole::Assistant);
    }

    #[test]
    fn text_is_passed_on_byte_for_byte() {
        let text = "<b> & \"q\" 'x' ünï \u{202e}";
        let mut context = ContextBuilder::new(1000);
        context.offer(message(SenderRole::User, text));
        assert_eq!(texts(context, None), [text]);
    }
}

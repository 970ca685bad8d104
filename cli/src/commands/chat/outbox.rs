//! Our messages, until they are answered. Each has an id of its own, under which it can be sent again without being written
//! twice; the same id tells the answers apart.

use chatbox_proto::v1::{
    ChatRequest,
    chat_request::{self, Frame},
};

/// What became of one of our messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It has a complete reply, or a person will see to it.
    Answered,
    /// It was refused, or its reply broke off.
    Failed,
}

#[derive(Debug)]
struct Sent {
    client_message_id: String,
    text: String,
    /// Known once the server has it.
    message_id: Option<String>,
    /// Known once it is being answered.
    reply_id: Option<String>,
    tries: u32,
}

/// What was sent and has not come to an end.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    sent: Vec<Sent>,
    outcomes: Vec<Outcome>,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// What became of messages since this was last asked.
    pub(super) fn take_outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.outcomes)
    }

    /// The frame of a new message.
    pub(super) fn send(&mut self, text: String) -> ChatRequest {
        let client_message_id = format!("{:032x}", rand::random::<u128>());
        let mut sent = Sent { client_message_id, text, message_id: None, reply_id: None, tries: 0 };
        let frame = sent.frame();
        self.sent.push(sent);
        frame
    }

    /// The frames of all that the server may not have, oldest first.
    pub(super) fn unknown(&mut self) -> Vec<ChatRequest> {
        self.sent.iter_mut().filter(|sent| sent.message_id.is_none()).map(Sent::frame).collect()
    }

    /// How often a message was sent; `None`: it is none of ours, or has come to an end.
    pub(super) fn tries(&self, client_message_id: &str) -> Option<u32> {
        self.sent.iter().find(|sent| sent.client_message_id == client_message_id).map(|sent| sent.tries)
    }

    /// The server has a message. Says whether it is one of ours.
    pub(super) fn accepted(&mut self, client_message_id: &str, message_id: &str) -> bool {
        let ours = self.sent.iter_mut().find(|sent| sent.client_message_id == client_message_id);
        ours.map(|sent| sent.message_id = Some(message_id.to_owned())).is_some()
    }

    /// A reply answers these messages. Says whether one of them is ours.
    pub(super) fn answering(&mut self, reply_id: &str, answers: &[String]) -> bool {
        let mut ours = false;
        for sent in &mut self.sent {
            if sent.message_id.as_ref().is_some_and(|id| answers.contains(id)) {
                sent.reply_id = Some(reply_id.to_owned());
                ours = true;
            }
        }
        ours
    }

    /// Whether a message of ours waits for this reply.
    pub(super) fn awaits(&self, reply_id: &str) -> bool {
        self.sent.iter().any(|sent| sent.reply_id.as_deref() == Some(reply_id))
    }

    /// A reply has ended.
    pub(super) fn replied(&mut self, reply_id: &str, outcome: Outcome) {
        self.settle_where(|sent| sent.reply_id.as_deref() == Some(reply_id), outcome);
    }

    /// A message has come to its end without a reply.
    pub(super) fn settle(&mut self, client_message_id: &str, outcome: Outcome) {
        self.settle_where(|sent| sent.client_message_id == client_message_id, outcome);
    }

    /// All have.
    pub(super) fn settle_all(&mut self, outcome: Outcome) {
        self.settle_where(|_| true, outcome);
    }

    fn settle_where(&mut self, which: impl Fn(&Sent) -> bool, outcome: Outcome) {
        let before = self.sent.len();
        self.sent.retain(|sent| !which(sent));
        self.outcomes.extend(std::iter::repeat_n(outcome, before - self.sent.len()));
    }
}

impl Sent {
    fn frame(&mut self) -> ChatRequest {
        self.tries += 1;
        let send = chat_request::Send {
            client_message_id: self.client_message_id.clone(),
            text: self.text.clone(),
            ..chat_request::Send::default()
        };
        request(&self.client_message_id, Frame::Send(send))
    }
}

/// A frame whose answer is told by this id.
pub(super) fn request(request_id: &str, frame: Frame) -> ChatRequest {
    ChatRequest { request_id: request_id.to_owned(), frame: Some(frame) }
}

//! The state of a session: what its entries fold into. Deterministic: every core that has read the same entries has the
//! same state, whatever its clock says.

use chatbox_proto::ids::MessageId;
use serde::{Deserialize, Serialize};

use super::{
    entry::{
        Charge, EndReason, Entry, EntryKind, FinishReason, Message, ReplyFinished, ReplyStarted, Sender, SenderRole,
        Seq, Usage,
    },
    time::Timestamp,
};

/// An entry that does not follow the head: a fault in the store or in the caller, never in a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("entry {found} does not follow head {head}")]
pub struct OutOfOrder {
    /// The head.
    pub head: Seq,
    /// The entry's number.
    pub found: Seq,
}

/// What the entries up to `head` add up to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    /// Number of the last entry.
    pub head: Seq,
    /// Display name; empty until it has one.
    #[serde(default)]
    pub name: String,
    /// The model that answers from the next reply on.
    pub model: String,
    /// Who answers now.
    #[serde(default)]
    pub responder: Responder,
    /// Seq of the last takeover or release: what was decided before it is void.
    #[serde(default)]
    pub epoch: Seq,
    /// When help was asked for, while nobody has taken over.
    #[serde(default)]
    pub help_requested_at: Option<Timestamp>,
    /// When help was asked for that a person gives now: where a hold that lapses goes back to.
    #[serde(default)]
    pub helped_since: Option<Timestamp>,
    /// Messages that wait for a reply, oldest first.
    #[serde(default)]
    pub unanswered: Vec<MessageId>,
    /// The reply that runs.
    #[serde(default)]
    pub running: Option<RunningReply>,
    /// The last reply that started, as long as nobody has written a message that no reply follows.
    #[serde(default)]
    pub last_reply: Option<MessageId>,
    /// Whose budgets the last reply that started counts against.
    #[serde(default)]
    pub charged: Vec<String>,
    /// What a provider keeps of this conversation, as long as that is all of it.
    #[serde(default)]
    pub conversation: Option<KeptConversation>,
    /// Set once it takes no more messages.
    #[serde(default)]
    pub ended: Option<End>,
    /// The content is destroyed.
    #[serde(default)]
    pub erased: bool,
    /// Messages a person can read, replies included.
    #[serde(default)]
    pub message_count: u32,
    /// Replies that the model finished, with text.
    #[serde(default)]
    pub exchanges: u32,
    /// Tokens over all finished replies.
    #[serde(default)]
    pub usage: Usage,
    /// When the last entry was written; creation time for an empty log.
    pub last_activity: Timestamp,
}

/// Who answers now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Responder {
    /// The model.
    #[default]
    Assistant,
    /// A person; the assistant is silent.
    Admin(Sender),
}

/// A reply that has started and not finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningReply {
    /// Its id.
    pub id: MessageId,
    /// The entry that started it.
    pub started_seq: Seq,
    /// The model that answers.
    pub model: String,
    /// The messages it answers; none when it replaces another.
    pub answers: Vec<MessageId>,
    /// The budgets that it counts against.
    #[serde(default)]
    pub charge: Option<Charge>,
    /// The reply it replaces.
    #[serde(default)]
    pub supersedes: Option<MessageId>,
}

/// What a provider keeps of a conversation, so that it need not be told again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptConversation {
    /// The model that answered last, through that provider.
    pub model: String,
    /// The provider's name for it.
    pub id: String,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: EndReason,
}

impl SessionState {
    /// The state of an empty log.
    #[must_use]
    pub fn new(model: String, created_at: Timestamp) -> Self {
        Self {
            head: 0,
            name: String::new(),
            model,
            responder: Responder::Assistant,
            epoch: 0,
            help_requested_at: None,
            helped_since: None,
            unanswered: Vec::new(),
            running: None,
            last_reply: None,
            charged: Vec::new(),
            conversation: None,
            ended: None,
            erased: false,
            message_count: 0,
            exchanges: 0,
            usage: Usage::default(),
            last_activity: created_at,
        }
    }

    /// Whether messages wait and nobody is about to answer them.
    #[must_use]
    pub fn needs_reply(&self) -> bool {
        !self.unanswered.is_empty()
            && self.running.is_none()
            && self.ended.is_none()
            && self.responder == Responder::Assistant
    }

    /// The admin who holds it.
    #[must_use]
    pub fn holder(&self) -> Option<&Sender> {
        match &self.responder {
            Responder::Admin(admin) => Some(admin),
            Responder::Assistant => None,
        }
    }

    /// Whether somebody has to look after this session after a crash. What says that it is erased is not destroyed yet.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.running.is_some() || self.needs_reply() || self.erased
    }

    /// Folds the next entry in.
    ///
    /// # Errors
    /// [`OutOfOrder`], and the state is unchanged, when the entry is not `head + 1`.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), OutOfOrder> {
        if entry.seq != self.head + 1 {
            return Err(OutOfOrder { head: self.head, found: entry.seq });
        }
        self.head = entry.seq;
        self.last_activity = self.last_activity.max(entry.fact.at);
        match &entry.fact.kind {
            EntryKind::Message(message) => self.message(message),
            EntryKind::ReplyStarted(reply) => self.reply_started(entry.seq, reply),
            EntryKind::ReplyFinished(reply) => self.reply_finished(reply),
            EntryKind::ModelSelected { model } => self.model.clone_from(model),
            EntryKind::HelpRequested { .. } => {
                self.help_requested_at.get_or_insert(entry.fact.at);
            }
            EntryKind::TakenOver { admin, .. } => {
                self.responder = Responder::Admin(admin.clone());
                self.epoch = entry.seq;
                self.helped_since = self.help_requested_at.take().or(self.helped_since);
                self.unanswered.clear();
                // The provider does not hear what a person says now.
                self.conversation = None;
            }
            EntryKind::Released { admin } => {
                self.responder = Responder::Assistant;
                self.epoch = entry.seq;
                let since = self.helped_since.take();
                // A hold that lapsed goes back to the queue.
                if admin.is_none() {
                    self.help_requested_at = Some(since.unwrap_or(entry.fact.at));
                }
            }
            EntryKind::Renamed { name, .. } => self.name.clone_from(name),
            EntryKind::Shared { .. } => {}
            EntryKind::Ended { reason, .. } => {
                self.ended.get_or_insert(End { at: entry.fact.at, reason: *reason });
                (self.help_requested_at, self.helped_since) = (None, None);
                self.responder = Responder::Assistant;
            }
            EntryKind::Erased { .. } => {
                self.erased = true;
                self.unanswered.clear();
                self.responder = Responder::Assistant;
                self.help_requested_at = None;
            }
            EntryKind::Reopened { .. } => self.ended = None,
        }
        Ok(())
    }

    fn message(&mut self, message: &Message) {
        self.message_count += 1;
        if message.sender.role == SenderRole::User && self.responder == Responder::Assistant {
            self.unanswered.push(message.id);
        } else if message.sender.role != SenderRole::System {
            self.last_reply = None;
        }
    }

    fn reply_started(&mut self, seq: Seq, reply: &ReplyStarted) {
        self.message_count += 1;
        self.unanswered.retain(|id| !reply.answers.contains(id));
        self.last_reply = Some(reply.id);
        if let Some(charge) = &reply.charge {
            self.charged.clone_from(&charge.subjects);
        }
        if reply.supersedes.is_some() {
            // What it replaces is part of what the provider keeps.
            self.conversation = None;
        }
        self.running = Some(RunningReply {
            id: reply.id,
            started_seq: seq,
            model: reply.model.clone(),
            answers: reply.answers.clone(),
            charge: reply.charge.clone(),
            supersedes: reply.supersedes,
        });
    }

    fn reply_finished(&mut self, reply: &ReplyFinished) {
        self.usage += reply.usage;
        // After an end of another kind nobody knows what the provider has kept.
        let whole = matches!(reply.finish, FinishReason::Stop | FinishReason::Length);
        let kept = |id: &String| KeptConversation { model: reply.model.clone(), id: id.clone() };
        self.conversation = reply.conversation.as_ref().filter(|_| whole).map(kept);
        let completed = matches!(reply.finish, FinishReason::Stop | FinishReason::Length) && !reply.text.is_empty();
        self.exchanges = self.exchanges.saturating_add(completed.into());
        self.running.take_if(|running| running.id == reply.id);
    }
}

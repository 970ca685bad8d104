//! Entries: the durable, numbered facts a session consists of. Their serde form is what is sealed and stored: fields are
//! only ever added, with a default.

use chatbox_proto::ids::MessageId;
use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// Sequence number of an entry: 1, 2, 3 ... without gaps. 0 stands before the first.
pub type Seq = u64;

/// One fact with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub seq: Seq,
    /// What happened, and when.
    pub fact: Fact,
}

/// One fact as it is stored; its number follows from the place in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// When it was written.
    pub at: Timestamp,
    /// What happened.
    pub kind: EntryKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A person wrote a message.
    Message(Message),
    /// The assistant began to answer.
    ReplyStarted(ReplyStarted),
    /// The assistant's message is complete.
    ReplyFinished(ReplyFinished),
    /// Another model answers from here on.
    ModelSelected {
        /// Id of the model.
        model: String,
    },
    /// The visitor asked for a person.
    HelpRequested {
        /// Why, in the visitor's words.
        reason: String,
    },
    /// A person holds the session from here on.
    TakenOver {
        /// Who.
        admin: Sender,
        /// Who held it before.
        previous: Option<Sender>,
    },
    /// The assistant answers again from here on.
    Released {
        /// Who gave it back; `None` when the hold lapsed.
        admin: Option<Sender>,
    },
    /// The session has another name.
    Renamed {
        /// The name.
        name: String,
        /// Made from the first exchange rather than by a person.
        automatic: bool,
    },
    /// A share link was made or revoked.
    Shared {
        /// Id of the share.
        share_id: String,
        /// The link no longer works.
        revoked: bool,
    },
    /// The session takes no more messages.
    Ended {
        /// Who ended it; `None` when it expired.
        by: Option<Sender>,
        /// Why.
        reason: EndReason,
    },
    /// An ended session takes messages again.
    Reopened {
        /// Who asked for it.
        by: Sender,
    },
    /// The session's content was destroyed.
    Erased {
        /// Who asked for it.
        by: Sender,
    },
}

/// A message of a person, or of the product itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Who wrote it.
    pub sender: Sender,
    /// The id its sender gave it; `None` for system messages.
    pub client_message_id: Option<String>,
    /// Opaque UTF-8 without NUL.
    pub text: String,
    /// Files that belong to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub file_ids: Vec<String>,
}

/// The assistant began to answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyStarted {
    /// Id of the message being generated.
    pub id: MessageId,
    /// Id of the model.
    pub model: String,
    /// The messages it answers, oldest first.
    pub answers: Vec<MessageId>,
    /// The message this one replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supersedes: Option<MessageId>,
    /// The budgets that it counts against; `None`: no budget is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charge: Option<Charge>,
}

/// The budgets that a reply counts against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// The day on which it started: days since the Unix epoch, in UTC.
    pub day: u32,
    /// Whose budgets, like `user:alice`.
    pub subjects: Vec<String>,
}

/// The assistant's message is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyFinished {
    /// Id of the message.
    pub id: MessageId,
    /// The entry that started it.
    pub started_seq: Seq,
    /// The whole text.
    pub text: String,
    /// How it ended.
    pub finish: FinishReason,
    /// What it used.
    pub usage: Usage,
    /// The provider's own id of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_request_id: Option<String>,
    /// Id of the model that answered.
    pub model: String,
    /// The name under which the provider keeps the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
}

/// Who wrote or did something.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sender {
    /// In which capacity.
    pub role: SenderRole,
    /// Subject of the token; empty for the system.
    pub user_id: String,
    /// Name to show; may be empty.
    pub display_name: String,
}

/// Capacity of a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SenderRole {
    /// The owner of the session.
    User,
    /// A person of the team.
    Admin,
    /// The product itself.
    System,
}

/// How a reply ended. Exactly one outcome per reply; partial text is kept whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model finished.
    Stop,
    /// The model reached its output limit.
    Length,
    /// Somebody stopped it, or the session ended.
    Cancelled,
    /// A person took the session over.
    Superseded,
    /// The core that ran it died, was drained, or could not be reached when somebody stopped it.
    Interrupted,
    /// The provider failed.
    ProviderError,
    /// The provider or a filter withheld the rest.
    Filtered,
    /// The provider was too slow.
    Timeout,
    /// A budget has no room for it.
    BudgetExhausted,
}

impl FinishReason {
    /// For figures and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::Interrupted => "interrupted",
            Self::ProviderError => "provider_error",
            Self::Filtered => "filtered",
            Self::Timeout => "timeout",
            Self::BudgetExhausted => "budget_exhausted",
        }
    }

    /// Whether something went wrong on our side or the provider's.
    #[must_use]
    pub fn is_failure(self) -> bool {
        match self {
            Self::Interrupted | Self::ProviderError | Self::Timeout => true,
            Self::Stop | Self::Length | Self::Cancelled | Self::Superseded | Self::Filtered | Self::BudgetExhausted => {
                false
            }
        }
    }
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its owner ended it.
    User,
    /// A person of the team ended it.
    Admin,
    /// Nothing happened for the configured time.
    Idle,
}

/// Tokens of one reply, or a sum of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the completion.
    pub completion_tokens: u64,
    /// Prompt tokens served from the provider's cache; part of `prompt_tokens`.
    #[serde(default)]
    pub cached_tokens: u64,
    /// The provider sent no figures: these are estimates.
    #[serde(default)]
    pub estimated: bool,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(other.cached_tokens);
        self.estimated = self.estimated || other.estimated;
    }
}

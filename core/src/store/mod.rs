//! Where sessions are kept. The traits' text is the contract; `conformance` tests it against every implementation.
//!
//! A store sees sealed bytes, ids, owners, numbers and times; never text. It knows nothing of rooms, replies or providers:
//! it keeps what it is given, atomically where the contract says so, and says truthfully whether it did.

pub mod audit;
pub mod budgets;
#[cfg(test)]
mod conformance;
pub mod error;
pub mod handoff;
pub mod mongo;
pub mod outbox;
pub mod shares;
pub mod sqlite;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chatbox_proto::ids::{MessageId, SessionId};

use self::outbox::OutboxStore;
pub use self::{
    audit::{AuditQuery, AuditRow, AuditStore},
    budgets::BudgetStore,
    error::{StoreError, StoreErrorKind},
    handoff::{HandoffRow, HandoffStore, Stage},
    shares::{Share, ShareCreated, ShareRevoked, ShareStore},
};
use crate::domain::{entry::Seq, time::Timestamp};

/// Names one attempt to append, so that an attempt whose outcome is unknown can be looked up.
pub type AppendId = [u8; 16];
/// Names one run of one core process.
pub type BootId = [u8; 16];
/// A keyed hash; the store compares it and learns nothing from it.
pub type KeyedHash = [u8; 16];

/// Participants whose read marks a session keeps.
pub const MAX_READ_MARKS: u32 = 100;

/// A session to be made.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// Subject of the token, at most 255 bytes.
    pub owner: String,
    /// Which of the owner's slots it may take.
    pub slot: SlotRule,
    /// The session's data key, wrapped.
    pub wrapped_key: Vec<u8>,
    /// When.
    pub created_at: Timestamp,
    /// Idempotency of the call that makes it: unique per owner.
    pub request: Option<RequestKey>,
    /// The folded state of the empty log.
    pub derived: Derived,
}

/// Which slot a new session may take. A slot is held by one active session and freed when it ends; that is how "at most N
/// active sessions per owner" holds under races.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotRule {
    /// Slot 0 only: concurrent first opens meet there.
    First,
    /// The lowest free one of `0..n`.
    AnyOf(u32),
    /// None: the number is not limited.
    Unlimited,
}

/// Idempotency of a call: the same id with the same content is the same call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The caller's `request_id`, hashed with the owner.
    pub id: KeyedHash,
    /// The other fields, hashed.
    pub content: KeyedHash,
}

/// What became of [`SessionStore::create_session`].
#[derive(Debug, Clone)]
pub enum Created {
    /// It was made.
    New(Header),
    /// No slot was free; this is the active session in the owner's lowest slot.
    SlotTaken(Header),
    /// The same call made this session before.
    Repeated(Header),
    /// The request id was used before with other content.
    RequestReused,
}

/// A session without its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its id.
    pub id: SessionId,
    /// Subject of the token that made it.
    pub owner: String,
    /// The slot it holds; `None` when ended or not limited.
    pub slot: Option<u32>,
    /// The session's data key, wrapped.
    pub wrapped_key: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
    /// The folded state, possibly behind the log: opening a session is this plus the tail of the log.
    pub derived: Derived,
}

impl Header {
    /// Its key is destroyed: nothing of it can be read.
    #[must_use]
    pub fn is_erased(&self) -> bool {
        self.wrapped_key.is_empty()
    }
}

/// The folded state of a session as of `applied_seq`, with the columns that lists need. Replaced as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derived {
    /// The last entry it contains.
    pub applied_seq: Seq,
    /// The state, sealed.
    pub state: Vec<u8>,
    /// When the last entry was written; creation time for an empty log.
    pub last_activity: Timestamp,
    /// It takes no more messages.
    pub ended: bool,
    /// A reply runs or a message waits for one: somebody has to look after it after a crash.
    pub unfinished: bool,
}

/// One append: one document of 1..n entries, all or none.
#[derive(Debug, Clone)]
pub struct Append {
    /// The session.
    pub session_id: SessionId,
    /// Random; names this attempt.
    pub append_id: AppendId,
    /// The head that the decision was made against.
    pub expected_head: Seq,
    /// Number of entries, at least 1.
    pub count: u32,
    /// The entries, sealed.
    pub sealed: Vec<u8>,
    /// The messages among them that have a client message id.
    pub messages: Vec<MessageKey>,
    /// Frees the session's slot.
    pub ends_session: bool,
    /// The session, which has ended, takes messages again: it takes one of its owner's free slots by this rule, or nothing is
    /// written.
    pub takes_slot: Option<SlotRule>,
    /// Companion: the folded state after the append.
    pub derived: Derived,
    /// Companion: the row of a reply that starts here.
    pub reply_started: Option<ReplyRow>,
    /// Companion: removes the row of a reply that ends here.
    pub reply_finished: Option<MessageId>,
}

/// What makes a send idempotent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageKey {
    /// Hash over sender and client message id; unique per session.
    pub key: KeyedHash,
    /// Hash over the content.
    pub content: KeyedHash,
    /// The message.
    pub message_id: MessageId,
    /// Its entry.
    pub seq: Seq,
}

/// What became of [`SessionStore::append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// Durable; the new head.
    Done(Seq),
    /// Nothing was written: the head is another one, or a message key exists already. Which of the two is found out by
    /// reading, never from an error.
    Conflict,
    /// Nothing was written: the owner has no free slot for the session.
    NoSlot,
}

/// One document of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogDocument {
    /// Number of its first entry.
    pub first_seq: Seq,
    /// Number of entries.
    pub count: u32,
    /// The entries, sealed.
    pub sealed: Vec<u8>,
}

/// A running reply: its lease and its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyRow {
    /// The session.
    pub session_id: SessionId,
    /// The reply.
    pub message_id: MessageId,
    /// The entry that started it.
    pub started_seq: Seq,
    /// The process that runs it.
    pub boot_id: BootId,
    /// How often it was renewed: others judge a reply dead when this stands still.
    pub renewals: u64,
    /// The text so far, sealed; empty before the first checkpoint.
    pub checkpoint: Vec<u8>,
}

/// A running reply without its text, for whoever judges whether the process that runs it still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyLease {
    /// The session.
    pub session_id: SessionId,
    /// The reply.
    pub message_id: MessageId,
    /// The process that runs it.
    pub boot_id: BootId,
    /// How often it was renewed.
    pub renewals: u64,
}

/// A session that takes messages, and since when nothing has happened in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveSession {
    /// The session.
    pub id: SessionId,
    /// The last entry of its folded state.
    pub applied_seq: Seq,
    /// How long ago that state was written, by the store's own clock: no core's clock has a say in it. At most as long as
    /// the session has been there for this version of the store.
    pub still_for: Duration,
}

/// Which of an owner's sessions to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionQuery {
    /// The owner.
    pub owner: String,
    /// Only ended ones, or only active ones.
    pub ended: Option<bool>,
    /// Only those after this position of the order.
    pub after: Option<(Timestamp, SessionId)>,
    /// At most this many, at least 1.
    pub limit: u32,
}

/// One database, by concern: each part has a trait of its own, and all parts are opened and closed together.
#[derive(Debug, Clone)]
pub struct Stores {
    /// Sessions and their logs.
    pub sessions: Arc<dyn SessionStore>,
    /// Share links.
    pub shares: Arc<dyn ShareStore>,
    /// Alerts on their way.
    pub outbox: Arc<dyn OutboxStore>,
    /// Which sessions wait for a person, and which are held by one.
    pub handoffs: Arc<dyn HandoffStore>,
    /// The audit trail.
    pub audit: Arc<dyn AuditStore>,
    /// What subjects have used.
    pub budgets: Arc<dyn BudgetStore>,
}

impl<S: SessionStore + ShareStore + OutboxStore + HandoffStore + AuditStore + BudgetStore> From<S> for Stores {
    fn from(store: S) -> Self {
        Arc::new(store).into()
    }
}

impl<S: SessionStore + ShareStore + OutboxStore + HandoffStore + AuditStore + BudgetStore> From<Arc<S>> for Stores {
    fn from(store: Arc<S>) -> Self {
        Self {
            sessions: store.clone(),
            shares: store.clone(),
            outbox: store.clone(),
            handoffs: store.clone(),
            audit: store.clone(),
            budgets: store,
        }
    }
}

/// Sessions and their logs.
///
/// All methods are cancel-safe in this sense: a dropped future leaves either everything of the call or nothing, and the
/// caller does not know which. Errors of kind [`StoreErrorKind::OutcomeUnknown`] say the same.
#[async_trait]
pub trait SessionStore: Send + Sync + std::fmt::Debug + 'static {
    /// Makes a session, durably. `request` is looked up before the slot is. An id that exists already is an error of kind
    /// `Internal`.
    async fn create_session(&self, new: NewSession) -> Result<Created, StoreError>;

    /// The header of a session; `None` when there is none. Reads what was acknowledged before the call began.
    async fn session(&self, id: SessionId) -> Result<Option<Header>, StoreError>;

    /// The owner's active session with the latest activity (ties: the larger id); erased ones are not active.
    async fn active_session(&self, owner: &str) -> Result<Option<Header>, StoreError>;

    /// Sessions of an owner that are not erased, latest activity first, ties by larger id first.
    async fn list_sessions(&self, query: SessionQuery) -> Result<Vec<Header>, StoreError>;

    /// Appends one document if the head is `expected_head` and no message key exists, durably: after `Done` no crash
    /// loses it. The document, its message keys and the slot are one atomic change.
    ///
    /// The companions (`derived`, `reply_started`, `reply_finished`) may be applied after the document and may be lost by
    /// a crash in between; `derived` only replaces an older one. Readers must cope, and the next opener repairs. What this
    /// process reads of them is not older than what it appended. That a session is unfinished is not lost: it is among
    /// [`unfinished_sessions`](Self::unfinished_sessions) although its `derived` is behind.
    ///
    /// Taking a slot is part of that change as freeing one is: of racing calls for the last free slot, those that make sessions
    /// among them, one gets it, and a slot whose append was not written is free again.
    ///
    /// Appends of different sessions may be written as a group; each has its own verdict. A session that does not exist
    /// is a `Conflict`.
    async fn append(&self, append: Append) -> Result<Appended, StoreError>;

    /// The head after the append with this id, if it was written: resolves an unknown outcome. The answer is final: after
    /// `None`, the attempt can no longer be written.
    async fn find_append(&self, session_id: SessionId, append_id: AppendId) -> Result<Option<Seq>, StoreError>;

    /// The message with this key.
    async fn find_message(&self, session_id: SessionId, key: KeyedHash) -> Result<Option<MessageKey>, StoreError>;

    /// The number of the last entry, 0 for an empty log or an unknown session. Never older than what was acknowledged
    /// before the call began.
    async fn head(&self, session_id: SessionId) -> Result<Seq, StoreError>;

    /// Heads of many sessions in one read, in any order; unknown ones are left out.
    async fn heads(&self, sessions: &[SessionId]) -> Result<Vec<(SessionId, Seq)>, StoreError>;

    /// Documents that hold entries above `after`, oldest first, until at least `limit` entries above `after` are in them or
    /// the log ends. The first document may begin at or before `after`.
    async fn read_after(&self, session_id: SessionId, after: Seq, limit: u32) -> Result<Vec<LogDocument>, StoreError>;

    /// Documents that hold entries below `before`, newest first, until at least `limit` entries below `before` are in them
    /// or the log ends. The first document may reach `before` and beyond.
    async fn read_before(&self, session_id: SessionId, before: Seq, limit: u32)
    -> Result<Vec<LogDocument>, StoreError>;

    /// Replaces the folded state if its `applied_seq` is still `expected` and the new one's is not smaller; says whether it
    /// did.
    async fn replace_derived(&self, session_id: SessionId, expected: Seq, derived: Derived)
    -> Result<bool, StoreError>;

    /// Sessions that have not ended, in the order of their ids, above `after`, each with how long it has stood still.
    async fn active_sessions(&self, after: Option<SessionId>, limit: u32) -> Result<Vec<ActiveSession>, StoreError>;

    /// Sessions whose `derived.unfinished` is set, each with its `derived.applied_seq`, in the order of their ids, above
    /// `after`: whoever looks twice sees which of them nobody has moved.
    async fn unfinished_sessions(
        &self,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<(SessionId, Seq)>, StoreError>;

    /// The row of the session's running reply; the one with the largest `started_seq` should there be more.
    async fn reply_row(&self, session_id: SessionId) -> Result<Option<ReplyRow>, StoreError>;

    /// All running replies, in the order of their message ids, above `after`.
    async fn reply_rows(&self, after: Option<MessageId>, limit: u32) -> Result<Vec<ReplyLease>, StoreError>;

    /// Renews the row of a running reply and replaces its checkpoint, if the row still has `boot_id` and
    /// `renewals == expected`; adds one to `renewals`; says whether it did. Not necessarily durable.
    async fn renew_reply(
        &self,
        message_id: MessageId,
        boot_id: BootId,
        expected: u64,
        checkpoint: Vec<u8>,
    ) -> Result<bool, StoreError>;

    /// Replaces a session's wrapped data key, durably, if it is still `expected`; says whether it did. A destroyed key is
    /// never replaced, and none is destroyed by this: neither of the two is empty.
    async fn replace_wrapped_key(
        &self,
        session_id: SessionId,
        expected: Vec<u8>,
        new: Vec<u8>,
    ) -> Result<bool, StoreError>;

    /// Destroys what a session can be read with, durably and for good: afterwards its wrapped key and its folded state are
    /// empty, it has no rows of replies, no read marks and no slot, has ended and is not unfinished. `fence` is the number
    /// of the last entry of its log, which says that this is to happen: nothing that goes with an earlier append changes it
    /// any more. It is in no list of its owner's; its header remains, so that whoever asks again can be told apart. Says
    /// whether there is such a session; twice is once, and cut anywhere it can be done again.
    async fn erase_session(&self, session_id: SessionId, fence: Seq) -> Result<bool, StoreError>;

    /// Removes the row of a reply that has its end in the log, durably; nothing if there is none. Such a row is left when a
    /// companion of the append that ended it was lost.
    async fn remove_reply(&self, message_id: MessageId) -> Result<(), StoreError>;

    /// The wrapped data keys of all sessions, destroyed ones too, in the order of the sessions' ids, above `after`.
    async fn wrapped_keys(&self, after: Option<SessionId>, limit: u32)
    -> Result<Vec<(SessionId, Vec<u8>)>, StoreError>;

    /// Raises how far a participant has read; a smaller number changes nothing. May be lost by a crash within a second.
    /// A session that does not exist or is erased is left so, and beyond [`MAX_READ_MARKS`] no further participant is kept: both without an
    /// error.
    async fn mark_read(&self, session_id: SessionId, user_id: &str, seq: Seq) -> Result<(), StoreError>;

    /// How far each participant has read, in the order of user ids, at most [`MAX_READ_MARKS`].
    async fn read_marks(&self, session_id: SessionId) -> Result<Vec<(String, Seq)>, StoreError>;

    /// A small value of the installation, such as the self-test of the key ring.
    async fn installation_value(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Sets such a value unless there is one, durably; returns the one that is there then.
    async fn init_installation_value(&self, name: &str, value: Vec<u8>) -> Result<Vec<u8>, StoreError>;

    /// Replaces such a value, durably, if it is still `expected`; says whether it did. One that was never set is not.
    async fn replace_installation_value(&self, name: &str, expected: Vec<u8>, new: Vec<u8>)
    -> Result<bool, StoreError>;

    /// Whether foreign boot ids may be alive: several cores share the store. When not, they are dead at start.
    fn is_shared(&self) -> bool;

    /// Answers when the store can serve reads and writes.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Finishes what was accepted and releases everything. Idempotent; calls after it fail as `Unavailable`.
    async fn close(&self);
}

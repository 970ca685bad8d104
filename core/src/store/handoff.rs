//! Which sessions wait for a person and which are held by one: a row for each, for whoever draws up the queue and for whoever
//! judges whether the holder is still there. Rows follow the log; whoever finds one that does not fit mends it.

use async_trait::async_trait;
use chatbox_proto::ids::SessionId;

use super::StoreError;
use crate::domain::time::Timestamp;

/// Why somebody has to look after a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A visitor waits for a person.
    Waiting {
        /// Since when: the order of the queue.
        since: Timestamp,
    },
    /// A person holds it.
    Held,
}

/// One session that waits or is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandoffRow {
    /// The session.
    pub session_id: SessionId,
    /// Which of the two.
    pub stage: Stage,
    /// Random and new with each write, below 2^63: one that stands still says that nobody has written the row.
    pub mark: u64,
}

/// Rows of sessions that wait for a person or are held by one, at most one for each.
#[async_trait]
pub trait HandoffStore: Send + Sync + std::fmt::Debug + 'static {
    /// Writes the row of a session, durably, in place of the one it had.
    async fn put_handoff(&self, row: HandoffRow) -> Result<(), StoreError>;

    /// Removes the row of a session, durably, if it still has this mark; says whether it did.
    async fn remove_handoff(&self, session_id: SessionId, mark: u64) -> Result<bool, StoreError>;

    /// The row of a session.
    async fn handoff(&self, session_id: SessionId) -> Result<Option<HandoffRow>, StoreError>;

    /// All rows in the order of their sessions' ids, above `after`.
    async fn handoffs(&self, after: Option<SessionId>, limit: u32) -> Result<Vec<HandoffRow>, StoreError>;

    /// The rows that wait, longest first, ties by smaller id first.
    async fn waiting(&self, limit: u32) -> Result<Vec<HandoffRow>, StoreError>;
}

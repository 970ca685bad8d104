//! What is to be told to people outside: one row per alert and channel, until it was delivered or given up.

use async_trait::async_trait;
use chatbox_proto::ids::SessionId;

use super::StoreError;
use crate::domain::{entry::Seq, time::Timestamp};

/// Names an alert on a channel. Made from what it is about, so that everybody who notices the same makes the same row.
pub type AlertId = [u8; 16];

/// A row. It holds no word of a visitor: who delivers it reads those from the session, sealed as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertRow {
    /// Its name.
    pub id: AlertId,
    /// Id of the channel, as configured when it was made.
    pub channel: String,
    /// Name of the event.
    pub event: String,
    /// The session it is about, and the entry.
    pub entry: Option<(SessionId, Seq)>,
    /// What it is about besides: a name from the configuration, or a number. Never text of a person.
    pub detail: String,
    /// When it happened.
    pub created_at: Timestamp,
    /// Not to be tried before. While somebody tries, the end of the time that this one has for it.
    pub due_at: Timestamp,
    /// Tries that were begun.
    pub attempts: u32,
    /// What became of it.
    pub state: AlertState,
    /// Why the last try failed, in words of this program; empty when none has.
    pub error: String,
}

/// What became of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertState {
    /// It has to be delivered.
    Waiting,
    /// It was delivered.
    Delivered,
    /// It was given up.
    Dead,
}

/// What a try led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempted {
    /// It was delivered.
    Delivered,
    /// It has to be tried again.
    Retry {
        /// Not before.
        due_at: Timestamp,
        /// Why it failed.
        error: String,
    },
    /// It is given up.
    Dead {
        /// Why it failed.
        error: String,
    },
}

impl Attempted {
    /// The state it leaves.
    #[must_use]
    pub fn state(&self) -> AlertState {
        match self {
            Self::Delivered => AlertState::Delivered,
            Self::Retry { .. } => AlertState::Waiting,
            Self::Dead { .. } => AlertState::Dead,
        }
    }
}

/// The durable outbox. Times are wall-clock ones that callers bring: two cores whose clocks differ may both try a row, which
/// is delivered at least once, and never too late by more than they differ.
#[async_trait]
pub trait OutboxStore: Send + Sync + std::fmt::Debug + 'static {
    /// Adds a row, waiting, durably. One that is there already, in whatever state, stays as it is: `false`.
    async fn enqueue(&self, row: AlertRow) -> Result<bool, StoreError>;

    /// Takes up to `limit` waiting rows that are due at `now`, those due first first: each has one more attempt and is due
    /// at `until`. Of those who claim at the same time one gets a row. When the outcome is unknown the rows come back then.
    async fn claim(&self, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<AlertRow>, StoreError>;

    /// What came of the attempt with this number. `false`, and nothing written, when the row is no longer waiting or was
    /// claimed again since.
    async fn settle(&self, id: AlertId, attempt: u32, outcome: Attempted) -> Result<bool, StoreError>;

    /// Rows of a state, oldest first, `after` this position of the order.
    async fn alerts(
        &self,
        state: AlertState,
        after: Option<(Timestamp, AlertId)>,
        limit: u32,
    ) -> Result<Vec<AlertRow>, StoreError>;

    /// Removes up to `limit` delivered rows made before `before`; how many there were. What was given up stays for people
    /// to see, and so does not come back.
    async fn prune_delivered(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError>;
}

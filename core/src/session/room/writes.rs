//! What waits to be decided in a room, and what is on its way to the store.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::{
    attach::SubscriberId,
    flight::InFlight,
    write::{Origin, Write},
};
use crate::domain::entry::{Entry, EntryKind};

/// Frames that wait for their turn; more are refused.
const MAX_PENDING: usize = 64;

/// The writes of one room.
#[derive(Default)]
pub(super) struct Writes {
    pub(super) pending: VecDeque<Write>,
    pub(super) in_flight: Option<InFlight>,
    /// The store has entries that this room has not.
    pub(super) wants_tail: bool,
    /// What the room writes of its own accord failed; not again before then.
    pub(super) retry_at: Option<Instant>,
    pub(super) failures: u32,
}

impl Writes {
    pub(super) fn push(&mut self, write: Write) {
        self.pending.push_back(write);
    }

    /// Goes on with a write that had its turn.
    pub(super) fn push_front(&mut self, write: Write) {
        self.pending.push_front(write);
    }

    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= MAX_PENDING
    }

    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_none() && !self.wants_tail
    }

    /// What the room does of its own accord may be tried again from here on.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// The end of the session or a takeover is being written, which ends the running reply with its words so far: what is
    /// said now would not be part of it.
    pub(super) fn cuts_reply(&self) -> bool {
        let cuts = |entry: &Entry| {
            matches!(entry.fact.kind, EntryKind::Ended { .. } | EntryKind::Erased { .. } | EntryKind::TakenOver { .. })
        };
        self.in_flight.as_ref().is_some_and(|flight| flight.entries.iter().any(cuts))
    }

    /// Takes out what has waited for longer than `limit`: the store does not answer, and whoever asked has to know. None of
    /// it was ever submitted.
    pub(super) fn take_late(&mut self, limit: Duration) -> Vec<Origin> {
        let mut late = Vec::new();
        while self.pending.front().is_some_and(|write| write.since.elapsed() > limit) {
            late.extend(self.pending.pop_front().map(|write| write.origin));
        }
        late
    }

    pub(super) fn waits_for(&self, subscriber: SubscriberId) -> bool {
        let flying = self.in_flight.as_ref().and_then(|flight| flight.write.as_ref());
        self.pending.iter().chain(flying).any(|write| write.subscriber() == Some(subscriber))
    }
}

//! How far participants have read, on its way to the store.

use std::{collections::BTreeMap, future::Future, pin::Pin};

use tokio::time::Instant;

use super::{Room, TICK};
use crate::{domain::entry::Seq, session::log::SessionLog};

/// Read marks on their way to the store; resolves to those that could not be stored.
pub(super) type Marks = Pin<Box<dyn Future<Output = BTreeMap<String, Seq>> + Send>>;

impl Room {
    /// Read marks may lose a second: they are written one batch at a time, however often somebody scrolls.
    pub(super) fn start_marks(&mut self) {
        let due = self.marked_at.is_none_or(|at| at.elapsed() >= TICK);
        if self.marks.is_none() && due && !self.dirty_marks.is_empty() {
            let marks = std::mem::take(&mut self.dirty_marks);
            self.marks = Some(Box::pin(store_marks(self.log.clone(), marks)));
            self.marked_at = Some(Instant::now());
        }
    }

    /// What could not be stored is tried again, unless somebody has read further meanwhile.
    pub(super) fn marked(&mut self, unmarked: BTreeMap<String, Seq>) {
        for (user_id, seq) in unmarked {
            self.dirty_marks.entry(user_id).or_insert(seq);
        }
    }
}

/// Stores read marks; returns those that could not be.
pub(super) async fn store_marks(log: SessionLog, marks: BTreeMap<String, Seq>) -> BTreeMap<String, Seq> {
    let mut unmarked = BTreeMap::new();
    for (user_id, seq) in marks {
        if let Err(error) = log.call(log.store.mark_read(log.id, &user_id, seq)).await {
            tracing::warn!(error = &error as &dyn std::error::Error, session.id = %log.id, "a read mark was not stored");
            unmarked.insert(user_id, seq);
        }
    }
    unmarked
}

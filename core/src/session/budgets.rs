//! Reservations that nobody settles: their core died, or the store was away when the reply ended. The log tells what has
//! become of a reply; what was used without one is taken to be all that was reserved.
//!
//! A reservation is looked into when it has stood for a while on this core's own clock. That several cores do it does no
//! harm: a reservation is settled once. Rows of long past days are removed here too.

use std::{collections::HashMap, time::Duration};

use chatbox_proto::ids::{MessageId, SessionId};
use tokio::time::Instant;

use super::{directory::Directory, error::SessionError, log::PAGE};
use crate::{
    budget::Budgets,
    domain::entry::{Charge, EntryKind, Seq},
    store::{
        StoreError,
        budgets::{BudgetKey, BudgetRow, Reservation, Settlement},
    },
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// Longer than any work outside of a session can take: an hour for a provider, and its queue.
const LONGEST_WORK: Duration = Duration::from_secs(75 * 60);

/// Rows per read, and reads per look: beyond that a look is left unfinished and says so.
const ROWS: u32 = 100;
const READS: usize = 100;

/// How far back in a log the end of a reply is looked for.
const LOG_PAGES: usize = 100;

/// Days that rows are kept for those who want to look at them.
const KEPT_DAYS: u32 = 62;
const DROP_EVERY: Duration = Duration::from_secs(3_600);
const DROPPED_AT_ONCE: u32 = 1_000;

/// A reservation, since when it is there.
type Seen = HashMap<(BudgetKey, MessageId), Instant>;

/// Looks until it is dropped. Does nothing where nothing is limited.
pub(super) async fn sweep_budgets(directory: Directory) {
    let Some(budgets) = directory.shared.budgets.clone() else { return };
    let mut sweep = Sweep { directory, budgets, seen: Seen::new(), next_drop: Instant::now() };
    loop {
        if let Err(error) = sweep.look().await {
            sweep.directory.shared.count(&error);
            tracing::warn!(error = &error as &dyn std::error::Error, "reservations could not be looked at");
        }
        tokio::time::sleep(EVERY).await;
    }
}

struct Sweep {
    directory: Directory,
    budgets: Budgets,
    seen: Seen,
    next_drop: Instant,
}

impl Sweep {
    async fn look(&mut self) -> Result<(), SessionError> {
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.seen);
        let mut due = Vec::new();
        for row in self.open_rows().await? {
            for reservation in row.open {
                let place = (row.key.clone(), reservation.id);
                let since = *before.remove(&place).get_or_insert(now);
                if now.duration_since(since) >= self.patience(&reservation) {
                    due.push((row.key.clone(), reservation));
                }
                self.seen.insert(place, since);
            }
        }
        for (key, reservation) in due {
            if let Some(settlement) = self.became(&reservation).await {
                self.directory.shared.metrics.budget("swept");
                let charge = Charge { day: key.day, subjects: vec![key.subject] };
                self.budgets.settle(&charge, reservation.id, settlement).await;
            }
        }
        if now >= self.next_drop {
            self.next_drop = now + DROP_EVERY;
            let oldest = self.budgets.day().saturating_sub(KEPT_DAYS);
            self.call(self.budgets.store().drop_budgets(oldest, DROPPED_AT_ONCE)).await?;
        }
        Ok(())
    }

    /// A reply whose core may have died is judged by its log; other work by its time, or by the end of its process.
    fn patience(&self, reservation: &Reservation) -> Duration {
        let shared = &self.directory.shared;
        let gone = !shared.store.is_shared() && reservation.boot_id != self.budgets.boot_id();
        if reservation.session_id.is_some() || gone { shared.limits.reply_lapse } else { LONGEST_WORK }
    }

    async fn open_rows(&self) -> Result<Vec<BudgetRow>, SessionError> {
        let mut rows: Vec<BudgetRow> = Vec::new();
        for _ in 0..READS {
            let after = rows.last().map(|row| row.key.clone());
            let page = self.call(self.budgets.store().open_budgets(after, ROWS)).await?;
            let last = page.len() < ROWS as usize;
            rows.extend(page);
            if last {
                return Ok(rows);
            }
        }
        tracing::warn!(rows = rows.len(), "more budgets are in use than are looked at");
        Ok(rows)
    }

    /// What has become of the work; `None` while it goes on, or nobody can tell yet.
    async fn became(&self, reservation: &Reservation) -> Option<Settlement> {
        let Some(session) = reservation.session_id else { return Some(Settlement::Unknown) };
        match self.reply_end(session, reservation.id).await {
            Ok(found) => found,
            Err(error) if error.is_passing() => None,
            // What is destroyed or damaged tells nothing any more.
            Err(_) => Some(Settlement::Unknown),
        }
    }

    async fn reply_end(&self, session: SessionId, reply: MessageId) -> Result<Option<Settlement>, SessionError> {
        let shared = &self.directory.shared;
        let Some(header) = self.call(shared.store.session(session)).await? else {
            return Ok(Some(Settlement::Unknown));
        };
        let log = self.directory.log(&header)?;
        let state = log.state(&header.derived).await?;
        if state.running.as_ref().is_some_and(|running| running.id == reply) {
            return Ok(None);
        }
        let mut before: Seq = state.head + 1;
        for _ in 0..LOG_PAGES {
            let page = log.read_before(before, PAGE).await?;
            let Some(oldest) = page.last() else { break };
            before = oldest.seq;
            for entry in page {
                if let EntryKind::ReplyFinished(finished) = &entry.fact.kind
                    && finished.id == reply
                {
                    return Ok(Some(self.budgets.settlement(&finished.model, &finished.usage)));
                }
            }
        }
        Ok(Some(Settlement::Unknown))
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, StoreError>> + Send) -> Result<T, SessionError> {
        let limit = self.directory.shared.limits.store_call;
        Ok(tokio::time::timeout(limit, call).await.map_err(|_| SessionError::StoreTimeout)??)
    }
}

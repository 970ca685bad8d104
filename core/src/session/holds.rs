//! Whether those who hold sessions are still there. The core that an admin is attached to renews the session's row; every
//! core looks at all rows, and one that stands still for the lapse, on this core's own monotonic clock, is brought to its
//! room: which lets the hold lapse, or mends the row if the log says otherwise. That several cores do it does no harm: the
//! log lets one of them.

use std::{collections::HashMap, time::Duration};

use chatbox_proto::{error_code::ErrorCode, ids::SessionId};
use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use super::{directory::Directory, error::SessionError, room::Command};
use crate::store::{HandoffRow, Stage};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// A row that waits is compared with the log once, after so long.
const VERIFIED: Duration = Duration::from_secs(60);
/// Rows per read, and reads per look.
const PAGE: u32 = 500;
const PAGES: usize = 40;
/// Sessions that are opened at once.
const AT_ONCE: usize = 32;

#[derive(Debug, Clone, Copy)]
struct Watched {
    mark: u64,
    /// When it was first seen so, or when its room was told last.
    since: Instant,
    told: bool,
}

/// See the module's text.
pub(super) struct HoldWatch {
    directory: Directory,
    rows: HashMap<SessionId, Watched>,
}

impl HoldWatch {
    pub(super) fn new(directory: Directory) -> Self {
        Self { directory, rows: HashMap::new() }
    }

    /// Looks until it is dropped.
    pub(super) async fn run(mut self) {
        loop {
            if let Err(error) = self.look(Instant::now()).await {
                self.directory.shared.count(&error);
                tracing::warn!(error = &error as &dyn std::error::Error, "holds could not be read");
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn look(&mut self, now: Instant) -> Result<(), SessionError> {
        let rows = self.read().await?;
        let lapse = self.directory.shared.limits.hold_lapse;
        let before = std::mem::take(&mut self.rows);
        let mut still = Vec::new();
        for row in rows {
            let known = before.get(&row.session_id).filter(|known| known.mark == row.mark);
            let mut watched = known.copied().unwrap_or(Watched { mark: row.mark, since: now, told: false });
            let due = match row.stage {
                Stage::Held => now >= watched.since + lapse,
                Stage::Waiting { .. } => !watched.told && now >= watched.since + VERIFIED,
            };
            if due {
                (watched.since, watched.told) = (now, true);
                still.push(row);
            }
            self.rows.insert(row.session_id, watched);
        }
        let directory = &self.directory;
        stream::iter(still).for_each_concurrent(AT_ONCE, |row| tell(directory, row)).await;
        Ok(())
    }

    async fn read(&self) -> Result<Vec<HandoffRow>, SessionError> {
        let shared = &self.directory.shared;
        let mut rows: Vec<HandoffRow> = Vec::new();
        let mut after = None;
        for _ in 0..PAGES {
            let call = tokio::time::timeout(shared.limits.store_call, shared.handoffs.handoffs(after, PAGE));
            let page = call.await.map_err(|_| SessionError::StoreTimeout)??;
            let last = page.len() < PAGE as usize;
            after = page.last().map(|row| row.session_id);
            rows.extend(page);
            if last {
                return Ok(rows);
            }
        }
        tracing::warn!(rows = rows.len(), "more sessions wait or are held than are looked at");
        Ok(rows)
    }
}

/// Opens the session's room and tells it. What could not be opened comes up again; what is no session any more has no row.
async fn tell(directory: &Directory, row: HandoffRow) {
    match directory.room(row.session_id).await {
        Ok(room) => {
            let _ = room.command(Command::StandsStill(row)).await;
        }
        Err(failure) if failure.code == ErrorCode::NotFound => {
            let shared = &directory.shared;
            let remove = shared.handoffs.remove_handoff(row.session_id, row.mark);
            if !matches!(tokio::time::timeout(shared.limits.store_call, remove).await, Ok(Ok(_))) {
                tracing::warn!(session.id = %row.session_id, "the row of a session that is gone could not be removed");
            }
        }
        Err(_) => {}
    }
}

//! What other cores leave unfinished, and rows of replies that are over. Every core looks at the leases of all running replies and at all unfinished sessions;
//! one that stands still for the lapse, on this core's own monotonic clock, is dead, and its session's room is opened to
//! finish it. That several cores come to the same judgement does no harm: the log lets one of them finish it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chatbox_proto::ids::{MessageId, SessionId};
use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use super::{directory::Directory, error::SessionError, room::Command};
use crate::{domain::entry::Seq, store::ReplyLease};

/// Between two looks at the leases. With the lapse it makes up how soon a death is noticed.
const EVERY: Duration = Duration::from_millis(500);

/// Between two looks at the unfinished sessions; those with a lease are judged by it.
const SESSIONS_EVERY: Duration = Duration::from_secs(1);

/// Rows per read, and reads per look: beyond that a look is left unfinished and says so.
const PAGE: u32 = 500;
const PAGES: usize = 400;

/// Sessions that are opened at once.
const AT_ONCE: usize = 32;

/// A room that was told is given so long before it is told again.
const TELL_AGAIN: Duration = Duration::from_secs(2);

/// Something that has to move to be alive.
#[derive(Debug, Clone, Copy)]
struct Watched {
    position: u64,
    /// When it was first seen there, or when its room was told last.
    since: Instant,
    told: bool,
}

impl Watched {
    /// What is known of it now that it is seen at `position`.
    fn seen(before: Option<&Self>, position: u64, now: Instant) -> Self {
        match before {
            Some(before) if before.position == position => *before,
            Some(_) | None => Self { position, since: now, told: false },
        }
    }

    fn due(&self, lapse: Duration) -> Instant {
        self.since + if self.told { TELL_AGAIN } else { lapse }
    }
}

/// A session whose room has to be told: of a row that stands still, or that nothing moves.
struct Dead {
    session: SessionId,
    row: Option<(MessageId, u64)>,
    /// A room of this core looks after it.
    kept: bool,
}

/// See the module's text.
pub(super) struct Sweep {
    directory: Directory,
    leases: HashMap<MessageId, Watched>,
    leased: HashSet<SessionId>,
    sessions: HashMap<SessionId, Watched>,
    next_sessions: Instant,
}

impl Sweep {
    pub(super) fn new(directory: Directory) -> Self {
        let next_sessions = Instant::now();
        Self { directory, leases: HashMap::new(), leased: HashSet::new(), sessions: HashMap::new(), next_sessions }
    }

    /// Looks until it is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let now = Instant::now();
            if let Err(error) = self.look(now).await {
                self.directory.shared.count(&error);
                tracing::warn!(error = &error as &dyn std::error::Error, "leases could not be read");
            }
            tokio::time::sleep_until(self.next_look(now)).await;
        }
    }

    /// At what is about to be judged, exactly then.
    fn next_look(&self, now: Instant) -> Instant {
        let lapse = self.directory.shared.limits.reply_lapse;
        let watched = self.leases.values().chain(self.sessions.values());
        let soonest = watched.map(|watched| watched.due(lapse)).fold(now + EVERY, Instant::min);
        // A store that is slow is not asked again at once.
        soonest.max(Instant::now() + EVERY / 10)
    }

    async fn look(&mut self, now: Instant) -> Result<(), SessionError> {
        let mut dead = self.look_at_leases(now).await?;
        if now >= self.next_sessions {
            self.next_sessions = now + SESSIONS_EVERY;
            dead.extend(self.look_at_sessions(now).await?);
        }
        let directory = &self.directory;
        stream::iter(dead).for_each_concurrent(AT_ONCE, |dead| tell(directory, dead)).await;
        Ok(())
    }

    async fn look_at_leases(&mut self, now: Instant) -> Result<Vec<Dead>, SessionError> {
        let rows = self.read_leases().await?;
        let shared = self.directory.shared.clone();
        let mut dead = Vec::new();
        self.leased = rows.iter().map(|row| row.session_id).collect();
        let before = std::mem::take(&mut self.leases);
        for ReplyLease { session_id, message_id, boot_id, renewals } in rows {
            let own = boot_id == shared.boot_id;
            let kept = own && self.directory.live(session_id).is_some();
            let mut watched = Watched::seen(before.get(&message_id), renewals, now);
            // One of this very process, which has no room for it, has nobody.
            if watched.due(shared.limits.reply_lapse) <= now || (own && !kept && !watched.told) {
                (watched.since, watched.told) = (now, true);
                dead.push(Dead { session: session_id, row: Some((message_id, renewals)), kept });
            }
            self.leases.insert(message_id, watched);
        }
        Ok(dead)
    }

    async fn read_leases(&self) -> Result<Vec<ReplyLease>, SessionError> {
        let shared = &self.directory.shared;
        let mut rows = Vec::new();
        let mut after = None;
        for _ in 0..PAGES {
            let call = tokio::time::timeout(shared.limits.store_call, shared.store.reply_rows(after, PAGE));
            let page = call.await.map_err(|_| SessionError::StoreTimeout)??;
            let last = page.len() < PAGE as usize;
            after = page.last().map(|row| row.message_id);
            rows.extend(page);
            if last {
                return Ok(rows);
            }
        }
        tracing::warn!(rows = rows.len(), "more replies run than are looked at");
        Ok(rows)
    }

    /// Sessions that need somebody and have no lease: their core died between the log and the row, or before an answer.
    async fn look_at_sessions(&mut self, now: Instant) -> Result<Vec<Dead>, SessionError> {
        let sessions = self.read_sessions().await?;
        let lapse = self.directory.shared.limits.reply_lapse;
        let mut dead = Vec::new();
        let before = std::mem::take(&mut self.sessions);
        for (session_id, applied_seq) in sessions {
            if self.leased.contains(&session_id) {
                continue;
            }
            let mut watched = Watched::seen(before.get(&session_id), applied_seq, now);
            if watched.due(lapse) <= now {
                (watched.since, watched.told) = (now, true);
                dead.push(Dead { session: session_id, row: None, kept: false });
            }
            self.sessions.insert(session_id, watched);
        }
        Ok(dead)
    }

    async fn read_sessions(&self) -> Result<Vec<(SessionId, Seq)>, SessionError> {
        let shared = &self.directory.shared;
        let mut sessions: Vec<(SessionId, Seq)> = Vec::new();
        let mut after = None;
        for _ in 0..PAGES {
            let call = tokio::time::timeout(shared.limits.store_call, shared.store.unfinished_sessions(after, PAGE));
            let page = call.await.map_err(|_| SessionError::StoreTimeout)??;
            let last = page.len() < PAGE as usize;
            after = page.last().map(|(id, _)| *id);
            sessions.extend(page);
            if last {
                return Ok(sessions);
            }
        }
        tracing::warn!(sessions = sessions.len(), "more sessions are unfinished than are looked at");
        Ok(sessions)
    }
}

/// Opens the session's room and tells it; a room that answers what waits does so by being open. What could not be done was
/// reported, and comes up again.
async fn tell(directory: &Directory, Dead { session, row, kept }: Dead) {
    if let Some((message_id, _)) = row {
        match clear(directory, session, message_id).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                directory.shared.report(&error, "the row of a reply could not be looked after");
                return;
            }
        }
    }
    if !kept && let Ok(room) = directory.room(session).await {
        let _ = room.command(Command::Dead(row)).await;
    }
}

/// Removes the row of a reply that has its end in the log, read after the row was seen; the companion that was to remove it
/// was lost. `true`: nobody has to be told of anything.
async fn clear(directory: &Directory, session: SessionId, reply: MessageId) -> Result<bool, SessionError> {
    let (over, unfinished) = match directory.header(session).await {
        Ok(Some(header)) => {
            let state = directory.log(&header)?.state(&header.derived).await?;
            (state.running.as_ref().is_none_or(|running| running.id != reply), state.is_unfinished())
        }
        Ok(None) => (true, false),
        // It was reported.
        Err(_) => return Ok(true),
    };
    if over {
        let shared = &directory.shared;
        let call = tokio::time::timeout(shared.limits.store_call, shared.store.remove_reply(reply));
        call.await.map_err(|_| SessionError::StoreTimeout)??;
        tracing::info!(session.id = %session, reply.id = %reply, "removed the row of a reply that is over");
    }
    Ok(over && !unfinished)
}

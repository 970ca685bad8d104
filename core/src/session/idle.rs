//! Sessions in which nothing happens end after a while. Every core walks the active ones from time to time. How long a
//! session has stood still is said by the store's own clock, which also noted when it moved; what a core's clock says does not
//! matter. The end itself is decided at the entry that was looked at: whatever was written since wins, and of several cores
//! that come to it one ends the session.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::{directory::Directory, error::SessionError, room::Command};
use crate::store::ActiveSession;

/// A walk begins this often within the time that a session may stand still, but not more and not less often than below.
const WALKS: u32 = 24;
const OFTEN: Duration = Duration::from_millis(500);
const SELDOM: Duration = Duration::from_secs(3_600);

/// Sessions per read.
const PAGE: u32 = 1_000;

/// Sessions that are ended at once.
const AT_ONCE: usize = 16;

/// Walks until it is dropped; never, where sessions do not end by themselves.
pub(super) async fn run(directory: &Directory) {
    let Some(limit) = directory.shared.limits.idle_end else { return std::future::pending().await };
    let every = (limit / WALKS).clamp(OFTEN, SELDOM);
    loop {
        // Cores that start together do not walk together.
        tokio::time::sleep(every.mul_f64(rand::random_range(0.5..1.0))).await;
        if let Err(error) = walk(directory, limit).await {
            directory.shared.count(&error);
            tracing::warn!(error = &error as &dyn std::error::Error, "idle sessions could not be looked for");
        }
    }
}

/// Looks at every active session once.
pub(super) async fn walk(directory: &Directory, limit: Duration) -> Result<(), SessionError> {
    let shared = &directory.shared;
    let mut after = None;
    loop {
        let call = tokio::time::timeout(shared.limits.store_call, shared.store.active_sessions(after, PAGE));
        let page = call.await.map_err(|_| SessionError::StoreTimeout)??;
        let Some(last) = page.last().map(|session| session.id) else { return Ok(()) };
        after = Some(last);
        let idle = page.into_iter().filter(|session| session.still_for >= limit);
        stream::iter(idle).for_each_concurrent(AT_ONCE, |session| end(directory, session)).await;
    }
}

/// Its room decides: it may have moved, be held by a person, or wait for a reply.
async fn end(directory: &Directory, session: ActiveSession) {
    // What could not be opened was reported, and comes up again.
    if let Ok(room) = directory.room(session.id).await {
        let _ = room.command(Command::Idle(session.applied_seq)).await;
    }
}

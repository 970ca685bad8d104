//! What a visitor's request for help says, out of the log.

use async_trait::async_trait;
use chatbox_proto::ids::SessionId;
use tokio::time::timeout;

use super::{HelpFacts, HelpReader};
use crate::{
    domain::{
        entry::{EntryKind, Seq},
        time::Timestamp,
    },
    session::{Directory, SessionError},
};

/// Entries from the end of the log among which a request for help is looked for, moments after it was made.
const TAIL: u32 = 100;
/// What the clocks of cores may differ by, in milliseconds.
const CLOCKS: i64 = 10_000;

#[async_trait]
impl HelpReader for Directory {
    async fn help(&self, session: SessionId, seq: Seq) -> Result<Option<HelpFacts>, SessionError> {
        let read = timeout(self.shared.limits.store_call, self.shared.store.session(session));
        let header = read.await.map_err(|_| SessionError::StoreTimeout)??;
        let Some(header) = header.filter(|header| !header.is_erased()) else { return Ok(None) };
        let log = self.log(&header)?;
        let entries = log.read_after(seq.saturating_sub(1), 1).await?;
        let Some(entry) = entries.into_iter().find(|entry| entry.seq == seq) else { return Ok(None) };
        let EntryKind::HelpRequested { reason } = entry.fact.kind else { return Ok(None) };
        Ok(Some(HelpFacts { user: header.owner, reason }))
    }

    async fn requested(&self, session: SessionId, since: Timestamp) -> Result<Option<Seq>, SessionError> {
        let read = timeout(self.shared.limits.store_call, self.shared.store.session(session));
        let header = read.await.map_err(|_| SessionError::StoreTimeout)??;
        let Some(header) = header.filter(|header| !header.is_erased()) else { return Ok(None) };
        // The row is written ahead of the entry, by a core whose clock may differ from that of whoever wrote it again.
        let since = since.millis().saturating_sub(CLOCKS);
        let entries = self.log(&header)?.read_before(Seq::MAX, TAIL).await?;
        let newest = entries.iter().find(|entry| matches!(entry.fact.kind, EntryKind::HelpRequested { .. }));
        Ok(newest.filter(|entry| entry.fact.at.millis() >= since).map(|entry| entry.seq))
    }
}

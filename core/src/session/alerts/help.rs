//! What a visitor's request for help says, out of the log.

use async_trait::async_trait;
use chatbox_proto::ids::SessionId;
use tokio::time::timeout;

use super::{HelpFacts, HelpReader};
use crate::{
    domain::entry::{EntryKind, Seq},
    session::{Directory, SessionError},
};

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
}

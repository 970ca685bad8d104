//! The log of one session as entries: sealing and opening around the store's documents.

use std::{future::Future, sync::Arc, time::Duration};

use chatbox_proto::ids::{MessageId, SessionId};

use super::error::SessionError;
use crate::{
    domain::{
        entry::{Entry, Fact, Seq},
        session::SessionState,
    },
    seal::{DataKey, Field, KeyRing},
    store::{Derived, Header, LogDocument, SessionStore},
};

/// Entries per read: bounds what one page of the log holds in memory.
pub(super) const PAGE: u32 = 200;

/// One session's log, with its key.
#[derive(Clone)]
pub(super) struct SessionLog {
    pub(super) id: SessionId,
    pub(super) key: Arc<DataKey>,
    pub(super) store: Arc<dyn SessionStore>,
    pub(super) call_timeout: Duration,
}

impl SessionLog {
    /// The log behind a header.
    pub(super) fn open(
        header: &Header,
        ring: &KeyRing,
        store: Arc<dyn SessionStore>,
        call_timeout: Duration,
    ) -> Result<Self, SessionError> {
        let key = Arc::new(ring.unwrap(header.id, &header.wrapped_key)?);
        Ok(Self { id: header.id, key, store, call_timeout })
    }

    /// The state at the head: the folded state plus the tail of the log.
    pub(super) async fn state(&self, derived: &Derived) -> Result<SessionState, SessionError> {
        let mut state = self.open_state(derived)?;
        loop {
            let tail = self.read_after(state.head, PAGE).await?;
            if tail.is_empty() {
                return Ok(state);
            }
            for entry in &tail {
                state.apply(entry)?;
            }
        }
    }

    /// The folded state as stored.
    pub(super) fn open_state(&self, derived: &Derived) -> Result<SessionState, SessionError> {
        let place = Field::State { session: self.id, applied_seq: derived.applied_seq };
        Ok(serde_json::from_slice(&self.key.open(place, &derived.state)?)?)
    }

    /// The folded state as it will be stored.
    pub(super) fn derive(&self, state: &SessionState) -> Result<Derived, SessionError> {
        derive(self.id, &self.key, state)
    }

    /// A document's payload.
    pub(super) fn seal(&self, first_seq: Seq, facts: &[&Fact]) -> Result<Vec<u8>, SessionError> {
        let count = u32::try_from(facts.len()).unwrap_or(u32::MAX);
        let plain = serde_json::to_vec(facts)?;
        Ok(self.key.seal(Field::Log { session: self.id, first_seq, count }, &plain))
    }

    /// A checkpoint's payload.
    pub(super) fn seal_checkpoint(&self, message_id: MessageId, text: &str) -> Vec<u8> {
        self.key.seal(Field::Checkpoint { session: self.id, message_id }, text.as_bytes())
    }

    /// The text of a checkpoint; empty before the first one.
    pub(super) fn open_checkpoint(&self, message_id: MessageId, sealed: &[u8]) -> Result<String, SessionError> {
        if sealed.is_empty() {
            return Ok(String::new());
        }
        let plain = self.key.open(Field::Checkpoint { session: self.id, message_id }, sealed)?;
        Ok(String::from_utf8_lossy(&plain).into_owned())
    }

    /// Entries above `after`, oldest first, about `limit` of them; empty at the end of the log.
    pub(super) async fn read_after(&self, after: Seq, limit: u32) -> Result<Vec<Entry>, SessionError> {
        let documents = self.call(self.store.read_after(self.id, after, limit)).await?;
        let mut entries = Vec::new();
        for document in &documents {
            entries.extend(self.open_document(document)?.into_iter().filter(|entry| entry.seq > after));
        }
        Ok(entries)
    }

    /// Entries below `before`, newest first, about `limit` of them; empty at the beginning of the log.
    pub(super) async fn read_before(&self, before: Seq, limit: u32) -> Result<Vec<Entry>, SessionError> {
        let documents = self.call(self.store.read_before(self.id, before, limit)).await?;
        let mut entries = Vec::new();
        for document in &documents {
            entries.extend(self.open_document(document)?.into_iter().rev().filter(|entry| entry.seq < before));
        }
        Ok(entries)
    }

    /// A store call with its deadline.
    pub(super) async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, crate::store::StoreError>> + Send,
    ) -> Result<T, SessionError> {
        match tokio::time::timeout(self.call_timeout, call).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(SessionError::StoreTimeout),
        }
    }

    /// The entries of a document.
    pub(super) fn open_document(&self, document: &LogDocument) -> Result<Vec<Entry>, SessionError> {
        let place = Field::Log { session: self.id, first_seq: document.first_seq, count: document.count };
        let facts: Vec<Fact> = serde_json::from_slice(&self.key.open(place, &document.sealed)?)?;
        Ok((document.first_seq..).zip(facts).map(|(seq, fact)| Entry { seq, fact }).collect())
    }
}

/// The folded state as it will be stored.
pub(super) fn derive(session: SessionId, key: &DataKey, state: &SessionState) -> Result<Derived, SessionError> {
    let place = Field::State { session, applied_seq: state.head };
    Ok(Derived {
        applied_seq: state.head,
        state: key.seal(place, &serde_json::to_vec(state)?),
        last_activity: state.last_activity,
        ended: state.ended.is_some(),
        unfinished: state.is_unfinished(),
    })
}

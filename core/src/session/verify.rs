//! Verification of everything that is sealed: each data key, folded state, document of the log and checkpoint is opened and
//! read. Finds what was altered, moved, cut, sealed under a key that is gone, or never sealed at all.

use std::{sync::Arc, time::Duration};

use chatbox_proto::ids::SessionId;

use super::{error::SessionError, log::SessionLog};
use crate::{
    domain::entry::Seq,
    seal::{KeyRing, SealError},
    store::{Header, SessionStore},
};

/// Keys per read.
const PAGE: u32 = 200;

/// Where something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The session's wrapped data key: nothing of the session can be read.
    Key,
    /// The folded state in its header.
    State,
    /// Its log, above this entry.
    Log(Seq),
    /// The text of its running reply.
    Checkpoint,
}

/// What is wrong there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It is not sealed: what is there can be read by anybody.
    Plaintext,
    /// It is sealed under a key that the ring does not hold.
    MissingKey,
    /// It was altered, moved or cut.
    DoesNotOpen,
    /// It opens and is not what should be there: a gap in the log, or a form nobody wrote.
    Malformed,
}

/// One finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// The session.
    pub session: SessionId,
    /// Where in it.
    pub place: Place,
    /// What.
    pub wrong: Wrong,
}

/// How far a verification has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Sessions that were looked at.
    pub sessions: u64,
    /// Entries that were read.
    pub entries: u64,
    /// Sessions whose key was destroyed: nothing of them can be read, and nothing is to be.
    pub erased: u64,
    /// Findings.
    pub findings: u64,
}

/// Reads every session of a store.
#[derive(Debug)]
pub struct Verifier {
    store: Arc<dyn SessionStore>,
    ring: Arc<KeyRing>,
    call: Duration,
}

impl Verifier {
    /// For a store with the ring that its sessions were sealed under. Sessions may be written meanwhile.
    #[must_use]
    pub fn new(store: Arc<dyn SessionStore>, ring: Arc<KeyRing>, call: Duration) -> Self {
        Self { store, ring, call }
    }

    /// Verifies everything. `progress` is called after each session, and with each finding as it is made.
    ///
    /// # Errors
    /// Failures of the store; findings are none.
    pub async fn run(&self, mut progress: impl FnMut(Verified, Option<Finding>)) -> Result<Verified, SessionError> {
        let (mut verified, mut after) = (Verified::default(), None);
        loop {
            let page = self.call(self.store.wrapped_keys(after, PAGE)).await?;
            let Some((last, _)) = page.last() else { return Ok(verified) };
            after = Some(*last);
            for (session, wrapped) in &page {
                verified.sessions += 1;
                let header = if wrapped.is_empty() { None } else { self.call(self.store.session(*session)).await? };
                // It may have been erased since the page was read.
                let Some(header) = header.filter(|header| !header.is_erased()) else {
                    verified.erased += 1;
                    progress(verified, None);
                    continue;
                };
                for (place, wrong) in self.session(&header, &mut verified.entries).await? {
                    verified.findings += 1;
                    progress(verified, Some(Finding { session: *session, place, wrong }));
                }
                progress(verified, None);
            }
        }
    }

    async fn session(&self, header: &Header, entries: &mut u64) -> Result<Vec<(Place, Wrong)>, SessionError> {
        let mut found = Vec::new();
        let log = match SessionLog::open(header, &self.ring, self.store.clone(), self.call) {
            Ok(log) => log,
            Err(error) => return Ok(vec![(Place::Key, wrong(error, &header.wrapped_key)?)]),
        };
        if let Err(error) = log.open_state(&header.derived) {
            found.push((Place::State, wrong(error, &header.derived.state)?));
        }
        let mut head = 0;
        loop {
            let documents = self.call(self.store.read_after(header.id, head, PAGE)).await?;
            if documents.is_empty() {
                break;
            }
            for document in &documents {
                // One by one: what is wrong with one must not hide what is wrong with the next.
                match log.open_document(document) {
                    Ok(page) => {
                        *entries += page.len() as u64;
                        if document.first_seq != head + 1 || page.len() != document.count as usize {
                            found.push((Place::Log(head), Wrong::Malformed));
                        }
                    }
                    Err(error) => found.push((Place::Log(head), wrong(error, &document.sealed)?)),
                }
                head = head.max(document.first_seq + u64::from(document.count) - 1);
            }
        }
        if head < header.derived.applied_seq {
            found.push((Place::Log(head), Wrong::Malformed));
        }
        if let Some(row) = log.call(self.store.reply_row(header.id)).await?
            && let Err(error) = log.open_checkpoint(row.message_id, &row.checkpoint)
        {
            found.push((Place::Checkpoint, wrong(error, &row.checkpoint)?));
        }
        Ok(found)
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, crate::store::StoreError>> + Send,
    ) -> Result<T, SessionError> {
        Ok(tokio::time::timeout(self.call, call).await.map_err(|_| SessionError::StoreTimeout)??)
    }
}

/// What a failure to read says of the bytes; failures of the store are passed on.
fn wrong(error: SessionError, bytes: &[u8]) -> Result<Wrong, SessionError> {
    match error {
        SessionError::Seal(_) if looks_plain(bytes) => Ok(Wrong::Plaintext),
        SessionError::Seal(SealError::MissingKey(_)) => Ok(Wrong::MissingKey),
        SessionError::Seal(SealError::DoesNotOpen | SealError::Malformed) => Ok(Wrong::DoesNotOpen),
        SessionError::Form(_) | SessionError::Order(_) => Ok(Wrong::Malformed),
        error @ (SessionError::Store(_) | SessionError::StoreTimeout) => Err(error),
    }
}

/// Sealed values begin with a version byte below 32 and are as good as random behind it. What is text all through was never
/// sealed: of 28 random bytes, the fewest that sealing adds, all are text once in 10^8 times.
fn looks_plain(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && std::str::from_utf8(bytes).is_ok_and(|text| !text.contains(|c: char| c.is_control() && !c.is_whitespace()))
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = match self.place {
            Place::Key => "data key".to_owned(),
            Place::State => "folded state".to_owned(),
            Place::Log(after) => format!("log above entry {after}"),
            Place::Checkpoint => "checkpoint of the running reply".to_owned(),
        };
        let wrong = match self.wrong {
            Wrong::Plaintext => "is not sealed",
            Wrong::MissingKey => "is sealed under a key that is not in the ring",
            Wrong::DoesNotOpen => "does not open: altered, moved or cut",
            Wrong::Malformed => "opens and is not what should be there",
        };
        write!(f, "session {}: {place} {wrong}", self.session)
    }
}

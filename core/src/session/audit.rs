//! The audit trail: a record is written before anything is done, and nothing is done without one. Each record holds a hash
//! over itself and the hash of the one before, so that none can be changed or taken out from between others unnoticed.
//! Reasons and names of users are sealed in the store; no record ever holds the text of a conversation.

use std::{sync::Arc, time::Duration};

use chatbox_proto::{error_code::ErrorCode, ids::SessionId, status::Failure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::error::SessionError;
use crate::{
    domain::time::Timestamp,
    seal::{Field, InstallationSecret},
    store::{AuditQuery, AuditRow, AuditStore, StoreError},
};

/// How often a number that another core took first is tried again.
const ROUNDS: u32 = 64;
/// The longest pause between two of those tries.
const PAUSE: Duration = Duration::from_millis(20);
/// Records per read while the trail is verified.
const PAGE: u32 = 500;
/// Faults that one verification names; those beyond are counted.
const MAX_FAULTS: usize = 100;

/// What somebody is about to do.
#[derive(Debug, Clone, Copy)]
pub struct Intent<'a> {
    /// Subject of the token.
    pub actor: &'a str,
    /// Name of the call.
    pub action: &'static str,
    /// The session, if one is named.
    pub session_id: Option<SessionId>,
    /// The user, if one is named.
    pub user_id: &'a str,
    /// Why.
    pub reason: &'a str,
}

/// A record as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Subject of the token.
    pub actor: String,
    /// Name of the call.
    pub action: String,
    /// The session, if one was named.
    pub session_id: Option<SessionId>,
    /// The user, if one was named.
    pub user_id: String,
    /// The reason given.
    pub reason: String,
    /// The chain up to this record.
    pub hash: [u8; 32],
}

/// What is sealed of a record.
#[derive(Debug, Serialize, Deserialize)]
struct Words {
    #[serde(default)]
    user_id: String,
    reason: String,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audited {
    /// Records that were read.
    pub records: u64,
    /// What is wrong with them, by their numbers.
    pub faults: Vec<(u64, &'static str)>,
    /// How many are wrong.
    pub faulty: u64,
}

/// The trail of this installation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AuditTrail {
    store: Arc<dyn AuditStore>,
    secret: Arc<InstallationSecret>,
    call: Duration,
    /// One record of this core at a time: they would only be in each other's way.
    turn: Arc<Semaphore>,
}

impl AuditTrail {
    /// On a store; `call` bounds one call of it.
    #[must_use]
    pub fn new(store: Arc<dyn AuditStore>, secret: Arc<InstallationSecret>, call: Duration) -> Self {
        Self { store, secret, call, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Writes down what is about to be done. Whoever does not get `Ok` must not do it; a record may be there all the same.
    ///
    /// # Errors
    /// `UNAVAILABLE` `AUDIT_UNAVAILABLE`.
    pub async fn record(&self, intent: Intent<'_>) -> Result<u64, Failure> {
        let written = async {
            let _turn = self.turn.acquire().await;
            for _ in 0..ROUNDS {
                let last = self.store.last_audit().await?;
                let (seq, before) = last.map_or((1, [0; 32]), |last| (last.seq + 1, last.hash));
                if self.store.append_audit(self.row(seq, &before, &intent)?).await? {
                    return Ok(Some(seq));
                }
                tokio::time::sleep(PAUSE.mul_f64(rand::random())).await;
            }
            Ok::<_, SessionError>(None)
        };
        // Several calls of the store, and the turns of others before.
        let error = match tokio::time::timeout(self.call * 2, written).await {
            Ok(Ok(Some(seq))) => return Ok(seq),
            Ok(Ok(None)) => SessionError::StoreTimeout,
            Ok(Err(error)) => error,
            Err(_) => SessionError::StoreTimeout,
        };
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "an audit record could not be written; nothing is done"
        );
        let said = "the audit trail cannot be written now; nothing was done";
        let failure = Failure::new(ErrorCode::Unavailable, "AUDIT_UNAVAILABLE", said);
        Err(failure.retry_after(Duration::from_secs(1)))
    }

    fn row(&self, seq: u64, before: &[u8; 32], intent: &Intent<'_>) -> Result<AuditRow, SessionError> {
        let words = Words { user_id: intent.user_id.to_owned(), reason: intent.reason.to_owned() };
        let mut record = Record {
            seq,
            at: Timestamp::now(),
            actor: intent.actor.to_owned(),
            action: intent.action.to_owned(),
            session_id: intent.session_id,
            user_id: words.user_id.clone(),
            reason: words.reason.clone(),
            hash: [0; 32],
        };
        record.hash = chain(before, &record);
        let sealed = self.secret.audit_key().seal(Field::Audit { seq }, &serde_json::to_vec(&words)?);
        let Record { seq, at, actor, action, session_id, hash, .. } = record;
        Ok(AuditRow { seq, at, actor, action, session_id, sealed, hash })
    }

    fn open(&self, row: AuditRow) -> Result<Record, SessionError> {
        let plain = self.secret.audit_key().open(Field::Audit { seq: row.seq }, &row.sealed)?;
        let Words { user_id, reason } = serde_json::from_slice(&plain)?;
        let AuditRow { seq, at, actor, action, session_id, hash, .. } = row;
        Ok(Record { seq, at, actor, action, session_id, user_id, reason, hash })
    }

    /// Records of a query, newest first.
    ///
    /// # Errors
    /// Failures of the store, `DATA_LOSS` for a record that does not open.
    pub async fn list(&self, query: AuditQuery) -> Result<Vec<Record>, Failure> {
        let read = async {
            let rows = self.bounded(self.store.audit_before(query)).await?;
            rows.into_iter().map(|row| self.open(row)).collect::<Result<Vec<_>, SessionError>>()
        };
        read.await.map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "the audit trail could not be read");
            Failure::from(&error)
        })
    }

    /// Reads the whole trail and follows its chain. What cannot be seen this way is that records were cut off at its end.
    ///
    /// # Errors
    /// Failures of the store; faults are none.
    pub async fn verify(&self) -> Result<Audited, SessionError> {
        let mut found = Audited::default();
        let (mut seq, mut before) = (0, [0; 32]);
        loop {
            let rows = self.bounded(self.store.audit_after(seq, PAGE)).await?;
            if rows.is_empty() {
                return Ok(found);
            }
            for row in rows {
                let (number, hash) = (row.seq, row.hash);
                found.records += 1;
                let fault = if number != seq + 1 {
                    Some("records before it are missing")
                } else {
                    match self.open(row) {
                        Ok(record) if chain(&before, &record) == hash => None,
                        Ok(_) => Some("it does not follow from the record before: one of the two was changed"),
                        Err(_) => Some("its reason does not open"),
                    }
                };
                if let Some(fault) = fault {
                    found.faulty += 1;
                    if found.faults.len() < MAX_FAULTS {
                        found.faults.push((number, fault));
                    }
                }
                (seq, before) = (number, hash);
            }
        }
    }

    async fn bounded<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, SessionError> {
        Ok(tokio::time::timeout(self.call, call).await.map_err(|_| SessionError::StoreTimeout)??)
    }
}

/// SHA-256 over the hash before and every field, each preceded by its length.
fn chain(before: &[u8; 32], record: &Record) -> [u8; 32] {
    let session_id = record.session_id.map(|id| id.to_string()).unwrap_or_default();
    let (seq, at) = (record.seq.to_be_bytes(), record.at.millis().to_be_bytes());
    let parts: [&[u8]; 8] = [
        before,
        &seq,
        &at,
        record.actor.as_bytes(),
        record.action.as_bytes(),
        session_id.as_bytes(),
        record.user_id.as_bytes(),
        record.reason.as_bytes(),
    ];
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        seal::{KeyRing, self_test},
        store::{
            Stores,
            sqlite::{SqliteOptions, SqliteStore},
        },
    };

    async fn trail() -> (tempfile::TempDir, Stores, AuditTrail) {
        let folder = tempfile::tempdir().unwrap();
        let stores = Stores::from(SqliteStore::open_in(folder.path(), &SqliteOptions::default()).unwrap());
        let key = KeyRing::generate_key();
        let ring = KeyRing::from_config("k1", [("k1", key.as_str())]).unwrap();
        let secret = Arc::new(self_test(&ring, &*stores.sessions).await.unwrap());
        let trail = AuditTrail::new(stores.audit.clone(), secret, Duration::from_secs(20));
        (folder, stores, trail)
    }

    fn intent(actor: &str) -> Intent<'_> {
        Intent { actor, action: "TakeOver", session_id: None, user_id: "alice", reason: "she asked for it" }
    }

    fn all() -> AuditQuery {
        AuditQuery { limit: 1000, ..AuditQuery::default() }
    }

    #[tokio::test]
    async fn what_was_recorded_is_read_and_no_word_of_it_is_stored_in_the_clear() {
        let (_folder, stores, trail) = trail().await;
        assert_eq!(trail.record(intent("bob")).await.unwrap(), 1);
        let records = trail.list(all()).await.unwrap();
        assert_eq!((records[0].actor.as_str(), records[0].reason.as_str()), ("bob", "she asked for it"));
        let row = stores.audit.last_audit().await.unwrap().unwrap();
        assert!(!row.sealed.windows(5).any(|bytes| bytes == b"asked" || bytes == b"alice"));
    }

    #[tokio::test]
    async fn several_cores_write_one_chain() {
        let (_folder, stores, trail) = trail().await;
        // A trail of its own for each: they share nothing but the store.
        let cores = [(); 4].map(|()| AuditTrail::new(stores.audit.clone(), trail.secret.clone(), trail.call));
        let mut writes = tokio::task::JoinSet::new();
        for core in cores {
            writes.spawn(async move {
                for _ in 0..15 {
                    core.record(intent("bob")).await.unwrap();
                }
            });
        }
        writes.join_all().await;
        assert_eq!(trail.verify().await.unwrap(), Audited { records: 60, ..Audited::default() });
    }

    #[derive(Debug)]
    struct Changed(Vec<AuditRow>);

    #[async_trait::async_trait]
    impl AuditStore for Changed {
        async fn append_audit(&self, _row: AuditRow) -> Result<bool, StoreError> {
            Err(StoreError::bare(crate::store::StoreErrorKind::Unavailable, "append_audit"))
        }

        async fn last_audit(&self) -> Result<Option<AuditRow>, StoreError> {
            Ok(self.0.last().cloned())
        }

        async fn audit_before(&self, _query: AuditQuery) -> Result<Vec<AuditRow>, StoreError> {
            Ok(Vec::new())
        }

        async fn audit_after(&self, after: u64, _limit: u32) -> Result<Vec<AuditRow>, StoreError> {
            Ok(self.0.iter().filter(|row| row.seq > after).cloned().collect())
        }
    }

    #[tokio::test]
    async fn a_record_that_was_changed_taken_out_or_exchanged_is_found() {
        let (_folder, stores, trail) = trail().await;
        for _ in 0..4 {
            trail.record(intent("bob")).await.unwrap();
        }
        let rows = stores.audit.audit_after(0, 10).await.unwrap();
        let faults = |rows: Vec<AuditRow>| {
            let changed = AuditTrail::new(Arc::new(Changed(rows)), trail.secret.clone(), trail.call);
            async move { changed.verify().await.unwrap().faults.iter().map(|(seq, _)| *seq).collect::<Vec<_>>() }
        };
        assert_eq!(faults(rows.clone()).await, Vec::<u64>::new());
        let mut actor = rows.clone();
        actor[1].actor = "carol".to_owned();
        assert_eq!(faults(actor).await, [2]);
        let mut hash = rows.clone();
        hash[1].hash = [7; 32];
        assert_eq!(faults(hash).await, [2, 3]);
        let mut gap = rows.clone();
        gap.remove(2);
        assert_eq!(faults(gap).await, [4]);
        let mut moved = rows.clone();
        moved[0].sealed = rows[1].sealed.clone();
        assert_eq!(faults(moved).await, [1]);
    }

    #[tokio::test]
    async fn without_a_record_nothing_is_allowed() {
        let (_folder, _stores, trail) = trail().await;
        let broken = AuditTrail::new(Arc::new(Changed(Vec::new())), trail.secret.clone(), trail.call);
        assert_eq!(broken.record(intent("bob")).await.unwrap_err().reason, "AUDIT_UNAVAILABLE");
    }
}

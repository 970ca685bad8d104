//! The audit trail: who did what to which session, and why. Records are numbered without gaps and never changed; each holds
//! the hash of everything up to it, which the layer above computes and verifies.

use async_trait::async_trait;
use chatbox_proto::ids::SessionId;

use super::StoreError;
use crate::domain::time::Timestamp;

/// One record as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Its number: 1, 2, 3 ... without gaps.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Subject of the token, at most 255 bytes.
    pub actor: String,
    /// Name of the call.
    pub action: String,
    /// The session, if one was named.
    pub session_id: Option<SessionId>,
    /// The reason and the user that was named, sealed.
    pub sealed: Vec<u8>,
    /// The chain up to this record.
    pub hash: [u8; 32],
}

/// Which records to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditQuery {
    /// Only those below this number.
    pub before: Option<u64>,
    /// Only those of this actor.
    pub actor: Option<String>,
    /// Only those of this call.
    pub action: Option<String>,
    /// Only those about this session.
    pub session_id: Option<SessionId>,
    /// Only those from then on.
    pub from: Option<Timestamp>,
    /// Only those before then.
    pub until: Option<Timestamp>,
    /// At most this many, at least 1.
    pub limit: u32,
}

/// The audit trail.
#[async_trait]
pub trait AuditStore: Send + Sync + std::fmt::Debug + 'static {
    /// Writes a record, durably, if its number is the next one; says whether it did. Of several at once with the same
    /// number one is written.
    async fn append_audit(&self, row: AuditRow) -> Result<bool, StoreError>;

    /// The record with the largest number. Never older than what was written before the call began.
    async fn last_audit(&self) -> Result<Option<AuditRow>, StoreError>;

    /// Records of a query, newest first.
    async fn audit_before(&self, query: AuditQuery) -> Result<Vec<AuditRow>, StoreError>;

    /// Records above `after`, oldest first.
    async fn audit_after(&self, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError>;
}

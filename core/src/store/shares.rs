//! Share links. The trait's text is the contract; `conformance::shares` tests it against every implementation.

use async_trait::async_trait;
use chatbox_proto::ids::{SessionId, ShareId};

use super::{KeyedHash, RequestKey, StoreError};
use crate::domain::{entry::Seq, time::Timestamp};

/// A link that shows a session to whoever has its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Its id.
    pub id: ShareId,
    /// The session it shows.
    pub session_id: SessionId,
    /// Keyed hash of its secret.
    pub secret_hash: KeyedHash,
    /// It shows what was there at this entry. `None`: it follows the session.
    pub snapshot: Option<Seq>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working. `None`: never.
    pub expires_at: Option<Timestamp>,
    /// It was revoked.
    pub revoked: bool,
}

/// What became of [`ShareStore::create_share`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShareCreated {
    /// It was made.
    New,
    /// The same call made this one before.
    Repeated(Share),
    /// The request id was used before with other content.
    RequestReused,
    /// The session has as many as it may.
    TooMany,
}

/// What became of [`ShareStore::revoke_share`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShareRevoked {
    /// It works no longer.
    Now(Share),
    /// It was revoked before.
    Before(Share),
    /// The session has no such share.
    Unknown,
}

/// Share links.
#[async_trait]
pub trait ShareStore: Send + Sync + std::fmt::Debug + 'static {
    /// Makes a share, durably, unless `limit` shares of its session are not revoked; racing calls may exceed that by their
    /// number. `request` is looked up before. An id that exists already is an error of kind `Internal`.
    async fn create_share(
        &self,
        share: Share,
        request: Option<RequestKey>,
        limit: u32,
    ) -> Result<ShareCreated, StoreError>;

    /// The share with this id. Reads what was acknowledged before the call began: one that was revoked is never seen without
    /// it.
    async fn share(&self, id: ShareId) -> Result<Option<Share>, StoreError>;

    /// Shares of a session, revoked ones too, larger ids first, below `before`.
    async fn shares(
        &self,
        session_id: SessionId,
        before: Option<ShareId>,
        limit: u32,
    ) -> Result<Vec<Share>, StoreError>;

    /// Revokes a share of this session, durably. Of racing calls one is told `Now`.
    async fn revoke_share(&self, session_id: SessionId, id: ShareId) -> Result<ShareRevoked, StoreError>;

    /// Removes all shares of a session, durably; says how many there were.
    async fn remove_shares(&self, session_id: SessionId) -> Result<u64, StoreError>;
}

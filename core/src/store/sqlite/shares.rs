//! Share links.

use async_trait::async_trait;
use chatbox_proto::ids::{SessionId, ShareId};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    SqliteStore,
    column::{self, number},
    fault::Fault,
    writer::Verdict,
};
use crate::{
    domain::time::Timestamp,
    store::{RequestKey, Share, ShareCreated, ShareRevoked, ShareStore, StoreError},
};

macro_rules! columns {
    () => {
        "id, session_id, secret_hash, snapshot, created_at, expires_at, revoked"
    };
}

const INSERT: &str = "INSERT INTO shares (id, session_id, secret_hash, snapshot, created_at, expires_at, revoked, request_id, \
     request_content) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
pub(super) const BY_ID: &str = concat!("SELECT ", columns!(), " FROM shares WHERE id = ?1");
pub(super) const BY_REQUEST: &str = concat!(
    "SELECT ",
    columns!(),
    ", request_content FROM shares WHERE session_id = ?1 AND request_id = ?2 AND request_id IS NOT NULL"
);
pub(super) const OF_SESSION: &str =
    concat!("SELECT ", columns!(), " FROM shares WHERE session_id = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3");
pub(super) const WORKING: &str =
    "SELECT count(*) FROM (SELECT 1 FROM shares WHERE session_id = ?1 AND revoked = 0 LIMIT ?2)";
pub(super) const REVOKE: &str = "UPDATE shares SET revoked = 1 WHERE id = ?1 AND session_id = ?2 AND revoked = 0";
pub(super) const REMOVE: &str = "DELETE FROM shares WHERE session_id = ?1";

/// Above every id, which has 16 bytes.
const ABOVE_ALL_IDS: [u8; 17] = [0xff; 17];

#[async_trait]
impl ShareStore for SqliteStore {
    async fn create_share(
        &self,
        share: Share,
        request: Option<RequestKey>,
        limit: u32,
    ) -> Result<ShareCreated, StoreError> {
        self.writer.submit("create_share", 0, move |db| create(db, &share, request.as_ref(), limit)).await
    }

    async fn share(&self, id: ShareId) -> Result<Option<Share>, StoreError> {
        self.readers.submit("share", move |db| by_id(db, id)).await
    }

    async fn shares(
        &self,
        session_id: SessionId,
        before: Option<ShareId>,
        limit: u32,
    ) -> Result<Vec<Share>, StoreError> {
        let list = move |db: &Connection| {
            let before = before.as_ref().map_or(&ABOVE_ALL_IDS[..], |id| &id.as_bytes()[..]);
            let mut statement = db.prepare_cached(OF_SESSION)?;
            let shares = statement.query_map(params![session_id.as_bytes(), before, limit], read)?;
            Ok(shares.collect::<Result<_, _>>()?)
        };
        self.readers.submit("shares", list).await
    }

    async fn revoke_share(&self, session_id: SessionId, id: ShareId) -> Result<ShareRevoked, StoreError> {
        let revoke = move |db: &Connection| {
            let changed = db.prepare_cached(REVOKE)?.execute(params![id.as_bytes(), session_id.as_bytes()])?;
            Ok(Verdict::Keep(match by_id(db, id)?.filter(|share| share.session_id == session_id) {
                Some(share) if changed > 0 => ShareRevoked::Now(share),
                Some(share) => ShareRevoked::Before(share),
                None => ShareRevoked::Unknown,
            }))
        };
        self.writer.submit("revoke_share", 0, revoke).await
    }

    async fn remove_shares(&self, session_id: SessionId) -> Result<u64, StoreError> {
        let remove = move |db: &Connection| {
            let removed = db.prepare_cached(REMOVE)?.execute([session_id.as_bytes()])?;
            Ok(Verdict::Keep(removed as u64))
        };
        self.writer.submit("remove_shares", 0, remove).await
    }
}

fn create(
    db: &Connection,
    share: &Share,
    request: Option<&RequestKey>,
    limit: u32,
) -> Result<Verdict<ShareCreated>, Fault> {
    if let Some(request) = request {
        let mut statement = db.prepare_cached(BY_REQUEST)?;
        let earlier = statement
            .query_row(params![share.session_id.as_bytes(), request.id], |row| {
                Ok((read(row)?, row.get::<_, [u8; 16]>(7)?))
            })
            .optional()?;
        if let Some((earlier, content)) = earlier {
            let same = content == request.content;
            let answer = if same { ShareCreated::Repeated(earlier) } else { ShareCreated::RequestReused };
            return Ok(Verdict::Undo(answer));
        }
    }
    let mut working = db.prepare_cached(WORKING)?;
    if working.query_row(params![share.session_id.as_bytes(), limit], |row| column::count(row, 0))? >= limit {
        return Ok(Verdict::Undo(ShareCreated::TooMany));
    }
    db.prepare_cached(INSERT)?.execute(params![
        share.id.as_bytes(),
        share.session_id.as_bytes(),
        share.secret_hash,
        share.snapshot.map(number),
        share.created_at.millis(),
        share.expires_at.map(Timestamp::millis),
        share.revoked,
        request.map(|request| request.id),
        request.map(|request| request.content),
    ])?;
    Ok(Verdict::Keep(ShareCreated::New))
}

fn by_id(db: &Connection, id: ShareId) -> Result<Option<Share>, Fault> {
    Ok(db.prepare_cached(BY_ID)?.query_row([id.as_bytes()], read).optional()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Share> {
    let snapshot: Option<i64> = row.get(3)?;
    Ok(Share {
        id: ShareId::from_bytes(row.get(0)?),
        session_id: SessionId::from_bytes(row.get(1)?),
        secret_hash: row.get(2)?,
        snapshot: snapshot.map(|_| column::seq(row, 3)).transpose()?,
        created_at: Timestamp::from_millis(row.get(4)?),
        expires_at: row.get::<_, Option<i64>>(5)?.map(Timestamp::from_millis),
        revoked: row.get(6)?,
    })
}

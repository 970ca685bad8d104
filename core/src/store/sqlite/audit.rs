//! The audit trail.

use async_trait::async_trait;
use chatbox_proto::ids::SessionId;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    SqliteStore,
    column::{self, number},
    fault::Fault,
    writer::Verdict,
};
use crate::{
    domain::time::Timestamp,
    store::{AuditQuery, AuditRow, AuditStore, StoreError},
};

macro_rules! select {
    () => {
        "SELECT seq, at, actor, action, session_id, sealed, hash FROM audit "
    };
}

/// The conditions that are not looked up in an index, and the order.
macro_rules! rest {
    () => {
        "AND (?2 IS NULL OR actor = ?2) AND (?3 IS NULL OR action = ?3) AND (?4 IS NULL OR session_id = ?4) \
         AND (?5 IS NULL OR at >= ?5) AND (?6 IS NULL OR at < ?6) ORDER BY seq DESC LIMIT ?7"
    };
}

const INSERT: &str = "INSERT INTO audit (seq, at, actor, action, session_id, sealed, hash) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
pub(super) const LAST: &str = concat!(select!(), "ORDER BY seq DESC LIMIT 1");
pub(super) const LAST_SEQ: &str = "SELECT max(seq) FROM audit";
pub(super) const BEFORE: &str = concat!(select!(), "WHERE seq < ?1 ", rest!());
pub(super) const BY_SESSION: &str =
    concat!(select!(), "WHERE session_id = ?4 AND session_id IS NOT NULL AND seq < ?1 ", rest!());
pub(super) const BY_ACTOR: &str = concat!(select!(), "WHERE actor = ?2 AND seq < ?1 ", rest!());
pub(super) const BY_ACTION: &str = concat!(select!(), "WHERE action = ?3 AND seq < ?1 ", rest!());
pub(super) const AFTER: &str = concat!(select!(), "WHERE seq > ?1 ORDER BY seq LIMIT ?2");

fn row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    let session_id: Option<[u8; 16]> = row.get(4)?;
    Ok(AuditRow {
        seq: column::seq(row, 0)?,
        at: Timestamp::from_millis(row.get(1)?),
        actor: row.get(2)?,
        action: row.get(3)?,
        session_id: session_id.map(SessionId::from_bytes),
        sealed: row.get(5)?,
        hash: row.get(6)?,
    })
}

fn append(db: &Connection, row: &AuditRow) -> Result<Verdict<bool>, Fault> {
    let last: Option<i64> = db.prepare_cached(LAST_SEQ)?.query_row([], |row| row.get(0))?;
    if number(row.seq) != last.unwrap_or(0) + 1 {
        return Ok(Verdict::Undo(false));
    }
    db.prepare_cached(INSERT)?.execute(params![
        number(row.seq),
        row.at.millis(),
        row.actor,
        row.action,
        row.session_id.map(|id| *id.as_bytes()),
        row.sealed,
        row.hash,
    ])?;
    Ok(Verdict::Keep(true))
}

fn before(db: &Connection, query: &AuditQuery) -> Result<Vec<AuditRow>, Fault> {
    // The narrowest index: a session has fewer records than an admin, and those fewer than a call.
    let sql = match (query.session_id, &query.actor, &query.action) {
        (Some(_), _, _) => BY_SESSION,
        (None, Some(_), _) => BY_ACTOR,
        (None, None, Some(_)) => BY_ACTION,
        (None, None, None) => BEFORE,
    };
    let parameters = params![
        number(query.before.unwrap_or(u64::MAX)),
        query.actor,
        query.action,
        query.session_id.map(|id| *id.as_bytes()),
        query.from.map(Timestamp::millis),
        query.until.map(Timestamp::millis),
        query.limit,
    ];
    Ok(db.prepare_cached(sql)?.query_map(parameters, row)?.collect::<Result<_, _>>()?)
}

#[async_trait]
impl AuditStore for SqliteStore {
    async fn append_audit(&self, row: AuditRow) -> Result<bool, StoreError> {
        let bytes = row.sealed.len() + row.actor.len() + row.action.len();
        self.writer.submit("append_audit", bytes, move |db| append(db, &row)).await
    }

    async fn last_audit(&self) -> Result<Option<AuditRow>, StoreError> {
        self.readers.submit("last_audit", |db| Ok(db.prepare_cached(LAST)?.query_row([], row).optional()?)).await
    }

    async fn audit_before(&self, query: AuditQuery) -> Result<Vec<AuditRow>, StoreError> {
        self.readers.submit("audit_before", move |db| before(db, &query)).await
    }

    async fn audit_after(&self, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        let read = move |db: &Connection| {
            Ok(db.prepare_cached(AFTER)?.query_map(params![number(after), limit], row)?.collect::<Result<_, _>>()?)
        };
        self.readers.submit("audit_after", read).await
    }
}

//! Rows of sessions that wait for a person or are held by one.

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
    store::{HandoffRow, HandoffStore, Stage, StoreError},
};

const PUT: &str = "INSERT INTO handoffs (session_id, waiting_since, mark) VALUES (?1, ?2, ?3) \
     ON CONFLICT (session_id) DO UPDATE SET waiting_since = excluded.waiting_since, mark = excluded.mark";
pub(super) const REMOVE: &str = "DELETE FROM handoffs WHERE session_id = ?1 AND mark = ?2";
pub(super) const ONE: &str = "SELECT session_id, waiting_since, mark FROM handoffs WHERE session_id = ?1";
pub(super) const ALL: &str =
    "SELECT session_id, waiting_since, mark FROM handoffs WHERE session_id > ?1 ORDER BY session_id LIMIT ?2";
pub(super) const WAITING: &str = "SELECT session_id, waiting_since, mark FROM handoffs WHERE waiting_since IS NOT NULL \
     ORDER BY waiting_since, session_id LIMIT ?1";

/// What a row takes in the writer's queue.
const ROW_BYTES: usize = 64;

fn row(row: &Row<'_>) -> rusqlite::Result<HandoffRow> {
    let since: Option<i64> = row.get(1)?;
    let stage = since.map_or(Stage::Held, |since| Stage::Waiting { since: Timestamp::from_millis(since) });
    Ok(HandoffRow { session_id: SessionId::from_bytes(row.get(0)?), stage, mark: column::seq(row, 2)? })
}

fn put(db: &Connection, row: HandoffRow) -> Result<Verdict<()>, Fault> {
    let since = match row.stage {
        Stage::Waiting { since } => Some(since.millis()),
        Stage::Held => None,
    };
    db.prepare_cached(PUT)?.execute(params![row.session_id.as_bytes(), since, number(row.mark)])?;
    Ok(Verdict::Keep(()))
}

fn list(db: &Connection, sql: &str, parameters: impl rusqlite::Params) -> Result<Vec<HandoffRow>, Fault> {
    Ok(db.prepare_cached(sql)?.query_map(parameters, row)?.collect::<Result<_, _>>()?)
}

#[async_trait]
impl HandoffStore for SqliteStore {
    async fn put_handoff(&self, row: HandoffRow) -> Result<(), StoreError> {
        self.writer.submit("put_handoff", ROW_BYTES, move |db| put(db, row)).await
    }

    async fn remove_handoff(&self, session_id: SessionId, mark: u64) -> Result<bool, StoreError> {
        let remove = move |db: &Connection| {
            let removed = db.prepare_cached(REMOVE)?.execute(params![session_id.as_bytes(), number(mark)])?;
            Ok(Verdict::Keep(removed > 0))
        };
        self.writer.submit("remove_handoff", ROW_BYTES, remove).await
    }

    async fn handoff(&self, session_id: SessionId) -> Result<Option<HandoffRow>, StoreError> {
        let find = move |db: &Connection| {
            Ok(db.prepare_cached(ONE)?.query_row(params![session_id.as_bytes()], row).optional()?)
        };
        self.readers.submit("handoff", find).await
    }

    async fn handoffs(&self, after: Option<SessionId>, limit: u32) -> Result<Vec<HandoffRow>, StoreError> {
        let read = move |db: &Connection| {
            let after: &[u8] = after.as_ref().map_or(&[], |id| id.as_bytes());
            list(db, ALL, params![after, limit])
        };
        self.readers.submit("handoffs", read).await
    }

    async fn waiting(&self, limit: u32) -> Result<Vec<HandoffRow>, StoreError> {
        self.readers.submit("waiting", move |db| list(db, WAITING, params![limit])).await
    }
}

//! The outbox.

use chatbox_proto::ids::SessionId;
use rusqlite::{Connection, Row, params};

use super::{
    SqliteStore,
    column::{self, number},
    fault::Fault,
    writer::Verdict,
};
use crate::{
    domain::time::Timestamp,
    store::{
        StoreError,
        outbox::{AlertId, AlertRow, AlertState, Attempted, OutboxStore},
    },
};

const READ: &str = "SELECT id, channel, event, session_id, seq, detail, created_at, due_at, attempts, state, error \
     FROM outbox WHERE id = ?1";
const ENQUEUE: &str = "INSERT INTO outbox \
     (id, channel, event, session_id, seq, detail, created_at, due_at, attempts, state, error) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, '') ON CONFLICT (id) DO NOTHING";
pub(super) const DUE: &str = "SELECT id FROM outbox INDEXED BY outbox_due \
     WHERE state = 0 AND due_at <= ?1 ORDER BY due_at, id LIMIT ?2";
const CLAIM: &str = "UPDATE outbox SET attempts = attempts + 1, due_at = ?2 WHERE id = ?1";
pub(super) const SETTLE: &str = "UPDATE outbox SET state = ?3, due_at = coalesce(?4, due_at), error = ?5 \
     WHERE id = ?1 AND attempts = ?2 AND state = 0";
pub(super) const LIST: &str = "SELECT id, channel, event, session_id, seq, detail, created_at, due_at, attempts, state, error \
     FROM outbox WHERE state = ?1 AND (created_at, id) > (?2, ?3) ORDER BY created_at, id LIMIT ?4";
pub(super) const PRUNE: &str = "DELETE FROM outbox WHERE id IN \
     (SELECT id FROM outbox WHERE state = 1 AND created_at < ?1 ORDER BY created_at LIMIT ?2)";

#[async_trait::async_trait]
impl OutboxStore for SqliteStore {
    async fn enqueue(&self, row: AlertRow) -> Result<bool, StoreError> {
        let bytes = row.channel.len() + row.event.len() + row.detail.len();
        self.writer.submit("enqueue", bytes, move |db| enqueue(db, &row)).await
    }

    async fn claim(&self, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<AlertRow>, StoreError> {
        self.writer.submit("claim", 0, move |db| claim(db, now, until, limit)).await
    }

    async fn settle(&self, id: AlertId, attempt: u32, outcome: Attempted) -> Result<bool, StoreError> {
        self.writer.submit("settle", 0, move |db| settle(db, id, attempt, &outcome)).await
    }

    async fn alerts(
        &self,
        state: AlertState,
        after: Option<(Timestamp, AlertId)>,
        limit: u32,
    ) -> Result<Vec<AlertRow>, StoreError> {
        self.readers.submit("alerts", move |db| list(db, state, after, limit)).await
    }

    async fn prune_delivered(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let prune = move |db: &Connection| {
            let removed = db.prepare_cached(PRUNE)?.execute(params![before.millis(), limit])?;
            Ok(Verdict::Keep(removed as u64))
        };
        self.writer.submit("prune_delivered", 0, prune).await
    }
}

fn enqueue(db: &Connection, row: &AlertRow) -> Result<Verdict<bool>, Fault> {
    let (session, seq) = row.entry.map(|(id, seq)| (*id.as_bytes(), number(seq))).unzip();
    let added = db.prepare_cached(ENQUEUE)?.execute(params![
        row.id,
        row.channel,
        row.event,
        session,
        seq,
        row.detail,
        row.created_at.millis(),
        row.due_at.millis(),
        row.attempts
    ])?;
    Ok(Verdict::Keep(added > 0))
}

fn claim(db: &Connection, now: Timestamp, until: Timestamp, limit: u32) -> Result<Verdict<Vec<AlertRow>>, Fault> {
    let due: Vec<AlertId> =
        db.prepare_cached(DUE)?.query_map(params![now.millis(), limit], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut rows = Vec::with_capacity(due.len());
    let mut read = db.prepare_cached(READ)?;
    for id in due {
        db.prepare_cached(CLAIM)?.execute(params![id, until.millis()])?;
        rows.push(read.query_row([id], alert)?);
    }
    Ok(Verdict::Keep(rows))
}

fn settle(db: &Connection, id: AlertId, attempt: u32, outcome: &Attempted) -> Result<Verdict<bool>, Fault> {
    let (due_at, error) = match outcome {
        Attempted::Delivered => (None, ""),
        Attempted::Retry { due_at, error } => (Some(due_at.millis()), error.as_str()),
        Attempted::Dead { error } => (None, error.as_str()),
    };
    let state = column_of(outcome.state());
    let changed = db.prepare_cached(SETTLE)?.execute(params![id, attempt, state, due_at, error])?;
    Ok(Verdict::Keep(changed > 0))
}

fn list(
    db: &Connection,
    state: AlertState,
    after: Option<(Timestamp, AlertId)>,
    limit: u32,
) -> Result<Vec<AlertRow>, Fault> {
    let (time, id) = after.map_or((i64::MIN, AlertId::default()), |(time, id)| (time.millis(), id));
    let mut statement = db.prepare_cached(LIST)?;
    let rows = statement.query_map(params![column_of(state), time, id, limit], alert)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn column_of(state: AlertState) -> i64 {
    match state {
        AlertState::Waiting => 0,
        AlertState::Delivered => 1,
        AlertState::Dead => 2,
    }
}

fn alert(row: &Row<'_>) -> rusqlite::Result<AlertRow> {
    let session: Option<[u8; 16]> = row.get(3)?;
    let entry = session.map(|id| column::seq(row, 4).map(|seq| (SessionId::from_bytes(id), seq))).transpose()?;
    let state = match row.get(9)? {
        0 => AlertState::Waiting,
        1 => AlertState::Delivered,
        2 => AlertState::Dead,
        other => return Err(rusqlite::Error::IntegralValueOutOfRange(9, other)),
    };
    Ok(AlertRow {
        id: row.get(0)?,
        channel: row.get(1)?,
        event: row.get(2)?,
        entry,
        detail: row.get(5)?,
        created_at: Timestamp::from_millis(row.get(6)?),
        due_at: Timestamp::from_millis(row.get(7)?),
        attempts: column::count(row, 8)?,
        state,
        error: row.get(10)?,
    })
}

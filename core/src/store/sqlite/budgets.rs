//! What subjects have used in a day, and what is reserved.

use async_trait::async_trait;
use chatbox_proto::ids::{MessageId, SessionId};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    SqliteStore,
    column::{number, seq},
    fault::Fault,
    writer::Verdict,
};
use crate::store::{
    StoreError,
    budgets::{Amount, BudgetKey, BudgetRow, BudgetStore, MAX_RESERVATIONS, Reservation, Reserved, Settlement},
};

const MAKE: &str = "INSERT INTO budgets (day, subject) VALUES (?1, ?2) ON CONFLICT (day, subject) DO NOTHING";
pub(super) const TAKE: &str = "UPDATE budgets \
     SET reserved_tokens = reserved_tokens + ?3, reserved_cost = reserved_cost + ?4, open = open + 1 \
     WHERE day = ?1 AND subject = ?2 AND open < ?7 \
       AND used_tokens + over_tokens + reserved_tokens + ?3 <= ?5 \
       AND used_cost + over_cost + reserved_cost + ?4 <= ?6";
const RESERVE: &str = "INSERT INTO budget_reservations (day, subject, id, tokens, cost, boot_id, session_id) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
pub(super) const RESERVED: &str =
    "SELECT tokens, cost FROM budget_reservations WHERE day = ?1 AND subject = ?2 AND id = ?3";
pub(super) const RELEASE: &str = "DELETE FROM budget_reservations WHERE day = ?1 AND subject = ?2 AND id = ?3";
pub(super) const SETTLE: &str = "UPDATE budgets \
     SET reserved_tokens = reserved_tokens - ?3, reserved_cost = reserved_cost - ?4, open = open - 1, \
         used_tokens = used_tokens + ?5, used_cost = used_cost + ?6, \
         over_tokens = over_tokens + ?7, over_cost = over_cost + ?8, \
         settled = settled + ?9, estimated = estimated + ?10 \
     WHERE day = ?1 AND subject = ?2";
pub(super) const ROW: &str = "SELECT used_tokens, used_cost, over_tokens, over_cost, reserved_tokens, reserved_cost, \
     settled, estimated FROM budgets WHERE day = ?1 AND subject = ?2";
pub(super) const OPEN: &str = "SELECT id, tokens, cost, boot_id, session_id FROM budget_reservations \
     WHERE day = ?1 AND subject = ?2 ORDER BY id";
pub(super) const OPEN_ROWS: &str = "SELECT day, subject FROM budgets WHERE open > 0 AND (day, subject) > (?1, ?2) \
     ORDER BY day, subject LIMIT ?3";
pub(super) const OLD: &str = "DELETE FROM budgets WHERE (day, subject) IN \
     (SELECT day, subject FROM budgets WHERE day < ?1 AND open = 0 ORDER BY day, subject LIMIT ?2)";

fn reserve(
    db: &Connection,
    key: &BudgetKey,
    reservation: &Reservation,
    limit: Amount,
) -> Result<Verdict<Reserved>, Fault> {
    let BudgetKey { day, subject } = key;
    let id = reservation.id.as_bytes();
    if db.prepare_cached(RESERVED)?.exists(params![day, subject, id])? {
        return Ok(Verdict::Undo(Reserved::Done));
    }
    db.prepare_cached(MAKE)?.execute(params![day, subject])?;
    let Amount { tokens, cost } = reservation.amount;
    let (tokens, cost) = (number(tokens), number(cost));
    let limits = (number(limit.tokens), number(limit.cost));
    let taken =
        db.prepare_cached(TAKE)?.execute(params![day, subject, tokens, cost, limits.0, limits.1, MAX_RESERVATIONS])?;
    if taken == 0 {
        return Ok(Verdict::Undo(Reserved::Refused));
    }
    let session = reservation.session_id.as_ref().map(SessionId::as_bytes);
    db.prepare_cached(RESERVE)?.execute(params![day, subject, id, tokens, cost, reservation.boot_id, session])?;
    Ok(Verdict::Keep(Reserved::Done))
}

fn settle(db: &Connection, key: &BudgetKey, id: MessageId, settlement: Settlement) -> Result<Verdict<bool>, Fault> {
    let BudgetKey { day, subject } = key;
    let mut find = db.prepare_cached(RESERVED)?;
    let found = find.query_row(params![day, subject, id.as_bytes()], |row| amount(row, 0)).optional()?;
    let Some(reserved) = found else { return Ok(Verdict::Undo(false)) };
    db.prepare_cached(RELEASE)?.execute(params![day, subject, id.as_bytes()])?;
    let (used, settled, estimated) = match settlement {
        Settlement::Used { amount, estimated } => (amount, 1, u8::from(estimated)),
        Settlement::Unknown => (reserved, 1, 1),
        Settlement::Released => (Amount::default(), 0, 0),
    };
    let (within, over) = (used.min(reserved), used.minus(reserved));
    db.prepare_cached(SETTLE)?.execute(params![
        day,
        subject,
        number(reserved.tokens),
        number(reserved.cost),
        number(within.tokens),
        number(within.cost),
        number(over.tokens),
        number(over.cost),
        settled,
        estimated,
    ])?;
    Ok(Verdict::Keep(true))
}

fn row(db: &Connection, key: BudgetKey) -> Result<Option<BudgetRow>, Fault> {
    let mut find = db.prepare_cached(ROW)?;
    let found = find.query_row(params![key.day, key.subject], |row| {
        Ok(BudgetRow {
            key: key.clone(),
            used: amount(row, 0)?,
            over: amount(row, 2)?,
            reserved: amount(row, 4)?,
            settled: seq(row, 6)?,
            estimated: seq(row, 7)?,
            open: Vec::new(),
        })
    });
    let Some(mut found) = found.optional()? else { return Ok(None) };
    let mut open = db.prepare_cached(OPEN)?;
    let open = open.query_map(params![key.day, key.subject], |row| {
        let session: Option<[u8; 16]> = row.get(4)?;
        Ok(Reservation {
            id: MessageId::from_bytes(row.get(0)?),
            amount: amount(row, 1)?,
            boot_id: row.get(3)?,
            session_id: session.map(SessionId::from_bytes),
        })
    })?;
    found.open = open.collect::<Result<_, _>>()?;
    Ok(Some(found))
}

fn open_rows(db: &Connection, after: Option<BudgetKey>, limit: u32) -> Result<Vec<BudgetRow>, Fault> {
    // No subject is empty: this comes before every key.
    let after = after.unwrap_or(BudgetKey { day: 0, subject: String::new() });
    let mut keys = db.prepare_cached(OPEN_ROWS)?;
    let keys = keys.query_map(params![after.day, after.subject, limit], |row| {
        Ok(BudgetKey { day: row.get(0)?, subject: row.get(1)? })
    })?;
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    let rows = keys.into_iter().map(|key| row(db, key)).collect::<Result<Vec<_>, _>>()?;
    Ok(rows.into_iter().flatten().filter(|row| !row.open.is_empty()).collect())
}

fn drop_old(db: &Connection, before: u32, limit: u32) -> Result<Verdict<u32>, Fault> {
    let dropped = db.prepare_cached(OLD)?.execute(params![before, limit])?;
    Ok(Verdict::Keep(u32::try_from(dropped).unwrap_or(u32::MAX)))
}

fn amount(row: &Row<'_>, from: usize) -> rusqlite::Result<Amount> {
    Ok(Amount { tokens: seq(row, from)?, cost: seq(row, from + 1)? })
}

#[async_trait]
impl BudgetStore for SqliteStore {
    async fn reserve_budget(
        &self,
        key: &BudgetKey,
        reservation: Reservation,
        limit: Amount,
    ) -> Result<Reserved, StoreError> {
        let key = key.clone();
        let reserve = move |db: &_| reserve(db, &key, &reservation, limit);
        self.writer.submit("reserve_budget", 0, reserve).await
    }

    async fn settle_budget(&self, key: &BudgetKey, id: MessageId, settlement: Settlement) -> Result<bool, StoreError> {
        let key = key.clone();
        self.writer.submit("settle_budget", 0, move |db| settle(db, &key, id, settlement)).await
    }

    async fn budget(&self, key: &BudgetKey) -> Result<Option<BudgetRow>, StoreError> {
        let key = key.clone();
        self.readers.submit("budget", move |db| row(db, key)).await
    }

    async fn open_budgets(&self, after: Option<BudgetKey>, limit: u32) -> Result<Vec<BudgetRow>, StoreError> {
        self.readers.submit("open_budgets", move |db| open_rows(db, after, limit)).await
    }

    async fn drop_budgets(&self, before: u32, limit: u32) -> Result<u32, StoreError> {
        self.writer.submit("drop_budgets", 0, move |db| drop_old(db, before, limit)).await
    }
}

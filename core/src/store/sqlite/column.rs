//! Our values as columns, both ways. SQLite's integers are signed, our numbers are not.

use rusqlite::Row;

use crate::{
    domain::{entry::Seq, time::Timestamp},
    store::{Derived, Header},
};

/// For writing and for bounds: numbers beyond what a column holds stand for its largest.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn seq(row: &Row<'_>, index: usize) -> rusqlite::Result<Seq> {
    let value: i64 = row.get(index)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(index, value))
}

pub(super) fn count(row: &Row<'_>, index: usize) -> rusqlite::Result<u32> {
    let value: i64 = row.get(index)?;
    u32::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(index, value))
}

/// The columns of [`header`], in its order.
macro_rules! header_columns {
    () => {
        "id, owner, slot, wrapped_key, created_at, applied_seq, state, last_activity, ended, unfinished"
    };
}
pub(super) use header_columns;

pub(super) fn header(row: &Row<'_>) -> rusqlite::Result<Header> {
    let slot: Option<i64> = row.get(2)?;
    Ok(Header {
        id: chatbox_proto::ids::SessionId::from_bytes(row.get(0)?),
        owner: row.get(1)?,
        slot: slot.map(|_| count(row, 2)).transpose()?,
        wrapped_key: row.get(3)?,
        created_at: Timestamp::from_millis(row.get(4)?),
        derived: Derived {
            applied_seq: seq(row, 5)?,
            state: row.get(6)?,
            last_activity: Timestamp::from_millis(row.get(7)?),
            ended: row.get(8)?,
            unfinished: row.get(9)?,
        },
    })
}

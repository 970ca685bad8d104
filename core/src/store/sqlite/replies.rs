//! Rows of running replies: their lease and their checkpoint.

use chatbox_proto::ids::{MessageId, SessionId};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    column::{self, number},
    fault::Fault,
    writer::Verdict,
};
use crate::store::{BootId, ReplyLease, ReplyRow};

const INSERT: &str = "INSERT OR REPLACE INTO replies (message_id, session_id, started_seq, boot_id, renewals, checkpoint) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
pub(super) const REMOVE: &str = "DELETE FROM replies WHERE message_id = ?1";
pub(super) const REMOVE_ALL: &str = "DELETE FROM replies WHERE session_id = ?1";
pub(super) const LATEST: &str = "SELECT message_id, started_seq, boot_id, renewals, checkpoint FROM replies \
     WHERE session_id = ?1 ORDER BY started_seq DESC LIMIT 1";
pub(super) const LEASES: &str = "SELECT message_id, session_id, boot_id, renewals FROM replies WHERE message_id > ?1 \
     ORDER BY message_id LIMIT ?2";
pub(super) const RENEW: &str = "UPDATE replies SET renewals = renewals + 1, checkpoint = ?4 \
     WHERE message_id = ?1 AND boot_id = ?2 AND renewals = ?3";

pub(super) fn insert(db: &Connection, row: &ReplyRow) -> Result<(), Fault> {
    db.prepare_cached(INSERT)?.execute(params![
        row.message_id.as_bytes(),
        row.session_id.as_bytes(),
        number(row.started_seq),
        row.boot_id,
        number(row.renewals),
        row.checkpoint,
    ])?;
    Ok(())
}

pub(super) fn remove(db: &Connection, message_id: MessageId) -> Result<(), Fault> {
    db.prepare_cached(REMOVE)?.execute([message_id.as_bytes()])?;
    Ok(())
}

pub(super) fn remove_all(db: &Connection, session_id: SessionId) -> Result<(), Fault> {
    db.prepare_cached(REMOVE_ALL)?.execute([session_id.as_bytes()])?;
    Ok(())
}

pub(super) fn latest(db: &Connection, session_id: SessionId) -> Result<Option<ReplyRow>, Fault> {
    let mut statement = db.prepare_cached(LATEST)?;
    let row = statement.query_row([session_id.as_bytes()], |row| {
        Ok(ReplyRow {
            session_id,
            message_id: MessageId::from_bytes(row.get(0)?),
            started_seq: column::seq(row, 1)?,
            boot_id: row.get(2)?,
            renewals: column::seq(row, 3)?,
            checkpoint: row.get(4)?,
        })
    });
    Ok(row.optional()?)
}

pub(super) fn leases(db: &Connection, after: Option<MessageId>, limit: u32) -> Result<Vec<ReplyLease>, Fault> {
    // No bytes at all come before every id.
    let after = after.as_ref().map_or(&[][..], |id| &id.as_bytes()[..]);
    let mut statement = db.prepare_cached(LEASES)?;
    let leases = statement.query_map(params![after, limit], |row| {
        Ok(ReplyLease {
            message_id: MessageId::from_bytes(row.get(0)?),
            session_id: SessionId::from_bytes(row.get(1)?),
            boot_id: row.get(2)?,
            renewals: column::seq(row, 3)?,
        })
    })?;
    Ok(leases.collect::<Result<_, _>>()?)
}

pub(super) fn renew(
    db: &Connection,
    message_id: MessageId,
    boot_id: BootId,
    expected: u64,
    checkpoint: &[u8],
) -> Result<Verdict<bool>, Fault> {
    let mut statement = db.prepare_cached(RENEW)?;
    let changed = statement.execute(params![message_id.as_bytes(), boot_id, number(expected), checkpoint])?;
    Ok(Verdict::Keep(changed > 0))
}

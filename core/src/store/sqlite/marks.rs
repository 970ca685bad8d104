//! How far participants have read, and the small values of the installation.

use chatbox_proto::ids::SessionId;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    column::{self, number},
    fault::Fault,
    writer::Verdict,
};
use crate::{domain::entry::Seq, store::MAX_READ_MARKS};

/// Nothing for a session that does not exist or is erased, and no further participant once there are as many as are kept.
pub(super) const MARK: &str = "INSERT INTO read_marks (session_id, user_id, seq) SELECT ?1, ?2, ?3 \
     WHERE EXISTS (SELECT 1 FROM sessions WHERE id = ?1 AND length(wrapped_key) > 0) \
       AND (EXISTS (SELECT 1 FROM read_marks WHERE session_id = ?1 AND user_id = ?2) \
         OR (SELECT count(*) FROM read_marks WHERE session_id = ?1) < ?4) \
     ON CONFLICT (session_id, user_id) DO UPDATE SET seq = excluded.seq WHERE excluded.seq > seq";
pub(super) const MARKS: &str = "SELECT user_id, seq FROM read_marks WHERE session_id = ?1 ORDER BY user_id LIMIT ?2";
pub(super) const REMOVE_ALL: &str = "DELETE FROM read_marks WHERE session_id = ?1";
pub(super) const VALUE: &str = "SELECT value FROM installation WHERE name = ?1";
const INIT_VALUE: &str = "INSERT INTO installation (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING";
pub(super) const REPLACE_VALUE: &str = "UPDATE installation SET value = ?3 WHERE name = ?1 AND value = ?2";

pub(super) fn mark_read(db: &Connection, id: SessionId, user_id: &str, seq: Seq) -> Result<Verdict<()>, Fault> {
    db.prepare_cached(MARK)?.execute(params![id.as_bytes(), user_id, number(seq), MAX_READ_MARKS])?;
    Ok(Verdict::Keep(()))
}

pub(super) fn read_marks(db: &Connection, id: SessionId) -> Result<Vec<(String, Seq)>, Fault> {
    let mut statement = db.prepare_cached(MARKS)?;
    let marks =
        statement.query_map(params![id.as_bytes(), MAX_READ_MARKS], |row| Ok((row.get(0)?, column::seq(row, 1)?)))?;
    Ok(marks.collect::<Result<_, _>>()?)
}

pub(super) fn remove_all(db: &Connection, id: SessionId) -> Result<(), Fault> {
    db.prepare_cached(REMOVE_ALL)?.execute([id.as_bytes()])?;
    Ok(())
}

pub(super) fn value(db: &Connection, name: &str) -> Result<Option<Vec<u8>>, Fault> {
    Ok(db.prepare_cached(VALUE)?.query_row([name], |row| row.get(0)).optional()?)
}

pub(super) fn init_value(db: &Connection, name: &str, value: &[u8]) -> Result<Verdict<Vec<u8>>, Fault> {
    db.prepare_cached(INIT_VALUE)?.execute(params![name, value])?;
    let stored = db.prepare_cached(VALUE)?.query_row([name], |row| row.get(0))?;
    Ok(Verdict::Keep(stored))
}

pub(super) fn replace_value(db: &Connection, name: &str, expected: &[u8], new: &[u8]) -> Result<Verdict<bool>, Fault> {
    let changed = db.prepare_cached(REPLACE_VALUE)?.execute(params![name, expected, new])?;
    Ok(Verdict::Keep(changed > 0))
}

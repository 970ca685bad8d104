//! The log: optimistic append, and reading it from either end.

use chatbox_proto::ids::{MessageId, SessionId};
use rusqlite::{Connection, OptionalExtension as _, Rows, params};

use super::{
    column::{self, number},
    fault::Fault,
    replies, sessions,
    writer::Verdict,
};
use crate::{
    domain::entry::Seq,
    store::{Append, AppendId, Appended, KeyedHash, LogDocument, MessageKey},
};

pub(super) const EXISTS: &str = "SELECT 1 FROM sessions WHERE id = ?1";
pub(super) const HEAD: &str =
    "SELECT first_seq + count - 1 FROM log WHERE session_id = ?1 ORDER BY first_seq DESC LIMIT 1";
const INSERT: &str = "INSERT INTO log (session_id, first_seq, count, append_id, sealed) VALUES (?1, ?2, ?3, ?4, ?5)";
const INSERT_KEY: &str = "INSERT INTO message_keys (session_id, key, content, message_id, seq) \
     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (session_id, key) DO NOTHING";
/// Walks the session's documents, latest first: the one looked for is nearly always the last.
pub(super) const FIND_APPEND: &str = "SELECT first_seq + count - 1 FROM log WHERE session_id = ?1 AND append_id = ?2 \
     ORDER BY first_seq DESC LIMIT 1";
pub(super) const FIND_MESSAGE: &str =
    "SELECT content, message_id, seq FROM message_keys WHERE session_id = ?1 AND key = ?2";
/// From the document that holds the first entry wanted: the last one that begins at or before it.
pub(super) const READ_AFTER: &str = "SELECT first_seq, count, sealed FROM log WHERE session_id = ?1 AND first_seq >= \
     coalesce((SELECT first_seq FROM log WHERE session_id = ?1 AND first_seq <= ?2 ORDER BY first_seq DESC LIMIT 1), 0) \
     ORDER BY first_seq";
pub(super) const READ_BEFORE: &str =
    "SELECT first_seq, count, sealed FROM log WHERE session_id = ?1 AND first_seq < ?2 ORDER BY first_seq DESC";

pub(super) fn append(db: &Connection, append: &Append) -> Result<Verdict<Appended>, Fault> {
    if append.count == 0 {
        return Err(Fault::Misuse("an append of no entries"));
    }
    let id = append.session_id;
    // A log that has entries belongs to a session.
    let fits = match stored_head(db, id)? {
        Some(head) => head == append.expected_head,
        None => append.expected_head == 0 && exists(db, id)?,
    };
    if !fits {
        return Ok(Verdict::Undo(Appended::Conflict));
    }
    if let Some(rule) = append.takes_slot
        && !sessions::take_slot(db, id, rule)?
    {
        return Ok(Verdict::Undo(Appended::NoSlot));
    }
    let mut insert_key = db.prepare_cached(INSERT_KEY)?;
    for message in &append.messages {
        let inserted = insert_key.execute(params![
            id.as_bytes(),
            message.key,
            message.content,
            message.message_id.as_bytes(),
            number(message.seq),
        ])?;
        if inserted == 0 {
            return Ok(Verdict::Undo(Appended::Conflict));
        }
    }
    let first_seq = number(append.expected_head + 1);
    db.prepare_cached(INSERT)?.execute(params![
        id.as_bytes(),
        first_seq,
        append.count,
        append.append_id,
        append.sealed
    ])?;
    companions(db, append)?;
    Ok(Verdict::Keep(Appended::Done(append.expected_head + u64::from(append.count))))
}

/// Here they are part of the same change; other stores may apply them afterwards.
fn companions(db: &Connection, append: &Append) -> Result<(), Fault> {
    if append.ends_session {
        sessions::release_slot(db, append.session_id)?;
    }
    sessions::replace_older(db, append.session_id, &append.derived)?;
    if let Some(message_id) = append.reply_finished {
        replies::remove(db, message_id)?;
    }
    if let Some(row) = &append.reply_started {
        replies::insert(db, row)?;
    }
    Ok(())
}

fn exists(db: &Connection, id: SessionId) -> Result<bool, Fault> {
    Ok(db.prepare_cached(EXISTS)?.exists([id.as_bytes()])?)
}

pub(super) fn find_append(db: &Connection, id: SessionId, append_id: AppendId) -> Result<Option<Seq>, Fault> {
    let mut statement = db.prepare_cached(FIND_APPEND)?;
    Ok(statement.query_row(params![id.as_bytes(), append_id], |row| column::seq(row, 0)).optional()?)
}

pub(super) fn find_message(db: &Connection, id: SessionId, key: KeyedHash) -> Result<Option<MessageKey>, Fault> {
    let mut statement = db.prepare_cached(FIND_MESSAGE)?;
    let found = statement.query_row(params![id.as_bytes(), key], |row| {
        let message_id = MessageId::from_bytes(row.get(1)?);
        Ok(MessageKey { key, content: row.get(0)?, message_id, seq: column::seq(row, 2)? })
    });
    Ok(found.optional()?)
}

pub(super) fn head(db: &Connection, id: SessionId) -> Result<Seq, Fault> {
    Ok(stored_head(db, id)?.unwrap_or(0))
}

fn stored_head(db: &Connection, id: SessionId) -> Result<Option<Seq>, Fault> {
    Ok(db.prepare_cached(HEAD)?.query_row([id.as_bytes()], |row| column::seq(row, 0)).optional()?)
}

pub(super) fn heads(db: &Connection, ids: &[SessionId]) -> Result<Vec<(SessionId, Seq)>, Fault> {
    // One snapshot for all of them.
    let snapshot = db.unchecked_transaction()?;
    let mut heads = Vec::with_capacity(ids.len());
    for id in ids {
        let head = match stored_head(&snapshot, *id)? {
            Some(head) => head,
            None if exists(&snapshot, *id)? => 0,
            None => continue,
        };
        heads.push((*id, head));
    }
    Ok(heads)
}

pub(super) fn read_after(db: &Connection, id: SessionId, after: Seq, limit: u32) -> Result<Vec<LogDocument>, Fault> {
    let mut statement = db.prepare_cached(READ_AFTER)?;
    let rows = statement.query(params![id.as_bytes(), number(after.saturating_add(1))])?;
    collect(rows, limit, |document| (document.first_seq + u64::from(document.count) - 1).saturating_sub(after))
}

pub(super) fn read_before(db: &Connection, id: SessionId, before: Seq, limit: u32) -> Result<Vec<LogDocument>, Fault> {
    let mut statement = db.prepare_cached(READ_BEFORE)?;
    let rows = statement.query(params![id.as_bytes(), number(before)])?;
    collect(rows, limit, |document| before.saturating_sub(document.first_seq))
}

/// Documents until they hold `limit` entries; `within` counts those of one document that lie on the wanted side.
fn collect(mut rows: Rows<'_>, limit: u32, within: impl Fn(&LogDocument) -> u64) -> Result<Vec<LogDocument>, Fault> {
    let mut documents = Vec::new();
    let mut entries = 0;
    while entries < u64::from(limit)
        && let Some(row) = rows.next()?
    {
        let document =
            LogDocument { first_seq: column::seq(row, 0)?, count: column::count(row, 1)?, sealed: row.get(2)? };
        let wanted = within(&document).min(u64::from(document.count));
        if wanted > 0 {
            entries += wanted;
            documents.push(document);
        }
    }
    Ok(documents)
}

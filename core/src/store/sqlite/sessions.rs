//! Headers: their slots, their lists and their folded state.

use std::time::Duration;

use chatbox_proto::ids::SessionId;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    column::{self, header_columns, number},
    fault::Fault,
    marks, replies,
    writer::Verdict,
};
use crate::{
    domain::entry::Seq,
    store::{ActiveSession, Created, Derived, Header, NewSession, RequestKey, SessionQuery, SlotRule},
};

pub(super) const BY_ID: &str = concat!("SELECT ", header_columns!(), " FROM sessions WHERE id = ?1");
pub(super) const BY_REQUEST: &str = concat!(
    "SELECT ",
    header_columns!(),
    ", request_content FROM sessions WHERE owner = ?1 AND request_id = ?2 AND request_id IS NOT NULL"
);
pub(super) const LOWEST_SLOT: &str =
    concat!("SELECT ", header_columns!(), " FROM sessions WHERE owner = ?1 AND slot IS NOT NULL ORDER BY slot LIMIT 1");
pub(super) const TAKEN_SLOTS: &str =
    "SELECT slot FROM sessions WHERE owner = ?1 AND slot IS NOT NULL AND slot < ?2 ORDER BY slot";
const INSERT: &str = "INSERT INTO sessions (id, owner, slot, wrapped_key, created_at, applied_seq, state, last_activity, \
     ended, unfinished, request_id, request_content, touched) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, \
     CAST(unixepoch('subsec') * 1000 AS INTEGER))";
pub(super) const ACTIVE: &str = concat!(
    "SELECT ",
    header_columns!(),
    " FROM sessions WHERE owner = ?1 AND ended = 0 AND length(wrapped_key) > 0",
    " ORDER BY last_activity DESC, id DESC LIMIT 1"
);
pub(super) const LIST_ONE: &str = concat!(
    "SELECT ",
    header_columns!(),
    " FROM sessions WHERE owner = ?1 AND ended = ?5 AND length(wrapped_key) > 0 AND (last_activity, id) < (?2, ?3)",
    " ORDER BY last_activity DESC, id DESC LIMIT ?4"
);
/// Two walks of one index, merged: a second index would have to be kept up to date by every append.
pub(super) const LIST_BOTH: &str = concat!(
    "SELECT ",
    header_columns!(),
    " FROM sessions WHERE owner = ?1 AND ended = 0 AND length(wrapped_key) > 0 AND (last_activity, id) < (?2, ?3)",
    " UNION ALL SELECT ",
    header_columns!(),
    " FROM sessions WHERE owner = ?1 AND ended = 1 AND length(wrapped_key) > 0 AND (last_activity, id) < (?2, ?3)",
    " ORDER BY last_activity DESC, id DESC LIMIT ?4"
);
pub(super) const UNFINISHED: &str =
    "SELECT id, applied_seq FROM sessions WHERE unfinished = 1 AND id > ?1 ORDER BY id LIMIT ?2";
pub(super) const KEYS: &str = "SELECT id, wrapped_key FROM sessions WHERE id > ?1 ORDER BY id LIMIT ?2";
pub(super) const REPLACE_KEY: &str =
    "UPDATE sessions SET wrapped_key = ?3 WHERE id = ?1 AND wrapped_key = ?2 AND length(?2) > 0 AND length(?3) > 0";
pub(super) const REPLACE_OLDER: &str = "UPDATE sessions SET applied_seq = ?2, state = ?3, last_activity = ?4, ended = ?5, \
     unfinished = ?6, touched = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE id = ?1 AND applied_seq < ?2";
pub(super) const REPLACE_EXPECTED: &str = "UPDATE sessions SET applied_seq = ?2, state = ?3, last_activity = ?4, \
     ended = ?5, unfinished = ?6, touched = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE id = ?1 AND applied_seq = ?7 AND applied_seq <= ?2";
pub(super) const TAKE_SLOT: &str = "UPDATE sessions SET slot = ?2 WHERE id = ?1 AND slot IS NULL";
/// Walks its own small index: the one by activity would have to begin with every owner.
pub(super) const ACTIVE_BY_ID: &str = "SELECT id, applied_seq, CAST(unixepoch('subsec') * 1000 AS INTEGER) - touched FROM sessions \
     WHERE ended = 0 AND id > ?1 ORDER BY id LIMIT ?2";
pub(super) const FREE_SLOT: &str = "UPDATE sessions SET slot = NULL WHERE id = ?1 AND slot IS NOT NULL";

pub(super) const ERASE: &str = "UPDATE sessions SET wrapped_key = x'', state = x'', slot = NULL, ended = 1, unfinished = 0, \
     applied_seq = max(applied_seq, ?2) WHERE id = ?1";

/// Above every id, which has 16 bytes.
const ABOVE_ALL_IDS: [u8; 17] = [0xff; 17];

pub(super) fn create(db: &Connection, new: NewSession) -> Result<Verdict<Created>, Fault> {
    if let Some(request) = &new.request
        && let Some(earlier) = earlier_call(db, &new.owner, request)?
    {
        return Ok(Verdict::Undo(earlier));
    }
    let slot = match free_slot(db, &new.owner, new.slot)? {
        Slot::Free(slot) => Some(slot),
        Slot::NotNeeded => None,
        Slot::Taken(header) => return Ok(Verdict::Undo(Created::SlotTaken(*header))),
    };
    let NewSession { id, owner, wrapped_key, created_at, request, derived, .. } = new;
    let header = Header { id, owner, slot, wrapped_key, created_at, derived };
    insert(db, &header, request.as_ref())?;
    Ok(Verdict::Keep(Created::New(header)))
}

fn insert(db: &Connection, header: &Header, request: Option<&RequestKey>) -> Result<(), Fault> {
    let derived = &header.derived;
    db.prepare_cached(INSERT)?.execute(params![
        header.id.as_bytes(),
        header.owner,
        header.slot,
        header.wrapped_key,
        header.created_at.millis(),
        number(derived.applied_seq),
        derived.state,
        derived.last_activity.millis(),
        derived.ended,
        derived.unfinished,
        request.map(|request| request.id),
        request.map(|request| request.content),
    ])?;
    Ok(())
}

fn earlier_call(db: &Connection, owner: &str, request: &RequestKey) -> Result<Option<Created>, Fault> {
    let mut statement = db.prepare_cached(BY_REQUEST)?;
    let earlier = statement
        .query_row(params![owner, request.id], |row| Ok((column::header(row)?, row.get::<_, [u8; 16]>(10)?)))
        .optional()?;
    Ok(earlier.map(
        |(header, content)| {
            if content == request.content { Created::Repeated(header) } else { Created::RequestReused }
        },
    ))
}

enum Slot {
    Free(u32),
    NotNeeded,
    Taken(Box<Header>),
}

fn free_slot(db: &Connection, owner: &str, rule: SlotRule) -> Result<Slot, Fault> {
    let slots = match rule {
        SlotRule::First => 1,
        SlotRule::AnyOf(0) => return Err(Fault::Misuse("a rule of no slots")),
        SlotRule::AnyOf(slots) => slots,
        SlotRule::Unlimited => return Ok(Slot::NotNeeded),
    };
    let mut statement = db.prepare_cached(TAKEN_SLOTS)?;
    let taken = statement.query_map(params![owner, slots], |row| column::count(row, 0))?;
    let mut free = 0;
    for slot in taken {
        if slot? != free {
            break;
        }
        free += 1;
    }
    if free < slots {
        return Ok(Slot::Free(free));
    }
    let header = db.prepare_cached(LOWEST_SLOT)?.query_row([owner], column::header)?;
    Ok(Slot::Taken(Box::new(header)))
}

pub(super) fn by_id(db: &Connection, id: SessionId) -> Result<Option<Header>, Fault> {
    Ok(db.prepare_cached(BY_ID)?.query_row([id.as_bytes()], column::header).optional()?)
}

pub(super) fn active(db: &Connection, owner: &str) -> Result<Option<Header>, Fault> {
    Ok(db.prepare_cached(ACTIVE)?.query_row([owner], column::header).optional()?)
}

pub(super) fn list(db: &Connection, query: &SessionQuery) -> Result<Vec<Header>, Fault> {
    let (time, id) = match &query.after {
        Some((time, id)) => (time.millis(), &id.as_bytes()[..]),
        None => (i64::MAX, &ABOVE_ALL_IDS[..]),
    };
    let (owner, limit) = (&query.owner, query.limit);
    let headers = match query.ended {
        Some(ended) => db
            .prepare_cached(LIST_ONE)?
            .query_map(params![owner, time, id, limit, ended], column::header)?
            .collect::<Result<_, _>>()?,
        None => db
            .prepare_cached(LIST_BOTH)?
            .query_map(params![owner, time, id, limit], column::header)?
            .collect::<Result<_, _>>()?,
    };
    Ok(headers)
}

pub(super) fn unfinished(
    db: &Connection,
    after: Option<SessionId>,
    limit: u32,
) -> Result<Vec<(SessionId, Seq)>, Fault> {
    let mut statement = db.prepare_cached(UNFINISHED)?;
    let sessions = statement.query_map(params![bound(after.as_ref()), limit], |row| {
        Ok((SessionId::from_bytes(row.get(0)?), column::seq(row, 1)?))
    })?;
    Ok(sessions.collect::<Result<_, _>>()?)
}

pub(super) fn keys(db: &Connection, after: Option<SessionId>, limit: u32) -> Result<Vec<(SessionId, Vec<u8>)>, Fault> {
    let mut statement = db.prepare_cached(KEYS)?;
    let keys = statement.query_map(params![bound(after.as_ref()), limit], |row| {
        Ok((SessionId::from_bytes(row.get(0)?), row.get(1)?))
    })?;
    Ok(keys.collect::<Result<_, _>>()?)
}

/// What a walk over all ids begins after: no bytes at all come before every id.
fn bound(after: Option<&SessionId>) -> &[u8] {
    after.map_or(&[], |id| id.as_bytes())
}

pub(super) fn replace_key(db: &Connection, id: SessionId, expected: &[u8], new: &[u8]) -> Result<Verdict<bool>, Fault> {
    let changed = db.prepare_cached(REPLACE_KEY)?.execute(params![id.as_bytes(), expected, new])?;
    Ok(Verdict::Keep(changed > 0))
}

/// One change: whoever sees the key gone sees all of it gone.
pub(super) fn erase(db: &Connection, id: SessionId, fence: Seq) -> Result<Verdict<bool>, Fault> {
    replies::remove_all(db, id)?;
    marks::remove_all(db, id)?;
    let changed = db.prepare_cached(ERASE)?.execute(params![id.as_bytes(), number(fence)])?;
    Ok(Verdict::Keep(changed > 0))
}

/// The companion of an append: only ever moves forward.
pub(super) fn replace_older(db: &Connection, id: SessionId, derived: &Derived) -> Result<(), Fault> {
    db.prepare_cached(REPLACE_OLDER)?.execute(params![
        id.as_bytes(),
        number(derived.applied_seq),
        derived.state,
        derived.last_activity.millis(),
        derived.ended,
        derived.unfinished,
    ])?;
    Ok(())
}

pub(super) fn replace_expected(
    db: &Connection,
    id: SessionId,
    expected: Seq,
    derived: &Derived,
) -> Result<Verdict<bool>, Fault> {
    let changed = db.prepare_cached(REPLACE_EXPECTED)?.execute(params![
        id.as_bytes(),
        number(derived.applied_seq),
        derived.state,
        derived.last_activity.millis(),
        derived.ended,
        derived.unfinished,
        number(expected),
    ])?;
    Ok(Verdict::Keep(changed > 0))
}

/// Gives a session one of its owner's free slots; `false`: there is none.
pub(super) fn take_slot(db: &Connection, id: SessionId, rule: SlotRule) -> Result<bool, Fault> {
    let Some(header) = by_id(db, id)? else { return Ok(false) };
    if header.slot.is_some() {
        return Ok(true);
    }
    match free_slot(db, &header.owner, rule)? {
        Slot::Free(slot) => {
            db.prepare_cached(TAKE_SLOT)?.execute(params![id.as_bytes(), slot])?;
            Ok(true)
        }
        Slot::NotNeeded => Ok(true),
        Slot::Taken(_) => Ok(false),
    }
}

pub(super) fn active_sessions(
    db: &Connection,
    after: Option<SessionId>,
    limit: u32,
) -> Result<Vec<ActiveSession>, Fault> {
    let mut statement = db.prepare_cached(ACTIVE_BY_ID)?;
    let sessions = statement.query_map(params![bound(after.as_ref()), limit], |row| {
        Ok(ActiveSession {
            id: SessionId::from_bytes(row.get(0)?),
            applied_seq: column::seq(row, 1)?,
            still_for: Duration::from_millis(u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0)),
        })
    })?;
    Ok(sessions.collect::<Result<_, _>>()?)
}

pub(super) fn release_slot(db: &Connection, id: SessionId) -> Result<(), Fault> {
    db.prepare_cached(FREE_SLOT)?.execute([id.as_bytes()])?;
    Ok(())
}

//! The file's layout, its version, and how connections to it are set up.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, config::DbConfig};

use super::fault::Fault;
use crate::store::{StoreError, StoreErrorKind};

/// Marks the file as ours (it spells `ChBx`), so that another program's database is never written to.
pub(super) const APPLICATION_ID: i32 = 0x4368_4278;

/// One step per version; the file's `user_version` counts those that were applied. Steps are never edited, only added.
pub(super) const STEPS: &[&str] = &[
    // Tables with large values keep their row id, and with it 4 KiB of a row in its page; the others are their own index.
    // In `log` the append's id stands before the entries, so that looking for it never reads them.
    "CREATE TABLE sessions (
        id              BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
        owner           TEXT NOT NULL,
        slot            INTEGER,
        created_at      INTEGER NOT NULL,
        request_id      BLOB CHECK (length(request_id) = 16),
        request_content BLOB CHECK (length(request_content) = 16),
        applied_seq     INTEGER NOT NULL,
        last_activity   INTEGER NOT NULL,
        ended           INTEGER NOT NULL CHECK (ended IN (0, 1)),
        unfinished      INTEGER NOT NULL CHECK (unfinished IN (0, 1)),
        wrapped_key     BLOB NOT NULL,
        state           BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX sessions_by_slot ON sessions (owner, slot) WHERE slot IS NOT NULL;
    CREATE UNIQUE INDEX sessions_by_request ON sessions (owner, request_id) WHERE request_id IS NOT NULL;
    CREATE INDEX sessions_by_activity ON sessions (owner, ended, last_activity, id);
    CREATE INDEX sessions_unfinished ON sessions (id) WHERE unfinished = 1;

    CREATE TABLE log (
        session_id BLOB NOT NULL REFERENCES sessions (id),
        first_seq  INTEGER NOT NULL CHECK (first_seq > 0),
        count      INTEGER NOT NULL CHECK (count > 0),
        append_id  BLOB NOT NULL CHECK (length(append_id) = 16),
        sealed     BLOB NOT NULL,
        PRIMARY KEY (session_id, first_seq)
    ) STRICT;

    CREATE TABLE message_keys (
        session_id BLOB NOT NULL REFERENCES sessions (id),
        key        BLOB NOT NULL CHECK (length(key) = 16),
        content    BLOB NOT NULL CHECK (length(content) = 16),
        message_id BLOB NOT NULL CHECK (length(message_id) = 16),
        seq        INTEGER NOT NULL,
        PRIMARY KEY (session_id, key)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE replies (
        message_id  BLOB NOT NULL PRIMARY KEY CHECK (length(message_id) = 16),
        session_id  BLOB NOT NULL REFERENCES sessions (id),
        started_seq INTEGER NOT NULL,
        boot_id     BLOB NOT NULL CHECK (length(boot_id) = 16),
        renewals    INTEGER NOT NULL,
        checkpoint  BLOB NOT NULL
    ) STRICT;
    CREATE INDEX replies_by_session ON replies (session_id, started_seq);

    CREATE TABLE read_marks (
        session_id BLOB NOT NULL REFERENCES sessions (id),
        user_id    TEXT NOT NULL,
        seq        INTEGER NOT NULL,
        PRIMARY KEY (session_id, user_id)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE installation (
        name  TEXT NOT NULL PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- Written to overwrite what a failed commit may have left behind.
    CREATE TABLE settled (
        only  INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
        times INTEGER NOT NULL
    ) STRICT;
    INSERT INTO settled VALUES (1, 0);",
    "CREATE TABLE outbox (
        id         BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
        channel    TEXT NOT NULL,
        event      TEXT NOT NULL,
        session_id BLOB CHECK (length(session_id) = 16),
        seq        INTEGER,
        detail     TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        due_at     INTEGER NOT NULL,
        attempts   INTEGER NOT NULL,
        state      INTEGER NOT NULL CHECK (state IN (0, 1, 2)),
        error      TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX outbox_due ON outbox (due_at, id) WHERE state = 0;
    CREATE INDEX outbox_by_age ON outbox (state, created_at, id);",
    // Erased sessions have no key and are in no list.
    "DROP INDEX sessions_by_activity;
    CREATE INDEX sessions_by_activity ON sessions (owner, ended, last_activity, id) WHERE length(wrapped_key) > 0;",
    // Sessions that wait for a person or are held by one, and the audit trail.
    "CREATE TABLE handoffs (
        session_id    BLOB NOT NULL PRIMARY KEY CHECK (length(session_id) = 16),
        waiting_since INTEGER,
        mark          INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX handoffs_waiting ON handoffs (waiting_since, session_id) WHERE waiting_since IS NOT NULL;

    CREATE TABLE audit (
        seq        INTEGER NOT NULL PRIMARY KEY CHECK (seq > 0),
        at         INTEGER NOT NULL,
        actor      TEXT NOT NULL,
        action     TEXT NOT NULL,
        session_id BLOB CHECK (length(session_id) = 16),
        sealed     BLOB NOT NULL,
        hash       BLOB NOT NULL CHECK (length(hash) = 32)
    ) STRICT;
    CREATE INDEX audit_by_actor ON audit (actor, seq);
    CREATE INDEX audit_by_action ON audit (action, seq);
    CREATE INDEX audit_by_session ON audit (session_id, seq) WHERE session_id IS NOT NULL;",
    // `reserved_*` and `open` are sums over the reservations, so that none is read to decide about another.
    "CREATE TABLE budgets (
        day             INTEGER NOT NULL,
        subject         TEXT NOT NULL,
        used_tokens     INTEGER NOT NULL DEFAULT 0,
        used_cost       INTEGER NOT NULL DEFAULT 0,
        over_tokens     INTEGER NOT NULL DEFAULT 0,
        over_cost       INTEGER NOT NULL DEFAULT 0,
        reserved_tokens INTEGER NOT NULL DEFAULT 0 CHECK (reserved_tokens >= 0),
        reserved_cost   INTEGER NOT NULL DEFAULT 0 CHECK (reserved_cost >= 0),
        open            INTEGER NOT NULL DEFAULT 0 CHECK (open >= 0),
        settled         INTEGER NOT NULL DEFAULT 0,
        estimated       INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (day, subject)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX budgets_open ON budgets (day, subject) WHERE open > 0;

    CREATE TABLE budget_reservations (
        day        INTEGER NOT NULL,
        subject    TEXT NOT NULL,
        id         BLOB NOT NULL CHECK (length(id) = 16),
        tokens     INTEGER NOT NULL,
        cost       INTEGER NOT NULL,
        boot_id    BLOB NOT NULL CHECK (length(boot_id) = 16),
        session_id BLOB CHECK (length(session_id) = 16),
        PRIMARY KEY (day, subject, id)
    ) STRICT, WITHOUT ROWID;",
    // When the folded state was written, by this machine's clock. The index changes when a session is made or ends, not with
    // every append.
    "ALTER TABLE sessions ADD COLUMN touched INTEGER NOT NULL DEFAULT 0;
    UPDATE sessions SET touched = CAST(unixepoch('subsec') * 1000 AS INTEGER);
    CREATE INDEX sessions_active ON sessions (id) WHERE ended = 0;",
    "CREATE TABLE shares (
        id              BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
        session_id      BLOB NOT NULL CHECK (length(session_id) = 16),
        secret_hash     BLOB NOT NULL CHECK (length(secret_hash) = 16),
        snapshot        INTEGER,
        created_at      INTEGER NOT NULL,
        expires_at      INTEGER,
        revoked         INTEGER NOT NULL CHECK (revoked IN (0, 1)),
        request_id      BLOB CHECK (length(request_id) = 16),
        request_content BLOB CHECK (length(request_content) = 16)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX shares_by_session ON shares (session_id, id);
    CREATE UNIQUE INDEX shares_by_request ON shares (session_id, request_id) WHERE request_id IS NOT NULL;",
];

/// When a commit reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Synchronous {
    /// Before it is answered.
    Full,
    /// Whenever the system likes: the fault that the durability test must be able to see.
    #[cfg(test)]
    Off,
}

/// The connection that writes; brings the file to the current version.
pub(super) fn open_writer(
    path: &Path,
    synchronous: Synchronous,
    max_bytes: Option<u64>,
) -> Result<Connection, StoreError> {
    let mut db = connect(path).map_err(|fault| fault.during("open"))?;
    check_version(&db)?;
    prepare(&db, synchronous, max_bytes).map_err(|fault| fault.during("open"))?;
    migrate(&mut db).map_err(|fault| fault.during("migrate"))?;
    // What a killed process had written but not yet synced is durable before anybody is told of it.
    checkpoint(&db, Checkpoint::Truncate).map_err(|fault| fault.during("open"))?;
    Ok(db)
}

/// A connection that cannot write.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let open = || -> Result<Connection, Fault> {
        let db = connect(path)?;
        db.pragma_update(None, "query_only", true)?;
        Ok(db)
    };
    open().map_err(|fault| fault.during("open"))
}

fn connect(path: &Path) -> Result<Connection, Fault> {
    // Each connection belongs to one thread, so SQLite's own mutexes are not needed.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    // The file has one owner and that one has one writer: whoever is in the way is a stranger and is not waited for.
    db.busy_timeout(std::time::Duration::ZERO)?;
    db.pragma_update(None, "foreign_keys", true)?;
    // One plan per statement, whatever is bound: otherwise SQLite plans some of them anew for every new session id.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
}

fn prepare(db: &Connection, synchronous: Synchronous, max_bytes: Option<u64>) -> Result<(), Fault> {
    let mode: String = db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(Fault::Misuse("this file system has no shared memory for a write-ahead log"));
    }
    let level = match synchronous {
        Synchronous::Full => "FULL",
        #[cfg(test)]
        Synchronous::Off => "OFF",
    };
    db.pragma_update(None, "synchronous", level)?;
    // What is replaced or removed is overwritten with zeros where that takes no further writes: a destroyed key is in the
    // row's own page.
    db.pragma_update_and_check(None, "secure_delete", "FAST", |_| Ok(()))?;
    // The writer checkpoints by itself, after it has answered.
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    db.pragma_update(None, "journal_size_limit", super::writer::WAL_KEPT_BYTES)?;
    if let Some(bytes) = max_bytes {
        let page: i64 = db.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let pages = i64::try_from(bytes).unwrap_or(i64::MAX) / page;
        db.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
    }
    Ok(())
}

/// How far a checkpoint goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checkpoint {
    /// Nowhere: it only measures.
    Measure,
    /// As far as the readers let it.
    Passive,
    /// To the end, and empties the write-ahead log. Fails while anybody reads.
    Truncate,
}

/// Moves pages from the write-ahead log into the database; returns how many the log held before a new writer restarts it.
pub(super) fn checkpoint(db: &Connection, mode: Checkpoint) -> Result<u64, Fault> {
    let mut statement = db.prepare_cached(match mode {
        Checkpoint::Measure => "PRAGMA wal_checkpoint(NOOP)",
        Checkpoint::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        Checkpoint::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    })?;
    // Columns: whether somebody was in the way, pages in the log, pages moved so far. An empty log has -1.
    Ok(statement.query_row([], |row| Ok(row.get::<_, i64>(1)?.max(0).unsigned_abs()))?)
}

fn check_version(db: &Connection) -> Result<(), StoreError> {
    let read = || -> Result<(i32, i64, i64), Fault> {
        Ok((
            db.pragma_query_value(None, "application_id", |row| row.get(0))?,
            db.pragma_query_value(None, "user_version", |row| row.get(0))?,
            db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?,
        ))
    };
    let (application, version, objects) = read().map_err(|fault| fault.during("open"))?;
    if application != APPLICATION_ID && objects > 0 {
        return Err(StoreError::new(StoreErrorKind::Refused, "open", "the file is another program's database"));
    }
    if version > STEPS.len() as i64 {
        let why = format!("the file has version {version}, made by a newer program; this one knows {}", STEPS.len());
        return Err(StoreError::new(StoreErrorKind::Refused, "open", why));
    }
    Ok(())
}

fn migrate(db: &mut Connection) -> Result<(), Fault> {
    let version: usize = db.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0))? as usize;
    if version == STEPS.len() {
        return Ok(());
    }
    // One transaction for all steps: a crash leaves the old version or the new one.
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in STEPS.iter().skip(version) {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", STEPS.len() as i64)?;
    tx.commit()?;
    Ok(())
}

//! What a long history costs on SQLite: its last page among a million entries, beside the bare indexed query; and appending to
//! and opening a session, whether it has ten entries or a hundred thousand.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use chatbox_core::store::{
    SessionStore as _,
    sqlite::{SqliteOptions, SqliteStore},
};
use chatbox_proto::ids::SessionId;
use rusqlite::{Connection, params};

use crate::measure::{
    machine::Others,
    options::Options,
    report::{Compare, Figure, Goal, Report},
    sample::median,
    stores::{self, PAGE, SEALED_BYTES},
};

/// Entries of each of the many sessions.
const EACH: u32 = 1_000;

pub(crate) fn run(options: &Options) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &Options) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let many = options.pick(1_000, 20);
    let lengths = options.pick([10, 100_000], [10, 5_000]);
    let (sessions, mut long) = fill(&folder.path().join("store"), many, lengths).await?;
    let middle = sessions[sessions.len() / 2];
    let bare = bare(&folder.path().join("bare.db"), &sessions)?;
    let store = SqliteStore::open_in(&folder.path().join("store"), &SqliteOptions::default())?;
    let name = format!("last {PAGE} of a session, entries in all: {}", many * EACH as usize);
    let mut last = Figure::new(name, "us", "bare indexed query", Compare::Ratio).goal(Goal::AtMost(1.5));
    let flat = |what| {
        let name = format!("{what}, entries: {}", lengths[1]);
        Figure::new(name, "us", "the same with 10", Compare::Ratio).goal(Goal::AtMost(1.3))
    };
    let (mut appending, mut opening) = (flat("append"), flat("open"));
    let (mut others, time) = (Vec::new(), options.pick(Duration::from_secs(1), Duration::from_millis(100)));
    for _ in 0..options.rounds {
        let watch = Others::watch(&[])?;
        last.round(stores::page(&store, middle, time).await?, query(&bare, middle, time)?);
        let mut costs = Vec::new();
        for (id, head) in &mut long {
            costs.push(stores::cost(&store, *id, head, time).await?);
        }
        appending.round(costs[1].0, costs[0].0);
        opening.round(costs[1].1, costs[0].1);
        others.push(watch.cores()?);
    }
    store.close().await;
    let setup = "SQLite on this disk; the store's readers are threads of their own, the bare query is in this one";
    Ok(Report::new(setup, vec![last, appending, opening], others))
}

/// Sessions with their heads.
type Sessions = Vec<(SessionId, u64)>;

/// A store with many sessions and two of these lengths, written into its file while nobody has it open.
async fn fill(folder: &Path, many: usize, lengths: [u32; 2]) -> Result<(Vec<SessionId>, Sessions)> {
    let store = SqliteStore::open_in(folder, &SqliteOptions::default())?;
    let (mut sessions, mut long) = (Vec::with_capacity(many), Vec::new());
    for _ in 0..many {
        sessions.push(stores::new_session(&store).await?);
    }
    for entries in lengths {
        long.push((stores::new_session(&store).await?, u64::from(entries)));
    }
    store.close().await;
    let mut db = Connection::open(folder.join("chatbox.db"))?;
    let transaction = db.transaction()?;
    {
        let mut insert = transaction
            .prepare("INSERT INTO log (session_id, first_seq, count, append_id, sealed) VALUES (?1, ?2, 1, ?3, ?4)")?;
        let all = sessions.iter().map(|id| (*id, u64::from(EACH))).chain(long.iter().copied());
        for (id, entries) in all {
            for seq in 1..=i64::try_from(entries)? {
                insert.execute(params![id.as_bytes(), seq, rand::random::<[u8; 16]>(), [7_u8; SEALED_BYTES]])?;
            }
        }
    }
    transaction.commit()?;
    drop(db);
    let store = SqliteStore::open_in(folder, &SqliteOptions::default())?;
    for (id, entries) in &long {
        ensure!(store.replace_derived(*id, 0, stores::derived(*entries)).await?, "the session is new");
    }
    store.close().await;
    Ok((sessions, long))
}

/// The same entries of the many sessions with as little as a message needs.
fn bare(file: &Path, sessions: &[SessionId]) -> Result<Connection> {
    let mut db = Connection::open(file)?;
    db.pragma_update(None, "journal_mode", "wal")?;
    db.execute("CREATE TABLE log (session BLOB, seq INTEGER, sealed BLOB, PRIMARY KEY (session, seq)) STRICT", [])?;
    let transaction = db.transaction()?;
    {
        let mut insert = transaction.prepare("INSERT INTO log VALUES (?1, ?2, ?3)")?;
        for id in sessions {
            for seq in 1..=EACH {
                insert.execute(params![id.as_bytes(), seq, [7_u8; SEALED_BYTES]])?;
            }
        }
    }
    transaction.commit()?;
    Ok(db)
}

/// Microseconds for the last entries of a session, by the bare query.
fn query(db: &Connection, id: SessionId, time: Duration) -> Result<f64> {
    let mut statement = db.prepare("SELECT seq, sealed FROM log WHERE session = ?1 ORDER BY seq DESC LIMIT ?2")?;
    let (start, mut samples) = (Instant::now(), Vec::new());
    while start.elapsed() < time || samples.len() < 5 {
        let begin = Instant::now();
        let page: Vec<(i64, Vec<u8>)> = statement
            .query_map(params![id.as_bytes(), PAGE], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        ensure!(page.len() == PAGE as usize, "a page of {}", page.len());
        samples.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&samples))
}

//! What it costs to keep something: durable appends, and sealing before them.

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use aes_gcm::{
    Aes256Gcm, KeyInit as _, Nonce,
    aead::{AeadInOut as _, inout::InOutBuf},
};
use anyhow::{Result, ensure};
use chatbox_core::{
    domain::time::Timestamp,
    seal::{Field, KeyRing},
    store::{
        Append, Appended, Derived, NewSession, SessionStore as _, SlotRule,
        sqlite::{SqliteOptions, SqliteStore},
    },
};
use chatbox_proto::ids::SessionId;
use rusqlite::{Connection, params};

use crate::measure::{
    machine::Others,
    options::Options,
    repeat::nanos,
    report::{Compare, Figure, Goal, Report},
};

const WRITERS: [usize; 3] = [1, 16, 64];
/// A message of 200 bytes, sealed.
const SEALED_BYTES: usize = 229;
/// The folded state of a session, sealed.
const STATE_BYTES: usize = 300;

pub(crate) fn run(options: &Options) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let grouped = SqliteStore::open_in(&folder.path().join("grouped"), &SqliteOptions::default())?;
    let mut alone = SqliteOptions::default();
    alone.max_group = 1;
    let single = SqliteStore::open_in(&folder.path().join("single"), &alone)?;
    let mut bare = Bare::open(&folder.path().join("bare.db"))?;
    let mut figures: Vec<[Figure; 2]> = WRITERS.map(figures_of).into();
    let mut sealing = [200, 2_048].map(|bytes| {
        (bytes, Figure::new(format!("seal {bytes} B"), "ns", "aes-gcm in place, no nonce", Compare::Ratio))
    });
    let mut others = Vec::new();
    let time = options.pick(Duration::from_millis(400), Duration::from_millis(100));
    for round in 0..options.rounds {
        let watch = Others::watch(&[])?;
        for (writers, figures) in WRITERS.into_iter().zip(&mut figures) {
            let mut rates = [0.0; 4];
            for turn in 0..4 {
                let at = if round % 2 == 0 { turn } else { 3 - turn };
                rates[at] = match at {
                    0 => runtime.block_on(appends(&grouped, writers, time))?,
                    1 => runtime.block_on(appends(&single, writers, time))?,
                    2 => bare.inserts(1, time)?,
                    _ => bare.inserts(writers, time)?,
                };
            }
            let [grouped, single, one, together] = rates;
            figures[0].round(grouped, single);
            // With one writer there is nothing to put together.
            figures[1].round(grouped, if writers == 1 { one } else { together });
        }
        for (bytes, figure) in &mut sealing {
            let (product, reference) = seal(*bytes)?;
            figure.round(product, reference);
        }
        others.push(watch.cores()?);
    }
    runtime.block_on(async {
        grouped.close().await;
        single.close().await;
    });
    let setup = "durable appends/s of 200-byte messages, each of another session, on this disk; sealing with a key that is \
                 ready, ns per call";
    let figures = figures.into_iter().flatten().chain(sealing.into_iter().map(|(_, figure)| figure)).collect();
    Ok(Report::new(setup, figures, others))
}

fn figures_of(writers: usize) -> [Figure; 2] {
    let name = format!("appends/s, writers: {writers}");
    let single = Figure::new(name.clone(), "", "one commit each", Compare::Ratio);
    // A commit that holds all of them is the best there can be; a third of that is well grouped.
    let single = if writers == 64 { single.goal(Goal::AtLeast(25.0)) } else { single };
    [single, Figure::new(name, "", "bare rusqlite, all in one commit", Compare::Ratio)]
}

/// Appends per second of so many writers, each waiting for its own.
async fn appends(store: &SqliteStore, writers: usize, time: Duration) -> Result<f64> {
    let mut sessions = Vec::with_capacity(writers);
    for _ in 0..writers {
        let id = SessionId::generate();
        store.create_session(new_session(id)).await?;
        sessions.push(id);
    }
    let start = Instant::now();
    let mut done = 0_u32;
    let mut tasks = futures_util::stream::FuturesUnordered::new();
    for id in sessions {
        tasks.push(async move {
            let mut head = 0;
            while start.elapsed() < time {
                let appended = store.append(append(id, head)).await?;
                head += 1;
                ensure!(appended == Appended::Done(head), "another head: {appended:?}");
            }
            Ok(u32::try_from(head)?)
        });
    }
    while let Some(written) = futures_util::StreamExt::next(&mut tasks).await {
        done += written?;
    }
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}

fn new_session(id: SessionId) -> NewSession {
    NewSession {
        id,
        owner: id.to_string(),
        slot: SlotRule::First,
        wrapped_key: vec![7; 64],
        created_at: Timestamp::now(),
        request: None,
        derived: derived(0),
    }
}

fn append(session_id: SessionId, head: u64) -> Append {
    Append {
        session_id,
        append_id: rand::random(),
        expected_head: head,
        count: 1,
        sealed: vec![7; SEALED_BYTES],
        messages: Vec::new(),
        ends_session: false,
        takes_slot: None,
        derived: derived(head + 1),
        reply_started: None,
        reply_finished: None,
    }
}

fn derived(applied_seq: u64) -> Derived {
    let last_activity = Timestamp::now();
    Derived { applied_seq, state: vec![7; STATE_BYTES], last_activity, ended: false, unfinished: false }
}

/// The database below, with as little as a message needs.
struct Bare {
    db: Connection,
    number: i64,
}

impl Bare {
    fn open(path: &Path) -> Result<Self> {
        let db = Connection::open(path)?;
        db.pragma_update(None, "journal_mode", "wal")?;
        db.pragma_update(None, "synchronous", "full")?;
        db.execute("CREATE TABLE log (session BLOB, seq INTEGER, sealed BLOB, PRIMARY KEY (session, seq)) STRICT", [])?;
        Ok(Self { db, number: 0 })
    }

    /// Inserts per second, so many in each commit.
    fn inserts(&mut self, group: usize, time: Duration) -> Result<f64> {
        let start = Instant::now();
        let before = self.number;
        while start.elapsed() < time {
            let transaction = self.db.transaction()?;
            for _ in 0..group {
                self.number += 1;
                let session = rand::random::<[u8; 16]>();
                let mut insert = transaction.prepare_cached("INSERT INTO log VALUES (?1, ?2, ?3)")?;
                insert.execute(params![session, self.number, [7_u8; SEALED_BYTES]])?;
            }
            transaction.commit()?;
        }
        Ok((self.number - before) as f64 / start.elapsed().as_secs_f64())
    }
}

/// Nanoseconds for sealing so many bytes, and for the bare encryption of as many.
fn seal(bytes: usize) -> Result<(f64, f64)> {
    let text = vec![b'x'; bytes];
    let key = KeyRing::generate_key();
    let ring = KeyRing::from_config("k1", [("k1", key.as_str())])?;
    let session = SessionId::generate();
    let (data_key, _) = ring.new_data_key(session);
    let place = Field::Log { session, first_seq: 1, count: 1 };
    let cipher = Aes256Gcm::new(&[7; 32].into());
    let mut buffer = text.clone();
    let aad = [7; 37];
    let reference = || {
        let tag = cipher.encrypt_inout_detached(&Nonce::from([7; 12]), &aad, InOutBuf::from(&mut buffer[..]));
        debug_assert!(tag.is_ok());
        let _ = black_box(tag);
    };
    let product = || _ = black_box(data_key.seal(place, black_box(&text)));
    Ok(nanos(500, product, reference))
}

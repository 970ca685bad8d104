//! What it costs to keep something in MongoDB, and to read it, beside the bare driver on the same server.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chatbox_core::{
    domain::time::Timestamp,
    store::{
        Append, Appended, Derived, NewSession, SessionStore as _, SlotRule,
        mongo::{MongoOptions, MongoStore},
    },
};
use chatbox_proto::{ids::SessionId, token::Secret};
use chatbox_tests::harness::mongod::ReplicaSet;
use futures_util::stream::{FuturesUnordered, StreamExt as _, TryStreamExt as _};
use mongodb::{
    Client, Collection, Database,
    bson::{Binary, Document, doc, spec::BinarySubtype},
    options::{ReadConcern, WriteConcern},
};

use crate::measure::{
    machine::Others,
    options::Options,
    report::{Compare, Figure, Goal, Report},
    sample::median,
};

const WRITERS: [usize; 3] = [1, 64, 256];
/// A message of 200 bytes, sealed; and the folded state of a session.
const SEALED_BYTES: usize = 229;
const STATE_BYTES: usize = 300;
/// What a page of history shows.
const PAGE: u32 = 50;
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn run(options: &Options) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &Options) -> Result<Report> {
    let set = ReplicaSet::start(1).await?;
    let uri = set.uri("bench");
    let store = MongoOptions { uri: Secret::new(uri.clone()), call_timeout: CALL_TIMEOUT, pool_size: 32 };
    let store = MongoStore::open(&store).await?;
    let bare = Bare::open(&uri).await?;
    let sessions = options.pick(1_000, 20);
    let (page, twin) = bare.fill(sessions, 1_000).await?;
    let lengths = options.pick([10, 100_000], [10, 5_000]);
    let mut long = Vec::new();
    for entries in lengths {
        long.push((bare.session_of(&store, entries).await?, u64::from(entries)));
    }
    let mut appends = WRITERS.map(figure_of);
    let mut others = Vec::new();
    let mut last = Figure::new(
        format!("last {PAGE} of a session, entries in all: {}", sessions * 1_000),
        "us",
        "bare indexed find",
        Compare::Ratio,
    )
    .goal(Goal::AtMost(1.5));
    let flat = |what| Figure::new(format!("{what}, entries: {}", lengths[1]), "us", "the same with 10", Compare::Ratio);
    let (mut appending, mut opening) = (flat("append"), flat("open"));
    let time = options.pick(Duration::from_secs(2), Duration::from_millis(200));
    for round in 0..options.rounds {
        let watch = Others::watch(&[])?;
        for (writers, figure) in WRITERS.into_iter().zip(&mut appends) {
            let (product, reference) = if round % 2 == 0 {
                let product = store_appends(&store, writers, time).await?;
                (product, bare.inserts(writers, time).await?)
            } else {
                let reference = bare.inserts(writers, time).await?;
                (store_appends(&store, writers, time).await?, reference)
            };
            figure.round(product, reference);
        }
        last.round(store_page(&store, page, time).await?, bare.page(&twin, time).await?);
        let mut costs = Vec::new();
        for (id, head) in &mut long {
            costs.push(cost(&store, *id, head, time).await?);
        }
        appending.round(costs[1].0, costs[0].0);
        opening.round(costs[1].1, costs[0].1);
        others.push(watch.cores()?);
    }
    store.close().await;
    let setup = "MongoDB, a replica set of one node, with journal: acknowledged appends/s of 200-byte messages, each of \
                 another session, beside insert_one (w: majority, j: true); reads with read concern majority";
    let figures = appends.into_iter().chain([last, appending, opening]).collect();
    Ok(Report::new(setup, figures, others))
}

fn figure_of(writers: usize) -> Figure {
    let figure = Figure::new(format!("appends/s, writers: {writers}"), "", "bare insert_one", Compare::Ratio);
    // At one writer there is nothing to put together; it may cost a little.
    figure.goal(Goal::AtLeast(match writers {
        1 => 1.0 / 1.3,
        64 => 1.5,
        _ => 2.0,
    }))
}

async fn new_session(store: &MongoStore) -> Result<SessionId> {
    let id = SessionId::generate();
    let new = NewSession {
        id,
        owner: id.to_string(),
        slot: SlotRule::Unlimited,
        wrapped_key: vec![7; 64],
        created_at: Timestamp::now(),
        request: None,
        derived: derived(0),
    };
    store.create_session(new).await?;
    Ok(id)
}

fn derived(applied_seq: u64) -> Derived {
    let last_activity = Timestamp::now();
    Derived { applied_seq, state: vec![7; STATE_BYTES], last_activity, ended: false, unfinished: false }
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

/// Appends per second of so many writers, each waiting for its own.
async fn store_appends(store: &MongoStore, writers: usize, time: Duration) -> Result<f64> {
    let mut sessions = Vec::with_capacity(writers);
    for _ in 0..writers {
        sessions.push(new_session(store).await?);
    }
    let start = Instant::now();
    let mut tasks: FuturesUnordered<_> = sessions
        .into_iter()
        .map(|id| async move {
            let mut head = 0;
            while start.elapsed() < time {
                let appended = store.append(append(id, head)).await?;
                head += 1;
                ensure!(appended == Appended::Done(head), "another head: {appended:?}");
            }
            Ok(head)
        })
        .collect();
    let mut done = 0;
    while let Some(written) = tasks.next().await {
        done += written?;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

/// Median time of one call, in microseconds.
async fn micros<F: Future<Output = Result<()>>>(time: Duration, mut call: impl FnMut() -> F) -> Result<f64> {
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed() < time || samples.len() < 5 {
        let begin = Instant::now();
        call().await?;
        samples.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&samples))
}

async fn store_page(store: &MongoStore, id: SessionId, time: Duration) -> Result<f64> {
    micros(time, || async {
        let page = store.read_before(id, u64::MAX, PAGE).await?;
        ensure!(page.len() == PAGE as usize, "a page of {}", page.len());
        Ok(())
    })
    .await
}

/// An append to, and the opening of, a session of some length.
async fn cost(store: &MongoStore, id: SessionId, head: &mut u64, time: Duration) -> Result<(f64, f64)> {
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed() < time || samples.len() < 5 {
        let begin = Instant::now();
        ensure!(store.append(append(id, *head)).await? == Appended::Done(*head + 1), "another head");
        *head += 1;
        samples.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    let opening = micros(time, || async {
        let header = store.session(id).await?;
        let applied = header.map_or(0, |header| header.derived.applied_seq);
        ensure!(store.head(id).await? == *head && applied == *head, "another head");
        store.read_after(id, applied, 1_000).await?;
        Ok(())
    });
    Ok((median(&samples), opening.await?))
}

/// The driver alone, with as little as a message needs.
struct Bare {
    database: Database,
    log: Collection<Document>,
}

fn binary(bytes: &[u8]) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() }
}

impl Bare {
    async fn open(uri: &str) -> Result<Self> {
        let database = Client::with_uri_str(uri).await?.database("bench");
        let log = database.collection("bare");
        let index = doc! {
            "createIndexes": "bare",
            "indexes": [{ "name": "place", "key": { "session": 1, "seq": 1 }, "unique": true }],
        };
        database.run_command(index).await?;
        Ok(Self { database, log })
    }

    /// Inserts per second of so many writers, each waiting for its own.
    async fn inserts(&self, writers: usize, time: Duration) -> Result<f64> {
        let mut concern = WriteConcern::majority();
        concern.journal = Some(true);
        let start = Instant::now();
        let mut tasks: FuturesUnordered<_> = (0..writers)
            .map(|_| {
                let (session, concern) = (binary(&rand::random::<[u8; 16]>()), concern.clone());
                async move {
                    let mut seq = 0_i64;
                    while start.elapsed() < time {
                        seq += 1;
                        let document =
                            doc! { "session": session.clone(), "seq": seq, "sealed": binary(&[7; SEALED_BYTES]) };
                        self.log.insert_one(document).write_concern(concern.clone()).await?;
                    }
                    Result::<i64>::Ok(seq)
                }
            })
            .collect();
        let mut done = 0;
        while let Some(written) = tasks.next().await {
            done += written?;
        }
        Ok(done as f64 / start.elapsed().as_secs_f64())
    }

    /// As many sessions of so many entries, in the store's own log and in a twin; one in the middle of each.
    async fn fill(&self, sessions: usize, entries: u32) -> Result<(SessionId, Binary)> {
        let mut middle = SessionId::generate();
        for number in 0..sessions {
            let id = SessionId::generate();
            if number == sessions / 2 {
                middle = id;
            }
            self.fill_one(id, entries).await?;
            let session = binary(id.as_bytes());
            let twins = (1..=entries).map(|seq| {
                doc! { "session": session.clone(), "seq": i64::from(seq), "sealed": binary(&[7; SEALED_BYTES]) }
            });
            self.log.insert_many(twins).ordered(false).await?;
        }
        Ok((middle, binary(middle.as_bytes())))
    }

    /// Documents as the store writes them.
    async fn fill_one(&self, id: SessionId, entries: u32) -> Result<()> {
        let session = binary(id.as_bytes());
        let numbers: Vec<i64> = (1..=i64::from(entries)).collect();
        for part in numbers.chunks(5_000) {
            let documents = part.iter().map(|seq| {
                doc! {
                    "_id": binary(&rand::random::<[u8; 16]>()),
                    "session": session.clone(),
                    "first": seq,
                    "last": seq,
                    "sealed": binary(&[7; SEALED_BYTES]),
                }
            });
            self.database.collection::<Document>("log").insert_many(documents).ordered(false).await?;
        }
        Ok(())
    }

    /// A session of so many entries whose folded state is up to date.
    async fn session_of(&self, store: &MongoStore, entries: u32) -> Result<SessionId> {
        let id = new_session(store).await?;
        self.fill_one(id, entries).await?;
        ensure!(store.replace_derived(id, 0, derived(entries.into())).await?, "the session is new");
        Ok(id)
    }

    async fn page(&self, session: &Binary, time: Duration) -> Result<f64> {
        micros(time, || async {
            let find = self
                .log
                .find(doc! { "session": session.clone() })
                .sort(doc! { "seq": -1 })
                .limit(PAGE.into())
                .read_concern(ReadConcern::majority());
            let page: Vec<Document> = find.await?.try_collect().await?;
            ensure!(page.len() == PAGE as usize, "a page of {}", page.len());
            Ok(())
        })
        .await
    }
}

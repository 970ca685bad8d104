//! Two cores under random orders of events, over a bus that does whatever a bus may.

use std::{collections::BTreeMap, time::Duration};

use chatbox_proto::{
    ids::SessionId,
    v1::{self, chat_response::Event},
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::{
    fixture::{Client, Turn, patiently},
    shared::{Cluster, Losses, Seat},
};
use crate::session::Frame;

const STEPS: usize = 40;

/// What one client was shown, checked as it comes.
#[derive(Default)]
struct Record {
    entries: BTreeMap<u64, v1::Entry>,
    head: u64,
    running: Option<(String, String)>,
}

impl Record {
    fn take(&mut self, event: Event) {
        if let Event::Entry(entry) = event {
            assert_eq!(entry.seq, self.head + 1, "entries come in order, each once");
            self.head = entry.seq;
            if let Some(v1::entry::Kind::ReplyFinished(finished)) = &entry.kind {
                let shown = self.running.take().filter(|(id, _)| *id == finished.message_id);
                if let Some((_, shown)) = shown {
                    let streamed = finished.text.starts_with(&shown) || shown.starts_with(&finished.text);
                    assert!(streamed, "{shown:?} was shown of {:?}", finished.text);
                }
            }
            self.entries.insert(entry.seq, entry);
        } else if let Event::ReplySnapshot(snapshot) = event {
            assert_eq!(snapshot.offset, 0);
            self.running = Some((snapshot.message_id, snapshot.text));
        } else if let Event::ReplyDelta(delta) = event {
            let known = self.running.take().filter(|(id, _)| *id == delta.message_id);
            let (id, mut text) = known.unwrap_or((delta.message_id, String::new()));
            assert_eq!(delta.offset as usize, text.len(), "a delta goes on where the text ends");
            text.push_str(&delta.text);
            self.running = Some((id, text));
        }
    }

    fn terminals(&self) -> BTreeMap<&str, u32> {
        let mut terminals = BTreeMap::new();
        for entry in self.entries.values() {
            if let Some(v1::entry::Kind::ReplyFinished(finished)) = &entry.kind {
                *terminals.entry(finished.message_id.as_str()).or_default() += 1;
            }
        }
        terminals
    }
}

struct Run {
    random: SmallRng,
    seats: [Seat; 2],
    clients: Vec<(Client, Record)>,
    turns: Vec<Turn>,
    session: SessionId,
    sent: u32,
    stopped: Option<usize>,
}

impl Run {
    async fn begin(seed: u64) -> Self {
        let cluster = Cluster::new();
        let losses = Losses { lost: 20, doubled: 20, delayed: 20 };
        let seats = [cluster.core_with(seed, losses).await, cluster.core_with(seed + 1, losses).await];
        let mut first = seats[0].core.open("alice").await;
        let session = first.opened().await.session.unwrap().session_id.parse().unwrap();
        let second = seats[1].core.resume("alice", Some(session), Some(0), None).await.unwrap();
        let clients = vec![(first, Record::default()), (second, Record::default())];
        let random = SmallRng::seed_from_u64(seed);
        Self { random, seats, clients, turns: Vec::new(), session, sent: 0, stopped: None }
    }

    async fn step(&mut self) {
        self.collect_turns();
        let which = self.random.random_range(0..2);
        match self.random.random_range(0..100) {
            0..25 => {
                self.sent += 1;
                let (client, _) = &self.clients[which];
                client.post("s", client.message(&format!("m{}", self.sent), "text")).await;
            }
            25..60 => {
                if let Some(turn) = self.turns.last() {
                    let _ = turn.chunks.try_send(Ok(crate::llm::Chunk::Text("wörd ".into())));
                }
            }
            60..70 => {
                if let Some(turn) = self.turns.pop() {
                    let finish = crate::llm::Chunk::Finished(crate::domain::entry::FinishReason::Stop);
                    let _ = turn.chunks.try_send(Ok(finish));
                }
            }
            70..75 => {
                let (client, record) = &self.clients[which];
                if let Some((id, _)) = &record.running {
                    client.post("x", Frame::Stop(id.parse().unwrap())).await;
                }
            }
            75..78 if self.stopped.is_none() => {
                self.seats[which].stop();
                self.stopped = Some(which);
            }
            78..84 => {
                if let Some(which) = self.stopped.take() {
                    self.seats[which].go_on();
                }
            }
            _ => tokio::time::sleep(Duration::from_millis(self.random.random_range(1..4_000))).await,
        }
        self.read(Duration::from_millis(20)).await;
    }

    fn collect_turns(&mut self) {
        for seat in &self.seats {
            while let Ok(turn) = seat.core.turns.try_lock().unwrap().try_recv() {
                self.turns.push(turn);
            }
        }
        self.turns.retain(|turn| !turn.chunks.is_closed());
    }

    /// Takes what comes.
    async fn read(&mut self, patience: Duration) {
        for (client, record) in &mut self.clients {
            while let Ok(event) = tokio::time::timeout(patience, client.event()).await {
                record.take(event);
            }
        }
    }

    /// Lets everything end, and looks at what each client was shown.
    async fn settle(mut self, seed: u64) {
        if let Some(which) = self.stopped.take() {
            self.seats[which].go_on();
        }
        let settled = async {
            loop {
                self.collect_turns();
                for turn in self.turns.drain(..) {
                    let finish = crate::llm::Chunk::Finished(crate::domain::entry::FinishReason::Stop);
                    let _ = turn.chunks.try_send(Ok(finish));
                }
                self.read(Duration::from_millis(500)).await;
                let log = &self.clients[0].1;
                let started =
                    log.entries.values().filter(|entry| matches!(entry.kind, Some(v1::entry::Kind::ReplyStarted(_))));
                let done = started.count() == log.terminals().len();
                if done && log.head > 0 && log.head == self.clients[1].1.head {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(120), settled).await.unwrap_or_else(|_| panic!("seed {seed} settles"));
        let [(_, one), (_, two)] = &self.clients[..] else { unreachable!() };
        assert_eq!(one.entries, two.entries, "seed {seed}");
        assert!(one.terminals().values().all(|n| *n == 1), "seed {seed}");
        let mut answered: BTreeMap<String, u32> = BTreeMap::new();
        let mut messages = 0;
        for entry in one.entries.values() {
            match &entry.kind {
                Some(v1::entry::Kind::Message(_)) => messages += 1,
                Some(v1::entry::Kind::ReplyStarted(started)) => {
                    for id in &started.answers {
                        *answered.entry(id.clone()).or_default() += 1;
                    }
                }
                _ => {}
            }
        }
        assert_eq!(answered.len(), messages, "seed {seed}: each message is answered");
        assert!(answered.values().all(|n| *n == 1), "seed {seed}: by one reply");
        let head = self.seats[0].core.store.head(self.session).await.unwrap();
        assert_eq!(head, one.head, "seed {seed}: what was shown is what is stored");
        let [left, right] = self.seats;
        left.leave().await;
        right.leave().await;
    }
}

async fn run(seed: u64) {
    let mut run = Run::begin(seed).await;
    for _ in 0..STEPS {
        patiently("a step", run.step()).await;
    }
    run.settle(seed).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_both_cores_show_the_same_and_each_message_is_answered_once() {
    for seed in 0..12 {
        // Shown when it fails.
        eprintln!("seed {seed}");
        run(seed * 1_000).await;
    }
}

//! Messages through the whole system: browser, edge, core, store, and the acknowledgement back; beside the bare driver's
//! `insert_one` and bare SQLite with one commit per message.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use chatbox_proto::v1::{
    ChatRequest, ChatResponse,
    chat_request::{Frame, Send, Stop},
    chat_response::Event,
    entry::Kind,
};
use chatbox_tests::harness::{
    mongod::ReplicaSet,
    provider::{Provider, Script},
    ws::Encoding,
};
use prost::Message as _;

use crate::{
    measure::{
        load::Load,
        machine::{Others, Place},
        options::Options,
        product::{Product, Setup},
        report::{Compare, Figure, Goal, Report},
        sample::percentile,
    },
    mongo, store,
};

const SENDERS: [usize; 3] = [1, 64, 256];
/// When it is only about whether it works.
const QUICK: [usize; 3] = [1, 4, 16];
const TEXT_BYTES: usize = 200;
/// Messages while one reply runs: a provider that never says anything keeps it running, so that no further one starts. Then it is
/// stopped, which names them all as answered, and the next one begins.
const MESSAGES: usize = 32;
const PATIENCE: Duration = Duration::from_secs(30);

/// Which store, and what it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Under {
    Mongo,
    Sqlite,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (set, provider) = runtime.block_on(async {
        let provider = Provider::start().await?;
        provider.derive("bench", |_| Script::stream().hang());
        anyhow::Ok((ReplicaSet::start(1).await?, provider))
    })?;
    let bare = runtime.block_on(mongo::Bare::open(&set.uri("bare")))?;
    let folder = tempfile::tempdir()?;
    let mut file = store::Bare::open(&folder.path().join("bare.db"))?;
    let url = provider.base_url();
    let setup =
        Setup { model: Some(&url), core: "session.unanswered = 100", place: Place::Anywhere, ..Setup::default() };
    let (mut figures, mut others) = (Vec::new(), Vec::new());
    for under in [Under::Mongo, Under::Sqlite] {
        let uri = set.uri("sends");
        let product = Product::start_as(&Setup { store: (under == Under::Mongo).then_some(uri.as_str()), ..setup })?;
        let mut loads = Vec::new();
        for senders in options.pick(SENDERS, QUICK) {
            let mut load = Load::connect(product.peer(Encoding::Proto, &format!("s{senders}")), senders)?;
            let mut all: Vec<Sender> = (0..senders).map(|_| Sender::default()).collect();
            // One message each, with which their replies begin.
            drive(&mut load, &mut all, Duration::ZERO)?;
            load.idle(Duration::from_secs(1))?;
            loads.push((load, all, figures_of(under, senders)));
        }
        let time = options.pick(Duration::from_secs(2), Duration::from_secs(1));
        for round in 0..options.rounds {
            let watch = Others::watch(&product.pids())?;
            for (load, senders, figures) in &mut loads {
                let count = senders.len();
                let mut turns = [None, None];
                for turn in 0..2 {
                    let at = (turn + round) % 2;
                    turns[at] = Some(match (at, under) {
                        (0, _) => sends(load, senders, time)?,
                        (_, Under::Mongo) => {
                            let inserted = runtime.block_on(bare.inserts(count, time))?;
                            (inserted.rate, inserted.p50)
                        }
                        (_, Under::Sqlite) => {
                            let rate = file.inserts(1, time)?;
                            (rate, 1e6 / rate)
                        }
                    });
                }
                let [product, reference] = turns;
                let ((rate, p50), (bare_rate, bare_p50)) = product.zip(reference).context("both had their turn")?;
                figures[0].round(rate, bare_rate);
                figures[1].round(p50, bare_p50);
            }
            others.push(watch.cores()?);
        }
        figures.extend(loads.into_iter().flat_map(|(_, _, figures)| figures));
        product.check()?;
    }
    let setup = format!(
        "acknowledged messages of {TEXT_BYTES} bytes from browsers through edge, core and store; one reply is kept running and \
         stopped every {MESSAGES} messages; all processes on all cores; the reference for SQLite has one writer"
    );
    Ok(Report::new(setup, figures, others))
}

fn figures_of(under: Under, senders: usize) -> [Figure; 2] {
    let (store, reference) = match under {
        Under::Mongo => ("mongo", "bare insert_one"),
        Under::Sqlite => ("sqlite", "one commit per message"),
    };
    let rate = Figure::new(format!("{store}: sends/s, senders: {senders}"), "", reference, Compare::Ratio);
    let p50 = Figure::new(format!("{store}: p50, senders: {senders}"), "us", reference, Compare::Ratio);
    match (under, senders) {
        (Under::Mongo, 1) => [rate, p50.goal(Goal::AtMost(1.3))],
        (Under::Mongo, 64) => [rate.goal(Goal::AtLeast(1.5)), p50],
        (Under::Mongo, _) => [rate.goal(Goal::AtLeast(2.0)), p50],
        (Under::Sqlite, 64) => [rate.goal(Goal::AtLeast(20.0)), p50],
        (Under::Sqlite, _) => [rate, p50],
    }
}

/// One user, who sends a message when the one before is acknowledged.
#[derive(Debug, Default)]
struct Sender {
    messages: u64,
    /// Not yet answered by a reply.
    waiting: usize,
    reply: Option<String>,
    stopping: bool,
    sent: Option<Instant>,
}

impl Sender {
    fn next(&mut self) -> Vec<u8> {
        let stop = if self.waiting >= MESSAGES { self.reply.take() } else { None };
        self.stopping = stop.is_some();
        let frame = match stop {
            Some(message_id) => Frame::Stop(Stop { message_id }),
            None => {
                self.messages += 1;
                Frame::Send(Send {
                    client_message_id: self.messages.to_string(),
                    text: "x".repeat(TEXT_BYTES),
                    ..Send::default()
                })
            }
        };
        self.sent = Some(Instant::now());
        let request_id = format!("r{}", self.messages);
        crate::measure::frame::binary(&ChatRequest { request_id, frame: Some(frame) }.encode_to_vec())
    }

    /// Whether the frame in flight is answered by this event.
    fn hear(&mut self, event: Option<Event>) -> Result<bool> {
        match event {
            Some(Event::Ack(_)) => return Ok(true),
            Some(Event::Error(error)) => bail!("refused: {} {}", error.reason, error.message),
            Some(Event::Entry(entry)) => {
                if let Some(Kind::ReplyStarted(start)) = entry.kind {
                    self.reply = Some(start.message_id);
                }
            }
            _ => {}
        }
        Ok(false)
    }
}

/// Acknowledged messages a second, and microseconds of the middle one.
fn sends(load: &mut Load, senders: &mut [Sender], time: Duration) -> Result<(f64, f64)> {
    let (mut micros, elapsed) = drive(load, senders, time)?;
    ensure!(!micros.is_empty(), "none of {} senders had an acknowledgement within {time:?}", senders.len());
    Ok((micros.len() as f64 / elapsed.as_secs_f64(), percentile(&mut micros, 0.5)))
}

/// One message in flight of every sender, for so long and until all are answered: microseconds of each that was in time, and
/// when the last of them was.
fn drive(load: &mut Load, senders: &mut [Sender], time: Duration) -> Result<(Vec<f64>, Duration)> {
    let mut micros = Vec::new();
    let (start, mut elapsed) = (Instant::now(), Duration::ZERO);
    for (number, sender) in senders.iter_mut().enumerate() {
        load.send(number, &sender.next())?;
    }
    let mut in_flight = senders.len();
    let mut answered = VecDeque::new();
    while in_flight > 0 {
        load.receive(PATIENCE, |number, message| {
            if senders[number].hear(ChatResponse::decode(message)?.event)? {
                answered.push_back(number);
            }
            Ok(())
        })?;
        let now = Instant::now();
        ensure!(!answered.is_empty() || now < start + time + PATIENCE, "an answer is missing");
        let running = now.duration_since(start) < time;
        for number in answered.drain(..) {
            let sender = &mut senders[number];
            if sender.stopping {
                sender.waiting = 0;
            } else {
                sender.waiting += 1;
                if running {
                    micros.push(sender.sent.map_or(0.0, |sent| now.duration_since(sent).as_secs_f64() * 1e6));
                }
            }
            if running {
                load.send(number, &senders[number].next())?;
            } else {
                in_flight -= 1;
            }
        }
        if running {
            elapsed = now.duration_since(start);
        }
    }
    Ok((micros, elapsed))
}

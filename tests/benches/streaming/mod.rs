//! Deltas from a provider's socket to a thousand browsers, all at the same time. Beside it a bare echo with as many messages.

pub(crate) mod added;
mod direct;
pub(crate) mod many;
mod provider;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use chatbox_proto::v1::{
    ChatRequest, ChatResponse, FinishReason,
    chat_request::{Frame, Send},
    chat_response::Event,
    entry,
};
use chatbox_tests::harness::ws::Encoding;
use prost::Message as _;

use self::provider::{DELTA_BYTES, Provider};
use crate::measure::{
    echo::Echo,
    load::{Load, Wait},
    machine::{self, Others, Place},
    options::Options,
    peer::Peer,
    product::Product,
    report::{Compare, Figure, Goal, Report},
    sample::percentile,
};

/// Between two deltas of a reply: 50 a second.
const PERIOD: Duration = Duration::from_millis(20);
/// All replies have begun, or ended, within this time.
const PATIENCE: Duration = Duration::from_secs(60);
const MILLISECOND: Duration = Duration::from_millis(1);

/// One user in front of the screen.
#[derive(Debug, Default, Clone)]
struct Reader {
    /// Bytes of the reply so far.
    bytes: usize,
    finished: bool,
}

/// What came in one round.
#[derive(Debug, Default)]
struct Delivered {
    /// Milliseconds from the time a delta was due at the provider to its arrival.
    latencies: Vec<f64>,
    /// Frames that they came in: fewer when deltas were merged.
    frames: usize,
    /// Milliseconds that the provider sent them late: this side's own fault.
    lateness: Vec<f64>,
    elapsed: Duration,
    /// Of edge, core and this process.
    cpu: [Duration; 3],
}

#[derive(Debug)]
struct Bench {
    provider: Provider,
    product: Product,
    load: Load,
    readers: Vec<Reader>,
    rounds: usize,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    Place::Load.enter()?;
    let replies: u32 = options.pick(1_000, 100);
    let deltas = options.pick(150, 50);
    let rate = replies * 50;
    let echo = Echo::start()?;
    let mut reference = Load::connect(Peer::Echo(echo.address()), replies as usize)?;
    let mut bench = Bench::start(replies as usize, "")?;
    let mut p50 = Figure::new("delivery, p50", "ms", "echo", Compare::Difference);
    let mut p99 = Figure::new("delivery, p99", "ms", "echo", Compare::Alone).goal(Goal::AtMost(25.0));
    let wanted = f64::from(rate) * 0.99;
    let mut delivered = Figure::new("deltas/s", "", "echo", Compare::Alone).goal(Goal::AtLeast(wanted));
    let mut merged = Figure::new("deltas per frame", "", "", Compare::Alone);
    let mut cores = Figure::new("cores, edge and core", "", "echo", Compare::Ratio);
    let mut each = ["cores, edge", "cores, core", "cores, load"].map(|name| Figure::new(name, "", "", Compare::Alone));
    let mut late = Figure::new("deltas sent late, p99", "ms", "", Compare::Alone);
    let mut others = Vec::new();
    let ping = reference.peer().ping()?;
    let _warm_up = bench.round(deltas / 5)?;
    for round in 0..options.rounds {
        let watch = Others::watch(&[echo.pid(), bench.product.edge(), bench.product.core()])?;
        let mut echoed = None;
        let mut seen = None;
        for turn in 0..2 {
            if (turn + round) % 2 == 0 {
                let before = machine::cpu_time(echo.pid())?;
                let run = reference.open_loop(&ping, rate, PERIOD * deltas, Wait::Millisecond)?;
                echoed = Some((run, machine::cpu_time(echo.pid())?.saturating_sub(before)));
            } else {
                seen = Some(bench.round(deltas)?);
            }
        }
        others.push(watch.cores()?);
        let ((mut echoed, echo_cpu), mut seen) = echoed.zip(seen).context("both had their turn")?;
        p50.round(percentile(&mut seen.latencies, 0.5), percentile(&mut echoed.latencies, 0.5) / 1e3);
        p99.round(percentile(&mut seen.latencies, 0.99), percentile(&mut echoed.latencies, 0.99) / 1e3);
        let (time, echo_time) = (seen.elapsed.as_secs_f64(), echoed.elapsed.as_secs_f64());
        delivered.round(seen.latencies.len() as f64 / time, echoed.answers as f64 / echo_time);
        merged.alone(seen.latencies.len() as f64 / seen.frames as f64);
        let cpu = seen.cpu.map(|cpu| cpu.as_secs_f64() / time);
        cores.round(cpu[0] + cpu[1], echo_cpu.as_secs_f64() / echo_time);
        for (figure, cpu) in each.iter_mut().zip(cpu) {
            figure.alone(cpu);
        }
        late.alone(percentile(&mut seen.lateness, 0.99));
    }
    bench.product.check()?;
    let setup = format!(
        "{replies} replies at 50 deltas/s of {DELTA_BYTES} bytes, from a provider over HTTP; edge and core (or the echo) on \
         core 0, provider and browsers on core 1, each sending every millisecond what is due"
    );
    let figures = [p99, p50, delivered, merged, cores].into_iter().chain(each).chain([late]).collect();
    Ok(Report::new(setup, figures, others))
}

impl Bench {
    /// A product with so many connections; `limits` are further ones of core.
    fn start(replies: usize, limits: &str) -> Result<Self> {
        let provider = Provider::start()?;
        let product = Product::start_with(Some(&format!("http://{}/v1", provider.address()?)), limits)?;
        let load = Load::connect(product.peer(Encoding::Proto, "s"), replies)?;
        Ok(Self { provider, product, load, readers: Vec::new(), rounds: 0 })
    }

    /// Everybody asks, everybody gets so many deltas.
    fn round(&mut self, deltas: u32) -> Result<Delivered> {
        self.begin(self.load.len());
        let answering = self.ask()?;
        let mut delivered = Delivered::default();
        let before = self.cpu()?;
        // Replies are spread evenly over the time between two deltas.
        let count = u32::try_from(answering.len())?;
        let start = Instant::now() + MILLISECOND;
        let due = |number: u32| start + PERIOD * (number / count) + PERIOD * (number % count) / count;
        let mut sent = 0;
        while sent < count * deltas {
            while sent < count * deltas && due(sent) <= Instant::now() {
                delivered.lateness.push(due(sent).elapsed().as_secs_f64() * 1e3);
                self.provider.delta(answering[(sent % count) as usize], due(sent))?;
                sent += 1;
            }
            self.receive(MILLISECOND, &mut delivered)?;
        }
        let wanted = (count * deltas) as usize;
        while delivered.latencies.len() < wanted {
            ensure!(start.elapsed() < PERIOD * deltas + PATIENCE, "deltas are missing");
            self.receive(MILLISECOND, &mut delivered)?;
        }
        delivered.elapsed = start.elapsed();
        let after = self.cpu()?;
        delivered.cpu = [0, 1, 2].map(|at| after[at].saturating_sub(before[at]));
        for number in answering {
            self.provider.finish(number)?;
        }
        self.finished()?;
        let bytes = deltas as usize * DELTA_BYTES;
        ensure!(self.readers.iter().all(|reader| reader.bytes == bytes), "a reply has too little or too much text");
        Ok(delivered)
    }

    /// Another round, for so many readers.
    fn begin(&mut self, readers: usize) {
        self.rounds += 1;
        self.readers = vec![Reader::default(); readers];
    }

    /// Waits until every reply has ended.
    fn finished(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !self.readers.iter().all(|reader| reader.finished) {
            ensure!(Instant::now() < end, "replies did not end");
            self.provider.serve(Duration::ZERO)?;
            self.receive(MILLISECOND, &mut Delivered::default())?;
        }
        Ok(())
    }

    /// The message of this round, as a frame.
    fn question(&self) -> Result<Vec<u8>> {
        let send = Send {
            client_message_id: format!("m{}", self.rounds),
            text: "Tell me what time it is.".to_owned(),
            file_ids: Vec::new(),
        };
        let request = ChatRequest { request_id: String::new(), frame: Some(Frame::Send(send)) };
        self.load.peer().frame(&request).context("the product takes frames")
    }

    /// Everybody sends a message; returns when the provider has all questions.
    fn ask(&mut self) -> Result<Vec<usize>> {
        let frame = self.question()?;
        for connection in 0..self.load.len() {
            self.load.send(connection, &frame)?;
        }
        let end = Instant::now() + PATIENCE;
        let mut before = Delivered::default();
        loop {
            self.provider.serve(MILLISECOND)?;
            self.receive(MILLISECOND, &mut before)?;
            let answering = self.provider.answering();
            if answering.len() == self.load.len() {
                return Ok(answering);
            }
            ensure!(Instant::now() < end, "the provider has {} of {} questions", answering.len(), self.load.len());
        }
    }

    /// Reads what has come, waiting at most so long for it.
    fn receive(&mut self, wait: Duration, delivered: &mut Delivered) -> Result<()> {
        let Self { load, readers, provider, .. } = self;
        load.receive(wait, |connection, message| {
            let reader = &mut readers[connection];
            match ChatResponse::decode(message)?.event {
                Some(Event::ReplyDelta(delta)) => {
                    ensure!(delta.offset as usize == reader.bytes, "a delta does not follow the one before it");
                    let now = provider.elapsed(Instant::now());
                    for stamp in delta.text.as_bytes().chunks(DELTA_BYTES) {
                        let due = Duration::from_nanos(std::str::from_utf8(stamp)?.parse()?);
                        delivered.latencies.push(now.saturating_sub(due).as_secs_f64() * 1e3);
                    }
                    delivered.frames += 1;
                    reader.bytes += delta.text.len();
                }
                Some(Event::Entry(entry)) => {
                    if let Some(entry::Kind::ReplyFinished(finished)) = entry.kind {
                        ensure!(
                            finished.finish_reason() == FinishReason::Stop,
                            "ended: {:?}",
                            finished.finish_reason()
                        );
                        ensure!(finished.text.len() == reader.bytes, "the stored text is not what was streamed");
                        reader.finished = true;
                    }
                }
                Some(Event::Error(error)) => bail!("the product reports {error:?}"),
                _ => {}
            }
            Ok(())
        })
    }

    fn cpu(&self) -> Result<[Duration; 3]> {
        let cpu_time = machine::cpu_time;
        Ok([cpu_time(self.product.edge())?, cpu_time(self.product.core())?, cpu_time(std::process::id())?])
    }
}

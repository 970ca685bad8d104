//! The way of a frame: browser, edge, core, edge, browser. Beside it a bare echo, which is one read and one write.

use std::time::Duration;

use anyhow::Result;
use chatbox_tests::harness::ws::Encoding;

use crate::measure::{
    echo::Echo,
    load::{Load, Seen, Wait},
    machine::{self, Others, Place},
    options::Options,
    peer::Peer,
    product::Product,
    report::{Compare, Figure, Goal, Report},
    sample::percentile,
};

const CONNECTIONS: usize = 100;
/// Frames per second of the open loop.
const RATE: u32 = 5_000;
const ECHO: &str = "echo";

/// What one peer did in one round.
struct Round {
    /// Microseconds of CPU time per frame, closed loop.
    cpu: f64,
    frames_per_second: f64,
    closed: Quantiles,
    open: Quantiles,
    lateness: f64,
}

struct Quantiles {
    p50: f64,
    p99: f64,
}

impl Quantiles {
    fn of(seen: &mut Seen) -> Self {
        Self { p50: percentile(&mut seen.latencies, 0.5), p99: percentile(&mut seen.latencies, 0.99) }
    }
}

/// The figures of one encoding.
struct Figures {
    cpu: Figure,
    throughput: Figure,
    closed: [Figure; 2],
    open: [Figure; 2],
}

impl Figures {
    fn new(encoding: &str, cpu: f64) -> Self {
        let figure = |name: &str, unit, compare| Figure::new(format!("{encoding}: {name}"), unit, ECHO, compare);
        Self {
            cpu: figure("CPU per frame", "us", Compare::Ratio).goal(Goal::AtMost(cpu)),
            throughput: figure("frames/s, closed loop", "", Compare::Ratio),
            closed: ["p50, closed loop", "p99, closed loop"].map(|name| figure(name, "us", Compare::Ratio)),
            open: [
                figure("p50 at 5,000 frames/s", "us", Compare::Difference).goal(Goal::AtMost(60.0)),
                figure("p99 at 5,000 frames/s", "us", Compare::Difference),
            ],
        }
    }

    fn round(&mut self, product: &Round, echo: &Round) {
        self.cpu.round(product.cpu, echo.cpu);
        self.throughput.round(product.frames_per_second, echo.frames_per_second);
        for (figures, product, echo) in
            [(&mut self.closed, &product.closed, &echo.closed), (&mut self.open, &product.open, &echo.open)]
        {
            figures[0].round(product.p50, echo.p50);
            figures[1].round(product.p99, echo.p99);
        }
    }

    fn all(self) -> impl Iterator<Item = Figure> {
        [self.cpu, self.throughput].into_iter().chain(self.closed).chain(self.open)
    }
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    Place::Load.enter()?;
    let (echo, product) = (Echo::start()?, Product::start(None)?);
    let mut peers = [
        (Load::connect(Peer::Echo(echo.address()), CONNECTIONS)?, vec![echo.pid()]),
        (Load::connect(product.peer(Encoding::Proto, "p"), CONNECTIONS)?, vec![product.edge(), product.core()]),
        (Load::connect(product.peer(Encoding::Json, "j"), CONNECTIONS)?, vec![product.edge(), product.core()]),
    ];
    let mut figures = [Figures::new("binary", 3.0), Figures::new("JSON", 3.5)];
    let mut late = Figure::new("frames sent late, p99", "us", "", Compare::Alone);
    let mut others = Vec::new();
    for round in 0..options.rounds {
        let watch = Others::watch(&[echo.pid(), product.edge(), product.core()])?;
        let mut results = [const { None }; 3];
        // Who comes first changes every round.
        for turn in 0..3 {
            let at = if round % 2 == 0 { turn } else { 2 - turn };
            let (load, pids) = &mut peers[at];
            results[at] = Some(measure(load, pids, options)?);
        }
        others.push(watch.cores()?);
        if let [Some(echo), Some(binary), Some(json)] = &results {
            figures[0].round(binary, echo);
            figures[1].round(json, echo);
            late.alone(echo.lateness.max(binary.lateness).max(json.lateness));
        }
    }
    product.check()?;
    let [binary, json] = figures;
    let figures = binary.all().chain(json.all()).chain([late]).collect();
    let setup = "200-byte frames, 100 connections, edge and core (or the echo) on core 0, load on core 1; answers of the \
                 product are acks of 36 bytes (JSON 56)";
    Ok(Report::new(setup, figures, others))
}

fn measure(load: &mut Load, pids: &[u32], options: &Options) -> Result<Round> {
    let frame = load.peer().ping()?;
    load.closed_loop(&frame, options.pick(Duration::from_millis(200), Duration::from_millis(50)))?;
    let before = cpu_time(pids)?;
    let mut closed = load.closed_loop(&frame, options.pick(Duration::from_millis(900), Duration::from_millis(200)))?;
    let cpu = cpu_time(pids)?.saturating_sub(before);
    let time = options.pick(Duration::from_millis(900), Duration::from_millis(200));
    let mut open = load.open_loop(&frame, RATE, time, Wait::Spin)?;
    Ok(Round {
        // The last answer of each connection came after the time, and was paid for.
        cpu: cpu.as_secs_f64() * 1e6 / (closed.answers + load.len()) as f64,
        frames_per_second: closed.answers as f64 / closed.elapsed.as_secs_f64(),
        closed: Quantiles::of(&mut closed),
        open: Quantiles::of(&mut open),
        lateness: percentile(&mut open.lateness, 0.99),
    })
}

fn cpu_time(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| machine::cpu_time(*pid)).sum()
}

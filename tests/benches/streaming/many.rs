//! How many replies at the same time, and what a delta costs: each on its own, and in the overload mode that merges for
//! 40 ms.

use std::time::Duration;

use anyhow::Result;

use super::Bench;
use crate::measure::{
    machine::{Others, Place},
    options::Options,
    report::{Compare, Figure, Goal, Report},
    sample::percentile,
};

/// The overload mode.
const MERGED: &str = "merge_deltas = \"40ms\"\n";

/// Later than this a delta is late.
const LATE_MS: f64 = 50.0;

pub(crate) fn run(options: &Options) -> Result<Report> {
    Place::Load.enter()?;
    let replies = options.pick(1_000, 50);
    let deltas = options.pick(150, 50);
    let (step, most) = options.pick((250, 4_000), (50, 150));
    let mut singly = Bench::start(replies, "")?;
    let mut merged = Bench::start(replies, MERGED)?;
    let mut cpu = [
        Figure::new("CPU of a delta, singly", "us", "", Compare::Alone).goal(Goal::AtMost(12.0)),
        Figure::new("CPU of a delta, merged for 40 ms", "us", "", Compare::Alone).goal(Goal::AtMost(7.0)),
    ];
    let mut frames =
        ["deltas per frame, singly", "deltas per frame, merged"].map(|name| Figure::new(name, "", "", Compare::Alone));
    let mut delay =
        ["delivery, p99, singly", "delivery, p99, merged"].map(|name| Figure::new(name, "ms", "", Compare::Alone));
    let mut others = Vec::new();
    for round in 0..options.rounds {
        let pids = [&singly, &merged].map(|bench| [bench.product.edge(), bench.product.core()]).concat();
        let watch = Others::watch(&pids)?;
        for turn in 0..2 {
            let at = (turn + round) % 2;
            let bench = if at == 0 { &mut singly } else { &mut merged };
            let mut seen = bench.round(deltas)?;
            let spent: Duration = seen.cpu[..2].iter().sum();
            cpu[at].alone(spent.as_secs_f64() * 1e6 / seen.latencies.len() as f64);
            frames[at].alone(seen.latencies.len() as f64 / seen.frames as f64);
            delay[at].alone(percentile(&mut seen.latencies, 0.99));
        }
        others.push(watch.cores()?);
    }
    merged.product.check()?;
    drop(merged);
    let mut reached =
        Figure::new("replies at once, p99 within 50 ms", "", "", Compare::Alone).goal(Goal::AtLeast(1_500.0));
    let mut late = Figure::new("deltas sent late beyond that, p99", "ms", "", Compare::Alone);
    let mut count = 0;
    loop {
        let next = singly.load.len();
        let mut seen = singly.round(deltas)?;
        if percentile(&mut seen.latencies, 0.99) > LATE_MS || next >= most {
            late.alone(percentile(&mut seen.lateness, 0.99));
            break;
        }
        count = next;
        singly.load.add(step)?;
    }
    reached.alone(count as f64);
    singly.product.check()?;
    let setup = format!(
        "{replies} replies at 50 deltas/s, CPU of edge and core together; then {step} more at a time until the p99 of delivery \
         passes 50 ms; edge and core on core 0, provider and browsers on core 1"
    );
    let figures = cpu.into_iter().chain(frames).chain(delay).chain([reached, late]).collect();
    Ok(Report::new(setup, figures, others))
}

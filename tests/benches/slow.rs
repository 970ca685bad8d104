//! A browser that asks and does not read, among a thousand that do: what it costs the others.

use std::{
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use chatbox_tests::harness::ws::Encoding;

use crate::measure::{
    load::{Load, Wait, open_one},
    machine::{Others, Place},
    options::Options,
    peer::Peer,
    product::Product,
    report::{Compare, Figure, Goal, Report},
    sample::percentile,
};

/// Frames per second of all the others together.
const RATE: u32 = 5_000;

pub(crate) fn run(options: &Options) -> Result<Report> {
    Place::Load.enter()?;
    let product = Product::start(None)?;
    let mut load = Load::connect(product.peer(Encoding::Proto, "o"), options.pick(1_000, 50))?;
    let ping = load.peer().ping()?;
    let time = options.pick(Duration::from_secs(3), Duration::from_millis(500));
    let mut p99 = Figure::new("p99 beside a slow reader", "us", "without", Compare::Ratio).goal(Goal::AtMost(1.5));
    let mut p50 = Figure::new("p50 beside a slow reader", "us", "without", Compare::Ratio);
    let mut others = Vec::new();
    load.open_loop(&ping, RATE, time / 3, Wait::Spin)?;
    for _ in 0..options.rounds {
        let watch = Others::watch(&product.pids())?;
        let mut before = load.open_loop(&ping, RATE, time, Wait::Spin)?.latencies;
        let (slow, end) = (product.peer(Encoding::Proto, "slow"), AtomicBool::new(false));
        let mut beside = thread::scope(|scope| {
            let flood = scope.spawn(|| flood(&slow, &end));
            let seen = load.open_loop(&ping, RATE, time, Wait::Spin);
            end.store(true, Ordering::Relaxed);
            flood.join().ok().context("the slow reader")??;
            seen
        })?
        .latencies;
        p99.round(percentile(&mut beside, 0.99), percentile(&mut before, 0.99));
        p50.round(percentile(&mut beside, 0.5), percentile(&mut before, 0.5));
        others.push(watch.cores()?);
    }
    let setup = format!(
        "{} browsers, {RATE} frames/s in all, and one more that writes as fast as it is let and reads nothing",
        load.len()
    );
    Ok(Report::new(setup, vec![p99, p50], others))
}

/// Asks for answers that it does not read; begins again when it is closed for that.
fn flood(peer: &Peer, end: &AtomicBool) -> Result<()> {
    let frames = peer.ping()?.repeat(64);
    while !end.load(Ordering::Relaxed) {
        let mut stream = open_one(peer, 0)?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        while !end.load(Ordering::Relaxed) {
            match stream.write(&frames) {
                // Held back: that is what it is here for.
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(_) => break,
                Ok(_) => {}
            }
        }
    }
    Ok(())
}

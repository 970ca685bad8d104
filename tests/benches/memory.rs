//! What an open, idle, authenticated connection with a session of its own keeps resident.

use std::time::Duration;

use anyhow::Result;
use chatbox_tests::harness::ws::Encoding;

use crate::measure::{
    echo::Echo,
    load::Load,
    machine::{Others, Place, resident},
    options::Options,
    peer::Peer,
    product::Product,
    report::{Compare, Figure, Goal, Report},
};

/// Connections before the first look: what the first ones cost, the process keeps and does not need again.
const FIRST: usize = 100;
const ECHO: &str = "echo";

pub(crate) fn run(options: &Options) -> Result<Report> {
    Place::Load.enter()?;
    // Each is a file of the edge and one of this process, of 20,000 that a process may commonly have.
    let connections = options.pick(9_000, 1_000);
    // Memory is no matter of luck: fewer rounds than for times tell as much.
    let rounds = options.rounds.min(2);
    let mut edge = Figure::new("edge", "B", ECHO, Compare::Ratio);
    let mut core = Figure::new("core", "B", "", Compare::Alone);
    let mut both = Figure::new("edge and core", "B", ECHO, Compare::Alone).goal(Goal::AtMost(24_000.0));
    let mut others = Vec::new();
    for _ in 0..rounds {
        let watch = Others::watch(&[])?;
        let reference = {
            let echo = Echo::start()?;
            per_connection(Peer::Echo(echo.address()), &[echo.pid()], connections)?[0]
        };
        let product = Product::start(None)?;
        let pids = [product.edge(), product.core()];
        let used = per_connection(product.peer(Encoding::Json, "m"), &pids, connections)?;
        product.check()?;
        edge.round(used[0], reference);
        core.alone(used[1]);
        both.round(used[0] + used[1], reference);
        others.push(watch.cores()?);
    }
    let setup = format!("resident bytes per connection, {connections} connections after the first {FIRST}");
    Ok(Report::new(setup, vec![edge, core, both], others))
}

/// Bytes that each of these processes keeps for one connection.
fn per_connection(peer: Peer, pids: &[u32], connections: usize) -> Result<Vec<f64>> {
    let mut load = Load::connect(peer, FIRST)?;
    let settle = Duration::from_secs(1);
    load.idle(settle)?;
    let before = resident_of(pids)?;
    load.add(connections)?;
    load.idle(settle)?;
    let after = resident_of(pids)?;
    let per_connection = |(before, after): (u64, u64)| after.saturating_sub(before) as f64 / connections as f64;
    Ok(before.into_iter().zip(after).map(per_connection).collect())
}

fn resident_of(pids: &[u32]) -> Result<Vec<u64>> {
    pids.iter().map(|pid| resident(*pid)).collect()
}

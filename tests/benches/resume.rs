//! What browsers see of a core's death: how long until each of many knows where it stands. Nobody's socket closes.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use chatbox_tests::harness::{mongod::ReplicaSet, ports::free_port, process::Process, tools::tool, ws::Encoding};

use crate::measure::{
    load::Load,
    machine::{Others, Place},
    options::Options,
    peer::Kind,
    product::{Product, Setup},
    report::{Compare, Figure, Report},
    sample::percentile,
};

/// The edge gives up after 30 s.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(options: &Options) -> Result<Report> {
    let clients = options.pick(5_000, 200);
    let names = ["p50", "p99", "last"];
    let figures = |what: &str| names.map(|name| Figure::new(format!("{what}: {name}"), "ms", "", Compare::Alone));
    let (mut again, mut elsewhere) = (figures("the same core again, SQLite"), figures("another core, MongoDB"));
    let mut others = Vec::new();
    let rounds = options.rounds.min(5);

    let mut product = Product::start_as(&Setup { place: Place::Anywhere, ..Setup::default() })?;
    let mut load = Load::connect(product.peer(Encoding::Proto, "r"), clients)?;
    for _ in 0..rounds {
        settle(&mut load)?;
        let watch = Others::watch(&[product.edge()])?;
        product.kill_core(0)?;
        let died = Instant::now();
        product.start_core(0, false)?;
        record(&mut again, verdicts(&mut load, died)?);
        others.push(watch.cores()?);
    }
    drop((load, product));

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let set = runtime.block_on(ReplicaSet::start(1))?;
    let folder = tempfile::tempdir()?;
    let bus = free_port()?;
    let mut command = Command::new(tool("bin/nats-server")?);
    command.args(["--addr", &bus.ip().to_string(), "--port", &bus.port().to_string()]);
    let _nats = Process::start("nats-server", command, &folder.path().join("nats.log"))?;
    let (store, core) = (set.uri("resume"), format!("bus.url = \"nats://{bus}\""));
    let setup = Setup { store: Some(&store), core: &core, cores: 2, place: Place::Anywhere, ..Setup::default() };
    let mut product = Product::start_as(&setup)?;
    let mut load = Load::connect(product.peer(Encoding::Proto, "r"), clients)?;
    for round in 0..rounds {
        let (dies, stays) = (round % 2, (round + 1) % 2);
        product.start_core(stays, true)?;
        settle(&mut load)?;
        let watch = Others::watch(&[product.edge()])?;
        product.kill_core(dies)?;
        record(&mut elsewhere, verdicts(&mut load, Instant::now())?);
        others.push(watch.cores()?);
    }
    let setup = format!(
        "{clients} browsers with a session each on one core, which is killed: until each has an answer to what it asked \
         right afterwards, on the socket it had; one that is lost or refused ends the run"
    );
    Ok(Report::new(setup, again.into_iter().chain(elsewhere).collect(), others))
}

/// All are served.
fn settle(load: &mut Load) -> Result<()> {
    let ping = load.peer().ping()?;
    load.closed_loop(&ping, Duration::ZERO)?;
    load.idle(Duration::from_secs(2))
}

/// Milliseconds from the death until each has an answer.
fn verdicts(load: &mut Load, died: Instant) -> Result<Vec<f64>> {
    let ping = load.peer().ping()?;
    for number in 0..load.len() {
        load.send(number, &ping)?;
    }
    let mut at = vec![None; load.len()];
    let mut missing = load.len();
    let encoded = load.peer().clone();
    while missing > 0 {
        load.receive(Duration::from_secs(1), |number, message| {
            match encoded.kind(message) {
                Kind::Answer if at[number].is_none() => {
                    at[number] = Some(died.elapsed().as_secs_f64() * 1e3);
                    missing -= 1;
                }
                Kind::Failed => bail!("browser {number} was refused"),
                Kind::Answer | Kind::Ready | Kind::Other => {}
            }
            Ok(())
        })?;
        ensure!(died.elapsed() < PATIENCE, "{missing} of {} have no answer", load.len());
    }
    Ok(at.into_iter().flatten().collect())
}

fn record(figures: &mut [Figure; 3], mut verdicts: Vec<f64>) {
    for (figure, share) in figures.iter_mut().zip([0.5, 0.99, 1.0]) {
        figure.alone(percentile(&mut verdicts, share));
    }
}

//! The product's own processes, whatever their store is: cores, an edge, and a network from the edge to each core.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::{
    Doors,
    files::{self, Listens, Program},
    pause,
};
use crate::{
    checker::{
        faults::{Fault, Trouble, Victim},
        faulty, plan,
    },
    harness::{http::client, ports::free_port, process::Process, provider::Provider, proxy::Proxy, wait::LIMIT},
};

/// Lines of a log in a report.
const TAIL: usize = 40;

/// A program that runs.
#[derive(Debug)]
struct Running {
    program: Program,
    process: Process,
    /// Where it says that it is ready.
    readiness: String,
}

impl Running {
    fn start(program: Program, readiness: String) -> Result<Self> {
        Ok(Self { process: program.start()?, program, readiness })
    }

    fn again(&mut self) -> Result<()> {
        self.process = self.program.start()?;
        Ok(())
    }

    /// Asks it to leave and insists on a clean end.
    async fn drained(&mut self) -> Result<()> {
        let status = self.process.terminate(LIMIT).await?;
        let name = &self.program.name;
        ensure!(status.success(), "{name} drained and ended with {status}:\n{}", self.tail());
        Ok(())
    }

    fn tail(&self) -> String {
        let log = self.process.log();
        let lines: Vec<&str> = log.lines().collect();
        format!("{}:\n{}", self.program.name, lines[lines.len().saturating_sub(TAIL)..].join("\n"))
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Fleet {
    cores: Vec<Running>,
    edge: Running,
    networks: Vec<Proxy>,
    doors: Doors,
    fallen: Vec<Fault>,
    _provider: Provider,
}

/// What the cores of a fleet are.
pub(super) struct Cores<'a> {
    pub(super) count: usize,
    pub(super) binary: &'a str,
    pub(super) vars: Vec<(String, String)>,
    /// Their lines about store, bus and what else is theirs.
    pub(super) settings: &'a str,
    pub(super) key: &'a str,
}

impl Fleet {
    /// Starts everything, with settings, data and logs in `folder`.
    pub(super) async fn start(folder: &Path, cores: Cores<'_>) -> Result<Self> {
        let provider = Provider::start().await?;
        provider.derive("m", plan::answer);
        let (mut running, mut networks, mut doors) = (Vec::new(), Vec::new(), Doors::default());
        for number in 0..cores.count {
            let listens = Listens { main: free_port()?, metrics: free_port()? };
            let settings = files::core(listens, cores.settings, cores.key, &provider.base_url());
            let mut program = Program::new(&format!("core-{number}"), cores.binary, folder, &settings)?;
            program.vars.clone_from(&cores.vars);
            running.push(Running::start(program, format!("http://{}/readyz", listens.metrics))?);
            networks.push(Proxy::start(listens.main).await?);
            doors.grpc.push(listens.main);
        }
        let listens = Listens { main: free_port()?, metrics: free_port()? };
        let seen: Vec<_> = networks.iter().map(Proxy::address).collect();
        let program = Program::new("edge", "chatbox-edge", folder, &files::edge(listens, &seen))?;
        let edge = Running::start(program, format!("http://{}/chatbox/readyz", listens.main))?;
        doors.http.push(listens.main);
        Ok(Self { cores: running, edge, networks, doors, fallen: Vec::new(), _provider: provider })
    }

    pub(super) fn doors(&self) -> Doors {
        self.doors.clone()
    }

    fn victims(&mut self, victim: Victim) -> Vec<&mut Running> {
        match victim {
            Victim::Core(number) => self.cores.get_mut(number).into_iter().collect(),
            Victim::Edge => vec![&mut self.edge],
            Victim::Both => self.cores.iter_mut().chain([&mut self.edge]).collect(),
        }
    }

    pub(super) async fn kill(&mut self, victim: Victim, down: Duration) -> Result<()> {
        for running in self.victims(victim) {
            running.process.kill()?;
        }
        pause(down).await;
        self.victims(victim).into_iter().try_for_each(Running::again)
    }

    pub(super) async fn drain(&mut self, victim: Victim) -> Result<()> {
        for running in self.victims(victim) {
            running.drained().await?;
            running.again()?;
        }
        Ok(())
    }

    pub(super) async fn freeze(&mut self, victim: Victim, lasts: Duration) -> Result<()> {
        for running in self.victims(victim) {
            running.process.signal(Signal::STOP)?;
        }
        pause(lasts).await;
        self.victims(victim).into_iter().try_for_each(|running| running.process.signal(Signal::CONT))
    }

    /// Trouble on the way from the edge to a core.
    pub(super) async fn trouble(&self, core: usize, trouble: Trouble, lasts: Duration) -> Result<()> {
        super::trouble(self.networks.get(core).context("a core")?, trouble, lasts).await;
        Ok(())
    }

    /// Starts again what has ended by itself.
    fn raise(&mut self) -> Result<()> {
        ensure!(self.fallen.len() < 3, "processes end by themselves:\n{}", self.logs());
        for (number, core) in self.cores.iter_mut().enumerate() {
            if core.process.exited()?.is_some() {
                // A failpoint ends one life; the next one must not end there too.
                core.program.vars.retain(|(name, _)| name != faulty::ABORT);
                core.again()?;
                self.fallen.push(Fault::Fell(Victim::Core(number)));
            }
        }
        if self.edge.process.exited()?.is_some() {
            self.edge.again()?;
            self.fallen.push(Fault::Fell(Victim::Edge));
        }
        Ok(())
    }

    pub(super) fn fallen(&mut self) -> Result<Vec<Fault>> {
        self.raise()?;
        Ok(std::mem::take(&mut self.fallen))
    }

    pub(super) async fn ready(&mut self) -> Result<()> {
        let http = client();
        let all: Vec<String> = self.cores.iter().chain([&self.edge]).map(|running| running.readiness.clone()).collect();
        for url in all {
            let deadline = Instant::now() + LIMIT;
            loop {
                self.raise()?;
                let answer = http.get(&url).send().await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    break;
                }
                ensure!(Instant::now() < deadline, "{url} is not ready:\n{}", self.logs());
                pause(Duration::from_millis(10)).await;
            }
        }
        Ok(())
    }

    /// Ends everything in good order and without a panic.
    pub(super) async fn close(mut self) -> Result<()> {
        self.edge.drained().await?;
        for core in &mut self.cores {
            core.drained().await?;
        }
        let panicked = self.cores.iter().chain([&self.edge]).any(|running| running.process.log().contains("panicked"));
        ensure!(!panicked, "a panic:\n{}", self.logs());
        Ok(())
    }

    pub(super) fn logged(&self, text: &str) -> usize {
        self.cores.iter().filter(|core| core.process.log().contains(text)).count()
    }

    pub(super) fn logs(&self) -> String {
        self.cores.iter().chain([&self.edge]).map(Running::tail).collect::<Vec<_>>().join("\n")
    }
}

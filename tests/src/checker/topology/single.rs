//! One core on SQLite, one edge, and a network between them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use async_trait::async_trait;
use rustix::process::Signal;
use tempfile::TempDir;

use super::{
    Doors, Topology,
    files::{self, CHECKPOINT, Listens, Program, REPLAY},
    pause,
};
use crate::{
    checker::{
        faults::{Fault, Link, Menu, Trouble, Victim},
        faulty, plan,
        proof::Rules,
        stored::Vault,
    },
    harness::{http::client, ports::free_port, process::Process, provider::Provider, proxy::Proxy, wait::LIMIT},
};

/// See the module's text.
#[derive(Debug)]
pub struct Single {
    folder: TempDir,
    key: String,
    core: Program,
    edge: Program,
    core_process: Process,
    edge_process: Process,
    doors: Doors,
    /// Where each says that it is ready.
    readiness: [String; 2],
    network: Proxy,
    _provider: Provider,
    menu: Menu,
    fallen: Vec<Fault>,
}

impl Single {
    /// Starts all of it, with this program as core and these variables for it, to be broken in these ways.
    ///
    /// # Errors
    /// When something was not built or does not get ready.
    pub async fn start(core_binary: &str, vars: Vec<(String, String)>, menu: Menu) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let provider = Provider::start().await?;
        provider.derive("m", plan::answer);
        let at_core = Listens { main: free_port()?, metrics: free_port()? };
        let at_edge = Listens { main: free_port()?, metrics: free_port()? };
        let network = Proxy::start(at_core.main).await?;
        let key = chatbox_core::seal::KeyRing::generate_key();
        let settings = files::core(at_core, "store.url = \"sqlite:chatbox.db\"", &key, &provider.base_url());
        let mut core = Program::new("core", core_binary, folder.path(), &settings)?;
        core.vars = vars;
        let edge = Program::new("edge", "chatbox-edge", folder.path(), &files::edge(at_edge, network.address()))?;
        let (core_process, edge_process) = (core.start()?, edge.start()?);
        let doors = Doors { grpc: vec![at_core.main], http: vec![at_edge.main] };
        let readiness =
            [format!("http://{}/readyz", at_core.metrics), format!("http://{}/chatbox/readyz", at_edge.main)];
        Ok(Self {
            folder,
            key,
            core,
            edge,
            core_process,
            edge_process,
            doors,
            readiness,
            network,
            _provider: provider,
            menu,
            fallen: Vec::new(),
        })
    }

    fn victims(&mut self, victim: Victim) -> Vec<(&mut Process, &mut Program)> {
        let core = (&mut self.core_process, &mut self.core);
        let edge = (&mut self.edge_process, &mut self.edge);
        match victim {
            Victim::Core(_) => vec![core],
            Victim::Edge => vec![edge],
            Victim::Both => vec![core, edge],
        }
    }

    /// Starts again what has ended by itself.
    fn raise(&mut self) -> Result<()> {
        ensure!(self.fallen.len() < 3, "processes end by themselves:\n{}", self.logs());
        for victim in [Victim::Core(0), Victim::Edge] {
            let mut fell = false;
            for (process, program) in self.victims(victim) {
                if process.exited()?.is_some() {
                    // A failpoint ends one life; the next one must not end there too.
                    program.vars.retain(|(name, _)| name != faulty::ABORT);
                    *process = program.start()?;
                    fell = true;
                }
            }
            if fell {
                self.fallen.push(Fault::Fell(victim));
            }
        }
        Ok(())
    }

    async fn trouble(&self, trouble: Trouble, lasts: Duration) {
        let network = &self.network;
        match trouble {
            Trouble::Delay(delay) => {
                network.delay(delay);
                pause(lasts).await;
                network.delay(Duration::ZERO);
            }
            Trouble::Stall => {
                network.stall();
                pause(lasts).await;
                network.resume();
            }
            Trouble::StallWay(way) => {
                network.stall_way(way);
                pause(lasts).await;
                network.resume();
            }
            Trouble::Cut => network.cut(),
            Trouble::HalfClose(way) => network.half_close(way),
            Trouble::Refuse => {
                network.refuse(true);
                network.cut();
                pause(lasts).await;
                network.refuse(false);
            }
        }
    }
}

/// Asks a process to leave and insists on a clean end.
async fn drained(process: &mut Process) -> Result<()> {
    let status = process.terminate(LIMIT).await?;
    let log = process.log();
    ensure!(status.success(), "a drain ended with {status}:\n{log}");
    Ok(())
}

#[async_trait]
impl Topology for Single {
    fn doors(&self) -> Doors {
        self.doors.clone()
    }

    fn menu(&self) -> Menu {
        self.menu
    }

    fn rules(&self) -> Rules {
        Rules { replay: REPLAY, one_core: true, checkpoint: CHECKPOINT }
    }

    async fn inflict(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill(victim, down) => {
                for (process, _) in self.victims(victim) {
                    process.kill()?;
                }
                pause(down).await;
                for (process, program) in self.victims(victim) {
                    *process = program.start()?;
                }
            }
            Fault::Drain(victim) => {
                for (process, program) in self.victims(victim) {
                    drained(process).await?;
                    *process = program.start()?;
                }
            }
            Fault::Freeze(victim, lasts) => {
                for (process, _) in self.victims(victim) {
                    process.signal(Signal::STOP)?;
                }
                pause(lasts).await;
                for (process, _) in self.victims(victim) {
                    process.signal(Signal::CONT)?;
                }
            }
            Fault::Network(Link::Core, trouble, lasts) => self.trouble(trouble, lasts).await,
            Fault::Fell(_) => bail!("a process falls by itself"),
        }
        Ok(())
    }

    fn fallen(&mut self) -> Result<Vec<Fault>> {
        self.raise()?;
        Ok(std::mem::take(&mut self.fallen))
    }

    async fn ready(&mut self) -> Result<()> {
        let http = client();
        for url in self.readiness.clone() {
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

    async fn close(mut self: Box<Self>) -> Result<Vault> {
        drained(&mut self.edge_process).await?;
        drained(&mut self.core_process).await?;
        let panicked = self.core_process.log().contains("panicked") || self.edge_process.log().contains("panicked");
        ensure!(!panicked, "a panic:\n{}", self.logs());
        let database = self.folder.path().join("chatbox.db");
        Ok(Vault::sqlite(self.folder, database, self.key))
    }

    fn logs(&self) -> String {
        let tail = |process: &Process| {
            let log = process.log();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(40)..].join("\n")
        };
        format!("core:\n{}\nedge:\n{}", tail(&self.core_process), tail(&self.edge_process))
    }
}

//! Several cores on MongoDB and NATS, one edge, and networks between all of them.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Result, bail};
use async_trait::async_trait;
use chatbox_core::seal::KeyRing;
use mongodb::bson::Document;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{
    Doors, Topology,
    files::{CHECKPOINT, REPLAY},
    fleet::{Cores, Fleet},
    pause, trouble,
};
use crate::{
    checker::{
        faults::{Fault, Link, Menu},
        proof::Rules,
        stored::Vault,
    },
    harness::{
        mongod::ReplicaSet,
        ports::free_port,
        process::Process,
        proxy::Proxy,
        tools::tool,
        wait::{LIMIT, wait_for},
    },
};

/// The database of a round.
const DATABASE: &str = "chaos";

/// See the module's text.
#[derive(Debug)]
pub struct Cluster {
    folder: TempDir,
    key: String,
    fleet: Fleet,
    set: ReplicaSet,
    /// The way from the cores to the only server; with several, drivers go to each by its own name.
    to_store: Option<Proxy>,
    bus: Process,
    bus_at: SocketAddr,
    cores: usize,
    nodes: usize,
}

impl Cluster {
    /// Starts so many cores over a replica set of so many servers.
    ///
    /// # Errors
    /// When something was not built or fetched, or does not get ready.
    pub async fn start(cores: usize, nodes: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let set = ReplicaSet::start(nodes).await?;
        let bus_at = free_port()?;
        let bus = launch_bus(&folder, bus_at)?;
        let to_store = if nodes == 1 { Some(Proxy::start(set.address(0)).await?) } else { None };
        let uri = match &to_store {
            Some(proxy) => format!("mongodb://{}/{DATABASE}?directConnection=true", proxy.address()),
            None => set.uri(DATABASE),
        };
        let settings = format!(
            "store.url = \"{uri}\"\nstore.call_timeout = \"3s\"\nbus.url = \"nats://{bus_at}\"\n\
             session.reply_lapse = \"2s\""
        );
        let key = KeyRing::generate_key();
        let up = || async { TcpStream::connect(bus_at).await.ok() };
        wait_for("the bus listens", LIMIT, up).await?;
        let all = Cores { count: cores, binary: "chatbox-core", vars: Vec::new(), settings: &settings, key: &key };
        let fleet = Fleet::start(folder.path(), all).await?;
        Ok(Self { folder, key, fleet, set, to_store, bus, bus_at, cores, nodes })
    }

    /// The server that takes writes, by its number.
    async fn primary(&self) -> Result<usize> {
        if self.nodes == 1 { Ok(0) } else { self.set.primary(None).await }
    }
}

fn launch_bus(folder: &TempDir, at: SocketAddr) -> Result<Process> {
    let mut command = Command::new(tool("bin/nats-server")?);
    command.args(["--addr", &at.ip().to_string(), "--port", &at.port().to_string()]);
    Process::start("nats-server", command, &folder.path().join("nats.log"))
}

#[async_trait]
impl Topology for Cluster {
    fn doors(&self) -> Doors {
        self.fleet.doors()
    }

    fn menu(&self) -> Menu {
        Menu::Cluster { cores: self.cores, network: self.to_store.is_some() }
    }

    fn rules(&self) -> Rules {
        Rules { replay: REPLAY, one_core: self.cores == 1, checkpoint: CHECKPOINT }
    }

    async fn inflict(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill(victim, down) => self.fleet.kill(victim, down).await,
            Fault::Drain(victim) => self.fleet.drain(victim).await,
            Fault::Freeze(victim, lasts) => self.fleet.freeze(victim, lasts).await,
            Fault::Network(Link::Core(core), trouble, lasts) => self.fleet.trouble(core, trouble, lasts).await,
            Fault::Network(Link::Store, kind, lasts) => {
                if let Some(network) = &self.to_store {
                    trouble(network, kind, lasts).await;
                }
                Ok(())
            }
            Fault::KillStore(down) => {
                let primary = self.primary().await?;
                self.set.process(primary).kill()?;
                pause(down).await;
                self.set.restart(primary)
            }
            Fault::FreezeStore(lasts) => {
                let primary = self.primary().await?;
                self.set.process(primary).signal(Signal::STOP)?;
                pause(lasts).await;
                self.set.process(primary).signal(Signal::CONT)
            }
            Fault::KillBus(down) => {
                self.bus.kill()?;
                pause(down).await;
                self.bus = launch_bus(&self.folder, self.bus_at)?;
                Ok(())
            }
            Fault::Fell(_) => bail!("a process falls by itself"),
        }
    }

    fn fallen(&mut self) -> Result<Vec<Fault>> {
        self.fleet.fallen()
    }

    async fn ready(&mut self) -> Result<()> {
        self.set.settled().await?;
        self.fleet.ready().await
    }

    async fn at_rest(&mut self, patience: Duration) -> Result<bool> {
        let database = mongodb::Client::with_uri_str(self.set.uri(DATABASE)).await?.database(DATABASE);
        let rows = database.collection::<Document>("replies");
        let none = || async { rows.count_documents(Document::new()).await.ok().filter(|rows| *rows == 0) };
        Ok(wait_for("no row of a reply is left", patience, none).await.is_ok())
    }

    async fn close(self: Box<Self>) -> Result<Vault> {
        self.fleet.close().await?;
        let uri = self.set.uri(DATABASE);
        Ok(Vault::mongo(self.folder, self.set, uri, self.key))
    }

    fn logs(&self) -> String {
        self.fleet.logs()
    }
}

/// Cores find a server again that was away, and elect one, within this time; they cannot write meanwhile.
pub const STORE_RECOVERS: Duration = Duration::from_secs(6);

//! The product as it is shipped: `chatbox-core` and `chatbox-edge` as processes of their own, on a fresh SQLite file or on a
//! database that is given.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use chatbox_tests::harness::{
    http, ports::free_port, process::Process, token::Minter, tools::binary, wait::wait_for, ws::Encoding,
};
use tempfile::TempDir;
use tokio::{net::TcpStream, runtime::Runtime};

use super::{machine::Place, peer::Peer};

const SECRET: &str = "9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM";
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
/// In a debug build, with others busy.
const START: Duration = Duration::from_secs(30);

/// What a product is made of.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    /// The base URL of a provider, if the answers of one are wanted rather than those of the demo.
    pub(crate) model: Option<&'a str>,
    /// A database; a SQLite file of its own if none is given.
    pub(crate) store: Option<&'a str>,
    /// Lines of core's settings, before the first table.
    pub(crate) core: &'a str,
    /// Further lines of core's `limits`.
    pub(crate) limits: &'a str,
    /// Cores; the first one is started.
    pub(crate) cores: usize,
    pub(crate) place: Place,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { model: None, store: None, core: "", limits: "", cores: 1, place: Place::UnderTest }
    }
}

/// A running product; ends when dropped, its data too.
#[derive(Debug)]
pub(crate) struct Product {
    cores: Vec<Core>,
    edge: Process,
    address: SocketAddr,
    folder: TempDir,
    place: Place,
}

#[derive(Debug)]
struct Core {
    grpc: SocketAddr,
    process: Option<Process>,
}

impl Product {
    /// Starts it on a core of its own, with limits that load does not reach.
    pub(crate) fn start(model: Option<&str>) -> Result<Self> {
        Self::start_with(model, "")
    }

    /// The same, with further lines of core's `limits`.
    pub(crate) fn start_with(model: Option<&str>, limits: &str) -> Result<Self> {
        Self::start_as(&Setup { model, limits, ..Setup::default() })
    }

    /// Starts it like this.
    pub(crate) fn start_as(setup: &Setup<'_>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = free_port()?;
        let file = format!("sqlite:{}", folder.path().join("chatbox.db").display());
        let mut cores = Vec::new();
        for number in 0..setup.cores {
            let grpc = free_port()?;
            let mut config = format!(
                "profile = \"dev\"\nlisten = \"{grpc}\"\nmetrics_listen = \"\"\n{default}\n{more}\n\
                 [store]\nurl = \"{store}\"\n[[keys.ring]]\nid = \"k1\"\nkey = \"{KEY}\"\n\
                 [token]\nsecret = \"{SECRET}\"\n[limits]\nframes_per_second = 10000\n{limits}[log]\nfilter = \"warn\"\n",
                limits = setup.limits,
                default = if setup.model.is_some() { "default_model = \"bench\"" } else { "" },
                more = setup.core,
                store = setup.store.unwrap_or(&file),
            );
            if let Some(url) = setup.model {
                config += &format!(
                    "[providers.openai]\nbase_url = \"{url}\"\nfirst_byte_timeout = \"10m\"\n\
                     [[models]]\nid = \"bench\"\n"
                );
            }
            std::fs::write(folder.path().join(format!("core-{number}.toml")), config)?;
            cores.push(Core { grpc, process: None });
        }
        let addresses: Vec<String> = cores.iter().map(|core| format!("\"{}\"", core.grpc)).collect();
        let edge = format!(
            "profile = \"dev\"\nlisten = \"{address}\"\nmetrics_listen = \"\"\n\
             [core]\nurl = \"http://{}\"\naddresses = [{}]\n\
             [token]\nsecret = \"{SECRET}\"\n[limits]\nhandshakes_per_ip = 1000000\nframes_per_second = 1000000\n\
             [log]\nfilter = \"warn\"\n",
            cores[0].grpc,
            addresses.join(", "),
        );
        std::fs::write(folder.path().join("edge.toml"), edge)?;
        cores[0].process = Some(launch(&folder, setup.place, "chatbox-core", "core-0")?);
        let edge = launch(&folder, setup.place, "chatbox-edge", "edge")?;
        let mut product = Self { cores, edge, address, folder, place: setup.place };
        let (client, url) = (http::client(), format!("http://{address}/chatbox/readyz"));
        let ready = || async { client.get(&url).send().await.ok().filter(|answer| answer.status().is_success()) };
        runtime()?.block_on(product.edge.wait_ready(START, ready)).with_context(|| product.logs())?;
        Ok(product)
    }

    /// Starts a core, for the first time or again, and waits until it takes connections, unless others wait for that.
    pub(crate) fn start_core(&mut self, number: usize, wait: bool) -> Result<()> {
        self.cores[number].process = Some(launch(&self.folder, self.place, "chatbox-core", &format!("core-{number}"))?);
        let grpc = self.cores[number].grpc;
        // A port that listens is a core that can serve.
        let listens = || async { TcpStream::connect(grpc).await.ok() };
        if wait {
            runtime()?.block_on(wait_for("core listens", START, listens)).with_context(|| self.logs())?;
        }
        Ok(())
    }

    /// Ends a core at once, as a power cut would.
    pub(crate) fn kill_core(&mut self, number: usize) -> Result<()> {
        self.cores[number].process.take().context("it runs")?.kill()?;
        Ok(())
    }

    /// Users of its own, in one encoding.
    pub(crate) fn peer(&self, encoding: Encoding, users: &str) -> Peer {
        Peer::Product { address: self.address, encoding, users: users.to_owned(), minter: Minter::hs256(SECRET) }
    }

    /// Where browsers connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Signs tokens that it takes.
    pub(crate) fn minter() -> Minter {
        Minter::hs256(SECRET)
    }

    pub(crate) fn edge(&self) -> u32 {
        self.edge.pid()
    }

    /// The first core.
    pub(crate) fn core(&self) -> u32 {
        self.cores[0].process.as_ref().map_or(0, Process::pid)
    }

    /// Everything of it that runs.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes().map(|(_, process)| process.pid()).collect()
    }

    fn processes(&self) -> impl Iterator<Item = (&'static str, &Process)> {
        let cores = self.cores.iter().filter_map(|core| Some(("core", core.process.as_ref()?)));
        cores.chain([("edge", &self.edge)])
    }

    fn logs(&self) -> String {
        self.processes().map(|(name, process)| format!("{name}: {}", process.log())).collect::<Vec<_>>().join("\n")
    }

    /// Nothing went wrong that it would have told of.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, process) in self.processes() {
            let log = process.log();
            ensure!(log.is_empty(), "{name} logged: {}", log.lines().take(20).collect::<Vec<_>>().join("\n"));
        }
        Ok(())
    }
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn launch(folder: &TempDir, place: Place, program: &str, name: &str) -> Result<Process> {
    let program = binary(program).context("build the binaries of this profile first, as `make bench` does")?;
    let mut command = place.command(program);
    // Nothing that the machine's own environment would set.
    let config = folder.path().join(format!("{name}.toml"));
    command.env_clear().env("PATH", "/usr/bin:/bin").arg("--config").arg(config);
    Process::start(name, command, &folder.path().join(format!("{name}.log")))
}

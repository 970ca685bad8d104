//! The product as it is shipped: `chatbox-core` and `chatbox-edge` as processes of their own, on a fresh SQLite file.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use chatbox_tests::harness::{http, ports::free_port, process::Process, token::Minter, tools::binary, ws::Encoding};
use tempfile::TempDir;

use super::{machine::Place, peer::Peer};

const SECRET: &str = "9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM";
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
/// In a debug build, with others busy.
const START: Duration = Duration::from_secs(30);

/// A running product; ends when dropped, its data too.
#[derive(Debug)]
pub(crate) struct Product {
    core: Process,
    edge: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl Product {
    /// Starts it, with limits that load does not reach. `model` is the base URL of a provider, if the answers of one are
    /// wanted rather than those of the demo.
    pub(crate) fn start(model: Option<&str>) -> Result<Self> {
        Self::start_with(model, "")
    }

    /// The same, with further lines of core's `limits`.
    pub(crate) fn start_with(model: Option<&str>, limits: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (address, grpc) = (free_port()?, free_port()?);
        let mut core_config = format!(
            "profile = \"dev\"\nlisten = \"{grpc}\"\nmetrics_listen = \"\"\n{default}\n\
             [store]\nurl = \"sqlite:{data}\"\n[[keys.ring]]\nid = \"k1\"\nkey = \"{KEY}\"\n\
             [token]\nsecret = \"{SECRET}\"\n[limits]\nframes_per_second = 10000\n{limits}[log]\nfilter = \"warn\"\n",
            default = if model.is_some() { "default_model = \"bench\"" } else { "" },
            data = folder.path().join("chatbox.db").display(),
        );
        if let Some(url) = model {
            core_config += &format!("[providers.openai]\nbase_url = \"{url}\"\n[[models]]\nid = \"bench\"\n");
        }
        let edge_config = format!(
            "profile = \"dev\"\nlisten = \"{address}\"\nmetrics_listen = \"\"\n[core]\nurl = \"http://{grpc}\"\n\
             [token]\nsecret = \"{SECRET}\"\n[limits]\nhandshakes_per_ip = 1000000\nframes_per_second = 1000000\n\
             [log]\nfilter = \"warn\"\n",
        );
        let start = |name: &str, config: &str| {
            let file = folder.path().join(format!("{name}.toml"));
            std::fs::write(&file, config)?;
            let program = binary(name).context("build the binaries of this profile first, as `make bench` does")?;
            let mut command = Place::UnderTest.command(program);
            // Nothing that the machine's own environment would set.
            command.env_clear().env("PATH", "/usr/bin:/bin").arg("--config").arg(file);
            Process::start(name, command, &folder.path().join(format!("{name}.log")))
        };
        let core = start("chatbox-core", &core_config)?;
        let mut edge = start("chatbox-edge", &edge_config)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime
            .block_on(async {
                let (client, url) = (http::client(), format!("http://{address}/chatbox/readyz"));
                let ready =
                    || async { client.get(&url).send().await.ok().filter(|answer| answer.status().is_success()) };
                edge.wait_ready(START, ready).await
            })
            .with_context(|| core.log())?;
        Ok(Self { core, edge, address, _folder: folder })
    }

    /// Users of its own, in one encoding.
    pub(crate) fn peer(&self, encoding: Encoding, users: &str) -> Peer {
        Peer::Product { address: self.address, encoding, users: users.to_owned(), minter: Minter::hs256(SECRET) }
    }

    pub(crate) fn edge(&self) -> u32 {
        self.edge.pid()
    }

    pub(crate) fn core(&self) -> u32 {
        self.core.pid()
    }

    /// Nothing went wrong that it would have told of.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, process) in [("core", &self.core), ("edge", &self.edge)] {
            let log = process.log();
            ensure!(log.is_empty(), "{name} logged: {}", log.lines().take(20).collect::<Vec<_>>().join("\n"));
        }
        Ok(())
    }
}

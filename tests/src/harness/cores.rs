//! Several `chatbox-core` processes on one database and one NATS server of a test's own, each of which can be killed,
//! stopped and started again.

use std::{net::SocketAddr, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::{
    client::{Addresses, Client, Transport},
    grpc::{self, Core, Team},
    metrics::gauge,
    ports::free_port,
    process::Process,
    stack::SECRET,
    token::{Minter, claims},
    tools::{binary, tool},
    wait::{LIMIT, wait_for},
};

/// See the module's text.
#[derive(Debug)]
pub struct Cores {
    cores: Vec<OneCore>,
    nats: Process,
    nats_address: SocketAddr,
    folder: TempDir,
}

#[derive(Debug)]
struct OneCore {
    grpc: SocketAddr,
    metrics: SocketAddr,
    process: Process,
}

impl Cores {
    /// Starts so many cores on a database, with these lines in their files ahead of the first table.
    ///
    /// # Errors
    /// When something was not built or fetched, or does not get ready.
    pub async fn start(count: usize, store_url: &str, settings: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let nats_address = free_port()?;
        let mut nats = launch_nats(folder.path(), nats_address)?;
        nats.wait_ready(LIMIT, || listens(nats_address)).await?;
        let key = chatbox_core::seal::KeyRing::generate_key();
        let mut cores = Vec::with_capacity(count);
        for number in 0..count {
            let (grpc, metrics) = (free_port()?, free_port()?);
            let text = format!(
                "profile = \"dev\"\nlisten = \"{grpc}\"\nmetrics_listen = \"{metrics}\"\ntoken.secret = \"{SECRET}\"\n\
                 store.url = \"{store_url}\"\nbus.url = \"nats://{nats_address}\"\n\
                 keys.ring = [{{id = \"k1\", key = \"{key}\"}}]\n{settings}\n"
            );
            std::fs::write(folder.path().join(format!("core-{number}.toml")), text)?;
            cores.push(OneCore { grpc, metrics, process: launch_core(folder.path(), number)? });
        }
        let mut all = Self { cores, nats, nats_address, folder };
        for number in 0..count {
            all.ready(number).await?;
        }
        Ok(all)
    }

    /// Waits until a core is ready.
    ///
    /// # Errors
    /// When it is not within the limit.
    pub async fn ready(&mut self, number: usize) -> Result<()> {
        let OneCore { grpc, process, .. } = &mut self.cores[number];
        let channel = grpc::channel(*grpc)?;
        let serves = || {
            let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
            async move {
                let answer = health.check(tonic_health::pb::HealthCheckRequest::default()).await.ok()?.into_inner();
                (answer.status() == tonic_health::pb::health_check_response::ServingStatus::Serving).then_some(())
            }
        };
        process.wait_ready(LIMIT * 2, serves).await
    }

    /// A stream of a user on one core.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn connect(&self, number: usize, user: &str) -> Result<Client> {
        let grpc = self.cores[number].grpc;
        let token = Minter::hs256(SECRET).mint(&claims(user, "user"))?;
        Client::connect(Transport::Grpc, Addresses { http: grpc, grpc }, &token).await
    }

    /// A stream of an admin on one core.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn connect_admin(&self, number: usize, user: &str) -> Result<Client> {
        let grpc = self.cores[number].grpc;
        let token = Minter::hs256(SECRET).mint(&claims(user, "chat_admin"))?;
        Client::connect(Transport::Grpc, Addresses { http: grpc, grpc }, &token).await
    }

    /// The team's calls of one core as this admin.
    ///
    /// # Errors
    /// When there is no token.
    pub fn team(&self, number: usize, user: &str) -> Result<Team> {
        let token = Minter::hs256(SECRET).mint(&claims(user, "chat_admin"))?;
        grpc::team(grpc::channel(self.cores[number].grpc)?, &token)
    }

    /// The calls of one core as this user.
    ///
    /// # Errors
    /// When there is no token.
    pub fn core(&self, number: usize, user: &str) -> Result<Core> {
        let token = Minter::hs256(SECRET).mint(&claims(user, "user"))?;
        grpc::core(grpc::channel(self.cores[number].grpc)?, Some(&token))
    }

    /// A figure of one core.
    ///
    /// # Errors
    /// When it is not served.
    pub async fn metric(&self, number: usize, name: &str) -> Result<f64> {
        gauge(self.cores[number].metrics, name).await
    }

    /// The line of the settings that holds the keys.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn ring_line(&self) -> Result<String> {
        let text = std::fs::read_to_string(self.folder.path().join("core-0.toml"))?;
        let line = text.lines().find(|line| line.starts_with("keys.ring"));
        Ok(line.context("a core has keys")?.to_owned())
    }

    /// The process of one core.
    pub fn process(&mut self, number: usize) -> &mut Process {
        &mut self.cores[number].process
    }

    /// Starts a core again after it has ended; does not wait until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, number: usize) -> Result<()> {
        self.cores[number].process = launch_core(self.folder.path(), number)?;
        Ok(())
    }

    /// Ends NATS at once, and waits until every core has noticed.
    ///
    /// # Errors
    /// When one does not.
    pub async fn kill_nats(&mut self) -> Result<()> {
        self.nats.kill()?;
        self.connected(0.0).await
    }

    /// Starts NATS again, and waits until every core has come back to it.
    ///
    /// # Errors
    /// When one does not.
    pub async fn restart_nats(&mut self) -> Result<()> {
        self.nats = launch_nats(self.folder.path(), self.nats_address)?;
        self.connected(1.0).await
    }

    async fn connected(&self, expected: f64) -> Result<()> {
        for number in 0..self.cores.len() {
            let as_expected = || async {
                let connected = self.metric(number, "chatbox_core_bus_connected").await.ok()?;
                // Exactly 0 or 1.
                (connected.to_bits() == expected.to_bits()).then_some(())
            };
            wait_for("a core notices its bus", LIMIT, as_expected).await?;
        }
        Ok(())
    }

    /// Asks all cores that live to end, and insists on a clean drain.
    ///
    /// # Errors
    /// When one does not end in time or not with success, or has logged a panic.
    pub async fn shutdown(mut self) -> Result<()> {
        for OneCore { process, .. } in &mut self.cores {
            let status = process.terminate(LIMIT * 2).await?;
            let log = process.log();
            ensure!(status.success() && log.contains("drained"), "core ended with {status}:\n{log}");
            ensure!(!log.contains("panicked"), "core panicked:\n{log}");
        }
        Ok(())
    }
}

async fn listens(address: SocketAddr) -> Option<()> {
    tokio::net::TcpStream::connect(address).await.ok().map(|_| ())
}

fn launch_nats(folder: &Path, address: SocketAddr) -> Result<Process> {
    let mut command = Command::new(tool("bin/nats-server")?);
    command.args(["-a", "127.0.0.1", "-p", &address.port().to_string()]);
    Process::start("nats-server", command, &folder.join("nats.log"))
}

fn launch_core(folder: &Path, number: usize) -> Result<Process> {
    let mut command = Command::new(binary("chatbox-core")?);
    command
        .env_clear()
        .env("RUST_BACKTRACE", "1")
        .env("CHATBOX_CORE_SESSION_NAMING", "off")
        .arg("--config")
        .arg(folder.join(format!("core-{number}.toml")))
        .current_dir(folder);
    Process::start("chatbox-core", command, &folder.join(format!("core-{number}.log")))
}

//! The two binaries, each a process of its own, set up by files as an operator would.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::{
    client::{Addresses, Client, Transport},
    grpc::{self, Core},
    http::{Http, client},
    metrics::gauge,
    ports::free_port,
    process::Process,
    stack::SECRET,
    token::{Minter, claims},
    tools::binary,
    wait::LIMIT,
};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `chatbox-core`.
    Core,
    /// `chatbox-edge`.
    Edge,
}

impl Role {
    /// Both, in the order in which they are started.
    pub const ALL: [Self; 2] = [Self::Core, Self::Edge];

    /// Name of the binary.
    #[must_use]
    pub const fn binary(self) -> &'static str {
        match self {
            Self::Core => "chatbox-core",
            Self::Edge => "chatbox-edge",
        }
    }
}

/// Settings of both as text.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Lines of core's file, before its first table: `drain.notice = "0s"`.
    pub core: String,
    /// Lines of the edge's file, before its first table.
    pub edge: String,
    /// Variables for both: `RUST_BACKTRACE`, `CHATBOX_…`.
    pub vars: Vec<(String, String)>,
}

/// A running `chatbox-core` and `chatbox-edge`; both end when dropped, their data too.
#[derive(Debug)]
pub struct Pair {
    addresses: Addresses,
    metrics: [SocketAddr; 2],
    vars: Vec<(String, String)>,
    prefix: String,
    core: Process,
    edge: Process,
    folder: TempDir,
}

impl Pair {
    /// Starts both with these settings beside what they need.
    ///
    /// # Errors
    /// When one was not built or does not get ready.
    pub async fn start(settings: Settings) -> Result<Self> {
        Self::start_under("/chatbox", settings).await
    }

    /// Starts both with the edge's routes under this prefix.
    ///
    /// # Errors
    /// When one was not built or does not get ready.
    pub async fn start_under(prefix: &str, settings: Settings) -> Result<Self> {
        Self::start_with(prefix, &format!("token.secret = \"{SECRET}\"\n"), settings).await
    }

    /// Starts both with these lines about tokens, instead of the secret that [`token`](Self::token) signs with.
    ///
    /// # Errors
    /// When one was not built or does not get ready.
    pub async fn start_verifying(token: &str, settings: Settings) -> Result<Self> {
        Self::start_with("/chatbox", token, settings).await
    }

    async fn start_with(prefix: &str, token: &str, settings: Settings) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let addresses = Addresses { http: free_port()?, grpc: free_port()? };
        let metrics = [free_port()?, free_port()?];
        let common = |listen, metrics| {
            format!("profile = \"dev\"\nlisten = \"{listen}\"\nmetrics_listen = \"{metrics}\"\n{token}")
        };
        let key = chatbox_core::seal::KeyRing::generate_key();
        let core = format!(
            "{}store.url = \"sqlite:chatbox.db\"\nkeys.ring = [{{id = \"k1\", key = \"{key}\"}}]\n{}\n",
            common(addresses.grpc, metrics[0]),
            settings.core
        );
        let edge = format!(
            "{}path_prefix = \"{prefix}\"\ncore.url = \"http://{}\"\n{}\n",
            common(addresses.http, metrics[1]),
            addresses.grpc,
            settings.edge
        );
        std::fs::write(file(&folder, Role::Core), core)?;
        std::fs::write(file(&folder, Role::Edge), edge)?;
        let core = launch(Role::Core, &folder, &settings.vars)?;
        let edge = launch(Role::Edge, &folder, &settings.vars)?;
        let prefix = prefix.to_owned();
        let mut pair = Self { addresses, metrics, vars: settings.vars, prefix, core, edge, folder };
        pair.ready().await?;
        Ok(pair)
    }

    /// Waits until the edge is ready, which it is when core is.
    ///
    /// # Errors
    /// When it is not within the limit.
    pub async fn ready(&mut self) -> Result<()> {
        let (http, url) = (client(), format!("http://{}{}/readyz", self.addresses.http, self.prefix));
        let ready = || async { http.get(&url).send().await.ok().filter(|answer| answer.status().is_success()) };
        let outcome = self.edge.wait_ready(LIMIT, ready).await;
        ensure!(outcome.is_ok(), "{:?}\nlog of core:\n{}", outcome.err(), self.core.log());
        Ok(())
    }

    /// Where they listen.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The settings file of one.
    #[must_use]
    pub fn settings(&self, role: Role) -> PathBuf {
        file(&self.folder, role)
    }

    /// The process of one, for signals, logs and figures.
    pub fn process(&mut self, role: Role) -> &mut Process {
        match role {
            Role::Core => &mut self.core,
            Role::Edge => &mut self.edge,
        }
    }

    /// A figure of one by its full name, labels included when it has some.
    ///
    /// # Errors
    /// When it is not served.
    pub async fn metric(&self, role: Role, name: &str) -> Result<f64> {
        gauge(self.metrics[role as usize], name).await
    }

    /// Starts one again after it has ended; does not wait until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, role: Role) -> Result<()> {
        *self.process(role) = launch(role, &self.folder, &self.vars)?;
        Ok(())
    }

    /// Ends one at once, as a power cut would, and starts it again; does not wait until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn kill_and_restart(&mut self, role: Role) -> Result<()> {
        self.process(role).kill()?;
        self.restart(role)
    }

    /// A token of this user.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self, user: &str, role: &str) -> Result<String> {
        Minter::hs256(SECRET).mint(&claims(user, role))
    }

    /// A stream of a user, over any transport. Sockets are under the default prefix.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn connect(&self, transport: Transport, user: &str) -> Result<Client> {
        Client::connect(transport, self.addresses, &self.token(user, "user")?).await
    }

    /// The routes of the edge as this user.
    ///
    /// # Errors
    /// When there is no token.
    pub fn http(&self, user: &str) -> Result<Http> {
        Ok(Http::new(self.addresses.http, Some(&self.token(user, "user")?)))
    }

    /// The calls of core as this user.
    ///
    /// # Errors
    /// When there is no token.
    pub fn core(&self, user: &str) -> Result<Core> {
        grpc::core(grpc::channel(self.addresses.grpc)?, Some(&self.token(user, "user")?))
    }

    /// Asks both to end and insists on a clean drain without a panic.
    ///
    /// # Errors
    /// When one does not end in time or not with success, or has logged a panic.
    pub async fn shutdown(mut self) -> Result<()> {
        for role in [Role::Edge, Role::Core] {
            self.drained(role).await?;
        }
        Ok(())
    }

    /// Asks one to end and insists on a clean drain without a panic.
    ///
    /// # Errors
    /// When it does not end in time or not with success, or has logged a panic.
    pub async fn drained(&mut self, role: Role) -> Result<()> {
        let process = self.process(role);
        let status = process.terminate(LIMIT * 2).await?;
        let log = process.log();
        ensure!(status.success(), "{} ended with {status}:\n{log}", role.binary());
        ensure!(!log.contains("panicked"), "{} panicked:\n{log}", role.binary());
        ensure!(log.contains("drained"), "{} was cut by its deadline:\n{log}", role.binary());
        Ok(())
    }
}

fn file(folder: &TempDir, role: Role) -> PathBuf {
    folder.path().join(format!("{}.toml", role.binary()))
}

fn launch(role: Role, folder: &TempDir, vars: &[(String, String)]) -> Result<Process> {
    let mut command = Command::new(binary(role.binary())?);
    command
        .env_clear()
        .env("RUST_BACKTRACE", "1")
        .env("CHATBOX_CORE_SESSION_NAMING", "off")
        .envs(vars.iter().map(|(name, value)| (name, value)))
        .arg("--config")
        .arg(file(folder, role))
        .current_dir(folder.path());
    Process::start(role.binary(), command, &folder.path().join(format!("{}.log", role.binary())))
}

//! The two binaries, each a process of its own, set up by files as an operator would.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::{
    client::{Addresses, Client, Transport},
    grpc::{self, Core},
    http::{Http, client},
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
    const fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Edge => "edge",
        }
    }
}

/// A running `chatbox-core` and `chatbox-edge`; both end when dropped, their data too.
#[derive(Debug)]
pub struct Pair {
    addresses: Addresses,
    core: Process,
    edge: Process,
    folder: TempDir,
}

impl Pair {
    /// Starts both with these lines of TOML beside what they need.
    ///
    /// # Errors
    /// When one was not built or does not get ready.
    pub async fn start(core_settings: &str, edge_settings: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let addresses = Addresses { http: free_port()?, grpc: free_port()? };
        let key = chatbox_core::seal::KeyRing::generate_key();
        let database = folder.path().join("chatbox.db");
        let core = format!(
            "profile = \"dev\"\nlisten = \"{}\"\nmetrics_listen = \"{}\"\n{core_settings}\n\
             [store]\nurl = \"sqlite:{}\"\n[token]\nsecret = \"{SECRET}\"\n[[keys.ring]]\nid = \"k1\"\nkey = \"{key}\"\n",
            addresses.grpc,
            free_port()?,
            database.display()
        );
        let edge = format!(
            "profile = \"dev\"\nlisten = \"{}\"\nmetrics_listen = \"{}\"\n{edge_settings}\n\
             [core]\nurl = \"http://{}\"\n[token]\nsecret = \"{SECRET}\"\n",
            addresses.http,
            free_port()?,
            addresses.grpc
        );
        std::fs::write(folder.path().join("core.toml"), core)?;
        std::fs::write(folder.path().join("edge.toml"), edge)?;
        let core = launch(Role::Core, &folder)?;
        let edge = launch(Role::Edge, &folder)?;
        let mut pair = Self { addresses, core, edge, folder };
        pair.ready().await?;
        Ok(pair)
    }

    /// Waits until the edge is ready, which it is when core is.
    ///
    /// # Errors
    /// When it is not within the limit.
    pub async fn ready(&mut self) -> Result<()> {
        let (http, url) = (client(), format!("http://{}/chatbox/readyz", self.addresses.http));
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
        self.folder.path().join(format!("{}.toml", role.name()))
    }

    /// The process of one, for signals, logs and figures.
    pub fn process(&mut self, role: Role) -> &mut Process {
        match role {
            Role::Core => &mut self.core,
            Role::Edge => &mut self.edge,
        }
    }

    /// Ends one at once, as a power cut would, and starts it again; does not wait until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn kill_and_restart(&mut self, role: Role) -> Result<()> {
        self.process(role).kill()?;
        *self.process(role) = launch(role, &self.folder)?;
        Ok(())
    }

    /// A token of this user.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self, user: &str, role: &str) -> Result<String> {
        Minter::hs256(SECRET).mint(&claims(user, role))
    }

    /// A stream of a user, over any transport.
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

    /// Asks both to end and insists on a clean drain.
    ///
    /// # Errors
    /// When one does not end in time or not with success.
    pub async fn shutdown(mut self) -> Result<()> {
        for role in [Role::Edge, Role::Core] {
            let status = self.process(role).terminate(LIMIT * 2).await?;
            ensure!(status.success(), "{} ended with {status}:\n{}", role.name(), self.process(role).log());
        }
        Ok(())
    }
}

fn launch(role: Role, folder: &TempDir) -> Result<Process> {
    let name = format!("chatbox-{}", role.name());
    let mut command = Command::new(binary(&name)?);
    command
        .env_clear()
        .env("RUST_BACKTRACE", "1")
        .arg("--config")
        .arg(folder.path().join(format!("{}.toml", role.name())))
        .current_dir(folder.path());
    Process::start(&name, command, &folder.path().join(format!("{}.log", role.name())))
}

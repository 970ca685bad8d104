//! The real `chatbox dev`: core and edge in one process on an embedded database.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::{
    client::{Addresses, Client, Transport},
    grpc::{self, Core},
    http::{Http, client},
    ports::free_port,
    process::Process,
    tools::binary,
    wait::LIMIT,
};

/// A running `chatbox dev`; ends when dropped, its data too.
#[derive(Debug)]
pub struct ChatboxDev {
    addresses: Addresses,
    settings: Vec<(String, String)>,
    arguments: Vec<String>,
    process: Process,
    folder: TempDir,
}

impl ChatboxDev {
    /// Starts it as it is.
    ///
    /// # Errors
    /// When it was not built or does not get ready.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[], &[]).await
    }

    /// Starts it with `CHATBOX_…` settings and further arguments.
    ///
    /// # Errors
    /// When it was not built or does not get ready.
    pub async fn start_with(settings: &[(&str, &str)], arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let addresses = Addresses { http: free_port()?, grpc: free_port()? };
        let settings: Vec<_> = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let process = launch(addresses, &settings, &arguments, folder.path()).await?;
        Ok(Self { addresses, settings, arguments, process, folder })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Where its data is.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The process, for signals and figures.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A token that this instance accepts, made by `chatbox token`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn token(&self, sub: &str, role: &str) -> Result<String> {
        let mut command = chatbox()?;
        command.arg("token").arg("--data").arg(self.data()).args(["--sub", sub, "--role", role]);
        let output = command.output().context("cannot start chatbox token")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "chatbox token ended with {}: {said}", output.status);
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
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

    /// Ends it at once, as a power cut would, and starts it again with the same data and addresses.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub async fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.restart().await
    }

    /// Starts it again after it has ended.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = launch(self.addresses, &self.settings, &self.arguments, self.folder.path()).await?;
        Ok(())
    }

    /// Asks it to end and insists on a clean drain.
    ///
    /// # Errors
    /// When it does not end in time or not with success.
    pub async fn shutdown(mut self) -> Result<ExitStatus> {
        let status = self.process.terminate(LIMIT * 2).await?;
        ensure!(status.success(), "chatbox dev ended with {status}:\n{}", self.process.log());
        Ok(status)
    }
}

/// `chatbox` without what the machine's own environment would set.
fn chatbox() -> Result<Command> {
    let mut command = Command::new(binary("chatbox")?);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("RUST_BACKTRACE", "1");
    Ok(command)
}

async fn launch(
    addresses: Addresses,
    settings: &[(String, String)],
    arguments: &[String],
    folder: &Path,
) -> Result<Process> {
    let mut command = chatbox()?;
    command
        .args([
            "dev",
            "--no-local-models",
            "--http",
            &addresses.http.to_string(),
            "--grpc",
            &addresses.grpc.to_string(),
        ])
        .arg("--data")
        .arg(folder.join("data"))
        .args(arguments)
        .env("HOME", folder)
        .env("CHATBOX_CORE_SESSION_NAMING", "off")
        .envs(settings.iter().map(|(name, value)| (name, value)));
    let mut process = Process::start("chatbox dev", command, &folder.join("log"))?;
    let (http, url) = (client(), format!("http://{}/chatbox/readyz", addresses.http));
    let ready = || async { http.get(&url).send().await.ok().filter(|answer| answer.status().is_success()) };
    process.wait_ready(LIMIT, ready).await?;
    Ok(process)
}

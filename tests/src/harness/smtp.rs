//! A real mail server (aiosmtpd): STARTTLS with a certificate of its own authority, and a password.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use super::{
    ports::free_port,
    process::Process,
    tools::{tool, workspace},
    wait::{LIMIT, wait_for},
};

/// The account that may send.
pub const USER: &str = "chatbox";
/// Its password.
pub const PASSWORD: &str = "mail-password";

/// The server's address, mails and certificates; it runs or not. Ends when dropped.
#[derive(Debug)]
pub struct MailServer {
    address: SocketAddr,
    process: Option<Process>,
    folder: TempDir,
}

impl MailServer {
    /// A place for one that does not run yet.
    ///
    /// # Errors
    /// When there is no port, or the certificates cannot be written.
    pub fn prepare() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        certificates(folder.path())?;
        Ok(Self { address: free_port()?, process: None, folder })
    }

    /// One that runs.
    ///
    /// # Errors
    /// When it was not fetched or does not get ready.
    pub async fn start() -> Result<Self> {
        let mut server = Self::prepare()?;
        server.run(false).await?;
        Ok(server)
    }

    /// Starts it; `refusing` answers every recipient 451.
    ///
    /// # Errors
    /// When it was not fetched or does not get ready.
    pub async fn run(&mut self, refusing: bool) -> Result<()> {
        let mut command = Command::new("python3");
        command
            .arg(workspace().join("tests/scripts/smtp_server.py"))
            .arg(self.address.port().to_string())
            .arg(self.folder.path().join("mails"))
            .arg(self.folder.path().join("server.pem"))
            .arg(self.folder.path().join("server.key"))
            .args(refusing.then_some("refuse"))
            .env("PYTHONPATH", tool("py/smtp")?);
        let mut process = Process::start("smtp", command, &self.folder.path().join("log"))?;
        let address = self.address;
        process.wait_ready(LIMIT, || async move { tokio::net::TcpStream::connect(address).await.ok() }).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it, as a crash does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the mail server does not run")?.kill().map(drop)
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The authority of its certificate, as a PEM file.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// The mails that were delivered, as they came.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn mails(&self) -> Result<Vec<String>> {
        let Ok(files) = std::fs::read_dir(self.folder.path().join("mails/new")) else { return Ok(Vec::new()) };
        files.map(|file| Ok(std::fs::read_to_string(file?.path())?)).collect()
    }

    /// Waits for the first mails and gives them.
    ///
    /// # Errors
    /// When so many do not come.
    pub async fn wait_for_mails(&self, count: usize) -> Result<Vec<String>> {
        let enough = || async { self.mails().ok().filter(|mails| mails.len() >= count) };
        let mails = wait_for("a mail", 3 * LIMIT, enough).await?;
        ensure!(mails.len() == count, "{} mails instead of {count}: {mails:#?}", mails.len());
        Ok(mails)
    }
}

fn certificates(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &authority)?;
    std::fs::write(folder.join("authority.pem"), authority.pem())?;
    std::fs::write(folder.join("server.pem"), certificate.pem())?;
    std::fs::write(folder.join("server.key"), key.serialize_pem())?;
    Ok(())
}

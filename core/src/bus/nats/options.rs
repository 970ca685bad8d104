//! How to reach the servers, and who we are to them.

use std::{fmt, path::PathBuf};

use async_nats::{ConnectOptions, ServerAddr};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// Where the servers are and how to get in.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// URLs like `nats://host:4222` or `tls://host:4222`; any of them will do.
    pub servers: Vec<String>,
    /// Subjects begin with it: installations that share servers have different ones.
    pub prefix: String,
    /// Who we are.
    pub auth: NatsAuth,
    /// Certificates that the servers' are signed with, as PEM; without it those of the system.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate and its key, as PEM.
    pub client_cert: Option<(PathBuf, PathBuf)>,
}

/// Who we are to a server.
#[derive(Clone)]
pub enum NatsAuth {
    /// Nobody in particular, or whom our certificate says.
    None,
    /// A token.
    Token(String),
    /// A user.
    User {
        /// Name.
        name: String,
        /// Password.
        password: String,
    },
    /// The content of a credentials file: a JWT and the seed of an `NKey`.
    Credentials(String),
}

impl fmt::Debug for NatsAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what it holds.
        f.write_str(match self {
            Self::None => "None",
            Self::Token(_) => "Token(..)",
            Self::User { .. } => "User(..)",
            Self::Credentials(_) => "Credentials(..)",
        })
    }
}

impl NatsOptions {
    /// For the client. What is in files is looked at, so that a mistake is told now and not at every try to connect.
    pub(super) fn client_options(&self) -> Result<(ConnectOptions, Vec<ServerAddr>), String> {
        let mut options = ConnectOptions::new().name("chatbox-core");
        options = match &self.auth {
            NatsAuth::None => options,
            NatsAuth::Token(token) => options.token(token.clone()),
            NatsAuth::User { name, password } => options.user_and_password(name.clone(), password.clone()),
            NatsAuth::Credentials(text) => {
                options.credentials(text).map_err(|_| "credentials_file: holds no credentials".to_owned())?
            }
        };
        if let Some(file) = &self.ca_file {
            certificates(file).map_err(|error| format!("ca_file: {error}"))?;
            options = options.add_root_certificates(file.clone());
        }
        if let Some((cert, key)) = &self.client_cert {
            certificates(cert).map_err(|error| format!("cert_file: {error}"))?;
            PrivateKeyDer::from_pem_file(key).map_err(|_| "key_file: holds no private key".to_owned())?;
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        let tls = self.servers.iter().all(|server| server.starts_with("tls://"));
        let servers: Result<Vec<ServerAddr>, _> = self.servers.iter().map(|server| server.parse()).collect();
        // With `tls://` alone a server that names others must not lead to one without.
        Ok((options.require_tls(tls), servers.map_err(|error| format!("url: {error}"))?))
    }
}

fn certificates(file: &PathBuf) -> Result<(), String> {
    let mut found = CertificateDer::pem_file_iter(file).map_err(|_| "cannot be read".to_owned())?;
    match found.next() {
        Some(Ok(_)) => Ok(()),
        Some(Err(_)) | None => Err("holds no certificate".to_owned()),
    }
}

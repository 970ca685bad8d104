//! E-mail by SMTP (RFC 5321), through one of several servers: when one does not take a mail, the next is asked. The
//! Message-ID is the alert's own, so that a mail that was delivered twice is shown once.

use std::time::Duration;

use async_trait::async_trait;
use chatbox_proto::token::Secret;
use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
        extension::ClientId,
    },
};
use tokio::time::timeout;

use super::{Channel, DeliveryError, Message};

/// For each command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);
/// For one server, from the connection to the end of the mail: RFC 5321's own minutes would keep the others waiting.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// TLS from the first byte (RFC 8314), usually port 465.
    Tls,
    /// STARTTLS, which must be offered, usually port 587.
    StartTls,
    /// None.
    None,
}

/// One server.
#[derive(Debug, Clone)]
pub struct SmtpServer {
    /// Its name, which its certificate must be for.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is protected.
    pub security: Security,
    /// Name and password, if it wants them.
    pub credentials: Option<(String, Secret)>,
    /// Another authority than those of this machine, PEM.
    pub ca: Option<Vec<u8>>,
}

/// One list of people, through the first server that takes the mail.
pub struct Smtp {
    servers: Vec<(String, AsyncSmtpTransport<Tokio1Executor>)>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl std::fmt::Debug for Smtp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let servers: Vec<&str> = self.servers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Smtp").field("servers", &servers).finish_non_exhaustive()
    }
}

/// Whether a text is a mail address, with or without a name before it.
#[must_use]
pub fn is_address(text: &str) -> bool {
    text.parse::<Mailbox>().is_ok()
}

impl Smtp {
    /// Sets it up; connects to nobody yet.
    ///
    /// # Errors
    /// What is wrong, with its setting.
    pub fn new(servers: &[SmtpServer], from: &str, to: &[String]) -> Result<Self, String> {
        let mailbox = |setting: &str, text: &str| text.parse().map_err(|_| format!("{setting}: is not a mail address"));
        let servers = servers.iter().map(|server| Ok((server.host.clone(), transport(server)?)));
        Ok(Self {
            servers: servers.collect::<Result<_, String>>()?,
            from: mailbox("from", from)?,
            to: to.iter().map(|to| mailbox("to", to)).collect::<Result<_, _>>()?,
        })
    }

    fn mail(&self, message: &Message) -> Result<lettre::Message, DeliveryError> {
        let happened = Duration::from_secs(u64::try_from(message.happened_at).unwrap_or(0));
        let mut mail = lettre::Message::builder()
            .message_id(Some(format!("<{}@{}>", message.id, self.from.email.domain())))
            .date(std::time::UNIX_EPOCH + happened)
            .from(self.from.clone())
            .subject(message.subject.clone())
            // So that nobody's absence notice answers it (RFC 3834).
            .header(AutoSubmitted);
        for to in &self.to {
            mail = mail.to(to.clone());
        }
        mail.header(ContentType::TEXT_PLAIN)
            .body(message.body.clone())
            .map_err(|_| DeliveryError::Permanent("the mail could not be made".to_owned()))
    }
}

#[derive(Debug, Clone)]
struct AutoSubmitted;

impl lettre::message::header::Header for AutoSubmitted {
    fn name() -> lettre::message::header::HeaderName {
        lettre::message::header::HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> lettre::message::header::HeaderValue {
        lettre::message::header::HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

fn transport(server: &SmtpServer) -> Result<AsyncSmtpTransport<Tokio1Executor>, String> {
    let tls = || {
        let mut parameters = TlsParameters::builder(server.host.clone());
        if let Some(ca) = &server.ca {
            let ca = Certificate::from_pem(ca).map_err(|_| "ca_file: holds no certificate".to_owned())?;
            parameters = parameters.add_root_certificate(ca);
        }
        parameters.build().map_err(|_| "host: TLS cannot be set up for this name".to_owned())
    };
    let tls = match server.security {
        Security::Tls => Tls::Wrapper(tls()?),
        Security::StartTls => Tls::Required(tls()?),
        Security::None => Tls::None,
    };
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&server.host)
        .port(server.port)
        .tls(tls)
        .timeout(Some(COMMAND_TIMEOUT))
        // The name of this machine is nobody's business.
        .hello_name(ClientId::Domain("chatbox.invalid".to_owned()));
    if let Some((name, password)) = &server.credentials {
        builder = builder.credentials(Credentials::new(name.clone(), password.expose().to_owned()));
    }
    Ok(builder.build())
}

#[async_trait]
impl Channel for Smtp {
    async fn deliver(&self, message: &Message) -> Result<(), DeliveryError> {
        let mail = self.mail(message)?;
        let mut reasons = Vec::new();
        let mut permanent = true;
        for (name, server) in &self.servers {
            // The server's own words may repeat what it was sent.
            let why = match timeout(SERVER_TIMEOUT, server.send(mail.clone())).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => {
                    permanent &= error.is_permanent();
                    match error.status() {
                        Some(code) => format!("answered {code}"),
                        None if error.is_timeout() => "no answer in time".to_owned(),
                        None if error.is_tls() => "TLS failed".to_owned(),
                        None => "no connection".to_owned(),
                    }
                }
                Err(_) => {
                    permanent = false;
                    "no answer in time".to_owned()
                }
            };
            reasons.push(format!("{name}: {why}"));
        }
        let reason = reasons.join("; ");
        Err(if permanent { DeliveryError::Permanent(reason) } else { DeliveryError::temporary(reason) })
    }
}

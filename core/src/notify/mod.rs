//! Telling people outside that something needs them: by e-mail, text message or webhook.
//!
//! A channel is given a finished message and says what became of it; it knows no sessions and keeps nothing. What is sent is
//! plain text: what a visitor wrote is cut and freed of control characters before it gets into a template, and each channel
//! encodes it by its own rules (MIME, form, JSON), so that it stays text.

pub mod address;
mod outgoing;
pub mod quiet;
pub mod sms;
pub mod smtp;
pub mod template;
pub mod webhook;

use std::time::Duration;

use async_trait::async_trait;

/// What people can be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlertEvent {
    /// A visitor asks for a person.
    HelpRequested,
    /// A provider of models is left alone after too many failures.
    ProviderDown,
    /// The store did not answer for a while.
    StoreDown,
    /// Cores start again and again.
    CrashLoop,
    /// Far more is refused than usual.
    AbnormalTraffic,
}

impl AlertEvent {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::HelpRequested, Self::ProviderDown, Self::StoreDown, Self::CrashLoop, Self::AbnormalTraffic];

    /// As it is called in the configuration, in rows and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HelpRequested => "help_requested",
            Self::ProviderDown => "provider_down",
            Self::StoreDown => "store_down",
            Self::CrashLoop => "crash_loop",
            Self::AbnormalTraffic => "abnormal_traffic",
        }
    }

    /// The event of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }
}

/// A message, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The same for every try: receivers recognise a repeated delivery by it. 32 hexadecimal digits.
    pub id: String,
    /// The event's name.
    pub event: &'static str,
    /// One line.
    pub subject: String,
    /// Lines of plain text.
    pub body: String,
    /// Seconds since the Unix epoch when it happened.
    pub happened_at: i64,
    /// The session it is about.
    pub session_id: Option<String>,
}

/// Why a message was not delivered. Texts are this program's own: what a server says may repeat what it was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// It may be delivered later.
    #[error("{reason}")]
    Temporary {
        /// Why.
        reason: String,
        /// Not before this time, if the other side said so.
        retry_after: Option<Duration>,
    },
    /// It will not be delivered: the other side refuses this message, or the configuration is wrong.
    #[error("{0}")]
    Permanent(String),
}

impl DeliveryError {
    pub(crate) fn temporary(reason: impl Into<String>) -> Self {
        Self::Temporary { reason: reason.into(), retry_after: None }
    }

    /// By the status of an HTTP answer (RFC 9110): what may change by waiting is tried again.
    pub(crate) fn of_status(status: u16, retry_after: Option<Duration>) -> Self {
        let reason = format!("answered {status}");
        match status {
            408 | 425 | 429 | 500..=599 => Self::Temporary { reason, retry_after },
            _ => Self::Permanent(reason),
        }
    }
}

/// A way to reach somebody.
#[async_trait]
pub trait Channel: Send + Sync + std::fmt::Debug + 'static {
    /// Delivers one message. Dropping the future leaves it open whether it was delivered.
    async fn deliver(&self, message: &Message) -> Result<(), DeliveryError>;
}

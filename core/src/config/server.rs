//! The listener, its limits, and the process around it.

use std::time::Duration;

use chatbox_proto::settings::{self, ByteSize};
use serde::{Deserialize, Serialize};

/// TLS on the gRPC listener. In the production profile it is required unless `listen` is this machine alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file of the certificate and what it was signed with; empty: no TLS. Default empty.
    pub cert_file: String,
    /// PEM file of its key. Default empty.
    pub key_file: String,
    /// PEM file of the authority whose certificates clients must show; empty: none is asked for. Default empty.
    pub client_ca_file: String,
}

impl TlsConfig {
    /// Whether the listener speaks TLS.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.cert_file.is_empty()
    }
}

/// What one client may do, and all together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Connections to the gRPC listener: 1 to 1,000,000. An edge needs one or two. Default 1,024.
    pub connections: u32,
    /// Connections from one address: 1 to 1,000,000. Those above it are closed. Default 256.
    pub connections_per_ip: u32,
    /// Streams on one connection: 1,000 to 1,000,000. One browser is one stream; those above the limit hang. Default 100,000.
    pub streams_per_connection: u32,
    /// `Chat` streams of one user: 1 to 10,000. Above what edges allow, or a reconnect meets its own past. Default 20.
    pub streams_per_user: u32,
    /// Other calls of one user in flight: 1 to 10,000. Default 64.
    pub calls_per_user: u32,
    /// One frame of `Chat`: 1 KiB to 1 MiB. Default 64 KiB.
    pub frame_bytes: ByteSize,
    /// The request of a unary call: 1 KiB to 16 MiB. Default 1 MiB.
    pub request_bytes: ByteSize,
    /// All headers of a call: 8 KiB to 1 MiB. Default 32 KiB.
    pub header_bytes: ByteSize,
    /// Frames per second and stream; as many may come at once: 1 to 10,000. Default 30.
    pub frames_per_second: u32,
    /// Frames that could not be decoded, per minute and stream, before it ends: 1 to 10,000. Default 10.
    pub malformed_per_minute: u32,
    /// The overload mode: deltas go to a reader this far apart, and what comes meanwhile is merged: 0 s to 100 ms. Zero: each
    /// goes out at once. 25 to 40 ms still reads well and halves the work. Default 0 s.
    #[serde(with = "settings::duration")]
    pub merge_deltas: Duration,
    /// Time for a TLS handshake, and without TLS for the first bytes of HTTP/2: 100 ms to 1 min. Default 10 s.
    #[serde(with = "settings::duration")]
    pub handshake_timeout: Duration,
    /// How often an idle connection is probed: 1 s to 10 min. Default 20 s.
    #[serde(with = "settings::duration")]
    pub keepalive: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 1_024,
            connections_per_ip: 256,
            streams_per_connection: 100_000,
            streams_per_user: 20,
            calls_per_user: 64,
            frame_bytes: ByteSize::kib(64),
            request_bytes: ByteSize::mib(1),
            header_bytes: ByteSize::kib(32),
            frames_per_second: 30,
            malformed_per_minute: 10,
            merge_deltas: Duration::ZERO,
            handshake_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(20),
        }
    }
}

/// The calls of the team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Where `ChatAdmin` is served, and nowhere else then; empty: beside the other services at `listen`. Default empty.
    pub listen: String,
    /// Calls of one admin: 1 to 100,000 a minute. Default 300.
    pub calls_per_minute: u32,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: String::new(), calls_per_minute: 300 }
    }
}

/// `Generate` streams: text for services, without sessions. Frames per second and malformed ones are those of `limits`, the
/// queue of events that of `session`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    /// Streams of one caller: 1 to 10,000. Default 100.
    pub streams_per_caller: u32,
    /// One frame: 1 KiB to 16 MiB, and at most `limits.request_bytes`. Default 1 MiB.
    pub frame_bytes: ByteSize,
    /// Text that one stream keeps as its conversation, with what waits for its turn: 1 KiB to 64 MiB. Default 4 MiB.
    pub conversation_bytes: ByteSize,
    /// Messages of one conversation, and turns of one stream: 1 to 100,000. Default 1,000.
    pub messages: u32,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            streams_per_caller: 100,
            frame_bytes: ByteSize::mib(1),
            conversation_bytes: ByteSize::mib(4),
            messages: 1_000,
        }
    }
}

/// How the process leaves: readiness goes down, streams are told, replies may finish, the rest is cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// Between readiness going down and the listener closing: 0 s to 1 min. Default 1 s.
    #[serde(with = "settings::duration")]
    pub notice: Duration,
    /// Clients are told to come back after a random part of this time: 0 s to 1 min. Default 2 s.
    #[serde(with = "settings::duration")]
    pub jitter: Duration,
    /// Time for running replies to finish before they are cut: 0 s to 9 min. Default 20 s.
    #[serde(with = "settings::duration")]
    pub grace: Duration,
    /// Time for everything together, whatever clients, store or provider do: 1 s to 10 min. Default 30 s.
    #[serde(with = "settings::duration")]
    pub deadline: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            notice: Duration::from_secs(1),
            jitter: Duration::from_secs(2),
            grace: Duration::from_secs(20),
            deadline: Duration::from_secs(30),
        }
    }
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A filter like `info` or `info,chatbox_core=debug`. Default `info`.
    pub filter: String,
    /// `text` or `json`. Default `text`.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

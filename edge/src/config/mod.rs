//! The settings of the edge. Every one has a default, a unit and a range; `check` knows the ranges.

mod check;

use std::{net::SocketAddr, time::Duration};

use chatbox_proto::{
    settings::{self, ByteSize, Mistakes, Profile, ReadFile, Vars},
    spans::TelemetryConfig,
    token::TokenConfig,
};
use serde::{Deserialize, Serialize};

/// The role in the names of variables: `CHATBOX_EDGE_…`.
pub const ROLE: &str = "EDGE";

/// Everything that can be set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `dev` or `production`; production refuses what is only good enough for a laptop.
    pub profile: Profile,
    /// Where browsers connect to.
    pub listen: SocketAddr,
    /// Where `/metrics` is served; empty: nowhere.
    pub metrics_listen: String,
    /// What every route begins with; empty or like `/chatbox`.
    pub path_prefix: String,
    /// The origins that may open a socket, exactly as a browser sends them. In the `dev` profile an empty list means the
    /// origin the page itself came from.
    pub origins: Vec<String>,
    /// Who may show the page in a frame; empty: nobody.
    pub frame_ancestors: Vec<String>,
    /// Addresses or networks of the proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.
    pub trusted_proxies: Vec<String>,
    /// The way to core.
    pub core: CoreConfig,
    /// How tokens are verified.
    pub token: TokenConfig,
    /// What one client may do.
    pub limits: LimitsConfig,
    /// How sockets are kept alive and buffered.
    pub socket: SocketConfig,
    /// HTTP Strict Transport Security.
    pub hsts: HstsConfig,
    /// How the process leaves.
    pub drain: DrainConfig,
    /// Spans for a collector.
    pub telemetry: TelemetryConfig,
    /// What is logged.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            metrics_listen: "127.0.0.1:9464".to_owned(),
            path_prefix: "/chatbox".to_owned(),
            origins: Vec::new(),
            frame_ancestors: Vec::new(),
            trusted_proxies: Vec::new(),
            core: CoreConfig::default(),
            token: TokenConfig::default(),
            limits: LimitsConfig::default(),
            socket: SocketConfig::default(),
            hsts: HstsConfig::default(),
            drain: DrainConfig::default(),
            telemetry: TelemetryConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// The way to core.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoreConfig {
    /// `http://host:port`, or `https://host:port` for TLS. Every address of the host is a core.
    pub url: String,
    /// `host:port` of each core, instead of the host of the URL, which then only tells the scheme and the name that
    /// certificates are for. A host that is a name stands for all its addresses. Empty: the host of the URL.
    pub addresses: Vec<String>,
    /// HTTP/2 connections to each core: 1 or 2.
    pub channels: usize,
    /// PEM file of the authority that signed core's certificate; empty: those of the system.
    pub ca_file: String,
    /// PEM file of the certificate to show to core; empty: none.
    pub cert_file: String,
    /// PEM file of its key.
    pub key_file: String,
    /// Name to expect in core's certificate; empty: the host of the URL.
    pub server_name: String,
    /// Time for a TCP and TLS connection: 100 ms to 30 s.
    #[serde(with = "settings::duration")]
    pub connect_timeout: Duration,
    /// Time for a unary call, and for a session stream to come up: 100 ms to 5 min.
    #[serde(with = "settings::duration")]
    pub call_timeout: Duration,
    /// Time for a session stream to come up after `open`: 100 ms to 1 min.
    #[serde(with = "settings::duration")]
    pub attach_timeout: Duration,
    /// How often an idle connection to core is probed: 1 s to 10 min.
    #[serde(with = "settings::duration")]
    pub keepalive: Duration,
    /// How often each core is asked whether it serves, give or take a fifth: 100 ms to 1 min.
    #[serde(with = "settings::duration")]
    pub health_interval: Duration,
    /// Time for its answer: 100 ms to 30 s.
    #[serde(with = "settings::duration")]
    pub health_timeout: Duration,
    /// How often names are looked up again, give or take a fifth: 1 s to 10 min.
    #[serde(with = "settings::duration")]
    pub resolve_interval: Duration,
    /// The time between two of core's heartbeats (its `session.heartbeat`): a stream on which nothing comes for two and a
    /// half of it is dead, and is opened again. 0 s: not watched; up to 5 min.
    #[serde(with = "settings::duration")]
    pub heartbeat: Duration,
    /// How long a socket waits for its session stream to be opened again after core has drained or died: up to 5 min. 0 s:
    /// not at all, the socket is closed at once.
    #[serde(with = "settings::duration")]
    pub reopen_timeout: Duration,
    /// Streams that are opened again at once; the others wait for their turn: 1 to 10,000.
    pub reopens: usize,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:50051".to_owned(),
            addresses: Vec::new(),
            channels: 1,
            ca_file: String::new(),
            cert_file: String::new(),
            key_file: String::new(),
            server_name: String::new(),
            connect_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(10),
            attach_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(20),
            health_interval: Duration::from_secs(1),
            health_timeout: Duration::from_secs(2),
            resolve_interval: Duration::from_secs(10),
            heartbeat: Duration::from_secs(15),
            reopen_timeout: Duration::from_secs(30),
            reopens: 64,
        }
    }
}

/// What one client may do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Handshakes per second and IP address (per /64 network for IPv6); as many may come at once.
    pub handshakes_per_ip: u32,
    /// Looks at shared sessions per second and address (IPv6: per /64): 1 to 1,000,000. Above it 429. Default 5.
    pub shared_per_ip: u32,
    /// Sockets per user on this edge.
    pub connections_per_user: u32,
    /// Sockets on this edge.
    pub connections: u32,
    /// A client frame: 1 KiB to 1 MiB.
    pub frame_bytes: ByteSize,
    /// The first frame of a client that has not shown a token yet: 1 KiB to 64 KiB.
    pub first_frame_bytes: ByteSize,
    /// Frames per second and socket; as many may come at once.
    pub frames_per_second: u32,
    /// Frames that could not be decoded, per minute and socket, before it is closed.
    pub malformed_per_minute: u32,
    /// The body of an HTTP call: 1 KiB to 1 MiB.
    pub body_bytes: ByteSize,
    /// The header of an HTTP request: 8 KiB to 1 MiB.
    pub header_bytes: ByteSize,
    /// Time for the header of an HTTP request: 1 s to 1 min.
    #[serde(with = "settings::duration")]
    pub header_timeout: Duration,
    /// Time from the handshake to `open`: 100 ms to 1 min.
    #[serde(with = "settings::duration")]
    pub open_timeout: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            handshakes_per_ip: 20,
            shared_per_ip: 5,
            connections_per_user: 10,
            connections: 20_000,
            frame_bytes: ByteSize::kib(64),
            first_frame_bytes: ByteSize::kib(8),
            frames_per_second: 30,
            malformed_per_minute: 10,
            body_bytes: ByteSize::kib(64),
            header_bytes: ByteSize::kib(32),
            header_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(5),
        }
    }
}

/// How sockets are kept alive and buffered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketConfig {
    /// How often a quiet client is pinged: 1 s to 10 min. Proxies commonly cut connections that are idle for 60 s.
    #[serde(with = "settings::duration")]
    pub ping_interval: Duration,
    /// Time for anything to arrive after a ping: 100 ms to 5 min.
    #[serde(with = "settings::duration")]
    pub pong_timeout: Duration,
    /// Time for the client to take what was sent: 100 ms to 5 min.
    #[serde(with = "settings::duration")]
    pub write_timeout: Duration,
    /// Time for a close handshake: 100 ms to 30 s.
    #[serde(with = "settings::duration")]
    pub close_timeout: Duration,
    /// How long before its expiry a token is announced to expire: 0 s to 1 h.
    #[serde(with = "settings::duration")]
    pub expiry_warning: Duration,
    /// Read buffer: 512 B to 1 MiB. Most of what an idle socket costs; it is cleared on every read.
    pub read_buffer: ByteSize,
    /// What is collected before it is written: 512 B to 1 MiB.
    pub write_buffer: ByteSize,
    /// Client frames on their way into the stream to core: 1 to 1,024.
    pub frame_queue: usize,
    /// Client frames that core has not answered, kept to be sent again when its stream is lost: 1 to 1,024. When there are
    /// so many the socket is not read.
    pub unanswered_frames: usize,
    /// Their bytes, of which the last one may go beyond: 1 KiB to 16 MiB.
    pub unanswered_bytes: ByteSize,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(2),
            expiry_warning: Duration::from_secs(60),
            read_buffer: ByteSize::kib(4),
            write_buffer: ByteSize::kib(8),
            frame_queue: 4,
            unanswered_frames: 64,
            unanswered_bytes: ByteSize::kib(256),
        }
    }
}

/// HTTP Strict Transport Security.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HstsConfig {
    /// Whether the header is sent, on answers to requests that came over TLS.
    pub enabled: bool,
    /// How long browsers remember: at least 4,320 h (180 days).
    #[serde(with = "settings::duration")]
    pub max_age: Duration,
}

impl Default for HstsConfig {
    fn default() -> Self {
        Self { enabled: true, max_age: Duration::from_secs(365 * 24 * 3600) }
    }
}

/// How the process leaves.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// Time between "not ready" and the end of accepting, for load balancers to notice: 0 s to 1 min.
    #[serde(with = "settings::duration")]
    pub notice: Duration,
    /// Sockets are closed spread over this time, so that not all clients come back at once: 0 s to 5 min.
    #[serde(with = "settings::duration")]
    pub jitter: Duration,
    /// All of it together; what is not done then is cut: 1 s to 10 min.
    #[serde(with = "settings::duration")]
    pub deadline: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self { notice: Duration::from_secs(1), jitter: Duration::from_secs(2), deadline: Duration::from_secs(15) }
    }
}

/// What is logged.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A filter like `info` or `info,chatbox_edge=debug`.
    pub filter: String,
    /// `text` or `json`.
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

impl Config {
    /// Defaults, laid over by the TOML text, laid over by the variables; then the secret that is in a file.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn load(file: Option<&str>, vars: &Vars, read_file: ReadFile<'_>) -> Result<Self, Mistakes> {
        let mut config: Self = settings::load(file, ROLE, vars)?;
        let mut mistakes: Vec<String> = config.token.read_secret(read_file).err().into_iter().collect();
        mistakes.extend(config.check());
        Mistakes(mistakes).into_result()?;
        Ok(config)
    }
}

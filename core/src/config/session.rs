//! Sessions and their streams.

use std::time::Duration;

use chatbox_proto::settings::{self, ByteSize};
use serde::{Deserialize, Serialize};

const OFFLINE_NOTICE: &str =
    "Nobody of the team is online right now. Your request is kept, and somebody will answer here when they are back.";

/// Sessions and their streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionConfig {
    /// Active sessions of one user: 1 to 100, or 0 for as many as they like. Default 1.
    pub active_per_user: u32,
    /// Length of a message in UTF-8: 1 KiB to 256 KiB, and less than `limits.frame_bytes`. Default 32 KiB.
    pub message_bytes: ByteSize,
    /// Events that may wait for one subscriber: 16 to 65,536. Above it the stream is closed and the client resumes. Default 256.
    pub queue_events: usize,
    /// Bytes that may wait for one subscriber: 64 KiB to 64 MiB. Default 1 MiB.
    pub queue_bytes: ByteSize,
    /// Entries that a resuming client is given before it must page: 1 to 100,000. Default 1,000.
    pub replay_entries: u64,
    /// Entries of a page when the client does not say: 1 to 1,000. Default 50.
    pub page_size: u32,
    /// Entries of a page at most: `page_size` to 1,000. Default 1,000.
    pub max_page_size: u32,
    /// Messages that may wait for a reply: 1 to 100. Default 8.
    pub unanswered: usize,
    /// How often an append that lost a race is decided again: 1 to 100. Default 8.
    pub append_rounds: u32,
    /// Between two heartbeats of a stream: 100 ms to 5 min. Default 15 s.
    #[serde(with = "settings::duration")]
    pub heartbeat: Duration,
    /// A reply's row is renewed and its text saved this often while it makes progress: 50 ms to 10 s. Default 500 ms.
    #[serde(with = "settings::duration")]
    pub checkpoint: Duration,
    /// A reply that its core has not renewed for so long is dead, and another core finishes it: 2 s to 5 min. Default 10 s.
    #[serde(with = "settings::duration")]
    pub reply_lapse: Duration,
    /// A session in which nothing has happened for so long ends: 1 s to 8,760 h, or 0 s for never. Default 24 h.
    #[serde(with = "settings::duration")]
    pub idle_end: Duration,
    /// Who gives a session its name after the first exchange: `model`, its own, with one more short request; `rule`, from the
    /// first words, without one; `off`. Default `model`.
    pub naming: Naming,
    /// For one such request: 1 s to 5 min. Default 15 s. After it the rule gives the name.
    #[serde(with = "settings::duration")]
    pub naming_timeout: Duration,
    /// Names that are made at the same time: 1 to 1,000. Sessions beyond that stay without one. Default 16.
    pub naming_at_once: usize,
    /// A session that an admin holds goes back to the queue when the admin was gone for so long: 5 s to 1 h. Default 2 min.
    #[serde(with = "settings::duration")]
    pub hold_lapse: Duration,
    /// What is said in the session to who asks for a person while nobody of the team is there: at most 1,000 bytes; empty:
    /// nothing. Default a sentence in English.
    pub offline_notice: String,
    /// How long before its expiry a token is announced to expire: 0 s to 1 h. Default 60 s.
    #[serde(with = "settings::duration")]
    pub expiry_warning: Duration,
}

/// Who gives a session its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Naming {
    /// Its model.
    Model,
    /// The first words of its first message.
    Rule,
    /// Nobody.
    Off,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            active_per_user: 1,
            message_bytes: ByteSize::kib(32),
            queue_events: 256,
            queue_bytes: ByteSize::mib(1),
            replay_entries: 1_000,
            page_size: 50,
            max_page_size: 1_000,
            unanswered: 8,
            append_rounds: 8,
            heartbeat: Duration::from_secs(15),
            checkpoint: Duration::from_millis(500),
            reply_lapse: Duration::from_secs(10),
            idle_end: Duration::from_secs(24 * 3_600),
            naming: Naming::Model,
            naming_timeout: Duration::from_secs(15),
            naming_at_once: 16,
            hold_lapse: Duration::from_secs(120),
            offline_notice: OFFLINE_NOTICE.to_owned(),
            expiry_warning: Duration::from_secs(60),
        }
    }
}

//! The ranges of the settings, and what they demand of each other.

use std::{collections::HashSet, fmt::Display, net::SocketAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chatbox_proto::settings::{ByteSize, duration};

use super::{Config, KeyConfig, ModelConfig, ProviderConfig, ProviderKind};

const KEY_BYTES: usize = 32;
const MAX_KEY_ID: usize = 32;
const MAX_MODEL_ID: usize = 64;
const MAX_MODEL_NAME: usize = 100;
const MAX_UPSTREAM_MODEL: usize = 200;
const MAX_SYSTEM_PROMPT: ByteSize = ByteSize::kib(32);
/// Everything of a frame but its text: ids, and the escapes of JSON are the edge's affair.
const FRAME_OVERHEAD: u64 = 1_024;

impl Config {
    /// Every mistake, each naming its setting and none showing a secret.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        self.check_listeners(&mut mistakes);
        self.check_store(&mut mistakes);
        self.bus.check(self.profile.is_production(), &mut mistakes);
        self.check_keys(&mut mistakes);
        mistakes.extend(self.token.check(self.profile.is_production()));
        self.check_models(&mut mistakes);
        for (name, provider) in &self.providers {
            let used = self.models.iter().any(|model| model.provider == *name);
            check_provider(&format!("providers.{name}"), provider, used, self.profile.is_production(), &mut mistakes);
        }
        self.check_session(&mut mistakes);
        self.check_limits(&mut mistakes);
        self.alerts.check(self.profile.is_production(), &mut mistakes);
        self.check_generate(&mut mistakes);
        self.budgets.check(&self.models, &mut mistakes);
        self.check_drain(&mut mistakes);
        mistakes.extend(self.telemetry.check());
        if self.log.filter.parse::<tracing_subscriber::EnvFilter>().is_err() {
            mistakes.push("log.filter: must be like info or info,chatbox_core=debug".to_owned());
        }
        mistakes
    }

    fn check_listeners(&self, mistakes: &mut Vec<String>) {
        match self.metrics_listen.parse::<SocketAddr>() {
            Ok(address) if address == self.listen && address.port() != 0 => {
                mistakes.push("metrics_listen: must not be listen".to_owned());
            }
            Err(_) if !self.metrics_listen.is_empty() => {
                mistakes.push("metrics_listen: must be empty or like 127.0.0.1:9465".to_owned());
            }
            Ok(_) | Err(_) => {}
        }
        let admin = self.admin.listen.parse::<SocketAddr>();
        match &admin {
            Ok(address) if *address == self.listen && address.port() != 0 => {
                mistakes.push("admin.listen: must not be listen".to_owned());
            }
            Err(_) if !self.admin.listen.is_empty() => {
                mistakes.push("admin.listen: must be empty or like 127.0.0.1:50052".to_owned());
            }
            Ok(_) | Err(_) => {}
        }
        let tls = &self.tls;
        if self.profile.is_production() && !tls.is_enabled() && admin.is_ok_and(|admin| !admin.ip().is_loopback()) {
            mistakes.push(
                "admin.listen: needs tls.cert_file in the production profile, unless it is an address of this machine alone"
                    .to_owned(),
            );
        }
        if tls.cert_file.is_empty() != tls.key_file.is_empty() {
            mistakes.push("tls.cert_file, tls.key_file: set both or none".to_owned());
        } else if !tls.is_enabled() && !tls.client_ca_file.is_empty() {
            mistakes.push("tls.client_ca_file: only with tls.cert_file and tls.key_file".to_owned());
        } else if self.profile.is_production() && !tls.is_enabled() && !self.listen.ip().is_loopback() {
            mistakes.push(
                "tls.cert_file: must be set in the production profile, unless listen is an address of this machine alone"
                    .to_owned(),
            );
        }
    }

    fn check_store(&self, mistakes: &mut Vec<String>) {
        if let Err(rule) = self.store.target() {
            mistakes.push(format!("store.url: {rule}"));
        } else if let Some(rule) = self.store.production_mistake().filter(|_| self.profile.is_production()) {
            mistakes.push(format!("store.url: {rule}"));
        }
        within("store.pool_size", self.store.pool_size, 4, 500, mistakes);
        if self.store.max_size != ByteSize::bytes(0) {
            within("store.max_size", self.store.max_size, ByteSize::mib(1), ByteSize::mib(1 << 20), mistakes);
        }
        times(&[("store.call_timeout", self.store.call_timeout, ms(100), MINUTE)], mistakes);
    }

    fn check_keys(&self, mistakes: &mut Vec<String>) {
        let keys = &self.keys;
        if keys.ring.is_empty() {
            mistakes.push("keys.ring: must hold at least one key".to_owned());
        }
        let mut ids = HashSet::new();
        for (index, key) in keys.ring.iter().enumerate() {
            let name = format!("keys.ring[{index}]");
            check_key(&name, key, self.profile.is_production(), mistakes);
            if !ids.insert(key.id.as_str()) {
                mistakes.push(format!("{name}.id: {:?} is there twice", key.id));
            }
        }
        match keys.primary_id() {
            None if keys.ring.len() > 1 => mistakes.push("keys.primary: must name one of several keys".to_owned()),
            Some(primary) if !ids.contains(primary) => {
                mistakes.push(format!("keys.primary: {primary:?} is not among the keys"));
            }
            Some(_) | None => {}
        }
    }

    fn check_models(&self, mistakes: &mut Vec<String>) {
        let mut ids = HashSet::new();
        for (index, model) in self.models.iter().enumerate() {
            let name = format!("models[{index}]");
            check_model(&name, model, mistakes);
            model.check_routing(&name, &self.models, mistakes);
            if !ids.insert(model.id.as_str()) {
                mistakes.push(format!("{name}.id: {:?} is there twice", model.id));
            }
            if !self.providers.contains_key(&model.provider) {
                mistakes.push(format!("{name}.provider: {:?} is not among the providers", model.provider));
            }
        }
        if self.models.is_empty() {
            mistakes.push("models: at least one is needed".to_owned());
        }
        mistakes.extend(self.check_default_model());
    }

    fn check_session(&self, mistakes: &mut Vec<String>) {
        let session = &self.session;
        within("session.active_per_user", session.active_per_user, 0, 100, mistakes);
        within("session.queue_events", session.queue_events, 16, 65_536, mistakes);
        within("session.queue_bytes", session.queue_bytes, ByteSize::kib(64), ByteSize::mib(64), mistakes);
        within("session.replay_entries", session.replay_entries, 1, 100_000, mistakes);
        within("session.page_size", session.page_size, 1, 1_000, mistakes);
        within("session.max_page_size", session.max_page_size, session.page_size.min(1_000), 1_000, mistakes);
        within("session.unanswered", session.unanswered, 1, 100, mistakes);
        within("session.append_rounds", session.append_rounds, 1, 100, mistakes);
        within("session.naming_at_once", session.naming_at_once, 1, 1_000, mistakes);
        if !session.idle_end.is_zero() {
            times(&[("session.idle_end", session.idle_end, ms(1_000), 365 * 24 * HOUR)], mistakes);
        }
        within("session.message_bytes", session.message_bytes, ByteSize::kib(1), ByteSize::kib(256), mistakes);
        if session.message_bytes.as_u64().saturating_add(FRAME_OVERHEAD) > self.limits.frame_bytes.as_u64() {
            mistakes.push(
                "session.message_bytes: must leave 1KiB of limits.frame_bytes for the rest of a frame".to_owned(),
            );
        }
        if session.offline_notice.len() > 1_000 {
            mistakes.push("session.offline_notice: must be at most 1,000 bytes".to_owned());
        }
        times(
            &[
                ("session.heartbeat", session.heartbeat, ms(100), 5 * MINUTE),
                ("session.checkpoint", session.checkpoint, ms(50), ms(10_000)),
                ("session.reply_lapse", session.reply_lapse, ms(2_000), 5 * MINUTE),
                ("session.naming_timeout", session.naming_timeout, ms(1_000), 5 * MINUTE),
                ("session.hold_lapse", session.hold_lapse, ms(5_000), HOUR),
                ("session.expiry_warning", session.expiry_warning, Duration::ZERO, HOUR),
            ],
            mistakes,
        );
    }

    fn check_limits(&self, mistakes: &mut Vec<String>) {
        let limits = &self.limits;
        within("admin.calls_per_minute", self.admin.calls_per_minute, 1, 100_000, mistakes);
        within("limits.connections", limits.connections, 1, 1_000_000, mistakes);
        within("limits.connections_per_ip", limits.connections_per_ip, 1, 1_000_000, mistakes);
        within("limits.streams_per_connection", limits.streams_per_connection, 1_000, 1_000_000, mistakes);
        within("limits.streams_per_user", limits.streams_per_user, 1, 10_000, mistakes);
        within("limits.calls_per_user", limits.calls_per_user, 1, 10_000, mistakes);
        within("limits.frames_per_second", limits.frames_per_second, 1, 10_000, mistakes);
        within("limits.malformed_per_minute", limits.malformed_per_minute, 1, 10_000, mistakes);
        within("limits.messages_per_minute", limits.messages_per_minute, 0, 100_000, mistakes);
        within("limits.replies", limits.replies, 1, 1_000_000, mistakes);
        within("limits.frame_bytes", limits.frame_bytes, ByteSize::kib(1), ByteSize::mib(1), mistakes);
        within("limits.request_bytes", limits.request_bytes, ByteSize::kib(1), ByteSize::mib(16), mistakes);
        within("limits.header_bytes", limits.header_bytes, ByteSize::kib(8), ByteSize::mib(1), mistakes);
        times(
            &[
                ("limits.handshake_timeout", limits.handshake_timeout, ms(100), MINUTE),
                ("limits.merge_deltas", limits.merge_deltas, Duration::ZERO, ms(100)),
                ("limits.keepalive", limits.keepalive, ms(1_000), 10 * MINUTE),
            ],
            mistakes,
        );
    }

    fn check_generate(&self, mistakes: &mut Vec<String>) {
        let generate = &self.generate;
        within("generate.streams_per_caller", generate.streams_per_caller, 1, 10_000, mistakes);
        within("generate.frame_bytes", generate.frame_bytes, ByteSize::kib(1), ByteSize::mib(16), mistakes);
        within(
            "generate.conversation_bytes",
            generate.conversation_bytes,
            ByteSize::kib(1),
            ByteSize::mib(64),
            mistakes,
        );
        within("generate.messages", generate.messages, 1, 100_000, mistakes);
        if generate.frame_bytes > self.limits.request_bytes {
            mistakes.push("generate.frame_bytes: must be at most limits.request_bytes".to_owned());
        }
    }

    fn check_drain(&self, mistakes: &mut Vec<String>) {
        let drain = &self.drain;
        let before = mistakes.len();
        times(
            &[
                ("drain.notice", drain.notice, Duration::ZERO, MINUTE),
                ("drain.jitter", drain.jitter, Duration::ZERO, MINUTE),
                ("drain.grace", drain.grace, Duration::ZERO, 9 * MINUTE),
                ("drain.deadline", drain.deadline, ms(1_000), 10 * MINUTE),
            ],
            mistakes,
        );
        // What is cut must still be stored, and clients told.
        if mistakes.len() == before && drain.notice + drain.jitter + drain.grace >= drain.deadline {
            mistakes.push("drain.deadline: must be more than drain.notice + drain.jitter + drain.grace".to_owned());
        }
    }
}

fn check_key(name: &str, key: &KeyConfig, production: bool, mistakes: &mut Vec<String>) {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    if key.id.is_empty() || key.id.len() > MAX_KEY_ID || !key.id.bytes().all(allowed) {
        mistakes.push(format!("{name}.id: must be 1 to {MAX_KEY_ID} characters of a-z, 0-9, _ and -"));
    }
    if key.key.is_empty() {
        mistakes.push(format!("{name}.key: must be set, or {name}.key_file"));
        return;
    }
    match STANDARD.decode(key.key.expose()) {
        Ok(bytes) if bytes.len() == KEY_BYTES => {
            let different: HashSet<u8> = bytes.iter().copied().collect();
            // 32 random bytes have fewer than 16 different ones less often than once in a million years.
            if production && (different.len() < 16 || key.key.is_placeholder()) {
                mistakes.push(format!("{name}.key: is a placeholder; take one from `openssl rand -base64 32`"));
            }
        }
        Ok(_) | Err(_) => mistakes.push(format!("{name}.key: must be exactly {KEY_BYTES} bytes as base64")),
    }
}

fn check_model(name: &str, model: &ModelConfig, mistakes: &mut Vec<String>) {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    if model.id.is_empty() || model.id.len() > MAX_MODEL_ID || !model.id.bytes().all(allowed) {
        mistakes.push(format!("{name}.id: must be 1 to {MAX_MODEL_ID} characters of A-Z, a-z, 0-9 and . _ : / -"));
    }
    if model.name.chars().count() > MAX_MODEL_NAME || model.name.chars().any(char::is_control) {
        mistakes.push(format!("{name}.name: must be at most {MAX_MODEL_NAME} characters on one line"));
    }
    if model.upstream_model.len() > MAX_UPSTREAM_MODEL || model.upstream_model.chars().any(char::is_control) {
        mistakes.push(format!("{name}.upstream_model: must be at most {MAX_UPSTREAM_MODEL} characters on one line"));
    }
    if model.system_prompt.len() > MAX_SYSTEM_PROMPT.as_usize() {
        mistakes.push(format!("{name}.system_prompt: must be at most {MAX_SYSTEM_PROMPT}"));
    }
    within(&format!("{name}.context_tokens"), model.context_tokens, 256, 10_000_000, mistakes);
    if model.max_output_tokens == 0 || model.max_output_tokens >= model.context_tokens {
        mistakes.push(format!("{name}.max_output_tokens: must be from 1 to less than context_tokens"));
    }
}

fn check_provider(name: &str, provider: &ProviderConfig, used: bool, production: bool, mistakes: &mut Vec<String>) {
    if let Err(error) = provider.check_settings() {
        mistakes.push(format!("{name}.{error}"));
    }
    if used && provider.is_the_service() && provider.api_key.is_empty() && provider.headers.is_empty() {
        mistakes.push(format!("{name}.api_key: must be set for {}", provider.base_url));
    }
    let placeholder = !provider.api_key.is_empty() && provider.api_key.is_placeholder();
    let leaves = provider.kind != ProviderKind::Demo && provider.base_url.starts_with("https:");
    if used && production && placeholder && leaves {
        mistakes.push(format!("{name}.api_key: is a placeholder"));
    }
    let name = |setting| format!("{name}.{setting}");
    for (setting, value, min, max) in [
        ("connect_timeout", provider.connect_timeout, ms(100), MINUTE),
        ("first_byte_timeout", provider.first_byte_timeout, ms(100), 10 * MINUTE),
        ("chunk_timeout", provider.chunk_timeout, ms(100), 10 * MINUTE),
        ("total_timeout", provider.total_timeout, ms(1_000), HOUR),
        ("backoff", provider.backoff, Duration::ZERO, ms(10_000)),
        ("max_retry_after", provider.max_retry_after, Duration::ZERO, MINUTE),
        ("queue_timeout", provider.queue_timeout, ms(100), 10 * MINUTE),
        ("breaker_window", provider.breaker_window, ms(1_000), 10 * MINUTE),
        ("breaker_pause", provider.breaker_pause, ms(100), 10 * MINUTE),
        ("word_delay", provider.word_delay, Duration::ZERO, ms(1_000)),
    ] {
        times(&[(&name(setting), value, min, max)], mistakes);
    }
    if provider.retries > 5 {
        mistakes.push(format!("{}: must be from 0 to 5", name("retries")));
    }
    within(&name("concurrency"), provider.concurrency, 1, 100_000, mistakes);
    within(&name("queue"), provider.queue, 0, 100_000, mistakes);
    within(&name("breaker_failures"), provider.breaker_failures, 0, 10_000, mistakes);
    within(&name("event_bytes"), provider.event_bytes, ByteSize::kib(16), ByteSize::mib(16), mistakes);
    within(&name("reply_bytes"), provider.reply_bytes, ByteSize::kib(16), ByteSize::mib(3), mistakes);
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn within<T: PartialOrd + Display>(setting: &str, value: T, min: T, max: T, mistakes: &mut Vec<String>) {
    if value < min || value > max {
        mistakes.push(format!("{setting}: must be from {min} to {max}"));
    }
}

pub(super) fn times(settings: &[(&str, Duration, Duration, Duration)], mistakes: &mut Vec<String>) {
    for (setting, value, min, max) in settings {
        if value < min || value > max {
            let (min, max) = (duration::format(*min), duration::format(*max));
            mistakes.push(format!("{setting}: must be from {min} to {max}"));
        }
    }
}

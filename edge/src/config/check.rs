//! The ranges of the settings, and what they demand of each other.

use std::{fmt::Display, net::SocketAddr, time::Duration};

use chatbox_proto::settings::ByteSize;

use super::Config;
use crate::{client::TrustedProxies, origin::Origin};

/// RFC 6797 leaves the length open; below 180 days audits do not count it.
const MIN_HSTS: Duration = Duration::from_secs(15_552_000);

impl Config {
    /// Every mistake, each naming its setting.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        self.check_addresses(&mut mistakes);
        self.check_origins(&mut mistakes);
        self.check_core(&mut mistakes);
        mistakes.extend(self.token.check(self.profile.is_production()));
        self.check_times(&mut mistakes);
        self.check_sizes(&mut mistakes);
        if self.hsts.enabled && self.hsts.max_age < MIN_HSTS {
            mistakes.push("hsts.max_age: must be at least 4320h".to_owned());
        }
        if self.drain.notice + self.drain.jitter + self.socket.close_timeout > self.drain.deadline {
            mistakes
                .push("drain.deadline: must be at least drain.notice + drain.jitter + socket.close_timeout".to_owned());
        }
        mistakes.extend(self.telemetry.check());
        if crate::telemetry::filter(&self.log.filter).is_err() {
            mistakes.push("log.filter: must be like info or info,chatbox_edge=debug".to_owned());
        }
        mistakes
    }

    fn check_addresses(&self, mistakes: &mut Vec<String>) {
        if !self.metrics_listen.is_empty() && self.metrics_listen.parse::<SocketAddr>().is_err() {
            mistakes.push("metrics_listen: must be empty or like 127.0.0.1:9464".to_owned());
        }
        let prefix = &self.path_prefix;
        let segment = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b));
        let well_formed = prefix.strip_prefix('/').is_some_and(|rest| rest.split('/').all(segment));
        if !prefix.is_empty() && !well_formed {
            mistakes.push("path_prefix: must be empty or like /chatbox".to_owned());
        }
        if let Err(bad) = TrustedProxies::parse(&self.trusted_proxies) {
            mistakes.push(format!("trusted_proxies: {bad:?} is neither an address nor a network like 10.0.0.0/8"));
        }
    }

    fn check_origins(&self, mistakes: &mut Vec<String>) {
        let production = self.profile.is_production();
        if production && self.origins.is_empty() {
            mistakes.push("origins: must name the origins of your pages in the production profile".to_owned());
        }
        for origin in &self.origins {
            match Origin::parse(origin) {
                None => mistakes.push(format!("origins: {origin:?} is not like https://app.example.com")),
                Some(parsed) if production && !parsed.is_secure() => {
                    mistakes.push(format!("origins: {origin:?} must be https in the production profile"));
                }
                Some(_) => {}
            }
        }
        for ancestor in &self.frame_ancestors {
            let of_the_page = ancestor == "'self'";
            if !of_the_page && Origin::parse(&ancestor.replacen("://*.", "://", 1)).is_none() {
                mistakes
                    .push(format!("frame_ancestors: {ancestor:?} is neither 'self' nor like https://shop.example.com"));
            }
        }
    }

    fn check_core(&self, mistakes: &mut Vec<String>) {
        let core = &self.core;
        let malformed = core.addresses.iter().find(|address| !is_place(address));
        if let Some(address) = malformed {
            mistakes.push(format!("core.addresses: {address:?} is not like 10.0.0.7:50051 or core.internal:50051"));
        }
        match core.url.parse::<http::Uri>().ok().filter(|url| url.host().is_some() && url.path() == "/") {
            Some(url) if url.scheme_str() == Some("https") => {}
            Some(url) if url.scheme_str() == Some("http") => {
                let elsewhere = malformed.is_none() && !core.addresses.iter().all(|address| is_loopback_place(address));
                if self.profile.is_production() && (!is_loopback(&url) || elsewhere) {
                    mistakes.push(
                        "core.url: must be https:// in the production profile, except on this machine".to_owned(),
                    );
                }
                if !(core.ca_file.is_empty() && core.cert_file.is_empty() && core.key_file.is_empty()) {
                    mistakes.push("core.ca_file, core.cert_file, core.key_file: only with an https:// URL".to_owned());
                }
            }
            _ => mistakes.push("core.url: must be like http://127.0.0.1:50051".to_owned()),
        }
        if core.cert_file.is_empty() != core.key_file.is_empty() {
            mistakes.push("core.cert_file, core.key_file: set both or none".to_owned());
        }
        within("core.channels", core.channels, 1, 2, mistakes);
        within("core.reopens", core.reopens, 1, 10_000, mistakes);
    }

    fn check_times(&self, mistakes: &mut Vec<String>) {
        let minute = 60_000;
        for (setting, value, min, max) in [
            ("core.connect_timeout", self.core.connect_timeout, 100, 30_000),
            ("core.call_timeout", self.core.call_timeout, 100, 5 * minute),
            ("core.attach_timeout", self.core.attach_timeout, 100, minute),
            ("core.keepalive", self.core.keepalive, 1_000, 10 * minute),
            ("core.health_interval", self.core.health_interval, 100, minute),
            ("core.health_timeout", self.core.health_timeout, 100, 30_000),
            ("core.resolve_interval", self.core.resolve_interval, 1_000, 10 * minute),
            ("core.heartbeat", self.core.heartbeat, 0, 5 * minute),
            ("core.reopen_timeout", self.core.reopen_timeout, 0, 5 * minute),
            ("limits.header_timeout", self.limits.header_timeout, 1_000, minute),
            ("limits.open_timeout", self.limits.open_timeout, 100, minute),
            ("socket.ping_interval", self.socket.ping_interval, 1_000, 10 * minute),
            ("socket.pong_timeout", self.socket.pong_timeout, 100, 5 * minute),
            ("socket.write_timeout", self.socket.write_timeout, 100, 5 * minute),
            ("socket.close_timeout", self.socket.close_timeout, 100, 30_000),
            ("socket.expiry_warning", self.socket.expiry_warning, 0, 60 * minute),
            ("drain.notice", self.drain.notice, 0, minute),
            ("drain.jitter", self.drain.jitter, 0, 5 * minute),
            ("drain.deadline", self.drain.deadline, 1_000, 10 * minute),
        ] {
            let millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
            if !(min..=max).contains(&millis) {
                mistakes.push(format!("{setting}: must be from {min}ms to {max}ms"));
            }
        }
    }

    fn check_sizes(&self, mistakes: &mut Vec<String>) {
        let limits = &self.limits;
        let (kib, mib) = (ByteSize::kib, ByteSize::mib);
        for (setting, value, min, max) in [
            ("limits.frame_bytes", limits.frame_bytes, kib(1), mib(1)),
            ("limits.first_frame_bytes", limits.first_frame_bytes, kib(1), kib(64)),
            ("limits.body_bytes", limits.body_bytes, kib(1), mib(1)),
            ("limits.header_bytes", limits.header_bytes, kib(8), mib(1)),
            ("socket.read_buffer", self.socket.read_buffer, ByteSize::bytes(512), mib(1)),
            ("socket.unanswered_bytes", self.socket.unanswered_bytes, kib(1), mib(16)),
            ("socket.write_buffer", self.socket.write_buffer, ByteSize::bytes(512), mib(1)),
        ] {
            within(setting, value, min, max, mistakes);
        }
        for (setting, value) in [
            ("limits.handshakes_per_ip", limits.handshakes_per_ip),
            ("limits.shared_per_ip", limits.shared_per_ip),
            ("limits.connections_per_user", limits.connections_per_user),
            ("limits.connections", limits.connections),
            ("limits.frames_per_second", limits.frames_per_second),
            ("limits.malformed_per_minute", limits.malformed_per_minute),
        ] {
            within(setting, value, 1, 10_000_000, mistakes);
        }
        within("socket.frame_queue", self.socket.frame_queue, 1, 1_024, mistakes);
        within("socket.unanswered_frames", self.socket.unanswered_frames, 1, 1_024, mistakes);
    }
}

fn within<T: PartialOrd + Display>(setting: &str, value: T, min: T, max: T, mistakes: &mut Vec<String>) {
    if value < min || value > max {
        mistakes.push(format!("{setting}: must be from {min} to {max}"));
    }
}

fn is_loopback(url: &http::Uri) -> bool {
    let host = url.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// `host:port`
fn is_place(text: &str) -> bool {
    let authority = text.parse::<http::uri::Authority>().ok().filter(|_| !text.contains('@'));
    authority.and_then(|authority| authority.port_u16()).is_some_and(|port| port != 0)
}

fn is_loopback_place(place: &str) -> bool {
    format!("http://{place}").parse().is_ok_and(|url| is_loopback(&url))
}

#[cfg(test)]
mod tests {
    use chatbox_proto::settings::{Mistakes, Vars};

    use super::*;

    const GOOD: &str = "origins = [\"https://app.test\"]\n[token]\nsecret = \"9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM\"\n";

    fn load(file: Option<&str>, vars: &Vars) -> Result<Config, Mistakes> {
        Config::load(file, vars, &|path| match path.to_str() {
            Some("/run/secret") => Ok("kT4vLq0sXe7RbW2nHc9YfJ6uPzA1dMgQ\n".to_owned()), // gitleaks:allow: made up
            _ => Err(std::io::ErrorKind::NotFound.into()),
        })
    }

    #[test]
    fn the_secret_comes_from_a_file_too() {
        let file = |path: &str| format!("origins = [\"https://app.test\"]\ntoken.secret_file = \"{path}\"\n");
        let config = load(Some(&file("/run/secret")), &Vars::new()).unwrap();
        assert_eq!(config.token.secret.expose().len(), 32);
        let mistakes = load(Some(&file("/run/nothing")), &Vars::new()).unwrap_err().0;
        assert_eq!(mistakes[0], "token.secret_file: cannot be read: entity not found");
    }

    #[test]
    fn the_defaults_need_only_a_secret_and_the_origins() {
        load(Some(GOOD), &Vars::new()).unwrap();
        let mistakes = load(None, &Vars::new()).unwrap_err().0;
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    }

    #[test]
    fn every_bad_value_is_named() {
        for (name, value) in [
            ("LISTEN", "8080"),
            ("METRICS_LISTEN", "localhost"),
            ("PROFILE", "test"),
            ("PATH_PREFIX", "chatbox"),
            ("PATH_PREFIX", "/chatbox/"),
            ("ORIGINS", "https://app.test/"),
            ("ORIGINS", "*"),
            ("ORIGINS", "http://app.test"),
            ("FRAME_ANCESTORS", "https://a.test; script-src *"),
            ("TRUSTED_PROXIES", "10.0.0.0/33"),
            ("CORE_URL", "127.0.0.1:50051"),
            ("CORE_URL", "http://core.test:50051"),
            ("CORE_URL", "https://core.test/path"),
            ("CORE_CHANNELS", "0"),
            ("CORE_CHANNELS", "-1"),
            ("CORE_CHANNELS", "3"),
            ("CORE_ADDRESSES", "10.0.0.7"),
            ("CORE_ADDRESSES", "http://10.0.0.7:50051"),
            ("CORE_HEALTH_INTERVAL", "0s"),
            ("CORE_HEARTBEAT", "1h"),
            ("CORE_REOPEN_TIMEOUT", "1h"),
            ("CORE_REOPENS", "0"),
            ("CORE_CA_FILE", "ca.pem"),
            ("CORE_CONNECT_TIMEOUT", "0s"),
            ("CORE_CALL_TIMEOUT", "1h"),
            ("CORE_KEEPALIVE", "10"),
            ("TOKEN_ALGORITHM", "none"),
            ("TOKEN_SECRET", "short"),
            ("TOKEN_SECRET", "PLACEHOLDER-PLACEHOLDER-PLACEHOLDER"),
            ("TOKEN_LEEWAY", "1h"),
            ("LIMITS_HANDSHAKES_PER_IP", "0"),
            ("LIMITS_CONNECTIONS", "0"),
            ("LIMITS_FRAME_BYTES", "2MiB"),
            ("LIMITS_FRAME_BYTES", "lots"),
            ("LIMITS_HEADER_BYTES", "1KiB"),
            ("LIMITS_OPEN_TIMEOUT", "0s"),
            ("SOCKET_PING_INTERVAL", "0s"),
            ("SOCKET_READ_BUFFER", "1B"),
            ("SOCKET_FRAME_QUEUE", "0"),
            ("SOCKET_UNANSWERED_FRAMES", "0"),
            ("SOCKET_UNANSWERED_BYTES", "1B"),
            ("HSTS_MAX_AGE", "1h"),
            ("DRAIN_DEADLINE", "2s"),
            ("TELEMETRY_OTLP_ENDPOINT", "collector:4317"),
            ("TELEMETRY_SAMPLE_RATIO", "2"),
            ("LOG_FORMAT", "xml"),
            ("LOG_FILTER", "=,="),
            ("MISSPELT", "1"),
        ] {
            let vars = Vars::from([(format!("CHATBOX_EDGE_{name}"), value.to_owned())]);
            let mistakes = load(Some(GOOD), &vars).expect_err(name).0;
            assert_eq!(mistakes.len(), 1, "{name}={value}: {mistakes:?}");
            let setting = name.to_lowercase();
            let named = mistakes[0].to_lowercase().replace('.', "_");
            assert!(named.contains(&setting), "{name}={value}: {mistakes:?}");
        }
    }

    #[test]
    fn printed_values_hide_the_secret_and_can_be_read() {
        let config = load(Some(GOOD), &Vars::new()).unwrap();
        let text = chatbox_proto::settings::print(&config);
        assert!(!text.contains("9pYb3mQx7"), "{text}");
        assert!(text.contains("frame_bytes = \"64KiB\""), "{text}");
    }
}

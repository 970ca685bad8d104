//! The way between cores that share a store.

use std::path::PathBuf;

use chatbox_proto::token::Secret;
use serde::{Deserialize, Serialize};

use crate::bus::nats::{NatsAuth, NatsOptions};

const MAX_PREFIX: usize = 64;

/// The way between cores that share a store: hints, so that what one writes is seen at the others at once. What a NATS
/// server lets us in by is set in one of three ways: a token, a user and a password, or a credentials file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// `local` for one core alone, else NATS servers of one cluster, like `tls://nats-0:4222,tls://nats-1:4222`. In the
    /// production profile all of them by `tls:` and with authentication. Default `local`.
    pub url: String,
    /// Subjects begin with it; installations that share NATS servers have different ones: 1 to 64 characters of
    /// `A-Z a-z 0-9 _ -`. Default `chatbox`.
    pub prefix: String,
    /// A token. Default empty.
    pub token: Secret,
    /// A file that holds it. Default empty.
    pub token_file: String,
    /// A user; with `password`. Default empty.
    pub user: String,
    /// Their password. Default empty.
    pub password: Secret,
    /// A file that holds it. Default empty.
    pub password_file: String,
    /// A file with a user's JWT and the seed of its `NKey`, as `nsc` makes it. Default empty.
    pub credentials_file: String,
    /// Certificates that the servers' are signed with, as PEM; empty: those of the system. Default empty.
    pub ca_file: String,
    /// Our certificate for the servers, as PEM; with `key_file`. Default empty.
    pub cert_file: String,
    /// Its key, as PEM. Default empty.
    pub key_file: String,
    /// What `credentials_file` holds.
    #[serde(skip)]
    pub(super) credentials: Secret,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            url: "local".to_owned(),
            prefix: "chatbox".to_owned(),
            token: Secret::default(),
            token_file: String::new(),
            user: String::new(),
            password: Secret::default(),
            password_file: String::new(),
            credentials_file: String::new(),
            ca_file: String::new(),
            cert_file: String::new(),
            key_file: String::new(),
            credentials: Secret::default(),
        }
    }
}

impl BusConfig {
    /// Nobody else is expected.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.url == "local"
    }

    /// How to reach the servers.
    #[must_use]
    pub fn nats(&self) -> NatsOptions {
        let file = |name: &str| (!name.is_empty()).then(|| PathBuf::from(name));
        let auth = if !self.credentials.is_empty() {
            NatsAuth::Credentials(self.credentials.expose().to_owned())
        } else if !self.token.is_empty() {
            NatsAuth::Token(self.token.expose().to_owned())
        } else if !self.user.is_empty() {
            NatsAuth::User { name: self.user.clone(), password: self.password.expose().to_owned() }
        } else {
            NatsAuth::None
        };
        NatsOptions {
            servers: self.servers().map(ToOwned::to_owned).collect(),
            prefix: self.prefix.clone(),
            auth,
            ca_file: file(&self.ca_file),
            client_cert: file(&self.cert_file).zip(file(&self.key_file)),
        }
    }

    fn servers(&self) -> impl Iterator<Item = &str> {
        self.url.split(',').map(str::trim)
    }

    /// Adds what is wrong.
    pub(super) fn check(&self, production: bool, mistakes: &mut Vec<String>) {
        let mut wrong = |text: &str| mistakes.push(text.to_owned());
        if self.is_local() {
            let set = [&self.user, &self.token_file, &self.password_file, &self.credentials_file, &self.ca_file];
            if set.iter().any(|text| !text.is_empty()) || !self.token.is_empty() || !self.password.is_empty() {
                wrong("bus.url: local takes no other settings of bus");
            }
            return;
        }
        if !self.servers().all(is_server) {
            wrong("bus.url: must be local, or like tls://nats-0:4222,tls://nats-1:4222 without a user or a path");
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
        if self.prefix.is_empty() || self.prefix.len() > MAX_PREFIX || !self.prefix.bytes().all(allowed) {
            wrong("bus.prefix: must be 1 to 64 characters of A-Z, a-z, 0-9, _ and -");
        }
        if self.user.is_empty() != self.password.is_empty() {
            wrong("bus.user, bus.password: set both or none");
        }
        if self.cert_file.is_empty() != self.key_file.is_empty() {
            wrong("bus.cert_file, bus.key_file: set both or none");
        }
        let ways = [!self.token.is_empty(), !self.user.is_empty(), !self.credentials.is_empty()];
        let ways = ways.into_iter().filter(|way| *way).count();
        if ways > 1 {
            wrong("bus.token, bus.user, bus.credentials_file: set only one of them");
        }
        let tls = self.servers().all(|server| server.starts_with("tls://"));
        if (!self.ca_file.is_empty() || !self.cert_file.is_empty()) && !tls {
            wrong("bus.ca_file, bus.cert_file: only with servers by tls:");
        }
        if !production {
            return;
        }
        if !tls {
            wrong("bus.url: must be tls:// in the production profile");
        }
        if ways == 0 && self.cert_file.is_empty() {
            wrong("bus.credentials_file: or a token, a user or a certificate must be set in the production profile");
        }
        for (name, secret) in [("token", &self.token), ("password", &self.password)] {
            if !secret.is_empty() && secret.is_placeholder() {
                mistakes.push(format!("bus.{name}: is a placeholder"));
            }
        }
    }
}

/// A scheme, a host and maybe a port; a user or password would end up in logs.
fn is_server(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("nats://").or_else(|| url.strip_prefix("tls://")) else { return false };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (rest, None),
    };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
    !host.is_empty() && host.bytes().all(allowed) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|p| p > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(config: &BusConfig, production: bool) -> Vec<String> {
        let mut mistakes = Vec::new();
        config.check(production, &mut mistakes);
        mistakes
    }

    fn nats(url: &str) -> BusConfig {
        BusConfig { url: url.into(), ..BusConfig::default() }
    }

    #[test]
    fn servers_are_urls_without_users_or_paths() {
        for good in ["nats://localhost", "tls://nats-0.nats:4222, tls://nats-1.nats:4222", "nats://[::1]:4222"] {
            assert!(mistakes(&nats(good), false).is_empty(), "{good}");
        }
        for bad in ["", "nats", "http://localhost", "nats://", "nats://u:p@host:1", "nats://host/x", "nats://host:0,"] {
            assert!(!mistakes(&nats(bad), false).is_empty(), "{bad}");
        }
    }

    #[test]
    fn production_wants_tls_and_authentication() {
        assert!(mistakes(&BusConfig::default(), true).is_empty());
        let open = mistakes(&nats("nats://host:4222"), true);
        assert_eq!(open.len(), 2, "{open:?}");
        let token = BusConfig { token: Secret::new("a long and random one"), ..nats("tls://host:4222") };
        assert!(mistakes(&token, true).is_empty());
        let mixed = BusConfig { url: "tls://a,nats://b".into(), ..token.clone() };
        assert_eq!(mistakes(&mixed, true).len(), 1);
        let placeholder = BusConfig { token: Secret::new("changeme"), ..token };
        assert_eq!(mistakes(&placeholder, true), ["bus.token: is a placeholder"]);
    }

    #[test]
    fn only_one_way_in_and_what_belongs_together_together() {
        let two = BusConfig { token: Secret::new("t"), user: "u".into(), ..nats("nats://host") };
        assert_eq!(mistakes(&two, false).len(), 2);
        let half = BusConfig { cert_file: "cert.pem".into(), ..nats("tls://host") };
        assert_eq!(mistakes(&half, false), ["bus.cert_file, bus.key_file: set both or none"]);
        let local = BusConfig { token: Secret::new("t"), ..BusConfig::default() };
        assert_eq!(mistakes(&local, false).len(), 1);
    }
}

//! Where sessions are kept, and the keys they are sealed with.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use chatbox_proto::{
    settings::{self, ByteSize},
    token::Secret,
};
use serde::{Deserialize, Serialize, Serializer};

/// Where sessions are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `sqlite:` and the path of a file, which is made when it is not there; or `mongodb://` with user, password, the members
    /// of a replica set and the database, as MongoDB's drivers take it. Default `sqlite:./data/chatbox.db`.
    pub url: StoreUrl,
    /// A file that holds the URL, for one with a password. Default empty.
    pub url_file: String,
    /// Size that a SQLite database may grow to; writes beyond it fail and nothing is lost: 1 MiB to 1,024 GiB, or `0B` for
    /// no limit. Default `0B`.
    pub max_size: ByteSize,
    /// Connections to each MongoDB server at most: 4 to 500. Default 32.
    pub pool_size: u32,
    /// Time for one call: 100 ms to 1 min. Default 5 s.
    #[serde(with = "settings::duration")]
    pub call_timeout: Duration,
}

/// The URL of a store. Shown only when it cannot hold a password.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct StoreUrl(Secret);

impl StoreUrl {
    /// The URL itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    fn is_open(&self) -> bool {
        self.expose().starts_with(SQLITE)
    }
}

impl From<String> for StoreUrl {
    fn from(url: String) -> Self {
        Self(Secret::new(url))
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_open() { f.write_str(self.expose()) } else { self.0.fmt(f) }
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_open() { serializer.serialize_str(self.expose()) } else { self.0.serialize(serializer) }
    }
}

const SQLITE: &str = "sqlite:";
const MONGODB: &str = "mongodb://";
const DEFAULT_URL: &str = "sqlite:./data/chatbox.db";

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: DEFAULT_URL.to_owned().into(),
            url_file: String::new(),
            max_size: ByteSize::bytes(0),
            pool_size: 32,
            call_timeout: Duration::from_secs(5),
        }
    }
}

/// What the URL of a store names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreTarget {
    /// An embedded database in this file.
    Sqlite(PathBuf),
    /// A MongoDB replica set at this URI.
    Mongo(Secret),
}

impl StoreConfig {
    /// What the URL names.
    ///
    /// # Errors
    /// The rule that the URL breaks.
    pub fn target(&self) -> Result<StoreTarget, &'static str> {
        const RULE: &str =
            "must be like sqlite:./data/chatbox.db or mongodb://user:password@host/chatbox?replicaSet=rs0";
        let url = self.url.expose();
        if let Some(rest) = url.strip_prefix(MONGODB) {
            return if rest.is_empty() { Err(RULE) } else { Ok(StoreTarget::Mongo(self.url.0.clone())) };
        }
        if url.starts_with("mongodb+srv:") {
            return Err("mongodb+srv is not supported: name the members of the replica set, as in mongodb://a,b,c/");
        }
        let path = url.strip_prefix(SQLITE).ok_or(RULE)?;
        // The form with an authority, `sqlite:///data/chatbox.db`, names the same file.
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || path.ends_with('/') || path.contains(['\0', '?', '#']) {
            return Err(RULE);
        }
        Ok(StoreTarget::Sqlite(PathBuf::from(path)))
    }

    /// Whether a URL was set beside the one in the file.
    pub(super) fn has_own_url(&self) -> bool {
        self.url.expose() != DEFAULT_URL
    }

    /// What makes the URL not good enough for production: everything in the database is sealed, but whoever can write there
    /// can do harm, and whoever listens sees who talks when.
    pub(super) fn production_mistake(&self) -> Option<&'static str> {
        let rest = self.url.expose().strip_prefix(MONGODB)?;
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let options: Vec<(String, &str)> = tail
            .split_once('?')
            .map_or("", |(_, options)| options)
            .split('&')
            .filter_map(|option| option.split_once('='))
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        let is = |name: &str, wanted: &str| {
            options.iter().any(|(other, value)| other == name && value.eq_ignore_ascii_case(wanted))
        };
        let password = user.split_once(':').map_or("", |(_, password)| password);
        if password.is_empty() && !is("authmechanism", "MONGODB-X509") {
            return Some("must have a user and a password, or authMechanism=MONGODB-X509, in the production profile");
        }
        if !password.is_empty() && Secret::new(password).is_placeholder() {
            return Some("has a placeholder as its password");
        }
        if is("tlsinsecure", "true")
            || is("tlsallowinvalidcertificates", "true")
            || is("tlsallowinvalidhostnames", "true")
        {
            return Some("must not switch the verification of certificates off in the production profile");
        }
        let encrypted = is("tls", "true") || is("ssl", "true");
        if !encrypted && !hosts.split(',').all(is_loopback) {
            return Some("must have tls=true in the production profile, unless all servers are on this machine");
        }
        None
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The keys that what is stored is sealed with: at least one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeysConfig {
    /// Id of the key for what is new. Default empty, which is the only key there is.
    pub primary: String,
    /// All keys; the others open what is older. As a variable: `[{id = "k1", key = "…"}]`. Default none.
    pub ring: Vec<KeyConfig>,
}

impl KeysConfig {
    /// Id of the key for what is new. `None`: it is not said, and there is not exactly one key.
    #[must_use]
    pub fn primary_id(&self) -> Option<&str> {
        match self.ring.as_slice() {
            [only] if self.primary.is_empty() => Some(&only.id),
            _ if self.primary.is_empty() => None,
            _ => Some(&self.primary),
        }
    }

    /// Ids and keys, as base64.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.ring.iter().map(|key| (key.id.as_str(), key.key.expose()))
    }
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyConfig {
    /// 1 to 32 characters of `a-z 0-9 _ -`; stored with everything the key seals, so it must never name another key.
    pub id: String,
    /// 32 random bytes as base64, e.g. from `openssl rand -base64 32`. Empty: in `key_file`.
    pub key: Secret,
    /// A file that holds the key in the same form. Default empty.
    pub key_file: String,
}

//! Where sessions are kept, and the keys they are sealed with.

use std::{path::PathBuf, time::Duration};

use chatbox_proto::{
    settings::{self, ByteSize},
    token::Secret,
};
use serde::{Deserialize, Serialize};

/// Where sessions are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `sqlite:` and the path of a file, which is made when it is not there. Default `sqlite:./data/chatbox.db`.
    pub url: String,
    /// Size that the database may grow to; writes beyond it fail and nothing is lost: 1 MiB to 1,024 GiB, or `0B` for no
    /// limit. Default `0B`.
    pub max_size: ByteSize,
    /// Time for one call: 100 ms to 1 min. Default 5 s.
    #[serde(with = "settings::duration")]
    pub call_timeout: Duration,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: "sqlite:./data/chatbox.db".to_owned(),
            max_size: ByteSize::bytes(0),
            call_timeout: Duration::from_secs(5),
        }
    }
}

/// What the URL of a store names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreTarget {
    /// An embedded database in this file.
    Sqlite(PathBuf),
}

impl StoreConfig {
    /// What the URL names.
    ///
    /// # Errors
    /// The rule that the URL breaks.
    pub fn target(&self) -> Result<StoreTarget, &'static str> {
        const RULE: &str = "must be like sqlite:./data/chatbox.db";
        let path = self.url.strip_prefix("sqlite:").ok_or(RULE)?;
        // The form with an authority, `sqlite:///data/chatbox.db`, names the same file.
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || path.ends_with('/') || path.contains(['\0', '?', '#']) {
            return Err(RULE);
        }
        Ok(StoreTarget::Sqlite(PathBuf::from(path)))
    }
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

//! The section `[token]` of both binaries.

use std::{fmt, path::Path, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};

use crate::settings::{self, ReadFile};

/// How tokens are verified. One algorithm per deployment, pinned: what a token's header says never chooses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenConfig {
    /// `HS256`, `RS256`, `ES256` or `EdDSA`.
    pub algorithm: Algorithm,
    /// The shared secret of HS256: at least 32 bytes. Empty: in `secret_file`.
    pub secret: Secret,
    /// A file that holds the secret; a line end at its end is not part of it. Empty: not set.
    pub secret_file: String,
    /// The key set of an asymmetric algorithm as a file; empty: not set.
    pub jwks_file: String,
    /// The key set of an asymmetric algorithm as a URL; empty: not set.
    pub jwks_url: String,
    /// The `iss` that tokens must have; empty: any.
    pub issuer: String,
    /// The `aud` that tokens must contain; empty: tokens must not name one.
    pub audience: String,
    /// How far the clocks of issuer and server may be apart: 0 s to 5 min.
    #[serde(with = "settings::duration")]
    pub leeway: Duration,
    /// How often the key set is read again: 10 s to 1 day.
    #[serde(with = "settings::duration")]
    pub jwks_refresh: Duration,
    /// How often, at most, an unknown key id may cause the key set to be read again: 1 s to 1 h.
    #[serde(with = "settings::duration")]
    pub jwks_min_interval: Duration,
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::HS256,
            secret: Secret::default(),
            secret_file: String::new(),
            jwks_file: String::new(),
            jwks_url: String::new(),
            issuer: String::new(),
            audience: String::new(),
            leeway: Duration::from_secs(30),
            jwks_refresh: Duration::from_secs(300),
            jwks_min_interval: Duration::from_secs(10),
        }
    }
}

/// The algorithms a deployment may pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256 and a shared secret.
    HS256,
    /// RSA PKCS #1 v1.5 with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

impl Algorithm {
    /// As in the header of a token.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::RS256 => "RS256",
            Self::ES256 => "ES256",
            Self::EdDSA => "EdDSA",
        }
    }

    /// Whether it takes a shared secret rather than a key set.
    #[must_use]
    pub const fn is_symmetric(self) -> bool {
        matches!(self, Self::HS256)
    }
}

const MIN_SECRET_BYTES: usize = 32;

impl TokenConfig {
    /// Every mistake, each naming its setting. `production` also refuses what is only good enough for a laptop.
    #[must_use]
    pub fn check(&self, production: bool) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.algorithm.is_symmetric() {
            self.check_secret(production, &mut mistakes);
        } else {
            self.check_key_set(production, &mut mistakes);
        }
        for (setting, value, min, max) in [
            ("leeway", self.leeway, 0, 300),
            ("jwks_refresh", self.jwks_refresh, 10, 86_400),
            ("jwks_min_interval", self.jwks_min_interval, 1, 3_600),
        ] {
            if value < Duration::from_secs(min) || value > Duration::from_secs(max) {
                mistakes.push(format!("token.{setting}: must be from {min}s to {max}s"));
            }
        }
        mistakes
    }

    /// Takes the secret from its file, if one is named. To be called before [`check`](Self::check).
    ///
    /// # Errors
    /// What is wrong, naming the setting.
    pub fn read_secret(&mut self, read_file: ReadFile<'_>) -> Result<(), String> {
        self.secret.read_from("token.secret", &self.secret_file, read_file)
    }

    fn check_secret(&self, production: bool, mistakes: &mut Vec<String>) {
        let secret = self.secret.expose();
        if secret.is_empty() && !self.secret_file.is_empty() {
            // It could not be read, or nothing is in it.
            mistakes.push("token.secret_file: must hold the secret".to_owned());
        } else if secret.is_empty() {
            mistakes.push("token.secret: must be set for HS256".to_owned());
        } else if secret.len() < MIN_SECRET_BYTES {
            mistakes.push(format!("token.secret: must have at least {MIN_SECRET_BYTES} bytes"));
        } else if production && self.secret.is_placeholder() {
            mistakes.push("token.secret: is a placeholder or too uniform; take 32 random bytes, e.g. from `openssl rand -base64 32`".to_owned());
        }
        if !self.jwks_file.is_empty() || !self.jwks_url.is_empty() {
            mistakes.push(
                "token.jwks_file, token.jwks_url: not used with HS256; remove them or name the algorithm".to_owned(),
            );
        }
    }

    fn check_key_set(&self, production: bool, mistakes: &mut Vec<String>) {
        let name = self.algorithm.name();
        if !self.secret.expose().is_empty() || !self.secret_file.is_empty() {
            mistakes.push(format!("token.secret, token.secret_file: not used with {name}; remove them"));
        }
        match (self.jwks_file.is_empty(), self.jwks_url.is_empty()) {
            (true, true) => mistakes.push(format!("token.jwks_file or token.jwks_url: one must be set for {name}")),
            (false, false) => mistakes.push("token.jwks_file, token.jwks_url: set only one of them".to_owned()),
            (false, true) => {}
            (true, false) => match self.jwks_url.parse::<http::Uri>() {
                Ok(url) if url.scheme_str() == Some("https") && url.host().is_some() => {}
                // Keys that travel in the clear can be replaced on the way, and with them every identity.
                Ok(url) if url.scheme_str() == Some("http") && (!production || is_loopback(&url)) => {}
                Ok(_) | Err(_) => mistakes.push("token.jwks_url: must be an https:// URL".to_owned()),
            },
        }
    }
}

fn is_loopback(url: &http::Uri) -> bool {
    let host = url.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// A text that no log, error or printed configuration shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

/// What stands in the place of a secret.
const REDACTED: &str = "[redacted]";

/// Parts of secrets that people copy from examples. Each has six characters or more, so that a random secret does not
/// contain one by chance.
const PLACEHOLDERS: [&str; 11] = [
    "changeme",
    "change-me",
    "change_me",
    "placeholder",
    "secret",
    "password",
    "example",
    "replace",
    "default",
    "insecure",
    "your-key",
];

/// A random text of 32 characters has about 20 different ones, 32 random bytes in hexadecimal at least 10.
const MIN_DIFFERENT_CHARS: usize = 8;

impl Secret {
    /// Takes a secret in.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself: for keys, never for texts.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether none is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the secret of the setting `name` from the file of the setting `name_file`, if one is named.
    ///
    /// # Errors
    /// What is wrong, naming the setting.
    pub fn read_from(&mut self, name: &str, file: &str, read_file: ReadFile<'_>) -> Result<(), String> {
        if file.is_empty() {
            return Ok(());
        }
        if !self.is_empty() {
            return Err(format!("{name}, {name}_file: set only one of them"));
        }
        let text = read_file(Path::new(file));
        let text = text.map_err(|error| format!("{name}_file: cannot be read: {}", error.kind()))?;
        // Editors end a file with a line feed; no secret does.
        *self = Self::new(text.trim_end_matches(['\r', '\n']));
        Ok(())
    }

    /// Whether it looks like one from an example, or is too uniform to be random.
    #[must_use]
    pub fn is_placeholder(&self) -> bool {
        let lower = self.0.to_lowercase();
        let different: std::collections::HashSet<char> = lower.chars().collect();
        different.len() < MIN_DIFFERENT_CHARS || PLACEHOLDERS.iter().any(|placeholder| lower.contains(placeholder))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "[not set]" } else { REDACTED })
    }
}

/// Redacted too: configurations are serialized to be shown.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { REDACTED })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        // serde's own errors quote the value that did not fit.
        impl Visitor<'_> for Text {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::new(text))
            }

            fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Secret, E> {
                Err(E::custom("must be a string"))
            }

            fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Secret, E> {
                Err(E::custom("must be a string"))
            }

            fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Secret, E> {
                Err(E::custom("must be a string"))
            }
        }

        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM";

    fn hs256(secret: &str) -> TokenConfig {
        TokenConfig { secret: Secret::new(secret), ..TokenConfig::default() }
    }

    fn with_url(url: &str) -> TokenConfig {
        TokenConfig { algorithm: Algorithm::ES256, jwks_url: url.to_owned(), ..TokenConfig::default() }
    }

    #[test]
    fn a_random_secret_is_taken() {
        assert_eq!(hs256(GOOD).check(true), Vec::<String>::new());
        assert_eq!(hs256("0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0").check(true).len(), 0);
    }

    #[test]
    fn a_short_secret_is_refused_everywhere_and_a_placeholder_in_production() {
        for short in ["", "secret", &GOOD[..31]] {
            assert_eq!(hs256(short).check(false).len(), 1, "{short}");
        }
        for weak in [
            "changeme-changeme-changeme-changeme",
            "PLACEHOLDER_REPLACE_WITH_32_RANDOM_BYTES",
            "my-super-SECRET-signing-key-for-tokens",
            &"a".repeat(64),
            &"abcd".repeat(16),
        ] {
            assert_eq!(hs256(weak).check(false).len(), 0, "{weak}");
            assert!(hs256(weak).check(true)[0].starts_with("token.secret: "), "{weak}");
        }
    }

    #[test]
    fn a_secret_comes_from_a_file_too_and_only_from_one_place() {
        let read = |path: &Path| match path.to_str() {
            Some("/run/secret") => Ok(format!("{GOOD}\r\n")),
            Some("/run/empty") => Ok("\n".to_owned()),
            _ => Err(std::io::ErrorKind::PermissionDenied.into()),
        };
        let from = |file: &str| TokenConfig { secret_file: file.to_owned(), ..TokenConfig::default() };
        let mut config = from("/run/secret");
        config.read_secret(&read).unwrap();
        assert_eq!((config.secret.expose(), config.check(true).len()), (GOOD, 0));
        assert!(config.read_secret(&read).unwrap_err().starts_with("token.secret, token.secret_file: "));
        let mut denied = from("/run/other");
        assert_eq!(denied.read_secret(&read).unwrap_err(), "token.secret_file: cannot be read: permission denied");
        let mut empty = from("/run/empty");
        empty.read_secret(&read).unwrap();
        for config in [denied, empty] {
            assert_eq!(config.check(false), ["token.secret_file: must hold the secret"]);
        }
        let unused =
            TokenConfig { jwks_file: "keys.json".to_owned(), algorithm: Algorithm::ES256, ..from("/run/secret") };
        assert_eq!(unused.check(false), ["token.secret, token.secret_file: not used with ES256; remove them"]);
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let config = TokenConfig {
            algorithm: Algorithm::RS256,
            secret: Secret::new(GOOD),
            leeway: Duration::from_secs(3600),
            ..TokenConfig::default()
        };
        assert_eq!(config.check(false).len(), 3);
    }

    #[test]
    fn keys_come_over_https_except_from_this_machine_or_in_development() {
        assert_eq!(with_url("https://issuer.test/jwks.json").check(true).len(), 0);
        assert_eq!(with_url("http://127.0.0.1:9/jwks.json").check(true).len(), 0);
        assert_eq!(with_url("http://[::1]:9/jwks.json").check(true).len(), 0);
        assert_eq!(with_url("http://issuer.test/jwks.json").check(false).len(), 0);
        for bad in ["http://issuer.test/jwks.json", "http://127.0.0.1.evil.test/", "ftp://issuer.test/", "issuer.test"]
        {
            assert_eq!(with_url(bad).check(true).len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_secret_is_shown_nowhere() {
        let config = hs256(GOOD);
        assert!(!format!("{config:?}").contains(GOOD));
        assert!(!serde_json::to_string(&config).unwrap().contains(GOOD));
        let error = serde_json::from_str::<TokenConfig>(r#"{"secret":123456789}"#).unwrap_err();
        assert!(!error.to_string().contains("123456789"));
    }

    #[test]
    fn misspelt_settings_are_refused() {
        assert!(serde_json::from_str::<TokenConfig>(r#"{"secrets":"x"}"#).is_err());
        assert!(serde_json::from_str::<TokenConfig>(r#"{"algorithm":"none"}"#).is_err());
    }
}

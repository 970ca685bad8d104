//! Key sets (RFC 7517): reading them defensively.

use async_trait::async_trait;
use bytes::Bytes;
use jsonwebtoken::DecodingKey;
use serde::{Deserialize, de::IgnoredAny};

use super::{Algorithm, TokenError};

/// Keys beyond this many are not taken.
pub const MAX_KEYS: usize = 64;

/// Key sets above this are refused.
pub const MAX_KEY_SET_BYTES: usize = 256 * 1024;

const MAX_KEY_ID_BYTES: usize = 255;

/// Smaller RSA keys are no protection (NIST SP 800-131A).
const MIN_RSA_BYTES: usize = 256;

/// Why a key set could not be read; for the log.
pub type KeySourceError = Box<dyn std::error::Error + Send + Sync>;

/// Where a key set comes from: a file or a URL.
#[async_trait]
pub trait KeySource: Send + Sync + std::fmt::Debug {
    /// The JSON of the key set, at most `limit` bytes. The caller bounds the time it may take, by dropping the future.
    async fn fetch(&self, limit: usize) -> Result<Bytes, KeySourceError>;
}

/// The keys of one algorithm.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    keys: Vec<(Option<String>, DecodingKey)>,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

/// The members we look at. Everything else (certificates, key operations of other products) is skipped, so that one key we do
/// not understand does not lose the whole set.
#[derive(Deserialize)]
struct Key {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
    /// Private parts: a set that publishes them is compromised.
    #[serde(default)]
    d: Option<IgnoredAny>,
}

impl KeySet {
    /// Reads the keys that fit the algorithm; others, symmetric ones above all, are never taken.
    pub(super) fn parse(json: &[u8], algorithm: Algorithm) -> Result<Self, KeySourceError> {
        if json.len() > MAX_KEY_SET_BYTES {
            return Err("the key set is too large".into());
        }
        let document: Document = serde_json::from_slice(json)?;
        let mut keys: Vec<(Option<String>, DecodingKey)> = Vec::new();
        for value in document.keys.into_iter().take(MAX_KEYS) {
            let Ok(key) = Key::deserialize(value) else { continue };
            if let Some(decoding) = key.decoding_key(algorithm) {
                // Two keys with one id: which one verifies would depend on the order.
                if key.kid.is_some() && keys.iter().any(|(kid, _)| *kid == key.kid) {
                    return Err("the key set has a key id twice".into());
                }
                keys.push((key.kid, decoding));
            }
        }
        if keys.is_empty() {
            return Err(format!("the key set has no usable key for {}", algorithm.name()).into());
        }
        Ok(Self { keys })
    }

    /// The key of a token. A token without `kid` is only taken while there is no choice.
    pub(super) fn find(&self, kid: Option<&str>) -> Result<&DecodingKey, TokenError> {
        let found = match kid {
            Some(_) => self.keys.iter().find(|(known, _)| known.as_deref() == kid),
            None if self.keys.len() == 1 => self.keys.first(),
            None => None,
        };
        found.map(|(_, key)| key).ok_or(TokenError::UnknownKey)
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

impl Key {
    fn decoding_key(&self, algorithm: Algorithm) -> Option<DecodingKey> {
        let for_signatures = self.usage.as_deref().is_none_or(|usage| usage == "sig");
        let for_algorithm = self.alg.as_deref().is_none_or(|alg| alg == algorithm.name());
        let id_fits = self.kid.as_ref().is_none_or(|kid| kid.len() <= MAX_KEY_ID_BYTES);
        if !(for_signatures && for_algorithm && id_fits && self.d.is_none()) {
            return None;
        }
        match (algorithm, self.kty.as_str(), self.crv.as_deref()) {
            (Algorithm::RS256, "RSA", _) => {
                let (n, e) = (decode(self.n.as_deref()?)?, decode(self.e.as_deref()?)?);
                (n.len() >= MIN_RSA_BYTES).then(|| DecodingKey::from_rsa_raw_components(&n, &e))
            }
            (Algorithm::ES256, "EC", Some("P-256")) => {
                let (x, y) = (self.x.as_deref()?, self.y.as_deref()?);
                // RFC 7518 section 6.2.1.2: coordinates have the full length of the field.
                let full = decode(x)?.len() == 32 && decode(y)?.len() == 32;
                full.then(|| DecodingKey::from_ec_components(x, y).ok()).flatten()
            }
            (Algorithm::EdDSA, "OKP", Some("Ed25519")) => {
                let x = self.x.as_deref()?;
                (decode(x)?.len() == 32).then(|| DecodingKey::from_ed_components(x).ok()).flatten()
            }
            _ => None,
        }
    }
}

fn decode(base64: &str) -> Option<Vec<u8>> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.decode(base64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

    fn parse(keys: &str, algorithm: Algorithm) -> Result<KeySet, KeySourceError> {
        KeySet::parse(format!(r#"{{"keys":[{keys}]}}"#).as_bytes(), algorithm)
    }

    #[test]
    fn a_symmetric_key_is_never_taken_from_a_set() {
        let oct = r#"{"kty":"oct","kid":"a","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}"#;
        for algorithm in [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA, Algorithm::HS256] {
            assert!(parse(oct, algorithm).is_err(), "{algorithm:?}");
        }
    }

    #[test]
    fn keys_of_other_kinds_and_uses_are_skipped() {
        let set = parse(
            &format!(r#"{{"kty":"later"}}, 7, {}, {ED}"#, ED.replace(r#""kid":"a""#, r#""kid":"e","use":"enc""#)),
            Algorithm::EdDSA,
        )
        .unwrap();
        assert_eq!(set.len(), 1);
        assert!(set.find(Some("a")).is_ok() && set.find(Some("e")).is_err());
        assert!(parse(ED, Algorithm::ES256).is_err());
        assert!(parse(&ED.replace(r#""kid""#, r#""alg":"ES256","kid""#), Algorithm::EdDSA).is_err());
    }

    #[test]
    fn a_published_private_key_is_not_trusted() {
        assert!(parse(&ED.replace(r#""kid""#, r#""d":"abc","kid""#), Algorithm::EdDSA).is_err());
    }

    #[test]
    fn a_small_rsa_key_is_not_trusted() {
        let n = "Q".repeat(171);
        assert!(parse(&format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB"}}"#), Algorithm::RS256).is_err());
        let n = "Q".repeat(342);
        assert!(parse(&format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB"}}"#), Algorithm::RS256).is_ok());
    }

    #[test]
    fn a_token_without_key_id_needs_a_set_of_one() {
        assert!(parse(ED, Algorithm::EdDSA).unwrap().find(None).is_ok());
        let two = format!("{ED},{}", ED.replace(r#""a""#, r#""b""#));
        assert_eq!(parse(&two, Algorithm::EdDSA).unwrap().find(None).unwrap_err(), TokenError::UnknownKey);
    }

    #[test]
    fn a_set_is_bounded_and_unambiguous() {
        assert!(parse(&format!("{ED},{ED}"), Algorithm::EdDSA).is_err());
        let many: Vec<_> = (0..100).map(|i| ED.replace(r#""a""#, &format!("\"k{i}\""))).collect();
        assert_eq!(parse(&many.join(","), Algorithm::EdDSA).unwrap().len(), MAX_KEYS);
        assert!(KeySet::parse(&vec![b' '; MAX_KEY_SET_BYTES + 1], Algorithm::EdDSA).is_err());
        assert!(KeySet::parse(b"<html>", Algorithm::EdDSA).is_err());
    }
}

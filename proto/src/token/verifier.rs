//! The verification itself, and the cache of the key set.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::DecodingKey;
use serde::{Deserialize, de::IgnoredAny};
use tokio::{sync::Mutex, time::Instant};

use super::{
    Algorithm, Identity, KeySource, KeySourceError, MAX_KEY_SET_BYTES, MAX_TOKEN_BYTES, TokenConfig, TokenError,
    claims::{Claims, Demands},
    keys::KeySet,
};

/// A key set that takes longer than this to fetch counts as not available.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Verifies tokens. [`verify`](Self::verify) is synchronous, takes no lock but a short read lock, and does no I/O;
/// [`authenticate`](Self::authenticate) is what to call with a stranger's token.
pub struct Verifier {
    algorithm: Algorithm,
    demands: Demands,
    keys: Keys,
}

enum Keys {
    Shared(DecodingKey),
    Set(CachedSet),
}

struct CachedSet {
    source: Arc<dyn KeySource>,
    refresh: Duration,
    min_interval: Duration,
    /// Replaced whole; the lock is held for the length of an `Arc` clone.
    current: RwLock<Arc<KeySet>>,
    /// When the source was last asked. Held while it is asked, so that all who wait share one answer.
    last_attempt: Mutex<Option<Instant>>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

impl Verifier {
    /// With a configuration that [`TokenConfig::check`] found good. `source` is where the key set comes from; it is not
    /// used for HS256. The set is empty until [`refresh`](Self::refresh) was called, which
    /// [`authenticate`](Self::authenticate) does when it must.
    ///
    /// # Errors
    /// When an asymmetric algorithm has no source, or HS256 no acceptable secret.
    pub fn new(config: &TokenConfig, source: Option<Arc<dyn KeySource>>) -> Result<Self, KeySourceError> {
        let keys = if config.algorithm.is_symmetric() {
            if config.secret.expose().len() < 32 {
                return Err("token.secret: must have at least 32 bytes".into());
            }
            Keys::Shared(DecodingKey::from_secret(config.secret.expose().as_bytes()))
        } else {
            Keys::Set(CachedSet {
                source: source.ok_or("the algorithm needs a key set")?,
                refresh: config.jwks_refresh,
                min_interval: config.jwks_min_interval,
                current: RwLock::default(),
                last_attempt: Mutex::new(None),
            })
        };
        let demands =
            Demands { issuer: config.issuer.clone(), audience: config.audience.clone(), leeway: config.leeway };
        Ok(Self { algorithm: config.algorithm, demands, keys })
    }

    /// Verifies a token with the keys that are known now.
    ///
    /// # Errors
    /// What is wrong with it, for the log. [`TokenError::UnknownKey`] may pass after [`refresh`](Self::refresh).
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, TokenError> {
        let (message, signature, header, payload) = split(token)?;
        let header: Header = decode_json(header)?;
        // The pinned algorithm decides, never the header: no `none`, no public key taken for an HMAC secret.
        if header.alg != self.algorithm.name() {
            return Err(TokenError::WrongAlgorithm);
        }
        if header.crit.is_some() {
            return Err(TokenError::CriticalExtension);
        }
        let fits = match &self.keys {
            Keys::Shared(key) => check_signature(signature, message, key, self.algorithm),
            Keys::Set(set) => {
                check_signature(signature, message, set.current().find(header.kid.as_deref())?, self.algorithm)
            }
        };
        if !fits {
            return Err(TokenError::BadSignature);
        }
        decode_json::<Claims>(payload)?.into_identity(&self.demands, now)
    }

    /// Verifies a token; reads the key set again when it names a key that is not known, at most once per configured
    /// interval however many strangers ask.
    ///
    /// # Errors
    /// What is wrong with it, for the log.
    pub async fn authenticate(&self, token: &str, now: SystemTime) -> Result<Identity, TokenError> {
        let first = self.verify(token, now);
        let (Err(TokenError::UnknownKey), Keys::Set(set)) = (&first, &self.keys) else { return first };
        let before = set.current();
        let mut last_attempt = set.last_attempt.lock().await;
        // Somebody else may have read it while we waited.
        let changed = !Arc::ptr_eq(&before, &set.current());
        if !changed && last_attempt.is_none_or(|last| last.elapsed() >= set.min_interval) {
            *last_attempt = Some(Instant::now());
            if let Err(error) = set.read(self.algorithm).await {
                tracing::warn!(error = %error, "the key set could not be read, keeping the keys we have");
            }
        }
        drop(last_attempt);
        self.verify(token, now)
    }

    /// Reads the key set now. When that fails the keys before stay.
    ///
    /// # Errors
    /// Why it could not be read; for the log.
    pub async fn refresh(&self) -> Result<(), KeySourceError> {
        let Keys::Set(set) = &self.keys else { return Ok(()) };
        let mut last_attempt = set.last_attempt.lock().await;
        *last_attempt = Some(Instant::now());
        set.read(self.algorithm).await
    }

    /// Reads the key set again and again, forever: run it in a task of your own that ends with the process.
    pub async fn keep_fresh(&self) {
        let Keys::Set(set) = &self.keys else { return std::future::pending().await };
        loop {
            tokio::time::sleep(set.refresh).await;
            if let Err(error) = self.refresh().await {
                tracing::warn!(error = %error, "the key set could not be read, keeping the keys we have");
            }
        }
    }
}

impl CachedSet {
    fn current(&self) -> Arc<KeySet> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn read(&self, algorithm: Algorithm) -> Result<(), KeySourceError> {
        let json = tokio::time::timeout(FETCH_TIMEOUT, self.source.fetch(MAX_KEY_SET_BYTES))
            .await
            .map_err(|_| "the key set took too long")??;
        let set = Arc::new(KeySet::parse(&json, algorithm)?);
        tracing::debug!(keys = set.len(), "key set read");
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = set;
        Ok(())
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// Message, signature, header and payload of a compact JWS.
fn split(token: &str) -> Result<(&str, &str, &str, &str), TokenError> {
    if token.is_empty() {
        return Err(TokenError::Missing);
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::TooLong);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
    if payload.contains('.') {
        return Err(TokenError::Malformed);
    }
    Ok((message, signature, header, payload))
}

fn decode_json<T: for<'a> Deserialize<'a>>(part: &str) -> Result<T, TokenError> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)
}

fn check_signature(signature: &str, message: &str, key: &DecodingKey, algorithm: Algorithm) -> bool {
    let algorithm = match algorithm {
        Algorithm::HS256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::RS256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::ES256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::EdDSA => jsonwebtoken::Algorithm::EdDSA,
    };
    jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, algorithm).unwrap_or(false)
}

#[cfg(test)]
mod tests;

//! The start-up self-test of the ring against what the store already holds, and the installation's own secret.

use std::fmt;

use super::{
    KeyRing, SealError,
    cipher::{Hasher, KeyBytes, derive, random_key},
    ring::Purpose,
};
use crate::store::{SessionStore, StoreError};

/// Under this name the store keeps the installation's secret, wrapped.
const SECRET: &str = "seal.secret";
/// Under this name and a key's id the store keeps that key's canary.
const CANARY: &str = "seal.canary.";

/// Why the ring does not fit the store.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// A key is missing from the ring, or another key has its id. Nothing that is stored can be trusted to open.
    #[error("the key ring does not fit the stored data ({name})")]
    WrongKey {
        /// Which value did not open.
        name: String,
        /// Why.
        source: SealError,
    },
    /// The store failed.
    #[error("the key ring could not be tested")]
    Store(#[from] StoreError),
}

/// A random secret made once per installation and kept wrapped in the store: the same over restarts, on every core and
/// after rotation of the ring.
pub struct InstallationSecret {
    hasher: Hasher,
}

impl InstallationSecret {
    fn new(secret: &KeyBytes) -> Self {
        Self { hasher: Hasher::new(&derive(secret, "chatbox/v1/installation/hash")) }
    }

    /// A hash that only this installation can compute: for the ids of idempotent calls. Different labels or different
    /// lists of parts are different inputs.
    #[must_use]
    pub fn hash(&self, label: &str, parts: &[&[u8]]) -> [u8; 16] {
        self.hasher.hash(label, parts)
    }
}

impl fmt::Debug for InstallationSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InstallationSecret(..)")
    }
}

/// Shows that every key of the ring is the one that this store's data was sealed with, and that the key of the
/// installation's secret is in the ring. The first start of an installation, and of a key, leaves what later ones compare with.
///
/// # Errors
/// When it does not fit; the process must not serve then.
pub async fn self_test(ring: &KeyRing, store: &dyn SessionStore) -> Result<InstallationSecret, SelfTestError> {
    // The secret first: a ring that does not fit must not leave canaries of its own.
    let wrapped = ring.wrap(ring.primary(), Purpose::Installation, &random_key());
    let secret = open(ring, Purpose::Installation, SECRET, &store.init_installation_value(SECRET, wrapped).await?)?;
    for id in ring.key_ids() {
        let name = format!("{CANARY}{id}");
        let wrapped = ring.wrap(id, Purpose::Canary, &random_key());
        open(ring, Purpose::Canary, &name, &store.init_installation_value(&name, wrapped).await?)?;
    }
    Ok(InstallationSecret::new(&secret))
}

fn open(ring: &KeyRing, purpose: Purpose, name: &str, wrapped: &[u8]) -> Result<KeyBytes, SelfTestError> {
    ring.open_wrapped(purpose, wrapped).map_err(|source| SelfTestError::WrongKey { name: name.to_owned(), source })
}

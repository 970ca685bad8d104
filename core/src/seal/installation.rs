//! The start-up self-test of the ring against what the store already holds, and the installation's own secret.

use std::fmt;

use super::{
    DataKey, KeyRing, SealError,
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
    audit: DataKey,
}

impl InstallationSecret {
    fn new(secret: &KeyBytes) -> Self {
        Self {
            hasher: Hasher::new(&derive(secret, "chatbox/v1/installation/hash")),
            audit: DataKey::new(&derive(secret, "chatbox/v1/installation/audit")),
        }
    }

    /// The key of what the audit trail says in words.
    #[must_use]
    pub fn audit_key(&self) -> &DataKey {
        &self.audit
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

/// Wraps the installation's secret anew under the primary key, where it is not yet; says whether it was done now.
///
/// # Errors
/// When the ring lacks the key it is wrapped under, or the store fails.
pub async fn rewrap_secret(ring: &KeyRing, store: &dyn SessionStore) -> Result<bool, SelfTestError> {
    let Some(wrapped) = store.installation_value(SECRET).await? else { return Ok(false) };
    let newer = ring
        .rewrap_for(Purpose::Installation, &wrapped)
        .map_err(|source| SelfTestError::WrongKey { name: SECRET.to_owned(), source })?;
    match newer {
        // Losing to somebody else's rotation is as good.
        Some(newer) => Ok(store.replace_installation_value(SECRET, wrapped, newer).await?),
        None => Ok(false),
    }
}

fn open(ring: &KeyRing, purpose: Purpose, name: &str, wrapped: &[u8]) -> Result<KeyBytes, SelfTestError> {
    ring.open_wrapped(purpose, wrapped).map_err(|source| SelfTestError::WrongKey { name: name.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::{SqliteOptions, SqliteStore};

    fn store() -> (tempfile::TempDir, SqliteStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open_in(folder.path(), &SqliteOptions::default()).unwrap();
        (folder, store)
    }

    fn ring(primary: &str, keys: &[(&str, &str)]) -> KeyRing {
        KeyRing::from_config(primary, keys.iter().copied()).unwrap()
    }

    async fn refusal(ring: &KeyRing, store: &SqliteStore) -> SealError {
        match self_test(ring, store).await.unwrap_err() {
            SelfTestError::WrongKey { source, .. } => source,
            other @ SelfTestError::Store(_) => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn the_same_ring_is_accepted_and_others_are_refused() {
        let (a, b, stranger) = (KeyRing::generate_key(), KeyRing::generate_key(), KeyRing::generate_key());
        let (_folder, store) = store();
        for _ in 0..2 {
            self_test(&ring("a", &[("a", &a), ("b", &b)]), &store).await.unwrap();
        }
        let wrong_primary = ring("a", &[("a", &stranger), ("b", &b)]);
        assert_eq!(refusal(&wrong_primary, &store).await, SealError::DoesNotOpen);
        let wrong_secondary = ring("a", &[("a", &a), ("b", &stranger)]);
        assert_eq!(refusal(&wrong_secondary, &store).await, SealError::DoesNotOpen);
        let without_the_first = ring("b", &[("b", &b)]);
        assert_eq!(refusal(&without_the_first, &store).await, SealError::MissingKey("a".to_owned()));
        store.close().await;
    }

    #[tokio::test]
    async fn a_ring_that_was_refused_leaves_nothing_behind() {
        let (a, b, stranger) = (KeyRing::generate_key(), KeyRing::generate_key(), KeyRing::generate_key());
        let (_folder, store) = store();
        self_test(&ring("a", &[("a", &a)]), &store).await.unwrap();
        refusal(&ring("b", &[("b", &stranger)]), &store).await;
        self_test(&ring("b", &[("a", &a), ("b", &b)]), &store).await.unwrap();
        store.close().await;
    }

    #[tokio::test]
    async fn the_secret_survives_rotation_and_differs_between_installations() {
        let (a, b) = (KeyRing::generate_key(), KeyRing::generate_key());
        let (_folder, store_one) = store();
        let first = self_test(&ring("a", &[("a", &a)]), &store_one).await.unwrap();
        let both = ring("b", &[("a", &a), ("b", &b)]);
        let rotated = self_test(&both, &store_one).await.unwrap();
        assert!(rewrap_secret(&both, &store_one).await.unwrap());
        assert!(!rewrap_secret(&both, &store_one).await.unwrap());
        let alone = self_test(&ring("b", &[("b", &b)]), &store_one).await.unwrap();
        assert_eq!(first.hash("request", &[b"alice", b"1"]), alone.hash("request", &[b"alice", b"1"]));
        assert_eq!(first.hash("request", &[b"alice", b"1"]), rotated.hash("request", &[b"alice", b"1"]));
        assert_ne!(first.hash("request", &[b"alice", b"1"]), first.hash("request", &[b"alic", b"e1"]));
        let (_folder, store_two) = store();
        let other = self_test(&ring("a", &[("a", &a)]), &store_two).await.unwrap();
        assert_ne!(first.hash("request", &[b"alice", b"1"]), other.hash("request", &[b"alice", b"1"]));
        store_one.close().await;
        store_two.close().await;
    }

    #[tokio::test]
    async fn a_store_that_fails_is_not_a_wrong_key() {
        let (_folder, store) = store();
        store.close().await;
        let a = KeyRing::generate_key();
        let error = self_test(&ring("a", &[("a", &a)]), &store).await.unwrap_err();
        assert!(matches!(error, SelfTestError::Store(_)), "{error}");
    }
}

//! Encryption at rest: AES-256-GCM over everything a person wrote, under one random data key per session, which is wrapped
//! by a key-encryption key of the ring. Only this module makes ciphers, each once per key.
//!
//! Every sealed value starts with a version byte and carries its own random nonce; the associated data binds it to its
//! place (session, number, field), so that nothing can be moved, swapped or cut. What does not open is an error: no caller
//! can get at text that was not verified.
//!
//! Nonces are 96 random bits. By NIST SP 800-38D 8.3 one key may seal 2^32 values before the chance of a repeated nonce
//! exceeds 2^-32; that bounds the writes of one session (checkpoints every 500 ms for 68 years) and the sessions wrapped
//! under one key-encryption key (rotate before four billion sessions).

mod cipher;
mod data_key;
mod installation;
mod ring;
mod token;

pub use self::{
    data_key::{DataKey, Field},
    installation::{InstallationSecret, SelfTestError, rewrap_secret, self_test},
    ring::{KeyRing, KeyRingError},
    token::TokenSealer,
};

/// Why a sealed value cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It names a key that the ring does not hold.
    #[error("sealed under key {0:?}, which is not in the key ring")]
    MissingKey(String),
    /// It was not sealed by this product, by a newer version of it, or was cut.
    #[error("not a sealed value of a known version")]
    Malformed,
    /// It was altered, belongs to another place, or another key has the same id.
    #[error("sealed value does not open: wrong key, wrong place, or altered")]
    DoesNotOpen,
}

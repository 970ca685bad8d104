//! The two primitives, keyed: AES-256-GCM with a random nonce, and HMAC-SHA256 to derive and to hash.

use aes_gcm::{
    Aes256Gcm, KeyInit as _, Nonce, Tag,
    aead::{AeadInOut as _, inout::InOutBuf},
};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::SealError;

/// Bytes of every key.
pub(super) const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// What sealing adds beside the caller's prefix.
#[cfg(test)]
pub(super) const OVERHEAD: usize = NONCE_BYTES + TAG_BYTES;

/// A key; wiped when dropped.
pub(super) type KeyBytes = Zeroizing<[u8; KEY_BYTES]>;

/// A new random key.
pub(super) fn random_key() -> KeyBytes {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    rand::fill(&mut key[..]);
    key
}

/// An independent key for one purpose: the first block of HKDF-Expand (RFC 5869 2.3). The extract step is left out because
/// every key here is uniformly random already (RFC 5869 3.3).
pub(super) fn derive(key: &KeyBytes, purpose: &str) -> KeyBytes {
    let mut mac = keyed_mac(key);
    mac.update(purpose.as_bytes());
    mac.update(&[1]);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn keyed_mac(key: &KeyBytes) -> Hmac<Sha256> {
    <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(&key[..]).expect("HMAC takes keys of any length")
}

/// A cipher with its key schedule done.
pub(super) struct Cipher(Aes256Gcm);

impl Cipher {
    pub(super) fn new(key: &KeyBytes) -> Self {
        Self(Aes256Gcm::new_from_slice(&key[..]).expect("the key has 32 bytes"))
    }

    /// `prefix | nonce | ciphertext | tag`. The prefix is not bound: what matters of it belongs into `aad`.
    pub(super) fn seal(&self, prefix: &[u8], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(prefix.len() + NONCE_BYTES + plaintext.len() + TAG_BYTES);
        out.extend_from_slice(prefix);
        // The thread's ChaCha generator, reseeded from the system: a system call per value costs more than the encryption.
        let nonce: [u8; NONCE_BYTES] = rand::random();
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plaintext);
        let body = InOutBuf::from(&mut out[prefix.len() + NONCE_BYTES..]);
        let tag = self
            .0
            .encrypt_inout_detached(&Nonce::from(nonce), aad, body)
            .expect("no value comes near the 64 GiB that the mode allows");
        out.extend_from_slice(&tag);
        out
    }

    /// The plaintext of `nonce | ciphertext | tag`.
    pub(super) fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::Malformed)?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(SealError::Malformed)?;
        let mut out = ciphertext.to_vec();
        self.0
            .decrypt_inout_detached(&Nonce::from(*nonce), aad, InOutBuf::from(&mut out[..]), &Tag::from(*tag))
            .map_err(|_| SealError::DoesNotOpen)?;
        Ok(out)
    }
}

/// A keyed hash whose key is absorbed already.
pub(super) struct Hasher(Hmac<Sha256>);

impl Hasher {
    pub(super) fn new(key: &KeyBytes) -> Self {
        Self(keyed_mac(key))
    }

    /// The first 128 bits over the label and the parts. Each is preceded by its length, so that no two different lists are
    /// the same bytes.
    pub(super) fn hash(&self, label: &str, parts: &[&[u8]]) -> [u8; 16] {
        let mut mac = self.0.clone();
        for part in std::iter::once(label.as_bytes()).chain(parts.iter().copied()) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        let full = mac.finalize().into_bytes();
        *full.first_chunk().expect("SHA-256 yields 32 bytes")
    }
}

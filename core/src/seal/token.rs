//! Page tokens: a list's position, sealed, so that a client can neither read nor make one.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::cipher::Cipher;

/// First byte of every token.
const VERSION: u8 = 1;
/// Longest token that is looked at; ours are far shorter, and strangers send them.
const MAX_TOKEN: usize = 4096;

/// Seals with the ring's primary key and opens with any. A token lives as long as its key is in the ring.
pub struct TokenSealer {
    ciphers: Vec<Cipher>,
}

impl TokenSealer {
    /// The first seals.
    pub(super) fn new(ciphers: Vec<Cipher>) -> Self {
        debug_assert!(!ciphers.is_empty(), "a ring has a primary key");
        Self { ciphers }
    }

    /// A token in base64url. `aad` says what it is for (list, owner, filter); it opens for nothing else.
    #[must_use]
    pub fn seal(&self, aad: &[u8], payload: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(self.ciphers[0].seal(&[VERSION], aad, payload))
    }

    /// The payload, if this token was sealed by a key of the ring for the same `aad`.
    #[must_use]
    pub fn open(&self, aad: &[u8], token: &str) -> Option<Vec<u8>> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let sealed = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (&VERSION, body) = sealed.split_first()? else { return None };
        self.ciphers.iter().find_map(|cipher| cipher.open(aad, body).ok())
    }
}

impl fmt::Debug for TokenSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSealer(..)")
    }
}

#[cfg(test)]
mod tests {
    use crate::seal::KeyRing;

    #[test]
    fn a_token_opens_for_its_purpose_with_any_key_of_the_ring() {
        let (a, b) = (KeyRing::generate_key(), KeyRing::generate_key());
        let old = KeyRing::from_config("a", [("a", a.as_str())]).unwrap().page_token_sealer();
        let both = KeyRing::from_config("b", [("a", a.as_str()), ("b", b.as_str())]).unwrap().page_token_sealer();
        let token = old.seal(b"sessions/alice", b"position");
        assert_eq!(both.open(b"sessions/alice", &token).as_deref(), Some(&b"position"[..]));
        assert_eq!(both.open(b"sessions/bob", &token), None);
        assert_eq!(
            old.open(b"sessions/alice", &both.seal(b"sessions/alice", b"position")),
            None,
            "sealed by the new key"
        );
    }

    #[test]
    fn tokens_are_url_safe_and_junk_is_refused() {
        let a = KeyRing::generate_key();
        let sealer = KeyRing::from_config("a", [("a", a.as_str())]).unwrap().page_token_sealer();
        for len in 0..64 {
            let token = sealer.seal(b"", &vec![0xff; len]);
            assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{token}");
            for at in 0..token.len() {
                let mut altered = token.clone().into_bytes();
                altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
                assert_eq!(sealer.open(b"", std::str::from_utf8(&altered).unwrap()), None, "character {at} of {token}");
                assert_eq!(sealer.open(b"", &token[..at]), None);
            }
        }
        for junk in ["", "=", "AQ", "é", &"A".repeat(5000)] {
            assert_eq!(sealer.open(b"", junk), None);
        }
    }
}

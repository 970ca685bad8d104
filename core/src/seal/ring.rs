//! Key-encryption keys by id. New data is wrapped under the primary; the others stay to open what is older.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chatbox_proto::ids::SessionId;
use zeroize::Zeroizing;

use super::{
    DataKey, SealError, TokenSealer,
    cipher::{Cipher, KEY_BYTES, KeyBytes, derive, random_key},
};

/// First byte of every wrapped value.
const VERSION: u8 = 1;
/// Longest id of a key; its length is one byte of the wrapped form.
const MAX_ID: usize = 32;

/// What a wrapped value is for. It opens for nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The data key of a session.
    Session(SessionId),
    /// The installation's secret.
    Installation,
    /// The value that shows whether a key is the right one.
    Canary,
}

/// The key-encryption keys of an installation. Built once at start; share it behind an `Arc`.
pub struct KeyRing {
    primary: String,
    keys: BTreeMap<String, KeyEncryptionKey>,
}

struct KeyEncryptionKey {
    wrapping: Cipher,
    page_tokens: KeyBytes,
}

/// Everything that is wrong with a key ring's configuration; never holds any part of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key ring: {}", problems.join("; "))]
pub struct KeyRingError {
    problems: Vec<String>,
}

impl KeyRingError {
    /// One sentence per mistake.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl KeyRing {
    /// From configuration: the id of the primary key, and every key as base64 of 32 random bytes under an id of 1 to 32
    /// characters of `a-z 0-9 _ -`.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn from_config<'a>(
        primary: &str,
        keys: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, KeyRingError> {
        let mut ring = Self { primary: primary.to_owned(), keys: BTreeMap::new() };
        let mut problems = Vec::new();
        for (id, encoded) in keys {
            if !is_key_id(id) {
                problems.push(format!("key id {id:?} must be 1 to {MAX_ID} characters of a-z, 0-9, _ and -"));
                continue;
            }
            match decode_key(encoded) {
                Ok(key) => {
                    if ring.keys.insert(id.to_owned(), KeyEncryptionKey::new(&key)).is_some() {
                        problems.push(format!("key {id:?} is given twice"));
                    }
                }
                Err(problem) => problems.push(format!("key {id:?} {problem}")),
            }
        }
        if problems.is_empty() && !ring.keys.contains_key(primary) {
            problems.push(format!("the primary key {primary:?} is not among the keys"));
        }
        if problems.is_empty() { Ok(ring) } else { Err(KeyRingError { problems }) }
    }

    /// A new random key in the form that configuration takes.
    #[must_use]
    pub fn generate_key() -> String {
        STANDARD.encode(&random_key()[..])
    }

    /// Id of the key that new data is wrapped under.
    #[must_use]
    pub fn primary(&self) -> &str {
        &self.primary
    }

    /// Ids of all keys, in order.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// A random key for a new session, and its wrapped form to be kept in the header.
    #[must_use]
    pub fn new_data_key(&self, session_id: SessionId) -> (DataKey, Vec<u8>) {
        let key = random_key();
        (DataKey::new(&key), self.wrap(&self.primary, Purpose::Session(session_id), &key))
    }

    /// The key of a session from its wrapped form.
    ///
    /// # Errors
    /// When the ring lacks the key it was wrapped under, it was made for another session, or was altered.
    pub fn unwrap(&self, session_id: SessionId, wrapped: &[u8]) -> Result<DataKey, SealError> {
        Ok(DataKey::new(&self.open_wrapped(Purpose::Session(session_id), wrapped)?))
    }

    /// The data key of a session wrapped anew under the primary key; `None` when it is already.
    ///
    /// # Errors
    /// As [`unwrap`](Self::unwrap).
    pub fn rewrap(&self, session_id: SessionId, wrapped: &[u8]) -> Result<Option<Vec<u8>>, SealError> {
        self.rewrap_for(Purpose::Session(session_id), wrapped)
    }

    pub(super) fn rewrap_for(&self, purpose: Purpose, wrapped: &[u8]) -> Result<Option<Vec<u8>>, SealError> {
        // Opened all the same: what does not open must not pass for done.
        let key = self.open_wrapped(purpose, wrapped)?;
        let (id, _) = split_wrapped(wrapped).ok_or(SealError::Malformed)?;
        Ok((id != self.primary).then(|| self.wrap(&self.primary, purpose, &key)))
    }

    /// Seals the state of paged lists into opaque tokens.
    #[must_use]
    pub fn page_token_sealer(&self) -> TokenSealer {
        // The primary first: it seals, and most tokens were sealed by it.
        let mut keys: Vec<_> = self.keys.iter().collect();
        keys.sort_by_key(|(id, _)| *id != &self.primary);
        TokenSealer::new(keys.into_iter().map(|(_, key)| Cipher::new(&key.page_tokens)).collect())
    }

    /// `version | length of id | id | nonce | ciphertext | tag`, under the key with this id.
    pub(super) fn wrap(&self, id: &str, purpose: Purpose, key: &KeyBytes) -> Vec<u8> {
        let mut prefix = vec![VERSION, u8::try_from(id.len()).expect("an id has at most 32 bytes")];
        prefix.extend_from_slice(id.as_bytes());
        let kek = self.keys.get(id).expect("callers pass ids of this ring");
        kek.wrapping.seal(&prefix, &associated_data(id, purpose), &key[..])
    }

    pub(super) fn open_wrapped(&self, purpose: Purpose, wrapped: &[u8]) -> Result<KeyBytes, SealError> {
        let (id, body) = split_wrapped(wrapped).ok_or(SealError::Malformed)?;
        let kek = self.keys.get(id).ok_or_else(|| SealError::MissingKey(id.to_owned()))?;
        let opened = Zeroizing::new(kek.wrapping.open(&associated_data(id, purpose), body)?);
        let key: [u8; KEY_BYTES] = opened.as_slice().try_into().map_err(|_| SealError::Malformed)?;
        Ok(Zeroizing::new(key))
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing")
            .field("primary", &self.primary)
            .field("keys", &self.keys.keys().collect::<Vec<_>>())
            .finish()
    }
}

impl KeyEncryptionKey {
    fn new(key: &KeyBytes) -> Self {
        Self {
            wrapping: Cipher::new(&derive(key, "chatbox/v1/ring/wrap")),
            page_tokens: derive(key, "chatbox/v1/ring/page-tokens"),
        }
    }
}

fn associated_data(id: &str, purpose: Purpose) -> Vec<u8> {
    let mut out = b"chatbox-key".to_vec();
    out.push(VERSION);
    out.push(u8::try_from(id.len()).expect("an id has at most 32 bytes"));
    out.extend_from_slice(id.as_bytes());
    match purpose {
        Purpose::Session(session_id) => {
            out.push(1);
            out.extend_from_slice(session_id.as_bytes());
        }
        Purpose::Installation => out.push(2),
        Purpose::Canary => out.push(3),
    }
    out
}

fn split_wrapped(wrapped: &[u8]) -> Option<(&str, &[u8])> {
    let (&version, rest) = wrapped.split_first()?;
    let (&len, rest) = rest.split_first()?;
    let (id, body) = rest.split_at_checked(usize::from(len))?;
    let id = std::str::from_utf8(id).ok()?;
    (version == VERSION && is_key_id(id)).then_some((id, body))
}

fn is_key_id(id: &str) -> bool {
    (1..=MAX_ID).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

fn decode_key(encoded: &str) -> Result<KeyBytes, String> {
    let bytes = Zeroizing::new(
        STANDARD.decode(encoded.trim()).map_err(|_| format!("must be base64 of {KEY_BYTES} bytes, is not base64"))?,
    );
    let key: [u8; KEY_BYTES] = bytes
        .as_slice()
        .try_into()
        .map_err(|_| format!("must be base64 of {KEY_BYTES} bytes, is {} bytes", bytes.len()))?;
    Ok(Zeroizing::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Field;

    fn ring(primary: &str, keys: &[(&str, &str)]) -> KeyRing {
        KeyRing::from_config(primary, keys.iter().copied()).unwrap()
    }

    fn place(session: SessionId) -> Field {
        Field::State { session, applied_seq: 1 }
    }

    #[test]
    fn a_wrapped_key_opens_to_the_same_key() {
        let (a, session) = (KeyRing::generate_key(), SessionId::generate());
        let (key, wrapped) = ring("a", &[("a", &a)]).new_data_key(session);
        let again = ring("a", &[("a", &a)]).unwrap(session, &wrapped).unwrap();
        assert_eq!(again.open(place(session), &key.seal(place(session), b"text")).unwrap(), b"text");
        assert_eq!(again.keyed_hash("l", &[b"x"]), key.keyed_hash("l", &[b"x"]));
    }

    #[test]
    fn an_old_key_still_opens_after_the_primary_changed() {
        let (a, b, session) = (KeyRing::generate_key(), KeyRing::generate_key(), SessionId::generate());
        let (_, wrapped) = ring("a", &[("a", &a)]).new_data_key(session);
        let rotated = ring("b", &[("a", &a), ("b", &b)]);
        rotated.unwrap(session, &wrapped).unwrap();
        let (_, newer) = rotated.new_data_key(session);
        assert_eq!(
            ring("a", &[("a", &a)]).unwrap(session, &newer).unwrap_err(),
            SealError::MissingKey("b".to_owned()),
            "new keys are wrapped under the new primary"
        );
    }

    #[test]
    fn a_key_wrapped_anew_opens_under_the_primary_alone_and_to_the_same_key() {
        let (a, b, session) = (KeyRing::generate_key(), KeyRing::generate_key(), SessionId::generate());
        let (key, wrapped) = ring("a", &[("a", &a)]).new_data_key(session);
        let both = ring("b", &[("a", &a), ("b", &b)]);
        let newer = both.rewrap(session, &wrapped).unwrap().unwrap();
        let alone = ring("b", &[("b", &b)]);
        let again = alone.unwrap(session, &newer).unwrap();
        assert_eq!(again.open(place(session), &key.seal(place(session), b"text")).unwrap(), b"text");
        assert_eq!(both.rewrap(session, &newer).unwrap(), None, "done is done");
        assert_eq!(alone.rewrap(session, &wrapped).unwrap_err(), SealError::MissingKey("a".to_owned()));
        assert_eq!(both.rewrap(SessionId::generate(), &newer).unwrap_err(), SealError::DoesNotOpen);
    }

    #[test]
    fn another_key_under_the_same_id_opens_nothing() {
        let session = SessionId::generate();
        let (_, wrapped) = ring("a", &[("a", &KeyRing::generate_key())]).new_data_key(session);
        let other = ring("a", &[("a", &KeyRing::generate_key())]);
        assert_eq!(other.unwrap(session, &wrapped).unwrap_err(), SealError::DoesNotOpen);
    }

    #[test]
    fn a_wrapped_key_opens_for_its_own_session_and_purpose_only() {
        let (a, session) = (KeyRing::generate_key(), SessionId::generate());
        let ring = ring("a", &[("a", &a)]);
        let (_, wrapped) = ring.new_data_key(session);
        assert_eq!(ring.unwrap(SessionId::generate(), &wrapped).unwrap_err(), SealError::DoesNotOpen);
        for purpose in [Purpose::Installation, Purpose::Canary] {
            assert_eq!(ring.open_wrapped(purpose, &wrapped).unwrap_err(), SealError::DoesNotOpen);
        }
    }

    #[test]
    fn a_wrapped_key_with_any_byte_changed_or_cut_does_not_open() {
        let session = SessionId::generate();
        let (a, b) = (KeyRing::generate_key(), KeyRing::generate_key());
        // `b` differs from `a` in two bits, so that altering the id can reach another key of the ring.
        let ring = ring("a", &[("a", &a), ("b", &b)]);
        let (_, wrapped) = ring.new_data_key(session);
        for at in 0..wrapped.len() {
            for flip in 1..=255 {
                let mut altered = wrapped.clone();
                altered[at] ^= flip;
                assert!(ring.unwrap(session, &altered).is_err(), "byte {at}");
            }
            assert!(ring.unwrap(session, &wrapped[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn a_key_of_31_bytes_is_refused_by_an_error_that_states_32() {
        let short = STANDARD.encode([7; 31]);
        let error = KeyRing::from_config("a", [("a", short.as_str())]).unwrap_err();
        assert_eq!(error.to_string(), r#"key ring: key "a" must be base64 of 32 bytes, is 31 bytes"#);
        assert!(!error.to_string().contains(&short));
    }

    #[test]
    fn all_mistakes_of_the_configuration_are_reported_at_once() {
        let good = KeyRing::generate_key();
        let keys = [("UPPER", good.as_str()), ("", &good), ("a", "not base64!"), ("b", ""), ("c", &good), ("c", &good)];
        let error = KeyRing::from_config("a", keys).unwrap_err();
        assert_eq!(error.problems().len(), 5, "{error}");
        let long = "x".repeat(33);
        assert!(KeyRing::from_config(&long, [(long.as_str(), good.as_str())]).is_err());
        assert!(KeyRing::from_config(&long[1..], [(&long[1..], good.as_str())]).is_ok());
        let missing = KeyRing::from_config("b", [("a", good.as_str())]).unwrap_err();
        assert_eq!(missing.problems(), [r#"the primary key "b" is not among the keys"#]);
        assert!(KeyRing::from_config("a", []).is_err(), "a ring without keys");
    }

    #[test]
    fn generated_keys_are_accepted_and_differ() {
        let (a, b) = (KeyRing::generate_key(), KeyRing::generate_key());
        assert_ne!(a, b);
        ring("a", &[("a", &a), ("b", &b)]);
    }

    #[test]
    fn debug_shows_ids_and_no_keys() {
        let a = KeyRing::generate_key();
        assert_eq!(format!("{:?}", ring("a", &[("a", &a)])), r#"KeyRing { primary: "a", keys: ["a"] }"#);
    }
}

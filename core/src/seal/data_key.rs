//! The key of one session.

use std::fmt;

use chatbox_proto::ids::{MessageId, SessionId};

use super::{
    SealError,
    cipher::{Cipher, Hasher, KeyBytes, derive},
};
use crate::domain::entry::Seq;

/// First byte of every sealed payload. A new format takes the next number and keeps opening this one.
const VERSION: u8 = 1;

/// The place of a sealed payload. It opens in this place only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// One document of the log.
    Log {
        /// The session.
        session: SessionId,
        /// Number of the document's first entry.
        first_seq: Seq,
        /// Number of its entries.
        count: u32,
    },
    /// The folded state in the header.
    State {
        /// The session.
        session: SessionId,
        /// The last entry it contains.
        applied_seq: Seq,
    },
    /// The text of a running reply so far.
    Checkpoint {
        /// The session.
        session: SessionId,
        /// The reply.
        message_id: MessageId,
    },
    /// What cores tell each other about a session.
    Bus {
        /// The session.
        session: SessionId,
        /// What it is: a hint never opens as an answer.
        kind: u8,
    },
    /// What a record of the audit trail says in words.
    Audit {
        /// Its number.
        seq: u64,
    },
}

/// Longest form of [`Field::render`]: domain, version and tag, and two ids.
const RENDERED_BYTES: usize = 9 + 32;

impl Field {
    /// Associated data: fixed widths behind a tag that decides the layout, so no two places look alike.
    fn render(self) -> ([u8; RENDERED_BYTES], usize) {
        let mut out = [0; RENDERED_BYTES];
        let mut len = 0;
        let mut put = |bytes: &[u8]| {
            out[len..len + bytes.len()].copy_from_slice(bytes);
            len += bytes.len();
        };
        put(b"chatbox");
        match self {
            Self::Log { session, first_seq, count } => {
                put(&[VERSION, 1]);
                put(session.as_bytes());
                put(&first_seq.to_be_bytes());
                put(&count.to_be_bytes());
            }
            Self::State { session, applied_seq } => {
                put(&[VERSION, 2]);
                put(session.as_bytes());
                put(&applied_seq.to_be_bytes());
            }
            Self::Checkpoint { session, message_id } => {
                put(&[VERSION, 3]);
                put(session.as_bytes());
                put(message_id.as_bytes());
            }
            Self::Bus { session, kind } => {
                put(&[VERSION, 4]);
                put(session.as_bytes());
                put(&[kind]);
            }
            Self::Audit { seq } => {
                put(&[VERSION, 5]);
                put(&seq.to_be_bytes());
            }
        }
        (out, len)
    }
}

/// The key of one session, ready for use. Made by [`KeyRing`](super::KeyRing); may seal 2^32 payloads.
pub struct DataKey {
    cipher: Cipher,
    hasher: Hasher,
}

impl DataKey {
    pub(super) fn new(key: &KeyBytes) -> Self {
        Self {
            cipher: Cipher::new(&derive(key, "chatbox/v1/data/seal")),
            hasher: Hasher::new(&derive(key, "chatbox/v1/data/hash")),
        }
    }

    /// Seals a payload for one place.
    #[must_use]
    pub fn seal(&self, place: Field, plaintext: &[u8]) -> Vec<u8> {
        let (aad, len) = place.render();
        self.cipher.seal(&[VERSION], &aad[..len], plaintext)
    }

    /// Opens a payload that was sealed for this place.
    ///
    /// # Errors
    /// When it was not, or by another key, or not by [`DataKey::seal`] at all.
    pub fn open(&self, place: Field, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (&VERSION, body) = sealed.split_first().ok_or(SealError::Malformed)? else {
            return Err(SealError::Malformed);
        };
        let (aad, len) = place.render();
        self.cipher.open(&aad[..len], body)
    }

    /// A hash that only holders of this key can compute or check: for message keys and for comparing contents. Different
    /// labels or different lists of parts are different inputs.
    #[must_use]
    pub fn keyed_hash(&self, label: &str, parts: &[&[u8]]) -> [u8; 16] {
        self.hasher.hash(label, parts)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::seal::cipher::{OVERHEAD, random_key};

    fn key() -> DataKey {
        DataKey::new(&random_key())
    }

    fn log(session: SessionId, first_seq: Seq, count: u32) -> Field {
        Field::Log { session, first_seq, count }
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_in_its_place(text in proptest::collection::vec(any::<u8>(), 0..3000), first_seq: u64, count: u32) {
            let key = key();
            let place = log(SessionId::generate(), first_seq, count);
            let sealed = key.seal(place, &text);
            prop_assert_eq!(sealed.len(), 1 + OVERHEAD + text.len());
            prop_assert_eq!(key.open(place, &sealed).unwrap(), text);
        }

        #[test]
        fn junk_never_opens_and_never_panics(junk in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(key().open(log(SessionId::generate(), 1, 1), &junk).is_err());
        }

        #[test]
        fn lists_of_parts_that_differ_hash_differently(
            one in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4), 0..4),
            two in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4), 0..4),
        ) {
            let key = key();
            let hash = |parts: &[Vec<u8>]| key.keyed_hash("test", &parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(one == two, hash(&one) == hash(&two));
        }
    }

    #[test]
    fn a_payload_with_any_bit_changed_does_not_open() {
        let (key, place) = (key(), log(SessionId::generate(), 7, 2));
        let sealed = key.seal(place, b"visible to nobody");
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut altered = sealed.clone();
                altered[at] ^= 1 << bit;
                assert!(key.open(place, &altered).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_cut_payload_does_not_open_and_does_not_panic() {
        let (key, place) = (key(), log(SessionId::generate(), 7, 2));
        let sealed = key.seal(place, b"visible to nobody");
        for len in 0..sealed.len() {
            assert!(key.open(place, &sealed[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_payload_opens_in_no_other_place() {
        let key = key();
        let (session, other) = (SessionId::generate(), SessionId::generate());
        let (message_id, other_message) = (MessageId::generate(), MessageId::generate());
        // The same 16 bytes as session and as message, so that only the tag of the field tells them apart.
        let same = MessageId::from_bytes(*session.as_bytes());
        let places = [
            log(session, 1, 1),
            log(session, 2, 1),
            log(session, 1, 2),
            log(other, 1, 1),
            Field::State { session, applied_seq: 1 },
            Field::State { session, applied_seq: 2 },
            Field::State { session: other, applied_seq: 1 },
            Field::Checkpoint { session, message_id },
            Field::Checkpoint { session, message_id: other_message },
            Field::Checkpoint { session: other, message_id },
            Field::Checkpoint { session, message_id: same },
            Field::Bus { session, kind: 1 },
            Field::Bus { session, kind: 2 },
            Field::Bus { session: other, kind: 1 },
        ];
        for (i, sealed_for) in places.iter().enumerate() {
            let sealed = key.seal(*sealed_for, b"text");
            for (j, opened_for) in places.iter().enumerate() {
                assert_eq!(key.open(*opened_for, &sealed).is_ok(), i == j, "{sealed_for:?} as {opened_for:?}");
            }
        }
    }

    #[test]
    fn another_key_does_not_open_and_hashes_differently() {
        let (one, two, place) = (key(), key(), log(SessionId::generate(), 1, 1));
        assert_eq!(two.open(place, &one.seal(place, b"text")), Err(SealError::DoesNotOpen));
        assert_ne!(one.keyed_hash("l", &[b"a"]), two.keyed_hash("l", &[b"a"]));
        assert_ne!(one.keyed_hash("l", &[b"a"]), one.keyed_hash("m", &[b"a"]));
    }

    #[test]
    fn ten_thousand_equal_texts_give_ten_thousand_nonces_and_ciphertexts() {
        let (key, place) = (key(), log(SessionId::generate(), 1, 1));
        let sealed: Vec<Vec<u8>> = (0..10_000).map(|_| key.seal(place, b"hello")).collect();
        let nonces: HashSet<&[u8]> = sealed.iter().map(|s| &s[1..13]).collect();
        let texts: HashSet<&[u8]> = sealed.iter().map(|s| &s[13..18]).collect();
        assert_eq!(nonces.len(), 10_000);
        // Five bytes of keystream collide now and then by chance; equal ciphertexts throughout would not be chance.
        assert!(texts.len() > 9_990, "{}", texts.len());
    }

    #[test]
    fn debug_shows_nothing_of_the_key() {
        assert_eq!(format!("{:?}", key()), "DataKey(..)");
    }
}

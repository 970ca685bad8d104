//! Identifiers. Server-made ids are UUIDs of version 7: unique without coordination, and ordered by time, so that they make
//! good keys.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest id that a client makes up: request ids, client message ids.
const MAX_CLIENT_ID: usize = 64;

/// Whether a text may be the id of a client's own making: at most 64 visible ASCII characters, so no spaces. Empty passes;
/// where an id is required that is another rule.
#[must_use]
pub fn is_client_id(text: &str) -> bool {
    text.len() <= MAX_CLIENT_ID && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A text that is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a UUID in its hyphenated lower-case form")]
pub struct InvalidId;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The 16 bytes, for keys and associated data.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// From 16 stored bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // One spelling only: ids are compared as text by clients and in logs.
                let id = Uuid::try_parse(text).map_err(|_| InvalidId)?;
                let mut canonical = Uuid::encode_buffer();
                if id.hyphenated().encode_lower(&mut canonical) != text {
                    return Err(InvalidId);
                }
                Ok(Self(id))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

id! {
    /// Names a session.
    SessionId
}
id! {
    /// Names a share link.
    ShareId
}
id! {
    /// Names a message, a reply included.
    MessageId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_clients_are_short_and_visible() {
        for (text, good) in [("", true), ("a-1_Z~!", true), ("a b", false), ("a\n", false), ("é", false)] {
            assert_eq!(is_client_id(text), good, "{text:?}");
        }
        assert!(is_client_id(&"x".repeat(64)) && !is_client_id(&"x".repeat(65)));
    }

    #[test]
    fn an_id_round_trips_through_its_text() {
        let id = SessionId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn only_the_canonical_spelling_is_an_id() {
        let text = MessageId::generate().to_string();
        for other in [text.to_uppercase(), text.replace('-', ""), format!("{{{text}}}"), String::new(), "x".repeat(129)]
        {
            assert_eq!(other.parse::<MessageId>(), Err(InvalidId), "{other}");
        }
    }
}

//! Page sizes and page tokens (AIP-158). Tokens are sealed, and bound to the caller and to every other parameter of the
//! list: one that was made for another call does not open.

use chatbox_proto::status::Failure;

use crate::seal::TokenSealer;

/// Sizes of a page.
#[derive(Debug, Clone, Copy)]
pub struct PageSizes {
    /// When the client does not say.
    pub default: u32,
    /// At most.
    pub max: u32,
}

impl PageSizes {
    /// The page size to use: 0 is the default, too many is the most there are.
    pub(super) fn size(self, requested: i32) -> Result<u32, Failure> {
        match u32::try_from(requested) {
            Ok(0) => Ok(self.default),
            Ok(size) => Ok(size.min(self.max)),
            Err(_) => Err(Failure::invalid("page_size", "must not be negative; 0 is the default")),
        }
    }
}

/// What a token is bound to. Lengths are part of it, so that no two lists look alike.
pub(super) fn scope(list: &str, caller: &str, parameters: &[&str]) -> Vec<u8> {
    let mut scope = Vec::new();
    for part in [list, caller].iter().chain(parameters) {
        scope.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        scope.extend(part.as_bytes());
    }
    scope
}

/// The position in a token; `None` for the first page.
pub(super) fn open<const N: usize>(
    sealer: &TokenSealer,
    scope: &[u8],
    token: &str,
) -> Result<Option<[u8; N]>, Failure> {
    if token.is_empty() {
        return Ok(None);
    }
    let position = sealer.open(scope, token).and_then(|bytes| <[u8; N]>::try_from(bytes).ok());
    let rule = "must be the next_page_token of the page before, with all other fields unchanged";
    position.map(Some).ok_or_else(|| Failure::invalid("page_token", rule))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::KeyRing;

    #[test]
    fn sizes_default_clamp_and_refuse() {
        let sizes = PageSizes { default: 50, max: 1000 };
        assert_eq!(sizes.size(0), Ok(50));
        assert_eq!(sizes.size(7), Ok(7));
        assert_eq!(sizes.size(1_000_000_000), Ok(1000));
        assert_eq!(sizes.size(-1).unwrap_err().violations[0].0, "page_size");
    }

    #[test]
    fn a_token_opens_for_its_own_call_only() {
        let key = KeyRing::generate_key();
        let ring = KeyRing::from_config("a", [("a", key.as_str())]).unwrap();
        let sealer = ring.page_token_sealer();
        let own = scope("sessions", "alice", &["", "x"]);
        let token = sealer.seal(&own, &7u64.to_be_bytes());
        assert_eq!(open::<8>(&sealer, &own, &token).unwrap(), Some(7u64.to_be_bytes()));
        for other in [
            scope("messages", "alice", &["", "x"]),
            scope("sessions", "bob", &["", "x"]),
            scope("sessions", "alice", &["x", ""]),
        ] {
            assert!(open::<8>(&sealer, &other, &token).is_err());
        }
        assert!(open::<8>(&sealer, &own, "junk").is_err());
        assert_eq!(open::<8>(&sealer, &own, "").unwrap(), None);
    }
}

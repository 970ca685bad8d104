//! Identity: what the bearer token says, and how it is verified.
//!
//! Edge and core both verify every token with this code; neither trusts the other to have done it. There is one public
//! failure for all that can be wrong with a token ([`Failure::unauthenticated`](crate::status::Failure::unauthenticated));
//! [`TokenError`] is for the log and never holds a part of the token. This module does no I/O: a key set is fetched
//! through [`KeySource`], which each binary implements.

mod claims;
mod config;
mod keys;
mod mint;
mod verifier;

pub use claims::{Identity, Role, Roles};
pub use config::{Algorithm, Secret, TokenConfig};
pub use keys::{KeySource, KeySourceError, MAX_KEY_SET_BYTES, MAX_KEYS};
pub use mint::{MintClaims, mint_hs256};
pub use verifier::Verifier;

use crate::status::Failure;

/// Tokens above this are refused unread.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Why a token was refused: for the log only. Neither form shows anything of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// There is none.
    #[error("no bearer token")]
    Missing,
    /// Above [`MAX_TOKEN_BYTES`].
    #[error("the token is too long")]
    TooLong,
    /// Not three base64url parts with a JSON header and JSON claims.
    #[error("the token is not a compact JWS")]
    Malformed,
    /// Not the pinned algorithm, `none` included.
    #[error("the token's algorithm is not the configured one")]
    WrongAlgorithm,
    /// `crit` names extensions; we know none (RFC 7515 section 4.1.11).
    #[error("the token's header has critical extensions")]
    CriticalExtension,
    /// The key set has no key with the token's `kid`, or the token has none and the set has several.
    #[error("the token's key is not in the key set")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the signature does not fit")]
    BadSignature,
    /// A claim that must be there is not.
    #[error("the claim {0} is missing")]
    MissingClaim(&'static str),
    /// A claim is of the wrong type, too long or not printable.
    #[error("the claim {0} is not acceptable")]
    BadClaim(&'static str),
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` has not come yet.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `iss` is not the configured one.
    #[error("the token is from another issuer")]
    WrongIssuer,
    /// `aud` does not contain the configured one.
    #[error("the token is for another audience")]
    WrongAudience,
}

impl From<TokenError> for Failure {
    fn from(_: TokenError) -> Self {
        Self::unauthenticated()
    }
}

/// The token in the value of an `authorization` header.
///
/// # Errors
/// [`TokenError::Missing`] for another scheme or no token.
pub fn from_authorization(value: &str) -> Result<&str, TokenError> {
    // RFC 9110 section 11.1: the scheme is compared without case.
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => Ok(token.trim()),
        _ => Err(TokenError::Missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_code::ErrorCode;

    #[test]
    fn the_scheme_is_compared_without_case() {
        assert_eq!(from_authorization("bEARER  a.b.c "), Ok("a.b.c"));
        for value in ["", "Bearer", "Bearer ", "Basic a.b.c", "a.b.c"] {
            assert_eq!(from_authorization(value), Err(TokenError::Missing), "{value}");
        }
    }

    #[test]
    fn all_reasons_are_one_failure_to_the_caller() {
        let failures = [TokenError::Missing, TokenError::Expired, TokenError::WrongAudience].map(Failure::from);
        assert!(failures.iter().all(|failure| *failure == Failure::unauthenticated()));
        assert_eq!(failures[0].code, ErrorCode::Unauthenticated);
    }
}

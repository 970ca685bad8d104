//! From an HTTP request to its caller: the token of the `authorization` header, verified.

use std::{net::IpAddr, time::SystemTime};

use chatbox_proto::{
    status::Failure,
    token::{self, Identity, TokenError, Verifier},
};
use http::{HeaderMap, header};

use crate::core_api::Caller;

/// The bearer token of the `authorization` header, if there is such a header.
///
/// # Errors
/// When there is one without a bearer token, or several: two readers could take two different ones.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, TokenError> {
    let mut values = headers.get_all(header::AUTHORIZATION).into_iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => token::from_authorization(value.to_str().map_err(|_| TokenError::Malformed)?).map(Some),
        (Some(_), Some(_)) => Err(TokenError::Malformed),
    }
}

/// Verifies a stranger's token. The reason of a refusal is logged here, once; the caller learns nothing of it.
pub(crate) async fn verify(verifier: &Verifier, token: &str, client_ip: IpAddr) -> Result<Identity, Failure> {
    verifier.authenticate(token, SystemTime::now()).await.map_err(|error| refused(error, client_ip))
}

/// Logs why and returns the one public failure.
pub(crate) fn refused(error: TokenError, client_ip: IpAddr) -> Failure {
    tracing::info!(client.ip = %client_ip, reason = %error, "token refused");
    Failure::unauthenticated()
}

/// The caller of a request whose token was verified.
pub(crate) fn caller(token: &str, client_ip: IpAddr, headers: &HeaderMap) -> Caller {
    Caller { token: token.to_owned(), client_ip, traceparent: traceparent(headers) }
}

/// The W3C trace context of a request, or a new one.
pub(crate) fn traceparent(headers: &HeaderMap) -> String {
    let given = headers.get("traceparent").and_then(|value| value.to_str().ok()).filter(|text| is_traceparent(text));
    given.map_or_else(
        || {
            // All zeros are invalid; the low bit makes sure.
            let (trace, span) = (rand::random::<u128>() | 1, rand::random::<u64>() | 1);
            format!("00-{trace:032x}-{span:016x}-01")
        },
        str::to_owned,
    )
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero (W3C Trace Context, section 3.2.2).
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let set = |part: &str| part.bytes().any(|b| b != b'0');
    matches!(&parts[..], [version, trace, span, flags] if *version == "00"
        && hex(trace, 32) && set(trace) && hex(span, 16) && set(span) && hex(flags, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_one_bearer_token_or_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), Ok(None));
        headers.insert(header::AUTHORIZATION, "Basic eA==".parse().unwrap());
        assert_eq!(bearer(&headers), Err(TokenError::Missing));
        headers.insert(header::AUTHORIZATION, "Bearer a.b.c".parse().unwrap());
        assert_eq!(bearer(&headers), Ok(Some("a.b.c")));
        headers.append(header::AUTHORIZATION, "Bearer d.e.f".parse().unwrap());
        assert_eq!(bearer(&headers), Err(TokenError::Malformed));
    }

    #[test]
    fn a_trace_context_is_taken_or_made() {
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let headers = |value: &str| HeaderMap::from_iter([("traceparent".parse().unwrap(), value.parse().unwrap())]);
        assert_eq!(traceparent(&headers(given)), given);
        for bad in [given.replace("0af", "zzz"), given.replace("b7ad6b7169203331", "0000000000000000"), "junk".into()] {
            let made = traceparent(&headers(&bad));
            assert!(made != bad && is_traceparent(&made), "{made}");
        }
    }
}

//! From an HTTP request to its caller: the token of the `authorization` header, verified.

use std::{net::IpAddr, time::SystemTime};

use chatbox_proto::{
    status::Failure,
    token::{self, Identity, TokenError, Verifier},
    trace::{TRACEPARENT, TraceContext},
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
    let given = headers.get(TRACEPARENT).and_then(|value| TraceContext::parse(value.to_str().ok()?));
    given.unwrap_or_else(|| TraceContext::random(true)).to_string()
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
            assert!(made != bad && TraceContext::parse(&made).is_some(), "{made}");
        }
    }
}

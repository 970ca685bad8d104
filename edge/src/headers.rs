//! Security headers on every response of the router: errors, files and upgrades included. The outermost layer.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{
    config::Config,
    state::{Edge, Peer},
};

const CSP: HeaderName = header::CONTENT_SECURITY_POLICY;

/// For everything that is no page: nothing may be loaded, and nobody may show it in a frame.
const API_POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'");

const FIXED: [(HeaderName, HeaderValue); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("camera=(), geolocation=(), microphone=(self), payment=(), usb=()"),
    ),
    (HeaderName::from_static("x-permitted-cross-domain-policies"), HeaderValue::from_static("none")),
];

/// Adds the headers. A handler that set one itself (a page its policy, a file its caching) keeps it.
pub(crate) async fn add(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    let over_tls = peer.is_some_and(|peer| edge.proxies.came_over_tls(peer.0, request.headers()));
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in FIXED {
        headers.entry(name).or_insert(value);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.entry(CSP).or_insert(API_POLICY);
    deny_frames_for_old_browsers(headers);
    if over_tls && edge.config.hsts.enabled {
        let max_age = edge.config.hsts.max_age.as_secs();
        if let Ok(value) = HeaderValue::try_from(format!("max-age={max_age}")) {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, value);
        }
    }
    response
}

/// The same headers as the text of an answer that never was a response of the router. HSTS is not among them: whether a
/// request whose head cannot be read came over TLS is not known.
pub(crate) fn as_text() -> String {
    let mut headers: HeaderMap = FIXED.into_iter().collect();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CSP, API_POLICY);
    deny_frames_for_old_browsers(&mut headers);
    let line =
        |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}\r\n", value.to_str().unwrap_or_default());
    headers.iter().map(line).collect()
}

/// `X-Frame-Options` knows no list: it is only sent when nobody may frame.
fn deny_frames_for_old_browsers(headers: &mut HeaderMap) {
    let nobody = headers.get(CSP).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("frame-ancestors 'none'"));
    if nobody {
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    }
}

/// The policy of the pages: their own files and this server, nothing inline.
pub(crate) fn page_policy(config: &Config) -> HeaderValue {
    let ancestors =
        if config.frame_ancestors.is_empty() { "'none'".to_owned() } else { config.frame_ancestors.join(" ") };
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
         media-src 'self' blob:; connect-src 'self'; manifest-src 'self'; worker-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors {ancestors}"
    );
    // The ancestors were checked with the configuration.
    HeaderValue::try_from(policy).unwrap_or(API_POLICY)
}

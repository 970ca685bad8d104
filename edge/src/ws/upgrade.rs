//! The handshake: RFC 6455 section 4.2, then who may come in, all before the upgrade.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use chatbox_proto::{
    error_code::ErrorCode,
    status::Failure,
    token::{Identity, TokenError},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{net::TcpStream, time::Instant};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    connection::{Connection, Handshake},
    frame::Dialect,
};
use crate::{
    auth,
    http::{bare::Bare, error::HttpFailure},
    state::{self, Edge, Peer},
};

/// Time between our 101 and the connection being ours.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(5);

/// The subprotocol that carries a token, for browsers: they cannot set headers.
const BEARER: &str = "bearer.";

/// A refusal, with the reason it is counted under.
pub(super) struct Refusal {
    reason: &'static str,
    pub(super) answer: HttpFailure,
}

impl Refusal {
    fn new(reason: &'static str, failure: Failure) -> Self {
        Self { reason, answer: failure.into() }
    }

    fn with_status(reason: &'static str, status: StatusCode, failure: Failure) -> Self {
        Self { reason, answer: HttpFailure::with_status(status, failure) }
    }
}

/// `GET {prefix}/ws`
pub(crate) async fn upgrade(State(edge): State<Arc<Edge>>, mut request: Request) -> Response {
    match accept(&edge, &mut request).await {
        Ok(response) => response,
        Err(Refusal { reason, answer }) => {
            edge.metrics.handshake_refused(reason);
            tracing::debug!(reason, "handshake refused");
            let mut response = answer.into_response();
            if response.status() == StatusCode::UPGRADE_REQUIRED {
                let headers = response.headers_mut();
                headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            }
            response
        }
    }
}

async fn accept(edge: &Arc<Edge>, request: &mut Request) -> Result<Response, Refusal> {
    let headers = request.headers();
    let accept_key = check_headers(headers)?;
    let peer =
        request.extensions().get::<Peer>().copied().ok_or_else(|| Refusal::new("internal", Failure::internal()))?;
    let client_ip = edge.client_ip(peer, headers);
    check_capacity(edge, client_ip)?;
    let offers = Offers::read(headers)?;
    check_origin(edge, headers, offers.token)?;
    let identity = identify(edge, offers.token, client_ip).await?;
    let permit = Arc::clone(&edge.sockets).try_acquire_owned().map_err(|_| {
        let failure = Failure::new(ErrorCode::Unavailable, "TOO_MANY_CONNECTIONS", "this server is full");
        Refusal::new("full", failure.retry_after(Duration::from_secs(5)))
    })?;
    let handshake = Handshake {
        dialect: offers.dialect,
        caller: auth::caller(offers.token.unwrap_or_default(), client_ip, headers),
        identity,
    };
    let subprotocol = offers.named.then(|| offers.dialect.subprotocol());
    let upgrade = hyper::upgrade::on(request);
    let edge = Arc::clone(edge);
    edge.clone().tasks.spawn("socket", async move {
        serve(edge, upgrade, handshake).await;
        drop(permit);
    });
    Ok(switching_protocols(&accept_key, subprotocol))
}

pub(super) fn switching_protocols(accept_key: &str, subprotocol: Option<&'static str>) -> Response {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(value) = HeaderValue::try_from(accept_key) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, value);
    }
    if let Some(subprotocol) = subprotocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    }
    response
}

/// Whether a header that is a list has a token.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

pub(super) fn check_headers(headers: &HeaderMap) -> Result<String, Refusal> {
    let upgrade_required = |rule: &'static str| {
        let failure = Failure::invalid("upgrade", rule);
        Refusal::with_status("not_websocket", StatusCode::UPGRADE_REQUIRED, failure)
    };
    if !has_token(headers, header::UPGRADE, "websocket") || !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(upgrade_required(
            "this route speaks WebSocket: Upgrade: websocket and Connection: upgrade are needed",
        ));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes) != Some(b"13") {
        return Err(upgrade_required("the version of the WebSocket protocol must be 13"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if STANDARD.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
        let failure = Failure::invalid("sec-websocket-key", "must be 16 bytes in base64");
        return Err(Refusal::new("not_websocket", failure));
    }
    Ok(derive_accept_key(key))
}

fn check_capacity(edge: &Edge, client_ip: IpAddr) -> Result<(), Refusal> {
    if edge.leaving.is_cancelled() {
        return Err(Refusal::new("draining", state::leaving()));
    }
    edge.handshakes.take(client_ip, Instant::now()).map_err(|wait| {
        let failure =
            Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_HANDSHAKES", "too many connections per second");
        Refusal::new("rate", failure.retry_after(wait))
    })
}

/// What the client offers in `Sec-WebSocket-Protocol`, and the token wherever it is.
struct Offers<'a> {
    dialect: Dialect,
    /// The client named a subprotocol: one must be chosen in the answer.
    named: bool,
    token: Option<&'a str>,
}

impl<'a> Offers<'a> {
    fn read(headers: &'a HeaderMap) -> Result<Self, Refusal> {
        let unreadable = |_| Refusal::new("token", Failure::unauthenticated());
        let mut offers =
            Self { dialect: Dialect::Json, named: false, token: auth::bearer(headers).map_err(unreadable)? };
        let mut offered_any = false;
        let values =
            headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
        for item in values.flat_map(|value| value.split(',')).map(str::trim) {
            offered_any = true;
            if let Some(token) = item.strip_prefix(BEARER) {
                if offers.token.is_some_and(|known| known != token) {
                    return Err(Refusal::new("token", Failure::unauthenticated()));
                }
                offers.token = Some(token);
            } else if let Some(dialect) = Dialect::from_subprotocol(item)
                && !offers.named
            {
                // The client's first choice.
                (offers.dialect, offers.named) = (dialect, true);
            }
        }
        if offered_any && !offers.named {
            let rule = "must name chatbox.v1.json or chatbox.v1.proto";
            return Err(Refusal::new("subprotocol", Failure::invalid("sec-websocket-protocol", rule)));
        }
        Ok(offers)
    }
}

/// Browsers always send an Origin, and CORS does not protect sockets. Who sends none is no browser and has a token.
fn check_origin(edge: &Edge, headers: &HeaderMap, token: Option<&str>) -> Result<(), Refusal> {
    let mut origins = headers.get_all(header::ORIGIN).into_iter();
    match (origins.next(), origins.next()) {
        (None, _) if token.is_some() => Ok(()),
        (None, _) => Err(Refusal::new("token", Failure::unauthenticated())),
        (Some(origin), None) => {
            let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
            let allowed = origin.to_str().is_ok_and(|origin| edge.origins.allows(origin, host));
            if allowed { Ok(()) } else { Err(forbidden()) }
        }
        (Some(_), Some(_)) => Err(forbidden()),
    }
}

fn forbidden() -> Refusal {
    let message = "this origin may not connect";
    Refusal::new("origin", Failure::new(ErrorCode::PermissionDenied, "ORIGIN_NOT_ALLOWED", message))
}

async fn identify(edge: &Edge, token: Option<&str>, client_ip: IpAddr) -> Result<Option<Identity>, Refusal> {
    match token {
        None => Ok(None),
        Some("") => Err(Refusal::new("token", auth::refused(TokenError::Missing, client_ip))),
        Some(token) => {
            let identity = auth::verify(&edge.verifier, token, client_ip).await;
            identity.map(Some).map_err(|failure| Refusal::new("token", failure))
        }
    }
}

/// Counts a connection for as long as it lives, however it ends.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

async fn serve(edge: Arc<Edge>, upgrade: OnUpgrade, handshake: Handshake) {
    let Ok(Ok(upgraded)) = tokio::time::timeout(UPGRADE_TIMEOUT, upgrade).await else {
        // The client was gone before our answer.
        return;
    };
    let _counted = Counted::new(&edge.metrics.connections);
    let started = Instant::now();
    let client_ip = handshake.caller.client_ip;
    tracing::debug!(client.ip = %client_ip, subprotocol = handshake.dialect.subprotocol(), "socket open");
    // The plain TCP stream is taken out of hyper's wrapper: one indirection and one buffer less per connection.
    let (code, by) = match upgraded.downcast::<TokioIo<Bare<TcpStream>>>() {
        Ok(parts) => run(&edge, parts.io.into_inner().into_inner(), parts.read_buf, handshake).await,
        Err(upgraded) => run(&edge, TokioIo::new(upgraded), Bytes::new(), handshake).await,
    };
    edge.metrics.closed(code, by.name());
    tracing::debug!(client.ip = %client_ip, close.code = code, close.by = by.name(), open_ms = started.elapsed().as_millis(), "socket closed");
}

async fn run<S>(edge: &Arc<Edge>, stream: S, read: Bytes, handshake: Handshake) -> (u16, super::close::By)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    Box::new(Connection::new(Arc::clone(edge), stream, read, handshake)).run().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeCore, config, edge_with};

    /// What a connection costs beside its buffers. A future that is held twice, or a close that is kept ready, shows here.
    #[tokio::test]
    async fn an_open_connection_is_small() {
        let edge = edge_with(config(), &FakeCore::new());
        let upgrade = hyper::upgrade::on(http::Request::new(axum::body::Body::empty()));
        let caller = auth::caller("", [192, 0, 2, 1].into(), &HeaderMap::new());
        let handshake = Handshake { dialect: Dialect::Json, caller, identity: None };
        let task = size_of_val(&serve(edge, upgrade, handshake));
        assert!(task <= 1024, "{task} bytes");
        let connection = size_of::<Connection<TcpStream>>();
        assert!(connection <= 1280, "{connection} bytes");
    }
}

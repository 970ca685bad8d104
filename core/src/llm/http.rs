//! What every provider that speaks HTTP has in common: where it may be reached, what its client may do, and how the
//! failures of the transport are classified. Nothing a provider writes into an error is kept.

use std::error::Error;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use chatbox_proto::trace::{TRACEPARENT, TraceContext};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url, redirect};

use super::ProviderError;
use super::sse::DEFAULT_MAX_EVENT_BYTES;
use super::stream::usable_id;

/// Idle connections are closed before the usual 60 s of servers and balancers, or a request meets a dying one.
const POOL_IDLE: Duration = Duration::from_secs(50);
/// Dead peers are found while a model thinks.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// One HTTP/2 connection carries all replies of a provider in small frames. h2 ends the connection when too many small
/// frames wait unread, in proportion to this window.
const HTTP2_CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
const HTTP2_STREAM_WINDOW: u32 = 1024 * 1024;
/// The text is complete but the end mark has not come: usage may still follow. Some servers never close.
const DEFAULT_TAIL_WAIT: Duration = Duration::from_secs(5);
/// An error body is read up to here, so that its connection can serve the next request.
const MAX_ERROR_BODY_BYTES: usize = 64 * 1024;
const ERROR_BODY_WAIT: Duration = Duration::from_secs(1);

/// Why a provider cannot be set up. Names what is wrong, never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The base URL cannot be used.
    #[error("base_url: {0}")]
    BaseUrl(&'static str),
    /// A header cannot be sent.
    #[error("headers: {0}: {1}")]
    Header(String, &'static str),
    /// The key cannot be sent.
    #[error("api_key: must be printable ASCII")]
    ApiKey,
    /// The TLS part of the client failed.
    #[error("http client: {0}")]
    Client(String),
}

/// How to reach a server, whatever it speaks.
#[derive(Clone)]
pub struct Access {
    /// Where the API begins, up to and including `/v1`. A query is kept.
    pub base_url: String,
    /// The key.
    pub api_key: Option<String>,
    /// Further headers, for gateways; they win over the ones sent anyway.
    pub headers: Vec<(String, String)>,
    /// Plain HTTP is allowed to another machine.
    pub allow_http: bool,
    /// Limit for name lookup, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Bytes of one event.
    pub max_event_bytes: usize,
    /// How long to wait for usage and the end mark once the text is complete.
    pub tail_wait: Duration,
}

impl Access {
    /// The usual settings for a base URL.
    #[must_use]
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            api_key: None,
            headers: Vec::new(),
            allow_http: false,
            connect_timeout: Duration::from_secs(5),
            max_event_bytes: DEFAULT_MAX_EVENT_BYTES,
            tail_wait: DEFAULT_TAIL_WAIT,
        }
    }

    /// The URL of `path`.
    ///
    /// # Errors
    /// What [`SetupError`] says.
    pub fn endpoint(&self, path: &str) -> Result<Url, SetupError> {
        endpoint(&self.base_url, path, self.allow_http)
    }

    /// The headers of every request: the key in `key_header`, as it is or as a bearer token.
    ///
    /// # Errors
    /// What [`SetupError`] says.
    pub fn request_headers(&self, key_header: KeyHeader) -> Result<HeaderMap, SetupError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(key) = &self.api_key {
            let (name, value) = match key_header {
                KeyHeader::Bearer => ("authorization", format!("Bearer {key}")),
                KeyHeader::ApiKey => ("api-key", key.clone()),
                KeyHeader::XApiKey => ("x-api-key", key.clone()),
            };
            let mut value = HeaderValue::from_str(&value).map_err(|_| SetupError::ApiKey)?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        for (name, value) in &self.headers {
            let refused = |why| SetupError::Header(name.clone(), why);
            let header = HeaderName::try_from(name).map_err(|_| refused("is not a header name"))?;
            if ["host", "content-length", "transfer-encoding", "connection", "content-type", "accept"]
                .contains(&header.as_str())
            {
                return Err(refused("belongs to the transport"));
            }
            let mut value = HeaderValue::from_str(value).map_err(|_| refused("has a value that cannot be sent"))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        Ok(headers)
    }
}

impl std::fmt::Debug for Access {
    /// Without the key and the values of headers.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

/// Where a service looks for the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyHeader {
    /// `Authorization: Bearer`.
    Bearer,
    /// `api-key`: Azure.
    ApiKey,
    /// `x-api-key`.
    XApiKey,
}

/// The URL of `path` under `base`. Credentials go only where the operator pointed: over TLS, to this machine, or over
/// plain HTTP when that was allowed by name.
///
/// # Errors
/// [`SetupError::BaseUrl`].
pub fn endpoint(base: &str, path: &str, allow_http: bool) -> Result<Url, SetupError> {
    let mut url = Url::parse(base).map_err(|_| SetupError::BaseUrl("is not a URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(SetupError::BaseUrl("must not contain a user name or password"));
    }
    if url.fragment().is_some() {
        return Err(SetupError::BaseUrl("must not contain a fragment"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(SetupError::BaseUrl("must name a host"));
    }
    match url.scheme() {
        "https" => {}
        "http" if allow_http || is_loopback(&url) => {}
        "http" => {
            return Err(SetupError::BaseUrl("must be https; http needs allow_http = true unless it is this machine"));
        }
        _ => return Err(SetupError::BaseUrl("must be http or https")),
    }
    let joined = format!("{}/{path}", url.path().trim_end_matches('/'));
    url.set_path(&joined);
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<std::net::IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// The client of one provider: no redirects (credentials must not follow them), no proxy from the environment, no
/// request time limit (the guard has them).
///
/// # Errors
/// [`SetupError::Client`]: no usable certificate store.
pub fn client(url: &Url, connect_timeout: Duration) -> Result<Client, SetupError> {
    let builder = Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(POOL_IDLE)
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .user_agent(concat!("chatbox/", env!("CARGO_PKG_VERSION")));
    // A plain URL must work on a machine without certificates, so theirs are not loaded for it.
    let builder = if url.scheme() == "http" { builder.tls_certs_only([]) } else { builder };
    builder.build().map_err(|error| SetupError::Client(error.without_url().to_string()))
}

/// The headers of one request: those of all, and where it belongs in a trace.
#[must_use]
pub fn traced(headers: &HeaderMap, trace: Option<TraceContext>) -> HeaderMap {
    let mut headers = headers.clone();
    if let Some(trace) = trace
        && let Ok(value) = HeaderValue::try_from(trace.to_string())
    {
        headers.insert(TRACEPARENT, value);
    }
    headers
}

/// The class of a transport failure. `Display` of reqwest is avoided: it holds the URL.
#[must_use]
pub fn transport_error(error: &reqwest::Error) -> ProviderError {
    if error.is_connect() && error.is_timeout() {
        return ProviderError::Timeout("connect");
    }
    let stage = if error.is_dns() {
        "name lookup"
    } else if error.is_connect() {
        "connect"
    } else if error.is_body() || error.is_decode() {
        "read"
    } else {
        "request"
    };
    ProviderError::Connection(match cause(error) {
        Some(cause) => format!("{stage}: {cause}"),
        None => stage.to_owned(),
    })
}

/// The first cause that is known to hold neither addresses nor text of the other side.
fn cause(error: &reqwest::Error) -> Option<String> {
    let mut next: Option<&(dyn Error + 'static)> = error.source();
    while let Some(source) = next {
        if let Some(io) = source.downcast_ref::<std::io::Error>() {
            let tls = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            return Some(tls.map_or_else(|| io.kind().to_string(), |tls| format!("tls: {tls}")));
        }
        next = source.source();
    }
    None
}

/// A response that is no stream: the error, and the beginning of the body for who looks in it for a code. The body is
/// never shown.
pub struct Refused {
    /// The class.
    pub error: ProviderError,
    /// At most 64 KiB.
    pub body: Bytes,
}

impl std::fmt::Debug for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refused").field("error", &self.error).finish_non_exhaustive()
    }
}

impl From<Refused> for ProviderError {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

/// The response if it is a stream of events. `id_header` names the header with the provider's own id of the request, which
/// its operators ask for.
///
/// # Errors
/// Any status but 200, and any other content.
pub async fn accepted(response: Response, id_header: &str) -> Result<Response, Refused> {
    let status = response.status();
    if status == StatusCode::OK {
        return if is_event_stream(response.headers()) {
            Ok(response)
        } else {
            let error = ProviderError::Malformed("content type is not text/event-stream");
            Err(Refused { error, body: Bytes::new() })
        };
    }
    let retry_after = retry_after(response.headers(), SystemTime::now());
    let id = response.headers().get(id_header).and_then(|value| value.to_str().ok()).filter(|id| usable_id(id));
    tracing::info!(provider.status = status.as_u16(), provider.request_id = id, "provider refused a request");
    let mut body = BytesMut::new();
    // Read for the connection's sake, too: whether it is whole changes nothing.
    let _ = tokio::time::timeout(ERROR_BODY_WAIT, collect(response, &mut body)).await;
    body.truncate(MAX_ERROR_BODY_BYTES);
    Err(Refused { error: ProviderError::Status { status: status.as_u16(), retry_after }, body: body.freeze() })
}

async fn collect(mut response: Response, body: &mut BytesMut) {
    while body.len() < MAX_ERROR_BODY_BYTES {
        match response.chunk().await {
            Ok(Some(bytes)) => body.extend_from_slice(&bytes),
            Ok(None) | Err(_) => return,
        }
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("text/event-stream")
}

/// How long the provider asks to be left alone: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110, 10.2.3).
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(millis) = text("retry-after-ms").and_then(|value| value.parse::<u32>().ok()) {
        return Some(Duration::from_millis(millis.into()));
    }
    let value = text(RETRY_AFTER.as_str())?;
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    // A date in the past means: now.
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().expect("name"), HeaderValue::from_static(value))])
    }

    #[test]
    fn endpoint_joins_the_path_and_keeps_the_query() {
        for (base, expect) in [
            ("https://api.example.com/v1", "https://api.example.com/v1/chat/completions"),
            ("https://api.example.com/v1/", "https://api.example.com/v1/chat/completions"),
            ("https://api.example.com", "https://api.example.com/chat/completions"),
            ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1/chat/completions"),
            ("http://[::1]:8080/v1", "http://[::1]:8080/v1/chat/completions"),
            ("http://localhost/v1", "http://localhost/v1/chat/completions"),
            (
                "https://x.example.com/openai/d?api-version=1",
                "https://x.example.com/openai/d/chat/completions?api-version=1",
            ),
        ] {
            assert_eq!(endpoint(base, "chat/completions", false).expect(base).as_str(), expect);
        }
    }

    #[test]
    fn endpoint_refuses_what_could_leak_the_key() {
        for base in [
            "http://api.example.com/v1",
            "http://10.0.0.5/v1",
            "http://localhost.example.com/v1",
            "http://127.0.0.1.example.com/v1",
            "https://me@api.example.com/v1",
            "https://me:secret@api.example.com/v1",
            "https://api.example.com/v1#part",
            "ftp://api.example.com",
            "file:///etc/passwd",
            "api.example.com/v1",
            "",
        ] {
            assert!(matches!(endpoint(base, "x", false), Err(SetupError::BaseUrl(_))), "{base}");
        }
    }

    #[test]
    fn plain_http_to_another_machine_needs_the_switch() {
        assert!(endpoint("http://10.0.0.5/v1", "x", true).is_ok());
    }

    #[test]
    fn retry_after_is_read_in_all_its_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:30 GMT").expect("date");
        for (name, value, expect) in [
            ("retry-after", "7", Some(Duration::from_secs(7))),
            ("retry-after", " 0 ", Some(Duration::ZERO)),
            ("retry-after-ms", "250", Some(Duration::from_millis(250))),
            ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT", Some(Duration::from_secs(7))),
            ("retry-after", "Sunday, 06-Nov-94 08:49:37 GMT", Some(Duration::from_secs(7))),
            ("retry-after", "Sun Nov  6 08:49:37 1994", Some(Duration::from_secs(7))),
            ("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT", Some(Duration::ZERO)),
            ("retry-after", "soon", None),
            ("retry-after", "-1", None),
            ("x-other", "7", None),
        ] {
            assert_eq!(retry_after(&headers(name, value), now), expect, "{name}: {value}");
        }
    }

    #[test]
    fn content_type_may_have_parameters_and_any_case() {
        assert!(is_event_stream(&headers("content-type", "text/event-stream")));
        assert!(is_event_stream(&headers("content-type", "Text/Event-Stream; charset=utf-8")));
        assert!(!is_event_stream(&headers("content-type", "application/json")));
        assert!(!is_event_stream(&headers("content-type", "text/event-streams")));
        assert!(!is_event_stream(&HeaderMap::new()));
    }
}

//! Core, as the edge sees it: a trait, so that a connection's logic knows no transport, and its gRPC client. One stream per
//! connection today; a multiplexed link may take its place without touching `ws`.

use std::{
    fmt,
    net::IpAddr,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use chatbox_proto::{codec::RawCodec, error_code::ErrorCode, status::Failure};
use futures_util::{Stream, StreamExt as _};
use http::uri::PathAndQuery;
use prost::Message as _;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::config::CoreConfig;

/// Frames on their way to core: a bounded queue. When it is full the socket is not read.
pub type Frames = futures_channel::mpsc::Receiver<Bytes>;

/// Events on their way from core, encoded. Core's queue per subscriber is the one that merges: whoever does not poll this
/// leaves events there.
pub type Events = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// For whom a call is made.
#[derive(Clone)]
pub struct Caller {
    /// The bearer token, verified here and again by core.
    pub token: String,
    /// Where the request came from.
    pub client_ip: IpAddr,
    /// W3C trace context of the request; empty: none.
    pub traceparent: String,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("client_ip", &self.client_ip).finish_non_exhaustive()
    }
}

/// A unary call of `ChatCore`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Name of the method, like `ListModels`.
    pub method: &'static str,
    /// It changes something: when its answer is lost, its outcome is unknown.
    pub writes: bool,
}

/// What the edge needs of core.
#[async_trait]
pub trait CoreApi: Send + Sync + fmt::Debug {
    /// Opens a session stream. The first frame of `frames` is `open`. Ending `frames` half-closes the stream; dropping
    /// the events ends it. The caller bounds the time this may take, by dropping the future.
    async fn chat(&self, caller: &Caller, frames: Frames) -> Result<Events, Failure>;

    /// Makes a unary call with encoded messages. Bounded by the configured time.
    async fn call(&self, call: Call, caller: &Caller, request: Bytes) -> Result<Bytes, Failure>;

    /// Asks core whether it serves. Bounded by `timeout`.
    async fn check(&self, timeout: Duration) -> Result<(), Failure>;
}

/// Core's statuses carry our details; whatever does not is from something in between, or from nobody at all.
const CORE_UNAVAILABLE: &str = "CORE_UNAVAILABLE";

/// How soon to come back when core is not there.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// PERFORMANCE 2.5: with small windows h2 ends a whole connection when many small DATA frames wait unread. The stream's
/// window is what one slow reader can hold; the connection's is all of theirs.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// Events and answers above this are not taken: a page of 1,000 messages of 32 KiB is the largest honest one.
const MAX_MESSAGE: usize = 40 << 20;

/// Failure that stands for "core is not there".
pub(crate) fn core_unavailable() -> Failure {
    Failure::new(ErrorCode::Unavailable, CORE_UNAVAILABLE, "the service is not available").retry_after(RETRY_AFTER)
}

/// Whether it is [`core_unavailable`].
pub(crate) fn is_core_unavailable(failure: &Failure) -> bool {
    failure.reason == CORE_UNAVAILABLE
}

/// Core over gRPC.
pub struct GrpcCore {
    channels: Vec<Channel>,
    next: AtomicUsize,
    call_timeout: Duration,
}

impl GrpcCore {
    /// Prepares the channels; they connect when they are needed, and again after a loss. Needs the process's rustls
    /// provider for `https`.
    ///
    /// # Errors
    /// For an address or a certificate that cannot be used.
    pub fn new(config: &CoreConfig) -> anyhow::Result<Self> {
        let mut endpoint = Endpoint::from_shared(config.url.clone())?
            .user_agent(concat!("chatbox-edge/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .http2_adaptive_window(false)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(config.keepalive)
            .keep_alive_timeout(config.keepalive.min(Duration::from_secs(10)))
            .keep_alive_while_idle(true);
        if config.url.starts_with("https") {
            endpoint = endpoint.tls_config(tls(config)?)?;
        }
        let channels = (0..config.channels.max(1)).map(|_| endpoint.connect_lazy()).collect();
        Ok(Self { channels, next: AtomicUsize::new(0), call_timeout: config.call_timeout })
    }

    fn client(&self) -> Grpc<Channel> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        Grpc::new(self.channels[turn % self.channels.len()].clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    async fn unary(&self, path: String, request: Request<Bytes>, timeout: Duration) -> Result<Bytes, Status> {
        let path = PathAndQuery::try_from(path).map_err(|_| Status::internal("not a path"))?;
        let mut client = self.client();
        let answer = async {
            client.ready().await.map_err(|_| Status::unavailable("not connected"))?;
            client.unary(request, path, RawCodec).await
        };
        let answer = tokio::time::timeout(timeout, answer).await;
        answer.map_err(|_| Status::unavailable("too slow"))?.map(tonic::Response::into_inner)
    }
}

impl fmt::Debug for GrpcCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcCore").field("channels", &self.channels.len()).finish_non_exhaustive()
    }
}

fn tls(config: &CoreConfig) -> anyhow::Result<ClientTlsConfig> {
    use anyhow::Context as _;
    let read = |setting: &str, file: &str| std::fs::read(file).with_context(|| format!("{setting}: {file}"));
    let mut tls = ClientTlsConfig::new();
    tls = if config.ca_file.is_empty() {
        tls.with_native_roots()
    } else {
        tls.ca_certificate(Certificate::from_pem(read("core.ca_file", &config.ca_file)?))
    };
    if !config.cert_file.is_empty() {
        let certificate = read("core.cert_file", &config.cert_file)?;
        tls = tls.identity(Identity::from_pem(certificate, read("core.key_file", &config.key_file)?));
    }
    Ok(if config.server_name.is_empty() { tls } else { tls.domain_name(&config.server_name) })
}

fn request<T>(caller: &Caller, message: T) -> Result<Request<T>, Failure> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    let bearer = format!("Bearer {}", caller.token);
    let mut bearer = MetadataValue::try_from(bearer).map_err(|_| Failure::unauthenticated())?;
    bearer.set_sensitive(true);
    metadata.insert("authorization", bearer);
    if let Ok(ip) = MetadataValue::try_from(caller.client_ip.to_string()) {
        metadata.insert("x-chatbox-client-ip", ip);
    }
    if !caller.traceparent.is_empty()
        && let Ok(traceparent) = MetadataValue::try_from(caller.traceparent.as_str())
    {
        metadata.insert("traceparent", traceparent);
    }
    Ok(request)
}

/// A status as the failure to pass on.
fn failure(status: &Status) -> Failure {
    let from_core = !status.details().is_empty();
    let of_the_way = matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded
    );
    if of_the_way && !from_core {
        tracing::debug!(grpc.code = ?status.code(), "core could not be reached");
        return core_unavailable();
    }
    Failure::from(status)
}

#[async_trait]
impl CoreApi for GrpcCore {
    async fn chat(&self, caller: &Caller, frames: Frames) -> Result<Events, Failure> {
        let mut client = self.client();
        client.ready().await.map_err(|_| core_unavailable())?;
        let path = PathAndQuery::from_static("/chatbox.v1.ChatCore/Chat");
        let answer = client.streaming(request(caller, frames)?, path, RawCodec).await;
        let events = answer.map_err(|status| failure(&status))?.into_inner();
        Ok(Box::pin(events.map(|event| event.map_err(|status| failure(&status)))))
    }

    async fn call(&self, call: Call, caller: &Caller, message: Bytes) -> Result<Bytes, Failure> {
        let path = format!("/chatbox.v1.ChatCore/{}", call.method);
        self.unary(path, request(caller, message)?, self.call_timeout).await.map_err(|status| {
            let mut failure = failure(&status);
            failure.outcome_unknown |= call.writes && is_core_unavailable(&failure);
            failure
        })
    }

    async fn check(&self, timeout: Duration) -> Result<(), Failure> {
        #[derive(Clone, Copy, PartialEq, prost::Message)]
        struct HealthCheckResponse {
            #[prost(int32, tag = "1")]
            status: i32,
        }
        const SERVING: i32 = 1;

        // The empty name asks for the server as a whole.
        let request = Request::new(Bytes::new());
        let answer = self.unary("/grpc.health.v1.Health/Check".to_owned(), request, timeout).await;
        let answer = answer.map_err(|status| failure(&status))?;
        match HealthCheckResponse::decode(answer) {
            Ok(HealthCheckResponse { status: SERVING }) => Ok(()),
            Ok(_) | Err(_) => Err(core_unavailable()),
        }
    }
}

#[cfg(test)]
mod tests;

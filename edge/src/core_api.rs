//! Core, as the edge sees it: a trait, so that a connection's logic knows no transport, and its gRPC client over one core or
//! several. One stream per connection today; a multiplexed link may take its place without touching `ws`.

mod cores;

use std::{fmt, net::IpAddr, pin::Pin, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use chatbox_proto::{
    codec::RawCodec,
    error_code::ErrorCode,
    spans::{Kind, Span, Tracer},
    status::{Failure, generic_reason},
    trace::{TRACEPARENT, TraceContext},
};
use futures_util::{Stream, StreamExt as _};
use http::uri::PathAndQuery;
use tonic::{Code, Request, Status, metadata::MetadataValue};

use self::cores::{Core, Cores};
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

/// A unary call of core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Name of the method, like `ListModels`; those of the team with their service, like `ChatAdmin/TakeOver`.
    pub method: &'static str,
    /// It changes something: when its answer is lost, its outcome is unknown.
    pub writes: bool,
}

/// What the edge needs of core.
#[async_trait]
pub trait CoreApi: Send + Sync + fmt::Debug {
    /// Opens a session stream on a core that serves. The first frame of `frames` is `open`. Ending `frames` half-closes the stream; dropping
    /// the events ends it. The caller bounds the time this may take, by dropping the future.
    async fn chat(&self, caller: &Caller, frames: Frames) -> Result<Events, Failure>;

    /// Makes a unary call with encoded messages. Bounded by the configured time.
    async fn call(&self, call: Call, caller: &Caller, request: Bytes) -> Result<Bytes, Failure>;

    /// Asks whether any core serves. Bounded by `timeout`.
    async fn check(&self, timeout: Duration) -> Result<(), Failure>;

    /// Keeps knowing which cores there are and which of them serve. Never returns; whoever runs an edge polls it beside
    /// everything else, once.
    async fn watch(&self) {
        std::future::pending().await
    }
}

/// Core's statuses carry our details; whatever does not is from something in between, or from nobody at all.
const CORE_UNAVAILABLE: &str = "CORE_UNAVAILABLE";

/// How soon to come back when core is not there.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Failure that stands for "core is not there".
pub(crate) fn core_unavailable() -> Failure {
    Failure::new(ErrorCode::Unavailable, CORE_UNAVAILABLE, "the service is not available").retry_after(RETRY_AFTER)
}

/// Whether it is [`core_unavailable`].
pub(crate) fn is_core_unavailable(failure: &Failure) -> bool {
    failure.reason == CORE_UNAVAILABLE
}

/// Core over gRPC: one or several of them, of which the least loaded that serves is taken.
#[derive(Debug)]
pub struct GrpcCore {
    cores: Cores,
    call_timeout: Duration,
    tracer: Tracer,
}

impl GrpcCore {
    /// Prepares the way; connections are made when they are needed, and again after a loss. Needs the process's rustls
    /// provider for `https`.
    ///
    /// # Errors
    /// For an address or a certificate that cannot be used.
    pub fn new(config: &CoreConfig) -> anyhow::Result<Self> {
        Ok(Self { cores: Cores::new(config)?, call_timeout: config.call_timeout, tracer: Tracer::off() })
    }

    /// Every call is a span of this tracer.
    #[must_use]
    pub fn traced(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    /// The span of a call, and where it says that the call belongs.
    fn span(&self, method: &'static str, caller: &Caller) -> (Span, String) {
        if !self.tracer.is_on() {
            return (self.tracer.start("", Kind::Client, None), caller.traceparent.clone());
        }
        let mut span = self.tracer.start(method, Kind::Client, TraceContext::parse(&caller.traceparent));
        span.set("rpc.system", "grpc");
        span.set("rpc.method", method);
        let context = span.context().map(|context| context.to_string()).unwrap_or_default();
        (span, context)
    }

    async fn unary(&self, path: &str, request: Request<Bytes>) -> Result<Bytes, Status> {
        let path = PathAndQuery::try_from(path).map_err(|_| Status::internal("not a path"))?;
        let answer = async {
            let core = self.cores.choose().await.ok_or_else(|| Status::unavailable("no core serves"))?;
            let answer = async { core.client().await?.unary(request, path, RawCodec).await };
            answer.await.inspect_err(|status| notice(&core, status))
        };
        let answer = tokio::time::timeout(self.call_timeout, answer).await;
        answer.map_err(|_| Status::unavailable("too slow"))?.map(tonic::Response::into_inner)
    }
}

/// A core that was lost once is asked before it is chosen again.
fn notice(core: &Core, status: &Status) {
    if is_of_the_way(status) {
        core.suspect();
    }
}

fn request<T>(caller: &Caller, traceparent: &str, message: T) -> Result<Request<T>, Failure> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    let bearer = format!("Bearer {}", caller.token);
    let mut bearer = MetadataValue::try_from(bearer).map_err(|_| Failure::unauthenticated())?;
    bearer.set_sensitive(true);
    metadata.insert("authorization", bearer);
    if let Ok(ip) = MetadataValue::try_from(caller.client_ip.to_string()) {
        metadata.insert("x-chatbox-client-ip", ip);
    }
    if !traceparent.is_empty()
        && let Ok(traceparent) = MetadataValue::try_from(traceparent)
    {
        metadata.insert(TRACEPARENT, traceparent);
    }
    Ok(request)
}

/// Whether a status is of the transport, or of something in between, rather than core's own.
fn is_of_the_way(status: &Status) -> bool {
    let of_the_way = matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded
    );
    of_the_way && status.details().is_empty()
}

/// A status as the kind of a failure.
fn class(status: &Status) -> &'static str {
    generic_reason(ErrorCode::from_grpc(status.code()))
}

/// A status as the failure to pass on.
fn failure(status: &Status) -> Failure {
    if is_of_the_way(status) {
        tracing::debug!(grpc.code = ?status.code(), "core could not be reached");
        return core_unavailable();
    }
    Failure::from(status)
}

#[async_trait]
impl CoreApi for GrpcCore {
    async fn chat(&self, caller: &Caller, frames: Frames) -> Result<Events, Failure> {
        let core = self.cores.choose().await.ok_or_else(core_unavailable)?;
        // Counted from here on, so that many that come at once do not all see the same core idle.
        let stream = core.stream();
        let path = PathAndQuery::from_static("/chatbox.v1.ChatCore/Chat");
        // It ends when the stream is open: the rest of it may take hours.
        let (mut span, traceparent) = self.span("Chat", caller);
        let request = request(caller, &traceparent, frames)?;
        let answer = async { core.client().await?.streaming(request, path, RawCodec).await };
        let failed = move |status: &Status| {
            notice(&stream, status);
            failure(status)
        };
        let answer = answer.await.inspect_err(|status| span.fail(class(status)));
        let events = answer.map_err(|status| failed(&status))?.into_inner();
        Ok(Box::pin(events.map(move |event| event.map_err(|status| failed(&status)))))
    }

    async fn call(&self, call: Call, caller: &Caller, message: Bytes) -> Result<Bytes, Failure> {
        let service = if call.method.contains('/') { "" } else { "ChatCore/" };
        let path = format!("/chatbox.v1.{service}{}", call.method);
        let (mut span, traceparent) = self.span(call.method, caller);
        self.unary(&path, request(caller, &traceparent, message)?).await.map_err(|status| {
            span.fail(class(&status));
            let mut failure = failure(&status);
            failure.outcome_unknown |= call.writes && is_core_unavailable(&failure);
            failure
        })
    }

    async fn check(&self, timeout: Duration) -> Result<(), Failure> {
        let serves = tokio::time::timeout(timeout, self.cores.any_serves()).await.unwrap_or(false);
        if serves { Ok(()) } else { Err(core_unavailable()) }
    }

    async fn watch(&self) {
        self.cores.watch().await;
    }
}

#[cfg(test)]
mod tests;

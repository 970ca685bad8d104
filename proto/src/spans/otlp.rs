//! OTLP over gRPC: the part of its messages that is used, and the task that sends batches of them. The messages are those of
//! `opentelemetry/proto/trace/v1/trace.proto`; that they are is tested against the project's own types.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Uri, uri::PathAndQuery};
use prost::Message;
use tokio::{sync::mpsc, time::timeout};
use tonic::{
    Request, Status,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{Ended, Kind, TelemetryConfig, Tracer, Value};

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Between two lines in the log about a collector that does not take what it is told.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Whether spans can be sent there.
pub(super) fn is_endpoint(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let plain = matches!(uri.path_and_query().map(PathAndQuery::as_str), None | Some("" | "/"));
    let host = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    plain && host && matches!(uri.scheme_str(), Some("http" | "https"))
}

/// Sends what tracers keep.
#[derive(Debug)]
pub struct Exporter {
    spans: mpsc::Receiver<Ended>,
    tracer: Tracer,
    channel: Channel,
    resource: Resource,
    batch: usize,
    wait: Duration,
    timeout: Duration,
}

impl Exporter {
    pub(super) fn new(
        config: &TelemetryConfig,
        service: &'static str,
        spans: mpsc::Receiver<Ended>,
        tracer: Tracer,
    ) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(config.otlp_endpoint.clone());
        let mut endpoint = endpoint.map_err(|_| "telemetry.otlp_endpoint: is no URL".to_owned())?;
        endpoint = endpoint.connect_timeout(config.export_timeout);
        if config.otlp_endpoint.starts_with("https:") {
            let tls = endpoint.tls_config(ClientTlsConfig::new().with_native_roots());
            endpoint = tls.map_err(|_| "telemetry.otlp_endpoint: TLS cannot be set up".to_owned())?;
        }
        Ok(Self {
            spans,
            tracer,
            channel: endpoint.connect_lazy(),
            resource: Resource { attributes: vec![attribute("service.name", &Value::from(service))] },
            batch: config.batch_spans.max(1),
            wait: config.batch_wait,
            timeout: config.export_timeout,
        })
    }

    /// Sends batches until `stop`, then what is left. Whoever waits for the end bounds it.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut batch = Vec::with_capacity(self.batch);
        let mut complained: Option<tokio::time::Instant> = None;
        let mut stopping = false;
        while !stopping {
            tokio::select! {
                biased;
                () = &mut stop => stopping = true,
                () = collect(&mut self.spans, &mut batch, self.batch, self.wait) => {}
            }
            loop {
                if stopping {
                    while batch.len() < self.batch
                        && let Ok(span) = self.spans.try_recv()
                    {
                        batch.push(span);
                    }
                }
                if batch.is_empty() {
                    break;
                }
                let count = batch.len();
                let sent = timeout(self.timeout, self.send(std::mem::take(&mut batch))).await;
                let sent = sent.unwrap_or_else(|_| Err(Status::deadline_exceeded("")));
                self.tracer.count(count, sent.is_ok());
                if let Err(status) = sent
                    && complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY)
                {
                    complained = Some(tokio::time::Instant::now());
                    tracing::warn!(grpc.code = ?status.code(), spans = count, "the collector does not take spans");
                }
                if !stopping {
                    break;
                }
            }
        }
    }

    async fn send(&self, batch: Vec<Ended>) -> Result<(), Status> {
        let scope = Scope { name: env!("CARGO_PKG_NAME").to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let spans = batch.into_iter().map(span).collect();
        let resource_spans = ResourceSpans {
            resource: Some(self.resource.clone()),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
        };
        let request = ExportRequest { resource_spans: vec![resource_spans] };
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.map_err(|_| Status::unavailable(""))?;
        let codec = ProstCodec::<ExportRequest, ExportResponse>::default();
        client.unary(Request::new(request), PathAndQuery::from_static(EXPORT), codec).await?;
        Ok(())
    }
}

/// Waits for a span, and then a little for others.
async fn collect(spans: &mut mpsc::Receiver<Ended>, batch: &mut Vec<Ended>, most: usize, wait: Duration) {
    if batch.is_empty() {
        match spans.recv().await {
            Some(span) => batch.push(span),
            None => std::future::pending().await,
        }
    }
    let _ = timeout(wait, async {
        while batch.len() < most {
            match spans.recv().await {
                Some(span) => batch.push(span),
                None => break,
            }
        }
    })
    .await;
}

fn span(ended: Ended) -> Span {
    let Ended { context, parent, name, kind, started, took, attributes, failed } = ended;
    let start = nanos(started);
    Span {
        trace_id: context.trace_id().to_vec(),
        span_id: context.span_id().to_vec(),
        parent_span_id: parent.map(|parent| parent.span_id().to_vec()).unwrap_or_default(),
        name: name.into_owned(),
        kind: match kind {
            Kind::Server => 2,
            Kind::Client => 3,
        },
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)),
        attributes: attributes.iter().map(|(key, value)| attribute(key, value)).collect(),
        status: Some(SpanStatus { code: if failed { 2 } else { 0 } }),
        flags: 1,
    }
}

fn nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

fn attribute(key: &str, value: &Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::String(text.clone().into_owned()),
        Value::Int(count) => any_value::Value::Int(*count),
        Value::Float(measure) => any_value::Value::Double(*measure),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

#[derive(Clone, PartialEq, Message)]
struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ExportResponse {}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<SpanStatus>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct SpanStatus {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "any_value::Value", tags = "1, 3, 4")]
    value: Option<any_value::Value>,
}

mod any_value {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Value {
        #[prost(string, tag = "1")]
        String(String),
        #[prost(int64, tag = "3")]
        Int(i64),
        #[prost(double, tag = "4")]
        Double(f64),
    }
}

//! An OpenTelemetry collector, made from the types of the OpenTelemetry project: what it understands is OTLP.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::wait::{LIMIT, within};

/// A span with the process that told it.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Name of the process.
    pub service: String,
    /// The span.
    pub span: Span,
}

impl Told {
    /// The value of an attribute, as text.
    #[must_use]
    pub fn attribute(&self, key: &str) -> Option<String> {
        text_of(&self.span.attributes, key)
    }
}

fn text_of(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    Some(match value {
        Value::StringValue(text) => text,
        Value::IntValue(count) => count.to_string(),
        Value::DoubleValue(measure) => measure.to_string(),
        other => format!("{other:?}"),
    })
}

#[derive(Debug, Clone, Default)]
struct Notes {
    /// Guards plain data and is never held over an await.
    told: Arc<Mutex<Vec<Told>>>,
    count: watch::Sender<usize>,
}

#[tonic::async_trait]
impl TraceService for Notes {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut told = self.told.lock().expect("nothing panics while it holds this lock");
        for group in request.into_inner().resource_spans {
            let resource = group.resource.unwrap_or_default();
            let service = text_of(&resource.attributes, "service.name").unwrap_or_default();
            let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
            told.extend(spans.map(|span| Told { service: service.clone(), span }));
        }
        self.count.send_replace(told.len());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// The server; ends when dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    notes: Notes,
    _server: JoinSet<()>,
}

impl Collector {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, notes) = (listener.local_addr()?, Notes::default());
        let service = TraceServiceServer::new(notes.clone());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let serving = Server::builder().add_service(service);
            let _ = serving.serve_with_incoming(TcpListenerStream::new(listener)).await;
        });
        Ok(Self { address, notes, _server: server })
    }

    /// What a process takes as its endpoint.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything so far.
    #[must_use]
    pub fn told(&self) -> Vec<Told> {
        self.notes.told.lock().expect("nothing panics while it holds this lock").clone()
    }

    /// Waits until `holds` is true of what was told, and returns it.
    ///
    /// # Errors
    /// When it is not within the limit.
    pub async fn wait_told(&self, what: &str, holds: impl Fn(&[Told]) -> bool) -> Result<Vec<Told>> {
        let mut count = self.notes.count.subscribe();
        within(what, LIMIT, count.wait_for(|_| holds(&self.told()))).await??;
        Ok(self.told())
    }
}

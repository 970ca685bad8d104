//! The operators' listener: metrics, liveness and readiness over HTTP. Never on the public port.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Connections at once: a scraper or two, and a probe.
const MAX_CONNECTIONS: usize = 32;

/// A client that does not finish its request within this time is cut.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the process can serve. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(Arc<AtomicBool>);

impl Ready {
    pub(crate) fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, metrics: Metrics, ready: Ready, stop: CancellationToken) {
    // Dropped at the end, which ends what is left.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                let Ok((socket, _)) = accepted else { continue };
                let (metrics, ready) = (metrics.clone(), ready.clone());
                let service = service_fn(move |request| {
                    let answer = answer(&request, &metrics, &ready);
                    async move { Ok::<_, Infallible>(answer) }
                });
                connections.spawn(
                    hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADER_TIMEOUT)
                        .serve_connection(TokioIo::new(socket), service),
                );
            }
        }
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, ready: &Ready) -> Response<Full<bytes::Bytes>> {
    let text = "text/plain; charset=utf-8";
    let (status, kind, body) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics.encode()),
        "/healthz" => (StatusCode::OK, text, "ok\n".to_owned()),
        "/readyz" if ready.0.load(Ordering::Relaxed) => (StatusCode::OK, text, "ready\n".to_owned()),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, text, "not ready\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, text, "not found\n".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

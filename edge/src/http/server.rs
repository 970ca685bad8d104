//! Accepting connections and speaking HTTP/1.1 on them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::bare::Bare;
use crate::{
    state::{Edge, Peer},
    tasks::Tasks,
};

/// Connections that the kernel keeps for us while we are busy.
const BACKLOG: i32 = 1024;

/// HTTP connections at once. An upgraded one is no longer counted here: sockets have a limit of their own. Beyond it new ones
/// wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;

/// No honest browser or proxy sends more.
const MAX_HEADERS: usize = 64;

/// Binds an address, so that a taken one is noticed before anything is started.
///
/// # Errors
/// One line with the address.
pub(crate) fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restarted process takes its port back while old connections still linger in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|error: std::io::Error| anyhow::anyhow!("{setting}: cannot listen on {address}: {error}"))
}

/// When a listener stops.
#[derive(Debug, Clone)]
pub(crate) struct Until {
    /// No new connections from here on.
    pub(crate) accepting: CancellationToken,
    /// Connections end with the answer they are at.
    pub(crate) serving: CancellationToken,
}

/// Accepts until told otherwise; the listener is closed when this returns.
pub(crate) async fn serve(edge: Arc<Edge>, listener: TcpListener, router: Router, tasks: Tasks, until: Until) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            // Never closed.
            let permit = Arc::clone(&permits).acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = until.accepting.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let serving = until.serving.clone();
                let connection = connection(Arc::clone(&edge), socket, peer, router.clone(), serving);
                tasks.spawn("http connection", async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, or a peer that was gone already: the next one may work.
                tracing::warn!(error = %error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    edge: Arc<Edge>,
    socket: TcpStream,
    peer: SocketAddr,
    router: Router,
    serving_until: CancellationToken,
) {
    // Small frames are sent when they are ready, not when the last one is acknowledged.
    let _ = socket.set_nodelay(true);
    let limits = &edge.config.limits;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(limits.header_bytes.as_usize())
        .half_close(false);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip()));
        router.clone().oneshot(request.map(axum::body::Body::new))
    });
    let mut serving =
        std::pin::pin!(builder.serve_connection(TokioIo::new(Bare::new(socket)), service).with_upgrades());
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = serving_until.cancelled() => {
            serving.as_mut().graceful_shutdown();
            // The answer that is being written may be finished; a client that does not take it is cut.
            tokio::time::timeout(edge.config.drain.jitter + edge.config.socket.close_timeout, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %error, "http connection ended");
    }
}

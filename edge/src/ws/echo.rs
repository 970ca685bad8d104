//! An echo over the edge's own handshake and socket, for conformance suites: they test framing, not chat.

use std::{convert::Infallible, future::poll_fn, sync::Arc};

use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper::{body::Incoming as Body, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    socket::{Incoming, Socket},
    upgrade,
};
use crate::config::Config;

/// What the largest cases of the suites send.
const MAX_FRAME: usize = 64 << 20;

/// Echoes on every path until cancelled.
pub async fn serve(listener: TcpListener, until: CancellationToken) {
    let config = Arc::new(Config::default());
    let tasks = TaskTracker::new();
    while let Some(Ok((stream, _))) = until.run_until_cancelled(listener.accept()).await {
        let (config, sockets) = (Arc::clone(&config), tasks.clone());
        tasks.spawn(async move {
            let service = service_fn(|request: hyper::Request<Body>| {
                let answer = answer(request, &config, &sockets);
                async move { Ok::<_, Infallible>(answer) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
    }
}

fn answer(mut request: hyper::Request<Body>, config: &Arc<Config>, tasks: &TaskTracker) -> Response {
    match upgrade::check_headers(request.headers()) {
        Ok(accept_key) => {
            tasks.spawn(echo(hyper::upgrade::on(&mut request), Arc::clone(config)));
            upgrade::switching_protocols(&accept_key, None)
        }
        Err(refusal) => refusal.answer.into_response(),
    }
}

async fn echo(upgrade: OnUpgrade, config: Arc<Config>) {
    let Ok(upgraded) = upgrade.await else { return };
    let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
    let mut socket = Socket::new(parts.io.into_inner(), parts.read_buf, MAX_FRAME, &config);
    let limit = config.socket.close_timeout;
    loop {
        match poll_fn(|cx| socket.poll_read(cx)).await {
            Incoming::Text(bytes) => send(&mut socket, text(bytes)).await,
            Incoming::Binary(bytes) => send(&mut socket, Message::Binary(bytes)).await,
            Incoming::Control => {}
            Incoming::Close(_) => return socket.finish(limit).await,
            Incoming::Broken(1006, _) => return,
            Incoming::Broken(code, reason) => return socket.close(None, code, reason.to_owned(), limit).await,
        }
    }
}

fn text(bytes: Bytes) -> Message {
    Message::Text(Utf8Bytes::try_from(bytes).unwrap_or_default())
}

async fn send(socket: &mut Socket<TcpStream>, message: Message) {
    // What fails here fails again in the next read.
    let _ = poll_fn(|cx| std::task::Poll::Ready(socket.feed(cx, message.clone()))).await;
    let _ = poll_fn(|cx| socket.poll_flush(cx)).await;
}

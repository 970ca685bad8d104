//! The edge over real sockets, with a core that the test plays.

use std::time::Duration;

use chatbox_proto::{error_code::ErrorCode, json, v1};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, StatusCode};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};

use super::*;
use crate::testing::{FakeCore, config, token};

mod handshake;
mod life;
mod routes;
mod secrets;

/// A running edge.
struct Running {
    address: SocketAddr,
    core: Arc<FakeCore>,
    edge: Arc<Edge>,
    shutdown: CancellationToken,
    done: tokio::sync::oneshot::Receiver<()>,
    client: reqwest::Client,
}

type Socket = WebSocketStream<TcpStream>;

impl Running {
    async fn start() -> Self {
        Self::start_with(config()).await
    }

    async fn start_with(config: Config) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let core = FakeCore::new();
        let app = App::bind_with(config, Arc::clone(&core) as Arc<dyn CoreApi>).await.unwrap();
        let address = app.http_addr().unwrap();
        let edge = Arc::clone(&app.edge);
        let shutdown = CancellationToken::new();
        let (tx, done) = tokio::sync::oneshot::channel();
        let running = app.run(shutdown.clone());
        // Not one of the edge's own tasks: those are waited for by this one.
        let mut set = tokio::task::JoinSet::new();
        set.spawn(async move {
            running.await.unwrap();
            let _ = tx.send(());
        });
        set.detach_all();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(10))
            .build()
            .unwrap();
        Self { address, core, edge, shutdown, done, client }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/chatbox{path}", self.address)
    }

    fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(self.url(path))
    }

    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(self.url(path)).bearer_auth(token("alice"))
    }

    /// Opens a socket with these headers.
    async fn socket(&self, headers: &[(&str, &str)]) -> Result<(Socket, HeaderMap), (StatusCode, Option<v1::Error>)> {
        let mut request = format!("ws://{}/chatbox/ws", self.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, response)) => Ok((socket, response.headers().clone())),
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Err((response.status(), json::from_slice::<v1::ErrorResponse>(&body).ok().and_then(|body| body.error)))
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// Opens a socket and the stream behind it.
    async fn open(&self, user_id: &str) -> (Socket, crate::testing::Chat) {
        let (mut socket, _) = self.socket(&[("authorization", &format!("Bearer {}", token(user_id)))]).await.unwrap();
        socket.send(Message::text(r#"{"open":{}}"#)).await.unwrap();
        let mut chat = self.core.chat().await;
        chat.frame().await.unwrap();
        (socket, chat)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.done).await.expect("a drain in time").unwrap();
        assert_eq!(self.edge.metrics.connections.get(), 0);
        assert_eq!(self.edge.tasks.len(), 0);
    }
}

/// Waits until it is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

async fn error_of(response: reqwest::Response) -> v1::Error {
    json::from_slice::<v1::ErrorResponse>(&response.bytes().await.unwrap()).unwrap().error.unwrap()
}

fn code(error: &v1::Error) -> ErrorCode {
    ErrorCode::from_wire(error.code())
}

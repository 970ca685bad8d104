//! A key set over HTTP, whose keys a test can change and which can fail.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result};
use axum::{Router, http::StatusCode, response::IntoResponse as _, routing::get};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

#[derive(Debug)]
struct State {
    /// Guards the keys; never held over an await. None: the server answers 500.
    keys: Mutex<Option<Vec<Value>>>,
    fetches: AtomicUsize,
}

/// The server; ends when dropped.
#[derive(Debug)]
pub struct KeySetServer {
    address: SocketAddr,
    state: Arc<State>,
    _server: JoinSet<()>,
}

impl KeySetServer {
    /// Serves these keys on a free port of loopback.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(keys: Vec<Value>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("the key set server cannot listen")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State { keys: Mutex::new(Some(keys)), fetches: AtomicUsize::new(0) });
        let shared = Arc::clone(&state);
        let answer = move || {
            shared.fetches.fetch_add(1, Ordering::Relaxed);
            let keys = shared.keys.lock().expect("nothing panics while it holds this lock").clone();
            std::future::ready(match keys {
                Some(keys) => axum::Json(json!({"keys": keys})).into_response(),
                None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            })
        };
        let router = Router::new().route("/jwks.json", get(answer));
        let mut server = JoinSet::new();
        server.spawn(async move {
            // It runs until it is aborted.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, state, _server: server })
    }

    /// Where the key set is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/jwks.json", self.address)
    }

    /// Serves other keys from now on; None: fails from now on.
    pub fn set(&self, keys: Option<Vec<Value>>) {
        *self.state.keys.lock().expect("nothing panics while it holds this lock") = keys;
    }

    /// How often it was asked.
    #[must_use]
    pub fn fetches(&self) -> usize {
        self.state.fetches.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::http::client;

    #[tokio::test]
    async fn keys_can_be_changed_and_can_fail() {
        let server = KeySetServer::start(vec![json!({"kid": "a"})]).await.unwrap();
        let fetch = || async { client().get(server.url()).send().await.unwrap() };
        assert_eq!(fetch().await.text().await.unwrap(), r#"{"keys":[{"kid":"a"}]}"#);
        server.set(Some(Vec::new()));
        assert_eq!(fetch().await.text().await.unwrap(), r#"{"keys":[]}"#);
        server.set(None);
        assert_eq!(fetch().await.status(), 500);
        assert_eq!(server.fetches(), 3);
    }
}

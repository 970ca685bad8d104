//! HTTP at the edge.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde::{Serialize, de::DeserializeOwned};

/// A client with the limits that tests live by. Redirects are answers, not followed.
#[must_use]
pub fn client() -> reqwest::Client {
    // One provider for the process; a second call finds it installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(60))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .expect("the settings above are valid")
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as a message of the contract, whatever the status.
    ///
    /// # Errors
    /// When it is not one.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).with_context(|| format!("{} with the body {}", self.status, self.text()))
    }
}

/// The routes of one edge, as one caller.
#[derive(Debug, Clone)]
pub struct Http {
    client: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Http {
    /// The routes below `http://ADDRESS/chatbox`.
    #[must_use]
    pub fn new(address: SocketAddr, token: Option<&str>) -> Self {
        Self { client: client(), base: format!("http://{address}/chatbox"), token: token.map(ToOwned::to_owned) }
    }

    /// Sends a request; `path` is below the prefix, e.g. `/readyz` or `/api/v1/models`.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(&self, method: Method, path: &str, body: Option<String>) -> Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await?.to_vec() })
    }

    /// GET; anything but 200 is an error.
    ///
    /// # Errors
    /// When there is no answer, or another.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.send(Method::GET, path, None).await?;
        ensure!(answer.status == StatusCode::OK, "GET {path}: {} {}", answer.status, answer.text());
        answer.read()
    }

    /// POST; anything but 200 is an error.
    ///
    /// # Errors
    /// When there is no answer, or another.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> Result<T> {
        let answer = self.send(Method::POST, path, Some(serde_json::to_string(body)?)).await?;
        ensure!(answer.status == StatusCode::OK, "POST {path}: {} {}", answer.status, answer.text());
        answer.read()
    }
}

//! Where the key set of the tokens comes from: a file or a URL.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use chatbox_proto::token::{KeySource, KeySourceError, TokenConfig};
use futures_util::StreamExt as _;

/// The source that a configuration names; `None` for a shared secret.
pub(crate) fn source(config: &TokenConfig) -> Result<Option<Arc<dyn KeySource>>, KeySourceError> {
    if config.algorithm.is_symmetric() {
        return Ok(None);
    }
    if !config.jwks_file.is_empty() {
        return Ok(Some(Arc::new(File(PathBuf::from(&config.jwks_file)))));
    }
    // Redirects are not followed: whoever answers for the configured host decides, nobody else.
    let client = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(3))
        .timeout(Duration::from_secs(8))
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    Ok(Some(Arc::new(Url { url: config.jwks_url.clone(), client })))
}

#[derive(Debug)]
struct File(PathBuf);

#[async_trait]
impl KeySource for File {
    async fn fetch(&self, limit: usize) -> Result<Bytes, KeySourceError> {
        let size = tokio::fs::metadata(&self.0).await?.len();
        if size > limit as u64 {
            return Err("the key set is too large".into());
        }
        Ok(tokio::fs::read(&self.0).await?.into())
    }
}

#[derive(Debug)]
struct Url {
    url: String,
    client: reqwest::Client,
}

#[async_trait]
impl KeySource for Url {
    async fn fetch(&self, limit: usize) -> Result<Bytes, KeySourceError> {
        // The URL may hold a key of the issuer: it is not part of any error.
        let response = self.client.get(&self.url).send().await.map_err(reqwest::Error::without_url)?;
        if !response.status().is_success() {
            return Err(format!("the issuer answered {}", response.status()).into());
        }
        let mut body = response.bytes_stream();
        let mut json = BytesMut::new();
        while let Some(chunk) = body.next().await {
            json.extend_from_slice(&chunk.map_err(reqwest::Error::without_url)?);
            if json.len() > limit {
                return Err("the key set is too large".into());
            }
        }
        Ok(json.freeze())
    }
}

#[cfg(test)]
mod tests {
    use chatbox_proto::token::Algorithm;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    fn config(file: &str, url: &str) -> TokenConfig {
        TokenConfig {
            algorithm: Algorithm::ES256,
            jwks_file: file.to_owned(),
            jwks_url: url.to_owned(),
            ..TokenConfig::default()
        }
    }

    /// Answers one request with these bytes.
    async fn serve_once(listener: TcpListener, answer: Vec<u8>) {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _ = socket.read(&mut request).await.unwrap();
        let _ = socket.write_all(&answer).await;
    }

    async fn fetch_from_server(answer: Vec<u8>, limit: usize) -> Result<Bytes, KeySourceError> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json?key=MARKER", listener.local_addr().unwrap());
        let source = source(&config("", &url)).unwrap().unwrap();
        tokio::join!(source.fetch(limit), serve_once(listener, answer)).0
    }

    #[tokio::test]
    async fn a_file_is_read_up_to_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jwks.json");
        std::fs::write(&path, "{\"keys\":[]}").unwrap();
        let source = source(&config(path.to_str().unwrap(), "")).unwrap().unwrap();
        assert_eq!(source.fetch(100).await.unwrap(), "{\"keys\":[]}");
        assert!(source.fetch(10).await.is_err());
    }

    #[tokio::test]
    async fn a_url_is_read_up_to_the_limit() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec();
        assert_eq!(fetch_from_server(answer, 2).await.unwrap(), "{}");
        let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b' '; 100_000]].concat();
        assert!(fetch_from_server(endless, 1000).await.is_err());
    }

    #[tokio::test]
    async fn redirects_and_errors_are_no_keys_and_do_not_show_the_url() {
        for head in ["302 Found\r\nlocation: http://127.0.0.1:1/", "500 Oops"] {
            let answer = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\n\r\n").into_bytes();
            let error = fetch_from_server(answer, 1000).await.unwrap_err();
            assert!(!error.to_string().contains("MARKER"), "{error}");
        }
        let error = fetch_from_server(Vec::new(), 1000).await.unwrap_err();
        assert!(!format!("{error:?}").contains("MARKER"), "{error:?}");
    }
}

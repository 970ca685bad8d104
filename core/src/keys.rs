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

//! The transport of the `anthropic` provider.

use std::collections::VecDeque;

use async_trait::async_trait;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Url};

use super::request::Request;
use super::wire::ReplyDecoder;
use crate::llm::http::{Access, KeyHeader, SetupError, accepted, client, traced, transport_error};
use crate::llm::stream::{StreamLimits, chunks};
use crate::llm::{ChunkStream, Prompt, Provider, ProviderError};

const PATH: &str = "messages";
const ID_HEADER: &str = "request-id";
const VERSION_HEADER: HeaderName = HeaderName::from_static("anthropic-version");
/// The version of the format that this is written for. There is no later one.
const VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// How to reach a server that speaks the Messages API.
#[derive(Debug, Clone)]
pub struct AnthropicSettings {
    /// Where it is.
    pub access: Access,
    /// Send the user's hash.
    pub send_user: bool,
}

impl AnthropicSettings {
    /// Checks everything that can be wrong with the settings themselves.
    ///
    /// # Errors
    /// What [`SetupError`] says.
    pub fn check(&self) -> Result<(), SetupError> {
        self.parts().map(|_| ())
    }

    fn parts(&self) -> Result<(Url, HeaderMap), SetupError> {
        let url = self.access.endpoint(PATH)?;
        let mut headers = self.access.request_headers(KeyHeader::XApiKey)?;
        // A gateway may want another one.
        headers.entry(VERSION_HEADER).or_insert(VERSION);
        Ok((url, headers))
    }
}

/// A server that speaks the Messages API.
#[derive(Debug)]
pub struct Anthropic {
    client: Client,
    url: Url,
    headers: HeaderMap,
    send_user: bool,
    limits: StreamLimits,
}

impl Anthropic {
    /// Checks the settings; no connection is made.
    ///
    /// # Errors
    /// What [`SetupError`] says.
    pub fn new(settings: &AnthropicSettings) -> Result<Self, SetupError> {
        let (url, headers) = settings.parts()?;
        Ok(Self {
            client: client(&url, settings.access.connect_timeout)?,
            url,
            headers,
            send_user: settings.send_user,
            limits: StreamLimits::from(&settings.access),
        })
    }
}

#[async_trait]
impl Provider for Anthropic {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        let request = Request::new(&prompt, self.send_user)?;
        let body = serde_json::to_vec(&request).map_err(|_| ProviderError::Prompt("cannot be written"))?;
        let headers = traced(&self.headers, prompt.trace);
        // The prompt can be large and the answer takes minutes.
        drop(prompt);
        let sent = self.client.post(self.url.clone()).headers(headers).body(body).send().await;
        let response = accepted(sent.map_err(|error| transport_error(&error))?, ID_HEADER).await?;
        let mut ready = VecDeque::with_capacity(2);
        let request_id = response.headers().get(ID_HEADER).and_then(|value| value.to_str().ok());
        let decoder = ReplyDecoder::new(request_id, &mut ready);
        Ok(chunks(response, &self.limits, decoder, ready))
    }
}

//! The transport of the `openai` provider.

use std::collections::VecDeque;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use reqwest::header::HeaderMap;
use reqwest::{Client, Url};

use super::request::{OutputLimitField, Request};
use super::wire::{ReplyDecoder, is_content_filter};
use crate::domain::entry::FinishReason;
use crate::llm::http::{Access, KeyHeader, SetupError, accepted, client, traced, transport_error};
use crate::llm::stream::{StreamLimits, chunks};
use crate::llm::{Chunk, ChunkStream, Prompt, Provider, ProviderError};

const PATH: &str = "chat/completions";
const ID_HEADER: &str = "x-request-id";
/// Hosts of Azure, which look for the key elsewhere and run OpenAI's own models.
const AZURE: [&str; 3] = [".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com"];

/// How to reach an OpenAI-compatible server.
#[derive(Debug, Clone)]
pub struct OpenAiSettings {
    /// Where it is.
    pub access: Access,
    /// `None`: by host, `api-key` for Azure and a bearer token elsewhere.
    pub key_header: Option<KeyHeader>,
    /// `None`: by host, the present name for OpenAI's own and the old one, known to all, elsewhere.
    pub output_limit_field: Option<OutputLimitField>,
    /// Ask for usage; a few old servers refuse the field.
    pub include_usage: bool,
    /// Send the user's hash; a few servers refuse the field.
    pub send_user: bool,
}

impl OpenAiSettings {
    /// The usual settings for a base URL.
    #[must_use]
    pub fn new(base_url: impl Into<String>) -> Self {
        Self::with(Access::new(base_url))
    }

    /// The usual settings for a server that is reached like this.
    #[must_use]
    pub fn with(access: Access) -> Self {
        Self { access, key_header: None, output_limit_field: None, include_usage: true, send_user: true }
    }

    /// Checks everything that can be wrong with the settings themselves.
    ///
    /// # Errors
    /// What [`SetupError`] says.
    pub fn check(&self) -> Result<(), SetupError> {
        self.parts().map(|_| ())
    }

    fn parts(&self) -> Result<(Url, HeaderMap), SetupError> {
        let url = self.access.endpoint(PATH)?;
        let key_header = if is_azure(&url) { KeyHeader::ApiKey } else { KeyHeader::Bearer };
        let headers = self.access.request_headers(self.key_header.unwrap_or(key_header))?;
        Ok((url, headers))
    }
}

/// A server that speaks OpenAI's chat completions.
#[derive(Debug)]
pub struct OpenAi {
    client: Client,
    url: Url,
    headers: HeaderMap,
    output_limit_field: OutputLimitField,
    include_usage: bool,
    send_user: bool,
    limits: StreamLimits,
}

impl OpenAi {
    /// Checks the settings; no connection is made.
    ///
    /// # Errors
    /// What [`SetupError`] says.
    pub fn new(settings: &OpenAiSettings) -> Result<Self, SetupError> {
        let (url, headers) = settings.parts()?;
        Ok(Self {
            client: client(&url, settings.access.connect_timeout)?,
            headers,
            output_limit_field: settings.output_limit_field.unwrap_or_else(|| field_for(&url)),
            url,
            include_usage: settings.include_usage,
            send_user: settings.send_user,
            limits: StreamLimits::from(&settings.access),
        })
    }
}

fn is_azure(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    AZURE.iter().any(|suffix| host.ends_with(suffix))
}

fn field_for(url: &Url) -> OutputLimitField {
    if url.host_str() == Some("api.openai.com") || is_azure(url) {
        OutputLimitField::MaxCompletionTokens
    } else {
        OutputLimitField::MaxTokens
    }
}

#[async_trait]
impl Provider for OpenAi {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        let request = Request::new(&prompt, self.output_limit_field, self.include_usage, self.send_user);
        let body = serde_json::to_vec(&request).map_err(|_| ProviderError::Prompt("cannot be written"))?;
        let headers = traced(&self.headers, prompt.trace);
        // The prompt can be large and the answer takes minutes.
        drop(prompt);
        let sent = self.client.post(self.url.clone()).headers(headers).body(body).send().await;
        let response = match accepted(sent.map_err(|error| transport_error(&error))?, ID_HEADER).await {
            Ok(response) => response,
            // Azure's filter strikes at the question by refusing it.
            Err(refused) if is_content_filter(&refused) => {
                return Ok(stream::iter([Ok(Chunk::Finished(FinishReason::Filtered))]).boxed());
            }
            Err(refused) => return Err(refused.error),
        };
        let mut ready = VecDeque::with_capacity(2);
        let request_id = response.headers().get(ID_HEADER).and_then(|value| value.to_str().ok());
        let decoder = ReplyDecoder::new(request_id, &mut ready);
        Ok(chunks(response, &self.limits, decoder, ready))
    }
}

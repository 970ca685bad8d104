//! The transport of the `dify` provider.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::header::HeaderMap;
use reqwest::{Client, Response, Url};

use super::request::Request;
use super::stop::Stops;
use super::wire::ReplyDecoder;
use crate::llm::http::{Access, KeyHeader, Refused, SetupError, accepted, client, traced, transport_error};
use crate::llm::stream::{StreamLimits, chunks};
use crate::llm::{ChunkStream, Prompt, Provider, ProviderError};

const PATH: &str = "chat-messages";
const ID_HEADER: &str = "x-request-id";
/// Who asks when nobody is known. The service insists on a name.
const NOBODY: &str = "anonymous";

/// How to reach an application.
#[derive(Debug, Clone)]
pub struct DifySettings {
    /// Where the service is, with the key of the application.
    pub access: Access,
}

impl DifySettings {
    /// Checks everything that can be wrong with the settings themselves.
    ///
    /// # Errors
    /// What [`SetupError`] says.
    pub fn check(&self) -> Result<(), SetupError> {
        self.parts().map(|_| ())
    }

    fn parts(&self) -> Result<(Url, HeaderMap), SetupError> {
        Ok((self.access.endpoint(PATH)?, self.access.request_headers(KeyHeader::Bearer)?))
    }
}

/// An application of a Dify server.
#[derive(Debug)]
pub struct Dify {
    client: Client,
    url: Url,
    headers: HeaderMap,
    limits: StreamLimits,
    stops: Arc<Stops>,
}

impl Dify {
    /// Checks the settings; no connection is made.
    ///
    /// # Errors
    /// What [`SetupError`] says.
    pub fn new(settings: &DifySettings) -> Result<Self, SetupError> {
        let (url, headers) = settings.parts()?;
        let client = client(&url, settings.access.connect_timeout)?;
        let stops = Arc::new(Stops::new(client.clone(), url.clone(), headers.clone()));
        Ok(Self { client, url, headers, limits: StreamLimits::from(&settings.access), stops })
    }

    async fn ask(&self, prompt: &Prompt, user: &str, conversation: Option<&str>) -> Result<Response, Refused> {
        let of_prompt = |error| Refused { error, body: bytes::Bytes::new() };
        let request = Request::new(prompt, user, conversation).map_err(of_prompt)?;
        let body = serde_json::to_vec(&request).map_err(|_| of_prompt(ProviderError::Prompt("cannot be written")))?;
        let headers = traced(&self.headers, prompt.trace);
        let sent = self.client.post(self.url.clone()).headers(headers).body(body).send().await;
        accepted(sent.map_err(|error| of_prompt(transport_error(&error)))?, ID_HEADER).await
    }
}

#[async_trait]
impl Provider for Dify {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        let user = if prompt.user_hash.is_empty() { NOBODY } else { prompt.user_hash.as_str() };
        let conversation = prompt.conversation.as_deref();
        let response = match self.ask(&prompt, user, conversation).await {
            // It has been deleted there: it begins anew, with all that was said.
            Err(Refused { error: ProviderError::Status { status: 404, .. }, .. }) if conversation.is_some() => {
                self.ask(&prompt, user, None).await?
            }
            answer => answer?,
        };
        let mut ready = VecDeque::with_capacity(2);
        let request_id = response.headers().get(ID_HEADER).and_then(|value| value.to_str().ok());
        let stop = self.stops.handle(user);
        let decoder = ReplyDecoder::new(request_id, stop, &mut ready);
        Ok(chunks(response, &self.limits, decoder, ready))
    }

    async fn settled(&self) {
        self.stops.settled().await;
    }
}

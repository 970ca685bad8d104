//! The transport of the `openai` provider.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, Url};
use tokio::time::Instant;

use super::request::{OutputLimitField, Request};
use super::wire::{Progress, ReplyDecoder};
use crate::llm::http::{SetupError, client, endpoint, refusal, transport_error};
use crate::llm::sse::{DEFAULT_MAX_EVENT_BYTES, SseDecoder};
use crate::llm::{Chunk, ChunkStream, Prompt, Provider, ProviderError};

const PATH: &str = "chat/completions";
/// The text is complete but `[DONE]` has not come: usage may still follow. Some servers never close.
const DEFAULT_TAIL_WAIT: Duration = Duration::from_secs(5);
/// After `[DONE]`, the end of the body is awaited this long, so that the connection can serve the next request.
const CLOSE_WAIT: Duration = Duration::from_millis(50);

/// How to reach an OpenAI-compatible server.
#[derive(Clone)]
pub struct OpenAiSettings {
    /// Up to and including `/v1`.
    pub base_url: String,
    /// Sent as `Authorization: Bearer`.
    pub api_key: Option<String>,
    /// Further headers, for gateways; they win over the ones sent anyway.
    pub headers: Vec<(String, String)>,
    /// Plain HTTP is allowed to another machine.
    pub allow_http: bool,
    /// Limit for name lookup, TCP and TLS together.
    pub connect_timeout: Duration,
    /// `None`: by host, the present name for OpenAI's own and the old one, known to all, elsewhere.
    pub output_limit_field: Option<OutputLimitField>,
    /// Ask for usage; a few old servers refuse the field.
    pub include_usage: bool,
    /// Send the user's hash; a few servers refuse the field.
    pub send_user: bool,
    /// Bytes of one event.
    pub max_event_bytes: usize,
    /// How long to wait for usage and `[DONE]` once the text is complete.
    pub tail_wait: Duration,
}

impl OpenAiSettings {
    /// The usual settings for a base URL.
    #[must_use]
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            api_key: None,
            headers: Vec::new(),
            allow_http: false,
            connect_timeout: Duration::from_secs(5),
            output_limit_field: None,
            include_usage: true,
            send_user: true,
            max_event_bytes: DEFAULT_MAX_EVENT_BYTES,
            tail_wait: DEFAULT_TAIL_WAIT,
        }
    }
}

impl OpenAiSettings {
    /// Checks everything that can be wrong with the settings themselves.
    ///
    /// # Errors
    /// What [`SetupError`] says.
    pub fn check(&self) -> Result<(), SetupError> {
        endpoint(&self.base_url, PATH, self.allow_http)?;
        request_headers(self)?;
        Ok(())
    }
}

impl std::fmt::Debug for OpenAiSettings {
    /// Without the key and the values of headers.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenAiSettings").field("base_url", &self.base_url).finish_non_exhaustive()
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
    max_event_bytes: usize,
    tail_wait: Duration,
}

impl OpenAi {
    /// Checks the settings; no connection is made.
    ///
    /// # Errors
    /// What [`SetupError`] says.
    pub fn new(settings: &OpenAiSettings) -> Result<Self, SetupError> {
        let url = endpoint(&settings.base_url, PATH, settings.allow_http)?;
        Ok(Self {
            client: client(&url, settings.connect_timeout)?,
            headers: request_headers(settings)?,
            output_limit_field: settings.output_limit_field.unwrap_or_else(|| field_for(&url)),
            url,
            include_usage: settings.include_usage,
            send_user: settings.send_user,
            max_event_bytes: settings.max_event_bytes,
            tail_wait: settings.tail_wait,
        })
    }
}

fn field_for(url: &Url) -> OutputLimitField {
    let host = url.host_str().unwrap_or_default();
    if host == "api.openai.com" || host.ends_with(".openai.azure.com") {
        OutputLimitField::MaxCompletionTokens
    } else {
        OutputLimitField::MaxTokens
    }
}

fn request_headers(settings: &OpenAiSettings) -> Result<HeaderMap, SetupError> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    if let Some(key) = &settings.api_key {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| SetupError::ApiKey)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    for (name, value) in &settings.headers {
        let refused = |why| SetupError::Header(name.clone(), why);
        let header = HeaderName::try_from(name).map_err(|_| refused("is not a header name"))?;
        if ["host", "content-length", "transfer-encoding", "connection", "content-type", "accept"]
            .contains(&header.as_str())
        {
            return Err(refused("belongs to the transport"));
        }
        let mut value = HeaderValue::from_str(value).map_err(|_| refused("has a value that cannot be sent"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

#[async_trait]
impl Provider for OpenAi {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        let request = Request::new(&prompt, self.output_limit_field, self.include_usage, self.send_user);
        let body = serde_json::to_vec(&request).map_err(|_| ProviderError::Malformed("request cannot be written"))?;
        // The prompt can be large and the answer takes minutes.
        drop(prompt);
        let sent = self.client.post(self.url.clone()).headers(self.headers.clone()).body(body).send().await;
        let response = refusal(sent.map_err(|error| transport_error(&error))?).await?;
        let reply = Reply::new(response, self.max_event_bytes, self.tail_wait);
        Ok(stream::unfold(reply, |mut reply| async move { Some((reply.next().await?, reply)) }).boxed())
    }
}

/// One response being read.
struct Reply {
    /// `None` once the stream is over; dropping it closes the request.
    response: Option<Response>,
    sse: SseDecoder,
    input: Bytes,
    decoder: ReplyDecoder,
    ready: VecDeque<Chunk>,
    tail_wait: Duration,
    /// Set when the text is complete.
    tail_ends: Option<Instant>,
}

impl Reply {
    fn new(response: Response, max_event_bytes: usize, tail_wait: Duration) -> Self {
        let mut ready = VecDeque::with_capacity(2);
        let request_id = response.headers().get("x-request-id").and_then(|value| value.to_str().ok());
        let decoder = ReplyDecoder::new(request_id, &mut ready);
        let sse = SseDecoder::new(max_event_bytes);
        Self { response: Some(response), sse, input: Bytes::new(), decoder, ready, tail_wait, tail_ends: None }
    }

    async fn next(&mut self) -> Option<Result<Chunk, ProviderError>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(Ok(chunk));
            }
            match self.advance().await? {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => self.close().await,
                Err(error) => {
                    self.response = None;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Reads one event, or more input. `None`: the stream is over.
    async fn advance(&mut self) -> Option<Result<Progress, ProviderError>> {
        let response = self.response.as_mut()?;
        match self.sse.decode(&mut self.input) {
            Err(_) => return Some(Err(ProviderError::Malformed("event too large"))),
            Ok(Some(event)) => return Some(self.decoder.event(&event, &mut self.ready)),
            Ok(None) => {}
        }
        let read = if self.decoder.text_is_complete() {
            // Whatever goes wrong from here on, the answer is there.
            let ends = *self.tail_ends.get_or_insert_with(|| Instant::now() + self.tail_wait);
            tokio::time::timeout_at(ends, response.chunk()).await.ok().and_then(Result::ok).flatten()
        } else {
            match response.chunk().await {
                Ok(read) => read,
                Err(error) => return Some(Err(transport_error(&error))),
            }
        };
        Some(match read {
            Some(bytes) => {
                self.input = bytes;
                Ok(Progress::More)
            }
            None => self.decoder.end(&mut self.ready),
        })
    }

    async fn close(&mut self) {
        if let Some(mut response) = self.response.take() {
            let _ = tokio::time::timeout(CLOSE_WAIT, response.chunk()).await;
        }
    }
}

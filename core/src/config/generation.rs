//! Providers and models: what is set, and what is built from it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chatbox_proto::{
    settings::{self, ByteSize},
    token::Secret,
};
use serde::{Deserialize, Deserializer, Serialize};

use crate::llm::{
    Provider,
    anthropic::{Anthropic, AnthropicSettings},
    breaker::BreakerLimits,
    demo::{DEFAULT_WORD_DELAY, Demo},
    dify::{Dify, DifySettings},
    guard::GuardLimits,
    http::{Access, KeyHeader, SetupError},
    openai::{OpenAi, OpenAiSettings, OutputLimitField},
    queue::QueueLimits,
    upstream::{Upstream, UpstreamLimits},
};

pub(super) const OPENAI: &str = "openai";
pub(super) const DEMO: &str = "demo";

/// Who generates text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderConfig {
    /// `openai` (chat completions, also of compatible servers), `anthropic` (messages), `dify` (chat messages of an
    /// application) or `demo`. Default `openai`; the providers called `anthropic`, `dify` and `demo` are always of that kind.
    pub kind: ProviderKind,
    /// Where the API begins, up to and including `/v1`: https, or http to this machine. A query like `?api-version=…` is
    /// kept. Default that of the service: `https://api.openai.com/v1`, `https://api.anthropic.com/v1`, `https://api.dify.ai/v1`.
    pub base_url: String,
    /// The key; empty: none, or in `api_key_file`. Default empty.
    pub api_key: Secret,
    /// A file that holds the key. Default empty.
    pub api_key_file: String,
    /// Where `openai` servers look for the key: `auto` (by host), `bearer` or `api-key` (Azure). Default `auto`.
    pub key_header: KeyPlace,
    /// Further headers for every request, e.g. for a gateway. Their values are secret. Default none.
    pub headers: BTreeMap<String, Secret>,
    /// Whether the key and the texts may travel over plain http to another machine. Default `false`.
    pub allow_http: bool,
    /// Name of the field that limits the output: `auto` (by host), `max_tokens` or `max_completion_tokens`. Default `auto`.
    pub output_limit: OutputLimit,
    /// Whether to ask for token usage; a few old servers refuse the question. Default `true`.
    pub include_usage: bool,
    /// Whether to send a stable, opaque id per user, for abuse detection; a few servers refuse it. Default `true`.
    pub send_user: bool,
    /// Time to connect, TLS included: 100 ms to 1 min. Default 5 s.
    #[serde(with = "settings::duration")]
    pub connect_timeout: Duration,
    /// Time to the first text or reasoning of a try: 100 ms to 10 min. Models that think in silence need more. Default 30 s.
    #[serde(with = "settings::duration")]
    pub first_byte_timeout: Duration,
    /// Time between two pieces of an answer: 100 ms to 10 min. Default 30 s.
    #[serde(with = "settings::duration")]
    pub chunk_timeout: Duration,
    /// Time for a whole answer, with all tries: 1 s to 1 h. Default 300 s.
    #[serde(with = "settings::duration")]
    pub total_timeout: Duration,
    /// Tries after the first, while there is no text yet: 0 to 5. Default 2.
    pub retries: u32,
    /// Longest pause before the first retry, doubled for each further one; it is random: 0 s to 10 s. Default 500 ms.
    #[serde(with = "settings::duration")]
    pub backoff: Duration,
    /// A provider that asks for a longer pause is not tried again: 0 s to 1 min. Default 10 s.
    #[serde(with = "settings::duration")]
    pub max_retry_after: Duration,
    /// Replies that are generated at once: 1 to 100,000. Default 2,000.
    pub concurrency: u32,
    /// Replies that wait for one of those places, users taking turns: 0 to 100,000. More are refused. Default 1,000.
    pub queue: u32,
    /// Longest wait for a place: 100 ms to 10 min. Default 30 s.
    #[serde(with = "settings::duration")]
    pub queue_timeout: Duration,
    /// So many failures within `breaker_window`, if they are half of all tries, and the provider is left alone: 0 (never) to
    /// 10,000. Default 20.
    pub breaker_failures: u32,
    /// How far back failures count: 1 s to 10 min. Default 30 s.
    #[serde(with = "settings::duration")]
    pub breaker_window: Duration,
    /// How long it is left alone before it is tried again, up to eight times as long when that fails: 100 ms to 10 min.
    /// Default 10 s.
    #[serde(with = "settings::duration")]
    pub breaker_pause: Duration,
    /// One event of a stream: 16 KiB to 16 MiB. Default 1 MiB.
    pub event_bytes: ByteSize,
    /// The text of one reply: 16 KiB to 3 MiB, since gRPC clients take 4 MiB at once. It ends there as at the model's own limit. Default 1 MiB.
    pub reply_bytes: ByteSize,
    /// Pause before each word of the demo model: 0 s to 1 s. Default 30 ms.
    #[serde(with = "settings::duration")]
    pub word_delay: Duration,
}

impl Default for ProviderConfig {
    fn default() -> Self {
        let UpstreamLimits { guard: limits, queue, breaker } = UpstreamLimits::default();
        let access = Access::new("");
        Self {
            kind: ProviderKind::OpenAi,
            base_url: access.base_url,
            api_key: Secret::default(),
            api_key_file: String::new(),
            key_header: KeyPlace::Auto,
            headers: BTreeMap::new(),
            allow_http: false,
            output_limit: OutputLimit::Auto,
            include_usage: true,
            send_user: true,
            connect_timeout: access.connect_timeout,
            first_byte_timeout: limits.first_byte,
            chunk_timeout: limits.between_chunks,
            total_timeout: limits.total,
            retries: limits.retries,
            backoff: limits.backoff,
            max_retry_after: limits.max_retry_after,
            concurrency: u32::try_from(queue.running).unwrap_or(u32::MAX),
            queue: u32::try_from(queue.waiting).unwrap_or(u32::MAX),
            queue_timeout: queue.wait,
            breaker_failures: breaker.failures,
            breaker_window: breaker.window,
            breaker_pause: breaker.pause,
            event_bytes: ByteSize::bytes(access.max_event_bytes as u64),
            reply_bytes: ByteSize::bytes(limits.max_text_bytes as u64),
            word_delay: DEFAULT_WORD_DELAY,
        }
    }
}

/// The kinds of providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// Chat completions.
    OpenAi,
    /// Messages.
    Anthropic,
    /// Chat messages of an application.
    Dify,
    /// Built in, without network or intelligence.
    Demo,
}

impl ProviderKind {
    /// Where the service itself is. `None`: there is none.
    fn base_url(self) -> Option<&'static str> {
        match self {
            Self::OpenAi => Some("https://api.openai.com/v1"),
            Self::Anthropic => Some("https://api.anthropic.com/v1"),
            Self::Dify => Some("https://api.dify.ai/v1"),
            Self::Demo => None,
        }
    }
}

/// Where the key is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyPlace {
    /// By host.
    Auto,
    /// `Authorization: Bearer`.
    Bearer,
    /// `api-key`.
    ApiKey,
}

/// Name of the field that limits the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputLimit {
    /// By host.
    Auto,
    /// The old name, which every compatible server knows.
    MaxTokens,
    /// The present name.
    MaxCompletionTokens,
}

/// The providers that are always there, so that variables can set them up without a file.
pub(super) fn built_in() -> BTreeMap<String, ProviderConfig> {
    let provider =
        |(name, kind): (&str, ProviderKind)| (name.to_owned(), ProviderConfig { kind, ..ProviderConfig::default() });
    [(OPENAI, ProviderKind::OpenAi)].into_iter().chain(FIXED).map(provider).collect()
}

/// Names that say the kind.
const FIXED: [(&str, ProviderKind); 3] =
    [("anthropic", ProviderKind::Anthropic), ("dify", ProviderKind::Dify), (DEMO, ProviderKind::Demo)];

/// The providers of the file beside the built-in ones. Those of the same name replace them, but some stay what they are: a
/// variable may set one of their settings without saying so.
pub(super) fn with_built_in<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, ProviderConfig>, D::Error> {
    let mut providers = built_in();
    providers.extend(BTreeMap::<String, ProviderConfig>::deserialize(deserializer)?);
    for (name, kind) in FIXED {
        if let Some(provider) = providers.get_mut(name) {
            provider.kind = kind;
        }
    }
    Ok(providers)
}

impl ProviderConfig {
    /// Fills in what depends on the kind.
    pub(super) fn complete(&mut self) {
        if self.base_url.is_empty() {
            self.kind.base_url().unwrap_or_default().clone_into(&mut self.base_url);
        }
    }

    /// It is the service itself, which asks for a key, rather than a server that speaks the same.
    pub(super) fn is_the_service(&self) -> bool {
        self.kind.base_url().is_some_and(|url| self.base_url.is_empty() || self.base_url.starts_with(url))
    }

    /// What would keep it from being built.
    pub(super) fn check_settings(&self) -> Result<(), SetupError> {
        match self.kind {
            ProviderKind::OpenAi => self.openai_settings().check(),
            ProviderKind::Anthropic => self.anthropic_settings().check(),
            ProviderKind::Dify => self.dify_settings().check(),
            ProviderKind::Demo => Ok(()),
        }
    }

    fn access(&self) -> Access {
        let base_url = if self.base_url.is_empty() { self.kind.base_url() } else { Some(self.base_url.as_str()) };
        Access {
            api_key: (!self.api_key.is_empty()).then(|| self.api_key.expose().to_owned()),
            headers: self.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect(),
            allow_http: self.allow_http,
            connect_timeout: self.connect_timeout,
            max_event_bytes: self.event_bytes.as_usize(),
            ..Access::new(base_url.unwrap_or_default())
        }
    }

    fn openai_settings(&self) -> OpenAiSettings {
        OpenAiSettings {
            key_header: match self.key_header {
                KeyPlace::Auto => None,
                KeyPlace::Bearer => Some(KeyHeader::Bearer),
                KeyPlace::ApiKey => Some(KeyHeader::ApiKey),
            },
            output_limit_field: match self.output_limit {
                OutputLimit::Auto => None,
                OutputLimit::MaxTokens => Some(OutputLimitField::MaxTokens),
                OutputLimit::MaxCompletionTokens => Some(OutputLimitField::MaxCompletionTokens),
            },
            include_usage: self.include_usage,
            send_user: self.send_user,
            ..OpenAiSettings::with(self.access())
        }
    }

    fn anthropic_settings(&self) -> AnthropicSettings {
        AnthropicSettings { access: self.access(), send_user: self.send_user }
    }

    fn dify_settings(&self) -> DifySettings {
        DifySettings { access: self.access() }
    }

    fn guard_limits(&self) -> GuardLimits {
        GuardLimits {
            first_byte: self.first_byte_timeout,
            between_chunks: self.chunk_timeout,
            total: self.total_timeout,
            max_text_bytes: self.reply_bytes.as_usize(),
            retries: self.retries,
            backoff: self.backoff,
            max_retry_after: self.max_retry_after,
        }
    }

    fn limits(&self) -> UpstreamLimits {
        let places = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        UpstreamLimits {
            guard: self.guard_limits(),
            queue: QueueLimits {
                running: places(self.concurrency),
                waiting: places(self.queue),
                wait: self.queue_timeout,
            },
            breaker: BreakerLimits {
                failures: self.breaker_failures,
                window: self.breaker_window,
                pause: self.breaker_pause,
            },
        }
    }

    pub(super) fn build(&self, name: &str) -> Result<Arc<dyn Provider>, SetupError> {
        let bare: Arc<dyn Provider> = match self.kind {
            ProviderKind::OpenAi => Arc::new(OpenAi::new(&self.openai_settings())?),
            ProviderKind::Anthropic => Arc::new(Anthropic::new(&self.anthropic_settings())?),
            ProviderKind::Dify => Arc::new(Dify::new(&self.dify_settings())?),
            ProviderKind::Demo => Arc::new(Demo::new(self.word_delay)),
        };
        Ok(Arc::new(Upstream::new(name, bare, self.limits())))
    }
}

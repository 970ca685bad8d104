//! Providers and models: what is set, and what is built from it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chatbox_proto::{
    settings::{self, ByteSize, Mistakes},
    token::Secret,
};
use serde::{Deserialize, Deserializer, Serialize};

use super::Config;
use crate::llm::{
    Model, ModelInfo, Models, Provider,
    demo::{DEFAULT_WORD_DELAY, Demo},
    guard::{Guard, GuardLimits},
    http::SetupError,
    openai::{OpenAi, OpenAiSettings, OutputLimitField},
};

const OPENAI: &str = "openai";
const DEMO: &str = "demo";

/// Who generates text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderConfig {
    /// `openai` (chat completions, also of compatible servers) or `demo`. Default `openai`; the provider called `demo` is
    /// always of that kind.
    pub kind: ProviderKind,
    /// Where the API begins, up to and including `/v1`: https, or http to this machine. Default `https://api.openai.com/v1`.
    pub base_url: String,
    /// Sent as bearer token; empty: none, or in `api_key_file`. Default empty.
    pub api_key: Secret,
    /// A file that holds the key. Default empty.
    pub api_key_file: String,
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
    /// Time to the first text of a try: 100 ms to 10 min. Models that think in silence need more. Default 30 s.
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
        let limits = GuardLimits::default();
        let openai = OpenAiSettings::new("https://api.openai.com/v1");
        Self {
            kind: ProviderKind::OpenAi,
            base_url: openai.base_url,
            api_key: Secret::default(),
            api_key_file: String::new(),
            headers: BTreeMap::new(),
            allow_http: false,
            output_limit: OutputLimit::Auto,
            include_usage: true,
            send_user: true,
            connect_timeout: openai.connect_timeout,
            first_byte_timeout: limits.first_byte,
            chunk_timeout: limits.between_chunks,
            total_timeout: limits.total,
            retries: limits.retries,
            backoff: limits.backoff,
            max_retry_after: limits.max_retry_after,
            event_bytes: ByteSize::bytes(openai.max_event_bytes as u64),
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
    /// Built in, without network or intelligence.
    Demo,
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

/// A model that may be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// By which it is chosen and stored: 1 to 64 characters of `A-Z a-z 0-9 . _ : / -`.
    pub id: String,
    /// By which people know it: at most 100 characters; empty: its id. Default empty.
    pub name: String,
    /// Name of its provider. Default `openai`.
    pub provider: String,
    /// Its name at the provider, at most 200 characters; empty: its id. Default empty.
    pub upstream_model: String,
    /// Tokens of prompt and answer together: 256 to 10,000,000. Default 8,192.
    pub context_tokens: u32,
    /// Tokens of an answer at most: 1 to less than `context_tokens`. Default 1,024.
    pub max_output_tokens: u32,
    /// First message of every prompt, at most 32 KiB; empty: none. Default empty.
    pub system_prompt: String,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            id: String::new(),
            name: String::new(),
            provider: OPENAI.to_owned(),
            upstream_model: String::new(),
            context_tokens: 8_192,
            max_output_tokens: 1_024,
            system_prompt: String::new(),
        }
    }
}

impl ModelConfig {
    /// The demo model.
    #[must_use]
    pub fn demo() -> Self {
        Self {
            id: DEMO.to_owned(),
            name: "Demo (built in)".to_owned(),
            provider: DEMO.to_owned(),
            max_output_tokens: 4_096,
            ..Self::default()
        }
    }

    fn info(&self) -> ModelInfo {
        let or_id = |value: &String| if value.is_empty() { self.id.clone() } else { value.clone() };
        ModelInfo {
            id: self.id.clone(),
            name: or_id(&self.name),
            provider: self.provider.clone(),
            upstream_model: or_id(&self.upstream_model),
            context_tokens: self.context_tokens,
            max_output_tokens: self.max_output_tokens,
            system_prompt: (!self.system_prompt.is_empty()).then(|| self.system_prompt.clone()),
        }
    }
}

/// The providers that are always there, so that variables can set them up without a file.
pub(super) fn built_in() -> BTreeMap<String, ProviderConfig> {
    let demo = ProviderConfig { kind: ProviderKind::Demo, ..ProviderConfig::default() };
    BTreeMap::from([(OPENAI.to_owned(), ProviderConfig::default()), (DEMO.to_owned(), demo)])
}

/// The providers of the file beside the built-in ones. Those of the same name replace them, but `demo` stays what it is: a
/// variable may set one of its settings without saying so.
pub(super) fn with_built_in<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, ProviderConfig>, D::Error> {
    let mut providers = built_in();
    providers.extend(BTreeMap::<String, ProviderConfig>::deserialize(deserializer)?);
    if let Some(demo) = providers.get_mut(DEMO) {
        demo.kind = ProviderKind::Demo;
    }
    Ok(providers)
}

impl ProviderConfig {
    pub(super) fn openai_settings(&self) -> OpenAiSettings {
        OpenAiSettings {
            api_key: (!self.api_key.is_empty()).then(|| self.api_key.expose().to_owned()),
            headers: self.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect(),
            allow_http: self.allow_http,
            connect_timeout: self.connect_timeout,
            output_limit_field: match self.output_limit {
                OutputLimit::Auto => None,
                OutputLimit::MaxTokens => Some(OutputLimitField::MaxTokens),
                OutputLimit::MaxCompletionTokens => Some(OutputLimitField::MaxCompletionTokens),
            },
            include_usage: self.include_usage,
            send_user: self.send_user,
            max_event_bytes: self.event_bytes.as_usize(),
            ..OpenAiSettings::new(&self.base_url)
        }
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

    fn build(&self) -> Result<Arc<dyn Provider>, SetupError> {
        let bare: Arc<dyn Provider> = match self.kind {
            ProviderKind::OpenAi => Arc::new(OpenAi::new(&self.openai_settings())?),
            ProviderKind::Demo => Arc::new(Demo::new(self.word_delay)),
        };
        Ok(Arc::new(Guard::new(bare, self.guard_limits())))
    }
}

impl Config {
    /// The models, each behind its guarded provider. A provider without a model is not built.
    ///
    /// # Errors
    /// What [`Config::check`] would have said, or a machine without usable certificates.
    pub fn build_models(&self) -> Result<Models, Mistakes> {
        let mut providers: BTreeMap<&str, Arc<dyn Provider>> = BTreeMap::new();
        let mut list = Vec::new();
        let mut mistakes = Vec::new();
        for (index, model) in self.models.iter().enumerate() {
            let name = model.provider.as_str();
            if !providers.contains_key(name) {
                match self.providers.get(name).map(ProviderConfig::build) {
                    Some(Ok(provider)) => _ = providers.insert(name, provider),
                    Some(Err(error)) => mistakes.push(format!("providers.{name}.{error}")),
                    None => mistakes.push(format!("models[{index}].provider: {name:?} is not among the providers")),
                }
            }
            if let Some(provider) = providers.get(name) {
                list.push(Model { info: model.info(), provider: provider.clone() });
            }
        }
        Mistakes(mistakes).into_result()?;
        Models::new(list, &self.default_model).map_err(|error| Mistakes(vec![error.to_string()]))
    }
}

//! The settings of core. Every one has a default, a unit and a range, stated where it is declared; `check` enforces the
//! ranges and what settings demand of each other, and turns nothing on: it is pure, so that a mistake is reported before
//! anything is opened.
//!
//! Every setting is also a variable: see [`chatbox_proto::settings`]. Those of core begin with `CHATBOX_CORE_`.

mod alerts;
mod budgets;
mod bus;
mod check;
mod generation;
mod model;
mod server;
mod session;
mod storage;

use std::{collections::BTreeMap, net::SocketAddr};

use chatbox_proto::{
    settings::{self, Mistakes, Profile, ReadFile, Vars},
    spans::TelemetryConfig,
    token::{Secret, TokenConfig},
};
use serde::{Deserialize, Serialize};

pub use alerts::{AlertsConfig, ChannelConfig, ChannelKind, RuleConfig, SecurityConfig, ServerConfig};
pub use budgets::{BudgetConfig, BudgetsConfig};
pub use bus::BusConfig;
pub use generation::{KeyPlace, OutputLimit, ProviderConfig, ProviderKind};
pub use model::{ModelConfig, OnLoss};
pub use server::{AdminConfig, DrainConfig, GenerateConfig, LimitsConfig, LogConfig, LogFormat, TlsConfig};
pub use session::{Naming, SessionConfig};
pub use storage::{KeyConfig, KeysConfig, StoreConfig, StoreTarget, StoreUrl};

/// The role in the names of variables: `CHATBOX_CORE_…`.
pub const ROLE: &str = "CORE";

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `dev` or `production`; production refuses what is only good enough for a laptop. Default `production`.
    pub profile: Profile,
    /// Where gRPC is served. Default `127.0.0.1:50051`.
    pub listen: SocketAddr,
    /// Where `/metrics` is served; empty: nowhere. Default `127.0.0.1:9465`.
    pub metrics_listen: String,
    /// Id of the model of sessions that did not choose. Must be one of `models`; in the `dev` profile without models it is
    /// the demo model. Default empty, which is a mistake otherwise.
    pub default_model: String,
    /// The calls of the team.
    pub admin: AdminConfig,
    /// TLS on the gRPC listeners.
    pub tls: TlsConfig,
    /// Where sessions are kept.
    pub store: StoreConfig,
    /// The way between cores that share the store.
    pub bus: BusConfig,
    /// The keys that what is stored is sealed with.
    pub keys: KeysConfig,
    /// How tokens are verified.
    pub token: TokenConfig,
    /// Who generates text, by name: tables like `[providers.openai]`. `openai`, `anthropic`, `dify` and `demo` are always there.
    #[serde(deserialize_with = "generation::with_built_in")]
    pub providers: BTreeMap<String, ProviderConfig>,
    /// The models that may be chosen, in this order. Default none; in the `dev` profile the demo model then.
    pub models: Vec<ModelConfig>,
    /// Sessions and their streams.
    pub session: SessionConfig,
    /// What one client may do, and all together.
    pub limits: LimitsConfig,
    /// What may be used in a UTC day.
    pub budgets: BudgetsConfig,
    /// Who is told when something needs people.
    pub alerts: AlertsConfig,
    /// `Generate` streams.
    pub generate: GenerateConfig,
    /// How the process leaves.
    pub drain: DrainConfig,
    /// Spans for a collector.
    pub telemetry: TelemetryConfig,
    /// What is logged.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            listen: SocketAddr::from(([127, 0, 0, 1], 50_051)),
            metrics_listen: "127.0.0.1:9465".to_owned(),
            default_model: String::new(),
            admin: AdminConfig::default(),
            tls: TlsConfig::default(),
            store: StoreConfig::default(),
            bus: BusConfig::default(),
            keys: KeysConfig::default(),
            token: TokenConfig::default(),
            providers: generation::built_in(),
            models: Vec::new(),
            session: SessionConfig::default(),
            limits: LimitsConfig::default(),
            alerts: AlertsConfig::default(),
            generate: GenerateConfig::default(),
            budgets: BudgetsConfig::default(),
            drain: DrainConfig::default(),
            telemetry: TelemetryConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Config {
    /// Defaults, laid over by the TOML text, laid over by the variables; then the secrets that are in files.
    ///
    /// # Errors
    /// Everything that is wrong, at once, one line each; none shows a value that could be a secret.
    pub fn load(file: Option<&str>, vars: &Vars, read_file: ReadFile<'_>) -> Result<Self, Mistakes> {
        let mut config: Self = settings::load(file, ROLE, vars)?;
        config.complete();
        let mut mistakes = config.read_secrets(read_file);
        mistakes.extend(config.check());
        Mistakes(mistakes).into_result()?;
        Ok(config)
    }

    /// What depends on other settings. On a laptop nothing has to be configured to see an answer.
    fn complete(&mut self) {
        self.providers.values_mut().for_each(ProviderConfig::complete);
        if !self.profile.is_production() && self.models.is_empty() {
            self.models.push(ModelConfig::demo());
            if self.default_model.is_empty() {
                self.default_model.clone_from(&self.models[0].id);
            }
        }
    }

    fn read_secrets(&mut self, read_file: ReadFile<'_>) -> Vec<String> {
        let mut mistakes = Vec::new();
        mistakes.extend(self.token.read_secret(read_file).err());
        let mut url = Secret::new(if self.store.has_own_url() { self.store.url.expose() } else { "" });
        mistakes.extend(url.read_from("store.url", &self.store.url_file, read_file).err());
        if !url.is_empty() {
            self.store.url = url.expose().to_owned().into();
        }
        for (index, key) in self.keys.ring.iter_mut().enumerate() {
            mistakes.extend(key.key.read_from(&format!("keys.ring[{index}].key"), &key.key_file, read_file).err());
        }
        let bus = &mut self.bus;
        mistakes.extend(bus.token.read_from("bus.token", &bus.token_file, read_file).err());
        mistakes.extend(bus.password.read_from("bus.password", &bus.password_file, read_file).err());
        mistakes.extend(bus.credentials.read_from("bus.credentials", &bus.credentials_file, read_file).err());
        for (name, provider) in &mut self.providers {
            let name = format!("providers.{name}.api_key");
            mistakes.extend(provider.api_key.read_from(&name, &provider.api_key_file, read_file).err());
        }
        mistakes.extend(self.alerts.read_secrets(read_file));
        mistakes
    }
}

#[cfg(test)]
mod tests;

//! Models: what is set, and the routes that are built from it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use chatbox_proto::{settings::Mistakes, token::Role};
use serde::{Deserialize, Serialize};

use super::{
    Config, ProviderKind,
    generation::{DEMO, OPENAI},
};
use crate::llm::{
    Model, ModelInfo, Models, Provider,
    registry::Price,
    route::{self, Candidate, Route},
};

/// Models that stand in for one.
const MAX_FALLBACKS: usize = 8;
/// More than any model costs; a price per token was meant then, or per thousand.
const MAX_PRICE: f64 = 100_000.0;
/// Billionths for each token in a price of 1 for a million.
const BILLIONTHS: f64 = 1_000.0;

/// A model that may be chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// By which it is chosen and stored: 1 to 64 characters of `A-Z a-z 0-9 . _ : / -`.
    pub id: String,
    /// By which people know it: at most 100 characters; empty: its id. Default empty.
    pub name: String,
    /// Name of its provider. Default `openai`.
    pub provider: String,
    /// Its name at the provider, at most 200 characters; empty: its id. An application of `dify` has its own. Default empty.
    pub upstream_model: String,
    /// Tokens of prompt and answer together: 256 to 10,000,000. Default 8,192.
    pub context_tokens: u32,
    /// Tokens of an answer at most: 1 to less than `context_tokens`. Default 1,024.
    pub max_output_tokens: u32,
    /// First message of every prompt, at most 32 KiB; empty: none. Default empty.
    pub system_prompt: String,
    /// Roles of those who may choose it (`user`, `chat_admin`, `admin`, `service`); empty: everybody. The default model is
    /// for everybody. Default empty.
    pub roles: Vec<String>,
    /// Ids of models that answer when this one does not, in order, at most 8, with the instructions of this one. Each must
    /// have room for its prompts. Whoever may choose this one gets their answers. Default none.
    pub fallbacks: Vec<String>,
    /// What becomes of an answer whose provider is lost in the middle of it: `finish` (it ends there) or `restart` (a
    /// fallback begins again below what was written and a mark). Default `finish`.
    pub on_loss: OnLoss,
    /// Price of a million tokens of the prompt, in any one unit of money: 0 to 100,000. Default 0.
    pub prompt_price: f64,
    /// Price of a million tokens of the prompt that come from the provider's cache. Default 0.
    pub cached_price: f64,
    /// Price of a million tokens of the answer. Default 0.
    pub completion_price: f64,
}

/// What becomes of an answer whose provider is lost in the middle of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// It ends there.
    Finish,
    /// A fallback begins again.
    Restart,
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
            roles: Vec::new(),
            fallbacks: Vec::new(),
            on_loss: OnLoss::Finish,
            prompt_price: 0.0,
            cached_price: 0.0,
            completion_price: 0.0,
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
            roles: self.roles.iter().filter_map(|role| Role::from_name(role)).collect(),
            fallbacks: self.fallbacks.clone(),
            on_loss: self.on_loss.into(),
            price: Price {
                prompt: billionths(self.prompt_price),
                cached: billionths(self.cached_price),
                completion: billionths(self.completion_price),
            },
        }
    }

    fn candidate(&self, providers: &BTreeMap<&str, Arc<dyn Provider>>) -> Option<Candidate> {
        let info = self.info();
        Some(Candidate {
            id: info.id,
            upstream_model: info.upstream_model,
            max_output_tokens: info.max_output_tokens,
            provider: providers.get(self.provider.as_str())?.clone(),
        })
    }

    pub(super) fn has_a_price(&self) -> bool {
        self.prompt_price > 0.0 || self.cached_price > 0.0 || self.completion_price > 0.0
    }

    /// Tokens that its prompts may have.
    fn prompt_tokens(&self) -> u32 {
        self.context_tokens.saturating_sub(self.max_output_tokens)
    }

    pub(super) fn check_routing(&self, name: &str, all: &[Self], mistakes: &mut Vec<String>) {
        if let Some(unknown) = self.roles.iter().find(|role| Role::from_name(role).is_none()) {
            mistakes.push(format!("{name}.roles: {unknown:?} is none of user, chat_admin, admin and service"));
        }
        for (setting, price) in [
            ("prompt_price", self.prompt_price),
            ("cached_price", self.cached_price),
            ("completion_price", self.completion_price),
        ] {
            if !(0.0..=MAX_PRICE).contains(&price) {
                mistakes.push(format!("{name}.{setting}: must be from 0 to {MAX_PRICE} for a million tokens"));
            }
        }
        if self.on_loss == OnLoss::Restart && self.fallbacks.is_empty() {
            mistakes.push(format!("{name}.on_loss: restart needs fallbacks"));
        }
        if self.fallbacks.len() > MAX_FALLBACKS {
            mistakes.push(format!("{name}.fallbacks: must be at most {MAX_FALLBACKS}"));
        }
        let mut seen = HashSet::from([self.id.as_str()]);
        for id in &self.fallbacks {
            let rule = match all.iter().find(|model| model.id == *id) {
                None => "is not among the models",
                Some(_) if !seen.insert(id) => "is there twice, or the model itself",
                Some(other) if other.prompt_tokens() < self.prompt_tokens() => {
                    "has no room for the prompts of this model"
                }
                Some(_) => continue,
            };
            mistakes.push(format!("{name}.fallbacks: {id:?} {rule}"));
        }
    }
}

/// Rounded to what a price list says: three digits after the point for a million are one billionth of a token.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a checked price is within 0 and 100,000; anything else is cut off at the ends"
)]
fn billionths(price: f64) -> u64 {
    (price * BILLIONTHS).round() as u64
}

impl From<OnLoss> for route::OnLoss {
    fn from(on_loss: OnLoss) -> Self {
        match on_loss {
            OnLoss::Finish => Self::Finish,
            OnLoss::Restart => Self::Restart,
        }
    }
}

impl Config {
    /// What the default model has to be.
    pub(super) fn check_default_model(&self) -> Option<String> {
        let rule = match self.models.iter().find(|model| model.id == self.default_model) {
            None if self.default_model.is_empty() => "must be set to the id of one of the models".to_owned(),
            None => format!("{:?} is not among the models", self.default_model),
            Some(model) if !model.roles.is_empty() => "must be a model for everybody, without roles".to_owned(),
            Some(model) if self.profile.is_production() && self.is_demo(model) => {
                "must not be a demo model in the production profile".to_owned()
            }
            Some(_) => return None,
        };
        Some(format!("default_model: {rule}"))
    }

    fn is_demo(&self, model: &ModelConfig) -> bool {
        self.providers.get(&model.provider).is_some_and(|provider| provider.kind == ProviderKind::Demo)
    }

    /// The models, each behind its guarded provider, and with its fallbacks. A provider without a model is not built.
    ///
    /// # Errors
    /// What [`Config::check`] would have said, or a machine without usable certificates.
    pub fn build_models(&self) -> Result<Models, Mistakes> {
        let mut providers: BTreeMap<&str, Arc<dyn Provider>> = BTreeMap::new();
        let mut mistakes = Vec::new();
        for (index, model) in self.models.iter().enumerate() {
            let name = model.provider.as_str();
            if !providers.contains_key(name) {
                match self.providers.get(name).map(|provider| provider.build(name)) {
                    Some(Ok(provider)) => _ = providers.insert(name, provider),
                    Some(Err(error)) => mistakes.push(format!("providers.{name}.{error}")),
                    None => mistakes.push(format!("models[{index}].provider: {name:?} is not among the providers")),
                }
            }
        }
        let mut list = Vec::new();
        for (index, model) in self.models.iter().enumerate() {
            model.check_routing(&format!("models[{index}]"), &self.models, &mut mistakes);
            if let Some(provider) = self.route(model, &providers) {
                list.push(Model { info: model.info(), provider });
            }
        }
        Mistakes(mistakes).into_result()?;
        Models::new(list, &self.default_model).map_err(|error| Mistakes(vec![error.to_string()]))
    }

    /// The provider of a model, or the way through its fallbacks.
    fn route(&self, model: &ModelConfig, providers: &BTreeMap<&str, Arc<dyn Provider>>) -> Option<Arc<dyn Provider>> {
        let own = model.candidate(providers)?;
        if model.fallbacks.is_empty() {
            return Some(own.provider);
        }
        let other = |id: &String| self.models.iter().find(|other| other.id == *id)?.candidate(providers);
        let fallbacks = model.fallbacks.iter().filter_map(other).collect();
        let total = self.providers.get(&model.provider).map(|provider| provider.total_timeout).unwrap_or_default();
        Some(Arc::new(Route::new(own, fallbacks, model.on_loss.into(), total)))
    }
}

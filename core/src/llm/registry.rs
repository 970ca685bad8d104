//! The models that may be chosen, each with its provider. Built once at start, then read only.

use std::collections::HashSet;
use std::sync::Arc;

use chatbox_proto::{
    spans::Tracer,
    token::{Role, Roles},
};

use super::{
    Load, Provider,
    observed::{Observed, Observer},
};
use crate::domain::entry::Usage;

/// What is known about a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelInfo {
    /// By which it is chosen and stored.
    pub id: String,
    /// By which people know it.
    pub name: String,
    /// Name of its provider in the configuration.
    pub provider: String,
    /// Its name at the provider.
    pub upstream_model: String,
    /// Tokens of prompt and answer together.
    pub context_tokens: u32,
    /// At most this many tokens of answer.
    pub max_output_tokens: u32,
    /// First message of every prompt.
    pub system_prompt: Option<String>,
    /// Roles of those who may choose it; empty: everybody.
    pub roles: Vec<Role>,
    /// Ids of the models that stand in for it, in order.
    pub fallbacks: Vec<String>,
    /// What its tokens cost.
    pub price: Price,
}

impl ModelInfo {
    /// Whether somebody with these roles may choose it.
    #[must_use]
    pub fn is_for(&self, roles: Roles) -> bool {
        self.roles.is_empty() || roles.contains_any(&self.roles)
    }
}

/// What tokens cost, in billionths of a unit of money for each: 2.50 for a million tokens is 2,500.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Price {
    /// Of the prompt.
    pub prompt: u64,
    /// Of the prompt, from the provider's cache.
    pub cached: u64,
    /// Of the completion.
    pub completion: u64,
}

impl Price {
    /// What this usage costs, in millionths of a unit of money, rounded up.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> u64 {
        let cached = usage.cached_tokens.min(usage.prompt_tokens);
        let parts = [
            (usage.prompt_tokens - cached, self.prompt),
            (cached, self.cached),
            (usage.completion_tokens, self.completion),
        ];
        let billionths: u128 = parts.iter().map(|(tokens, price)| u128::from(*tokens) * u128::from(*price)).sum();
        u64::try_from(billionths.div_ceil(1_000)).unwrap_or(u64::MAX)
    }
}

/// A model with the provider that runs it.
#[derive(Debug, Clone)]
pub struct Model {
    /// What is known about it.
    pub info: ModelInfo,
    /// Who runs it.
    pub provider: Arc<dyn Provider>,
}

/// Why a list of models cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelsError {
    /// There is none.
    #[error("models: at least one is needed")]
    Empty,
    /// Two have the same id.
    #[error("models: the id {0:?} is there twice")]
    Duplicate(String),
    /// The default is not among them.
    #[error("default_model: {0:?} is not among the models")]
    UnknownDefault(String),
}

/// All models. A clone shares the list.
#[derive(Debug, Clone)]
pub struct Models {
    list: Arc<[Model]>,
    default: usize,
}

impl Models {
    /// Checks that ids are unique and that the default is among them.
    ///
    /// # Errors
    /// What [`ModelsError`] says.
    pub fn new(list: Vec<Model>, default: &str) -> Result<Self, ModelsError> {
        if list.is_empty() {
            return Err(ModelsError::Empty);
        }
        let mut seen = HashSet::new();
        if let Some(twice) = list.iter().find(|model| !seen.insert(model.info.id.as_str())) {
            return Err(ModelsError::Duplicate(twice.info.id.clone()));
        }
        let position = list.iter().position(|model| model.info.id == default);
        let default = position.ok_or_else(|| ModelsError::UnknownDefault(default.to_owned()))?;
        Ok(Self { list: list.into(), default })
    }

    /// The same models; each of their turns is told to `observer` and is a span of `tracer`.
    #[must_use]
    pub fn observed(&self, observer: &Arc<dyn Observer>, tracer: &Tracer) -> Self {
        let observe = |model: &Model| {
            let observed = Observed::new(model.provider.clone(), model.info.clone(), observer.clone(), tracer.clone());
            Model { info: model.info.clone(), provider: Arc::new(observed) }
        };
        Self { list: self.list.iter().map(observe).collect(), default: self.default }
    }

    /// The model with this id. `None`: there is no such model (any more).
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Model> {
        self.list.iter().find(|model| model.info.id == id)
    }

    /// The model of sessions that did not choose.
    #[must_use]
    pub fn default_model(&self) -> &Model {
        &self.list[self.default]
    }

    /// The model with this id, or the default when it was removed; `true` then, so that the user is told.
    #[must_use]
    pub fn get_or_default(&self, id: &str) -> (&Model, bool) {
        self.get(id).map_or((self.default_model(), true), |model| (model, false))
    }

    /// All, in the order of the configuration.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Model> {
        self.list.iter()
    }

    /// How the providers do just now, by name and in its order; those without limits are left out.
    #[must_use]
    pub fn loads(&self) -> Vec<(String, Load)> {
        let mut loads: Vec<_> =
            self.list.iter().filter_map(|model| Some((model.info.provider.clone(), model.provider.load()?))).collect();
        loads.sort_by(|one, other| one.0.cmp(&other.0));
        loads.dedup_by(|one, other| one.0 == other.0);
        loads
    }

    /// Resolves when no provider has anything left to do in the background.
    pub async fn settled(&self) {
        for model in self.list.iter() {
            model.provider.settled().await;
        }
    }

    /// Every model is built in and without intelligence.
    #[must_use]
    pub fn is_demo_only(&self) -> bool {
        self.list.iter().all(|model| model.provider.is_demo())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::demo::Demo;

    fn model(id: &str) -> Model {
        let info = ModelInfo {
            id: id.to_owned(),
            name: id.to_uppercase(),
            provider: "demo".to_owned(),
            upstream_model: id.to_owned(),
            context_tokens: 4096,
            max_output_tokens: 1024,
            ..ModelInfo::default()
        };
        Model { info, provider: Arc::new(Demo::default()) }
    }

    #[test]
    fn models_are_found_by_id_and_the_default_is_known() {
        let models = Models::new(vec![model("a"), model("b")], "b").expect("valid");
        assert_eq!(models.get("a").map(|model| model.info.name.as_str()), Some("A"));
        assert!(models.get("nope").is_none() && models.get("").is_none());
        assert_eq!(models.default_model().info.id, "b");
        assert_eq!(models.iter().map(|model| model.info.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(models.is_demo_only());
    }

    #[test]
    fn a_removed_model_falls_back_and_says_so() {
        let models = Models::new(vec![model("a")], "a").expect("valid");
        assert!(!models.get_or_default("a").1);
        let (model, fell_back) = models.get_or_default("gone");
        assert!(fell_back && model.info.id == "a");
    }

    #[test]
    fn a_model_is_for_everybody_or_for_some_roles() {
        let roles = |roles: &[Role]| roles.iter().copied().collect::<Roles>();
        let for_all = ModelInfo::default();
        let for_some = ModelInfo { roles: vec![Role::Service, Role::Admin], ..ModelInfo::default() };
        assert!(for_all.is_for(roles(&[])) && for_all.is_for(roles(&[Role::User])));
        assert!(for_some.is_for(roles(&[Role::User, Role::Admin])) && for_some.is_for(roles(&[Role::Service])));
        assert!(!for_some.is_for(roles(&[])) && !for_some.is_for(roles(&[Role::User, Role::ChatAdmin])));
    }

    #[test]
    fn the_cost_counts_each_token_once_and_rounds_up() {
        let price = Price { prompt: 2_500, cached: 250, completion: 10_000 };
        let usage = |prompt_tokens, cached_tokens, completion_tokens| Usage {
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            estimated: false,
        };
        assert_eq!(price.cost(&usage(1_000_000, 0, 0)), 2_500_000);
        assert_eq!(price.cost(&usage(1_000_000, 400_000, 1_000)), 1_500_000 + 100_000 + 10_000);
        assert_eq!(price.cost(&usage(1, 0, 0)), 3, "2.5 rounded up");
        assert_eq!(price.cost(&usage(1, 5, 0)), 1, "more cached than asked is not believed");
        assert_eq!(price.cost(&usage(u64::MAX, 0, u64::MAX)), u64::MAX);
        assert_eq!(Price::default().cost(&usage(7, 0, 7)), 0);
    }

    #[test]
    fn an_unusable_list_is_refused_with_the_key() {
        assert_eq!(Models::new(vec![], "a").expect_err("empty"), ModelsError::Empty);
        let twice = Models::new(vec![model("a"), model("a")], "a").expect_err("duplicate");
        assert_eq!(twice, ModelsError::Duplicate("a".to_owned()));
        let unknown = Models::new(vec![model("a")], "b").expect_err("unknown default");
        assert!(unknown.to_string().starts_with("default_model: "));
    }
}

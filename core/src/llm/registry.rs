//! The models that may be chosen, each with its provider. Built once at start, then read only.

use std::collections::HashSet;
use std::sync::Arc;

use super::Provider;

/// What is known about a model.
#[derive(Debug, Clone, PartialEq, Eq)]
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
            system_prompt: None,
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
    fn an_unusable_list_is_refused_with_the_key() {
        assert_eq!(Models::new(vec![], "a").expect_err("empty"), ModelsError::Empty);
        let twice = Models::new(vec![model("a"), model("a")], "a").expect_err("duplicate");
        assert_eq!(twice, ModelsError::Duplicate("a".to_owned()));
        let unknown = Models::new(vec![model("a")], "b").expect_err("unknown default");
        assert!(unknown.to_string().starts_with("default_model: "));
    }
}

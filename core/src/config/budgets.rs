//! What may be used in a day.

use std::collections::BTreeMap;

use chatbox_proto::token::Role;
use serde::{Deserialize, Serialize};

use super::ModelConfig;
use crate::{budget::BudgetLimits, store::budgets::Amount};

/// More than anybody uses; a limit above it is a mistake in its unit.
const MAX_TOKENS: u64 = 1_000_000_000_000_000;
const MAX_COST: f64 = 1_000_000_000.0;
/// Millionths.
const MILLIONTHS: f64 = 1_000_000.0;

/// What may be used in a UTC day.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetsConfig {
    /// Of each user.
    pub user: BudgetConfig,
    /// Of each service.
    pub service: BudgetConfig,
    /// Of all together who have a role, by its name: tables like `[budgets.roles.user]`. Default none.
    pub roles: BTreeMap<String, BudgetConfig>,
}

/// Tokens and money of one day.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetConfig {
    /// Tokens of prompts and answers together: 1 to 10^15, or 0 for no limit. Before each answer as many are reserved as it
    /// may use: less than `context_tokens` of a model leaves no room for a full one. Default 0.
    pub tokens: u64,
    /// Money, in the unit of the models' prices, to a millionth: up to 10^9, or 0 for no limit. Default 0.
    pub cost: f64,
}

impl BudgetConfig {
    fn amount(self) -> Option<Amount> {
        if self.tokens == 0 && self.cost == 0.0 {
            return None;
        }
        let tokens = if self.tokens == 0 { Amount::MAX.tokens } else { self.tokens };
        let cost = if self.cost == 0.0 { Amount::MAX.cost } else { millionths(self.cost) };
        Some(Amount::new(tokens, cost))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a checked cost is within 0 and a billion; anything else is cut off at the ends"
)]
fn millionths(cost: f64) -> u64 {
    (cost * MILLIONTHS).round().max(1.0) as u64
}

impl BudgetsConfig {
    /// The limits that are set.
    #[must_use]
    pub fn limits(&self) -> BudgetLimits {
        let role = |(name, budget): (&String, &BudgetConfig)| Some((Role::from_name(name)?, budget.amount()?));
        BudgetLimits {
            user: self.user.amount(),
            service: self.service.amount(),
            roles: self.roles.iter().filter_map(role).collect(),
        }
    }

    pub(super) fn check(&self, models: &[ModelConfig], mistakes: &mut Vec<String>) {
        let own = [("user", &self.user), ("service", &self.service)].map(|(name, budget)| (name.to_owned(), budget));
        let roles = self.roles.iter().map(|(role, budget)| (format!("roles.{role}"), budget));
        let priced = models.iter().any(ModelConfig::has_a_price);
        for (name, budget) in own.into_iter().chain(roles) {
            if budget.tokens > MAX_TOKENS {
                mistakes.push(format!("budgets.{name}.tokens: must be from 0 to {MAX_TOKENS}"));
            }
            if !(0.0..=MAX_COST).contains(&budget.cost) {
                mistakes.push(format!("budgets.{name}.cost: must be from 0 to {MAX_COST}"));
            } else if budget.cost > 0.0 && !priced {
                mistakes.push(format!("budgets.{name}.cost: no model has a price"));
            }
        }
        for role in self.roles.keys().filter(|role| Role::from_name(role).is_none()) {
            mistakes.push(format!("budgets.roles: {role:?} is none of user, chat_admin, admin and service"));
        }
    }
}

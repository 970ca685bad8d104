//! Budgets: tokens and money that a user, a service and everybody with a role may use in a UTC day.
//!
//! Before a provider is asked, the most that the answer may use is reserved in the row of each subject; afterwards the
//! reservation is settled with what was used. A row is therefore never above its limit by what could be foreseen; what a
//! provider bills beyond it is counted apart, and counts for what follows. This module knows nothing of sessions:
//! whoever reserves says what identifies the work, and whoever finds a reservation that nobody settles (in session/budgets)
//! says what has become of it.

mod clock;

use std::{sync::Arc, time::Duration};

use chatbox_proto::{
    error_code::ErrorCode,
    ids::{MessageId, SessionId},
    status::Failure,
    token::{Role, Roles},
};

pub use self::clock::Clock;
use crate::{
    domain::entry::{Charge, Usage},
    llm::{ModelInfo, Models, route::OnLoss},
    metrics::Metrics,
    store::{
        BootId, StoreError, StoreErrorKind,
        budgets::{Amount, BudgetKey, BudgetRow, BudgetStore, Reservation, Reserved, Settlement},
    },
};

/// When there may be room again that is only reserved now.
const IN_USE_RETRY: Duration = Duration::from_secs(5);

/// When a store that does not answer may be asked again.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Tries to settle, before it is left to the sweep.
const TRIES: u32 = 4;

/// Before the second try; doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(200);

/// Who may use how much in a day. `None`: without a limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BudgetLimits {
    /// Each user.
    pub user: Option<Amount>,
    /// Each service.
    pub service: Option<Amount>,
    /// All who have this role, together.
    pub roles: Vec<(Role, Amount)>,
}

/// Why nothing was reserved.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// There is no room.
    #[error("the budget is used up")]
    Exhausted {
        /// When there may be.
        retry_after: Duration,
    },
    /// The store failed: whatever it would have said, nothing is given.
    #[error("store")]
    Store(#[source] StoreError),
    /// The store did not answer in time.
    #[error("the store did not answer in time")]
    StoreTimeout,
}

impl From<&BudgetError> for Failure {
    fn from(error: &BudgetError) -> Self {
        match error {
            BudgetError::Exhausted { retry_after } => {
                Self::new(ErrorCode::ResourceExhausted, "BUDGET_EXHAUSTED", "the budget of this day is used up")
                    .retry_after(*retry_after)
            }
            BudgetError::Store(_) | BudgetError::StoreTimeout => {
                let message = "the store is not available; nothing was acknowledged";
                Self::new(ErrorCode::Unavailable, "STORE_UNAVAILABLE", message).retry_after(STORE_RETRY)
            }
        }
    }
}

/// The budgets of an installation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budgets {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn BudgetStore>,
    limits: BudgetLimits,
    models: Models,
    metrics: Metrics,
    boot_id: BootId,
    call: Duration,
    clock: Clock,
}

/// What identifies a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Its id; a reply's is that of its message.
    pub id: MessageId,
    /// The session whose log tells what it has used.
    pub session_id: Option<SessionId>,
}

/// A reservation, for work outside of sessions. Dropped without [`settle`](Self::settle) it is settled by the sweep, for
/// as much as it reserved.
#[derive(Debug)]
#[must_use]
pub struct Held {
    budgets: Budgets,
    charge: Charge,
    id: MessageId,
}

impl Held {
    /// Settles with what was used. `model` is the one that answered.
    pub async fn settle(self, model: &str, usage: &Usage) {
        let settlement = self.budgets.settlement(model, usage);
        self.budgets.settle(&self.charge, self.id, settlement).await;
    }
}

impl Budgets {
    /// On top of a store, each of whose calls has so much time.
    #[must_use]
    pub fn new(
        store: Arc<dyn BudgetStore>,
        limits: BudgetLimits,
        models: Models,
        metrics: Metrics,
        call: Duration,
        clock: Clock,
    ) -> Self {
        let boot_id = rand::random();
        Self { shared: Arc::new(Shared { store, limits, models, metrics, boot_id, call, clock }) }
    }

    /// The budgets that somebody's work counts against from now on. `None`: none of them is limited.
    #[must_use]
    pub fn charge(&self, user_id: &str, roles: Roles) -> Option<Charge> {
        let own = if roles.contains(Role::Service) { "service" } else { "user" };
        let of_roles = self.shared.limits.roles.iter().filter(|(role, _)| roles.contains(*role));
        let subjects = std::iter::once(format!("{own}:{user_id}"));
        self.charge_to(subjects.chain(of_roles.map(|(role, _)| format!("role:{}", role.name()))))
    }

    /// The budgets of these subjects, today. `None`: none of them is limited any more.
    pub fn charge_to(&self, subjects: impl IntoIterator<Item = String>) -> Option<Charge> {
        let subjects: Vec<_> = subjects.into_iter().filter(|subject| self.limit(subject).is_some()).collect();
        (!subjects.is_empty()).then(|| Charge { day: self.shared.clock.day(), subjects })
    }

    fn limit(&self, subject: &str) -> Option<Amount> {
        let limits = &self.shared.limits;
        match subject.split_once(':')? {
            ("user", _) => limits.user,
            ("service", _) => limits.service,
            ("role", name) => limits.roles.iter().find(|(role, _)| role.name() == name).map(|(_, limit)| *limit),
            _ => None,
        }
    }

    /// The most that an answer of this model may use: whichever of its fallbacks answers, and twice if one may begin again.
    #[must_use]
    pub fn most(&self, model: &ModelInfo, prompt_tokens: u64) -> Amount {
        let usage = Usage {
            prompt_tokens,
            completion_tokens: model.max_output_tokens.into(),
            cached_tokens: 0,
            estimated: true,
        };
        let stand_ins = model.fallbacks.iter().filter_map(|id| self.shared.models.get(id)).map(|model| &model.info);
        let cost = std::iter::once(model).chain(stand_ins).map(|model| model.price.cost(&usage)).max();
        let once = Amount::new(usage.prompt_tokens + usage.completion_tokens, cost.unwrap_or_default());
        if model.on_loss == OnLoss::Restart { once.plus(once) } else { once }
    }

    /// Whether there is room for such work, as far as can be told ahead of it.
    ///
    /// # Errors
    /// There is none; failures of the store.
    pub async fn check(&self, charge: &Charge, amount: Amount) -> Result<(), BudgetError> {
        for (key, limit) in self.rows(charge) {
            let row = self.call(self.shared.store.budget(&key)).await?.unwrap_or_else(|| BudgetRow::new(key));
            if row.taken().plus(amount).fits(limit) {
                continue;
            }
            self.shared.metrics.budget("refused");
            return Err(self.exhausted(row.total().plus(amount).fits(limit)));
        }
        Ok(())
    }

    /// Reserves the most that the work may use, in the row of each subject or in none.
    ///
    /// # Errors
    /// There is no room for it; failures of the store. What may be left of it then is settled by the sweep.
    pub async fn reserve(
        &self,
        charge: &Charge,
        work: Work,
        model: &ModelInfo,
        prompt_tokens: u64,
    ) -> Result<Held, BudgetError> {
        let amount = self.most(model, prompt_tokens);
        let Work { id, session_id } = work;
        let mut reserved = Charge { day: charge.day, subjects: Vec::new() };
        for (key, limit) in self.rows(charge) {
            let reservation = Reservation { id, amount, boot_id: self.shared.boot_id, session_id };
            let result = self.call(self.shared.store.reserve_budget(&key, reservation, limit)).await;
            let failure = match result {
                Ok(Reserved::Done) => None,
                Ok(Reserved::Refused) => {
                    let row = self.call(self.shared.store.budget(&key)).await.ok().flatten();
                    let passes = row.is_some_and(|row| row.total().plus(amount).fits(limit));
                    Some(self.exhausted(passes))
                }
                Err(error) => Some(error),
            };
            let refused = matches!(failure, Some(BudgetError::Exhausted { .. }));
            if !refused {
                // One that failed may have been written all the same.
                reserved.subjects.push(key.subject);
            }
            if let Some(failure) = failure {
                self.shared.metrics.budget(if refused { "refused" } else { "unavailable" });
                self.settle_once(&reserved, id, Settlement::Released).await;
                return Err(failure);
            }
        }
        self.shared.metrics.budget("reserved");
        Ok(Held { budgets: self.clone(), charge: charge.clone(), id })
    }

    /// What a reply's usage amounts to. `model` is the one that answered; one that there is no more has no price.
    #[must_use]
    pub fn settlement(&self, model: &str, usage: &Usage) -> Settlement {
        match self.shared.models.get(model) {
            Some(model) => {
                let tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens);
                let amount = Amount::new(tokens, model.info.price.cost(usage));
                Settlement::Used { amount, estimated: usage.estimated }
            }
            None => Settlement::Unknown,
        }
    }

    /// Settles in the row of each subject in which it has not been settled yet. A row that cannot be reached is left to the
    /// sweep.
    pub async fn settle(&self, charge: &Charge, id: MessageId, settlement: Settlement) {
        let mut left = charge.clone();
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(BACKOFF * (1 << attempt)).await;
            }
            left = self.settle_once(&left, id, settlement).await;
            if left.subjects.is_empty() {
                return;
            }
        }
        self.shared.metrics.budget("unsettled");
        tracing::warn!(reply.id = %id, rows = left.subjects.len(), "a budget was not settled and is left to the sweep");
    }

    /// The rows that could not be reached.
    async fn settle_once(&self, charge: &Charge, id: MessageId, settlement: Settlement) -> Charge {
        let mut left = Charge { day: charge.day, subjects: Vec::new() };
        for subject in &charge.subjects {
            let key = BudgetKey { day: charge.day, subject: subject.clone() };
            match self.call(self.shared.store.settle_budget(&key, id, settlement)).await {
                Ok(true) if settlement == Settlement::Released => self.shared.metrics.budget("released"),
                Ok(true) => self.shared.metrics.budget("settled"),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a budget was not settled");
                    left.subjects.push(key.subject);
                }
            }
        }
        left
    }

    /// Where rows are, for the sweep.
    pub(crate) fn store(&self) -> &Arc<dyn BudgetStore> {
        &self.shared.store
    }

    /// Names this process in reservations.
    pub(crate) fn boot_id(&self) -> BootId {
        self.shared.boot_id
    }

    /// Today.
    pub(crate) fn day(&self) -> u32 {
        self.shared.clock.day()
    }

    fn rows(&self, charge: &Charge) -> Vec<(BudgetKey, Amount)> {
        let row =
            |subject: &String| Some((BudgetKey { day: charge.day, subject: subject.clone() }, self.limit(subject)?));
        charge.subjects.iter().filter_map(row).collect()
    }

    /// `passes`: what stands in the way is only reserved.
    fn exhausted(&self, passes: bool) -> BudgetError {
        let retry_after = if passes { IN_USE_RETRY } else { self.shared.clock.until_midnight() };
        BudgetError::Exhausted { retry_after }
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, StoreError>> + Send) -> Result<T, BudgetError> {
        let result = match tokio::time::timeout(self.shared.call, call).await {
            Ok(result) => result.map_err(BudgetError::Store),
            Err(_) => Err(BudgetError::StoreTimeout),
        };
        if let Err(error) = &result {
            let kind = if let BudgetError::Store(error) = error { error.kind() } else { StoreErrorKind::Unavailable };
            self.shared.metrics.store_failed(kind);
            tracing::warn!(error = error as &dyn std::error::Error, "a budget could not be reached");
        }
        result
    }
}

#[cfg(test)]
mod tests;

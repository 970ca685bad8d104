//! What subjects have used in a day, and what is set aside for work that goes on. The trait's text is the contract;
//! `conformance::budgets` tests it against every implementation.

use async_trait::async_trait;
use chatbox_proto::ids::{MessageId, SessionId};

use super::{BootId, StoreError};

/// Reservations that one row may hold at a time: 4,096, and fewer where a test has to reach it.
pub const MAX_RESERVATIONS: u32 = if cfg!(test) { 64 } else { 4_096 };

/// Larger than any day's use, and small enough that sums of a row stay numbers of every store.
const MAX_AMOUNT: u64 = 1 << 50;

/// An amount of tokens and of money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Tokens.
    pub tokens: u64,
    /// Millionths of a unit of money.
    pub cost: u64,
}

impl Amount {
    /// No limit, when it is one.
    pub const MAX: Self = Self { tokens: MAX_AMOUNT, cost: MAX_AMOUNT };

    /// So much, and at most [`MAX`](Self::MAX) of each.
    #[must_use]
    pub fn new(tokens: u64, cost: u64) -> Self {
        Self { tokens: tokens.min(MAX_AMOUNT), cost: cost.min(MAX_AMOUNT) }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { tokens: self.tokens.saturating_add(other.tokens), cost: self.cost.saturating_add(other.cost) }
    }

    /// What is left of this without the other; nothing where the other is larger.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { tokens: self.tokens.saturating_sub(other.tokens), cost: self.cost.saturating_sub(other.cost) }
    }

    /// The smaller of each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self { tokens: self.tokens.min(other.tokens), cost: self.cost.min(other.cost) }
    }

    /// Whether neither is more than in the other.
    #[must_use]
    pub fn fits(self, limit: Self) -> bool {
        self.tokens <= limit.tokens && self.cost <= limit.cost
    }
}

/// Names a row: who, and on which day.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BudgetKey {
    /// Days since the Unix epoch, in UTC; below a million.
    pub day: u32,
    /// Who, at most 300 bytes.
    pub subject: String,
}

/// What is set aside for one piece of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The work's id; a reply's is that of its message.
    pub id: MessageId,
    /// The most it may use.
    pub amount: Amount,
    /// The process that does it.
    pub boot_id: BootId,
    /// The session whose log tells what it has used; `None` for work outside of sessions.
    pub session_id: Option<SessionId>,
}

/// What a reservation becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// So much was used.
    Used {
        /// How much.
        amount: Amount,
        /// It is an estimate.
        estimated: bool,
    },
    /// Nobody knows: all that was reserved, as an estimate.
    Unknown,
    /// The work was not begun. It is no settlement.
    Released,
}

/// One subject's day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetRow {
    /// Whose, and which day.
    pub key: BudgetKey,
    /// What was used within reservations: never above the limit that they were made under.
    pub used: Amount,
    /// What was used beyond them: a provider billed more than was to be expected. `used` and this are together the sum of
    /// all settlements.
    pub over: Amount,
    /// The sum of `open`.
    pub reserved: Amount,
    /// Settlements so far.
    pub settled: u64,
    /// Those of them that were estimates.
    pub estimated: u64,
    /// Reservations that are not settled, in the order of their ids.
    pub open: Vec<Reservation>,
}

impl BudgetRow {
    /// The row of a day on which nothing has happened.
    #[must_use]
    pub fn new(key: BudgetKey) -> Self {
        let zero = Amount::default();
        Self { key, used: zero, over: zero, reserved: zero, settled: 0, estimated: 0, open: Vec::new() }
    }

    /// The sum of all settlements.
    #[must_use]
    pub fn total(&self) -> Amount {
        self.used.plus(self.over)
    }

    /// What cannot be reserved any more.
    #[must_use]
    pub fn taken(&self) -> Amount {
        self.total().plus(self.reserved)
    }
}

/// What became of [`BudgetStore::reserve_budget`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// It is set aside; by an earlier call of the same id, maybe.
    Done,
    /// There is no room below the limit, or the row holds as many reservations as it may: nothing was changed.
    Refused,
}

/// What subjects have used: one row per subject and day.
///
/// Each call changes one row, atomically and durably. A call whose outcome is unknown may be repeated, and a dropped future
/// leaves all of a call or nothing.
#[async_trait]
pub trait BudgetStore: Send + Sync + std::fmt::Debug + 'static {
    /// Sets an amount aside if all that the row has used and reserved, and this, is together not above `limit`. Makes the
    /// row when there is none. An id that is set aside in this row already is `Done`, whatever its amount and the limit.
    async fn reserve_budget(
        &self,
        key: &BudgetKey,
        reservation: Reservation,
        limit: Amount,
    ) -> Result<Reserved, StoreError>;

    /// Takes a reservation out of the row and counts what became of it; says whether it was there. Once: whoever comes
    /// second changes nothing.
    async fn settle_budget(&self, key: &BudgetKey, id: MessageId, settlement: Settlement) -> Result<bool, StoreError>;

    /// A row; `None` when there is none. Reads what was acknowledged, and is possibly behind it for a moment.
    async fn budget(&self, key: &BudgetKey) -> Result<Option<BudgetRow>, StoreError>;

    /// Rows with reservations that are not settled, in the order of their keys, above `after`.
    async fn open_budgets(&self, after: Option<BudgetKey>, limit: u32) -> Result<Vec<BudgetRow>, StoreError>;

    /// Removes rows of days before this one that hold no reservations, at most `limit`; says how many.
    async fn drop_budgets(&self, before: u32, limit: u32) -> Result<u32, StoreError>;
}

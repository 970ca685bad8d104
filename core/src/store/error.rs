//! Failures of a store: a kind that callers branch on, and the cause for the log.

/// What a caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// Nothing was written; trying again later may help.
    Unavailable,
    /// A write may or may not have happened: resolve it by reading before anything else.
    OutcomeUnknown,
    /// No space left; nothing was written and what is there is intact.
    Full,
    /// Somebody else has the store open, or it was made by a newer version.
    Refused,
    /// What was read is not what was written.
    Corrupt,
    /// A fault in this program or its configuration.
    Internal,
}

/// A failure of a store. `Display` names the operation; the cause is in `source`.
#[derive(Debug, thiserror::Error)]
#[error("store: {operation}: {kind:?}")]
pub struct StoreError {
    kind: StoreErrorKind,
    operation: &'static str,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// A failure with its cause.
    pub fn new(
        kind: StoreErrorKind,
        operation: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, operation, source: Some(source.into()) }
    }

    /// A failure that has no cause beyond its kind.
    #[must_use]
    pub fn bare(kind: StoreErrorKind, operation: &'static str) -> Self {
        Self { kind, operation, source: None }
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

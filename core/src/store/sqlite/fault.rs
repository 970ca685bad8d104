//! What can go wrong below the trait, and what a caller can do about it.

use std::sync::Arc;

use rusqlite::ErrorCode;

use crate::store::{StoreError, StoreErrorKind};

/// A failure of one piece of work. Cheap to clone: a failed commit is the failure of everything in its group.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Sqlite(Arc<rusqlite::Error>),
    /// A commit failed in a way that may have left a commit mark on the disk.
    #[error("the commit failed and could not be undone")]
    Unsettled(#[source] Arc<rusqlite::Error>),
    #[error("wrong use: {0}")]
    Misuse(&'static str),
    #[error("panicked")]
    Panicked,
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(Arc::new(error))
    }
}

impl Fault {
    pub(super) fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Sqlite(error) => kind_of(error),
            Self::Unsettled(_) => StoreErrorKind::OutcomeUnknown,
            Self::Misuse(_) | Self::Panicked => StoreErrorKind::Internal,
        }
    }

    pub(super) fn during(self, operation: &'static str) -> StoreError {
        StoreError::new(self.kind(), operation, self)
    }
}

fn kind_of(error: &rusqlite::Error) -> StoreErrorKind {
    // Columns that do not hold what was written into them.
    if matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
    ) {
        return StoreErrorKind::Corrupt;
    }
    error.sqlite_error_code().and_then(kind_of_code).unwrap_or(StoreErrorKind::Internal)
}

/// What is not listed is a fault of this program: wrong SQL, a violated constraint.
const KINDS: [(ErrorCode, StoreErrorKind); 13] = [
    (ErrorCode::DiskFull, StoreErrorKind::Full),
    (ErrorCode::DatabaseCorrupt, StoreErrorKind::Corrupt),
    (ErrorCode::NotADatabase, StoreErrorKind::Refused),
    (ErrorCode::DatabaseBusy, StoreErrorKind::Unavailable),
    (ErrorCode::DatabaseLocked, StoreErrorKind::Unavailable),
    (ErrorCode::SystemIoFailure, StoreErrorKind::Unavailable),
    (ErrorCode::CannotOpen, StoreErrorKind::Unavailable),
    (ErrorCode::ReadOnly, StoreErrorKind::Unavailable),
    (ErrorCode::PermissionDenied, StoreErrorKind::Unavailable),
    (ErrorCode::OutOfMemory, StoreErrorKind::Unavailable),
    (ErrorCode::OperationInterrupted, StoreErrorKind::Unavailable),
    (ErrorCode::OperationAborted, StoreErrorKind::Unavailable),
    (ErrorCode::FileLockingProtocolFailed, StoreErrorKind::Unavailable),
];

fn kind_of_code(code: ErrorCode) -> Option<StoreErrorKind> {
    KINDS.iter().find(|(listed, _)| *listed == code).map(|(_, kind)| *kind)
}

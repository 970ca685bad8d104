//! Failures inside the session layer, and the one place where they become what a caller sees.

use std::time::Duration;

use chatbox_proto::{error_code::ErrorCode, status::Failure};

use crate::{
    domain::{decide::Rejection, session::OutOfOrder},
    seal::SealError,
    store::{StoreError, StoreErrorKind},
};

/// What can go wrong between a command and its entry.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The store failed.
    #[error("store")]
    Store(#[from] StoreError),
    /// A payload does not open.
    #[error("sealed payload")]
    Seal(#[from] SealError),
    /// A payload opened and is not what it should be.
    #[error("stored form")]
    Form(#[from] serde_json::Error),
    /// The log has a gap, or overlaps itself.
    #[error("log")]
    Order(#[from] OutOfOrder),
    /// The store did not answer in time.
    #[error("the store did not answer in time")]
    StoreTimeout,
}

/// Wait this long before trying again when the store is not available.
const STORE_RETRY: Duration = Duration::from_secs(1);

impl SessionError {
    /// Whether a write that failed this way may have happened all the same.
    pub(super) fn outcome_unknown(&self) -> bool {
        match self {
            Self::Store(error) => error.kind() == StoreErrorKind::OutcomeUnknown,
            Self::StoreTimeout => true,
            Self::Seal(_) | Self::Form(_) | Self::Order(_) => false,
        }
    }

    /// Whether trying again may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Store(error) => matches!(
                error.kind(),
                StoreErrorKind::Unavailable | StoreErrorKind::OutcomeUnknown | StoreErrorKind::Full
            ),
            Self::StoreTimeout => true,
            Self::Seal(_) | Self::Form(_) | Self::Order(_) => false,
        }
    }
}

/// Reads and writes alike; whoever wrote adds that the outcome is unknown where it is.
impl From<&SessionError> for Failure {
    fn from(error: &SessionError) -> Self {
        let unavailable = |reason| {
            Failure::new(ErrorCode::Unavailable, reason, "the store is not available; nothing was acknowledged")
                .retry_after(STORE_RETRY)
        };
        match error {
            SessionError::Store(error) => match error.kind() {
                StoreErrorKind::Unavailable | StoreErrorKind::Refused => unavailable("STORE_UNAVAILABLE"),
                StoreErrorKind::OutcomeUnknown => unavailable("STORE_UNAVAILABLE"),
                StoreErrorKind::Full => unavailable("STORE_FULL"),
                StoreErrorKind::Corrupt => data_loss(),
                StoreErrorKind::Internal => Failure::internal(),
            },
            SessionError::StoreTimeout => unavailable("STORE_TIMEOUT"),
            SessionError::Seal(_) | SessionError::Form(_) | SessionError::Order(_) => data_loss(),
        }
    }
}

fn data_loss() -> Failure {
    Failure::new(ErrorCode::DataLoss, "UNREADABLE_PAYLOAD", "stored data could not be read")
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Ended => Failure::new(ErrorCode::FailedPrecondition, "SESSION_ENDED", "the session has ended"),
            Rejection::Erased => Failure::session_not_found(),
            Rejection::TooManyUnanswered => {
                Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_UNANSWERED", "too many messages wait for a reply")
                    .retry_after(Duration::from_secs(5))
            }
            Rejection::Held => {
                Failure::new(ErrorCode::FailedPrecondition, "SESSION_HELD", "a person holds the session")
            }
            Rejection::NotHeld => {
                Failure::new(ErrorCode::FailedPrecondition, "NOT_HELD", "nobody holds the session; take it over first")
            }
            Rejection::OwnSession => Failure::new(
                ErrorCode::FailedPrecondition,
                "OWN_SESSION",
                "nobody can be the other side of their own session",
            ),
            Rejection::NotAdmitted => {
                Failure::new(ErrorCode::ResourceExhausted, "NOT_ADMITTED", "it may not be sent now")
                    .retry_after(Duration::from_secs(5))
            }
            Rejection::NotRunning => {
                Failure::new(ErrorCode::FailedPrecondition, "REPLY_NOT_RUNNING", "this reply does not run")
            }
            Rejection::ReplyRuns => Failure::new(
                ErrorCode::FailedPrecondition,
                "REPLY_RUNNING",
                "a reply runs; stop it or wait for its end",
            ),
            Rejection::NotLastReply => Failure::new(
                ErrorCode::FailedPrecondition,
                "NOT_LAST_REPLY",
                "only the last reply can be generated again",
            ),
            Rejection::ModelNotAllowed => Failure::new(
                ErrorCode::PermissionDenied,
                "MODEL_NOT_ALLOWED",
                "the model of this session is not for you any more; choose another by select_model",
            ),
        }
    }
}

/// The answer when a user has as many active sessions as may be.
pub(super) fn session_limit() -> Failure {
    let text = "as many sessions are active as may be; end one first";
    Failure::new(ErrorCode::FailedPrecondition, "SESSION_LIMIT", text)
}

/// The answer while this core is leaving.
pub(super) fn shutting_down() -> Failure {
    Failure::new(ErrorCode::Unavailable, "SHUTTING_DOWN", "this server is leaving; come back and resume")
        .retry_after(Duration::from_millis(500))
}

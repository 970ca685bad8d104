//! Failures as they cross a process boundary: [`Failure`] is what every layer agrees on; it becomes a gRPC status with
//! google.rpc details, an `error` event, or the body of an HTTP answer, and is read back from each.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use tonic::Status;
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::{
    error_code::{ERROR_DOMAIN, ErrorCode},
    v1,
};

/// A typed failure without its internal cause: safe to show to whoever made the call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// The class.
    pub code: ErrorCode,
    /// A stable tag in SCREAMING_SNAKE, at most 63 characters.
    pub reason: Cow<'static, str>,
    /// A sentence for people.
    pub message: Cow<'static, str>,
    /// Field and rule, for [`ErrorCode::InvalidArgument`].
    pub violations: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    /// How long to wait before trying again.
    pub retry_after: Option<Duration>,
    /// The write may or may not have happened.
    pub outcome_unknown: bool,
}

impl Failure {
    /// A failure with a class, a tag and a sentence.
    #[must_use]
    pub fn new(code: ErrorCode, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            reason: Cow::Borrowed(reason),
            message: message.into(),
            violations: Vec::new(),
            retry_after: None,
            outcome_unknown: false,
        }
    }

    /// One field that broke one rule.
    #[must_use]
    pub fn invalid(field: impl Into<Cow<'static, str>>, rule: impl Into<Cow<'static, str>>) -> Self {
        let (field, rule) = (field.into(), rule.into());
        let mut failure = Self::new(ErrorCode::InvalidArgument, "INVALID_FIELD", format!("{field}: {rule}"));
        failure.violations.push((field, rule));
        failure
    }

    /// The one answer for unknown and foreign sessions.
    #[must_use]
    pub fn session_not_found() -> Self {
        Self::new(ErrorCode::NotFound, "SESSION_NOT_FOUND", "there is no such session")
    }

    /// The one answer for every token that is not acceptable.
    #[must_use]
    pub fn unauthenticated() -> Self {
        Self::new(ErrorCode::Unauthenticated, "UNAUTHENTICATED", "a valid bearer token is required")
    }

    /// A fault of ours; the cause belongs into the log.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(ErrorCode::Internal, "INTERNAL", "an internal error occurred")
    }

    /// Declared in the contract, not built yet.
    #[must_use]
    pub fn unimplemented() -> Self {
        Self::new(ErrorCode::Unimplemented, "NOT_IMPLEMENTED", "this is declared in the contract and not available yet")
    }

    /// With the time to wait before trying again.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// With an unknown outcome.
    #[must_use]
    pub fn outcome_unknown(mut self) -> Self {
        self.outcome_unknown = true;
        self
    }

    /// As the `error` event that answers a frame.
    #[must_use]
    pub fn into_event(self, request_id: String) -> v1::Error {
        v1::Error {
            request_id,
            code: self.code.wire().into(),
            reason: self.reason.into_owned(),
            message: self.message.into_owned(),
            field_violations: self
                .violations
                .into_iter()
                .map(|(field, description)| v1::FieldViolation {
                    field: field.into_owned(),
                    description: description.into_owned(),
                })
                .collect(),
            retry_after: self.retry_after.map(Into::into),
            outcome_unknown: self.outcome_unknown,
            close_code: 0,
            metadata: HashMap::new(),
        }
    }
}

const OUTCOME_UNKNOWN: &str = "outcome_unknown";

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut metadata = HashMap::new();
        if failure.outcome_unknown {
            metadata.insert(OUTCOME_UNKNOWN.to_owned(), "true".to_owned());
        }
        let mut details = ErrorDetails::with_error_info(failure.reason, ERROR_DOMAIN, metadata);
        if !failure.violations.is_empty() {
            let violations: Vec<_> = failure.violations.into_iter().map(|(f, d)| FieldViolation::new(f, d)).collect();
            details.set_bad_request(violations);
        }
        if failure.retry_after.is_some() {
            details.set_retry_info(failure.retry_after);
        }
        Status::with_error_details(failure.code.grpc(), failure.message, details)
    }
}

impl From<&Status> for Failure {
    /// Reads a status of our own back. A status without our details (a proxy's, a transport's) keeps its class and gets the
    /// class's own tag and a neutral sentence, since its text is not ours to pass on.
    fn from(status: &Status) -> Self {
        let code = ErrorCode::from_grpc(status.code());
        let details = status.get_error_details();
        let Some(info) = details.error_info().filter(|info| info.domain == ERROR_DOMAIN) else {
            return Self::new(code, generic_reason(code), generic_message(code));
        };
        Self {
            code,
            reason: Cow::Owned(info.reason.clone()),
            message: Cow::Owned(status.message().to_owned()),
            violations: details
                .bad_request()
                .map(|bad| &bad.field_violations[..])
                .unwrap_or_default()
                .iter()
                .map(|v| (Cow::Owned(v.field.clone()), Cow::Owned(v.description.clone())))
                .collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            outcome_unknown: info.metadata.get(OUTCOME_UNKNOWN).is_some_and(|value| value == "true"),
        }
    }
}

/// The tag of a status that did not bring one of its own.
#[must_use]
pub fn generic_reason(code: ErrorCode) -> &'static str {
    v1::ErrorCode::as_str_name(&code.wire()).trim_start_matches("ERROR_CODE_")
}

/// The sentence of a status that did not bring one that is ours.
#[must_use]
pub fn generic_message(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Cancelled => "the call was cancelled",
        ErrorCode::InvalidArgument => "the request is not valid",
        ErrorCode::DeadlineExceeded => "the deadline has passed",
        ErrorCode::NotFound => "there is no such thing",
        ErrorCode::AlreadyExists => "it exists already",
        ErrorCode::PermissionDenied => "the token does not allow this",
        ErrorCode::ResourceExhausted => "a limit was reached",
        ErrorCode::FailedPrecondition => "the state does not allow this",
        ErrorCode::Aborted => "concurrent changes won",
        ErrorCode::OutOfRange => "the position does not exist",
        ErrorCode::Unimplemented => "there is no such call",
        ErrorCode::Internal => "an internal error occurred",
        ErrorCode::Unavailable => "the service is not available",
        ErrorCode::DataLoss => "stored data could not be read",
        ErrorCode::Unauthenticated => "a valid bearer token is required",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_code;

    #[test]
    fn a_failure_survives_the_way_through_a_status() {
        for code in error_code::ALL {
            let mut failure = Failure::new(*code, "SOME_REASON", "a sentence").retry_after(Duration::from_millis(1500));
            failure.violations.push(("a.b".into(), "a rule".into()));
            failure.outcome_unknown = true;
            assert_eq!(Failure::from(&Status::from(failure.clone())), failure);
        }
    }

    #[test]
    fn every_status_has_exactly_one_error_info() {
        let status = Status::from(Failure::invalid("send.text", "must not be empty"));
        let infos = status.get_error_details_vec();
        let count = infos.iter().filter(|d| matches!(d, tonic_types::ErrorDetail::ErrorInfo(_))).count();
        assert_eq!(count, 1);
    }

    #[test]
    fn the_text_of_a_foreign_status_is_not_passed_on() {
        let failure = Failure::from(&Status::unavailable("tcp connect error: 10.0.0.7:27017"));
        assert_eq!(failure.code, ErrorCode::Unavailable);
        assert_eq!(failure.reason, "UNAVAILABLE");
        assert!(!failure.message.contains("10.0.0.7"));
    }
}

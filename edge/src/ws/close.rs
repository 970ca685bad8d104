//! How a connection ends: a close code, and the event that goes before it with the same code.

use std::time::Duration;

use chatbox_proto::{
    error_code::{ErrorCode, close},
    status::Failure,
    v1::{self, chat_response},
};

use crate::core_api;

/// The end of a connection.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) code: u16,
    /// A stable tag for the close frame and the log; short, since a close reason has at most 123 bytes (RFC 6455 section
    /// 5.5).
    pub(super) reason: String,
    /// What the client is told first.
    pub(super) event: Option<chat_response::Event>,
    pub(super) by: By,
}

/// Who ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Client,
    Edge,
}

impl By {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Edge => "edge",
        }
    }
}

impl Ending {
    /// With an error event that carries the code.
    pub(super) fn failed(code: u16, failure: Failure, request_id: String) -> Self {
        let reason = failure.reason.to_string();
        let mut error = failure.into_event(request_id);
        error.close_code = code.into();
        Self { code, reason, event: Some(chat_response::Event::Error(error)), by: By::Edge }
    }

    /// With a failure of core's, or of the way to it.
    pub(super) fn by_core(failure: Failure, request_id: String) -> Self {
        Self::failed(code_of(&failure), failure, request_id)
    }

    /// In order: what the client wanted has happened.
    pub(super) fn normal() -> Self {
        Self { code: close::NORMAL, reason: String::new(), event: None, by: By::Edge }
    }

    /// With a code that core has announced in an event of its own.
    pub(super) fn announced(code: u16) -> Self {
        Self { code, reason: String::new(), event: None, by: By::Edge }
    }

    /// The server leaves.
    pub(super) fn going_away(retry_after: Duration) -> Self {
        let event = chat_response::Event::GoingAway(v1::chat_response::GoingAway {
            reason: "DRAINING".to_owned(),
            retry_after: Some(retry_after.into()),
            close_code: close::GOING_AWAY.into(),
        });
        Self { code: close::GOING_AWAY, reason: "DRAINING".to_owned(), event: Some(event), by: By::Edge }
    }

    /// The client closed, or is gone (1006, never on the wire).
    pub(super) fn by_client(code: u16) -> Self {
        Self { code, reason: String::new(), event: None, by: By::Client }
    }

    /// No event can be sent any more, or none may: the peer broke the framing itself.
    pub(super) fn bare(code: u16, reason: &str) -> Self {
        Self { code, reason: reason.to_owned(), event: None, by: By::Edge }
    }
}

/// What became of a frame that core had when it was lost: nobody knows.
pub(super) fn outcome_unknown() -> Failure {
    let message = "the server was lost before it answered: the outcome is unknown";
    Failure::new(ErrorCode::Unavailable, "OUTCOME_UNKNOWN", message).outcome_unknown()
}

/// The close code of a failure that ends a stream: the table's, with a finer one where there is one.
fn code_of(failure: &Failure) -> u16 {
    match &*failure.reason {
        _ if core_api::is_core_unavailable(failure) => close::CORE_UNAVAILABLE,
        "TOKEN_EXPIRED" => close::TOKEN_EXPIRED,
        "SLOW_CONSUMER" => close::SLOW_CONSUMER,
        _ => failure.code.close(),
    }
}

/// Failures that the edge itself ends connections with.
pub(super) fn token_expired() -> Failure {
    Failure::new(ErrorCode::Unauthenticated, "TOKEN_EXPIRED", "the token has expired: come back with a new one")
}

pub(super) fn open_timeout() -> Failure {
    Failure::new(ErrorCode::DeadlineExceeded, "OPEN_TIMEOUT", "no open frame came in time")
}

pub(super) fn open_first() -> Failure {
    Failure::new(ErrorCode::FailedPrecondition, "OPEN_FIRST", "the first frame must be open")
}

pub(super) fn no_pong() -> Failure {
    Failure::new(ErrorCode::DeadlineExceeded, "NO_PONG", "nothing came from the client after a ping")
}

pub(super) fn slow_consumer() -> Failure {
    // The class that core gives it too.
    Failure::new(ErrorCode::Unavailable, "SLOW_CONSUMER", "the client does not take what is sent; come back and resume")
}

pub(super) fn too_big(limit: usize) -> Failure {
    let message = format!("a frame may have at most {limit} bytes");
    Failure::new(ErrorCode::ResourceExhausted, "FRAME_TOO_BIG", message)
}

pub(super) fn too_many_connections() -> Failure {
    let message = "this user has as many connections as allowed";
    Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_CONNECTIONS", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_closes_with_the_code_of_the_table() {
        for code in chatbox_proto::error_code::ALL {
            assert_eq!(code_of(&Failure::new(*code, "SOME_REASON", "x")), code.close());
        }
        assert_eq!(code_of(&core_api::core_unavailable()), 4013);
        assert_eq!(code_of(&token_expired()), 4012);
        assert_eq!(code_of(&slow_consumer()), 4010);
    }

    #[test]
    fn the_event_carries_the_code_of_the_close_frame() {
        let ending = Ending::failed(4015, open_timeout(), String::new());
        let Some(chat_response::Event::Error(error)) = &ending.event else { panic!("no error event") };
        assert_eq!((ending.code, error.close_code), (4015, 4015));
        assert!(ending.reason.len() <= 123);
    }
}

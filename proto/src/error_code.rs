//! The one table of errors: what a class means on gRPC, over HTTP and as a WebSocket close code.

use tonic::Code;

use crate::v1;

/// The domain of every `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "chatbox.v1";

/// What went wrong, as a class a program can branch on. Think twice before adding one: detail belongs into the reason tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the meanings are written once, at `ErrorCode` in error.proto")]
pub enum ErrorCode {
    Cancelled,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

/// One row of the table.
struct Row {
    code: ErrorCode,
    wire: v1::ErrorCode,
    grpc: Code,
    http: u16,
    /// The close code when an error of this class ends a connection.
    close: u16,
    /// Repeating the same call later may succeed.
    retryable: bool,
}

macro_rules! table {
    ($($code:ident $http:literal $close:literal $retry:literal),* $(,)?) => {
        /// Every class, in the order of the gRPC codes.
        pub const ALL: &[ErrorCode] = &[$(ErrorCode::$code),*];

        const fn row(code: ErrorCode) -> Row {
            match code {
                $(ErrorCode::$code => Row {
                    code: ErrorCode::$code,
                    wire: v1::ErrorCode::$code,
                    grpc: Code::$code,
                    http: $http,
                    close: $close,
                    retryable: $retry,
                }),*
            }
        }
    };
}

// Close codes: see `close` below for the two classes.
//  class             HTTP close retryable
table! {
    Cancelled          499 4000 true,
    InvalidArgument    400 1008 false,
    DeadlineExceeded   504 4001 true,
    NotFound           404 4104 false,
    AlreadyExists      409 4109 false,
    PermissionDenied   403 4103 false,
    ResourceExhausted  429 4029 true,
    FailedPrecondition 409 4112 false,
    Aborted            409 4002 true,
    OutOfRange         400 4116 false,
    Unimplemented      501 4115 false,
    Internal           500 1011 true,
    Unavailable        503 4003 true,
    DataLoss           500 1011 false,
    Unauthenticated    401 4101 false,
}

impl ErrorCode {
    /// The value on the wire.
    #[must_use]
    pub const fn wire(self) -> v1::ErrorCode {
        row(self).wire
    }

    /// The gRPC status code.
    #[must_use]
    pub const fn grpc(self) -> Code {
        row(self).grpc
    }

    /// The HTTP status.
    #[must_use]
    pub const fn http(self) -> u16 {
        row(self).http
    }

    /// The WebSocket close code when an error of this class ends a connection.
    #[must_use]
    pub const fn close(self) -> u16 {
        row(self).close
    }

    /// Whether repeating the same call later may succeed.
    #[must_use]
    pub const fn retryable(self) -> bool {
        row(self).retryable
    }

    /// From a gRPC status code; `Unknown`, which is what a status without meaning has, is a fault of ours.
    #[must_use]
    pub fn from_grpc(code: Code) -> Self {
        ALL.iter().copied().find(|known| row(*known).grpc == code).unwrap_or(Self::Internal)
    }

    /// From the wire; an unknown value is a fault of ours.
    #[must_use]
    pub fn from_wire(code: v1::ErrorCode) -> Self {
        ALL.iter().copied().find(|known| row(*known).wire == code).unwrap_or(Self::Internal)
    }

    /// Whether the class is the caller's doing: such errors are no faults and are logged at `debug`.
    #[must_use]
    pub fn is_callers_fault(self) -> bool {
        !matches!(row(self).code, Self::Internal | Self::Unavailable | Self::DataLoss | Self::DeadlineExceeded)
    }
}

/// WebSocket close codes that have no error class behind them. Codes below 4100 (and 1001, 1011, 1012, 1013) mean: come
/// back and resume. Codes from 4100 on (and 1002, 1003, 1007, 1008, 1009) mean: do not reconnect unchanged.
pub mod close {
    /// The client left, or its session stream ended in order.
    pub const NORMAL: u16 = 1000;
    /// The server is leaving; resume elsewhere.
    pub const GOING_AWAY: u16 = 1001;
    /// A violation of RFC 6455.
    pub const PROTOCOL: u16 = 1002;
    /// Text where the subprotocol wants binary frames, or the other way round.
    pub const UNSUPPORTED: u16 = 1003;
    /// Too many frames that could not be decoded.
    pub const POLICY: u16 = 1008;
    /// A frame above the limit.
    pub const TOO_BIG: u16 = 1009;
    /// A fault of ours.
    pub const INTERNAL: u16 = 1011;
    /// Too many connections now; see `retry_after`.
    pub const TRY_LATER: u16 = 1013;
    /// The reader was too slow for its bounded queue: resume.
    pub const SLOW_CONSUMER: u16 = 4010;
    /// No pong within the time limit: resume.
    pub const NO_PONG: u16 = 4011;
    /// The token expired: refresh it and resume.
    pub const TOKEN_EXPIRED: u16 = 4012;
    /// Core could not be reached or went away: resume.
    pub const CORE_UNAVAILABLE: u16 = 4013;
    /// Too many frames per second: slow down and resume.
    pub const RATE_LIMITED: u16 = 4014;
    /// No `open` within the time limit, or something else before it.
    pub const OPEN_TIMEOUT: u16 = 4015;
    /// No acceptable token.
    pub const UNAUTHENTICATED: u16 = 4101;
    /// The user has as many connections as allowed.
    pub const TOO_MANY_CONNECTIONS: u16 = 4110;

    /// Whether a client may come back and resume.
    #[must_use]
    pub const fn may_resume(code: u16) -> bool {
        matches!(code, 1001 | 1005 | 1006 | 1011..=1014 | 4000..=4099)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_one_row_with_the_numbers_of_grpc() {
        for code in ALL {
            let row = row(*code);
            assert_eq!(row.code, *code);
            assert_eq!(row.wire as i32, row.grpc as i32, "{code:?}");
            assert_eq!(ErrorCode::from_grpc(row.grpc), *code);
            assert_eq!(ErrorCode::from_wire(row.wire), *code);
        }
    }

    #[test]
    fn a_retryable_class_closes_with_a_code_that_allows_to_resume() {
        for code in ALL {
            // 1011 is retryable by RFC 6455 whatever the cause.
            if code.close() != close::INTERNAL {
                assert_eq!(close::may_resume(code.close()), code.retryable(), "{code:?}");
            }
        }
    }

    #[test]
    fn statuses_of_strangers_have_a_class() {
        assert_eq!(ErrorCode::from_grpc(Code::Unknown), ErrorCode::Internal);
        assert_eq!(ErrorCode::from_wire(v1::ErrorCode::Unspecified), ErrorCode::Internal);
    }
}

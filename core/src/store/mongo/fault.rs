//! What can go wrong below the trait, and what a caller can do about it. Decided by the driver's kinds, codes and labels,
//! never by its texts; and those texts are not kept where they could hold what was stored.

use mongodb::error::{Error, ErrorKind, NO_WRITES_PERFORMED, WriteConcernError, WriteFailure};

use crate::store::{StoreError, StoreErrorKind};

/// The server's codes that mean something to us.
const DUPLICATE_KEY: i32 = 11_000;
const OUT_OF_DISK_SPACE: i32 = 14_031;
const UNAUTHORIZED: i32 = 13;
const AUTHENTICATION_FAILED: i32 = 18;

/// A failure of one call. Cheap enough to clone: a failed write is the failure of everything in its group.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Fault {
    /// What the driver or the server said.
    #[error("{what}")]
    Driver { what: String, class: Class },
    #[error("no answer in time")]
    TimedOut,
    #[error("closed")]
    Closed,
    #[error("{0}")]
    Refused(String),
    #[error("not what was written: {0}")]
    Corrupt(&'static str),
    #[error("wrong use: {0}")]
    Misuse(&'static str),
}

/// What is certain after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A unique key exists already; nothing was written.
    Duplicate,
    /// Nothing was written.
    NotDone(StoreErrorKind),
    /// A write may have been done, now or later.
    Unclear,
}

/// Whether a call can have changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Access {
    /// What a failure means of which nothing is certain.
    pub(super) fn unclear(self) -> StoreErrorKind {
        match self {
            Self::Read => StoreErrorKind::Unavailable,
            Self::Write => StoreErrorKind::OutcomeUnknown,
        }
    }
}

impl Fault {
    pub(super) fn kind(&self, access: Access) -> StoreErrorKind {
        match self {
            Self::Driver { class: Class::NotDone(kind), .. } => *kind,
            Self::Driver { class: Class::Unclear, .. } | Self::TimedOut => access.unclear(),
            Self::Closed => StoreErrorKind::Unavailable,
            Self::Refused(_) => StoreErrorKind::Refused,
            Self::Corrupt(_) => StoreErrorKind::Corrupt,
            Self::Driver { class: Class::Duplicate, .. } | Self::Misuse(_) => StoreErrorKind::Internal,
        }
    }

    pub(super) fn during(self, operation: &'static str, access: Access) -> StoreError {
        StoreError::new(self.kind(access), operation, self)
    }

    pub(super) fn is_duplicate(&self) -> bool {
        matches!(self, Self::Driver { class: Class::Duplicate, .. })
    }

    /// One document of a group that was not written, by its code.
    pub(super) fn write_error(code: i32) -> Self {
        let class = match code {
            DUPLICATE_KEY => Class::Duplicate,
            OUT_OF_DISK_SPACE => Class::NotDone(StoreErrorKind::Full),
            // Among the others are those of a primary that steps down, about which too little is certain.
            _ => Class::Unclear,
        };
        Self::Driver { what: format!("write error {code}"), class }
    }

    /// Written on the primary, and nobody knows whether a majority will have it.
    pub(super) fn write_concern(error: &WriteConcernError) -> Self {
        let what = format!("write concern error {} ({})", error.code, error.code_name);
        Self::Driver { what, class: Class::Unclear }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let class = class_of(&error);
        Self::Driver { what: describe(&error.kind), class }
    }
}

fn class_of(error: &Error) -> Class {
    if let ErrorKind::Write(WriteFailure::WriteError(error)) = &*error.kind
        && let Fault::Driver { class, .. } = Fault::write_error(error.code)
    {
        return class;
    }
    if let ErrorKind::Command(command) = &*error.kind {
        match command.code {
            DUPLICATE_KEY => return Class::Duplicate,
            UNAUTHORIZED | AUTHENTICATION_FAILED => return Class::NotDone(StoreErrorKind::Refused),
            _ => {}
        }
    }
    if matches!(&*error.kind, ErrorKind::Authentication { .. } | ErrorKind::IncompatibleServer { .. }) {
        return Class::NotDone(StoreErrorKind::Refused);
    }
    if matches!(
        &*error.kind,
        ErrorKind::InvalidArgument { .. } | ErrorKind::Bson(_) | ErrorKind::InvalidTlsConfig { .. }
    ) {
        return Class::NotDone(StoreErrorKind::Internal);
    }
    // Without a server nothing was sent; when something had been sent before, the driver reports that failure instead.
    if matches!(&*error.kind, ErrorKind::ServerSelection { .. } | ErrorKind::Shutdown)
        || error.contains_label(NO_WRITES_PERFORMED)
    {
        return Class::NotDone(StoreErrorKind::Unavailable);
    }
    Class::Unclear
}

/// For the log. The texts of commands that failed may quote what was to be stored; those of the network do not.
fn describe(kind: &ErrorKind) -> String {
    if let ErrorKind::Command(error) = kind {
        return format!("command error {} ({})", error.code, error.code_name);
    }
    if let ErrorKind::Write(WriteFailure::WriteError(error)) = kind {
        return format!("write error {}", error.code);
    }
    if let ErrorKind::Write(WriteFailure::WriteConcernError(error)) = kind {
        return format!("write concern error {} ({})", error.code, error.code_name);
    }
    if matches!(
        kind,
        ErrorKind::Io(_)
            | ErrorKind::ServerSelection { .. }
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::Authentication { .. }
            | ErrorKind::IncompatibleServer { .. }
            | ErrorKind::InvalidTlsConfig { .. }
            | ErrorKind::Shutdown
    ) {
        return kind.to_string();
    }
    "the driver failed".to_owned()
}

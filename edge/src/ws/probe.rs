//! What the edge makes of bytes, for tests that feed it any: the same functions as on a live socket, without one.

use bytes::Bytes;
use chatbox_proto::{
    peek::{self, Event},
    status::Failure,
};

pub use super::frame::Untranslatable;
use super::frame::{self, Dialect, Kind, Payload};

/// A frame that the edge would pass on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its request id.
    pub request_id: String,
    /// What the edge itself does about it.
    pub kind: &'static str,
    /// The token that came with it.
    pub token: String,
    /// What goes to core.
    pub bytes: Bytes,
}

/// A frame that the edge would answer itself.
#[derive(Debug, Clone)]
pub struct Refused {
    /// The request id, as far as it could be found.
    pub request_id: String,
    /// The answer.
    pub failure: Failure,
}

fn dialect(json: bool) -> Dialect {
    if json { Dialect::Json } else { Dialect::Proto }
}

/// Reads a client's frame.
///
/// # Errors
/// [`Refused`] for one that does not decode.
pub fn decode(json: bool, bytes: Bytes) -> Result<Taken, Refused> {
    let frame = frame::decode(dialect(json), bytes)
        .map_err(|bad| Refused { request_id: bad.request_id, failure: bad.failure })?;
    let (kind, token) = match frame.kind {
        Kind::Open(token) => ("open", token),
        Kind::RefreshToken(token) => ("refresh_token", token),
        Kind::Detach | Kind::EndSession => ("leave", String::new()),
        Kind::Send(_) | Kind::Repeatable | Kind::Typing | Kind::Other => ("other", String::new()),
    };
    Ok(Taken { request_id: frame.request_id, kind, token, bytes: frame.bytes })
}

/// An event of core's as a client gets it.
///
/// # Errors
/// When it does not decode.
pub fn translate(json: bool, event: Bytes) -> Result<Bytes, Untranslatable> {
    Ok(match frame::translate(dialect(json), event)? {
        Payload::Text(text) => text.into(),
        Payload::Binary(bytes) => bytes,
    })
}

/// The close code that an event asks for.
#[must_use]
pub fn closes_with(event: &Bytes) -> Option<u16> {
    match peek::event(event) {
        Event::Error { close_code, .. } | Event::GoingAway { close_code } => frame::close_code(close_code),
        Event::Opened
        | Event::Entry { .. }
        | Event::Piece { .. }
        | Event::CaughtUp
        | Event::TokenExpiring
        | Event::Ack { .. }
        | Event::Other => None,
    }
}

//! What a frame means now. Pure state: no socket, no core, no clock but the one handed in.

use bytes::Bytes;
use chatbox_proto::{
    error_code::{ErrorCode, close},
    status::Failure,
    token::Identity,
    v1,
};

use super::{
    close::{self as ends, Ending},
    frame::{ClientFrame, Kind},
};

/// Where a connection is. `New` becomes `Opening` by the first frame, `Opening` becomes `Live` when core has the stream, and
/// `Live` becomes `Detaching` by `detach` or `Ending` by `end_session`. Another stream to core changes nothing here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Opening,
    Live,
    Detaching,
    Ending,
}

#[derive(Debug)]
pub(super) struct Session {
    phase: Phase,
    identity: Option<Identity>,
    /// The request id of `open`: whatever goes wrong until core has the stream is the answer to it.
    open_request_id: String,
}

/// What is to be done about a frame.
#[derive(Debug)]
pub(super) enum Step {
    Forward(ClientFrame),
    /// Verify the token unless the handshake brought one, and bring the stream to core up with this first frame.
    Open {
        token: Option<String>,
        frame: Bytes,
    },
    /// Verify the new token, then forward the frame: core verifies it itself and acknowledges.
    Refresh {
        token: String,
        request_id: String,
        frame: Bytes,
    },
    /// Forward; the stream may end in order from here on.
    Leave(ClientFrame),
    Answer(Box<v1::Error>),
    End(Box<Ending>),
}

impl Session {
    /// With the identity of the handshake, if it brought a token.
    pub(super) fn new(identity: Option<Identity>) -> Self {
        Self { phase: Phase::New, identity, open_request_id: String::new() }
    }

    pub(super) fn on_frame(&mut self, frame: ClientFrame) -> Step {
        let ClientFrame { request_id, kind, bytes } = frame;
        match (self.phase, kind) {
            (Phase::New, Kind::Open(token)) => {
                self.phase = Phase::Opening;
                self.open_request_id = request_id;
                let token = if self.identity.is_some() { None } else { Some(token) };
                if token.as_deref() == Some("") {
                    return Step::End(Box::new(self.refused()));
                }
                Step::Open { token, frame: bytes }
            }
            (
                Phase::New,
                Kind::RefreshToken(_)
                | Kind::Send(_)
                | Kind::Repeatable
                | Kind::Typing
                | Kind::Detach
                | Kind::EndSession
                | Kind::Other,
            ) => Step::End(Box::new(Ending::failed(close::OPEN_TIMEOUT, ends::open_first(), request_id))),
            (Phase::Live, Kind::RefreshToken(token)) => Step::Refresh { token, request_id, frame: bytes },
            (Phase::Live, kind @ Kind::Detach) => {
                self.phase = Phase::Detaching;
                Step::Leave(ClientFrame { request_id, kind, bytes })
            }
            (Phase::Live, kind @ Kind::EndSession) => {
                self.phase = Phase::Ending;
                Step::Leave(ClientFrame { request_id, kind, bytes })
            }
            // A second `open` too: core knows the answer.
            (Phase::Live, kind @ (Kind::Open(_) | Kind::Send(_) | Kind::Repeatable | Kind::Typing | Kind::Other)) => {
                Step::Forward(ClientFrame { request_id, kind, bytes })
            }
            (Phase::Opening | Phase::Detaching | Phase::Ending, _) => {
                let failure = Failure::new(ErrorCode::FailedPrecondition, "LEAVING", "this stream is ending");
                Step::Answer(Box::new(failure.into_event(request_id)))
            }
        }
    }

    /// Core has the stream.
    pub(super) fn opened(&mut self, identity: Identity) {
        self.phase = Phase::Live;
        self.identity = Some(identity);
    }

    /// Takes the identity of a new token.
    ///
    /// # Errors
    /// When it is of somebody else, or has other rights.
    pub(super) fn refreshed(&mut self, identity: Identity) -> Result<(), Failure> {
        if self.identity.as_ref().is_some_and(|known| known.same_caller(&identity)) {
            self.identity = Some(identity);
            return Ok(());
        }
        Err(Failure::invalid("refresh_token.token", "must have the same subject, roles and scopes as the one before"))
    }

    /// The client wants the stream to end.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Detaching | Phase::Ending)
    }

    /// The client wants nothing but to leave.
    pub(super) fn is_detaching(&self) -> bool {
        self.phase == Phase::Detaching
    }

    /// No acceptable token.
    pub(super) fn refused(&self) -> Ending {
        self.not_opened(close::UNAUTHENTICATED, Failure::unauthenticated())
    }

    /// `open` could not be carried out.
    pub(super) fn not_opened(&self, code: u16, failure: Failure) -> Ending {
        Ending::failed(code, failure, self.open_request_id.clone())
    }

    pub(super) fn open_request_id(&self) -> &str {
        &self.open_request_id
    }

    /// Whether the client may be told about its token.
    pub(super) fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    pub(super) fn is_new(&self) -> bool {
        self.phase == Phase::New
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }
}

#[cfg(test)]
mod tests;

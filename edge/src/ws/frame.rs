//! Frames and events in the two subprotocols: canonical JSON in text frames, or protobuf in binary frames. Core speaks
//! protobuf; binary payloads pass through as they are.

use bytes::Bytes;
use chatbox_proto::{
    ids::is_client_id,
    json,
    peek::{self, FrameKind},
    status::Failure,
    v1::{ChatRequest, ChatResponse, chat_request, chat_response},
};
use prost::Message as _;
use serde::Deserialize;

/// A subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Json,
    Proto,
}

impl Dialect {
    const ALL: [Self; 2] = [Self::Json, Self::Proto];

    /// As offered and chosen in `Sec-WebSocket-Protocol`.
    pub(super) const fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "chatbox.v1.json",
            Self::Proto => "chatbox.v1.proto",
        }
    }

    pub(super) fn from_subprotocol(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| dialect.subprotocol() == name)
    }
}

/// What a socket carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Payload {
    Text(String),
    Binary(Bytes),
}

/// A frame of the client, as far as the edge needs to know it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientFrame {
    pub(super) request_id: String,
    pub(super) kind: Kind,
    /// The encoded `ChatRequest`, without a token.
    pub(super) bytes: Bytes,
}

/// Which frame, where that matters to the edge.
#[derive(PartialEq, Eq)]
pub(super) enum Kind {
    /// The token that came with it; empty: none.
    Open(String),
    RefreshToken(String),
    /// Its client message id.
    Send(String),
    /// `stop` or `read`: doing it twice is doing it once.
    Repeatable,
    Typing,
    /// The stream may end in order after it.
    Detach,
    /// The same.
    EndSession,
    /// Everything else: what doing it twice means is not known here.
    Other,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open(_) => "Open",
            Self::RefreshToken(_) => "RefreshToken",
            Self::Send(_) => "Send",
            Self::Repeatable => "Repeatable",
            Self::Typing => "Typing",
            Self::Detach => "Detach",
            Self::EndSession => "EndSession",
            Self::Other => "Other",
        })
    }
}

/// A frame that could not be decoded, with the request id as far as it could be found.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) request_id: String,
    pub(super) failure: Failure,
}

impl Malformed {
    fn new(request_id: String, failure: Failure) -> Box<Self> {
        let request_id = if is_client_id(&request_id) { request_id } else { String::new() };
        Box::new(Self { request_id, failure })
    }
}

/// Reads a frame.
///
/// # Errors
/// What is wrong with it, naming the field.
pub(super) fn decode(dialect: Dialect, payload: Bytes) -> Result<ClientFrame, Box<Malformed>> {
    let frame = match dialect {
        Dialect::Json => {
            let request = json::from_slice::<ChatRequest>(&payload)
                .map_err(|failure| Malformed::new(request_id_of(&payload), failure))?;
            read(request)?
        }
        Dialect::Proto => {
            let peeked = peek::Frame::decode(payload.clone()).map_err(|_| undecodable())?;
            let kind = match peeked.kind {
                Some(FrameKind::Open(_) | FrameKind::RefreshToken(_)) => None,
                Some(FrameKind::Send(send)) => Some(Kind::Send(send.client_message_id)),
                Some(FrameKind::Stop(_) | FrameKind::Read(_)) => Some(Kind::Repeatable),
                Some(FrameKind::Typing(_)) => Some(Kind::Typing),
                Some(FrameKind::Detach(_)) => Some(Kind::Detach),
                Some(FrameKind::EndSession(_)) => Some(Kind::EndSession),
                Some(FrameKind::Regenerate(_) | FrameKind::SelectModel(_) | FrameKind::RequestHelp(_)) => {
                    Some(Kind::Other)
                }
                None => return Err(Malformed::new(peeked.request_id, no_frame())),
            };
            match kind {
                Some(kind) => ClientFrame { request_id: peeked.request_id, kind, bytes: payload },
                // Those with a token are changed on the way.
                None => read(ChatRequest::decode(payload).map_err(|_| undecodable())?)?,
            }
        }
    };
    if is_client_id(&frame.request_id) {
        return Ok(frame);
    }
    let rule = "at most 64 printable ASCII characters, no spaces";
    Err(Malformed::new(String::new(), Failure::invalid("request_id", rule)))
}

fn read(mut request: ChatRequest) -> Result<ClientFrame, Box<Malformed>> {
    use chat_request::Frame;
    let kind = match &mut request.frame {
        // The token travels in the metadata from here on.
        Some(Frame::Open(open)) => Kind::Open(std::mem::take(&mut open.token)),
        Some(Frame::RefreshToken(refresh)) => Kind::RefreshToken(refresh.token.clone()),
        Some(Frame::Send(send)) => Kind::Send(send.client_message_id.clone()),
        Some(Frame::Stop(_) | Frame::Read(_)) => Kind::Repeatable,
        Some(Frame::Typing(_)) => Kind::Typing,
        Some(Frame::Detach(_)) => Kind::Detach,
        Some(Frame::EndSession(_)) => Kind::EndSession,
        Some(Frame::Regenerate(_) | Frame::SelectModel(_) | Frame::RequestHelp(_)) => Kind::Other,
        None => return Err(Malformed::new(request.request_id, no_frame())),
    };
    let bytes = request.encode_to_vec().into();
    Ok(ClientFrame { request_id: request.request_id, kind, bytes })
}

fn undecodable() -> Box<Malformed> {
    Malformed::new(String::new(), Failure::invalid("frame", "is not a valid protobuf message chatbox.v1.ChatRequest"))
}

fn no_frame() -> Failure {
    Failure::invalid("frame", "must be one of open, send, stop and the other frames of chatbox.v1.ChatRequest")
}

/// The request id of a frame whose other fields are wrong.
fn request_id_of(json: &[u8]) -> String {
    #[derive(Deserialize)]
    struct OnlyId {
        #[serde(default, alias = "request_id", rename = "requestId")]
        request_id: String,
    }
    serde_json::from_slice::<OnlyId>(json).map(|frame| frame.request_id).unwrap_or_default()
}

/// Writes an event of the edge's own.
pub(super) fn encode(dialect: Dialect, event: chat_response::Event) -> Payload {
    let event = ChatResponse { event: Some(event) };
    match dialect {
        Dialect::Json => Payload::Text(json::to_string(&event)),
        Dialect::Proto => Payload::Binary(event.encode_to_vec().into()),
    }
}

/// An event of core's that does not decode, or holds a value that JSON has no form for: a fault between core and edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Untranslatable;

impl std::fmt::Display for Untranslatable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the event cannot be translated")
    }
}

/// Writes an event of core's.
///
/// # Errors
/// When it is none.
pub(super) fn translate(dialect: Dialect, event: Bytes) -> Result<Payload, Untranslatable> {
    match dialect {
        Dialect::Json => {
            let event = ChatResponse::decode(event).map_err(|_| Untranslatable)?;
            Ok(Payload::Text(json::try_to_string(&event).ok_or(Untranslatable)?))
        }
        Dialect::Proto => Ok(Payload::Binary(event)),
    }
}

/// A close code that may stand in a close frame.
pub(super) fn close_code(code: u32) -> Option<u16> {
    u16::try_from(code).ok().filter(|code| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999))
}

#[cfg(test)]
mod tests;

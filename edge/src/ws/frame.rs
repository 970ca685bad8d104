//! Frames and events in the two subprotocols: canonical JSON in text frames, or protobuf in binary frames. Core speaks
//! protobuf; binary payloads pass through as they are.

use bytes::Bytes;
use chatbox_proto::{
    json,
    peek::{self, FrameKind},
    status::Failure,
    v1::{ChatRequest, ChatResponse, chat_request, chat_response},
};
use prost::Message as _;
use serde::Deserialize;

const MAX_REQUEST_ID: usize = 64;

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
    /// `detach` or `end_session`: the stream may end in order after it.
    Leave,
    Other,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open(_) => "Open",
            Self::RefreshToken(_) => "RefreshToken",
            Self::Leave => "Leave",
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
        let request_id = if is_request_id(&request_id) { request_id } else { String::new() };
        Box::new(Self { request_id, failure })
    }
}

fn is_request_id(id: &str) -> bool {
    id.len() <= MAX_REQUEST_ID && id.bytes().all(|b| (b' '..=b'~').contains(&b))
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
            match peeked.kind {
                Some(FrameKind::Open(_) | FrameKind::RefreshToken(_)) => {
                    read(ChatRequest::decode(payload).map_err(|_| undecodable())?)?
                }
                Some(FrameKind::Detach(_) | FrameKind::EndSession(_)) => {
                    ClientFrame { request_id: peeked.request_id, kind: Kind::Leave, bytes: payload }
                }
                Some(_) => ClientFrame { request_id: peeked.request_id, kind: Kind::Other, bytes: payload },
                None => return Err(Malformed::new(peeked.request_id, no_frame())),
            }
        }
    };
    if is_request_id(&frame.request_id) {
        return Ok(frame);
    }
    let rule = "must have at most 64 printable ASCII characters";
    Err(Malformed::new(String::new(), Failure::invalid("request_id", rule)))
}

fn read(mut request: ChatRequest) -> Result<ClientFrame, Box<Malformed>> {
    use chat_request::Frame;
    let kind = match &mut request.frame {
        // The token travels in the metadata from here on.
        Some(Frame::Open(open)) => Kind::Open(std::mem::take(&mut open.token)),
        Some(Frame::RefreshToken(refresh)) => Kind::RefreshToken(refresh.token.clone()),
        Some(Frame::Detach(_) | Frame::EndSession(_)) => Kind::Leave,
        Some(
            Frame::Send(_)
            | Frame::Stop(_)
            | Frame::Regenerate(_)
            | Frame::SelectModel(_)
            | Frame::RequestHelp(_)
            | Frame::Typing(_)
            | Frame::Read(_),
        ) => Kind::Other,
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

/// What the edge wants to know about an event that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    TokenExpiring,
    /// The close code that core asks for when the stream ends.
    ClosesWith(u16),
    Nothing,
}

/// Looks at an event. `ChatResponse` has one field, so its first byte is the tag of the event: most are told by it alone.
pub(super) fn look(event: &Bytes) -> Passing {
    const LENGTH_DELIMITED: u8 = 2;
    const TOKEN_EXPIRING: u8 = (9 << 3) | LENGTH_DELIMITED;
    const ERROR: u8 = (11 << 3) | LENGTH_DELIMITED;
    const GOING_AWAY: u8 = (12 << 3) | LENGTH_DELIMITED;

    let close_code = match event.first() {
        Some(&TOKEN_EXPIRING) => return Passing::TokenExpiring,
        Some(&(ERROR | GOING_AWAY)) => match ChatResponse::decode(event.clone()).ok().and_then(|event| event.event) {
            Some(chat_response::Event::Error(error)) => error.close_code,
            Some(chat_response::Event::GoingAway(going)) => going.close_code,
            _ => 0,
        },
        _ => 0,
    };
    match u16::try_from(close_code) {
        Ok(code @ (1000..=1003 | 1007..=1014 | 3000..=4999)) => Passing::ClosesWith(code),
        Ok(_) | Err(_) => Passing::Nothing,
    }
}

#[cfg(test)]
mod tests;

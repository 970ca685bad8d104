//! Whom the load generator talks to, and what it says.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use chatbox_proto::{
    json,
    v1::{
        ChatRequest,
        chat_request::{Frame, Open, Read},
    },
};
use chatbox_tests::harness::{
    token::{Minter, claims},
    ws::Encoding,
};
use prost::Message as _;

use super::frame;

/// Payload of the frames that are measured.
pub(crate) const FRAME_BYTES: usize = 200;

/// A field that no version of the contract has: receivers skip it.
const UNKNOWN_FIELD: u32 = 1_000;

/// What a message of the peer means to the load generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The answer to one frame.
    Answer,
    /// The stream is open.
    Ready,
    /// Something was refused.
    Failed,
    Other,
}

/// Both sides of a comparison look alike to the load generator.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// Sends back what it gets.
    Echo(SocketAddr),
    /// The edge, with users whose names begin with the text.
    Product { address: SocketAddr, encoding: Encoding, users: String, minter: Minter },
}

impl Peer {
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Echo(address) | Self::Product { address, .. } => *address,
        }
    }

    /// The handshake of one connection. Each is another user with a session of its own.
    pub(crate) fn upgrade(&self, number: usize) -> Result<String> {
        let (path, more) = match self {
            Self::Echo(_) => ("/", String::new()),
            Self::Product { encoding, users, minter, .. } => {
                let token = minter.mint(&claims(&format!("{users}-{number}"), "user"))?;
                let subprotocol = encoding.subprotocol();
                let more = format!("Sec-WebSocket-Protocol: {subprotocol}\r\nAuthorization: Bearer {token}\r\n");
                ("/chatbox/ws", more)
            }
        };
        Ok(format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n",
            self.address(),
        ))
    }

    /// The frame that opens the stream, where one does.
    pub(crate) fn open(&self) -> Option<Vec<u8>> {
        let open = ChatRequest { request_id: "open".to_owned(), frame: Some(Frame::Open(Open::default())) };
        self.frame(&open)
    }

    /// A frame of the contract as this peer takes it.
    pub(crate) fn frame(&self, request: &ChatRequest) -> Option<Vec<u8>> {
        match self {
            Self::Echo(_) => None,
            Self::Product { encoding: Encoding::Proto, .. } => Some(frame::binary(&request.encode_to_vec())),
            Self::Product { encoding: Encoding::Json, .. } => Some(frame::text(json::to_string(request).as_bytes())),
        }
    }

    /// A frame of [`FRAME_BYTES`] that is answered and changes nothing: somebody has read nothing yet. What it lacks is filled
    /// with a field that nobody knows.
    pub(crate) fn ping(&self) -> Result<Vec<u8>> {
        let read = ChatRequest {
            request_id: "f81d4fae7dec11d0a76500a0c91e6bf6".to_owned(),
            frame: Some(Frame::Read(Read::default())),
        };
        Ok(match self {
            Self::Echo(_) => frame::binary(&[b'x'; FRAME_BYTES]),
            Self::Product { encoding: Encoding::Proto, .. } => {
                let mut bytes = read.encode_to_vec();
                let head = prost::encoding::encoded_len_varint(u64::from(UNKNOWN_FIELD) << 3) + 2;
                let padding = FRAME_BYTES.checked_sub(bytes.len() + head).context("the frame is too long")?;
                prost::encoding::string::encode(UNKNOWN_FIELD, &"x".repeat(padding), &mut bytes);
                debug_assert_eq!(bytes.len(), FRAME_BYTES);
                frame::binary(&bytes)
            }
            Self::Product { encoding: Encoding::Json, .. } => {
                let text = json::to_string(&read);
                let text = text.strip_suffix('}').context("JSON of a message is an object")?;
                let padding = FRAME_BYTES.checked_sub(text.len() + r#","unknown":""}"#.len());
                let padding = "x".repeat(padding.context("the frame is too long")?);
                let text = format!(r#"{text},"unknown":"{padding}"}}"#);
                debug_assert_eq!(text.len(), FRAME_BYTES);
                frame::text(text.as_bytes())
            }
        })
    }

    /// What a message means, by its first bytes: the tag or the name of the event.
    pub(crate) fn kind(&self, message: &[u8]) -> Kind {
        const fn tag(field: u8) -> u8 {
            field << 3 | 2
        }
        const CAUGHT_UP: u8 = tag(5);
        const ACK: u8 = tag(10);
        const ERROR: u8 = tag(11);
        const GOING_AWAY: u8 = tag(12);
        match self {
            Self::Echo(_) => Kind::Answer,
            Self::Product { encoding: Encoding::Proto, .. } => match message.first() {
                Some(&ACK) => Kind::Answer,
                Some(&CAUGHT_UP) => Kind::Ready,
                Some(&(ERROR | GOING_AWAY)) => Kind::Failed,
                _ => Kind::Other,
            },
            Self::Product { encoding: Encoding::Json, .. } => {
                let is = |name: &str| message.starts_with(name.as_bytes());
                match () {
                    () if is(r#"{"ack""#) => Kind::Answer,
                    () if is(r#"{"caughtUp""#) => Kind::Ready,
                    () if is(r#"{"error""#) || is(r#"{"goingAway""#) => Kind::Failed,
                    () => Kind::Other,
                }
            }
        }
    }
}

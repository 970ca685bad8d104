//! HTTP/2 written by hand (RFC 9113), for clients that no library would be: it sends whatever a test wants in whatever order,
//! and reads only as far as it must.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::wait::{LIMIT, within};

/// What every connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
pub mod kind {
    #![expect(missing_docs, reason = "the names of RFC 9113 section 6")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    #![expect(missing_docs, reason = "the names of RFC 9113 section 6")]
    pub const NONE: u8 = 0;
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
}

/// Codes of errors (RFC 9113 section 7).
pub mod code {
    #![expect(missing_docs, reason = "the names of RFC 9113 section 7")]
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// A frame that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type, see [`kind`].
    pub kind: u8,
    /// Its flags, see [`flag`].
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// What it holds.
    pub payload: Vec<u8>,
}

/// The bytes of a frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A block of header fields, each as a literal that is not indexed (RFC 7541 section 6.2.2), without Huffman codes.
#[must_use]
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541 section 5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    const PREFIX: usize = 127;
    if length < PREFIX {
        block.push(length as u8);
        return;
    }
    block.push(PREFIX as u8);
    let mut rest = length - PREFIX;
    while rest > 127 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// The header fields of a gRPC call with this bearer token, or without one.
#[must_use]
pub fn call(path: &str, token: Option<&str>) -> Vec<u8> {
    let mut block = fields(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "core"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]);
    if let Some(token) = token {
        block.extend(fields(&[("authorization", &format!("Bearer {token}"))]));
    }
    block
}

/// A message as gRPC frames it.
#[must_use]
pub fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], &length[..], bytes].concat()
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this code in a GOAWAY.
    GoAway(u32),
    /// Without a word.
    Closed,
}

/// A connection.
#[derive(Debug)]
pub struct RawH2 {
    socket: TcpStream,
}

impl RawH2 {
    /// Connects from an address of this machine and says nothing.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn silent(from: IpAddr, to: SocketAddr) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((from, 0).into())?;
        let socket = within("a connection", LIMIT, socket.connect(to)).await??;
        socket.set_nodelay(true)?;
        Ok(Self { socket })
    }

    /// Connects and sends the preface and these settings.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(from: IpAddr, to: SocketAddr, settings: &[(u16, u32)]) -> Result<Self> {
        let mut connection = Self::silent(from, to).await?;
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        connection.send(&[PREFACE, &frame(kind::SETTINGS, flag::NONE, 0, &payload)].concat()).await?;
        Ok(connection)
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the peer has closed, or takes none for as long as a test waits.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        within("the peer takes bytes", LIMIT, self.socket.write_all(bytes)).await?.context("closed")
    }

    /// Sends as much as the peer takes without being read, and says whether it took all.
    pub async fn send_unread(&mut self, bytes: &[u8], patience: Duration) -> bool {
        matches!(timeout(patience, self.socket.write_all(bytes)).await, Ok(Ok(())))
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// When there is neither within the limit.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        let read = async {
            let mut head = [0; 9];
            self.socket.read_exact(&mut head).await?;
            let [a, b, c, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.socket.read_exact(&mut payload).await?;
            Ok::<_, io::Error>(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
        };
        // Reset or closed: gone is gone.
        Ok(within("a frame or the end", 3 * LIMIT, read).await?.ok())
    }

    /// Reads until `pick` takes a frame. Settings and pings are answered meanwhile.
    ///
    /// # Errors
    /// When the connection ends first.
    pub async fn until<T>(&mut self, what: &str, mut pick: impl FnMut(&Frame) -> Option<T>) -> Result<T> {
        while let Some(frame) = self.next().await? {
            if let Some(found) = pick(&frame) {
                return Ok(found);
            }
            if frame.kind == kind::GOAWAY {
                bail!("{:?} instead of {what}", go_away(&frame));
            }
            self.answer(&frame).await;
        }
        bail!("the end instead of {what}")
    }

    /// Reads until the peer ends the connection. Settings and pings are answered meanwhile.
    ///
    /// # Errors
    /// When it does not.
    pub async fn end(&mut self) -> Result<End> {
        let mut end = End::Closed;
        while let Some(frame) = self.next().await? {
            if frame.kind == kind::GOAWAY {
                end = End::GoAway(go_away(&frame));
            }
            self.answer(&frame).await;
        }
        Ok(end)
    }

    /// Waits until the peer ends the connection, without a word to it.
    ///
    /// # Errors
    /// When it does not.
    pub async fn end_in_silence(&mut self) -> Result<()> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    async fn answer(&mut self, came: &Frame) {
        if matches!(came.kind, kind::SETTINGS | kind::PING) && came.flags & flag::ACK == 0 {
            let payload: &[u8] = if came.kind == kind::PING { &came.payload } else { &[] };
            // It may be gone; who reads learns it.
            let _ = self.socket.write_all(&frame(came.kind, flag::ACK, 0, payload)).await;
        }
    }
}

/// The code in a GOAWAY.
fn go_away(frame: &Frame) -> u32 {
    frame.payload.get(4..8).map_or(0, |code| code.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte)))
}

/// The code in a `RST_STREAM`, when it is one.
#[must_use]
pub fn reset(frame: &Frame) -> Option<u32> {
    (frame.kind == kind::RST_STREAM)
        .then(|| frame.payload.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte)))
}

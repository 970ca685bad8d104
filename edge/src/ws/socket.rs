//! The raw WebSocket: limits, buffers, what a framing error means, and a close that the peer can read.

use std::{
    future::poll_fn,
    io::{self, Read, Write},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use chatbox_proto::error_code::close;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_tungstenite::tungstenite::{
    Error, Message,
    error::{CapacityError, ProtocolError},
    protocol::{CloseFrame, Role, WebSocket, WebSocketConfig},
};

use super::frame::Payload;
use crate::config::Config;

/// The write buffer only grows past its threshold while a client does not take what is sent, and nothing more is put in then:
/// one message beyond it. This is a net under that rule.
const MAX_WRITE_BUFFER: usize = 64 << 20;

/// What a peer may still have on the way when it is told to go: read and thrown away, so that the kernel does not answer
/// it with a reset that overtakes our close frame.
const MAX_LINGER_BYTES: usize = 1 << 20;

/// A WebSocket after its handshake. One task polls it, so one waker serves reading and writing.
#[derive(Debug)]
pub(super) struct Socket<S> {
    ws: WebSocket<Bridge<S>>,
    /// Reading is over: the close handshake is done, or the peer is gone or broke the framing.
    ended: bool,
    /// Both close frames were exchanged: nothing can be on its way any more.
    clean: bool,
}

/// A tokio stream as the blocking one that tungstenite wants: "would block" stands for pending.
#[derive(Debug)]
struct Bridge<S> {
    stream: S,
    waker: Waker,
}

fn blocking<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl<S: AsyncRead + Unpin> Read for Bridge<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        let cx = &mut Context::from_waker(&self.waker);
        blocking(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        Ok(buffer.filled().len())
    }
}

impl<S: AsyncWrite + Unpin> Write for Bridge<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let cx = &mut Context::from_waker(&self.waker);
        blocking(Pin::new(&mut self.stream).poll_write(cx, buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        let cx = &mut Context::from_waker(&self.waker);
        blocking(Pin::new(&mut self.stream).poll_flush(cx))
    }
}

/// "Would block" as pending.
fn polled<T>(result: Result<T, Error>) -> Poll<Result<T, Error>> {
    match result {
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        other => Poll::Ready(other),
    }
}

/// What came.
#[derive(Debug)]
pub(super) enum Incoming {
    Text(Bytes),
    Binary(Bytes),
    /// A ping or a pong. Pings are answered below.
    Control,
    /// The peer closes with this code; the answer is on its way.
    Close(u16),
    /// The peer is gone, or broke the framing: with the code to close with, 1006 when there is nobody to close.
    Broken(u16, &'static str),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Over a stream, with what was read of it already.
    pub(super) fn new(stream: S, read: Bytes, max_frame: usize, config: &Config) -> Self {
        let mut limits = WebSocketConfig::default()
            .read_buffer_size(config.socket.read_buffer.as_usize())
            .write_buffer_size(config.socket.write_buffer.as_usize())
            .max_write_buffer_size(MAX_WRITE_BUFFER);
        (limits.max_frame_size, limits.max_message_size) = (Some(max_frame), Some(max_frame));
        let bridge = Bridge { stream, waker: Waker::noop().clone() };
        let ws = if read.is_empty() {
            WebSocket::from_raw_socket(bridge, Role::Server, Some(limits))
        } else {
            WebSocket::from_partially_read(bridge, read.into(), Role::Server, Some(limits))
        };
        Self { ws, ended: false, clean: false }
    }

    /// Another limit for frames of the client.
    pub(super) fn set_max_frame(&mut self, max_frame: usize) {
        self.ws.set_config(|config| {
            config.max_frame_size = Some(max_frame);
            config.max_message_size = Some(max_frame);
        });
    }

    fn wake(&mut self, cx: &Context<'_>) {
        self.ws.get_mut().waker.clone_from(cx.waker());
    }

    /// What came next. Not to be called again after [`Incoming::Broken`].
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        self.wake(cx);
        let incoming = match std::task::ready!(polled(self.ws.read())) {
            Ok(Message::Text(text)) => Incoming::Text(text.into()),
            Ok(Message::Binary(bytes)) => Incoming::Binary(bytes),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => Incoming::Control,
            Ok(Message::Close(frame)) => Incoming::Close(frame.map_or(1005, |frame| frame.code.into())),
            Err(error) => {
                self.clean |= matches!(error, Error::ConnectionClosed);
                broken(&error)
            }
        };
        self.ended |= matches!(incoming, Incoming::Broken(..));
        Poll::Ready(incoming)
    }

    /// Feeds a message. It is taken in any case; call [`poll_flush`](Self::poll_flush) to know whether it went out.
    pub(super) fn feed(&mut self, cx: &mut Context<'_>, message: Message) -> Result<(), Error> {
        self.wake(cx);
        match polled(self.ws.write(message)) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.wake(cx);
        polled(self.ws.flush())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Reads to the end of the close handshake.
    async fn rest(&mut self) {
        while !self.ended {
            poll_fn(|cx| self.poll_read(cx)).await;
        }
    }

    /// Ends a connection whose peer has closed: the answer goes out.
    pub(super) async fn finish(&mut self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.rest()).await;
    }

    /// Ends a connection from this side: a last message, the close frame, and the peer's answer to it.
    pub(super) async fn close(&mut self, last: Option<Payload>, code: u16, reason: String, limit: Duration) {
        let closing = async {
            if let Some(payload) = last {
                poll_fn(|cx| Poll::Ready(self.feed(cx, message(payload.clone())))).await?;
            }
            let frame = CloseFrame { code: code.into(), reason: reason.into() };
            poll_fn(|cx| Poll::Ready(self.feed(cx, Message::Close(Some(frame.clone()))))).await?;
            self.flush().await?;
            self.rest().await;
            Ok::<_, Error>(())
        };
        let half = limit / 2;
        let _ = tokio::time::timeout(half, closing).await;
        if !self.clean {
            let _ = tokio::time::timeout(half, self.linger()).await;
        }
    }

    /// Says that nothing more comes, and reads until the peer does so too.
    async fn linger(&mut self) -> std::io::Result<()> {
        let stream = &mut self.ws.get_mut().stream;
        stream.shutdown().await?;
        let mut thrown_away = [0; 512];
        let mut total = 0;
        while total < MAX_LINGER_BYTES {
            match stream.read(&mut thrown_away).await? {
                0 => break,
                read => total += read,
            }
        }
        Ok(())
    }
}

pub(super) fn message(payload: Payload) -> Message {
    match payload {
        Payload::Text(text) => Message::Text(text.into()),
        Payload::Binary(bytes) => Message::Binary(bytes),
    }
}

/// RFC 6455 section 7.4.1.
fn broken(error: &Error) -> Incoming {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => Incoming::Broken(close::TOO_BIG, "FRAME_TOO_BIG"),
        Error::Utf8(_) => Incoming::Broken(1007, "NOT_UTF8"),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
        | Error::Io(_)
        | Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Tls(_) => Incoming::Broken(1006, "GONE"),
        Error::Capacity(_)
        | Error::Protocol(_)
        | Error::WriteBufferFull(_)
        | Error::AttackAttempt
        | Error::Url(_)
        | Error::Http(_)
        | Error::HttpFormat(_) => Incoming::Broken(close::PROTOCOL, "PROTOCOL_ERROR"),
    }
}

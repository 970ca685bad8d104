//! From events to the socket: the only part that writes. Everything that is ready is fed, then flushed once. While the
//! client does not take it, no event is asked for: core's queue for this subscriber is the one that merges.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

use bytes::Bytes;
use chatbox_proto::{status::Failure, v1::chat_response};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::Message;

use super::{
    frame::{self, Dialect},
    link::{Link, Next},
    socket::{Socket, message},
};
/// Answers of the edge's own that may wait while the client does not read. A client that neither reads nor stops asking is
/// too slow.
const MAX_ANSWERS: usize = 32;

/// Events fed in one go, before the socket is flushed and the reader gets its turn.
const MAX_BATCH: usize = 64;

#[derive(Debug)]
pub(super) struct Writer {
    dialect: Dialect,
    answers: VecDeque<Message>,
    sent: Counter,
    state: Flow,
    /// The client knows that its token expires.
    warned: bool,
    /// The close code that core has announced in its last error or going-away event.
    announced: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Nothing waits to be written.
    Clean,
    /// Something was fed since the last flush.
    Fed,
    /// A flush did not finish: the client is behind.
    Blocked,
}

/// Why the writer needs attention.
#[derive(Debug)]
pub(super) enum Attention {
    /// The stream from core has ended.
    EventsEnded(Result<(), Failure>),
    /// The socket does not take anything any more.
    SocketFailed,
    /// An event of core's does not decode.
    BadEvent,
}

impl Writer {
    pub(super) fn new(dialect: Dialect, sent: Counter) -> Self {
        Self { dialect, answers: VecDeque::new(), sent, state: Flow::Clean, warned: false, announced: None }
    }

    /// Queues an event of the edge's own, ahead of core's.
    ///
    /// # Errors
    /// When too many wait already.
    pub(super) fn answer(&mut self, event: chat_response::Event) -> Result<(), TooSlow> {
        self.push(message(frame::encode(self.dialect, event)))
    }

    /// Queues an answer that there can only be so many of as frames are kept for core.
    pub(super) fn answer_kept(&mut self, event: chat_response::Event) {
        self.answers.push_back(message(frame::encode(self.dialect, event)));
    }

    /// Queues a ping.
    ///
    /// # Errors
    /// When too many answers wait already.
    pub(super) fn ping(&mut self) -> Result<(), TooSlow> {
        self.push(Message::Ping(Bytes::new()))
    }

    fn push(&mut self, message: Message) -> Result<(), TooSlow> {
        if self.answers.len() >= MAX_ANSWERS {
            return Err(TooSlow);
        }
        self.answers.push_back(message);
        Ok(())
    }

    /// The client has not taken everything yet.
    pub(super) fn is_blocked(&self) -> bool {
        self.state == Flow::Blocked
    }

    /// Says that the client is told about its expiring token now; `false` when core did so already.
    pub(super) fn warn(&mut self) -> bool {
        !std::mem::replace(&mut self.warned, true)
    }

    /// There is a new token: its expiry will be announced again.
    pub(super) fn token_changed(&mut self) {
        self.warned = false;
    }

    /// The close code that core has announced.
    pub(super) fn announced(&self) -> Option<u16> {
        self.announced
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Moves what is ready to the socket. `Ok` means: nothing more now, the waker is registered; the client may be behind
    /// ([`is_blocked`](Self::is_blocked)).
    ///
    /// # Errors
    /// Why this cannot go on.
    pub(super) fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Socket<S>,
        link: &mut Link,
    ) -> Result<(), Attention> {
        if self.state == Flow::Blocked {
            self.flush(cx, socket)?;
            if self.state == Flow::Blocked {
                return Ok(());
            }
        }
        for _ in 0..MAX_BATCH {
            let next = match self.answers.pop_front() {
                Some(answer) => Some(answer),
                None => match link.poll_next(cx) {
                    Poll::Ready(Next::Ended(result)) => return Err(Attention::EventsEnded(result)),
                    Poll::Ready(next) => self.take(next)?,
                    Poll::Pending => return self.flush(cx, socket),
                },
            };
            if let Some(message) = next {
                self.state = Flow::Fed;
                self.sent.inc();
                socket.feed(cx, message).map_err(|_| Attention::SocketFailed)?;
            }
        }
        // More is ready: after the others had their turn.
        cx.waker().wake_by_ref();
        self.flush(cx, socket)
    }

    fn flush<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Socket<S>,
    ) -> Result<(), Attention> {
        if self.state == Flow::Clean {
            return Ok(());
        }
        match socket.poll_flush(cx) {
            Poll::Ready(Ok(())) => self.state = Flow::Clean,
            Poll::Ready(Err(_)) => return Err(Attention::SocketFailed),
            Poll::Pending => self.state = Flow::Blocked,
        }
        Ok(())
    }

    /// An event of core's as the message to send, if it is to be sent.
    fn take(&mut self, next: Next) -> Result<Option<Message>, Attention> {
        let event = match next {
            Next::Pass(event) => event,
            // Core and edge watch the same token: the client is told once, by whoever is first.
            Next::TokenExpiring(event) if self.warn() => event,
            Next::ClosesWith(code, event) => {
                self.announced = Some(code);
                event
            }
            Next::TokenExpiring(_) | Next::Swallow | Next::Ended(_) => return Ok(None),
        };
        let payload = frame::translate(self.dialect, event).map_err(|error| {
            tracing::error!(error = %error, "an event of core's does not decode");
            Attention::BadEvent
        })?;
        Ok(Some(message(payload)))
    }
}

/// Too many answers wait for a client that does not read them.
#[derive(Debug)]
pub(super) struct TooSlow;

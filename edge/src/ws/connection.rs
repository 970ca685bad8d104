//! One connection: one task that owns the socket, the session and the stream to core, from the handshake to the close.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use chatbox_proto::{error_code::close, status::Failure, token::Identity, v1::chat_response};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    attach::{self, Attached, NotAttached, Stream},
    close::{self as ends, By, Ending},
    deadlines::{Deadlines, Timer},
    frame::{self, Dialect},
    reader::{Reader, Received},
    session::{Session, Step},
    socket::{Incoming, Socket},
    writer::{Attention, TooSlow, Writer},
};
use crate::{
    core_api::{Caller, core_unavailable},
    state::Edge,
};

/// Core has this long to take a frame, and to end a stream whose client has left.
const CORE_PATIENCE: Duration = Duration::from_secs(10);

/// What the handshake knows.
pub(super) struct Handshake {
    pub(super) dialect: Dialect,
    /// With the token of the handshake, or an empty one.
    pub(super) caller: Caller,
    pub(super) identity: Option<Identity>,
}

pub(super) struct Connection<S> {
    edge: Arc<Edge>,
    socket: Socket<S>,
    reader: Reader,
    session: Session,
    writer: Writer,
    deadlines: Deadlines,
    caller: Caller,
    core: Option<Stream>,
    /// What has to be waited for before the next frame is read: a stream that comes up, or a token that is verified.
    busy: Option<Pin<Box<dyn Future<Output = Done> + Send>>>,
    /// A frame that core's queue has no room for yet. While there is one, the socket is not read.
    pending: Option<Bytes>,
    draining: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

/// What `busy` was for.
enum Done {
    Attached(Result<Attached, NotAttached>),
    Refreshed { result: Result<Identity, Failure>, request_id: String, frame: Bytes },
}

/// What has happened.
enum Turn {
    Incoming(Incoming),
    Done(Box<Done>),
    Writer(Attention),
    Due(Timer),
    Draining,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(edge: Arc<Edge>, stream: S, read: Bytes, handshake: Handshake) -> Self {
        let now = Instant::now();
        let Handshake { dialect, caller, identity } = handshake;
        let limits = &edge.config.limits;
        // Strangers get little room.
        let max_frame = if identity.is_some() { limits.frame_bytes } else { limits.first_frame_bytes };
        let mut deadlines = Deadlines::new(now);
        deadlines.set(Timer::Open, now + limits.open_timeout);
        deadlines.set(Timer::Ping, now + edge.config.socket.ping_interval);
        Self {
            socket: Socket::new(stream, read, max_frame.as_usize(), &edge.config),
            reader: Reader::new(dialect, limits, now),
            session: Session::new(identity),
            writer: Writer::new(dialect, edge.metrics.frames_sent.clone()),
            deadlines,
            caller,
            core: None,
            busy: None,
            pending: None,
            draining: Some(Box::pin(edge.draining.clone().cancelled_owned())),
            edge,
        }
    }

    /// Runs until the connection has ended, and says how. All waits inside are bounded, also while the edge drains.
    ///
    /// Boxed, so that the task does not hold a connection twice, as an argument and as a local; so is what only a close needs.
    pub(super) async fn run(mut self: Box<Self>) -> (u16, By) {
        let ending = loop {
            let turn = poll_fn(|cx| self.poll_turn(cx)).await;
            if let Some(ending) = self.on_turn(turn) {
                break ending;
            }
        };
        let outcome = (ending.code, ending.by);
        Box::pin(self.finish(ending)).await;
        outcome
    }

    /// Polls every part once; none keeps another from being polled.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        if self.draining.as_mut().is_some_and(|draining| draining.as_mut().poll(cx).is_ready()) {
            self.draining = None;
            return Poll::Ready(Turn::Draining);
        }
        if let Some(busy) = &mut self.busy
            && let Poll::Ready(done) = busy.as_mut().poll(cx)
        {
            self.busy = None;
            return Poll::Ready(Turn::Done(Box::new(done)));
        }
        let events = self.core.as_mut().map(|core| &mut core.events);
        if let Err(attention) = self.writer.poll(cx, &mut self.socket, events) {
            return Poll::Ready(Turn::Writer(attention));
        }
        if self.writer.is_blocked() {
            self.deadlines.start(Timer::Write, Instant::now() + self.edge.config.socket.write_timeout);
        } else {
            self.deadlines.clear(Timer::Write);
        }
        self.poll_forward(cx);
        if self.pending.is_none()
            && self.busy.is_none()
            && let Poll::Ready(incoming) = self.socket.poll_read(cx)
        {
            return Poll::Ready(Turn::Incoming(incoming));
        }
        self.deadlines.poll_due(cx).map(Turn::Due)
    }

    /// Moves the waiting frame into core's queue.
    fn poll_forward(&mut self, cx: &mut Context<'_>) {
        if self.pending.is_none() {
            return;
        }
        let Some(core) = &mut self.core else { return };
        match core.frames.poll_ready(cx) {
            Poll::Ready(Ok(())) => {
                if let Some(frame) = self.pending.take() {
                    // There is room: it was just said so.
                    let _ = core.frames.start_send(frame);
                }
                self.deadlines.clear(Timer::Forward);
            }
            // Nobody takes frames any more; the end of the events says why.
            Poll::Ready(Err(_)) => {
                self.pending = None;
                self.deadlines.clear(Timer::Forward);
            }
            Poll::Pending => {}
        }
    }

    fn on_turn(&mut self, turn: Turn) -> Option<Ending> {
        match turn {
            Turn::Incoming(incoming) => self.on_incoming(incoming),
            Turn::Done(done) => match *done {
                Done::Attached(result) => self.on_attached(result),
                Done::Refreshed { result, request_id, frame } => self.on_refreshed(result, request_id, frame),
            },
            Turn::Writer(attention) => Some(self.on_attention(attention)),
            Turn::Due(timer) => self.on_due(timer),
            Turn::Draining => {
                let wait = self.edge.config.drain.jitter.mul_f64(rand::random());
                self.deadlines.set(Timer::Drain, Instant::now() + wait);
                None
            }
        }
    }

    fn on_incoming(&mut self, incoming: Incoming) -> Option<Ending> {
        let now = Instant::now();
        self.deadlines.clear(Timer::Pong);
        self.deadlines.set(Timer::Ping, now + self.edge.config.socket.ping_interval);
        let received = match incoming {
            Incoming::Text(payload) => self.reader.text(payload, now),
            Incoming::Binary(payload) => self.reader.binary(payload, now),
            Incoming::Control => return None,
            Incoming::Close(code) => return Some(Ending::by_client(code)),
            Incoming::Broken(1006, _) => return Some(Ending::by_client(1006)),
            Incoming::Broken(close::TOO_BIG, _) => return Some(self.too_big()),
            Incoming::Broken(code, reason) => return Some(Ending::bare(code, reason)),
        };
        self.edge.metrics.frames_received.inc();
        match received {
            Received::Frame(frame) => {
                let step = self.session.on_frame(frame);
                self.on_step(step, now)
            }
            Received::Refused(error, why) => {
                self.edge.metrics.frame_refused(why);
                self.answer(chat_response::Event::Error(*error))
            }
            Received::End(ending) => Some(*ending),
        }
    }

    fn too_big(&self) -> Ending {
        let limits = &self.edge.config.limits;
        let strange = self.session.identity().is_none();
        let limit = if strange { limits.first_frame_bytes } else { limits.frame_bytes };
        Ending::failed(close::TOO_BIG, ends::too_big(limit.as_usize()), String::new())
    }

    fn on_step(&mut self, step: Step, now: Instant) -> Option<Ending> {
        match step {
            Step::Forward(frame) => self.forward(frame, now),
            Step::Leave(frame) => {
                self.deadlines.set(Timer::Leave, now + CORE_PATIENCE);
                self.forward(frame, now);
            }
            Step::Open { token, frame } => {
                self.deadlines.clear(Timer::Open);
                let mut caller = self.caller.clone();
                self.caller.token = String::new();
                if let Some(token) = token {
                    caller.token = token;
                }
                let known = self.session.identity().cloned();
                let attaching = attach::attach(Arc::clone(&self.edge), caller, known, frame);
                self.busy = Some(Box::pin(async move { Done::Attached(attaching.await) }));
            }
            Step::Refresh { token, request_id, frame } => {
                let caller = Caller { token, ..self.caller.clone() };
                let verifying = attach::verify(Arc::clone(&self.edge), caller);
                self.busy =
                    Some(Box::pin(async move { Done::Refreshed { result: verifying.await, request_id, frame } }));
            }
            Step::Answer(error) => return self.answer(chat_response::Event::Error(*error)),
            Step::End(ending) => return Some(*ending),
        }
        None
    }

    fn forward(&mut self, frame: Bytes, now: Instant) {
        if let Some(core) = &mut self.core {
            core.last_frame = now;
            self.pending = Some(frame);
            self.deadlines.set(Timer::Forward, now + CORE_PATIENCE);
        }
    }

    /// Queues an event of the edge's own.
    fn answer(&mut self, event: chat_response::Event) -> Option<Ending> {
        self.writer.answer(event).err().map(too_slow)
    }

    fn on_attached(&mut self, result: Result<Attached, NotAttached>) -> Option<Ending> {
        match result {
            Ok(Attached { identity, stream }) => {
                self.socket.set_max_frame(self.edge.config.limits.frame_bytes.as_usize());
                self.watch_expiry(&identity);
                self.session.opened(identity);
                self.core = Some(stream);
                None
            }
            Err(NotAttached { failure, code: Some(code) }) => Some(self.session.not_opened(code, failure)),
            Err(NotAttached { failure, code: None }) => {
                Some(Ending::by_core(failure, self.session.open_request_id().to_owned()))
            }
        }
    }

    fn on_refreshed(&mut self, result: Result<Identity, Failure>, request_id: String, frame: Bytes) -> Option<Ending> {
        let accepted = result.and_then(|identity| {
            self.session.refreshed(identity.clone())?;
            Ok(identity)
        });
        match accepted {
            Ok(identity) => {
                self.watch_expiry(&identity);
                self.writer.token_changed();
                self.forward(frame, Instant::now());
                None
            }
            Err(failure) => self.answer(chat_response::Event::Error(failure.into_event(request_id))),
        }
    }

    /// Sets the deadlines of a token. Wall time is looked at once; from here on the monotonic clock counts.
    fn watch_expiry(&mut self, identity: &Identity) {
        let left = identity.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
        // A token for years needs no timer that far away.
        let left = left.min(Duration::from_secs(366 * 24 * 3600));
        let now = Instant::now();
        self.deadlines.set(Timer::Expiry, now + left);
        self.deadlines.set(Timer::Warning, now + left.saturating_sub(self.edge.config.socket.expiry_warning));
    }

    fn on_attention(&self, attention: Attention) -> Ending {
        match attention {
            Attention::SocketFailed => Ending::by_client(1006),
            Attention::BadEvent => Ending::failed(close::INTERNAL, Failure::internal(), String::new()),
            Attention::EventsEnded(result) => match (self.writer.announced(), result) {
                (Some(code), _) => Ending::announced(code),
                (None, Ok(())) => self.session.ended(),
                (None, Err(failure)) if self.is_expiry(&failure) => expired(),
                (None, Err(failure)) => Ending::by_core(failure, String::new()),
            },
        }
    }

    /// Core watches the same token: when it is a moment faster, the client still learns the real reason.
    fn is_expiry(&self, failure: &Failure) -> bool {
        use chatbox_proto::error_code::ErrorCode;
        let soon = SystemTime::now() + Duration::from_secs(2);
        failure.code == ErrorCode::Unauthenticated && self.session.identity().is_some_and(|id| id.expires_at <= soon)
    }

    fn on_due(&mut self, timer: Timer) -> Option<Ending> {
        match timer {
            Timer::Open if self.session.is_new() => {
                Some(Ending::failed(close::OPEN_TIMEOUT, ends::open_timeout(), String::new()))
            }
            Timer::Open => None,
            Timer::Warning => self.warn(),
            Timer::Expiry => Some(expired()),
            Timer::Ping => {
                self.deadlines.set(Timer::Pong, Instant::now() + self.edge.config.socket.pong_timeout);
                self.writer.ping().err().map(too_slow)
            }
            Timer::Pong => Some(Ending::failed(close::NO_PONG, ends::no_pong(), String::new())),
            Timer::Write => Some(Ending::failed(close::SLOW_CONSUMER, ends::slow_consumer(), String::new())),
            Timer::Forward => Some(Ending::by_core(core_unavailable(), String::new())),
            Timer::Leave => Some(Ending::normal()),
            Timer::Drain => Some(Ending::going_away(Duration::from_secs(2).mul_f64(rand::random()))),
        }
    }

    fn warn(&mut self) -> Option<Ending> {
        if !self.session.is_live() || !self.writer.warn() {
            return None;
        }
        let expires_at = self.session.identity()?.expires_at;
        let expire_time = chatbox_proto::time::Timestamp::from(expires_at);
        self.answer(chat_response::Event::TokenExpiring(chat_response::TokenExpiring {
            expire_time: Some(expire_time),
        }))
    }

    /// Tells both sides. Bounded by the time a close may take, whatever they do.
    async fn finish(mut self: Box<Self>, ending: Ending) {
        let limit = self.edge.config.socket.close_timeout;
        let core = self.core.take();
        match ending.by {
            By::Client if ending.code != 1006 => self.socket.finish(limit).await,
            By::Client => {}
            By::Edge => {
                let last = ending.event.map(|event| frame::encode(self.writer.dialect(), event));
                self.socket.close(last, ending.code, ending.reason, limit).await;
            }
        }
        drop(self);
        if let Some(core) = core {
            core.let_go().await;
        }
    }
}

fn expired() -> Ending {
    Ending::failed(close::TOKEN_EXPIRED, ends::token_expired(), String::new())
}

fn too_slow(_: TooSlow) -> Ending {
    Ending::failed(close::SLOW_CONSUMER, ends::slow_consumer(), String::new())
}

#[cfg(test)]
mod tests;

//! One connection: one task that owns the socket, the session and the stream to core, from the handshake to the close.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
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
    frame::{self, ClientFrame, Dialect, Kind},
    link::{Forwarded, Link},
    reader::{Reader, Received},
    session::{Session, Step},
    socket::{Incoming, Socket},
    writer::{Attention, TooSlow, Writer},
};
use crate::{
    core_api::{Caller, core_unavailable},
    limits::Seat,
    state::Edge,
};

mod resume;

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
    /// With the token that the stream to core was opened with, or would be.
    caller: Caller,
    seat: Option<Seat>,
    link: Box<Link>,
    /// A stream that comes up in place of one that was lost. Frames are read meanwhile, as far as there is room for them.
    reopening: Option<Waiting<Result<Stream, Failure>>>,
    /// What has to be waited for before the next frame is read: a stream that comes up, or a token that is verified.
    busy: Option<Waiting<Done>>,
    /// The client is to be told about its token once it has `opened`.
    warning_due: bool,
    draining: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What `busy` was for.
enum Done {
    Attached(Result<Attached, NotAttached>),
    Refreshed { result: Result<Identity, Failure>, token: String, request_id: String, frame: Bytes },
}

/// What has happened.
enum Turn {
    Incoming(Incoming),
    Done(Box<Done>),
    Writer(Attention),
    Reopened(Result<Stream, Failure>),
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
            seat: None,
            link: Box::new(Link::new(&edge.config, now)),
            reopening: None,
            busy: None,
            warning_due: false,
            draining: Some(Box::pin(edge.draining.clone().cancelled_owned())),
            edge,
        }
    }

    /// Runs until the connection has ended, and says how. All waits inside are bounded, also while the edge drains.
    ///
    /// Boxed, so that the task does not hold a connection twice, as an argument and as a local; so is what only a close needs.
    pub(super) async fn run(mut self: Box<Self>) -> (u16, By) {
        let ending = loop {
            if let Some(ending) = poll_fn(|cx| self.poll_step(cx)).await {
                break ending;
            }
        };
        let outcome = (ending.code, ending.by);
        Box::pin(self.finish(ending)).await;
        outcome
    }

    /// One turn, and what follows from it. A panic in any part ends this connection alone, and its client is told.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Ending>> {
        let step = catch_unwind(AssertUnwindSafe(|| self.poll_turn(cx).map(|turn| self.on_turn(turn))));
        step.unwrap_or_else(|_| {
            self.edge.metrics.panics.inc();
            tracing::error!("a connection panicked");
            // Whatever panicked is not polled again.
            (self.busy, self.reopening, self.link.stream) = (None, None, None);
            Poll::Ready(Some(Ending::failed(close::INTERNAL, Failure::internal(), String::new())))
        })
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
        if let Some(reopening) = &mut self.reopening
            && let Poll::Ready(result) = reopening.as_mut().poll(cx)
        {
            self.reopening = None;
            return Poll::Ready(Turn::Reopened(result));
        }
        if let Err(attention) = self.writer.poll(cx, &mut self.socket, &mut self.link) {
            return Poll::Ready(Turn::Writer(attention));
        }
        if self.writer.is_blocked() {
            self.deadlines.start(Timer::Write, Instant::now() + self.edge.config.socket.write_timeout);
        } else {
            self.deadlines.clear(Timer::Write);
        }
        if self.link.take_alive() {
            self.feed_lives();
        }
        if self.warning_due && self.link.is_open() {
            return Poll::Ready(Turn::Due(Timer::Warning));
        }
        self.poll_forward(cx);
        if self.reads()
            && let Poll::Ready(incoming) = self.socket.poll_read(cx)
        {
            return Poll::Ready(Turn::Incoming(incoming));
        }
        self.deadlines.poll_due(cx).map(Turn::Due)
    }

    /// Whether the next frame of the client may come.
    fn reads(&mut self) -> bool {
        self.busy.is_none() && self.link.unanswered.has_room()
    }

    /// Moves waiting frames into core's queue.
    fn poll_forward(&mut self, cx: &mut Context<'_>) {
        match self.link.poll_forward(cx) {
            Forwarded::All => self.deadlines.clear(Timer::Forward),
            Forwarded::Waits { moved } => {
                if moved {
                    self.deadlines.clear(Timer::Forward);
                }
                self.deadlines.start(Timer::Forward, Instant::now() + CORE_PATIENCE);
            }
            Forwarded::Paced(at) => {
                self.deadlines.clear(Timer::Forward);
                self.deadlines.start(Timer::Pace, at);
            }
        }
    }

    fn on_turn(&mut self, turn: Turn) -> Option<Ending> {
        match turn {
            Turn::Incoming(incoming) => self.on_incoming(incoming),
            Turn::Done(done) => match *done {
                Done::Attached(result) => self.on_attached(result),
                Done::Refreshed { result, token, request_id, frame } => {
                    self.on_refreshed(result, token, request_id, frame)
                }
            },
            Turn::Writer(attention) => self.on_attention(attention),
            Turn::Reopened(result) => self.on_reopened(result),
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
            Step::Forward(frame) => self.link.push(frame),
            Step::Leave(frame) => {
                self.deadlines.set(Timer::Leave, now + CORE_PATIENCE);
                self.link.push(frame);
            }
            Step::Open { token, frame } => {
                self.deadlines.clear(Timer::Open);
                if let Some(token) = token {
                    self.caller.token = token;
                }
                self.link.opens(self.session.open_request_id(), &frame);
                let known = self.session.identity().cloned();
                let attaching = attach::attach(Arc::clone(&self.edge), self.caller.clone(), known, frame);
                self.busy = Some(Box::pin(async move { Done::Attached(attaching.await) }));
            }
            Step::Refresh { token, request_id, frame } => {
                let caller = Caller { token: token.clone(), ..self.caller.clone() };
                let verifying = attach::verify(Arc::clone(&self.edge), caller);
                self.busy =
                    Some(Box::pin(
                        async move { Done::Refreshed { result: verifying.await, token, request_id, frame } },
                    ));
            }
            Step::Answer(error) => return self.answer(chat_response::Event::Error(*error)),
            Step::End(ending) => return Some(*ending),
        }
        None
    }

    /// Queues an event of the edge's own.
    fn answer(&mut self, event: chat_response::Event) -> Option<Ending> {
        self.writer.answer(event).err().map(too_slow)
    }

    fn on_attached(&mut self, result: Result<Attached, NotAttached>) -> Option<Ending> {
        match result {
            Ok(Attached { identity, stream, seat }) => {
                self.seat = Some(seat);
                self.link.attached(stream, &identity.user_id, Instant::now());
                self.feed_lives();
                self.socket.set_max_frame(self.edge.config.limits.frame_bytes.as_usize());
                self.watch_expiry(&identity);
                self.session.opened(identity);
                None
            }
            Err(NotAttached { failure, code: Some(code) }) => Some(self.session.not_opened(code, failure)),
            Err(NotAttached { failure, code: None }) => {
                Some(Ending::by_core(failure, self.session.open_request_id().to_owned()))
            }
        }
    }

    fn on_refreshed(
        &mut self,
        result: Result<Identity, Failure>,
        token: String,
        request_id: String,
        frame: Bytes,
    ) -> Option<Ending> {
        let accepted = result.and_then(|identity| {
            self.session.refreshed(identity.clone())?;
            Ok(identity)
        });
        match accepted {
            Ok(identity) => {
                self.watch_expiry(&identity);
                self.writer.token_changed();
                self.caller.token = token;
                self.link.push(ClientFrame { request_id, kind: Kind::RefreshToken(String::new()), bytes: frame });
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

    fn on_attention(&mut self, attention: Attention) -> Option<Ending> {
        match attention {
            Attention::SocketFailed => Some(Ending::by_client(1006)),
            Attention::BadEvent => Some(Ending::failed(close::INTERNAL, Failure::internal(), String::new())),
            Attention::EventsEnded(result) => self.on_stream_ended(result),
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
            Timer::Pong if !self.reads() => {
                // The answer may be there: it is this side that does not read.
                self.deadlines.set(Timer::Pong, Instant::now() + self.edge.config.socket.pong_timeout);
                None
            }
            Timer::Pong => Some(Ending::failed(close::NO_PONG, ends::no_pong(), String::new())),
            Timer::Write => Some(Ending::failed(close::SLOW_CONSUMER, ends::slow_consumer(), String::new())),
            Timer::Forward => self.lost(core_unavailable()),
            // The next turn goes on.
            Timer::Pace => None,
            Timer::Feed => self.on_silence(),
            Timer::Leave => Some(Ending::normal()),
            Timer::Drain => Some(Ending::going_away(Duration::from_secs(2).mul_f64(rand::random()))),
        }
    }

    fn warn(&mut self) -> Option<Ending> {
        self.warning_due = self.session.is_live() && !self.link.is_open();
        if self.warning_due {
            return None;
        }
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
        let core = self.link.stream.take();
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

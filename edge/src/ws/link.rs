//! What ties a connection to core: the stream, what the client was given through it, what core has not answered. Enough to go
//! on with another stream where this one ended, so that the client sees no second `opened`, no hole and no double.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use chatbox_proto::{
    peek::{self, Event},
    status::Failure,
    v1::{ChatRequest, ChatResponse, chat_request, chat_response},
};
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::time::Instant;

use super::{
    attach::Stream,
    frame::{ClientFrame, close_code},
    unanswered::Unanswered,
};
use crate::{
    config::Config,
    core_api::core_unavailable,
    limits::{Bucket, Rate},
};

pub(super) struct Link {
    pub(super) stream: Option<Stream>,
    pub(super) unanswered: Unanswered,
    /// The client's own user id: whose messages answer its frames.
    user_id: String,
    /// The open frame that core has not answered.
    opening: Option<Opening>,
    /// What the client has, once it has `opened`.
    position: Option<Position>,
    /// A lost stream is opened again.
    reopens: bool,
    /// Core counts frames by the second. What is sent again must not be too many for it.
    pace: Bucket,
    rate: Rate,
    /// Something has come since this was last asked.
    alive: bool,
    /// Streams opened again since one of them brought something, or lived for a while.
    tries: u32,
    /// When this one came up.
    since: Instant,
}

/// A stream that lives for so long is one that works, however quiet.
const STEADY: Duration = Duration::from_secs(10);

struct Opening {
    request_id: String,
    bytes: Bytes,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Position {
    session_id: String,
    seq: u64,
    reply: Option<chat_request::ReplyPosition>,
    /// Why an admin is here.
    reason: String,
    caught_up: bool,
}

/// What is to be done about what came from core.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Pass(Bytes),
    TokenExpiring(Bytes),
    /// Passes, and core ends the stream with this code.
    ClosesWith(u16, Bytes),
    /// The client has it already.
    Swallow,
    Ended(Result<(), Failure>),
}

/// What became of the frames that wait for core.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Forwarded {
    /// None waits.
    All,
    /// Core's queue is full; `moved` says that it took some.
    Waits { moved: bool },
    /// It is too early for the next one.
    Paced(Instant),
}

/// How a stream is opened that takes the place of another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reopen {
    pub(super) open: Bytes,
    /// The client has `opened` already.
    pub(super) resumes: bool,
    pub(super) tries: u32,
}

impl Link {
    pub(super) fn new(config: &Config, now: Instant) -> Self {
        let socket = &config.socket;
        Self {
            stream: None,
            unanswered: Unanswered::new(socket.unanswered_frames, socket.unanswered_bytes.as_usize()),
            user_id: String::new(),
            opening: None,
            position: None,
            reopens: !config.core.reopen_timeout.is_zero(),
            pace: Bucket::new(now),
            rate: Rate::new(config.limits.frames_per_second, Duration::from_secs(1)),
            alive: false,
            tries: 0,
            since: now,
        }
    }

    /// There is a stream, opened for this user.
    pub(super) fn attached(&mut self, stream: Stream, user_id: &str, now: Instant) {
        user_id.clone_into(&mut self.user_id);
        self.install(stream, now);
    }

    /// There is a stream instead of the one that was lost. Returns the request ids of new tokens that it was opened with.
    pub(super) fn reopened(&mut self, stream: Stream, now: Instant) -> Vec<String> {
        self.install(stream, now);
        self.unanswered.reopened()
    }

    fn install(&mut self, stream: Stream, now: Instant) {
        self.stream = Some(stream);
        self.since = now;
        self.pace = Bucket::new(now);
        // The open frame.
        let _ = self.pace.take(self.rate, now);
    }

    /// An open frame goes to core.
    pub(super) fn opens(&mut self, request_id: &str, bytes: &Bytes) {
        if self.position.is_none() {
            self.opening = Some(Opening { request_id: request_id.to_owned(), bytes: bytes.clone() });
        }
    }

    /// A frame for core, now or once there is a stream.
    pub(super) fn push(&mut self, frame: ClientFrame) {
        use super::frame::Kind;
        match &frame.kind {
            Kind::Open(_) if self.position.is_none() => self.opens(&frame.request_id, &frame.bytes),
            // Nobody is there to see it, and it lapses.
            Kind::Typing if self.stream.is_none() => return,
            Kind::Open(_)
            | Kind::RefreshToken(_)
            | Kind::Send(_)
            | Kind::Repeatable
            | Kind::Typing
            | Kind::Detach
            | Kind::EndSession
            | Kind::Other => {}
        }
        self.unanswered.push(frame);
    }

    /// Whether the client has `opened`.
    pub(super) fn is_open(&self) -> bool {
        self.position.is_some()
    }

    /// Whether something came from core since this was last asked.
    pub(super) fn take_alive(&mut self) -> bool {
        std::mem::take(&mut self.alive)
    }

    /// The stream is lost. Returns how to open another one, if that can be done, and the request ids of frames whose outcome
    /// nobody knows.
    pub(super) fn lose(&mut self) -> Option<(Reopen, Vec<String>)> {
        self.stream = None;
        if !self.can_reopen() {
            return None;
        }
        let (open, resumes) = match (&self.position, &self.opening) {
            (Some(position), _) => (position.open(), true),
            (None, Some(opening)) => (opening.bytes.clone(), false),
            (None, None) => return None,
        };
        self.tries = if self.since.elapsed() >= STEADY { 1 } else { self.tries + 1 };
        let unknown = self.unanswered.lost();
        if let (false, Some(opening)) = (resumes, &self.opening) {
            // It is the first frame of the new stream, not one of those that follow.
            let request_id = opening.request_id.clone();
            self.unanswered.take_out(&request_id);
        }
        Some((Reopen { open, resumes, tries: self.tries - 1 }, unknown))
    }

    fn can_reopen(&self) -> bool {
        self.reopens && (self.position.is_some() || self.opening.is_some())
    }

    /// Moves frames into core's queue.
    pub(super) fn poll_forward(&mut self, cx: &mut Context<'_>) -> Forwarded {
        let mut moved = false;
        while let (Some(stream), Some(frame)) = (&mut self.stream, self.unanswered.next()) {
            match stream.frames.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                // Nobody takes frames any more; the end of the events says why.
                Poll::Ready(Err(_)) => return Forwarded::All,
                Poll::Pending => return Forwarded::Waits { moved },
            }
            let now = Instant::now();
            if let Err(wait) = self.pace.take(self.rate, now) {
                return Forwarded::Paced(now + wait);
            }
            // There is room: it was just said so.
            let _ = stream.frames.start_send(frame.clone());
            stream.last_frame = now;
            self.unanswered.handed_over();
            moved = true;
        }
        Forwarded::All
    }

    /// What comes next from core. Pending for ever without a stream.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let Some(stream) = &mut self.stream else { return Poll::Pending };
        let next = match std::task::ready!(stream.events.poll_next_unpin(cx)) {
            Some(Ok(payload)) => {
                self.alive = true;
                self.pass(payload)
            }
            Some(Err(failure)) => Next::Ended(Err(failure)),
            None => Next::Ended(Ok(())),
        };
        Poll::Ready(next)
    }

    fn pass(&mut self, payload: Bytes) -> Next {
        match peek::event(&payload) {
            Event::Opened => self.opened(payload),
            Event::Entry { seq, message } => match self.entry(seq, message) {
                Place::Next => Next::Pass(payload),
                Place::Had => Next::Swallow,
                Place::Beyond => {
                    tracing::warn!(seq, "core left entries out, opening the stream again");
                    Next::Ended(Err(core_unavailable()))
                }
            },
            Event::Piece { message_id, next_offset } => {
                if let Some(position) = &mut self.position {
                    position.has(message_id, next_offset);
                }
                Next::Pass(payload)
            }
            Event::CaughtUp => {
                let before = self.position.as_mut().map(|position| std::mem::replace(&mut position.caught_up, true));
                if before == Some(true) { Next::Swallow } else { Next::Pass(payload) }
            }
            // Until the stream is open there is nothing that a new token could be for. The edge watches the same one.
            Event::TokenExpiring if self.position.is_none() => Next::Swallow,
            Event::TokenExpiring => Next::TokenExpiring(payload),
            Event::Ack { request_id } => {
                self.tries = 0;
                self.unanswered.answered(request_id);
                Next::Pass(payload)
            }
            Event::Error { request_id, close_code: code } => {
                self.failed(request_id);
                closes_with(code, payload)
            }
            // The client need not know: it is another core that will go on.
            Event::GoingAway { .. } if self.can_reopen() => Next::Ended(Err(core_unavailable())),
            Event::GoingAway { close_code: code } => closes_with(code, payload),
            Event::Other => Next::Pass(payload),
        }
    }

    /// The first `opened` of this connection: later ones are read by whoever opens a stream again.
    fn opened(&mut self, payload: Bytes) -> Next {
        if self.position.is_some() {
            return Next::Swallow;
        }
        let event = ChatResponse::decode(payload.clone()).ok().and_then(|event| event.event);
        if let Some(chat_response::Event::Opened(opened)) = event {
            let opening = self.opening.take();
            let asked = opening.and_then(|opening| ChatRequest::decode(opening.bytes).ok()?.frame);
            let (after_seq, reply, reason) = match asked {
                Some(chat_request::Frame::Open(open)) => (open.after_seq, open.reply, open.reason),
                Some(_) | None => (None, None, String::new()),
            };
            let replayed = opened.verdict() == chat_response::ResumeVerdict::Replayed;
            self.unanswered.answered(&opened.request_id);
            self.position = Some(Position {
                session_id: opened.session.map(|session| session.session_id).unwrap_or_default(),
                seq: after_seq.filter(|_| replayed).unwrap_or(opened.head),
                reply,
                reason,
                caught_up: false,
            });
        }
        Next::Pass(payload)
    }

    fn entry(&mut self, seq: u64, message: Option<&[u8]>) -> Place {
        let Some(position) = &mut self.position else { return Place::Next };
        if seq <= position.seq {
            return Place::Had;
        }
        if seq > position.seq + 1 {
            return Place::Beyond;
        }
        position.seq = seq;
        self.tries = 0;
        if let Some(message) = message
            && self.unanswered.waits_for_entries()
        {
            let (user_id, client_message_id) = peek::written(message);
            if user_id == self.user_id {
                self.unanswered.written(client_message_id);
            }
        }
        Place::Next
    }

    fn failed(&mut self, request_id: &str) {
        if self.opening.as_ref().is_some_and(|opening| opening.request_id == request_id) {
            self.opening = None;
        }
        if request_id.is_empty() {
            self.unanswered.answered_some();
        } else {
            self.unanswered.answered(request_id);
        }
    }
}

/// Where an entry is, seen from what the client has.
enum Place {
    Next,
    Had,
    Beyond,
}

impl Position {
    /// The client has a reply up to here.
    fn has(&mut self, message_id: &str, next_offset: u32) {
        match &mut self.reply {
            Some(reply) if reply.message_id == message_id => reply.next_offset = next_offset,
            reply => *reply = Some(chat_request::ReplyPosition { message_id: message_id.to_owned(), next_offset }),
        }
    }

    /// The frame that goes on from here.
    fn open(&self) -> Bytes {
        let open = chat_request::Open {
            session_id: self.session_id.clone(),
            after_seq: Some(self.seq),
            reply: self.reply.clone(),
            reason: self.reason.clone(),
            ..chat_request::Open::default()
        };
        let frame = Some(chat_request::Frame::Open(open));
        ChatRequest { request_id: String::new(), frame }.encode_to_vec().into()
    }
}

fn closes_with(code: u32, payload: Bytes) -> Next {
    match close_code(code) {
        Some(code) => Next::ClosesWith(code, payload),
        None => Next::Pass(payload),
    }
}

//! One `Generate` stream: a task that takes the frames of a service, runs its turns one after the other and writes what
//! happens into a bounded outbox. The conversation lives as long as the stream and is stored nowhere.

mod form;
mod outbox;

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use chatbox_proto::{
    error_code::ErrorCode,
    status::{Failure, generic_message, generic_reason},
    token::Identity,
    trace::TraceContext,
    v1::{GenerateRequest, generate_request as request, generate_response as response},
};
use futures_util::FutureExt as _;
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use self::outbox::{Outbox, OutboxStream};

use super::{
    auth, convert,
    core::{CoreService, FrameLimits},
    limits::{FrameRate, PlacesByUser, Strikes},
};
use crate::{
    domain::entry::FinishReason,
    generate::{Generator, Turn, TurnEvent, TurnStart},
    llm::{Model, Models, PromptMessage, PromptRole, Sampling},
    session::{Closed, event},
};

/// Starts that wait for the turn that runs; more are refused.
const MAX_WAITING: usize = 8;

/// Events of a turn that are taken before anything else is looked at.
const AT_ONCE: usize = 64;

/// Limits of `Generate` streams; see the configuration for units and ranges.
#[derive(Debug, Clone, Copy)]
pub struct GenerateLimits {
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Text that a stream keeps.
    pub conversation_bytes: usize,
    /// Messages of a conversation, and turns of a stream.
    pub messages: usize,
    /// Streams of one caller.
    pub streams: u32,
}

/// What all `Generate` streams share.
#[derive(Debug, Clone)]
pub(super) struct Generate {
    generator: Generator,
    limits: GenerateLimits,
    pub(super) streams: PlacesByUser,
}

impl Generate {
    pub(super) fn new(generator: Generator, limits: GenerateLimits) -> Self {
        Self { generator, limits, streams: PlacesByUser::streams(limits.streams) }
    }
}

/// Who calls, and what came with the call.
pub(super) struct Call {
    pub(super) identity: Identity,
    pub(super) trace: Option<TraceContext>,
    pub(super) deadline: Option<Instant>,
}

/// A start that was accepted and waits for its turn.
struct Waiting {
    request_id: String,
    model: Model,
    messages: Vec<PromptMessage>,
    max_output_tokens: u32,
    sampling: Sampling,
}

/// The turn that runs.
struct Running {
    request_id: String,
    turn: Turn,
    /// Messages of the conversation before it.
    before: usize,
    text: String,
}

/// One stream of one service.
pub(super) struct Connection {
    generate: Generate,
    models: Models,
    call: Call,
    user_hash: String,
    outbox: Outbox,
    leaving: CancellationToken,
    /// The client was told that the server is leaving.
    told: bool,
    limits: FrameLimits,
    rate: FrameRate,
    strikes: Strikes,
    conversation: Vec<PromptMessage>,
    waiting: VecDeque<Waiting>,
    running: Option<Running>,
    /// Ids of the starts so far, as many as there may be turns.
    used: HashSet<String>,
    turns: usize,
}

impl Connection {
    /// The task of a stream, and what it answers.
    pub(super) fn new(service: &CoreService, call: Call) -> (Self, OutboxStream) {
        let (outbox, events) = Outbox::new(service.queue);
        let limits = FrameLimits { frame_bytes: service.generate.limits.frame_bytes, ..service.limits };
        let connection = Self {
            generate: service.generate.clone(),
            models: service.models.clone(),
            user_hash: service.sessions.user_hash(&call.identity.user_id),
            call,
            outbox,
            leaving: service.leaving.clone(),
            told: false,
            limits,
            rate: FrameRate::new(limits.per_second),
            strikes: Strikes::new(limits.malformed_per_minute),
            conversation: Vec::new(),
            waiting: VecDeque::new(),
            running: None,
            used: HashSet::new(),
            turns: 0,
        };
        (connection, events)
    }

    /// Serves the stream until one side ends it. What runs then is dropped, and its request upstream closed.
    pub(super) async fn run(mut self: Box<Self>, mut frames: Streaming<Bytes>) {
        let mut half_closed = false;
        while !self.outbox.is_closed() {
            self.begin_next();
            if self.running.is_none() && half_closed {
                self.outbox.close(Closed::Done);
                break;
            }
            if self.running.is_none() && self.told {
                self.end_with(leaving());
                break;
            }
            let alarm = self.next_alarm();
            // Without an order: neither frames without end nor a quick provider may keep the others waiting.
            tokio::select! {
                () = self.outbox.wait_closed() => break,
                () = tokio::time::sleep_until(alarm) => self.alarm(),
                event = next(&mut self.running), if self.running.is_some() => self.events(event),
                // `message` is cancel-safe: what was decoded stays in the stream's buffer.
                frame = frames.message(), if !half_closed => match frame {
                    Ok(Some(bytes)) => self.frame(bytes),
                    Ok(None) => half_closed = true,
                    Err(status) => self.broken(&status),
                },
                () = self.leaving.cancelled(), if !self.told => self.leave(),
                () = self.generate.generator.cutting(), if self.running.is_some() => self.cut(FinishReason::Interrupted),
            }
        }
    }

    fn frame(&mut self, bytes: Bytes) {
        if bytes.len() > self.limits.frame_bytes {
            self.end_with(frame_too_big());
            return;
        }
        let GenerateRequest { request_id, frame } = match GenerateRequest::decode(bytes) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(%error, "a frame could not be decoded");
                self.strike("", Failure::invalid("frame", "must be a GenerateRequest message"));
                return;
            }
        };
        if let Err(failure) = convert::printable("request_id", &request_id) {
            self.strike("", failure);
            return;
        }
        if let Err(failure) = self.rate.take() {
            self.error(&request_id, failure);
            return;
        }
        match frame {
            Some(request::Frame::Start(start)) => match self.accept(&request_id, start) {
                Ok(waiting) => self.waiting.push_back(waiting),
                Err(failure) => self.error(&request_id, failure),
            },
            // One that has just ended needs no cancelling.
            Some(request::Frame::Cancel(_)) => self.cut(FinishReason::Cancelled),
            None => self.strike(&request_id, Failure::invalid("frame", "exactly one known frame must be set")),
        }
    }

    /// Checks a start; accepted, it waits for its turn.
    fn accept(&mut self, request_id: &str, start: request::Start) -> Result<Waiting, Failure> {
        if self.told {
            return Err(leaving());
        }
        let limits = self.generate.limits;
        if self.waiting.len() >= MAX_WAITING {
            let message = "too many turns wait; wait for the end of one";
            return Err(Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_TURNS", message)
                .retry_after(Duration::from_secs(1)));
        }
        if self.turns >= limits.messages {
            return Err(exhausted("TOO_MANY_TURNS", "this stream had as many turns as it may; open another one"));
        }
        convert::bounded("start.model", &start.model, 128)?;
        let unknown = || Failure::invalid("start.model", auth::UNKNOWN_MODEL);
        let model = self.generate.generator.model(&start.model).ok_or_else(unknown)?.clone();
        auth::may_choose(&self.call.identity, &self.models, &model.info.id).map_err(|_| unknown())?;
        let (max_output_tokens, sampling) = form::parameters(start.parameters, &model.info)?;
        let first = self.conversation.is_empty() && self.waiting.is_empty();
        let messages = form::messages(start.messages, first)?;
        let kept = self.conversation.iter().chain(self.waiting.iter().flat_map(|waiting| &waiting.messages));
        let (count, bytes) = kept.chain(&messages).fold((0, 0), |(n, bytes), m| (n + 1, bytes + m.text.len()));
        if count > limits.messages || bytes > limits.conversation_bytes {
            let message = "the conversation of this stream is too long; open another one";
            return Err(exhausted("CONVERSATION_TOO_LONG", message));
        }
        if !request_id.is_empty() && !self.used.insert(request_id.to_owned()) {
            return Err(Failure::invalid("request_id", "was used on this stream before"));
        }
        self.turns += 1;
        Ok(Waiting { request_id: request_id.to_owned(), model, messages, max_output_tokens, sampling })
    }

    fn begin_next(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(waiting) = self.waiting.pop_front() else { return };
        let Waiting { request_id, model, messages, max_output_tokens, sampling } = waiting;
        let before = self.conversation.len();
        self.conversation.extend(messages);
        let turn = self.generate.generator.begin(TurnStart {
            model,
            messages: self.conversation.clone(),
            max_output_tokens,
            sampling,
            user_hash: self.user_hash.clone(),
            deadline: self.call.deadline,
            trace: self.call.trace,
        });
        self.running = Some(Running { request_id, turn, before, text: String::new() });
    }

    /// One event of the turn and those that are there with it.
    fn events(&mut self, first: Option<TurnEvent>) {
        let mut next = first;
        for _ in 0..AT_ONCE {
            let Some(event) = next else { return };
            self.event(event);
            let Some(running) = &mut self.running else { return };
            next = running.turn.next().now_or_never().flatten();
        }
        if let Some(event) = next {
            self.event(event);
        }
    }

    fn event(&mut self, event: TurnEvent) {
        let Some(running) = &mut self.running else { return };
        let event = match event {
            TurnEvent::Started(model) => response::Event::Started(response::Started { model }),
            TurnEvent::Text(text) => {
                running.text.push_str(&text);
                response::Event::Delta(response::Delta { text })
            }
            TurnEvent::Finished(end) => {
                let finished = response::Finished {
                    finish_reason: event::wire_finish(end.finish).into(),
                    usage: Some(event::wire_usage(end.usage)),
                    provider_request_id: end.provider_request_id,
                };
                self.outbox.push(&running.request_id, response::Event::Finished(finished));
                self.settle(end.finish);
                return;
            }
        };
        self.outbox.push(&running.request_id, event);
    }

    /// The turn has ended: what it said is part of the conversation, or it was never there.
    fn settle(&mut self, finish: FinishReason) {
        let Some(running) = self.running.take() else { return };
        match finish {
            FinishReason::Stop | FinishReason::Length | FinishReason::Cancelled => {
                if !running.text.is_empty() {
                    self.conversation.push(PromptMessage { role: PromptRole::Assistant, text: running.text });
                }
            }
            FinishReason::Superseded
            | FinishReason::Interrupted
            | FinishReason::ProviderError
            | FinishReason::Filtered
            | FinishReason::Timeout => self.conversation.truncate(running.before),
        }
    }

    /// Ends the turn that runs; what it said until now comes before its end.
    fn cut(&mut self, finish: FinishReason) {
        if let Some(running) = &mut self.running {
            running.turn.end(finish);
            while let Some(event) = self.running.as_mut().and_then(|r| r.turn.next().now_or_never().flatten()) {
                self.event(event);
            }
        }
    }

    /// When the token ends or the caller waits no longer.
    fn next_alarm(&self) -> Instant {
        let left = self.call.identity.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
        // Far ends are looked at again: a timer cannot be set for centuries.
        let alarm = Instant::now() + left.min(Duration::from_secs(24 * 3600));
        self.call.deadline.map_or(alarm, |deadline| deadline.min(alarm))
    }

    fn alarm(&mut self) {
        if self.call.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.cut(FinishReason::Timeout);
            let code = ErrorCode::DeadlineExceeded;
            self.end_with(Failure::new(code, generic_reason(code), generic_message(code)));
        } else if self.call.identity.expires_at <= SystemTime::now() {
            self.end_with(Failure::new(ErrorCode::Unauthenticated, "TOKEN_EXPIRED", "the token has expired"));
        }
    }

    fn leave(&mut self) {
        self.told = true;
        let retry_after = Some(RETRY.into());
        let going = response::GoingAway { reason: SHUTTING_DOWN.to_owned(), retry_after };
        self.outbox.push("", response::Event::GoingAway(going));
        self.refuse_waiting(&leaving());
    }

    fn error(&self, request_id: &str, failure: Failure) {
        self.outbox.push(request_id, response::Event::Error(failure.into_event(request_id.to_owned())));
    }

    /// Answers a frame that is none; too many of them end the stream.
    fn strike(&mut self, request_id: &str, failure: Failure) {
        if self.strikes.strike() {
            self.end_with(failure);
        } else {
            self.error(request_id, failure);
        }
    }

    /// What waits for its turn will not get it.
    fn refuse_waiting(&mut self, failure: &Failure) {
        while let Some(waiting) = self.waiting.pop_front() {
            self.error(&waiting.request_id, failure.clone());
        }
    }

    /// Ends the stream with a failure; every start has its terminal event before it.
    fn end_with(&mut self, failure: Failure) {
        self.cut(FinishReason::Interrupted);
        self.refuse_waiting(&failure);
        self.outbox.close(Closed::Failed(failure));
    }

    /// No further frame can be read. When the client is gone nobody hears this.
    fn broken(&mut self, status: &Status) {
        tracing::debug!(code = ?status.code(), "a generate stream broke");
        // tonic's word for a message above the limit, which it refuses by its announced length.
        let too_big = status.code() == Code::OutOfRange;
        self.end_with(if too_big { frame_too_big() } else { Failure::from(status) });
    }
}

/// The next event of the turn that runs.
async fn next(running: &mut Option<Running>) -> Option<TurnEvent> {
    match running {
        Some(running) => running.turn.next().await,
        None => std::future::pending().await,
    }
}

const SHUTTING_DOWN: &str = "SHUTTING_DOWN";
const RETRY: Duration = Duration::from_millis(500);

fn leaving() -> Failure {
    Failure::new(ErrorCode::Unavailable, SHUTTING_DOWN, "this server is leaving; open another stream")
        .retry_after(RETRY)
}

fn frame_too_big() -> Failure {
    exhausted("FRAME_TOO_BIG", "the frame is too big")
}

fn exhausted(reason: &'static str, message: &'static str) -> Failure {
    Failure::new(ErrorCode::ResourceExhausted, reason, message)
}

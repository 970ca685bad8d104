//! One `Chat` stream: a task that takes the client's frames and hands them to the room, while the room's events go straight
//! from the subscriber's queue into the response.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chatbox_proto::{
    error_code::{ErrorCode, close},
    status::Failure,
    token::Identity,
    trace::TraceContext,
    v1::{ChatRequest, chat_response as response},
};
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tracing::{Instrument as _, Span};

use super::{
    admin::Gate,
    auth::{self, Authenticator},
    convert::{self, ClientFrame, Open},
    core::{CoreService, FrameLimits},
    limits::{FrameRate, Strikes},
};
use crate::{
    domain::{entry::Sender, time::Timestamp},
    llm::registry::Models,
    session::{Attach, Closed, Frame, OpenSession, Queue, Sessions, event},
};

/// To find or make the session and join its room.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// One stream of one caller.
pub(super) struct Connection {
    sessions: Sessions,
    authenticator: Authenticator,
    models: Models,
    gate: Gate,
    identity: Identity,
    caller: Sender,
    queue: Queue,
    /// Where what it asks for belongs in a trace.
    trace: Option<TraceContext>,
    /// The server is leaving.
    leaving: CancellationToken,
    open: Option<OpenSession>,
    limits: FrameLimits,
    rate: FrameRate,
    strikes: Strikes,
    warned: bool,
    /// That of the call, until the stream is open: to hold it for life would cost each frame and each idle stream.
    span: Span,
}

/// What follows from a frame.
enum Next {
    Go,
    /// The stream ends in order.
    End,
}

impl Connection {
    pub(super) fn new(
        service: &CoreService,
        identity: Identity,
        caller: Sender,
        queue: Queue,
        trace: Option<TraceContext>,
    ) -> Self {
        let limits = service.limits;
        Self {
            sessions: service.sessions.clone(),
            authenticator: service.authenticator.clone(),
            models: service.models.clone(),
            gate: service.gate.clone(),
            identity,
            caller,
            queue,
            trace,
            leaving: service.leaving.clone(),
            open: None,
            limits,
            rate: FrameRate::new(limits.per_second),
            strikes: Strikes::new(limits.malformed_per_minute),
            warned: false,
            span: Span::current(),
        }
    }

    /// Serves the stream until one side ends it.
    pub(super) async fn run(mut self: Box<Self>, mut frames: Streaming<Bytes>) {
        let mut half_closed = false;
        loop {
            let expiry = self.next_expiry();
            tokio::select! {
                biased;
                () = self.queue.wait_closed() => break,
                // Ahead of the frames, which a client may send without end.
                () = tokio::time::sleep_until(expiry) => self.expire(),
                // `message` is cancel-safe: what was decoded stays in the stream's buffer.
                frame = frames.message(), if !half_closed => match frame {
                    Ok(Some(bytes)) => match self.frame(bytes).await {
                        Next::Go => {}
                        Next::End => break,
                    },
                    Ok(None) => {
                        half_closed = true;
                        match &self.open {
                            Some(open) => open.room.half_close(open.subscriber).await,
                            None => break,
                        }
                    }
                    Err(status) => {
                        self.broken(&status);
                        break;
                    }
                },
                () = room_closed(self.open.as_ref()) => self.room_gone(),
                // Streams with a session are told by their room.
                () = self.leaving.cancelled(), if self.open.is_none() => {
                    self.queue.push(event::going_away("SHUTTING_DOWN", Duration::from_millis(500), close::GOING_AWAY));
                    self.queue.close(Closed::Failed(leaving()));
                }
            }
        }
        if let Some(open) = self.open.take() {
            open.room.detach(open.subscriber).await;
        }
        // Whoever got here first has said why; in order otherwise.
        self.queue.close(Closed::Done);
    }

    async fn frame(&mut self, bytes: Bytes) -> Next {
        if bytes.len() > self.limits.frame_bytes {
            self.end_with(String::new(), frame_too_big(), close::TOO_BIG);
            return Next::Go;
        }
        let request = match ChatRequest::decode(bytes) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(%error, "a frame could not be decoded");
                self.strike(String::new(), Failure::invalid("frame", "must be a ChatRequest message"));
                return Next::Go;
            }
        };
        let request_id = request.request_id.clone();
        if let Err(failure) = convert::printable("request_id", &request_id) {
            self.strike(String::new(), failure);
            return Next::Go;
        }
        if let Err(failure) = self.rate.take() {
            self.queue.push(event::error(request_id, failure));
            return Next::Go;
        }
        if request.frame.is_none() {
            self.strike(request_id, Failure::invalid("frame", "exactly one known frame must be set"));
            return Next::Go;
        }
        match self.handle(request).await {
            Ok(next) => next,
            Err(failure) => {
                self.queue.push(event::error(request_id, failure));
                Next::Go
            }
        }
    }

    async fn handle(&mut self, request: ChatRequest) -> Result<Next, Failure> {
        let request_id = request.request_id.clone();
        let sender = self.open.as_ref().map(|_| &self.caller);
        match convert::frame(request, sender, self.limits.text_bytes)? {
            // Boxed: what happens once in the life of a stream would make its task half as large again for all of it.
            ClientFrame::Open(open) => {
                let span = self.span.clone();
                Box::pin(self.open(request_id, open)).instrument(span).await?;
                self.span = Span::none();
            }
            ClientFrame::Room(frame) => {
                let open = self.open.as_ref().ok_or_else(convert::not_open)?;
                open.room.frame(open.subscriber, request_id, frame).await?;
            }
            ClientFrame::SelectModel(model) => {
                let open = self.open.as_ref().ok_or_else(convert::not_open)?;
                auth::must_choose(&self.identity, &self.models, "select_model.model", &model)?;
                open.room.frame(open.subscriber, request_id, Frame::SelectModel(model)).await?;
            }
            ClientFrame::RefreshToken(token) => Box::pin(self.refresh(request_id, &token)).await?,
            ClientFrame::Detach => {
                if !request_id.is_empty() {
                    self.queue.push(event::ack(request_id, None, 0, false));
                }
                return Ok(Next::End);
            }
        }
        Ok(Next::Go)
    }

    async fn open(&mut self, request_id: String, open: Open) -> Result<(), Failure> {
        if self.open.is_some() {
            return Err(Failure::new(
                ErrorCode::FailedPrecondition,
                "ALREADY_OPEN",
                "one stream serves one session; open another stream",
            ));
        }
        let sender = self.capacity(&open).await?;
        let join = |created, done| Attach {
            queue: self.queue.clone(),
            sender: sender.clone(),
            roles: self.identity.roles,
            after_seq: open.after_seq,
            reply: open.reply,
            request_id: request_id.clone(),
            trace: self.trace,
            created,
            done,
        };
        auth::may_choose(&self.identity, &self.models, &open.model)?;
        let attach = self.sessions.attach(&sender, open.session, &open.model, join);
        // The token may expire and the server may leave meanwhile: neither is looked at for longer than this.
        let attached = tokio::time::timeout(OPEN_TIMEOUT, attach).await;
        self.open = Some(attached.map_err(|_| leaving())??);
        self.caller = sender;
        Ok(())
    }

    /// In which capacity the caller opens a session: their own as its owner, somebody else's as an admin, which is written
    /// down first.
    async fn capacity(&self, open: &Open) -> Result<Sender, Failure> {
        let Some(id) = open.session.filter(|_| auth::admin(&self.identity).is_ok()) else {
            return Ok(self.caller.clone());
        };
        let owner = tokio::time::timeout(OPEN_TIMEOUT, self.sessions.owner(id)).await.map_err(|_| leaving())??;
        if owner == self.caller.user_id {
            return Ok(self.caller.clone());
        }
        self.gate.open_stream(&self.identity, id, &open.reason).await
    }

    async fn refresh(&mut self, request_id: String, token: &str) -> Result<(), Failure> {
        let identity = self.authenticator.token(token).await?;
        if !identity.same_caller(&self.identity) {
            return Err(Failure::invalid("refresh_token.token", "subject, roles and scopes must not change"));
        }
        self.identity = identity;
        self.warned = false;
        if !request_id.is_empty() {
            self.queue.push(event::ack(request_id, None, 0, false));
        }
        Ok(())
    }

    /// When the token's time comes: the warning first, the end then.
    fn next_expiry(&self) -> Instant {
        let left = self.identity.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
        let wait = if self.warned { left } else { left.saturating_sub(self.limits.expiry_warning) };
        // Far ends are looked at again: a timer cannot be set for centuries.
        Instant::now() + wait.min(Duration::from_secs(24 * 3600))
    }

    fn expire(&mut self) {
        let left = self.identity.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
        if left.is_zero() {
            let failure = Failure::new(ErrorCode::Unauthenticated, "TOKEN_EXPIRED", "the token has expired");
            self.end_with(String::new(), failure, close::TOKEN_EXPIRED);
        } else if !self.warned && left <= self.limits.expiry_warning {
            self.warned = true;
            let expire_time = Some(event::wire_time(Timestamp::from(self.identity.expires_at)));
            self.queue.push(event::encode(response::Event::TokenExpiring(response::TokenExpiring { expire_time })));
        }
    }

    /// Answers a frame that is none; too many of them end the stream.
    fn strike(&mut self, request_id: String, failure: Failure) {
        if self.strikes.strike() {
            self.end_with(request_id, failure, close::POLICY);
        } else {
            self.queue.push(event::error(request_id, failure));
        }
    }

    /// The last event names the close code; the status repeats the failure.
    fn end_with(&self, request_id: String, failure: Failure, close_code: u16) {
        let mut error = failure.clone().into_event(request_id);
        error.close_code = close_code.into();
        self.queue.push(event::encode(response::Event::Error(error)));
        self.queue.close(Closed::Failed(failure));
    }

    /// No further frame can be read. When the client is gone nobody hears this; when it sent what cannot be taken, the
    /// stream must not look as if it had ended well.
    fn broken(&self, status: &Status) {
        tracing::debug!(code = ?status.code(), "a chat stream broke");
        if status.code() == Code::OutOfRange {
            // tonic's word for a message above the limit, which it refuses by its announced length.
            self.end_with(String::new(), frame_too_big(), close::TOO_BIG);
        } else {
            self.queue.close(Closed::Failed(Failure::from(status)));
        }
    }

    /// The room ended under a live stream, which only a fault does: the client comes back to a new one.
    fn room_gone(&mut self) {
        self.open = None;
        self.queue.close(Closed::Failed(leaving()));
    }
}

impl Drop for Connection {
    /// A panic must not leave a stream that looks alive; whoever closed before has said why.
    fn drop(&mut self) {
        self.queue.close(Closed::Failed(Failure::internal()));
    }
}

fn frame_too_big() -> Failure {
    Failure::new(ErrorCode::ResourceExhausted, "FRAME_TOO_BIG", "the frame is too big")
}

fn leaving() -> Failure {
    Failure::new(ErrorCode::Unavailable, "SHUTTING_DOWN", "this server is leaving; come back and resume")
        .retry_after(Duration::from_millis(500))
}

async fn room_closed(open: Option<&OpenSession>) {
    match open {
        Some(open) => open.room.closed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;

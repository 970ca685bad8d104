//! A connection whose stream to core has ended: whether another one takes its place, and what the client is told.

use chatbox_proto::{
    error_code::{ErrorCode, close},
    status::Failure,
    v1::chat_response,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::{Connection, Timer, ends, expired};
use crate::{
    core_api::core_unavailable,
    ws::{attach::Stream, close::Ending, reopen},
};

/// Streams opened again in a row of which none brought anything: something is wrong that another one will not mend.
const MAX_TRIES: u32 = 8;

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Core's stream has ended, and said why or not.
    pub(super) fn on_stream_ended(&mut self, result: Result<(), Failure>) -> Option<Ending> {
        if let Some(code) = self.writer.announced() {
            return Some(Ending::announced(code));
        }
        match result {
            Ok(()) if self.session.is_leaving() => Some(Ending::normal()),
            // Nobody asked for it: core is leaving, or lost us.
            Ok(()) => self.lost(core_unavailable()),
            Err(failure) if self.is_expiry(&failure) => Some(expired()),
            Err(failure) if may_reopen(&failure) => self.lost(failure),
            Err(failure) => Some(Ending::by_core(failure, String::new())),
        }
    }

    /// Core is not there any more, or as good as. The socket stays while another stream comes up.
    pub(super) fn lost(&mut self, failure: Failure) -> Option<Ending> {
        self.link.stream = None;
        self.deadlines.clear(Timer::Forward);
        self.deadlines.clear(Timer::Feed);
        if self.session.is_leaving() {
            // Whoever only leaves has left. Whether the session has ended, the client has to see for itself.
            let left = self.session.is_detaching() && self.link.unanswered.is_empty();
            return Some(if left { Ending::normal() } else { Ending::by_core(failure, String::new()) });
        }
        let Some((plan, unknown)) = self.link.lose() else {
            return Some(Ending::by_core(failure, String::new()));
        };
        if plan.tries >= MAX_TRIES {
            return Some(Ending::by_core(core_unavailable(), String::new()));
        }
        tracing::debug!(reason = %failure.reason, unknown = unknown.len(), "the stream to core is lost");
        for request_id in unknown {
            self.writer.answer_kept(chat_response::Event::Error(ends::outcome_unknown().into_event(request_id)));
        }
        let reopening = reopen::reopen(self.edge.clone(), self.caller.clone(), plan);
        self.reopening = Some(Box::pin(reopening));
        None
    }

    pub(super) fn on_reopened(&mut self, result: Result<Stream, Failure>) -> Option<Ending> {
        let stream = match result {
            Ok(stream) => stream,
            Err(failure) if self.is_expiry(&failure) => return Some(expired()),
            Err(failure) => return Some(Ending::by_core(failure, String::new())),
        };
        let refreshed = self.link.reopened(stream, Instant::now());
        self.feed_lives();
        for request_id in refreshed {
            let ack = chat_response::Ack { request_id, ..chat_response::Ack::default() };
            self.writer.answer_kept(chat_response::Event::Ack(ack));
        }
        None
    }

    /// Something came from core, or is about to.
    pub(super) fn feed_lives(&mut self) {
        let heartbeat = self.edge.config.core.heartbeat;
        if !heartbeat.is_zero() {
            self.deadlines.set(Timer::Feed, Instant::now() + heartbeat.mul_f64(2.5));
        }
    }

    /// Nothing has come for two and a half heartbeats.
    pub(super) fn on_silence(&mut self) -> Option<Ending> {
        if self.writer.is_blocked() {
            // It is the client that does not take what came; the write deadline is about that.
            self.feed_lives();
            return None;
        }
        tracing::info!("nothing comes from core, opening the stream again");
        self.lost(core_unavailable())
    }
}

/// Whether a stream that ended like this goes on elsewhere. A client that was too slow for its queue is one on any core.
fn may_reopen(failure: &Failure) -> bool {
    failure.code == ErrorCode::Unavailable
        && Ending::by_core(failure.clone(), String::new()).code != close::SLOW_CONSUMER
}

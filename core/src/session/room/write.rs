//! Writes: what waits to be decided, the one append in flight, and what became of it.
//!
//! At most one append of a session is in flight. Its outcome is one of: done, and its entries are applied and fanned out;
//! conflict, and the tail is read and the decision made again, a bounded number of times; failed, and whoever asked is
//! told; unknown, and nothing else is decided until a read by its append id has settled it.

use std::time::Duration;

use chatbox_proto::{error_code::ErrorCode, ids::MessageId, status::Failure, token::Roles, v1};
use tokio::{sync::oneshot, time::Instant};

pub(super) use super::done::Done;
use super::{
    Room,
    admission::Verdict,
    attach::SubscriberId,
    flight::{Death, InFlight, Landed, Outcome, adopt, append, conflict, resolve},
    handoff::Handoff,
    life::Change,
    prepare::lookup,
    remote::RemoteReply,
};
use crate::{
    domain::{
        decide::{self, NextReply, Rejection},
        entry::{EndReason, Entry, EntryKind, FinishReason, Message, Sender},
        session::RunningReply,
    },
    session::{
        error::{SessionError, session_limit},
        event,
    },
    store::{MessageKey, RequestKey},
};

/// Between two tries to write the end of a reply: doubled each time, up to this.
const MAX_RETRY: Duration = Duration::from_secs(2);

/// What is to be decided.
pub(super) enum Op {
    /// A message.
    Send(Box<Message>),
    /// The end of the session.
    End { by: Sender, reason: EndReason },
    /// The end of the session, and of what is in it.
    Erase { by: Sender },
    /// Something about who answers.
    Handoff(Handoff),
    /// The end of the live reply.
    FinishReply(MessageId),
    /// The end of a reply of another core, which was to stop it and does not answer.
    Cut(MessageId),
    /// A reply to what waits.
    Answer,
    /// A change of the session as a whole.
    Change(Change),
}

/// Who is told.
pub(super) enum Origin {
    Nobody,
    Frame { subscriber: SubscriberId, request_id: String },
    Call(oneshot::Sender<Result<v1::Session, Failure>>),
}

/// One thing to be decided and appended.
pub(super) struct Write {
    pub(super) op: Op,
    pub(super) origin: Origin,
    /// Of whoever asks, where a model answers them.
    pub(super) roles: Option<Roles>,
    /// Idempotency of the call behind it.
    pub(super) request: Option<RequestKey>,
    /// What goes ahead of it is written.
    pub(super) prepared: bool,
    pub(super) verdict: Verdict,
    pub(super) rounds: u32,
    /// How often the core that runs the reply was asked to end it first.
    pub(super) asked: u32,
    pub(super) since: Instant,
}

impl Write {
    pub(super) fn new(op: Op, origin: Origin) -> Self {
        Self {
            op,
            origin,
            roles: None,
            request: None,
            prepared: false,
            verdict: Verdict::Open,
            rounds: 0,
            asked: 0,
            since: Instant::now(),
        }
    }

    pub(super) fn with_roles(self, roles: Option<Roles>) -> Self {
        Self { roles, ..self }
    }

    /// One that is the same if it comes again.
    pub(super) fn named(op: Op, origin: Origin, request: Option<RequestKey>) -> Self {
        Self { request, ..Self::new(op, origin) }
    }

    pub(super) fn judged(self, verdict: Verdict) -> Self {
        Self { verdict, ..self }
    }

    pub(super) fn subscriber(&self) -> Option<SubscriberId> {
        match &self.origin {
            Origin::Frame { subscriber, .. } => Some(*subscriber),
            Origin::Nobody | Origin::Call(_) => None,
        }
    }
}

impl Room {
    /// Starts the next append, if none is in flight and something waits.
    pub(super) fn start_writes(&mut self) {
        while self.writes.in_flight.is_none() {
            let Some(write) = self.next_write() else { return };
            match self.decide(&write) {
                Ok(kinds) if kinds.is_empty() => {
                    self.let_row_follow(&write);
                    self.answer(write.origin, Ok(Done::default()));
                }
                Ok(kinds) => self.start_append(write, kinds),
                Err(rejection) => {
                    self.let_row_follow(&write);
                    self.rejected(write, rejection);
                }
            }
        }
    }

    /// A read of the tail goes before everything, then the care for a reply without a task, then the end of a reply, then
    /// what waits.
    fn next_write(&mut self) -> Option<Write> {
        self.writes.retry_at.take_if(|at| *at <= Instant::now());
        let may_retry = self.writes.retry_at.is_none();
        if self.writes.wants_tail && may_retry {
            self.writes.wants_tail = false;
            let work = conflict(self.log.clone(), self.state.head, None);
            self.writes.in_flight = Some(InFlight::new(None, Vec::new(), work));
            return None;
        }
        if let (None, Some(running), Some(death)) = (&self.reply, &self.state.running, self.death()) {
            let work = adopt(self.log.clone(), running.clone(), death, self.shared.boot_id);
            self.writes.in_flight = Some(InFlight::new(None, Vec::new(), work));
            return None;
        }
        if let Some(reply) = &self.reply
            && reply.is_ending()
            && may_retry
        {
            return Some(Write::new(Op::FinishReply(reply.id), Origin::Nobody));
        }
        if self.state.needs_reply() && self.reply.is_none() && may_retry && !self.is_leaving() {
            return Some(Write::new(Op::Answer, Origin::Nobody));
        }
        let write = self.writes.pending.pop_front()?;
        if let Verdict::Open = write.verdict
            && let Some(work) = self.ask_budgets(&write.op)
        {
            self.writes.in_flight = Some(InFlight::new(Some(write), Vec::new(), work));
            return None;
        }
        if let Some(stage) = self.write_ahead(&write) {
            self.start_write_ahead(write, stage);
            return None;
        }
        self.ask_first(write)
    }

    /// Why what runs by the log runs nowhere, if that is so.
    fn death(&self) -> Option<Death> {
        if !self.shared.store.is_shared() {
            return Some(Death::OneOwner);
        }
        self.remote.as_ref()?.judged().map(Death::StoodStill)
    }

    pub(super) fn decide(&self, write: &Write) -> Result<Vec<EntryKind>, Rejection> {
        let state = &self.state;
        let next = || NextReply {
            id: MessageId::generate(),
            model: self.shared.models.get_or_default(&state.model).0.info.id.clone(),
            charge: self.charge(),
        };
        let reply = (!self.is_leaving()).then(next);
        match &write.op {
            Op::Send(_) | Op::Change(Change::Regenerate(_))
                if state.ended.is_none() && matches!(write.verdict, Verdict::Refused(_)) =>
            {
                Err(Rejection::NotAdmitted)
            }
            Op::Send(message) => {
                self.check_model(write.roles)?;
                decide::send(state, (**message).clone(), reply, self.shared.limits.max_unanswered)
            }
            Op::Change(change) => {
                self.check_model(write.roles)?;
                change.decide(state, next)
            }
            Op::Answer => Ok(decide::answer(state, next())),
            Op::FinishReply(id) => {
                let Some(live) = &self.reply else { return Err(Rejection::NotRunning) };
                decide::finish_reply(state, *id, live.ending(FinishReason::Interrupted), reply)
            }
            Op::Cut(id) => {
                let remote = self.remote.as_ref().filter(|remote| remote.id() == *id).ok_or(Rejection::NotRunning)?;
                // What its core has shown since cannot be known: this is no stop whose text is all that was streamed.
                decide::finish_reply(state, *id, remote.ending(FinishReason::Interrupted), reply)
            }
            Op::End { by, reason } => decide::end(state, Some(by.clone()), *reason, || self.cut_short(), next()),
            Op::Erase { by } => decide::erase(state, by.clone(), || self.cut_short(), next()),
            Op::Handoff(handoff) => self.decide_handoff(handoff, next()),
        }
    }

    fn rejected(&mut self, write: Write, rejection: Rejection) {
        match (write.op, rejection) {
            // Ending twice is ending once, and erasing too.
            (Op::End { .. }, Rejection::Ended) | (Op::Erase { .. }, Rejection::Erased) => {
                self.answer(write.origin, Ok(Done::default()));
            }
            (Op::FinishReply(id), _) => self.drop_reply(id),
            // The first try of a repeated message may be what filled the queue, or was followed by the end: look for it
            // before saying no.
            (Op::Send(message), _) => {
                let work = conflict(self.log.clone(), self.state.head, Some(self.message_key(&message, 0)));
                let rounds = self.shared.limits.append_rounds;
                let write = Write { op: Op::Send(message), rounds, ..write };
                self.writes.in_flight = Some(InFlight::new(Some(write), Vec::new(), work));
            }
            // The same for a call that names itself: its first try may be what stands in its way.
            (op, _) if write.request.is_some() && write.rounds < self.shared.limits.append_rounds => {
                let request = write.request.as_ref().map(|request| request.id);
                let work = lookup(self.log.clone(), self.state.head, request);
                let rounds = self.shared.limits.append_rounds;
                let write = Write { op, rounds, ..write };
                self.writes.in_flight = Some(InFlight::new(Some(write), Vec::new(), work));
            }
            (_, rejection) => {
                let refusal = self.refusal_of(rejection, write.verdict);
                self.answer(write.origin, Err(refusal));
            }
        }
    }

    fn start_append(&mut self, write: Write, kinds: Vec<EntryKind>) {
        match self.prepare(kinds, write.request.as_ref()) {
            Ok((entries, prepared)) => {
                let work = append(self.log.clone(), prepared);
                self.writes.in_flight = Some(InFlight::new(Some(write), entries, work));
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, session.id = %self.log.id, "an append could not be prepared");
                self.failed(write, &error);
            }
        }
    }

    pub(super) fn landed(&mut self, landed: Landed) {
        let Landed { write, entries, took, outcome } = landed;
        if let Some(write) = write.as_ref().filter(|_| !matches!(outcome, Outcome::Prepared(_))) {
            self.let_row_follow(write);
        }
        match outcome {
            Outcome::Done(document) => {
                self.shared.metrics.appended("done");
                self.shared.metrics.append_took("done", took);
                self.writes.failures = 0;
                self.writes.retry_at = None;
                self.count_finished(&entries);
                self.settle(&entries);
                let stage = self.stage_kind();
                self.apply_all(&entries);
                if self.stage_kind() != stage {
                    self.mend_row();
                }
                self.consider_naming(&entries);
                self.link.publish_document(&document);
                let started = |running: &RunningReply| running.started_seq >= document.first_seq;
                if self.reply.is_none() && self.state.running.as_ref().is_some_and(started) {
                    self.begin_reply(took);
                }
                if let Some(write) = write {
                    let done = Done::of(&write.op, &entries);
                    self.answer(write.origin, Ok(done));
                }
            }
            Outcome::Conflict { tail, found } => {
                self.apply_all(&tail);
                if let Some(write) = write {
                    self.shared.metrics.appended("conflict");
                    self.decide_again(write, found);
                }
                if let Some(read_at) = Instant::now().checked_sub(took) {
                    self.caught_up(read_at);
                }
                self.follow(false);
                self.retry_opens();
            }
            Outcome::NoSlot => {
                if let Some(write) = write {
                    self.answer(write.origin, Err(session_limit()));
                }
            }
            Outcome::Unknown(append, error) => {
                self.shared.metrics.appended("unknown");
                self.shared.count(&error);
                tracing::warn!(error = &error as &dyn std::error::Error, session.id = %self.log.id, "outcome of an append is unknown");
                if let Some(write) = write {
                    self.answer(write.origin, Err(Failure::from(&error).outcome_unknown()));
                }
                let work = resolve(self.log.clone(), *append);
                self.writes.in_flight = Some(InFlight::new(None, entries, work));
            }
            Outcome::Orphan(running, text) => {
                if self.state.running.as_ref().is_some_and(|now| now.id == running.id) {
                    self.adopt_reply(&text);
                }
            }
            Outcome::Prepared(result) => self.prepared(write, result),
            Outcome::Alive => self.acquit(),
            Outcome::Asked(asked) => self.asked_first(write, asked),
            Outcome::Admitted(room) => self.admitted(write, room),
            Outcome::Failed(error) => {
                self.shared.metrics.appended("failed");
                self.shared.count(&error);
                tracing::warn!(error = &error as &dyn std::error::Error, session.id = %self.log.id, "an append failed");
                match write {
                    Some(write) => self.failed(write, &error),
                    None => {
                        self.writes.wants_tail = true;
                        self.back_off();
                    }
                }
            }
        }
    }

    fn decide_again(&mut self, mut write: Write, found: Option<MessageKey>) {
        if matches!(write.op, Op::FinishReply(_) | Op::Answer) {
            // The room comes to these of its own accord.
            return;
        }
        if let (Op::Send(message), Some(found)) = (&write.op, &found) {
            let same = self.message_key(message, 0).content == found.content;
            let result = if same {
                Ok(Done { message_id: Some(found.message_id), seq: found.seq, duplicate: true })
            } else {
                Err(Failure::new(
                    ErrorCode::AlreadyExists,
                    "CLIENT_MESSAGE_ID_REUSED",
                    "this client_message_id was used for another message",
                ))
            };
            return self.answer(write.origin, result);
        }
        if let (Some(request), Some(found)) = (&write.request, &found) {
            let result = if request.content == found.content {
                Ok(Done { seq: found.seq, duplicate: true, ..Done::default() })
            } else {
                Err(Failure::new(
                    ErrorCode::AlreadyExists,
                    "REQUEST_ID_REUSED",
                    "this request_id was used with other fields",
                ))
            };
            return self.answer(write.origin, result);
        }
        write.rounds += 1;
        if write.rounds <= self.shared.limits.append_rounds {
            return self.writes.pending.push_front(write);
        }
        // The decision stands or the rivals do.
        let failure = match self.decide(&write) {
            Err(rejection) => self.refusal_of(rejection, write.verdict),
            Ok(_) => Failure::new(ErrorCode::Aborted, "TOO_MANY_CONFLICTS", "concurrent changes won; try again"),
        };
        self.answer(write.origin, Err(failure));
    }

    fn failed(&mut self, write: Write, error: &SessionError) {
        match write.op {
            // The end of a reply is not anybody's call to repeat: it is tried until it is written.
            Op::FinishReply(_) | Op::Answer => self.back_off(),
            Op::Cut(_) => {
                let waiters = self.remote.as_mut().map(RemoteReply::take_waiters);
                for origin in waiters.into_iter().flatten() {
                    self.answer(origin, Err(Failure::from(error)));
                }
            }
            Op::Send(_) | Op::End { .. } | Op::Erase { .. } | Op::Handoff(_) | Op::Change(_) => {
                self.answer(write.origin, Err(Failure::from(error)));
            }
        }
    }

    fn back_off(&mut self) {
        let delay = Duration::from_millis(50 << self.writes.failures.min(6));
        self.writes.failures += 1;
        self.writes.retry_at = Some(Instant::now() + delay.min(MAX_RETRY));
    }

    /// Applies entries that the store has confirmed, in order, and shows each to every subscriber.
    pub(super) fn apply_all(&mut self, entries: &[Entry]) {
        // What was heard from another core meanwhile is read again.
        let head = self.state.head;
        for entry in entries.iter().filter(|entry| entry.seq > head) {
            if let Err(error) = self.state.apply(entry) {
                tracing::error!(%error, session.id = %self.log.id, "the log is out of order");
                self.writes.wants_tail = true;
                return;
            }
            self.subscribers.broadcast(&event::entry(entry));
            if let EntryKind::ReplyFinished(finished) = &entry.fact.kind {
                self.drop_reply(finished.id);
            }
        }
        if self.state.erased {
            self.forget();
        }
        self.store_head = self.store_head.max(self.state.head);
    }

    /// The reply has its terminal entry: whoever stopped it is told.
    fn drop_reply(&mut self, id: MessageId) {
        let Some(mut reply) = self.reply.take_if(|reply| reply.id == id) else { return };
        for origin in reply.take_waiters() {
            self.answer(origin, Ok(Done { message_id: Some(id), ..Done::default() }));
        }
    }
}

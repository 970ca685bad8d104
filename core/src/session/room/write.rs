//! Writes: what waits to be decided, the one append in flight, and what became of it.
//!
//! At most one append of a session is in flight. Its outcome is one of: done, and its entries are applied and fanned out;
//! conflict, and the tail is read and the decision made again, a bounded number of times; failed, and whoever asked is
//! told; unknown, and nothing else is decided until a read by its append id has settled it.

use std::{collections::VecDeque, time::Duration};

use chatbox_proto::{error_code::ErrorCode, ids::MessageId, status::Failure, token::Roles, v1};
use tokio::{sync::oneshot, time::Instant};

pub(super) use super::done::Done;
use super::{
    Room,
    attach::SubscriberId,
    flight::{Death, InFlight, Landed, Outcome, adopt, append, conflict, resolve},
    life::Change,
    live::LiveReply,
    remote::{RemoteReply, look},
};
use crate::{
    domain::{
        decide::{self, NextReply, Rejection},
        entry::{EndReason, Entry, EntryKind, Fact, FinishReason, Message, Sender, Seq},
        session::{RunningReply, SessionState},
        time::Timestamp,
    },
    session::{
        error::{SessionError, session_limit},
        event,
    },
    store::{Append, MessageKey, ReplyRow},
};

/// Frames that wait for their turn; more are refused.
const MAX_PENDING: usize = 64;

/// Between two tries to write the end of a reply: doubled each time, up to this.
const MAX_RETRY: Duration = Duration::from_secs(2);

/// What is to be decided.
pub(super) enum Op {
    /// A message.
    Send(Box<Message>),
    /// The end of the session.
    End { by: Sender, reason: EndReason },
    /// The end of the live reply.
    FinishReply(MessageId),
    /// The end of a reply of another core, which does not answer.
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
    op: Op,
    origin: Origin,
    /// Of whoever asks, where a model answers them.
    roles: Option<Roles>,
    rounds: u32,
    since: Instant,
}

impl Write {
    pub(super) fn new(op: Op, origin: Origin) -> Self {
        Self { op, origin, roles: None, rounds: 0, since: Instant::now() }
    }

    pub(super) fn with_roles(self, roles: Option<Roles>) -> Self {
        Self { roles, ..self }
    }

    pub(super) fn subscriber(&self) -> Option<SubscriberId> {
        match &self.origin {
            Origin::Frame { subscriber, .. } => Some(*subscriber),
            Origin::Nobody | Origin::Call(_) => None,
        }
    }
}

/// The writes of one room.
#[derive(Default)]
pub(super) struct Writes {
    pending: VecDeque<Write>,
    pub(super) in_flight: Option<InFlight>,
    /// The store has entries that this room has not.
    pub(super) wants_tail: bool,
    /// What the room writes of its own accord failed; not again before then.
    retry_at: Option<Instant>,
    failures: u32,
}

impl Writes {
    pub(super) fn push(&mut self, write: Write) {
        self.pending.push_back(write);
    }

    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= MAX_PENDING
    }

    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_none() && !self.wants_tail
    }

    /// What the room does of its own accord may be tried again from here on.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// The end of the session is being written: what is said now would not be part of it.
    pub(super) fn ends_session(&self) -> bool {
        let flying = self.in_flight.as_ref().and_then(|flight| flight.write.as_ref());
        flying.is_some_and(|write| matches!(write.op, Op::End { .. }))
    }

    /// Takes out what has waited for longer than `limit`: the store does not answer, and whoever asked has to know. None of
    /// it was ever submitted.
    pub(super) fn take_late(&mut self, limit: Duration) -> Vec<Origin> {
        let mut late = Vec::new();
        while self.pending.front().is_some_and(|write| write.since.elapsed() > limit) {
            late.extend(self.pending.pop_front().map(|write| write.origin));
        }
        late
    }

    pub(super) fn waits_for(&self, subscriber: SubscriberId) -> bool {
        let flying = self.in_flight.as_ref().and_then(|flight| flight.write.as_ref());
        self.pending.iter().chain(flying).any(|write| write.subscriber() == Some(subscriber))
    }
}

impl Room {
    /// Starts the next append, if none is in flight and something waits.
    pub(super) fn start_writes(&mut self) {
        while self.writes.in_flight.is_none() {
            let Some(write) = self.next_write() else { return };
            match self.decide(&write) {
                Ok(kinds) if kinds.is_empty() => self.answer(write.origin, Ok(Done::default())),
                Ok(kinds) => self.start_append(write, kinds),
                Err(rejection) => self.rejected(write, rejection),
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
        if matches!(write.op, Op::End { .. })
            && let Some(remote) = self.remote.as_mut().filter(|remote| !remote.asked_for_end)
        {
            // The end keeps as much of the reply as can be had.
            remote.asked_for_end = true;
            let (id, known) = (remote.id(), event::length(&remote.text));
            let work = look(self.log.clone(), self.link.clone(), id, known, self.shared.boot_id);
            let work = async move { Outcome::Looked(id, work.await) };
            self.writes.in_flight = Some(InFlight::new(Some(write), Vec::new(), work));
            return None;
        }
        Some(write)
    }

    /// Why what runs by the log runs nowhere, if that is so.
    fn death(&self) -> Option<Death> {
        if !self.shared.store.is_shared() {
            return Some(Death::OneOwner);
        }
        self.remote.as_ref()?.judged().map(Death::StoodStill)
    }

    fn decide(&self, write: &Write) -> Result<Vec<EntryKind>, Rejection> {
        let state = &self.state;
        let next = || NextReply {
            id: MessageId::generate(),
            model: self.shared.models.get_or_default(&state.model).0.info.id.clone(),
        };
        let reply = (!self.is_leaving()).then(next);
        match &write.op {
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
                decide::finish_reply(state, *id, remote.ending(FinishReason::Cancelled), reply)
            }
            Op::End { by, reason } => {
                let ending = || match (&self.reply, &self.remote) {
                    (Some(live), _) => live.ending(FinishReason::Cancelled),
                    (None, Some(remote)) => remote.ending(FinishReason::Cancelled),
                    (None, None) => decide::Ending {
                        finish: FinishReason::Interrupted,
                        text: String::new(),
                        usage: crate::domain::entry::Usage::default(),
                        provider_request_id: None,
                        model: None,
                    },
                };
                decide::end(state, Some(by.clone()), *reason, ending, next())
            }
        }
    }

    fn rejected(&mut self, write: Write, rejection: Rejection) {
        match (write.op, rejection) {
            // Ending twice is ending once.
            (Op::End { .. }, Rejection::Ended) => self.answer(write.origin, Ok(Done::default())),
            (Op::FinishReply(id), _) => self.drop_reply(id),
            // The first try of a repeated message may be what filled the queue, or was followed by the end: look for it
            // before saying no.
            (Op::Send(message), _) => {
                let work = conflict(self.log.clone(), self.state.head, Some(self.message_key(&message, 0)));
                let rounds = self.shared.limits.append_rounds;
                let write = Write { op: Op::Send(message), rounds, ..write };
                self.writes.in_flight = Some(InFlight::new(Some(write), Vec::new(), work));
            }
            (_, rejection) => self.answer(write.origin, Err(rejection.into())),
        }
    }

    fn start_append(&mut self, write: Write, kinds: Vec<EntryKind>) {
        match self.prepare(kinds) {
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

    /// The document, its keys and its companions, decided against the head.
    fn prepare(&self, kinds: Vec<EntryKind>) -> Result<(Vec<Entry>, Append), SessionError> {
        let head = self.state.head;
        let at = Timestamp::now();
        let entries: Vec<Entry> =
            (head + 1..).zip(kinds).map(|(seq, kind)| Entry { seq, fact: Fact { at, kind } }).collect();
        let mut after: SessionState = self.state.clone();
        let mut messages = Vec::new();
        for entry in &entries {
            after.apply(entry)?;
            if let EntryKind::Message(message) = &entry.fact.kind
                && message.client_message_id.is_some()
            {
                messages.push(self.message_key(message, entry.seq));
            }
        }
        let facts: Vec<&Fact> = entries.iter().map(|entry| &entry.fact).collect();
        let reply_started =
            after.running.as_ref().filter(|running| running.started_seq > head).map(|running| ReplyRow {
                session_id: self.log.id,
                message_id: running.id,
                started_seq: running.started_seq,
                boot_id: self.shared.boot_id,
                renewals: 0,
                checkpoint: Vec::new(),
            });
        let returns = self.state.ended.is_some() && after.ended.is_none();
        let before = self.state.running.as_ref();
        let reply_finished = before.filter(|running| after.running.as_ref() != Some(running)).map(|running| running.id);
        let append = Append {
            session_id: self.log.id,
            append_id: rand::random(),
            expected_head: head,
            count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            sealed: self.log.seal(head + 1, &facts)?,
            messages,
            ends_session: after.ended.is_some() && self.state.ended.is_none(),
            takes_slot: returns.then(|| self.shared.limits.slot_rule()),
            derived: self.log.derive(&after)?,
            reply_started,
            reply_finished,
        };
        Ok((entries, append))
    }

    fn message_key(&self, message: &Message, seq: Seq) -> MessageKey {
        let client_id = message.client_message_id.as_deref().unwrap_or_default();
        let mut content: Vec<&[u8]> = vec![message.text.as_bytes()];
        content.extend(message.file_ids.iter().map(String::as_bytes));
        MessageKey {
            key: self.log.key.keyed_hash("message", &[message.sender.user_id.as_bytes(), client_id.as_bytes()]),
            content: self.log.key.keyed_hash("content", &content),
            message_id: message.id,
            seq,
        }
    }

    pub(super) fn landed(&mut self, landed: Landed) {
        let Landed { write, entries, took, outcome } = landed;
        match outcome {
            Outcome::Done(document) => {
                self.shared.metrics.appended("done");
                self.shared.metrics.append_took("done", took);
                self.writes.failures = 0;
                self.writes.retry_at = None;
                self.count_finished(&entries);
                self.apply_all(&entries);
                self.consider_naming(&entries);
                self.link.publish_document(&document);
                let started = |running: &RunningReply| running.started_seq >= document.first_seq;
                if self.reply.is_none() && self.state.running.as_ref().is_some_and(started) {
                    self.begin_reply(took);
                }
                if let Some(write) = write {
                    let done = Done::of(&entries);
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
            Outcome::Alive => self.acquit(),
            Outcome::Looked(id, found) => {
                self.found((id, found));
                if let Some(write) = write {
                    self.writes.pending.push_front(write);
                }
            }
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
        write.rounds += 1;
        if write.rounds <= self.shared.limits.append_rounds {
            return self.writes.pending.push_front(write);
        }
        // The decision stands or the rivals do.
        let failure = match self.decide(&write) {
            Err(rejection) => rejection.into(),
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
            Op::Send(_) | Op::End { .. } | Op::Change(_) => self.answer(write.origin, Err(Failure::from(error))),
        }
    }

    fn back_off(&mut self) {
        let delay = Duration::from_millis(50 << self.writes.failures.min(6));
        self.writes.failures += 1;
        self.writes.retry_at = Some(Instant::now() + delay.min(MAX_RETRY));
    }

    /// Counts replies where their end is written: with several cores, in one of them.
    fn count_finished(&self, entries: &[Entry]) {
        for entry in entries {
            if let EntryKind::ReplyFinished(finished) = &entry.fact.kind {
                let ran_for = self.reply.as_ref().filter(|reply| reply.id == finished.id).and_then(LiveReply::ran_for);
                self.shared.metrics.reply_finished(finished, ran_for);
            }
        }
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

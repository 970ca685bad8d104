//! Subscribers of a room: attaching and resuming, fan-out, presence.
//!
//! Resume is "position first": the room takes the head and joins the subscriber at once, so that everything later reaches
//! its queue; what lies between the client's position and that head is read from the store by the subscriber's own stream,
//! ahead of its queue. The room does no reading for it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use chatbox_proto::{
    error_code::ErrorCode,
    ids::MessageId,
    status::Failure,
    token::Roles,
    trace::TraceContext,
    v1::{self, chat_response as response},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{sync::oneshot, time::Instant};

use super::Room;
use crate::{
    domain::{
        entry::{Sender, SenderRole, Seq},
        time::Timestamp,
    },
    session::{
        error::shutting_down,
        event,
        log::{PAGE, SessionLog},
        subscriber::{Closed, Delta, Queue, Replay},
    },
};

/// Streams on one session; more are refused.
pub(super) const MAX_SUBSCRIBERS: usize = 64;

/// A client that knows more than the store is waited for this long: its core may be ahead of a read.
const FUTURE_POSITION: Duration = Duration::from_secs(2);

/// `typing` lapses unless refreshed.
pub(super) const TYPING_LAPSES: Duration = Duration::from_secs(10);

/// Names a subscriber within its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriberId(u64);

/// A stream that wants to join.
#[derive(Debug)]
pub struct Attach {
    /// Where its events go.
    pub queue: Queue,
    /// Who it is.
    pub sender: Sender,
    /// Its roles: which models may answer it, and which budgets pay.
    pub roles: Roles,
    /// The last entry it has.
    pub after_seq: Option<Seq>,
    /// How much of a running reply it has.
    pub reply: Option<(MessageId, u32)>,
    /// Echoed in `opened`.
    pub request_id: String,
    /// Where it belongs in a trace.
    pub trace: Option<TraceContext>,
    /// The session was made for it.
    pub created: bool,
    /// Told when it has joined, or why not.
    pub done: oneshot::Sender<Result<SubscriberId, Failure>>,
}

struct Subscriber {
    id: SubscriberId,
    queue: Queue,
    sender: Sender,
    roles: Roles,
    trace: Option<TraceContext>,
    typing_until: Option<Instant>,
    /// It sends nothing more; the last entry that it may have caused, once nothing of it waits any more.
    half_closed: Option<HalfClosed>,
}

/// What a half-closed stream still waits for.
#[derive(Debug, Clone, Copy)]
enum HalfClosed {
    /// Its own writes, and the start of a reply to them.
    Writes,
    /// The replies to what was written up to this entry.
    Replies(Seq),
}

/// What a stream that wants to join waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lacking {
    /// Entries that it has and this room has not.
    Entries,
    /// A look at the store, after hints may have been missed.
    Currency,
    /// The text of a reply that runs in another core.
    Text,
}

/// Everybody who is attached, and those who wait for entries that this room has not seen yet.
#[derive(Default)]
pub(super) struct Subscribers {
    attached: Vec<Subscriber>,
    waiting: Vec<(Attach, Instant)>,
    last_id: u64,
}

impl Subscribers {
    pub(super) fn is_empty(&self) -> bool {
        self.attached.is_empty() && self.waiting.is_empty()
    }

    /// Nobody has anything that will lapse.
    pub(super) fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.attached.iter().all(|s| s.typing_until.is_none() && s.half_closed.is_none())
    }

    /// Somebody waits to join.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Everybody who is attached, once each.
    pub(super) fn senders(&self) -> Vec<Sender> {
        let mut senders: Vec<Sender> = Vec::new();
        for subscriber in &self.attached {
            if !senders.iter().any(|sender| sender.user_id == subscriber.sender.user_id) {
                senders.push(subscriber.sender.clone());
            }
        }
        senders
    }

    /// Whether an admin is attached: this one, or any.
    pub(super) fn has_admin(&self, user_id: Option<&str>) -> bool {
        let mut admins = self.attached.iter().map(|s| &s.sender).filter(|sender| sender.role == SenderRole::Admin);
        admins.any(|admin| user_id.is_none_or(|user_id| admin.user_id == user_id))
    }

    pub(super) fn trace(&self, id: SubscriberId) -> Option<TraceContext> {
        self.attached.iter().find(|s| s.id == id).and_then(|s| s.trace)
    }

    pub(super) fn sender(&self, id: SubscriberId) -> Option<&Sender> {
        self.attached.iter().find(|s| s.id == id).map(|s| &s.sender)
    }

    /// The roles of a stream's token.
    pub(super) fn roles(&self, id: SubscriberId) -> Option<Roles> {
        self.attached.iter().find(|s| s.id == id).map(|s| s.roles)
    }

    pub(super) fn push(&self, id: SubscriberId, event: Bytes) {
        if let Some(subscriber) = self.attached.iter().find(|s| s.id == id) {
            subscriber.queue.push(event);
        }
    }

    pub(super) fn broadcast(&self, event: &Bytes) {
        for subscriber in &self.attached {
            subscriber.queue.push(event.clone());
        }
    }

    pub(super) fn broadcast_delta(&self, delta: &Delta) {
        for subscriber in &self.attached {
            subscriber.queue.push_delta(delta);
        }
    }

    fn broadcast_except(&self, except: SubscriberId, event: &Bytes) {
        for subscriber in self.attached.iter().filter(|s| s.id != except) {
            subscriber.queue.push(event.clone());
        }
    }

    pub(super) fn half_close(&mut self, id: SubscriberId) {
        if let Some(subscriber) = self.attached.iter_mut().find(|s| s.id == id) {
            subscriber.half_closed.get_or_insert(HalfClosed::Writes);
        }
    }

    pub(super) fn typing(&mut self, id: SubscriberId, active: bool) {
        let Some(subscriber) = self.attached.iter_mut().find(|s| s.id == id) else { return };
        subscriber.typing_until = active.then(|| Instant::now() + TYPING_LAPSES);
        let event = typing(&subscriber.sender, active);
        self.broadcast_except(id, &event);
    }

    pub(super) fn lapse_typing(&mut self, now: Instant) {
        let mut lapsed = Vec::new();
        for subscriber in &mut self.attached {
            if subscriber.typing_until.take_if(|until| *until <= now).is_some() {
                lapsed.push((subscriber.id, typing(&subscriber.sender, false)));
            }
        }
        for (id, event) in lapsed {
            self.broadcast_except(id, &event);
        }
    }

    /// Ends all streams with this failure, after what they have been given.
    pub(super) fn end(&mut self, failure: &Failure) {
        for subscriber in self.attached.drain(..) {
            subscriber.queue.close(Closed::Failed(failure.clone()));
        }
        for (attach, _) in self.waiting.drain(..) {
            let _ = attach.done.send(Err(failure.clone()));
        }
    }

    /// Tells everybody that the server is leaving, and ends their streams.
    pub(super) fn send_away(&mut self, jitter: Duration) {
        for subscriber in self.attached.drain(..) {
            let delay = jitter.mul_f64(rand::random());
            let code = chatbox_proto::error_code::close::GOING_AWAY;
            subscriber.queue.push(event::going_away("SHUTTING_DOWN", delay, code));
            subscriber.queue.close(Closed::Failed(shutting_down()));
        }
        for (attach, _) in self.waiting.drain(..) {
            let _ = attach.done.send(Err(shutting_down()));
        }
    }
}

pub(super) fn typing(sender: &Sender, active: bool) -> Bytes {
    let sender = Some(event::wire_sender(sender));
    event::encode(response::Event::Typing(response::Typing { sender, active }))
}

impl Room {
    pub(super) fn attach(&mut self, attach: Attach) {
        self.sweep_subscribers();
        if self.shared.store.is_shared() {
            // What others have written and acknowledged may not have been heard of here, or was lost on the way: who opens is
            // told what the store has now.
            self.stale_since = Some(Instant::now());
        }
        let refusal = if self.state.erased {
            Some(Failure::session_not_found())
        } else if self.is_leaving() {
            Some(shutting_down())
        } else if self.subscribers.attached.len() + self.subscribers.waiting.len() >= MAX_SUBSCRIBERS {
            Some(Failure::new(
                ErrorCode::ResourceExhausted,
                "TOO_MANY_SUBSCRIBERS",
                "this session has as many streams as it may",
            ))
        } else {
            None
        };
        if let Some(failure) = refusal {
            let _ = attach.done.send(Err(failure));
        } else if let Some(lacking) = self.lacks(&attach) {
            self.writes.wants_tail |= lacking != Lacking::Text;
            self.subscribers.waiting.push((attach, Instant::now() + FUTURE_POSITION));
        } else {
            self.join(attach);
        }
    }

    /// What has to be found out before a stream can join.
    fn lacks(&self, attach: &Attach) -> Option<Lacking> {
        if attach.after_seq.is_some_and(|after| after > self.state.head) {
            Some(Lacking::Entries)
        } else if self.stale_since.is_some() {
            Some(Lacking::Currency)
        } else if self.remote.as_ref().is_some_and(|remote| !remote.ready) {
            Some(Lacking::Text)
        } else {
            None
        }
    }

    /// The store was asked, by a read that began then.
    pub(super) fn caught_up(&mut self, read_at: Instant) {
        if self.stale_since.take_if(|since| *since <= read_at).is_some() {
            self.retry_opens();
        }
    }

    /// Joins those who waited for what has come.
    pub(super) fn retry_opens(&mut self) {
        for (attach, deadline) in std::mem::take(&mut self.subscribers.waiting) {
            if self.lacks(&attach).is_some() {
                self.subscribers.waiting.push((attach, deadline));
            } else {
                self.join(attach);
            }
        }
    }

    /// A position above the head is never an answer: after a while somebody else has to give it.
    pub(super) fn fail_late_opens(&mut self, now: Instant) {
        for (attach, deadline) in std::mem::take(&mut self.subscribers.waiting) {
            let lacking = self.lacks(&attach);
            if deadline > now && lacking.is_some() {
                self.writes.wants_tail |= lacking != Some(Lacking::Text);
                self.subscribers.waiting.push((attach, deadline));
                continue;
            }
            let (reason, text) = match lacking {
                Some(Lacking::Entries) => ("POSITION_AHEAD", "this server has not seen the position yet; try again"),
                Some(Lacking::Currency) => ("CATCHING_UP", "this server may have missed something; try again"),
                // Its text comes when it comes; the conversation need not wait for it.
                Some(Lacking::Text) | None => {
                    self.join(attach);
                    continue;
                }
            };
            let failure = Failure::new(ErrorCode::Unavailable, reason, text);
            let _ = attach.done.send(Err(failure.retry_after(Duration::from_secs(1))));
        }
    }

    fn join(&mut self, attach: Attach) {
        let Attach { queue, sender, roles, after_seq, reply, request_id, trace, created, done } = attach;
        let head = self.state.head;
        let verdict = match after_seq {
            None => response::ResumeVerdict::Fresh,
            Some(after) if head - after <= self.shared.limits.replay => response::ResumeVerdict::Replayed,
            Some(_) => response::ResumeVerdict::Gap,
        };
        queue.push(event::encode(response::Event::Opened(response::Opened {
            session: Some(self.wire_session()),
            verdict: verdict.into(),
            head,
            you: Some(event::wire_sender(&sender)),
            created,
            server_time: Some(event::wire_time(Timestamp::from(SystemTime::now()))),
            request_id,
        })));
        if let (response::ResumeVerdict::Replayed, Some(after)) = (verdict, after_seq)
            && after < head
        {
            queue.push_replay(replay(self.log.clone(), after, head));
        }
        // A reply whose end was read a moment ago is still held here: nothing may come after its end.
        let runs = |id: MessageId| self.state.running.as_ref().is_some_and(|running| running.id == id);
        let running = match (&self.reply, &self.remote) {
            (Some(live), _) if runs(live.id) => {
                Some(snapshot(live.id, live.started_seq, &live.text, &live.model, reply))
            }
            (None, Some(remote)) if runs(remote.id()) => {
                Some(snapshot(remote.id(), remote.started_seq(), &remote.text, remote.model(), reply))
            }
            (Some(_) | None, Some(_) | None) => None,
        };
        if let Some(snapshot) = running {
            // Ahead of the queue's count: it may be larger than everything else together.
            queue.push_replay(stream::once(std::future::ready(Ok(snapshot))).boxed());
        }
        queue.push(event::encode(response::Event::CaughtUp(response::CaughtUp { seq: head })));
        self.subscribers.last_id += 1;
        let id = SubscriberId(self.subscribers.last_id);
        let subscriber = Subscriber { id, queue, sender, roles, trace, typing_until: None, half_closed: None };
        self.subscribers.attached.push(subscriber);
        self.broadcast_presence(None);
        self.publish_presence(false);
        self.note_team();
        if done.send(Ok(id)).is_err() {
            self.detach(id);
        }
    }

    pub(super) fn detach(&mut self, id: SubscriberId) {
        let before = self.subscribers.attached.len();
        self.subscribers.attached.retain(|subscriber| subscriber.id != id);
        self.after_leaving(before);
    }

    /// Forgets those whose queue has closed: too slow, or gone.
    pub(super) fn sweep_subscribers(&mut self) {
        let before = self.subscribers.attached.len();
        self.subscribers.attached.retain(|subscriber| !subscriber.queue.is_closed());
        self.after_leaving(before);
    }

    fn after_leaving(&mut self, before: usize) {
        if self.subscribers.attached.len() == before {
            return;
        }
        self.broadcast_presence(None);
        self.publish_presence(false);
    }

    /// Ends the streams of those who send nothing more, once nothing that they wait for is left: their own writes, then the
    /// replies to them. What others go on to write is not waited for.
    pub(super) fn settle_half_closed(&mut self) {
        let before = self.subscribers.attached.len();
        let (writes, state) = (&self.writes, &self.state);
        // A start takes everything that waits, so once nothing waits, what it wrote is answered by the reply that runs.
        let asked = state.unanswered.is_empty() || state.ended.is_some();
        let answering = |seq: Seq| state.running.as_ref().is_some_and(|running| running.started_seq <= seq);
        self.subscribers.attached.retain_mut(|subscriber| {
            let writes_done = asked && !writes.waits_for(subscriber.id);
            if matches!(subscriber.half_closed, Some(HalfClosed::Writes)) && writes_done {
                subscriber.half_closed = Some(HalfClosed::Replies(state.head));
            }
            let settled = match subscriber.half_closed {
                Some(HalfClosed::Replies(seq)) => !answering(seq),
                Some(HalfClosed::Writes) | None => false,
            };
            if settled {
                subscriber.queue.close(Closed::Done);
            }
            !settled
        });
        self.after_leaving(before);
    }

    /// Tells everybody, or everybody but one, who is here and how far they have read. Nobody is told what only they did.
    pub(super) fn broadcast_presence(&self, except: Option<SubscriberId>) {
        if self.subscribers.attached.iter().all(|s| Some(s.id) == except) {
            return;
        }
        let mut participants: Vec<response::Participant> = Vec::new();
        let mut offline: BTreeMap<&str, Seq> = self.read_marks.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        let attached = self.subscribers.attached.iter().map(|subscriber| &subscriber.sender);
        for sender in attached.chain(self.peers.online()) {
            let sender = event::wire_sender(sender);
            if participants.iter().any(|p| p.sender.as_ref().is_some_and(|s| s.user_id == sender.user_id)) {
                continue;
            }
            let read_seq = offline.remove(sender.user_id.as_str()).unwrap_or(0);
            participants.push(response::Participant { sender: Some(sender), online: true, read_seq });
        }
        for (user_id, read_seq) in offline {
            let role = if *user_id == *self.owner { v1::SenderRole::User } else { v1::SenderRole::Admin };
            let sender = v1::Sender { role: role.into(), user_id: user_id.to_owned(), display_name: String::new() };
            participants.push(response::Participant { sender: Some(sender), online: false, read_seq });
        }
        let event = event::encode(response::Event::Presence(response::Presence { participants }));
        match except {
            Some(except) => self.subscribers.broadcast_except(except, &event),
            None => self.subscribers.broadcast(&event),
        }
    }
}

/// What the client lacks of the running reply: from its position if that is a place in this reply, else everything.
fn snapshot(reply: MessageId, started_seq: Seq, text: &str, model: &str, position: Option<(MessageId, u32)>) -> Bytes {
    let offset = match position {
        Some((id, offset)) if id == reply && text.is_char_boundary(offset as usize) => offset,
        Some(_) | None => 0,
    };
    event::snapshot(reply, started_seq, offset, &text[offset as usize..], model)
}

/// The entries in `(after, head]`, read page by page as the subscriber takes them.
fn replay(log: SessionLog, after: Seq, head: Seq) -> Replay {
    stream::try_unfold(after, move |after| {
        let log = log.clone();
        async move {
            if after >= head {
                return Ok(None);
            }
            let page = log.read_after(after, PAGE).await.map_err(|error| {
                tracing::warn!(error = &error as &dyn std::error::Error, session.id = %log.id, "a replay failed");
                Failure::from(&error)
            })?;
            let Some(last) = page.last().map(|entry| entry.seq) else {
                tracing::error!(session.id = %log.id, after, head, "the log ends before its head");
                return Err(Failure::internal());
            };
            let events: Vec<Bytes> = page.iter().filter(|entry| entry.seq <= head).map(event::entry).collect();
            Ok(Some((stream::iter(events.into_iter().map(Ok)), last)))
        }
    })
    .try_flatten()
    .boxed()
}

//! The owner of one live session: its state at the head, its subscribers and its running reply. Everybody else talks to it
//! through a bounded channel. It decides, appends, and fans out what the store has confirmed; it never waits for a
//! subscriber, and while an append is in flight deltas and attaching go on.

mod admission;
mod attach;
mod done;
mod ending;
mod flight;
mod handle;
mod handoff;
mod life;
mod live;
mod marks;
mod peers;
mod prepare;
mod remote;
mod write;
mod writes;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chatbox_proto::{error_code::ErrorCode, status::Failure, token::Roles, trace::TraceContext};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use self::{
    attach::Subscribers,
    flight::poll,
    handoff::{Handoff, RowCare},
    life::Naming,
    live::{LiveReply, Renewal},
    marks::{Marks, store_marks},
    peers::Peers,
    remote::{Look, RemoteReply, Stopping},
    write::{Op, Origin, Write},
    writes::Writes,
};
pub use self::{
    attach::{Attach, SubscriberId},
    handle::{Frame, RoomHandle},
    handoff::Act,
};
pub(super) use self::{handle::Command, life::Change};
use super::{
    directory::{Phase, Shared},
    error::{SessionError, shutting_down},
    event,
    link::{Link, Said},
    log::SessionLog,
};
use crate::{
    bus::Subscription,
    domain::{
        entry::{EndReason, Seq},
        session::SessionState,
        time::Timestamp,
    },
    store::Stage,
};

/// Commands that wait for the room; senders wait beyond that.
const COMMAND_QUEUE: usize = 16;

/// A room without subscribers and work stays this long, so that a reload finds it.
const LINGER: Duration = Duration::from_secs(5);

/// How often everything that has a deadline is looked at, at least.
const TICK: Duration = Duration::from_millis(500);

/// What a room begins with.
pub(super) struct Opening {
    pub(super) log: SessionLog,
    pub(super) owner: String,
    pub(super) created_at: Timestamp,
    pub(super) state: SessionState,
    pub(super) read_marks: BTreeMap<String, Seq>,
    pub(super) link: Link,
    /// Begun before the state was read; `None` when there are no other cores.
    pub(super) subscription: Option<Subscription>,
}

/// See the module's text.
pub(super) struct Room {
    shared: Arc<Shared>,
    log: SessionLog,
    link: Link,
    subscription: Option<Subscription>,
    /// Hints may have been missed since then: nothing is served as current before the store was asked.
    stale_since: Option<Instant>,
    peers: Peers,
    remote: Option<RemoteReply>,
    look: Option<Look>,
    stopping: Option<Stopping>,
    owner: Arc<str>,
    created_at: Timestamp,
    state: SessionState,
    commands: mpsc::Receiver<Box<Command>>,
    subscribers: Subscribers,
    read_marks: BTreeMap<String, Seq>,
    dirty_marks: BTreeMap<String, Seq>,
    marks: Option<Marks>,
    marked_at: Option<Instant>,
    writes: Writes,
    reply: Option<LiveReply>,
    naming: Option<Naming>,
    /// Where the last message that came in here belongs in a trace: the next reply answers it.
    trace: Option<TraceContext>,
    renewal: Option<Renewal>,
    row: RowCare,
    /// What others were told last about the session's row.
    announced: Option<std::mem::Discriminant<Stage>>,
    /// The roles of whoever wrote here last.
    payer: Option<Roles>,
    /// The head as the store told it last.
    store_head: Seq,
    phase: watch::Receiver<Phase>,
    /// The directory is gone: nobody will change the phase any more.
    gone: bool,
    next_heartbeat: Instant,
    empty_since: Option<Instant>,
}

impl Room {
    /// A room at the head of its session, and the way to reach it. Nothing runs yet.
    pub(super) fn new(shared: Arc<Shared>, opening: Opening) -> (Self, RoomHandle) {
        let Opening { log, owner, created_at, state, read_marks, link, subscription } = opening;
        let (sender, commands) = mpsc::channel(COMMAND_QUEUE);
        let owner: Arc<str> = owner.into();
        let handle = RoomHandle { commands: sender, owner: owner.clone() };
        let phase = shared.phase.clone();
        let mut room = Self {
            log,
            link,
            subscription,
            stale_since: None,
            peers: Peers::default(),
            remote: None,
            look: None,
            stopping: None,
            owner,
            created_at,
            store_head: state.head,
            state,
            commands,
            subscribers: Subscribers::default(),
            read_marks,
            dirty_marks: BTreeMap::new(),
            marks: None,
            marked_at: None,
            writes: Writes::default(),
            reply: None,
            naming: None,
            trace: None,
            renewal: None,
            row: RowCare::default(),
            announced: None,
            payer: None,
            phase,
            gone: false,
            next_heartbeat: Instant::now() + shared.limits.heartbeat,
            empty_since: Some(Instant::now()),
            shared,
        };
        room.announced = room.stage_kind();
        (room, handle)
    }

    /// Serves the session until nobody is there and nothing is left to do.
    pub(super) async fn run(mut self: Box<Self>) {
        // `phase` may have changed before this room existed.
        self.phase.mark_changed();
        self.publish_presence(true);
        let alarm = tokio::time::sleep_until(self.next_deadline());
        tokio::pin!(alarm);
        loop {
            self.note_emptiness();
            self.follow(false);
            if self.is_done() {
                break;
            }
            self.start_writes();
            self.start_renewal();
            self.start_look();
            self.settle_half_closed();
            self.start_marks();
            self.start_row();
            // Setting a timer costs more than passing on a delta: one that rings too early is harmless, so it is only moved
            // when it would ring too late.
            let deadline = self.next_deadline();
            if deadline < alarm.deadline() || alarm.is_elapsed() {
                alarm.as_mut().reset(deadline);
            }
            let paused = self.writes.cuts_reply();
            tokio::select! {
                biased;
                landed = poll(&mut self.writes.in_flight) => self.landed(landed),
                renewed = poll(&mut self.renewal) => self.renewed(renewed),
                event = live::next_event(&mut self.reply, paused) => self.reply_event(event),
                found = poll(&mut self.look) => self.found(found),
                stopped = poll(&mut self.stopping) => self.stopped(stopped),
                delivery = peers::next_delivery(&mut self.subscription) => self.delivered(delivery),
                command = self.commands.recv() => match command {
                    Some(command) => self.command(*command),
                    // The directory holds a sender until the room retires.
                    None => break,
                },
                name = life::next_name(&mut self.naming) => self.named(name),
                unmarked = poll(&mut self.marks) => self.marked(unmarked),
                written = poll(&mut self.row.writing) => self.row_written(written),
                changed = self.phase.changed(), if !self.gone => self.phase_changed(changed.is_err()),
                () = &mut alarm => self.tick(),
            }
        }
        if let Some(marks) = self.marks.take() {
            marks.await;
        }
        if let Some(row) = self.row.writing.take() {
            // What it could not write is mended by whoever watches the rows.
            let written = row.await;
            self.row_written(written);
        }
        if !self.dirty_marks.is_empty() {
            store_marks(self.log.clone(), std::mem::take(&mut self.dirty_marks)).await;
        }
        self.retire().await;
    }

    fn is_done(&self) -> bool {
        let quiet = self.subscribers.is_empty()
            && self.writes.is_idle()
            && (self.row.is_idle() || self.is_leaving())
            && self.reply.is_none()
            && (self.naming.is_none() || self.is_leaving())
            && !self.remote.as_ref().is_some_and(RemoteReply::needs_care)
            && (!self.state.needs_reply() || self.is_leaving());
        let lingered =
            self.is_leaving() || self.state.erased || self.empty_since.is_some_and(|since| since.elapsed() >= LINGER);
        quiet && lingered && self.commands.is_empty()
    }

    fn is_leaving(&self) -> bool {
        self.gone || *self.phase.borrow() != Phase::Serving
    }

    fn is_cutting(&self) -> bool {
        self.gone || *self.phase.borrow() == Phase::Cutting
    }

    /// Since when nobody is attached.
    fn note_emptiness(&mut self) {
        if self.subscribers.is_empty() {
            self.empty_since.get_or_insert_with(Instant::now);
        } else {
            self.empty_since = None;
        }
    }

    /// Takes the room out of the directory, then answers whoever was too late: their callers look again.
    async fn retire(mut self: Box<Self>) {
        self.shared.retire(self.log.id);
        self.commands.close();
        while self.commands.recv().await.is_some() {}
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Attach(attach) => self.attach(attach),
            Command::Frame { subscriber, request_id, frame } => self.frame(subscriber, request_id, frame),
            Command::HalfClose(subscriber) => self.subscribers.half_close(subscriber),
            Command::Detach(subscriber) => self.detach(subscriber),
            Command::End { done, .. } | Command::Erase { done, .. } if self.writes.is_full() => {
                self.answer(Origin::Call(done), Err(too_many_writes()))
            }
            Command::End { by, done } => {
                self.writes.push(Write::new(Op::End { by, reason: EndReason::User }, Origin::Call(done)));
            }
            Command::Erase { by, done } => self.writes.push(Write::new(Op::Erase { by }, Origin::Call(done))),
            Command::Act { act, by, request, done } => self.act(act, by, request, Origin::Call(done)),
            Command::StandsStill(row) => self.stands_still(row),
            Command::Placed(place) => self.placed(place),
            Command::StoreHead { head, read_at } => {
                self.store_head = self.store_head.max(head);
                if head > self.state.head {
                    self.writes.wants_tail = true;
                } else {
                    self.caught_up(read_at);
                }
            }
            Command::Dead(row) => self.judge(row),
            Command::Change { change, done } => self.change(change, done),
            Command::Idle(head) => self.end_idle(head),
        }
    }

    fn frame(&mut self, subscriber: SubscriberId, request_id: String, frame: Frame) {
        let Some(sender) = self.subscribers.sender(subscriber).cloned() else { return };
        let roles = self.subscribers.roles(subscriber);
        let origin = Origin::Frame { subscriber, request_id };
        if let Some(refusal) = self.refuse_admin(&sender, &frame) {
            return self.answer(origin, Err(refusal));
        }
        match frame {
            Frame::Send(_)
            | Frame::EndSession
            | Frame::RequestHelp(_)
            | Frame::SelectModel(_)
            | Frame::Regenerate(_)
                if self.is_leaving() =>
            {
                self.answer(origin, Err(shutting_down()))
            }
            Frame::Send(_)
            | Frame::EndSession
            | Frame::RequestHelp(_)
            | Frame::SelectModel(_)
            | Frame::Regenerate(_)
                if self.writes.is_full() =>
            {
                self.answer(origin, Err(too_many_writes()));
            }
            Frame::Send(message) => {
                self.trace = self.subscribers.trace(subscriber);
                if *sender.user_id == *self.owner {
                    self.payer = roles;
                }
                let verdict = self.share(&sender.user_id);
                let write = Write::new(Op::Send(Box::new(message)), origin).with_roles(roles);
                self.writes.push(write.judged(verdict));
            }
            Frame::Regenerate(id) => {
                self.trace = self.subscribers.trace(subscriber);
                if *sender.user_id == *self.owner {
                    self.payer = roles;
                }
                let verdict = self.share(&sender.user_id);
                let write = Write::new(Op::Change(Change::Regenerate(id)), origin).with_roles(roles);
                self.writes.push(write.judged(verdict));
            }
            Frame::SelectModel(model) => {
                self.writes.push(Write::new(Op::Change(Change::SelectModel(model)), origin));
            }
            Frame::EndSession => {
                self.writes.push(Write::new(Op::End { by: sender, reason: EndReason::User }, origin));
            }
            Frame::RequestHelp(reason) => {
                self.writes.push(Write::new(Op::Handoff(Handoff::RequestHelp(reason)), origin));
            }
            Frame::Stop(message_id) => self.stop(message_id, origin),
            Frame::Typing(active) => {
                self.subscribers.typing(subscriber, active);
                self.link.publish(&Said::Typing { sender, active });
                self.answer_frame(origin);
            }
            Frame::Read(seq) if seq > self.state.head => {
                self.answer(origin, Err(Failure::invalid("read.seq", "at most the head of the session")));
            }
            Frame::Read(seq) => {
                let mark = self.read_marks.entry(sender.user_id.clone()).or_default();
                if seq > *mark {
                    *mark = seq;
                    self.dirty_marks.insert(sender.user_id, seq);
                    self.broadcast_presence(Some(subscriber));
                    self.publish_presence(false);
                }
                self.answer_frame(origin);
            }
        }
    }

    /// Acknowledges a frame that wrote nothing.
    fn answer_frame(&mut self, origin: Origin) {
        self.answer(origin, Ok(write::Done::default()));
    }

    /// Answers a write to whoever asked for it.
    fn answer(&mut self, origin: Origin, result: Result<write::Done, Failure>) {
        match origin {
            Origin::Nobody => {}
            Origin::Frame { subscriber, request_id } => {
                let event = match result {
                    Ok(_) if request_id.is_empty() => return,
                    Ok(done) => event::ack(request_id, done.message_id, done.seq, done.duplicate),
                    Err(failure) => event::error(request_id, failure),
                };
                self.subscribers.push(subscriber, event);
            }
            Origin::Call(done) => {
                // A caller that gave up has no use for it.
                let _ = done.send(result.map(|_| self.wire_session()));
            }
        }
    }

    fn phase_changed(&mut self, gone: bool) {
        // Without a directory there is nobody to cut this room later.
        self.gone = gone;
        self.phase.mark_unchanged();
        if self.is_leaving() {
            self.subscribers.send_away(self.shared.limits.away_jitter);
            self.publish_presence(false);
        }
        if self.is_cutting()
            && let Some(reply) = &mut self.reply
        {
            reply.interrupt();
        }
    }

    /// An idle session wakes up for its heartbeat only.
    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        let quiet = self.subscribers.is_quiet()
            && self.reply.is_none()
            && self.writes.is_idle()
            && self.dirty_marks.is_empty()
            && self.peers.is_quiet()
            && self.empty_since.is_none();
        let tick = if quiet { self.next_heartbeat } else { self.next_heartbeat.min(now + TICK) };
        let look = self.remote.as_ref().filter(|_| self.look.is_none()).map(RemoteReply::next_look);
        let sooner = [self.writes.retry_at(), look, self.lease_ends(), self.next_row()];
        sooner.into_iter().flatten().fold(tick, Instant::min).max(now)
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if now >= self.next_heartbeat {
            self.next_heartbeat = now + self.shared.limits.heartbeat;
            self.subscribers.broadcast(&event::heartbeat(self.store_head.max(self.state.head)));
            self.note_team();
        }
        self.subscribers.lapse_typing(now);
        self.tick_peers(now);
        self.check_lease();
        self.fail_late_opens(now);
        for origin in self.writes.take_late(self.shared.limits.store_call) {
            self.answer(origin, Err(Failure::from(&SessionError::StoreTimeout)));
        }
        self.sweep_subscribers();
    }
}

fn too_many_writes() -> Failure {
    Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_WRITES", "too many frames wait")
        .retry_after(Duration::from_millis(200))
}

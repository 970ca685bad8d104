//! One client: writes, repeats, stops, leaves and comes back, whatever happens to it.

use std::{collections::BTreeMap, time::Duration};

use chatbox_proto::v1::{
    ErrorCode,
    chat_request::{Detach, EndSession, Frame, Read, Send, Stop},
    chat_response::Event,
};
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use super::{Habits, Phase, Rest, position::Position};
use crate::{
    checker::{
        plan::{End, Plan},
        record::{Clock, Connection, Device, Sighting, Step},
        topology::{Doors, pause},
    },
    harness::client::{Client, Received, Transport},
};

/// A connection may fall silent for so long: an edge needs a while to find another core.
const SILENCE: Duration = Duration::from_millis(4_000);

/// A connection must come up, and a frame must be taken, in this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// Messages on their way at once.
const WINDOW: usize = 3;

/// While everything comes to rest, a reply may run for so long before somebody stops it.
const RUNS_ON: Duration = Duration::from_millis(300);

/// What a frame was about, for its answer.
enum Asked {
    Message(u32),
    Nothing,
}

/// See the module's text.
pub(super) struct Visitor {
    name: String,
    user: String,
    doors: Doors,
    clock: Clock,
    random: StdRng,
    habits: Habits,
    position: Position,
    /// Written and not acknowledged, by number.
    waiting: BTreeMap<u32, Plan>,
    /// Acknowledged in this session.
    acked: Vec<Plan>,
    written: u32,
    on_the_way: BTreeMap<String, Asked>,
    opened: bool,
    /// It wants to see the session from the beginning.
    reads_all: bool,
    connections: Vec<Connection>,
}

impl Visitor {
    pub(super) fn new(name: String, user: String, doors: Doors, clock: Clock, random: StdRng, habits: Habits) -> Self {
        let mut visitor = Self {
            name,
            user,
            doors,
            clock,
            random,
            habits,
            position: Position::default(),
            waiting: BTreeMap::new(),
            acked: Vec::new(),
            written: 0,
            on_the_way: BTreeMap::new(),
            opened: false,
            reads_all: false,
            connections: Vec::new(),
        };
        visitor.forget_session();
        visitor
    }

    pub(super) async fn run(mut self, orders: watch::Receiver<Phase>, rest: watch::Sender<Rest>) -> Device {
        while *orders.borrow() != Phase::Finish {
            let transport = *self.doors.transports().choose(&mut self.random).unwrap_or(&Transport::Grpc);
            let connect = self.doors.connect(transport, &self.user, &mut self.random);
            match timeout(PATIENCE, connect).await {
                Ok(Ok(client)) => {
                    self.connections.push(Connection { transport, steps: Vec::new() });
                    self.talk(client, &orders, &rest).await;
                    self.opened = false;
                    self.on_the_way.clear();
                }
                Ok(Err(_)) | Err(_) => {}
            }
            self.tell(&rest);
            if *orders.borrow() != Phase::Finish {
                // As real clients do: not all at the same moment.
                pause(Duration::from_millis(self.random.random_range(10..100))).await;
            }
        }
        Device { name: self.name, user: self.user, connections: self.connections }
    }

    async fn talk(&mut self, mut client: Client, orders: &watch::Receiver<Phase>, rest: &watch::Sender<Rest>) {
        let open = Frame::Open(self.position.open());
        if !self.post(&mut client, open, Asked::Nothing).await {
            return;
        }
        let mut heard = Instant::now();
        let mut next = heard + self.think();
        loop {
            match timeout_at(next.min(heard + SILENCE), client.receive()).await {
                Ok(Ok(Received::Event(event))) => {
                    heard = Instant::now();
                    client.seen.clear();
                    self.note(Step::Came(event.clone()));
                    let stay = self.heard(&event);
                    self.tell(rest);
                    if !stay {
                        return;
                    }
                }
                Ok(Ok(Received::Closed(closed))) => return self.note(Step::Closed(closed)),
                Ok(Err(error)) => return self.note(Step::Malformed(format!("{error:#}"))),
                Err(_) if heard.elapsed() >= SILENCE => return self.note(Step::Silent),
                Err(_) => {
                    next = Instant::now() + self.think();
                    let phase = *orders.borrow();
                    let stays = match phase {
                        Phase::Finish => false,
                        Phase::Load | Phase::Settle if !self.opened => true,
                        Phase::Load => self.act(&mut client).await,
                        Phase::Settle => self.settle(&mut client).await,
                    };
                    if !stays {
                        return;
                    }
                }
            }
        }
    }

    fn think(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(5..120))
    }

    fn note(&mut self, step: Step) {
        let sighting = Sighting { at: self.clock.now(), step };
        if let Some(connection) = self.connections.last_mut() {
            connection.steps.push(sighting);
        }
    }

    /// Sends a frame; false when the connection does not take it.
    async fn post(&mut self, client: &mut Client, frame: Frame, asked: Asked) -> bool {
        let at = self.clock.now();
        let sent = timeout(PATIENCE, client.send(frame.clone())).await;
        let request_id = sent.ok().and_then(Result::ok);
        let taken = request_id.is_some();
        if let Some(request_id) = &request_id {
            self.on_the_way.insert(request_id.clone(), asked);
        }
        let step = Step::Sent { request_id: request_id.unwrap_or_default(), frame };
        if let Some(connection) = self.connections.last_mut() {
            connection.steps.push(Sighting { at, step });
        }
        taken
    }

    /// Takes an event in; false when there is no use in staying.
    fn heard(&mut self, event: &Event) -> bool {
        self.position.apply(event);
        match event {
            Event::Opened(opened) => {
                self.opened = true;
                let at_beginning = self.position.after == Some(0) || opened.head == 0;
                if std::mem::take(&mut self.reads_all) && !at_beginning {
                    // Only a session that is known can be read from its beginning.
                    self.position.after = Some(0);
                    return false;
                }
            }
            Event::Ack(ack) => {
                if let Some(Asked::Message(number)) = self.on_the_way.remove(&ack.request_id) {
                    self.acked.extend(self.waiting.remove(&number));
                }
            }
            Event::Error(error) => {
                let definite = matches!(
                    error.code(),
                    ErrorCode::FailedPrecondition | ErrorCode::InvalidArgument | ErrorCode::AlreadyExists
                );
                if let Some(Asked::Message(number)) = self.on_the_way.remove(&error.request_id)
                    && definite
                {
                    self.waiting.remove(&number);
                }
                if error.reason == "SESSION_ENDED" {
                    self.position.ended = true;
                }
                // An `open` that was refused.
                if !self.opened {
                    return false;
                }
            }
            _ => {}
        }
        if self.opened && self.position.ended && self.waiting.is_empty() {
            self.forget_session();
            return false;
        }
        true
    }

    /// The next `open` goes to whatever session is active then.
    fn forget_session(&mut self) {
        self.position = Position::default();
        self.acked.clear();
        self.reads_all = self.random.random_bool(0.8);
    }

    fn tell(&self, rest: &watch::Sender<Rest>) {
        let calm = self.opened && self.waiting.is_empty() && self.position.is_at_rest();
        let lacks = if calm {
            String::new()
        } else {
            let Position { session_id, after, running, told, .. } = &self.position;
            let waiting: Vec<&str> = self.waiting.values().map(|plan| plan.name.as_str()).collect();
            let opened = self.opened;
            format!("attached {opened} to {session_id:?} at {after:?} of {told:?}, {running:?}, waits for {waiting:?}")
        };
        rest.send_replace(Rest { calm, lacks });
    }

    /// Something that a user does.
    async fn act(&mut self, client: &mut Client) -> bool {
        if self.position.ended {
            return self.resend(client).await;
        }
        match self.random.random_range(0..100) {
            0..50 if self.waiting.len() < WINDOW => self.write(client).await,
            0..60 => self.resend(client).await,
            60..72 => self.repeat(client).await,
            72..84 if self.habits.stops => self.stop(client).await,
            84..88 => {
                let seq = self.position.after.unwrap_or(0);
                self.post(client, Frame::Read(Read { seq }), Asked::Nothing).await
            }
            88 if self.habits.ends_sessions && self.written > 3 => {
                self.post(client, Frame::EndSession(EndSession {}), Asked::Nothing).await
            }
            89..91 => {
                self.post(client, Frame::Detach(Detach {}), Asked::Nothing).await;
                false
            }
            91..93 => false,
            93.. if self.habits.restless => false,
            _ => true,
        }
    }

    /// Gets everything answered.
    async fn settle(&mut self, client: &mut Client) -> bool {
        if let Some((_, since)) = &self.position.running
            && since.elapsed() > RUNS_ON
            && !self.stop(client).await
        {
            return false;
        }
        self.resend(client).await
    }

    /// A new message.
    async fn write(&mut self, client: &mut Client) -> bool {
        self.written += 1;
        let number = self.written;
        let end = match self.random.random_range(0..20) {
            0..13 => End::Stop,
            13..15 => End::Length,
            15..18 => End::Hang,
            _ => End::Break,
        };
        let plan = Plan {
            name: format!("{}-{number}", self.name),
            pieces: self.random.random_range(1..25),
            pause: Duration::from_millis(self.random.random_range(0..30)),
            end,
        };
        self.waiting.insert(number, plan.clone());
        self.send(client, &plan, Asked::Message(number)).await
    }

    async fn send(&mut self, client: &mut Client, plan: &Plan, asked: Asked) -> bool {
        let send = Send { client_message_id: plan.name.clone(), text: plan.text(), ..Send::default() };
        self.post(client, Frame::Send(send), asked).await
    }

    /// Sends again what was not acknowledged and is not on its way on this connection.
    async fn resend(&mut self, client: &mut Client) -> bool {
        let away: Vec<u32> = self
            .on_the_way
            .values()
            .filter_map(|asked| match asked {
                Asked::Message(number) => Some(*number),
                Asked::Nothing => None,
            })
            .collect();
        let lost: Vec<(u32, Plan)> = self
            .waiting
            .iter()
            .filter(|(number, _)| !away.contains(number))
            .map(|(number, plan)| (*number, plan.clone()))
            .collect();
        for (number, plan) in lost {
            if !self.send(client, &plan, Asked::Message(number)).await {
                return false;
            }
        }
        true
    }

    /// An acknowledged message once more: the same, or another under its id, which must be refused.
    async fn repeat(&mut self, client: &mut Client) -> bool {
        let Some(mut plan) = self.acked.choose(&mut self.random).cloned() else { return true };
        if self.random.random_bool(0.2) {
            plan.pieces += 1;
        }
        self.send(client, &plan, Asked::Nothing).await
    }

    async fn stop(&mut self, client: &mut Client) -> bool {
        let Some((message_id, _)) = self.position.running.clone() else { return true };
        self.post(client, Frame::Stop(Stop { message_id }), Asked::Nothing).await
    }
}

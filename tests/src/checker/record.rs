//! What was seen from outside in one round: every frame that was sent, every event that came and every end, each with its
//! connection and its time on one clock.

use std::time::{Duration, Instant};

use chatbox_proto::v1::{
    chat_request::{Frame, Open},
    chat_response::{Event, Opened},
};

use super::faults::Fault;
use crate::harness::{
    client::{Closed, Transport},
    transcript::wire,
};

/// The clock of a round: all of its times are comparable.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// One thing on a connection.
#[derive(Debug, Clone)]
pub enum Step {
    /// A frame was sent; timed before it was.
    Sent {
        /// Empty when the connection broke under the frame.
        request_id: String,
        /// The frame.
        frame: Frame,
    },
    /// An event came; timed after it had.
    Came(Box<Event>),
    /// The stream ended.
    Closed(Closed),
    /// What came is not of the contract.
    Malformed(String),
    /// Nothing came for too long: the client left.
    Silent,
}

/// A step and when it was.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// On the round's clock.
    pub at: Duration,
    /// What.
    pub step: Step,
}

/// One connection of a device, from `open` to its end.
#[derive(Debug, Clone)]
pub struct Connection {
    /// How it was made.
    pub transport: Transport,
    /// In their order.
    pub steps: Vec<Sighting>,
}

impl Connection {
    /// The `open` frame and when it was sent.
    #[must_use]
    pub fn open(&self) -> Option<(Duration, &Open)> {
        self.steps.iter().find_map(|sighting| match &sighting.step {
            Step::Sent { frame: Frame::Open(open), .. } => Some((sighting.at, open)),
            _ => None,
        })
    }

    /// The answer to it.
    #[must_use]
    pub fn opened(&self) -> Option<&Opened> {
        self.events().find_map(|(_, event)| match event {
            Event::Opened(opened) => Some(opened),
            _ => None,
        })
    }

    /// The session that it is attached to.
    #[must_use]
    pub fn session_id(&self) -> Option<&str> {
        self.opened().and_then(|opened| opened.session.as_ref()).map(|session| session.session_id.as_str())
    }

    /// What came, with its place among the steps.
    pub fn events(&self) -> impl Iterator<Item = (usize, &Event)> {
        self.steps.iter().enumerate().filter_map(|(step, sighting)| match &sighting.step {
            Step::Came(event) => Some((step, &**event)),
            _ => None,
        })
    }
}

/// A client over all its connections.
#[derive(Debug, Clone)]
pub struct Device {
    /// For reports.
    pub name: String,
    /// Subject of its tokens.
    pub user: String,
    /// In their order.
    pub connections: Vec<Connection>,
}

/// Where a step is to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Index of the device.
    pub device: usize,
    /// Index of its connection.
    pub connection: usize,
    /// Index of the step.
    pub step: usize,
}

/// A fault and when it was there.
#[derive(Debug, Clone)]
pub struct Inflicted {
    /// Just before it began.
    pub from: Duration,
    /// Just after it was over.
    pub until: Duration,
    /// What.
    pub fault: Fault,
}

/// Everything that was seen in a round.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// All clients.
    pub devices: Vec<Device>,
    /// What was done to the product.
    pub faults: Vec<Inflicted>,
    /// What had not come to rest when the round's patience was at its end.
    pub unsettled: Vec<String>,
}

impl Record {
    /// All connections, each with the place of its first step.
    pub fn connections(&self) -> impl Iterator<Item = (Place, &Device, &Connection)> {
        self.devices.iter().enumerate().flat_map(|(device, owner)| {
            let all = owner.connections.iter().enumerate();
            all.map(move |(connection, seen)| (Place { device, connection, step: 0 }, owner, seen))
        })
    }

    /// One step as a line for people.
    #[must_use]
    pub fn line(&self, place: Place) -> String {
        let device = self.devices.get(place.device);
        let sighting = device
            .and_then(|device| device.connections.get(place.connection))
            .and_then(|connection| connection.steps.get(place.step));
        let (Some(device), Some(sighting)) = (device, sighting) else { return format!("{place:?}") };
        let what = match &sighting.step {
            Step::Sent { request_id, frame } => format!("sent {request_id:?} {frame:?}"),
            Step::Came(event) => format!("came {}", wire(event)),
            other @ (Step::Closed(_) | Step::Malformed(_) | Step::Silent) => format!("{other:?}"),
        };
        format!("{:>8.3}s {}#{} {what}", sighting.at.as_secs_f64(), device.name, place.connection)
    }
}

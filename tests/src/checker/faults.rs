//! What is done to the product while it works: drawn by seed, one at a time.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng};

use crate::harness::proxy::Way;

/// One of the product's processes, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// A core, by its number.
    Core(usize),
    /// The edge.
    Edge,
    /// All cores and the edge at once.
    Both,
}

/// A network between two parts of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// From the edge to a core.
    Core(usize),
    /// From the cores to their store; of several servers, to the one that takes writes, from the others too.
    Store,
    /// From the cores to their bus.
    Bus,
}

/// What a network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Holds every piece back for this long, for as long as the fault lasts.
    Delay(Duration),
    /// Lets nothing through.
    Stall,
    /// Lets nothing through in one way.
    StallWay(Way),
    /// Drops every connection.
    Cut,
    /// Says the end of the stream in one way.
    HalfClose(Way),
    /// Drops every connection, and new ones too.
    Refuse,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and a new start after a pause.
    Kill(Victim, Duration),
    /// SIGTERM, and a new start once it has left.
    Drain(Victim),
    /// SIGSTOP, and SIGCONT after a pause.
    Freeze(Victim, Duration),
    /// Trouble on a network, for a while.
    Network(Link, Trouble, Duration),
    /// `kill -9` of the database that takes writes, and a new start after a pause.
    KillStore(Duration),
    /// SIGSTOP of it, and SIGCONT after a pause.
    FreezeStore(Duration),
    /// `kill -9` of the bus, and a new start after a pause.
    KillBus(Duration),
    /// The process ended by itself, as a failpoint makes it; it is started again.
    Fell(Victim),
}

impl Fault {
    /// Whether a core has lost what only its memory held.
    #[must_use]
    pub fn kills_core(&self) -> bool {
        match self {
            Self::Kill(victim, _) | Self::Drain(victim) | Self::Fell(victim) => *victim != Victim::Edge,
            Self::Freeze(..) | Self::Network(..) | Self::KillStore(_) | Self::FreezeStore(_) | Self::KillBus(_) => {
                false
            }
        }
    }

    /// Whether nothing could be written while it lasted, and a while longer.
    #[must_use]
    pub fn halts_store(&self) -> bool {
        matches!(self, Self::KillStore(_) | Self::FreezeStore(_) | Self::Network(Link::Store, ..))
    }

    /// Whether core could not work while it lasted.
    #[must_use]
    pub fn halts_core(&self) -> bool {
        self.kills_core() || matches!(self, Self::Freeze(victim, _) if *victim != Victim::Edge)
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Menu {
    /// Only `kill -9` of core.
    Kills,
    /// Everything that one core, one edge and the network between them can suffer.
    Single,
    /// The same of several cores; and of their store, their bus, and the networks to both.
    Cluster {
        /// How many.
        cores: usize,
    },
}

impl Menu {
    /// Draws a fault.
    #[must_use]
    pub fn draw(&self, random: &mut StdRng) -> Fault {
        let down = Duration::from_millis(random.random_range(0..400));
        let lasts = Duration::from_millis(random.random_range(100..1200));
        let (cores, shared) = match *self {
            Self::Kills => return Fault::Kill(Victim::Core(0), down),
            Self::Single => (1, false),
            Self::Cluster { cores } => (cores, true),
        };
        if shared && random.random_bool(0.45) {
            return match random.random_range(0..5) {
                0 => Fault::KillStore(lasts),
                1 => Fault::FreezeStore(lasts),
                2 => Fault::KillBus(lasts),
                3 => Fault::Network(Link::Store, trouble(random), lasts),
                _ => Fault::Network(Link::Bus, trouble(random), lasts),
            };
        }
        let number = random.random_range(0..cores);
        let core = Victim::Core(number);
        match random.random_range(0..100) {
            0..30 => Fault::Kill(core, down),
            30..40 => Fault::Kill(Victim::Edge, down),
            40..46 => Fault::Kill(Victim::Both, down),
            46..56 => Fault::Drain(core),
            56..62 => Fault::Drain(Victim::Edge),
            62..70 => Fault::Freeze(core, lasts),
            70..74 => Fault::Freeze(Victim::Edge, lasts),
            _ => Fault::Network(Link::Core(number), trouble(random), lasts),
        }
    }
}

fn trouble(random: &mut StdRng) -> Trouble {
    let way = if random.random_bool(0.5) { Way::Up } else { Way::Down };
    match random.random_range(0..6) {
        0 => Trouble::Delay(Duration::from_millis(random.random_range(1..80))),
        1 => Trouble::Stall,
        2 => Trouble::StallWay(way),
        3 => Trouble::Cut,
        4 => Trouble::HalfClose(way),
        _ => Trouble::Refuse,
    }
}

//! What is done to the product while it works: drawn by seed, one at a time.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng};

use crate::harness::proxy::Way;

/// One of the product's processes, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// A core; which one, the topology draws from.
    Core(usize),
    /// The edge.
    Edge,
    /// Both at once.
    Both,
}

/// A network between two parts of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// From the edge to core.
    Core,
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
    /// The process ended by itself, as a failpoint makes it; it is started again.
    Fell(Victim),
}

impl Fault {
    /// Whether a core has lost what only its memory held.
    #[must_use]
    pub fn kills_core(&self) -> bool {
        match self {
            Self::Kill(victim, _) | Self::Drain(victim) | Self::Fell(victim) => *victim != Victim::Edge,
            Self::Freeze(..) | Self::Network(..) => false,
        }
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
}

impl Menu {
    /// Draws a fault.
    #[must_use]
    pub fn draw(&self, random: &mut StdRng) -> Fault {
        let core = Victim::Core(0);
        let down = Duration::from_millis(random.random_range(0..400));
        if *self == Self::Kills {
            return Fault::Kill(core, down);
        }
        match random.random_range(0..100) {
            0..30 => Fault::Kill(core, down),
            30..40 => Fault::Kill(Victim::Edge, down),
            40..46 => Fault::Kill(Victim::Both, down),
            46..56 => Fault::Drain(core),
            56..62 => Fault::Drain(Victim::Edge),
            62..70 => Fault::Freeze(core, Duration::from_millis(random.random_range(100..1500))),
            70..74 => Fault::Freeze(Victim::Edge, Duration::from_millis(random.random_range(100..1500))),
            _ => Fault::Network(Link::Core, trouble(random), Duration::from_millis(random.random_range(100..1200))),
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

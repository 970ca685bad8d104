//! Clients that write numbered messages whatever happens, and keep a record of everything.

mod device;
mod position;

use std::time::Duration;

use anyhow::Result;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{
    record::{Clock, Device},
    topology::Doors,
};
use device::Visitor;

/// What the clients are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Write, repeat, stop, leave and come back.
    Load,
    /// Write nothing new; get an answer to everything, stop what runs on, and read to the head.
    Settle,
    /// Leave.
    Finish,
}

/// How much there is to do.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Users; each has one session at a time.
    pub users: usize,
    /// Devices of each.
    pub devices: usize,
    /// What they do beside writing and reading.
    pub habits: Habits,
}

/// What clients do beside writing and reading.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// They stop replies.
    pub stops: bool,
    /// They end sessions under everybody's hands.
    pub ends_sessions: bool,
    /// They leave and come back more often than people do.
    pub restless: bool,
}

/// Whether a client has come to rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rest {
    /// Attached, everything answered, nothing running, and at the head as the last heartbeat told it.
    pub calm: bool,
    /// What it still lacks.
    pub lacks: String,
}

/// All clients of a round.
#[derive(Debug)]
pub struct Workload {
    phase: watch::Sender<Phase>,
    rests: Vec<(String, watch::Receiver<Rest>)>,
    running: JoinSet<(usize, Device)>,
}

/// Subjects of the tokens in a round.
pub fn users(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|user| format!("user-{user}"))
}

impl Workload {
    /// Lets all clients loose.
    #[must_use]
    pub fn start(doors: &Doors, amount: Amount, clock: Clock, random: &mut StdRng) -> Self {
        let phase = watch::Sender::new(Phase::Load);
        let mut rests = Vec::new();
        let mut running = JoinSet::new();
        for user in users(amount.users) {
            for device in 0..amount.devices {
                let name = format!("{user}.{device}");
                let (rest, watched) = watch::channel(Rest::default());
                let index = rests.len();
                rests.push((name.clone(), watched));
                let visitor = Visitor::new(
                    name,
                    user.clone(),
                    doors.clone(),
                    clock,
                    StdRng::seed_from_u64(random.random()),
                    amount.habits,
                );
                let orders = phase.subscribe();
                running.spawn(async move { (index, visitor.run(orders, rest).await) });
            }
        }
        Self { phase, rests, running }
    }

    /// No new messages from here on.
    pub fn settle(&self) {
        self.phase.send_replace(Phase::Settle);
    }

    /// Waits until every client rests; returns what the others lack then.
    pub async fn rest(&self, limit: Duration) -> Vec<String> {
        let deadline = Instant::now() + limit;
        let mut rests: Vec<_> = self.rests.clone();
        loop {
            let mut restless = None;
            for (_, rest) in &mut rests {
                if !rest.borrow_and_update().calm {
                    restless = Some(rest);
                    break;
                }
            }
            let Some(rest) = restless else { return Vec::new() };
            if !matches!(timeout_at(deadline, rest.changed()).await, Ok(Ok(()))) {
                let lacking = |(name, rest): &(String, watch::Receiver<Rest>)| {
                    let rest = rest.borrow();
                    (!rest.calm).then(|| format!("{name}: {}", rest.lacks))
                };
                return rests.iter().filter_map(lacking).collect();
            }
        }
    }

    /// Lets all clients leave, and takes what they have seen.
    ///
    /// # Errors
    /// When a client's own code failed.
    pub async fn finish(mut self) -> Result<Vec<Device>> {
        self.phase.send_replace(Phase::Finish);
        let mut devices = Vec::new();
        while let Some(joined) = self.running.join_next().await {
            devices.push(joined?);
        }
        devices.sort_by_key(|(index, _)| *index);
        Ok(devices.into_iter().map(|(_, device)| device).collect())
    }
}

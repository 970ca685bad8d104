//! One round: load, faults, rest, proof.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    proof::{self, Rules, Violation},
    record::{Clock, Inflicted, Record},
    stored::{self, StoredSession, Told},
    topology::{Doors, Topology, pause},
    workload::{Amount, Habits, Workload, users},
};

/// Steps shown as evidence of one violation.
const SHOWN: usize = 12;

/// Characters of a line.
const WIDTH: usize = 1_000;

/// Violations shown.
const REPORTED: usize = 8;

/// What a round is made of, beside its product.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Everything that is drawn is drawn from it.
    pub seed: u64,
    /// The load.
    pub amount: Amount,
    /// Faults.
    pub faults: usize,
    /// Calm work before, between and after faults.
    pub calm: Duration,
    /// For coming to rest when everything is mended.
    pub patience: Duration,
}

impl Plan {
    /// A short round, its size drawn by the seed.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0x000c_4a05);
        Self {
            seed,
            amount: Amount {
                users: random.random_range(1..4),
                devices: random.random_range(1..4),
                habits: Habits {
                    stops: true,
                    ends_sessions: random.random_bool(0.3),
                    restless: random.random_bool(0.3),
                },
            },
            faults: random.random_range(2..5),
            calm: Duration::from_millis(700),
            patience: Duration::from_secs(30),
        }
    }
}

/// What a round has shown.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What was seen.
    pub record: Record,
    /// What was stored.
    pub sessions: Vec<StoredSession>,
    /// What the setup promised.
    pub rules: Rules,
    /// What is wrong; empty when the promise was kept.
    pub violations: Vec<Violation>,
    logs: String,
}

impl Outcome {
    /// For people: how large the round was, and each violation with its evidence.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = self.summary();
        for inflicted in &self.record.faults {
            let (from, until) = (inflicted.from.as_secs_f64(), inflicted.until.as_secs_f64());
            let _ = writeln!(text, "  {from:>8.3}s to {until:.3}s {:?}", inflicted.fault);
        }
        for violation in self.violations.iter().take(REPORTED) {
            let what: String = violation.what.chars().take(WIDTH).collect();
            let _ = writeln!(text, "{:?} in {}: {what}", violation.kind, violation.session);
            for place in violation.evidence.iter().take(SHOWN) {
                let line: String = self.record.line(*place).chars().take(WIDTH).collect();
                let _ = writeln!(text, "  {line}");
            }
        }
        if self.violations.len() > REPORTED {
            let _ = writeln!(text, "and {} more", self.violations.len() - REPORTED);
        }
        if !self.violations.is_empty() {
            let _ = writeln!(text, "{}", self.logs);
        }
        text
    }

    /// One line.
    #[must_use]
    pub fn summary(&self) -> String {
        let connections = self.record.connections().count();
        let events: usize = self.record.connections().map(|(_, _, connection)| connection.events().count()).sum();
        let entries: usize = self.sessions.iter().map(|session| session.entries.len()).sum();
        format!(
            "seed {}: {} devices, {connections} connections, {events} events; {} sessions, {entries} entries; \
             {} faults; {} violations\n",
            self.seed,
            self.record.devices.len(),
            self.sessions.len(),
            self.record.faults.len(),
            self.violations.len()
        )
    }
}

/// Runs a round and proves it.
///
/// # Errors
/// When the round itself could not be held: a process that does not start, a store that does not open.
pub async fn run(mut topology: Box<dyn Topology>, plan: Plan) -> Result<Outcome> {
    let mut random = StdRng::seed_from_u64(plan.seed);
    topology.ready().await?;
    let (doors, rules) = (topology.doors(), topology.rules());
    let clock = Clock::start();
    let workload = Workload::start(&doors, plan.amount, clock, &mut random);
    let mut faults = Vec::new();
    pause(plan.calm).await;
    for _ in 0..plan.faults {
        let fault = topology.menu().draw(&mut random);
        let from = clock.now();
        topology.inflict(fault).await.with_context(|| format!("seed {}: {fault:?}", plan.seed))?;
        faults.push(Inflicted { from, until: clock.now(), fault });
        note_fallen(&mut *topology, clock, &mut faults)?;
        pause(plan.calm.mul_f64(random.random_range(0.2..1.5))).await;
    }
    note_fallen(&mut *topology, clock, &mut faults)?;
    topology.ready().await.with_context(|| format!("seed {}", plan.seed))?;
    // Work on what a failpoint has left.
    pause(plan.calm).await;
    note_fallen(&mut *topology, clock, &mut faults)?;
    topology.ready().await.with_context(|| format!("seed {}", plan.seed))?;
    workload.settle();
    let mut unsettled = workload.rest(plan.patience).await;
    if unsettled.is_empty() {
        unsettled.extend(stored::quiet(&doors, users(plan.amount.users), plan.patience).await);
    }
    note_fallen(&mut *topology, clock, &mut faults)?;
    let devices = workload.finish().await?;
    let mut record = Record { devices, faults, unsettled: Vec::new() };
    let told =
        if unsettled.is_empty() { ask_all(&doors, &record, &mut random, &mut unsettled).await? } else { Vec::new() };
    if unsettled.is_empty() && !topology.at_rest(plan.patience).await? {
        unsettled.push("rows of replies that are over stay".to_owned());
    }
    record.unsettled = unsettled;
    let logs = topology.logs();
    let vault = topology.close().await.with_context(|| format!("seed {}", plan.seed))?;
    let sessions = vault.sessions(users(plan.amount.users), told).await;
    let sessions = sessions.with_context(|| format!("seed {}: what is stored cannot be read", plan.seed))?;
    let violations = proof::prove(&record, &sessions, &rules);
    Ok(Outcome { seed: plan.seed, record, sessions, rules, violations, logs })
}

/// Takes note of processes that have ended by themselves.
fn note_fallen(topology: &mut dyn Topology, clock: Clock, faults: &mut Vec<Inflicted>) -> Result<()> {
    let from = faults.last().map_or(Duration::ZERO, |last| last.until);
    for fault in topology.fallen()? {
        faults.push(Inflicted { from, until: clock.now(), fault });
    }
    Ok(())
}

/// What a healthy core says of every session that somebody was attached to.
async fn ask_all(
    doors: &Doors,
    record: &Record,
    random: &mut StdRng,
    unsettled: &mut Vec<String>,
) -> Result<Vec<Told>> {
    let mut sessions: Vec<(String, String)> = record
        .connections()
        .filter_map(|(_, device, connection)| Some((connection.session_id()?.to_owned(), device.user.clone())))
        .collect();
    sessions.sort();
    sessions.dedup();
    let mut told = Vec::new();
    for (session_id, user) in sessions {
        let core = random.random_range(0..doors.grpc.len());
        match stored::ask(doors, core, &user, &session_id, random.random_range(0..9)).await {
            Ok(answer) => told.push(answer),
            Err(error) => unsettled.push(format!("session {session_id} of {user} cannot be read: {error:#}")),
        }
    }
    Ok(told)
}

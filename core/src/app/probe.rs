//! Looks from time to time: whether this core can serve, and how many others there are.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::{
    bus::Bus,
    grpc::Health,
    limits::Quota,
    metrics::Metrics,
    operators,
    session::{Directory, register::Register},
    store::SessionStore,
};

/// How often the cores that are alive are counted.
const COUNT_EVERY: Duration = Duration::from_secs(2);

/// How often the store is asked whether it serves.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Tells the limits how many cores there are, as often as a core can come or go.
pub(super) async fn count_cores(register: Register, quota: Quota) {
    let mut ticks = tokio::time::interval(COUNT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // While it cannot be told, the last count stands.
        if let Ok(live) = register.live().await {
            quota.set_cores(live.len());
        }
    }
}

/// Looks every second: readiness is what the store says, once the bus has been reached; tasks are counted. A bus that is
/// lost later makes a core slower and not unfit: all cores would be unfit at once.
pub(super) struct Probe {
    pub(super) stored: watch::Sender<bool>,
    pub(super) store: Arc<dyn SessionStore>,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) health: Health,
    pub(super) ready: operators::Ready,
    pub(super) limit: Duration,
    pub(super) directory: Directory,
    pub(super) streams: TaskTracker,
    pub(super) metrics: Metrics,
}

impl Probe {
    pub(super) async fn run(self) {
        let mut ticks = tokio::time::interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before = None;
        loop {
            ticks.tick().await;
            let tasks = self.directory.tasks_left() + self.streams.len();
            self.metrics.tasks_live.set(tasks.try_into().unwrap_or(i64::MAX));
            let bus = self.bus.liveness();
            self.metrics.bus_connected.set(bus.connected.into());
            self.metrics.bus_dropped.inc_by(bus.dropped.saturating_sub(self.metrics.bus_dropped.get()));
            let stored = matches!(tokio::time::timeout(self.limit, self.store.ping()).await, Ok(Ok(())));
            self.stored.send_replace(stored);
            let serves = stored && bus.was_connected;
            if before != Some(serves) {
                before = Some(serves);
                tracing::info!(ready = serves, "readiness");
                self.ready.set(serves);
                self.health.set_ready(serves).await;
            }
        }
    }
}

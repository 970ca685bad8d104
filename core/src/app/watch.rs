//! What operators are told of: looked for once a second, and raised until the store has it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use chatbox_proto::ids::SessionId;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{AlertsConfig, Config},
    domain::time::Timestamp,
    llm::{breaker::Phase, registry::Models},
    metrics::Metrics,
    notify::AlertEvent,
    session::alerts::{Alerts, Occurrence, Starts},
    store::{HandoffStore, SessionStore},
};

const LOOK: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// Occurrences that wait for the store; there are few kinds, and one of each provider.
const WAITING: usize = 64;

/// What is looked at, and who is told.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) alerts: Alerts,
    pub(super) models: Models,
    pub(super) metrics: Metrics,
    pub(super) handoffs: Arc<dyn HandoffStore>,
}

/// Starts the watcher and the deliveries. Both end when the core begins to leave: what is not delivered by then stays in the
/// outbox. Gives the starts, of which this one is to be taken out at the end, and the place where it is said whether the
/// store answers.
pub(super) fn start(
    watched: Watched,
    store: &Arc<dyn SessionStore>,
    config: &Config,
    leaving: &CancellationToken,
    background: &TaskTracker,
) -> (Starts, watch::Sender<bool>) {
    let (tell_stored, stored) = watch::channel(true);
    let (window, call) = (config.alerts.crash_window, config.store.call_timeout);
    let starts = Starts::new(store.clone(), Timestamp::now(), window, call);
    let settings = config.alerts.clone();
    let alerts = watched.alerts.clone();
    let watch = Watch::new(watched, starts.clone(), stored, settings);
    background.spawn(leaving.clone().run_until_cancelled_owned(watch.run()));
    if !config.alerts.rules.is_empty() {
        let deliver = async move { alerts.run().await };
        background.spawn(leaving.clone().run_until_cancelled_owned(deliver));
    }
    (starts, tell_stored)
}

/// The watcher of one core.
struct Watch {
    alerts: Alerts,
    models: Models,
    metrics: Metrics,
    handoffs: Arc<dyn HandoffStore>,
    /// Those who wait and are in the outbox, since when.
    helped: HashMap<SessionId, Timestamp>,
    starts: Starts,
    /// Whether the store answers.
    stored: watch::Receiver<bool>,
    settings: AlertsConfig,
    /// Not in the outbox yet.
    waiting: Vec<Occurrence>,
    opened: BTreeMap<String, u64>,
    refused: (Instant, u64),
    /// Since when the store does not answer, and whether people were told.
    outage: Option<Outage>,
}

struct Outage {
    since: Instant,
    at: Timestamp,
    told: bool,
}

impl Watch {
    fn new(watched: Watched, starts: Starts, stored: watch::Receiver<bool>, settings: AlertsConfig) -> Self {
        let Watched { alerts, models, metrics, handoffs } = watched;
        let refused = (Instant::now(), metrics.refused.get());
        Self {
            alerts,
            models,
            metrics,
            handoffs,
            helped: HashMap::new(),
            starts,
            stored,
            settings,
            waiting: Vec::new(),
            opened: BTreeMap::new(),
            refused,
            outage: None,
        }
    }

    /// Looks until dropped.
    async fn run(mut self) {
        let mut entered = false;
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !entered && let Ok(starts) = self.starts.enter().await {
                entered = true;
                if starts >= self.settings.crash_starts as usize {
                    self.note(AlertEvent::CrashLoop, starts.to_string(), Timestamp::now());
                }
            }
            self.providers();
            self.refusals();
            self.store().await;
            self.help().await;
            self.raise().await;
        }
    }

    fn note(&mut self, event: AlertEvent, detail: String, at: Timestamp) {
        if self.alerts.wants(event) && self.waiting.len() < WAITING {
            self.waiting.push(Occurrence { event, entry: None, detail, at });
        }
    }

    /// Those who wait for a person.
    async fn help(&mut self) {
        if !self.alerts.wants(AlertEvent::HelpRequested) {
            return;
        }
        let raised = match self.alerts.waiting(&*self.handoffs).await {
            Ok(waiting) => self.alerts.raise_help(&waiting, &mut self.helped).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = raised {
            tracing::warn!(error = &error as &dyn std::error::Error, "requests for help could not be looked at");
        }
    }

    fn providers(&mut self) {
        for (name, load) in self.models.loads() {
            let before = self.opened.insert(name.clone(), load.opened).unwrap_or(0);
            if load.breaker == Phase::Open && load.opened > before {
                self.note(AlertEvent::ProviderDown, name, Timestamp::now());
            }
        }
    }

    fn refusals(&mut self) {
        let (since, before) = self.refused;
        if since.elapsed() < MINUTE {
            return;
        }
        let now = self.metrics.refused.get();
        self.refused = (Instant::now(), now);
        let refused = now.saturating_sub(before);
        if refused >= u64::from(self.settings.abnormal_refusals) {
            self.note(AlertEvent::AbnormalTraffic, refused.to_string(), Timestamp::now());
        }
    }

    /// While the store is down its outbox is too: people are told without it, once, and again out of the outbox when it is
    /// back, as the same message.
    async fn store(&mut self) {
        if *self.stored.borrow() {
            if let Some(outage) = self.outage.take().filter(|outage| outage.told) {
                let detail = format!("{} s", outage.since.elapsed().as_secs());
                self.note(AlertEvent::StoreDown, detail, outage.at);
            }
            return;
        }
        let outage =
            self.outage.get_or_insert_with(|| Outage { since: Instant::now(), at: Timestamp::now(), told: false });
        if outage.told || outage.since.elapsed() < self.settings.store_down_after {
            return;
        }
        outage.told = true;
        let detail = format!("{} s so far", outage.since.elapsed().as_secs());
        let occurrence = Occurrence { event: AlertEvent::StoreDown, entry: None, detail, at: outage.at };
        self.alerts.tell_now(&occurrence).await;
    }

    async fn raise(&mut self) {
        while let Some(occurrence) = self.waiting.first() {
            if let Err(error) = self.alerts.raise(occurrence).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "an alert could not be put into the outbox");
                return;
            }
            self.waiting.remove(0);
        }
    }
}

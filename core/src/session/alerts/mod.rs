//! Alerts: from what happened to the people who have to know of it.
//!
//! Whoever notices something puts one row per rule and channel into the durable outbox; the row's id is made from what
//! happened, so that however many cores notice it, and however often after crashes, there is one. Every core delivers: a row
//! is claimed for a time, tried, and settled. A core that dies in between leaves a row that comes back: at least once, always
//! with the same message id. Rows hold no word of a visitor; those are read from the session when the alert is sent, so that
//! what was erased is not sent either.

mod deliver;
mod help;
mod starts;
#[cfg(test)]
mod tests;

pub use self::starts::Starts;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use chatbox_proto::ids::SessionId;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use super::error::SessionError;
use crate::{
    domain::{entry::Seq, time::Timestamp},
    metrics::Metrics,
    notify::{AlertEvent, Channel, quiet::QuietHours, template::Template},
    store::{
        HandoffRow, HandoffStore, Stage,
        outbox::{AlertId, AlertRow, AlertState, OutboxStore},
    },
};

/// Of those who wait, longest first, as many are looked at.
const LOOKED_AT: u32 = 1_000;

/// What is told to whom.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Names of channels.
    pub channels: Vec<String>,
    /// When nobody is told.
    pub quiet: Option<QuietHours>,
    /// What happens again within this time is the same alert.
    pub repeat_after: Duration,
    /// The subject.
    pub subject: Template,
    /// The text.
    pub text: Template,
}

/// All rules and channels.
#[derive(Debug, Default)]
pub struct Rules {
    /// By name, each with the messages per hour that this core may send.
    pub channels: HashMap<String, (Arc<dyn Channel>, u32)>,
    /// By event.
    pub rules: BTreeMap<AlertEvent, Rule>,
    /// Where an admin can act.
    pub link: String,
    /// What could not be delivered for so long is given up.
    pub give_up: Duration,
    /// Longest pause between two tries.
    pub max_pause: Duration,
    /// How long a delivered row is remembered.
    pub keep: Duration,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occurrence {
    /// What.
    pub event: AlertEvent,
    /// The session and the entry, if it is about one: told once, ever.
    pub entry: Option<(SessionId, Seq)>,
    /// What it is about besides: a name of the configuration or a number.
    pub detail: String,
    /// When.
    pub at: Timestamp,
}

/// What a visitor's request for help says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelpFacts {
    /// The visitor.
    pub user: String,
    /// Why.
    pub reason: String,
}

/// Reads what visitors said.
#[async_trait]
pub trait HelpReader: Send + Sync + std::fmt::Debug + 'static {
    /// The request for help in an entry. `None` when there is none, or no session any more.
    async fn help(&self, session: SessionId, seq: Seq) -> Result<Option<HelpFacts>, SessionError>;

    /// The entry of the latest request for help in a session, if it was made at `since` or later. `None` while it is not in
    /// the log yet, or no longer can be found near its end.
    async fn requested(&self, session: SessionId, since: Timestamp) -> Result<Option<Seq>, SessionError>;
}

/// The alerts of one core. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Alerts {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    outbox: Arc<dyn OutboxStore>,
    reader: Arc<dyn HelpReader>,
    rules: Rules,
    call: Duration,
    metrics: Metrics,
    /// Something is due.
    wake: Notify,
    /// When messages went out in the last hour, by channel. Never held over an await.
    sent: Mutex<HashMap<String, Vec<tokio::time::Instant>>>,
}

impl Alerts {
    /// Over an outbox. `call` bounds each call of it.
    #[must_use]
    pub fn new(
        outbox: Arc<dyn OutboxStore>,
        reader: Arc<dyn HelpReader>,
        rules: Rules,
        call: Duration,
        metrics: Metrics,
    ) -> Self {
        let (wake, sent) = (Notify::new(), Mutex::default());
        Self { inner: Arc::new(Inner { outbox, reader, rules, call, metrics, wake, sent }) }
    }

    /// Whether anybody wants to know of it.
    #[must_use]
    pub fn wants(&self, event: AlertEvent) -> bool {
        self.inner.rules.rules.contains_key(&event)
    }

    /// Puts an occurrence into the outbox, one row per channel; says how many are new. Can be called again after a failure,
    /// and by other cores, as often as one likes.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn raise(&self, occurrence: &Occurrence) -> Result<usize, SessionError> {
        let Some(rule) = self.inner.rules.rules.get(&occurrence.event) else { return Ok(0) };
        let mut new = 0;
        for channel in &rule.channels {
            let row = row(rule, channel, occurrence);
            if self.inner.call(self.inner.outbox.enqueue(row)).await? {
                new += 1;
                self.inner.metrics.alert(occurrence.event.name(), "raised");
            }
        }
        if new > 0 {
            self.inner.wake.notify_one();
        }
        Ok(new)
    }
}

impl Alerts {
    /// Raises the requests for help of those who wait, and notes in `seen` which of them it has; says how many are new. Every
    /// core looks at all of them, so that the death of one between the request and this is made up for by any other.
    ///
    /// # Errors
    /// Failures of the store; what was not seen is looked at again.
    pub async fn raise_help(
        &self,
        waiting: &[HandoffRow],
        seen: &mut HashMap<SessionId, Timestamp>,
    ) -> Result<usize, SessionError> {
        let mut new = 0;
        let mut still = HashMap::new();
        let mut failed = Ok(());
        for row in waiting {
            let Stage::Waiting { since } = row.stage else { continue };
            if seen.get(&row.session_id) != Some(&since) && failed.is_ok() {
                match self.raise_one(row.session_id, since).await {
                    Ok(Some(raised)) => new += raised,
                    Ok(None) => continue,
                    Err(error) => {
                        failed = Err(error);
                        continue;
                    }
                }
            }
            if failed.is_ok() || seen.contains_key(&row.session_id) {
                still.insert(row.session_id, since);
            }
        }
        *seen = still;
        failed.map(|()| new)
    }

    async fn raise_one(&self, session: SessionId, since: Timestamp) -> Result<Option<usize>, SessionError> {
        let Some(seq) = self.inner.reader.requested(session, since).await? else { return Ok(None) };
        let (event, entry) = (AlertEvent::HelpRequested, Some((session, seq)));
        let occurrence = Occurrence { event, entry, detail: String::new(), at: since };
        self.raise(&occurrence).await.map(Some)
    }

    /// The rows of those who wait, as many as one look takes.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn waiting(&self, handoffs: &dyn HandoffStore) -> Result<Vec<HandoffRow>, SessionError> {
        self.inner.call(handoffs.waiting(LOOKED_AT)).await
    }
}

impl Inner {
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, crate::store::StoreError>>,
    ) -> Result<T, SessionError> {
        match tokio::time::timeout(self.call, call).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(SessionError::StoreTimeout),
        }
    }
}

fn row(rule: &Rule, channel: &str, occurrence: &Occurrence) -> AlertRow {
    AlertRow {
        id: id(rule, channel, occurrence),
        channel: channel.to_owned(),
        event: occurrence.event.name().to_owned(),
        entry: occurrence.entry,
        detail: occurrence.detail.clone(),
        created_at: occurrence.at,
        due_at: rule.quiet.map_or(occurrence.at, |quiet| quiet.after(occurrence.at)),
        attempts: 0,
        state: AlertState::Waiting,
        error: String::new(),
    }
}

/// The same for whoever notices the same. What is about an entry is told once; what is about a provider once per provider
/// and period; the rest once per period.
fn id(rule: &Rule, channel: &str, occurrence: &Occurrence) -> AlertId {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(b"chatbox/v1/alert");
    part(occurrence.event.name().as_bytes());
    part(channel.as_bytes());
    match occurrence.entry {
        Some((session, seq)) => {
            part(session.as_bytes());
            part(&seq.to_be_bytes());
        }
        None => {
            let period = i64::try_from(rule.repeat_after.as_millis()).unwrap_or(i64::MAX).max(1);
            part(&occurrence.at.millis().div_euclid(period).to_be_bytes());
            if occurrence.event == AlertEvent::ProviderDown {
                part(occurrence.detail.as_bytes());
            }
        }
    }
    let digest = hash.finalize();
    let mut id = AlertId::default();
    id.copy_from_slice(&digest[..size_of::<AlertId>()]);
    id
}

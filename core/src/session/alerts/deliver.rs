//! Claims what is due, tries it, and writes down what came of it.

use std::{sync::PoisonError, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, sleep, timeout};

use super::{Alerts, Inner, Occurrence};
use crate::{
    domain::time::Timestamp,
    notify::{AlertEvent, DeliveryError, Message, template::Facts},
    session::error::SessionError,
    store::outbox::{AlertRow, Attempted},
};

/// The outbox is looked at this often; at once when this core puts something in.
const LOOK: Duration = Duration::from_secs(5);
/// Rows that are claimed at once, and tried at the same time.
const BATCH: u32 = 8;
/// For one try, over all servers of a channel.
const TRY: Duration = Duration::from_secs(100);
/// A claim lasts longer than a try and what is written after it: only the rows of the dead come back by themselves.
const CLAIM: Duration = Duration::from_secs(180);
/// Before the second try; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Delivered rows are cleared away this often, so many at once.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
const PRUNE: u32 = 1_000;
const HOUR: Duration = Duration::from_secs(3_600);

impl Alerts {
    /// Delivers until dropped. A try that is dropped is made again when its claim has run out.
    pub async fn run(&self) {
        let mut pruned = Instant::now();
        loop {
            match self.round().await {
                // There may be more.
                Ok(claimed) if claimed == BATCH as usize => continue,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the outbox could not be worked off");
                }
            }
            if pruned.elapsed() >= PRUNE_EVERY {
                pruned = Instant::now();
                let before = earlier(Timestamp::now(), self.inner.rules.keep);
                if let Err(error) = self.inner.call(self.inner.outbox.prune_delivered(before, PRUNE)).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the outbox could not be cleared");
                }
            }
            tokio::select! {
                () = self.inner.wake.notified() => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Tells of an occurrence at once and without the outbox, as well as it goes: when the outbox is what is down. Each
    /// channel is tried once; whoever raises the same later repeats the message with the same id.
    pub async fn tell_now(&self, occurrence: &Occurrence) {
        let Some(rule) = self.inner.rules.rules.get(&occurrence.event) else { return };
        let rows = rule.channels.iter().map(|channel| super::row(rule, channel, occurrence));
        stream::iter(rows)
            .for_each_concurrent(None, |row| async move {
                let outcome = self.inner.outcome(&row).await;
                self.inner.note(&row, &outcome);
            })
            .await;
    }

    /// Claims what is due and tries it; says how many.
    pub(super) async fn round(&self) -> Result<usize, SessionError> {
        let inner = &*self.inner;
        let now = Timestamp::now();
        let rows = inner.call(inner.outbox.claim(now, later(now, CLAIM), BATCH)).await?;
        let claimed = rows.len();
        stream::iter(rows).for_each_concurrent(None, |row| inner.attempt(row)).await;
        Ok(claimed)
    }
}

impl Inner {
    async fn attempt(&self, row: AlertRow) {
        let (id, attempt) = (row.id, row.attempts);
        let alert = hex(&id);
        let outcome = self.outcome(&row).await;
        self.note(&row, &outcome);
        match self.call(self.outbox.settle(id, attempt, outcome)).await {
            Ok(true) => {}
            Ok(false) => tracing::info!(alert.id = alert, attempt, "another core tried the alert meanwhile"),
            // It comes back when the claim has run out.
            Err(error) => {
                tracing::warn!(
                    alert.id = alert,
                    error = &error as &dyn std::error::Error,
                    "an alert could not be settled"
                );
            }
        }
    }

    fn note(&self, row: &AlertRow, outcome: &Attempted) {
        let (alert, attempt) = (hex(&row.id), row.attempts);
        match outcome {
            Attempted::Delivered => {
                self.metrics.alert(known(&row.event), "delivered");
                tracing::info!(alert.id = alert, alert.channel = row.channel, attempt, "alert delivered");
            }
            Attempted::Retry { error, .. } => {
                self.metrics.alert(known(&row.event), "retried");
                tracing::warn!(
                    alert.id = alert,
                    alert.channel = row.channel,
                    attempt,
                    error,
                    "alert not delivered yet"
                );
            }
            Attempted::Dead { error } => {
                self.metrics.alert(known(&row.event), "dead");
                tracing::error!(alert.id = alert, alert.channel = row.channel, attempt, error, "alert given up");
            }
        }
    }

    async fn outcome(&self, row: &AlertRow) -> Attempted {
        let dead = |error: &str| Attempted::Dead { error: error.to_owned() };
        let Some((channel, per_hour)) = self.rules.channels.get(&row.channel) else {
            return dead("the channel is no longer configured");
        };
        if let Some(wait) = self.rate(&row.channel, *per_hour) {
            let due_at = later(Timestamp::now(), wait);
            return Attempted::Retry { due_at, error: "as many messages went out as may in an hour".to_owned() };
        }
        let message = match self.message(row).await {
            Ok(Ok(message)) => message,
            Ok(Err(gone)) => return dead(gone),
            Err(error) => return self.again(row, error.to_string(), None),
        };
        match timeout(TRY, channel.deliver(&message)).await {
            Ok(Ok(())) => Attempted::Delivered,
            Ok(Err(DeliveryError::Permanent(error))) => Attempted::Dead { error },
            Ok(Err(DeliveryError::Temporary { reason, retry_after })) => self.again(row, reason, retry_after),
            Err(_) => self.again(row, "no answer in time".to_owned(), None),
        }
    }

    /// Later, or never, when it has been tried long enough.
    fn again(&self, row: &AlertRow, error: String, wished: Option<Duration>) -> Attempted {
        let now = Timestamp::now();
        // What was held back by quiet hours is not old for that.
        let quiet = AlertEvent::from_name(&row.event).and_then(|event| self.rules.rules.get(&event)?.quiet);
        let since = quiet.map_or(row.created_at, |quiet| quiet.after(row.created_at));
        if earlier(now, self.rules.give_up) >= since {
            return Attempted::Dead { error };
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << row.attempts.saturating_sub(1).min(20)).min(self.rules.max_pause);
        // So that what failed together is not tried together.
        let pause = pause.mul_f64(0.75 + rand::random::<f64>() / 4.0).max(wished.unwrap_or_default().min(HOUR));
        Attempted::Retry { due_at: later(now, pause), error }
    }

    /// Counts a message, or says how long it has to wait.
    fn rate(&self, channel: &str, per_hour: u32) -> Option<Duration> {
        let now = Instant::now();
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let times = sent.entry(channel.to_owned()).or_default();
        times.retain(|time| now.duration_since(*time) < HOUR);
        if times.len() < per_hour as usize {
            times.push(now);
            return None;
        }
        times.first().map(|first| HOUR.saturating_sub(now.duration_since(*first)))
    }

    /// The message of a row; the inner error says why there is nothing to say any more.
    async fn message(&self, row: &AlertRow) -> Result<Result<Message, &'static str>, SessionError> {
        let Some((event, rule)) =
            AlertEvent::from_name(&row.event).and_then(|event| self.rules.rules.get(&event).map(|rule| (event, rule)))
        else {
            return Ok(Err("no rule is configured for the event any more"));
        };
        let mut facts = Facts { detail: row.detail.clone(), time: rfc3339(row.created_at), ..Facts::default() };
        if let Some((session, seq)) = row.entry {
            let Some(help) = self.reader.help(session, seq).await? else {
                return Ok(Err("the session is gone"));
            };
            facts.session = session.to_string();
            facts.user = help.user;
            facts.reason = help.reason;
        }
        facts.link = self.rules.link.replace("{session}", &facts.session);
        Ok(Ok(Message {
            id: hex(&row.id),
            event: event.name(),
            subject: rule.subject.line(&facts),
            body: rule.text.text(&facts),
            happened_at: row.created_at.millis().div_euclid(1_000),
            session_id: row.entry.map(|(session, _)| session.to_string()),
        }))
    }
}

fn known(event: &str) -> &'static str {
    AlertEvent::from_name(event).map_or("unknown", AlertEvent::name)
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(time.millis().saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
}

fn earlier(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(time.millis().saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
}

fn rfc3339(time: Timestamp) -> String {
    let time = chrono::DateTime::from_timestamp_millis(time.millis()).unwrap_or_default();
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

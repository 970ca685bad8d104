//! The running reply: its text so far, its deltas, its lease, its end.

use std::{future::Future, pin::Pin, sync::Arc, task, time::Duration};

use chatbox_proto::ids::MessageId;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Room, too_many_writes,
    write::{Done, Origin},
};
use crate::{
    domain::{
        decide::Ending,
        entry::{FinishReason, Seq, Usage},
        session::RunningReply,
    },
    llm::tokens::estimate_usage,
    metrics::Metrics,
    session::{
        error::SessionError,
        event,
        link::{RemoteDelta, Said},
        log::SessionLog,
        reply::{EVENT_QUEUE, ReplyEvent, ReplyJob},
        subscriber::Delta,
    },
    store::BootId,
};

/// A lease is renewed this often even when no text comes.
const RENEW_WITHOUT_PROGRESS: Duration = Duration::from_secs(3);

/// Stops of one reply that wait for its end; more are told to try again by their own time limit.
const MAX_WAITERS: usize = 64;

/// A reply of this core that has not got its terminal entry yet.
pub(super) struct LiveReply {
    pub(super) id: MessageId,
    pub(super) started_seq: Seq,
    pub(super) model: String,
    pub(super) text: String,
    /// Set once nothing more is taken; the terminal entry follows.
    ending: Option<(FinishReason, Option<Usage>)>,
    prompt_tokens: u64,
    provider_request_id: Option<String>,
    conversation: Option<String>,
    events: Option<mpsc::Receiver<ReplyEvent>>,
    cancel: CancellationToken,
    waiters: Vec<Origin>,
    renewals: u64,
    checkpointed: usize,
    renewed_at: Instant,
    /// When the last renewal that succeeded began; before the first one, the append that started the reply.
    leased_at: Instant,
    /// `None` when it did not run in this core.
    started_at: Option<Instant>,
    running: Gauge,
}

impl LiveReply {
    fn new(running: &RunningReply, text: String, metrics: &Metrics) -> Self {
        metrics.replies_running.inc();
        Self {
            id: running.id,
            started_seq: running.started_seq,
            model: running.model.clone(),
            checkpointed: text.len(),
            text,
            ending: None,
            prompt_tokens: 0,
            provider_request_id: None,
            conversation: None,
            events: None,
            cancel: CancellationToken::new(),
            waiters: Vec::new(),
            renewals: 0,
            renewed_at: Instant::now(),
            leased_at: Instant::now(),
            started_at: None,
            running: metrics.replies_running.clone(),
        }
    }

    /// A reply whose core died with this text.
    pub(super) fn interrupted(running: &RunningReply, text: String, metrics: &Metrics) -> Self {
        let mut reply = Self::new(running, text, metrics);
        reply.end(FinishReason::Interrupted, None);
        reply
    }

    /// Takes nothing more and drops the request upstream; the first reason counts.
    fn end(&mut self, finish: FinishReason, usage: Option<Usage>) {
        if self.ending.is_none() {
            self.ending = Some((finish, usage));
            self.events = None;
            self.cancel.cancel();
        }
    }

    /// Somebody stopped it in another core.
    pub(super) fn cancel(&mut self) {
        self.end(FinishReason::Cancelled, None);
    }

    /// The core is leaving.
    pub(super) fn interrupt(&mut self) {
        self.end(FinishReason::Interrupted, None);
    }

    /// Its terminal entry can be written.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// What the terminal entry says, with `otherwise` as the reason if it is cut here. Usage is estimated when the provider
    /// sent none.
    pub(super) fn ending(&self, otherwise: FinishReason) -> Ending {
        let (finish, usage) = self.ending.unwrap_or((otherwise, None));
        let usage = usage.unwrap_or_else(|| estimate_usage(self.prompt_tokens, self.text.len()));
        Ending {
            finish,
            text: self.text.clone(),
            usage,
            provider_request_id: self.provider_request_id.clone(),
            model: Some(self.model.clone()),
            conversation: self.conversation.clone(),
        }
    }

    pub(super) fn take_waiters(&mut self) -> Vec<Origin> {
        std::mem::take(&mut self.waiters)
    }

    /// How long it has run here.
    pub(super) fn ran_for(&self) -> Option<Duration> {
        self.started_at.map(|at| at.elapsed())
    }
}

impl Drop for LiveReply {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.running.dec();
    }
}

/// The next event of the reply; `None` when it is gone without an end. Waits forever when there is nothing to wait for.
/// Cancel-safe.
pub(super) async fn next_event(reply: &mut Option<LiveReply>, paused: bool) -> Option<ReplyEvent> {
    match reply.as_mut().filter(|_| !paused).and_then(|reply| reply.events.as_mut()) {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// A renewal under way: one conditional update of lease and checkpoint.
pub(super) struct Renewal {
    reply: MessageId,
    bytes: usize,
    started: Instant,
    update: Pin<Box<dyn Future<Output = Result<Option<u64>, SessionError>> + Send>>,
}

/// What became of a renewal.
pub(super) struct Renewed {
    reply: MessageId,
    bytes: usize,
    started: Instant,
    /// The number of renewals now; `None` when the lease is lost.
    result: Result<Option<u64>, SessionError>,
}

impl Future for Renewal {
    type Output = Renewed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<Renewed> {
        let result = task::ready!(self.update.as_mut().poll(cx));
        task::Poll::Ready(Renewed { reply: self.reply, bytes: self.bytes, started: self.started, result })
    }
}

/// Renews, or finds out why not: an earlier renewal that was given up as too slow may have been written all the same.
async fn renew(
    log: SessionLog,
    id: MessageId,
    boot_id: BootId,
    expected: u64,
    sealed: Vec<u8>,
) -> Result<Option<u64>, SessionError> {
    if log.call(log.store.renew_reply(id, boot_id, expected, sealed.clone())).await? {
        return Ok(Some(expected + 1));
    }
    match log.call(log.store.reply_row(log.id)).await? {
        Some(row) if row.message_id == id && row.boot_id == boot_id => {
            let renewed = log.call(log.store.renew_reply(id, boot_id, row.renewals, sealed)).await?;
            Ok(renewed.then_some(row.renewals + 1))
        }
        Some(_) | None => Ok(None),
    }
}

impl Room {
    /// Starts the task of a reply whose start has just been appended here, by an append that took so long.
    pub(super) fn begin_reply(&mut self, took: Duration) {
        let Some(running) = self.state.running.clone() else { return };
        let mut reply = LiveReply::new(&running, String::new(), &self.shared.metrics);
        reply.started_at = Some(Instant::now());
        // Others may have seen the row since then.
        reply.leased_at = reply.leased_at.checked_sub(took).unwrap_or(reply.leased_at);
        if self.is_cutting() {
            // It was decided before the cut and written after it.
            reply.interrupt();
        } else if let Some(model) = self.shared.models.get(&running.model) {
            let (sender, events) = mpsc::channel(EVENT_QUEUE);
            reply.events = Some(events);
            let job = ReplyJob {
                log: self.log.clone(),
                id: running.id,
                started_seq: running.started_seq,
                supersedes: running.supersedes,
                model: model.clone(),
                user_hash: self.shared.user_hash(&self.owner),
                trace: self.trace,
                conversation: self
                    .state
                    .conversation
                    .as_ref()
                    .filter(|kept| kept.model == running.model)
                    .map(|kept| kept.id.clone()),
                budgets: self.shared.budgets.clone(),
                charge: running.charge.clone(),
            };
            self.shared.tasks.spawn(Box::new(job).run(reply.cancel.clone(), sender));
        } else {
            reply.end(FinishReason::ProviderError, None);
        }
        self.reply = Some(reply);
    }

    /// When the lease of the running reply ends unless it is renewed; `None` where nobody else could judge it.
    pub(super) fn lease_ends(&self) -> Option<Instant> {
        let reply = self.reply.as_ref().filter(|reply| !reply.is_ending() && self.shared.store.is_shared())?;
        Some(reply.leased_at + self.shared.limits.reply_lapse)
    }

    /// Others may have judged the reply dead by now, and ended it: nothing more of it is said.
    pub(super) fn check_lease(&mut self) {
        if self.lease_ends().is_some_and(|at| at <= Instant::now())
            && let Some(reply) = &mut self.reply
        {
            tracing::warn!(session.id = %self.log.id, reply.id = %reply.id, "the lease of a reply lapsed");
            reply.end(FinishReason::Interrupted, None);
        }
    }

    /// Takes over a reply whose core is gone, to end it with what is left of its text.
    pub(super) fn adopt_reply(&mut self, checkpoint: &str) {
        let (None, Some(running)) = (&self.reply, &self.state.running) else { return };
        let remote = self.remote.take().filter(|remote| remote.id() == running.id);
        self.look = None;
        self.stopping = None;
        // What was heard of it may go further than what was saved.
        let heard = remote.as_ref().map_or("", |remote| remote.text.as_str());
        let text = if heard.len() > checkpoint.len() { heard } else { checkpoint };
        let mut reply = LiveReply::interrupted(running, text.to_owned(), &self.shared.metrics);
        reply.waiters = remote.map(|mut remote| remote.take_waiters()).unwrap_or_default();
        self.reply = Some(reply);
    }

    pub(super) fn reply_event(&mut self, event: Option<ReplyEvent>) {
        // A core that was stopped for a while must not speak before it has looked at its clock.
        self.check_lease();
        if self.reply.as_ref().is_some_and(LiveReply::is_ending) {
            return;
        }
        let Some(reply) = &mut self.reply else { return };
        match event {
            Some(ReplyEvent::Text(text)) => {
                if let (true, Some(ran_for)) = (reply.text.is_empty(), reply.ran_for()) {
                    self.shared.metrics.first_text(&reply.model, ran_for);
                }
                let offset = event::length(&reply.text);
                reply.text.push_str(&text);
                let encoded = event::delta(reply.id, reply.started_seq, offset, &text);
                let delta = Delta {
                    message_id: reply.id,
                    started_seq: reply.started_seq,
                    offset,
                    text: Arc::from(text),
                    encoded,
                };
                let (message_id, started_seq) = (reply.id, reply.started_seq);
                let text = delta.text.clone();
                self.link.publish(&Said::Delta(RemoteDelta { message_id, started_seq, offset, text }));
                self.shared.metrics.deltas.inc();
                self.subscribers.broadcast_delta(&delta);
            }
            Some(ReplyEvent::Prompted(tokens)) => reply.prompt_tokens = tokens,
            Some(ReplyEvent::Model(id)) => reply.model = id,
            Some(ReplyEvent::RequestId(id)) => reply.provider_request_id = Some(id),
            Some(ReplyEvent::Conversation(id)) => reply.conversation = Some(id),
            Some(ReplyEvent::Ended(finish, usage)) => reply.end(finish, usage),
            // The task is gone without a word: it panicked.
            None => {
                tracing::error!(session.id = %self.log.id, reply.id = %reply.id, "a reply's task died");
                reply.end(FinishReason::ProviderError, None);
            }
        }
    }

    /// Stops a reply; a finished one is acknowledged. The acknowledgement of a running one follows its terminal entry.
    pub(super) fn stop(&mut self, message_id: MessageId, origin: Origin) {
        match &mut self.reply {
            Some(reply) if reply.id == message_id => {
                reply.end(FinishReason::Cancelled, None);
                if reply.waiters.len() < MAX_WAITERS {
                    reply.waiters.push(origin);
                } else {
                    self.answer(origin, Err(too_many_writes()));
                }
            }
            Some(_) | None if self.remote.as_ref().is_some_and(|remote| remote.id() == message_id) => {
                self.stop_remote(origin);
            }
            Some(_) | None => {
                self.answer(origin, Ok(Done { message_id: Some(message_id), ..Done::default() }));
            }
        }
    }

    /// Renews the lease when there is progress to keep, or when it is due anyway.
    pub(super) fn start_renewal(&mut self) {
        let Some(reply) = &mut self.reply else { return };
        let since = reply.renewed_at.elapsed();
        let progress = reply.text.len() > reply.checkpointed && since >= self.shared.limits.checkpoint;
        let idle = RENEW_WITHOUT_PROGRESS.min(self.shared.limits.reply_lapse / 3);
        if self.renewal.is_some() || reply.is_ending() || !(progress || since >= idle) {
            return;
        }
        reply.renewed_at = Instant::now();
        let (id, expected, bytes) = (reply.id, reply.renewals, reply.text.len());
        let sealed = self.log.seal_checkpoint(id, &reply.text);
        let (log, boot_id) = (self.log.clone(), self.shared.boot_id);
        let update = Box::pin(renew(log, id, boot_id, expected, sealed));
        self.renewal = Some(Renewal { reply: id, bytes, started: reply.renewed_at, update });
    }

    pub(super) fn renewed(&mut self, renewed: Renewed) {
        let Some(reply) = self.reply.as_mut().filter(|reply| reply.id == renewed.reply) else { return };
        match renewed.result {
            Ok(Some(renewals)) => {
                reply.renewals = renewals;
                reply.checkpointed = renewed.bytes;
                reply.leased_at = renewed.started;
            }
            Ok(None) if reply.is_ending() => {}
            Ok(None) => {
                // Somebody else finished it, or the row never came to be: what the log says counts.
                tracing::warn!(session.id = %self.log.id, reply.id = %reply.id, "lost the lease of a reply");
                reply.end(FinishReason::Interrupted, None);
                self.writes.wants_tail = true;
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, session.id = %self.log.id, "a checkpoint was not stored");
            }
        }
    }
}

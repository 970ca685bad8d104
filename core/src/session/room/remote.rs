//! A reply that runs in another core, as this room knows it: followed by its deltas, which are fenced by the reply's start
//! and their offset; asked for where it is unknown or a piece is missing; read from its checkpoint, slower, when its core
//! does not answer. Whether that core is alive is judged by the sweep, by the renewals of the lease; what became of the
//! reply is said by the log alone.

use std::{future::Future, ops::Range, pin::Pin, sync::Arc, task, time::Duration};

use chatbox_proto::ids::MessageId;
use tokio::time::Instant;

use super::{
    Room, too_many_writes,
    write::{Done, Op, Origin, Write},
};
use crate::{
    domain::{
        decide::Ending,
        entry::{FinishReason, Seq},
        session::RunningReply,
    },
    llm::tokens::estimate_usage,
    session::{
        event,
        link::{Link, Question, RemoteDelta, Told},
        log::SessionLog,
        subscriber::Delta,
    },
    store::BootId,
};

/// Between two looks at the checkpoint of a reply whose core does not answer.
const POLL: Duration = Duration::from_secs(1);

/// A reply that says nothing for so long is asked for its text: its last delta may be what got lost.
const SILENCE: Duration = Duration::from_secs(5);

/// Pieces that came while the text was asked for; beyond that it is asked for again.
const EARLY: usize = 512;

/// Stops of one reply that wait for its end.
const MAX_WAITERS: usize = 64;

/// See the module's text.
pub(super) struct RemoteReply {
    running: RunningReply,
    /// What is known of its text, from its beginning.
    pub(super) text: String,
    /// The text was found out as far as can be: subscribers can be shown it.
    pub(super) ready: bool,
    /// Nothing is missing as far as is known; deltas go on from here.
    following: bool,
    /// Nobody renews it any more, at this number of renewals; without one there is no row.
    dead: Option<Option<u64>>,
    early: Vec<RemoteDelta>,
    next_look: Instant,
    waiters: Vec<Origin>,
}

/// What a piece of text means to what is known.
enum Extension {
    /// Nothing new.
    Known,
    /// These bytes of it are new.
    New(Range<usize>),
    /// Something before it is missing.
    Gap,
}

impl RemoteReply {
    fn new(running: RunningReply, from_start: bool) -> Self {
        Self {
            running,
            text: String::new(),
            ready: from_start,
            following: from_start,
            dead: None,
            early: Vec::new(),
            next_look: Instant::now() + if from_start { SILENCE } else { Duration::ZERO },
            waiters: Vec::new(),
        }
    }

    pub(super) fn id(&self) -> MessageId {
        self.running.id
    }

    pub(super) fn started_seq(&self) -> Seq {
        self.running.started_seq
    }

    pub(super) fn model(&self) -> &str {
        &self.running.model
    }

    /// The renewals at which it was judged dead.
    pub(super) fn judged(&self) -> Option<Option<u64>> {
        self.dead
    }

    /// Somebody waits for its end, or it has to be ended.
    pub(super) fn needs_care(&self) -> bool {
        self.dead.is_some() || !self.waiters.is_empty()
    }

    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    pub(super) fn take_waiters(&mut self) -> Vec<Origin> {
        std::mem::take(&mut self.waiters)
    }

    /// What a terminal entry says that is written here. The usage is known to its core alone: it is estimated.
    pub(super) fn ending(&self, finish: FinishReason) -> Ending {
        let usage = estimate_usage(0, self.text.len());
        Ending { finish, text: self.text.clone(), usage, provider_request_id: None, model: None, conversation: None }
    }

    fn extension(&self, offset: u32, text: &str) -> Extension {
        let (end, offset) = (self.text.len(), offset as usize);
        if offset > end {
            return Extension::Gap;
        }
        let known = end - offset;
        // What does not fit on a boundary is not a continuation of this text.
        if known >= text.len() || !text.is_char_boundary(known) {
            return Extension::Known;
        }
        Extension::New(known..text.len())
    }
}

/// The text of a reply of another core, on its way.
pub(super) struct Look {
    reply: MessageId,
    work: Pin<Box<dyn Future<Output = Found> + Send>>,
}

/// What was found out about a reply.
pub(super) enum Found {
    /// Its core told: text from an offset on.
    Text(u32, String),
    /// Its core did not answer: its checkpoint, if it has a row.
    Checkpoint(Option<String>),
    /// It is of this very process, where nothing runs it: its checkpoint.
    Orphan(String),
}

impl Future for Look {
    type Output = (MessageId, Found);

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<Self::Output> {
        let found = task::ready!(self.work.as_mut().poll(cx));
        task::Poll::Ready((self.reply, found))
    }
}

/// Asks the core that runs the reply, then the store.
pub(super) async fn look(log: SessionLog, link: Link, id: MessageId, known: u32, boot_id: BootId) -> Found {
    // The row first: of a reply of this process nobody else can tell anything.
    let row = match log.call(log.store.reply_row(log.id)).await {
        Ok(row) => row.filter(|row| row.message_id == id),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, session.id = %log.id, "the row of a reply could not be read");
            None
        }
    };
    let checkpoint = row.as_ref().map(|row| log.open_checkpoint(id, &row.checkpoint).unwrap_or_default());
    if row.is_some_and(|row| row.boot_id == boot_id) {
        return Found::Orphan(checkpoint.unwrap_or_default());
    }
    match link.ask_text(id, known).await {
        Some((offset, text)) => Found::Text(offset, text),
        None => Found::Checkpoint(checkpoint),
    }
}

/// A stop on its way to the core that runs the reply.
pub(super) struct Stopping {
    reply: MessageId,
    work: Pin<Box<dyn Future<Output = Option<Found>> + Send>>,
}

impl Future for Stopping {
    type Output = (MessageId, Option<Found>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<Self::Output> {
        let silent = task::ready!(self.work.as_mut().poll(cx));
        task::Poll::Ready((self.reply, silent))
    }
}

/// `None` when its core ends it; else what is left of the reply.
pub(super) async fn ask_to_stop(log: SessionLog, link: Link, id: MessageId) -> Option<Found> {
    if link.ask(Question::Stop { message_id: id }).await == Some(Told::Stopping) {
        return None;
    }
    Some(Found::Checkpoint(checkpoint(&log, id).await))
}

/// What was saved of a reply, if it has a row.
pub(super) async fn checkpoint(log: &SessionLog, id: MessageId) -> Option<String> {
    let row = log.call(log.store.reply_row(log.id)).await.ok().flatten().filter(|row| row.message_id == id)?;
    Some(log.open_checkpoint(id, &row.checkpoint).unwrap_or_default())
}

impl Room {
    /// Takes up what runs elsewhere by the log, and lets go of what does not any more. `from_start`: its start has just
    /// been heard, so that all of its deltas will be.
    pub(super) fn follow(&mut self, from_start: bool) {
        let running = match (&self.reply, &self.state.running) {
            (None, Some(running)) if self.shared.store.is_shared() => running,
            _ => return self.let_go(),
        };
        if self.remote.as_ref().is_some_and(|remote| remote.id() == running.id) {
            return;
        }
        let running = running.clone();
        self.let_go();
        self.look = None;
        self.remote = Some(RemoteReply::new(running, from_start));
    }

    /// What ran elsewhere has its terminal entry: whoever stopped it is told.
    fn let_go(&mut self) {
        let Some(mut remote) = self.remote.take() else { return };
        self.look = None;
        self.stopping = None;
        for origin in remote.take_waiters() {
            self.answer(origin, Ok(Done { message_id: Some(remote.id()), ..Done::default() }));
        }
    }

    /// Looks for text that is missing, or that may be.
    pub(super) fn start_look(&mut self) {
        let Some(remote) = &mut self.remote else { return };
        if self.look.is_some() || remote.dead.is_some() || Instant::now() < remote.next_look {
            return;
        }
        if !remote.waiters.is_empty() {
            // Its end was asked for and has not been heard of.
            self.writes.wants_tail = true;
        }
        remote.next_look = Instant::now() + POLL;
        let known = event::length(&remote.text);
        let work = look(self.log.clone(), self.link.clone(), remote.id(), known, self.shared.boot_id);
        self.look = Some(Look { reply: remote.id(), work: Box::pin(work) });
    }

    pub(super) fn found(&mut self, (id, found): (MessageId, Found)) {
        let Some(remote) = self.remote.as_mut().filter(|remote| remote.id() == id) else { return };
        remote.ready = true;
        match found {
            Found::Orphan(text) => return self.adopt_reply(&text),
            Found::Text(offset, text) => {
                remote.following = true;
                remote.next_look = Instant::now() + SILENCE;
                self.extend_remote(offset, &text);
            }
            Found::Checkpoint(Some(text)) => {
                remote.following = false;
                self.extend_remote(0, &text);
            }
            Found::Checkpoint(None) => {
                // No row and no answer: most likely it has ended.
                remote.following = false;
                self.writes.wants_tail = true;
            }
        }
        let early = self.remote.as_mut().map(|remote| std::mem::take(&mut remote.early));
        for delta in early.into_iter().flatten() {
            self.remote_delta(delta);
        }
        self.retry_opens();
    }

    /// A delta of a reply that runs elsewhere: dropped unless it is of the reply that runs, and goes on where its text ends.
    pub(super) fn remote_delta(&mut self, delta: RemoteDelta) {
        let looking = self.look.is_some();
        let Some(remote) = &mut self.remote else { return };
        if delta.message_id != remote.id() || delta.started_seq != remote.started_seq() {
            return;
        }
        if looking {
            if remote.early.len() < EARLY {
                remote.early.push(delta);
            }
            return;
        }
        // The end of the session is being written with the text so far.
        if !self.writes.cuts_reply() {
            self.extend_remote(delta.offset, &delta.text);
        }
    }

    /// Adds what is new, and shows it to every subscriber.
    fn extend_remote(&mut self, offset: u32, text: &str) {
        let Some(remote) = &mut self.remote else { return };
        match remote.extension(offset, text) {
            Extension::Known => {}
            Extension::Gap => {
                remote.following = false;
                remote.next_look = Instant::now();
            }
            Extension::New(range) => {
                let text: Arc<str> = text[range].into();
                let offset = event::length(&remote.text);
                remote.text.push_str(&text);
                if remote.following {
                    remote.next_look = Instant::now() + SILENCE;
                }
                let encoded = event::delta(remote.id(), remote.started_seq(), offset, &text);
                let (message_id, started_seq) = (remote.id(), remote.started_seq());
                let delta = Delta { message_id, started_seq, offset, text, encoded };
                self.subscribers.broadcast_delta(&delta);
            }
        }
    }

    /// Something may have been missed.
    pub(super) fn distrust_remote(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.following = false;
            remote.next_look = Instant::now();
        }
    }

    /// The sweep has judged what runs by the log dead.
    pub(super) fn judge(&mut self, row: Option<(MessageId, u64)>) {
        let Some(remote) = &mut self.remote else {
            if self.reply.is_none() {
                // What the sweep has seen is news here, or over.
                self.writes.wants_tail = true;
            }
            return;
        };
        match row {
            Some((id, renewals)) if id == remote.id() => remote.dead = Some(Some(renewals)),
            None => remote.dead = Some(None),
            Some(_) => self.writes.wants_tail = true,
        }
    }

    /// It moves after all.
    pub(super) fn acquit(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.dead = None;
        }
    }

    /// Stops a reply of another core. Its core writes the end, CANCELLED with all that it has shown; if it does not answer,
    /// this one writes it, INTERRUPTED with what is known here.
    pub(super) fn stop_remote(&mut self, origin: Origin) {
        let Some(remote) = &mut self.remote else { return };
        if remote.waiters.len() >= MAX_WAITERS {
            return self.answer(origin, Err(too_many_writes()));
        }
        remote.waiters.push(origin);
        if self.stopping.is_none() {
            let work = ask_to_stop(self.log.clone(), self.link.clone(), remote.id());
            self.stopping = Some(Stopping { reply: remote.id(), work: Box::pin(work) });
        }
    }

    pub(super) fn stopped(&mut self, (id, silent): (MessageId, Option<Found>)) {
        let Some(remote) = self.remote.as_mut().filter(|remote| remote.id() == id) else { return };
        match silent {
            None => remote.next_look = remote.next_look.min(Instant::now() + POLL),
            Some(found) => {
                if let Found::Checkpoint(Some(text)) = found {
                    self.extend_remote(0, &text);
                }
                self.writes.push(Write::new(Op::Cut(id), Origin::Nobody));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> RemoteReply {
        let running = RunningReply {
            id: MessageId::generate(),
            started_seq: 2,
            model: "m".into(),
            answers: Vec::new(),
            charge: None,
            supersedes: None,
        };
        RemoteReply { text: text.into(), ..RemoteReply::new(running, true) }
    }

    #[test]
    fn only_what_goes_on_where_the_text_ends_is_new() {
        let reply = reply("grün");
        let new = |offset, text: &str| match reply.extension(offset, text) {
            Extension::New(range) => Some(text[range].to_owned()),
            Extension::Known => None,
            Extension::Gap => Some("gap".to_owned()),
        };
        assert_eq!(new(5, " und gut").as_deref(), Some(" und gut"));
        assert_eq!(new(0, "grün und").as_deref(), Some(" und"));
        assert_eq!(new(2, "ün!").as_deref(), Some("!"));
        assert_eq!(new(6, "x").as_deref(), Some("gap"));
        for (offset, text) in [(0, "grün"), (0, "g"), (5, ""), (1, "rün")] {
            assert_eq!(new(offset, text), None);
        }
        // Not on a boundary of its own text: no continuation of this one.
        assert_eq!(new(4, "ü"), None);
    }
}

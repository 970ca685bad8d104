//! The one piece of work that a room has with the store: an append, the read that follows a conflict, or the search for an
//! append whose outcome is unknown. A room has at most one in flight; nothing is decided meanwhile.

use std::{future::Future, pin::Pin, task, time::Duration};

use chatbox_proto::status::Failure;
use tokio::time::Instant;

use super::{ending::Asked, write::Write};
use crate::{
    domain::{
        entry::{Entry, Seq},
        session::RunningReply,
    },
    session::{
        error::SessionError,
        log::{PAGE, SessionLog},
    },
    store::{Append, Appended, BootId, LogDocument, MessageKey},
};

/// Between two looks for what a store could not tell.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Work under way.
pub(super) struct InFlight {
    /// `None` for what nobody asked for, and once whoever asked was told that the outcome is unknown.
    pub(super) write: Option<Write>,
    pub(super) entries: Vec<Entry>,
    started: Instant,
    work: Pin<Box<dyn Future<Output = Outcome> + Send>>,
}

impl InFlight {
    pub(super) fn new(
        write: Option<Write>,
        entries: Vec<Entry>,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) -> Self {
        Self { write, entries, started: Instant::now(), work: Box::pin(work) }
    }
}

/// What became of it.
pub(super) struct Landed {
    pub(super) write: Option<Write>,
    pub(super) entries: Vec<Entry>,
    pub(super) took: Duration,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    /// Written: the document as it is stored.
    Done(LogDocument),
    /// The entries that were missed, and the message that has the same key.
    Conflict {
        tail: Vec<Entry>,
        found: Option<MessageKey>,
    },
    /// Not written: no slot is free.
    NoSlot,
    Unknown(Box<Append>, SessionError),
    Failed(SessionError),
    /// A reply that runs by the log and has no task, with the text that is left of it.
    Orphan(RunningReply, String),
    /// The row of a handoff, which goes ahead of its entries.
    Prepared(Result<(), SessionError>),
    /// The reply moves after all.
    Alive,
    /// What came of asking the core that runs the reply to end it.
    Asked(Asked),
    /// Whether the budgets have room.
    Admitted(Result<(), Failure>),
}

impl Future for InFlight {
    type Output = Landed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<Landed> {
        let outcome = task::ready!(self.work.as_mut().poll(cx));
        let this = &mut *self;
        let (write, entries) = (this.write.take(), std::mem::take(&mut this.entries));
        task::Poll::Ready(Landed { write, entries, took: this.started.elapsed(), outcome })
    }
}

fn document(append: Append) -> LogDocument {
    LogDocument { first_seq: append.expected_head + 1, count: append.count, sealed: append.sealed }
}

pub(super) async fn append(log: SessionLog, append: Append) -> Outcome {
    match log.call(log.store.append(append.clone())).await {
        Ok(Appended::Done(_)) => Outcome::Done(document(append)),
        Ok(Appended::NoSlot) => Outcome::NoSlot,
        Ok(Appended::Conflict) => conflict(log, append.expected_head, append.messages.into_iter().next()).await,
        Err(error) if error.outcome_unknown() => Outcome::Unknown(Box::new(append), error),
        Err(error) => Outcome::Failed(error),
    }
}

/// Finds out what stood in the way: a repeated message, or somebody else's entries.
pub(super) async fn conflict(log: SessionLog, head: Seq, key: Option<MessageKey>) -> Outcome {
    let read = async {
        let found = match key {
            Some(key) => log.call(log.store.find_message(log.id, key.key)).await?,
            None => None,
        };
        Ok((read_tail(&log, head).await?, found))
    };
    match read.await {
        Ok((tail, found)) => Outcome::Conflict { tail, found },
        Err(error) => Outcome::Failed(error),
    }
}

pub(super) async fn read_tail(log: &SessionLog, head: Seq) -> Result<Vec<Entry>, SessionError> {
    let mut tail: Vec<Entry> = Vec::new();
    loop {
        let after = tail.last().map_or(head, |entry| entry.seq);
        let page = log.read_after(after, PAGE).await?;
        if page.is_empty() {
            return Ok(tail);
        }
        tail.extend(page);
    }
}

/// Looks for an append until the store says whether it was written.
pub(super) async fn resolve(log: SessionLog, append: Append) -> Outcome {
    loop {
        match log.call(log.store.find_append(log.id, append.append_id)).await {
            Ok(Some(_)) => return Outcome::Done(document(append)),
            Ok(None) => return conflict(log, append.expected_head, None).await,
            Err(error) if error.is_passing() => tokio::time::sleep(ASK_AGAIN).await,
            Err(error) => return Outcome::Failed(error),
        }
    }
}

/// Who says that a reply has no task any more.
#[derive(Debug, Clone, Copy)]
pub(super) enum Death {
    /// The store has one owner, and this process does not run it.
    OneOwner,
    /// Its row has stood still at this number of renewals; without one, there was none for as long.
    StoodStill(Option<u64>),
}

/// Reads what is left of a reply whose task is gone, unless it moves after all. A store that cannot tell now is asked
/// again: finishing without the checkpoint would destroy it.
pub(super) async fn adopt(log: SessionLog, running: RunningReply, death: Death, boot_id: BootId) -> Outcome {
    let text = loop {
        let read = match log.call(log.store.reply_row(log.id)).await {
            Ok(Some(row)) if row.message_id == running.id => {
                if let Death::StoodStill(at) = death
                    && at != Some(row.renewals)
                    && row.boot_id != boot_id
                {
                    return Outcome::Alive;
                }
                log.open_checkpoint(running.id, &row.checkpoint)
            }
            Ok(_) => Ok(String::new()),
            Err(error) => Err(error),
        };
        match read {
            Ok(text) => break text,
            Err(error) if error.is_passing() => tokio::time::sleep(ASK_AGAIN).await,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, session.id = %log.id, "no checkpoint to finish a reply with");
                break String::new();
            }
        }
    };
    tracing::info!(session.id = %log.id, reply.id = %running.id, bytes = text.len(), "finishing an interrupted reply");
    Outcome::Orphan(running, text)
}

/// Waits for what is there, or forever.
pub(super) async fn poll<F: Future + Unpin>(slot: &mut Option<F>) -> F::Output {
    match slot {
        Some(future) => {
            let output = Pin::new(future).await;
            *slot = None;
            output
        }
        None => std::future::pending().await,
    }
}

//! The queue between a room and one attached stream: bounded by count and bytes, merging deltas, never waiting.
//!
//! The room pushes and never blocks; the stream pops when its transport takes more. While the reader keeps up the queue is
//! empty and a delta passes as the bytes that were encoded once for everybody. When it does not, deltas of one reply merge
//! into one; when that is not enough, the queue closes and the client resumes. Nothing is dropped silently.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use chatbox_proto::{error_code::ErrorCode, ids::MessageId, status::Failure};
use futures_util::stream::BoxStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::event;
use crate::domain::entry::Seq;

/// Bounds of one queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Events.
    pub events: usize,
    /// Bytes of their payloads, of which one event counts for a quarter at most.
    pub bytes: usize,
    /// Between two deltas to one reader: what comes meanwhile is one delta. Zero: each passes at once. Saves the work of
    /// small frames on a machine that has too much to do.
    pub merge: Duration,
}

/// The end of a long reply may be as large as the whole limit, and what follows it is queued before any reader can have
/// had a chance to take it: one event must not make a reader slow. So many of the largest events may wait.
const LARGEST_EVENTS: usize = 4;

/// A piece of a running reply, encoded once for all subscribers.
#[derive(Debug, Clone)]
pub(super) struct Delta {
    /// The reply.
    pub(super) message_id: MessageId,
    /// The entry that started it.
    pub(super) started_seq: Seq,
    /// Where the text belongs.
    pub(super) offset: u32,
    /// The text.
    pub(super) text: Arc<str>,
    /// The event.
    pub(super) encoded: Bytes,
}

/// What is sent before everything that was pushed after it, read piece by piece at the pace of the reader.
pub(super) type Replay = BoxStream<'static, Result<Bytes, Failure>>;

enum Item {
    Event(Bytes),
    Delta(Delta),
    Merged { message_id: MessageId, started_seq: Seq, offset: u32, text: String },
    Replay(Replay),
}

impl Item {
    /// What it counts for.
    fn bytes(&self, limits: QueueLimits) -> usize {
        match self {
            Self::Event(bytes) => bytes.len().min(limits.bytes / LARGEST_EVENTS),
            Self::Delta(delta) => delta.encoded.len(),
            Self::Merged { text, .. } => text.len(),
            Self::Replay(_) => 0,
        }
    }
}

/// How a stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// In order: what was asked for is done.
    Done,
    /// With a failure as the last word.
    Failed(Failure),
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    closed: Option<Closed>,
    /// The reader is gone: nothing more is kept.
    abandoned: bool,
    /// The reader leaves a delta here until its time: more of the same need not wake it.
    held: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The queue of one attached stream. Cheap to share; the lock is never held across a wait.
#[derive(Clone)]
pub struct Queue {
    state: Arc<Mutex<State>>,
    limits: QueueLimits,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("Queue").field("items", &state.items.len()).field("closed", &state.closed).finish()
    }
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: QueueLimits) -> Self {
        Self { state: Arc::default(), limits }
    }

    /// Queues an event. `false` when the queue is closed, by this event or before.
    pub fn push(&self, event: Bytes) -> bool {
        self.push_item(Item::Event(event))
    }

    /// Queues what comes before everything pushed later.
    pub(super) fn push_replay(&self, replay: Replay) -> bool {
        self.push_item(Item::Replay(replay))
    }

    /// Queues a delta, merged with the one before it if that has not been taken yet.
    pub(super) fn push_delta(&self, delta: &Delta) -> bool {
        let mut state = self.lock();
        if state.closed.is_some() || state.abandoned {
            return false;
        }
        let follows = |message_id: MessageId, offset: u32, text: &str| {
            message_id == delta.message_id && offset + event::length(text) == delta.offset
        };
        let merged = match state.items.back_mut() {
            Some(Item::Merged { message_id, offset, text, .. }) if follows(*message_id, *offset, text) => {
                text.push_str(&delta.text);
                true
            }
            Some(Item::Delta(before)) if follows(before.message_id, before.offset, &before.text) => {
                let (message_id, started_seq, offset) = (before.message_id, before.started_seq, before.offset);
                let text = [&*before.text, &*delta.text].concat();
                // An item is given back as what it is charged with: its own text from here on.
                let (charged, kept) = (before.encoded.len(), before.text.len());
                state.items.pop_back();
                state.items.push_back(Item::Merged { message_id, started_seq, offset, text });
                state.bytes = state.bytes - charged + kept;
                true
            }
            Some(Item::Delta(_) | Item::Merged { .. } | Item::Event(_) | Item::Replay(_)) | None => false,
        };
        if !merged {
            drop(state);
            return self.push_item(Item::Delta(delta.clone()));
        }
        state.bytes += delta.text.len();
        if state.held && state.bytes <= self.limits.bytes {
            return true;
        }
        self.check(state, false)
    }

    /// Ends the stream after what is queued; the first close counts.
    pub fn close(&self, closed: Closed) {
        let mut state = self.lock();
        if state.closed.is_none() {
            state.closed = Some(closed);
        }
        wake(state);
    }

    /// The reader is gone: drops what is queued and refuses more.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.abandoned = true;
        // Items are dropped after the lock is released: a replay holds a store read.
        let items = std::mem::take(&mut state.items);
        state.bytes = 0;
        wake(state);
        drop(items);
    }

    /// Whether nothing pushed now would be delivered.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let state = self.lock();
        state.closed.is_some() || state.abandoned
    }

    /// Waits until nothing pushed now would be delivered. For one waiter.
    pub async fn wait_closed(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if state.closed.is_some() || state.abandoned {
                return Poll::Ready(());
            }
            state.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn push_item(&self, item: Item) -> bool {
        let mut state = self.lock();
        if state.closed.is_some() || state.abandoned {
            return false;
        }
        state.bytes += item.bytes(self.limits);
        // A piece may be larger than the queue: a reader that keeps up gets it all the same.
        let alone = state.items.is_empty();
        state.items.push_back(item);
        self.check(state, alone)
    }

    /// Closes the queue when it is over a limit, and wakes the reader.
    fn check(&self, mut state: MutexGuard<'_, State>, alone: bool) -> bool {
        let fits = state.items.len() <= self.limits.events && state.bytes <= self.limits.bytes;
        let open = fits || alone;
        let mut dropped = VecDeque::new();
        if !open {
            dropped = std::mem::take(&mut state.items);
            state.bytes = 0;
            state.closed = Some(Closed::Failed(slow_consumer()));
        }
        wake(state);
        // After the lock is released: a replay holds a store read.
        drop(dropped);
        open
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock; a poisoned one holds a usable state all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next item; with `hold`, a delta that nothing waits behind is left here.
    fn poll_item(&self, cx: &mut Context<'_>, hold: bool) -> Poll<Result<Item, Closed>> {
        let mut state = self.lock();
        let only_delta = state.items.len() == 1 && matches!(state.items[0], Item::Delta(_) | Item::Merged { .. });
        state.held = hold && only_delta && state.closed.is_none();
        if state.held {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if let Some(item) = state.items.pop_front() {
            state.bytes -= item.bytes(self.limits);
            return Poll::Ready(Ok(item));
        }
        debug_assert_eq!(state.bytes, 0, "what was charged is given back");
        if let Some(closed) = &state.closed {
            return Poll::Ready(Err(closed.clone()));
        }
        // An idle connection should not keep what its busiest moment needed.
        if state.items.capacity() > 16 {
            state.items = VecDeque::new();
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// The answer to a reader that is too slow for its queue.
fn slow_consumer() -> Failure {
    Failure::new(ErrorCode::Unavailable, "SLOW_CONSUMER", "the connection is too slow; come back and resume")
}

/// Wakes both ends after releasing the lock.
fn wake(mut state: MutexGuard<'_, State>) {
    let reader = state.reader.take();
    let writer = if state.closed.is_some() || state.abandoned { state.writer.take() } else { None };
    drop(state);
    if let Some(waker) = reader {
        waker.wake();
    }
    if let Some(waker) = writer {
        waker.wake();
    }
}

/// The reading end: yields encoded events in order, then at most one failure. Dropping it abandons the queue.
pub struct QueueStream {
    queue: Queue,
    replay: Option<Replay>,
    /// Rings when the next delta may go out; made when the first one has.
    pause: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl std::fmt::Debug for QueueStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueStream").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl QueueStream {
    /// The reading end of `queue`; there is one.
    #[must_use]
    pub fn new(queue: Queue) -> Self {
        Self { queue, replay: None, pause: None, ended: false }
    }

    /// A delta goes out now: the next one not before its time.
    fn pause(&mut self) {
        let merge = self.queue.limits.merge;
        if merge.is_zero() {
            return;
        }
        let until = Instant::now() + merge;
        match &mut self.pause {
            Some(pause) => pause.as_mut().reset(until),
            None => self.pause = Some(Box::pin(sleep_until(until))),
        }
    }
}

impl futures_util::Stream for QueueStream {
    type Item = Result<Bytes, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(replay) = &mut self.replay {
                match replay.as_mut().poll_next(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(Ok(event))) => return Poll::Ready(Some(Ok(event))),
                    Poll::Ready(Some(Err(failure))) => {
                        self.ended = true;
                        self.queue.close(Closed::Failed(failure.clone()));
                        return Poll::Ready(Some(Err(failure)));
                    }
                    Poll::Ready(None) => self.replay = None,
                }
            }
            // Polled before the queue, so that it wakes this task when a delta is left there.
            let hold = self.pause.as_mut().is_some_and(|pause| pause.as_mut().poll(cx).is_pending());
            match std::task::ready!(self.queue.poll_item(cx, hold)) {
                Ok(Item::Event(event)) => return Poll::Ready(Some(Ok(event))),
                Ok(Item::Delta(delta)) => {
                    self.pause();
                    return Poll::Ready(Some(Ok(delta.encoded)));
                }
                Ok(Item::Merged { message_id, started_seq, offset, text }) => {
                    self.pause();
                    return Poll::Ready(Some(Ok(event::delta(message_id, started_seq, offset, &text))));
                }
                Ok(Item::Replay(replay)) => self.replay = Some(replay),
                Err(closed) => {
                    self.ended = true;
                    return Poll::Ready(match closed {
                        Closed::Done => None,
                        Closed::Failed(failure) => Some(Err(failure)),
                    });
                }
            }
        }
    }
}

impl Drop for QueueStream {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

#[cfg(test)]
mod tests;

//! What goes out on one `Generate` stream: bounded by count and bytes, merging pieces of output, never waiting. It ends
//! with a failure when its reader is too slow for it.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use chatbox_proto::{
    error_code::ErrorCode,
    status::Failure,
    v1::{GenerateResponse, generate_response as response},
};
use futures_util::{Stream, task::AtomicWaker};
use prost::Message as _;

use crate::session::{Closed, QueueLimits};

/// What an event counts for beside its text.
const EVENT_BYTES: usize = 128;

#[derive(Default)]
struct State {
    events: VecDeque<GenerateResponse>,
    bytes: usize,
    closed: Option<Closed>,
    /// The reader is gone: nothing more is kept.
    abandoned: bool,
}

#[derive(Default)]
struct Shared {
    /// Guards plain data and is never held over an await.
    state: Mutex<State>,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// The writing end.
pub(super) struct Outbox {
    shared: Arc<Shared>,
    limits: QueueLimits,
}

impl Outbox {
    /// Empty, with the one reading end.
    pub(super) fn new(limits: QueueLimits) -> (Self, OutboxStream) {
        let shared = Arc::<Shared>::default();
        (Self { shared: shared.clone(), limits }, OutboxStream { shared, ended: false })
    }

    /// Queues an event of the turn, or about the frame, with this id.
    pub(super) fn push(&self, request_id: &str, event: response::Event) {
        let mut state = lock(&self.shared);
        if state.closed.is_some() || state.abandoned {
            return;
        }
        let alone = state.events.is_empty();
        state.bytes += text_len(&event);
        match (state.events.back_mut(), event) {
            (
                Some(GenerateResponse { request_id: id, event: Some(response::Event::Delta(before)) }),
                response::Event::Delta(delta),
            ) if id == request_id => before.text.push_str(&delta.text),
            (_, event) => {
                state.bytes += EVENT_BYTES;
                state.events.push_back(GenerateResponse { request_id: request_id.to_owned(), event: Some(event) });
            }
        }
        // One piece may be larger than everything: a reader that keeps up gets it all the same.
        if !alone && (state.events.len() > self.limits.events || state.bytes > self.limits.bytes) {
            state.events.clear();
            state.bytes = 0;
            state.closed = Some(Closed::Failed(slow_consumer()));
            self.shared.writer.wake();
        }
        drop(state);
        self.shared.reader.wake();
    }

    /// Ends the stream after what is queued; the first close counts.
    pub(super) fn close(&self, closed: Closed) {
        lock(&self.shared).closed.get_or_insert(closed);
        self.shared.reader.wake();
        self.shared.writer.wake();
    }

    /// Whether nothing pushed now would be delivered.
    pub(super) fn is_closed(&self) -> bool {
        let state = lock(&self.shared);
        state.closed.is_some() || state.abandoned
    }

    /// Waits until nothing pushed now would be delivered. For one waiter.
    pub(super) async fn wait_closed(&self) {
        std::future::poll_fn(|cx| {
            self.shared.writer.register(cx.waker());
            if self.is_closed() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for Outbox {
    /// A panic must not leave a stream that looks alive; whoever closed before has said why.
    fn drop(&mut self) {
        self.close(Closed::Failed(Failure::internal()));
    }
}

/// The reading end: encoded events in order, then at most one failure.
pub(in crate::grpc) struct OutboxStream {
    shared: Arc<Shared>,
    ended: bool,
}

impl Stream for OutboxStream {
    type Item = Result<Bytes, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.shared.reader.register(cx.waker());
        let mut state = lock(&self.shared);
        if let Some(event) = state.events.pop_front() {
            state.bytes -= EVENT_BYTES + event.event.as_ref().map_or(0, text_len);
            drop(state);
            return Poll::Ready(Some(Ok(event.encode_to_vec().into())));
        }
        debug_assert_eq!(state.bytes, 0, "what was charged is given back");
        let Some(closed) = state.closed.clone() else { return Poll::Pending };
        drop(state);
        self.ended = true;
        Poll::Ready(match closed {
            Closed::Done => None,
            Closed::Failed(failure) => Some(Err(failure)),
        })
    }
}

impl Drop for OutboxStream {
    fn drop(&mut self) {
        let mut state = lock(&self.shared);
        state.abandoned = true;
        state.events.clear();
        state.bytes = 0;
        drop(state);
        self.shared.writer.wake();
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    // No code that can panic runs under this lock; a poisoned one holds a usable state all the same.
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text_len(event: &response::Event) -> usize {
    match event {
        response::Event::Delta(delta) => delta.text.len(),
        response::Event::Started(_)
        | response::Event::Finished(_)
        | response::Event::Error(_)
        | response::Event::GoingAway(_) => 0,
    }
}

fn slow_consumer() -> Failure {
    Failure::new(ErrorCode::Unavailable, "SLOW_CONSUMER", "the connection is too slow; open another stream")
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};

    use super::*;

    const LIMITS: QueueLimits = QueueLimits { events: 4, bytes: 1_000, merge: std::time::Duration::ZERO };

    fn delta(text: &str) -> response::Event {
        response::Event::Delta(response::Delta { text: text.to_owned() })
    }

    fn started() -> response::Event {
        response::Event::Started(response::Started { model: "m".to_owned() })
    }

    fn next(stream: &mut OutboxStream) -> Option<Result<GenerateResponse, Failure>> {
        let next = stream.next().now_or_never().flatten()?;
        Some(next.map(|bytes| GenerateResponse::decode(bytes).unwrap()))
    }

    #[test]
    fn pieces_of_one_turn_merge_while_nobody_reads_and_those_of_two_do_not() {
        let (outbox, mut stream) = Outbox::new(LIMITS);
        for (id, text) in [("1", "he"), ("1", "llo"), ("2", "x")] {
            outbox.push(id, delta(text));
        }
        for (id, text) in [("1", "hello"), ("2", "x")] {
            let got = next(&mut stream).unwrap().unwrap();
            assert_eq!((got.request_id.as_str(), got.event), (id, Some(delta(text))));
        }
        assert!(next(&mut stream).is_none());
    }

    #[test]
    fn a_reader_that_is_too_slow_gets_a_failure_and_nothing_is_kept() {
        for fill in
            [&(|outbox: &Outbox| (0..5).for_each(|_| outbox.push("1", started()))) as &dyn Fn(&Outbox), &|outbox| {
                (0..101).for_each(|_| outbox.push("1", delta("0123456789")))
            }]
        {
            let (outbox, mut stream) = Outbox::new(LIMITS);
            fill(&outbox);
            assert!(outbox.is_closed() && outbox.wait_closed().now_or_never().is_some());
            assert_eq!(next(&mut stream).unwrap().unwrap_err().reason, "SLOW_CONSUMER");
            assert!(stream.next().now_or_never().unwrap().is_none());
        }
    }

    #[test]
    fn one_piece_alone_is_never_too_much_and_what_is_charged_is_given_back() {
        let (outbox, mut stream) = Outbox::new(LIMITS);
        for _ in 0..100 {
            outbox.push("1", delta(&"x".repeat(5_000)));
            assert!(next(&mut stream).unwrap().is_ok());
        }
        assert!(!outbox.is_closed());
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_and_a_writer_that_is_gone_are_noticed() {
        let (outbox, stream) = Outbox::new(LIMITS);
        assert!(outbox.wait_closed().now_or_never().is_none());
        drop(stream);
        outbox.wait_closed().await;
        let (outbox, mut stream) = Outbox::new(LIMITS);
        outbox.push("1", started());
        drop(outbox);
        assert!(next(&mut stream).unwrap().is_ok());
        assert_eq!(next(&mut stream).unwrap().unwrap_err().reason, Failure::internal().reason);
    }
}

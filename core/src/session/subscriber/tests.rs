use chatbox_proto::v1::{ChatResponse, chat_response::Event};
use futures_util::{FutureExt, StreamExt, stream};
use prost::Message as _;

use super::*;

const LIMITS: QueueLimits = QueueLimits { events: 4, bytes: 1000, merge: Duration::ZERO };

fn delta(id: MessageId, offset: u32, text: &str) -> Delta {
    Delta { message_id: id, started_seq: 2, offset, text: text.into(), encoded: event::delta(id, 2, offset, text) }
}

fn text_of(bytes: &Bytes) -> (u32, u32, String) {
    let Some(Event::ReplyDelta(delta)) = ChatResponse::decode(bytes.clone()).unwrap().event else {
        panic!("not a delta");
    };
    (delta.offset, delta.next_offset, delta.text)
}

#[tokio::test]
async fn a_reader_that_keeps_up_gets_the_bytes_encoded_once() {
    let queue = Queue::new(LIMITS);
    let mut reader = QueueStream::new(queue.clone());
    let first = delta(MessageId::generate(), 0, "a");
    queue.push_delta(&first);
    let got = reader.next().await.unwrap().unwrap();
    assert_eq!(got.as_ptr(), first.encoded.as_ptr());
}

#[tokio::test]
async fn deltas_of_one_reply_merge_while_nobody_reads() {
    let queue = Queue::new(LIMITS);
    let mut reader = QueueStream::new(queue.clone());
    let id = MessageId::generate();
    for (offset, text) in [(0, "he"), (2, "ll"), (4, "o ü")] {
        assert!(queue.push_delta(&delta(id, offset, text)));
    }
    let event = reader.next().await.unwrap().unwrap();
    assert_eq!(text_of(&event), (0, 8, "hello ü".to_owned()));
    assert!(reader.next().now_or_never().is_none());
}

#[tokio::test]
async fn deltas_do_not_merge_across_other_events_or_replies() {
    let queue = Queue::new(LIMITS);
    let mut reader = QueueStream::new(queue.clone());
    let (a, b) = (MessageId::generate(), MessageId::generate());
    queue.push_delta(&delta(a, 0, "x"));
    queue.push(Bytes::from_static(b"e"));
    queue.push_delta(&delta(a, 1, "y"));
    queue.push_delta(&delta(b, 0, "z"));
    let mut got = Vec::new();
    while let Some(Some(Ok(event))) = reader.next().now_or_never() {
        got.push(event.len());
    }
    assert_eq!(got.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn in_the_overload_mode_deltas_go_out_at_their_pace_and_hold_up_nothing_else() {
    let merge = Duration::from_millis(40);
    let queue = Queue::new(QueueLimits { merge, ..LIMITS });
    let mut reader = QueueStream::new(queue.clone());
    let id = MessageId::generate();
    let began = Instant::now();
    queue.push_delta(&delta(id, 0, "a"));
    assert_eq!(text_of(&reader.next().await.unwrap().unwrap()).2, "a");
    assert_eq!(began.elapsed(), Duration::ZERO, "the first one waits for nobody");
    for offset in 1..4 {
        queue.push_delta(&delta(id, offset, "b"));
        assert!(reader.next().now_or_never().is_none());
    }
    assert_eq!(text_of(&reader.next().await.unwrap().unwrap()), (1, 4, "bbb".to_owned()));
    assert!(began.elapsed() >= merge);
    // Whatever comes behind a delta takes it along.
    queue.push_delta(&delta(id, 4, "c"));
    assert!(reader.next().now_or_never().is_none());
    queue.push(Bytes::from_static(b"e"));
    assert_eq!(text_of(&reader.next().now_or_never().unwrap().unwrap().unwrap()).2, "c");
    assert_eq!(reader.next().now_or_never().unwrap().unwrap().unwrap(), "e");
    // As does the end; and a queue that holds deltas is still bounded.
    queue.push_delta(&delta(id, 5, "d"));
    assert!(reader.next().now_or_never().is_none());
    let long = "x".repeat(2_000);
    assert!(!queue.push_delta(&delta(id, 6, &long)));
    assert_eq!(reader.next().await.unwrap().unwrap_err().reason, "SLOW_CONSUMER");
}

#[tokio::test]
async fn a_full_queue_ends_with_a_resumable_failure_and_keeps_nothing() {
    let queue = Queue::new(LIMITS);
    let mut reader = QueueStream::new(queue.clone());
    for _ in 0..4 {
        assert!(queue.push(Bytes::from_static(b"e")));
    }
    assert!(!queue.push(Bytes::from_static(b"e")));
    let failure = reader.next().await.unwrap().unwrap_err();
    assert_eq!(failure.reason, "SLOW_CONSUMER");
    assert!(reader.next().await.is_none());
}

#[tokio::test]
async fn merged_deltas_are_bounded_by_bytes() {
    let queue = Queue::new(LIMITS);
    let _reader = QueueStream::new(queue.clone());
    let id = MessageId::generate();
    let mut offset = 0;
    while queue.push_delta(&delta(id, offset, "0123456789")) {
        offset += 10;
        assert!(offset <= 1000);
    }
    assert!(queue.is_closed());
}

#[tokio::test]
async fn merging_is_charged_for_what_it_keeps() {
    let queue = Queue::new(LIMITS);
    let mut reader = QueueStream::new(queue.clone());
    let id = MessageId::generate();
    for n in 0..10_000 {
        queue.push_delta(&delta(id, n * 2, "a"));
        queue.push_delta(&delta(id, n * 2 + 1, "b"));
        assert!(reader.next().await.unwrap().is_ok(), "a reader that keeps up stays, round {n}");
    }
    assert_eq!(queue.lock().bytes, 0);
}

#[tokio::test]
async fn one_event_alone_is_never_too_much_and_many_large_ones_are() {
    let queue = Queue::new(QueueLimits { events: 100, ..LIMITS });
    let mut reader = QueueStream::new(queue.clone());
    let large = Bytes::from(vec![0; 5 * LIMITS.bytes]);
    assert!(queue.push(large.clone()) && queue.push(Bytes::from_static(b"e")));
    for _ in 0..2 {
        reader.next().await.unwrap().unwrap();
    }
    assert!((0..LARGEST_EVENTS).all(|_| queue.push(large.clone())));
    assert!(!queue.push(large));
}

#[tokio::test]
async fn a_replay_comes_before_what_was_pushed_after_it() {
    let queue = Queue::new(LIMITS);
    let reader = QueueStream::new(queue.clone());
    queue.push_replay(stream::iter([Ok(Bytes::from_static(b"1")), Ok(Bytes::from_static(b"2"))]).boxed());
    queue.push(Bytes::from_static(b"3"));
    queue.close(Closed::Done);
    let all: Vec<_> = reader.map(Result::unwrap).collect().await;
    assert_eq!(all, ["1", "2", "3"]);
}

#[tokio::test]
async fn dropping_the_reader_is_noticed() {
    let queue = Queue::new(LIMITS);
    let reader = QueueStream::new(queue.clone());
    assert!(queue.wait_closed().now_or_never().is_none());
    drop(reader);
    queue.wait_closed().await;
    assert!(!queue.push(Bytes::from_static(b"e")));
}

//! What is asked of a store when nothing stands before it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chatbox_core::{
    domain::time::Timestamp,
    store::{Append, Appended, Derived, NewSession, SessionStore, SlotRule},
};
use chatbox_proto::ids::SessionId;
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::sample::median;

/// A message of 200 bytes, sealed.
pub(crate) const SEALED_BYTES: usize = 229;
/// The folded state of a session, sealed.
const STATE_BYTES: usize = 300;
/// What a page of history shows.
pub(crate) const PAGE: u32 = 50;

/// A new session without entries.
pub(crate) async fn new_session(store: &dyn SessionStore) -> Result<SessionId> {
    let id = SessionId::generate();
    let new = NewSession {
        id,
        owner: id.to_string(),
        slot: SlotRule::Unlimited,
        wrapped_key: vec![7; 64],
        created_at: Timestamp::now(),
        request: None,
        derived: derived(0),
    };
    store.create_session(new).await?;
    Ok(id)
}

/// A folded state.
pub(crate) fn derived(applied_seq: u64) -> Derived {
    let last_activity = Timestamp::now();
    Derived { applied_seq, state: vec![7; STATE_BYTES], last_activity, ended: false, unfinished: false }
}

fn append(session_id: SessionId, head: u64) -> Append {
    Append {
        session_id,
        append_id: rand::random(),
        expected_head: head,
        count: 1,
        sealed: vec![7; SEALED_BYTES],
        messages: Vec::new(),
        ends_session: false,
        takes_slot: None,
        derived: derived(head + 1),
        reply_started: None,
        reply_finished: None,
    }
}

/// Appends per second of so many writers, each waiting for its own.
pub(crate) async fn appends(store: &dyn SessionStore, writers: usize, time: Duration) -> Result<f64> {
    let mut sessions = Vec::with_capacity(writers);
    for _ in 0..writers {
        sessions.push(new_session(store).await?);
    }
    let start = Instant::now();
    let mut tasks: FuturesUnordered<_> = sessions
        .into_iter()
        .map(|id| async move {
            let mut head = 0;
            while start.elapsed() < time {
                let appended = store.append(append(id, head)).await?;
                head += 1;
                ensure!(appended == Appended::Done(head), "another head: {appended:?}");
            }
            Ok(head)
        })
        .collect();
    let mut done = 0;
    while let Some(written) = tasks.next().await {
        done += written?;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

/// Median time of one call, in microseconds.
pub(crate) async fn micros<F: Future<Output = Result<()>>>(time: Duration, mut call: impl FnMut() -> F) -> Result<f64> {
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed() < time || samples.len() < 5 {
        let begin = Instant::now();
        call().await?;
        samples.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&samples))
}

/// Microseconds for the last entries of a session.
pub(crate) async fn page(store: &dyn SessionStore, id: SessionId, time: Duration) -> Result<f64> {
    micros(time, || async {
        let page = store.read_before(id, u64::MAX, PAGE).await?;
        ensure!(page.len() == PAGE as usize, "a page of {}", page.len());
        Ok(())
    })
    .await
}

/// Microseconds for an append to, and for the opening of, a session that has so many entries.
pub(crate) async fn cost(
    store: &dyn SessionStore,
    id: SessionId,
    head: &mut u64,
    time: Duration,
) -> Result<(f64, f64)> {
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed() < time || samples.len() < 5 {
        let begin = Instant::now();
        ensure!(store.append(append(id, *head)).await? == Appended::Done(*head + 1), "another head");
        *head += 1;
        samples.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    let opening = micros(time, || async {
        let header = store.session(id).await?;
        let applied = header.map_or(0, |header| header.derived.applied_seq);
        ensure!(store.head(id).await? == *head && applied == *head, "another head");
        store.read_after(id, applied, 1_000).await?;
        Ok(())
    });
    Ok((median(&samples), opening.await?))
}

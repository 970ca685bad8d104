//! Opening a stream again, elsewhere or in the same place: with a back-off that spreads those who come at once, a bounded
//! number at a time on this edge, and a deadline over all of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chatbox_proto::{
    error_code::ErrorCode,
    status::Failure,
    v1::{self, ChatResponse, chat_response},
};
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{attach::Stream, link::Reopen};
use crate::{
    core_api::{Caller, Events, core_unavailable},
    state::Edge,
};

/// Everybody whose core has just gone comes at once: the first try is spread over this.
const SPREAD: Duration = Duration::from_millis(200);

/// Between later tries: doubled each time, up to the maximum, and drawn between half of it and all of it.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// The reason of [`gap`].
const GAP: &str = "RESUME_GAP";

/// Opens a stream that goes on where the lost one ended: what follows `opened` is what comes from it.
///
/// # Errors
/// What the client is told: a refusal of core's, or that core is not there.
pub(super) async fn reopen(edge: Arc<Edge>, caller: Caller, reopen: Reopen) -> Result<Stream, Failure> {
    let deadline = Instant::now() + edge.config.core.reopen_timeout;
    let _counted = Reopening::new(&edge);
    for tries in reopen.tries.. {
        let at = Instant::now() + pause(tries);
        if at >= deadline {
            break;
        }
        sleep_until(at).await;
        let Ok(permit) = timeout_at(deadline, edge.reopens.acquire()).await else { break };
        let opening = timeout(edge.config.core.attach_timeout, open(&edge, &caller, &reopen));
        let opened = timeout_at(deadline, opening).await;
        drop(permit);
        match opened {
            Ok(Ok(Ok(stream))) => {
                edge.metrics.reopened("resumed");
                return Ok(stream);
            }
            Ok(Ok(Err(failure))) if !may_try_again(&failure) => {
                edge.metrics.reopened("refused");
                return Err(failure);
            }
            Ok(Ok(Err(failure))) => {
                tracing::debug!(reason = %failure.reason, tries, "a stream could not be opened again")
            }
            Ok(Err(_)) | Err(_) => tracing::debug!(tries, "a stream could not be opened again in time"),
        }
    }
    edge.metrics.reopened("deadline");
    Err(core_unavailable())
}

fn pause(tries: u32) -> Duration {
    match tries {
        0 => SPREAD.mul_f64(rand::random()),
        _ => (FIRST_BACKOFF * 2_u32.saturating_pow(tries.min(16)))
            .min(MAX_BACKOFF)
            .mul_f64(0.5 + rand::random::<f64>() / 2.0),
    }
}

/// Refusals that another try, or another core, may not repeat.
fn may_try_again(failure: &Failure) -> bool {
    failure.code.retryable() && failure.reason != GAP
}

async fn open(edge: &Edge, caller: &Caller, reopen: &Reopen) -> Result<Stream, Failure> {
    let mut stream = Stream::open(edge, caller, reopen.open.clone()).await?;
    if reopen.resumes {
        opened(&mut stream.events).await?;
    }
    Ok(stream)
}

/// Reads up to `opened`, which the client does not see again.
async fn opened(events: &mut Events) -> Result<(), Failure> {
    loop {
        let event: Bytes = events.next().await.unwrap_or_else(|| Err(core_unavailable()))?;
        match ChatResponse::decode(event).ok().and_then(|event| event.event) {
            Some(chat_response::Event::Opened(opened))
                if opened.verdict() == chat_response::ResumeVerdict::Replayed =>
            {
                return Ok(());
            }
            Some(chat_response::Event::Opened(_)) => return Err(gap()),
            Some(chat_response::Event::Error(error)) => return Err(refusal(error)),
            Some(chat_response::Event::GoingAway(_)) => return Err(core_unavailable()),
            // `token_expiring` may come first; the edge tells its client itself.
            Some(_) | None => {}
        }
    }
}

/// More has happened than is replayed: the client comes back, is told so by its own `opened`, and pages the rest.
fn gap() -> Failure {
    Failure::new(ErrorCode::Unavailable, GAP, "more has happened than is replayed: resume and page the rest")
}

fn refusal(error: v1::Error) -> Failure {
    let mut failure = Failure::new(ErrorCode::from_wire(error.code()), "", error.message);
    failure.reason = error.reason.into();
    failure.retry_after = error.retry_after.and_then(|delay| Duration::try_from(delay).ok());
    failure
}

/// Counts those that are on their way.
struct Reopening(prometheus_client::metrics::gauge::Gauge);

impl Reopening {
    fn new(edge: &Edge) -> Self {
        edge.metrics.reopening.inc();
        Self(edge.metrics.reopening.clone())
    }
}

impl Drop for Reopening {
    fn drop(&mut self) {
        self.0.dec();
    }
}

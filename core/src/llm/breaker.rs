//! A circuit breaker for each provider: when most of what is asked fails, it is left alone for a while, so that replies fail
//! or fall back at once rather than after a time limit, and so that it can recover. Then one try goes through, as a probe.
//!
//! What counts is whether the provider works: no connection, silence, garbage, 429 and 5xx are failures; a refusal of what
//! was asked is an answer. A try that its user gives up is neither.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::ProviderError;

/// The window moves in steps of this part of it.
const BUCKETS: usize = 10;
/// The pause doubles with each probe that fails, so many times.
const MAX_DOUBLINGS: u32 = 3;

/// When a provider is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerLimits {
    /// Failures within the window; they must also be at least half of all tries. 0: never.
    pub failures: u32,
    /// How far back is counted.
    pub window: Duration,
    /// How long it is left alone before the first probe; up to eight times as long when probes fail.
    pub pause: Duration,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        Self { failures: 20, window: Duration::from_secs(30), pause: Duration::from_secs(10) }
    }
}

/// What a breaker does with a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Lets it through.
    Closed,
    /// Refuses it.
    Open,
    /// Lets one through at a time.
    HalfOpen,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { probing: bool },
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// Number of the step since the start.
    step: u128,
    tries: u32,
    failures: u32,
}

#[derive(Debug)]
struct Inner {
    state: State,
    buckets: [Bucket; BUCKETS],
    /// Pauses since it was last closed.
    pauses: u32,
    opened: u64,
}

/// The breaker of one provider.
#[derive(Debug)]
pub struct Breaker {
    name: String,
    limits: BreakerLimits,
    start: Instant,
    /// Guards plain data and is never held over an await.
    inner: Mutex<Inner>,
}

impl Breaker {
    /// Closed. `name` is the provider's, for the log.
    #[must_use]
    pub fn new(name: impl Into<String>, limits: BreakerLimits) -> Self {
        let inner = Inner { state: State::Closed, buckets: [Bucket::default(); BUCKETS], pauses: 0, opened: 0 };
        Self { name: name.into(), limits, start: Instant::now(), inner: Mutex::new(inner) }
    }

    /// Whether a try would be refused just now; takes nothing.
    ///
    /// # Errors
    /// [`ProviderError::CircuitOpen`].
    pub fn check(&self) -> Result<(), ProviderError> {
        match self.lock().state {
            State::Open { until } if Instant::now() < until => Err(ProviderError::CircuitOpen),
            State::HalfOpen { probing: true } => Err(ProviderError::CircuitOpen),
            State::Closed | State::Open { .. } | State::HalfOpen { probing: false } => Ok(()),
        }
    }

    /// Lets a try through, or refuses it.
    ///
    /// # Errors
    /// [`ProviderError::CircuitOpen`].
    pub fn admit(self: &Arc<Self>) -> Result<Trial, ProviderError> {
        let mut inner = self.lock();
        let probe = match inner.state {
            State::Closed => false,
            State::Open { until } if Instant::now() < until => return Err(ProviderError::CircuitOpen),
            State::HalfOpen { probing: true } => return Err(ProviderError::CircuitOpen),
            State::Open { .. } | State::HalfOpen { probing: false } => {
                inner.state = State::HalfOpen { probing: true };
                true
            }
        };
        drop(inner);
        Ok(Trial { breaker: Arc::clone(self), probe })
    }

    /// A try that had been good went wrong later, in the middle of its text.
    pub fn broke_off(&self, error: &ProviderError) {
        if is_failure(error) == Some(true) {
            self.record(true);
        }
    }

    /// What it does just now, and how often it has opened.
    #[must_use]
    pub fn phase(&self) -> (Phase, u64) {
        let inner = self.lock();
        let phase = match inner.state {
            State::Closed => Phase::Closed,
            State::Open { until } if Instant::now() < until => Phase::Open,
            State::Open { .. } | State::HalfOpen { .. } => Phase::HalfOpen,
        };
        (phase, inner.opened)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a try while closed; what began before it opened says nothing about the provider as it is now.
    fn record(&self, failed: bool) {
        if self.limits.failures == 0 {
            return;
        }
        let mut inner = self.lock();
        if !matches!(inner.state, State::Closed) {
            return;
        }
        let width = (self.limits.window.as_nanos() / BUCKETS as u128).max(1);
        let step = self.start.elapsed().as_nanos() / width;
        let slot = usize::try_from(step % BUCKETS as u128).unwrap_or(0);
        let bucket = &mut inner.buckets[slot];
        if bucket.step != step {
            *bucket = Bucket { step, ..Bucket::default() };
        }
        bucket.tries = bucket.tries.saturating_add(1);
        bucket.failures = bucket.failures.saturating_add(u32::from(failed));
        let recent = inner.buckets.iter().filter(|bucket| bucket.step + BUCKETS as u128 > step);
        let (tries, failures) = recent
            .fold((0_u64, 0_u64), |sum, bucket| (sum.0 + u64::from(bucket.tries), sum.1 + u64::from(bucket.failures)));
        if failed && failures >= u64::from(self.limits.failures) && failures * 2 >= tries {
            self.open(&mut inner);
        }
    }

    fn open(&self, inner: &mut Inner) {
        let pause = self.limits.pause * (1 << inner.pauses.min(MAX_DOUBLINGS));
        inner.pauses += 1;
        inner.opened += 1;
        inner.state = State::Open { until: Instant::now() + pause };
        inner.buckets = [Bucket::default(); BUCKETS];
        tracing::warn!(
            provider.name = self.name,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "provider fails too often and is left alone"
        );
    }

    fn probed(&self, verdict: Option<bool>) {
        let mut inner = self.lock();
        match verdict {
            Some(true) => self.open(&mut inner),
            Some(false) => {
                (inner.state, inner.pauses) = (State::Closed, 0);
                tracing::info!(provider.name = self.name, "provider answers again");
            }
            None => inner.state = State::HalfOpen { probing: false },
        }
    }
}

/// One try. Dropped without a verdict, it counts for nothing.
#[derive(Debug)]
pub struct Trial {
    breaker: Arc<Breaker>,
    probe: bool,
}

impl Trial {
    /// It began to answer, or it failed.
    pub fn ended(mut self, result: Result<(), &ProviderError>) {
        let failed = match result {
            Ok(()) => Some(false),
            Err(error) => is_failure(error),
        };
        if std::mem::take(&mut self.probe) {
            self.breaker.probed(failed);
        } else if let Some(failed) = failed {
            self.breaker.record(failed);
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if self.probe {
            self.breaker.probed(None);
        }
    }
}

/// Whether the provider is to blame. `None`: it was not even asked.
fn is_failure(error: &ProviderError) -> Option<bool> {
    match error {
        ProviderError::Status { status, .. } => Some(matches!(status, 408 | 429 | 500..=599)),
        ProviderError::Connection(_)
        | ProviderError::Event(_)
        | ProviderError::Malformed(_)
        | ProviderError::Truncated
        | ProviderError::Timeout(_)
        | ProviderError::Overloaded(_) => Some(true),
        ProviderError::CircuitOpen | ProviderError::QueueFull | ProviderError::Prompt(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> Arc<Breaker> {
        Arc::new(Breaker::new("p", BreakerLimits { failures: 3, window: 10 * SECOND, pause: 5 * SECOND }))
    }

    fn status(status: u16) -> ProviderError {
        ProviderError::Status { status, retry_after: None }
    }

    fn tries(breaker: &Arc<Breaker>, results: &[Result<(), ProviderError>]) {
        for result in results {
            breaker.admit().expect("closed").ended(result.as_ref().copied());
        }
    }

    fn fails(breaker: &Arc<Breaker>, times: usize) {
        tries(breaker, &vec![Err(status(503)); times]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_when_enough_fail_and_they_are_half_of_all() {
        let one = breaker();
        fails(&one, 2);
        assert_eq!(one.phase(), (Phase::Closed, 0));
        fails(&one, 1);
        assert_eq!((one.phase(), one.admit().err()), ((Phase::Open, 1), Some(ProviderError::CircuitOpen)));
        assert_eq!(one.check(), Err(ProviderError::CircuitOpen));

        let other = breaker();
        tries(&other, &vec![Ok(()); 6]);
        fails(&other, 5);
        assert_eq!(other.phase(), (Phase::Closed, 0), "5 of 11");
        fails(&other, 1);
        assert_eq!(other.phase(), (Phase::Open, 1), "6 of 12");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_that_are_long_ago_do_not_count() {
        let breaker = breaker();
        for _ in 0..20 {
            fails(&breaker, 1);
            advance(5 * SECOND).await;
        }
        assert_eq!(breaker.phase(), (Phase::Closed, 0));
        fails(&breaker, 2);
        assert_eq!(breaker.phase(), (Phase::Open, 1), "the last one was 5 s ago");
    }

    #[tokio::test(start_paused = true)]
    async fn faults_of_ours_are_answers_and_what_never_left_counts_for_nothing() {
        let breaker = breaker();
        tries(&breaker, &[400, 401, 403, 404, 413, 422].map(|code| Err(status(code))));
        tries(
            &breaker,
            &[Err(ProviderError::CircuitOpen), Err(ProviderError::QueueFull), Err(ProviderError::Prompt("x"))],
        );
        for _ in 0..9 {
            drop(breaker.admit().expect("closed"));
        }
        assert_eq!(breaker.phase(), (Phase::Closed, 0));
        let failures = [
            status(429),
            status(529),
            ProviderError::Timeout("first byte"),
            ProviderError::Connection("refused".into()),
            ProviderError::Truncated,
            ProviderError::Overloaded("overloaded_error"),
        ];
        tries(&breaker, &failures.map(Err));
        assert_eq!(breaker.phase(), (Phase::Open, 1), "6 of 12");
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_pause_one_probe_goes_through_and_closes_it_or_opens_it_for_longer() {
        let breaker = breaker();
        fails(&breaker, 3);
        advance(5 * SECOND - Duration::from_millis(1)).await;
        assert!(breaker.admit().is_err());
        advance(Duration::from_millis(1)).await;
        assert_eq!(breaker.phase().0, Phase::HalfOpen);
        let probe = breaker.admit().expect("the probe");
        assert!(breaker.admit().is_err() && breaker.check().is_err(), "one at a time");
        probe.ended(Err(&status(500)));
        assert_eq!(breaker.phase(), (Phase::Open, 2));
        advance(10 * SECOND - Duration::from_millis(1)).await;
        assert!(breaker.admit().is_err(), "twice as long");
        advance(Duration::from_millis(1)).await;
        breaker.admit().expect("the second probe").ended(Ok(()));
        assert_eq!(breaker.phase(), (Phase::Closed, 2));
        fails(&breaker, 2);
        assert_eq!(breaker.phase(), (Phase::Closed, 2), "it counts from zero again");
        fails(&breaker, 1);
        advance(5 * SECOND).await;
        assert!(breaker.check().is_ok(), "and its pause is short again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_leaves_its_place_to_the_next() {
        let breaker = breaker();
        fails(&breaker, 3);
        advance(5 * SECOND).await;
        drop(breaker.admit().expect("the probe"));
        assert_eq!(breaker.phase(), (Phase::HalfOpen, 1));
        breaker.admit().expect("the next").ended(Err(&status(400)));
        assert_eq!(breaker.phase(), (Phase::Closed, 1), "whoever refuses is there");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_break_off_count_and_old_ones_do_not_disturb_the_pause() {
        let breaker = breaker();
        let old = breaker.admit().expect("closed");
        tries(&breaker, &vec![Ok(()); 3]);
        for _ in 0..3 {
            breaker.broke_off(&ProviderError::Connection("reset".into()));
        }
        assert_eq!(breaker.phase(), (Phase::Open, 1), "3 of 6");
        old.ended(Ok(()));
        breaker.broke_off(&ProviderError::Truncated);
        assert_eq!(breaker.phase(), (Phase::Open, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_of_zero_never_opens() {
        let breaker = Arc::new(Breaker::new("p", BreakerLimits { failures: 0, ..BreakerLimits::default() }));
        fails(&breaker, 1_000);
        assert_eq!(breaker.phase(), (Phase::Closed, 0));
    }
}

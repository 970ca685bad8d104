//! What one caller may do: streams at once, frames per second, frames that cannot be decoded.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chatbox_proto::{error_code::ErrorCode, status::Failure};
use tokio::time::Instant;

/// What each user has at once of one kind: streams, or calls. Holds users that have one, and no others.
#[derive(Debug, Clone)]
pub(super) struct PlacesByUser {
    limit: u32,
    /// Reason and sentence for who has as many as may be.
    refusal: (&'static str, &'static str),
    counts: Arc<Mutex<HashMap<String, u32>>>,
}

/// One place of a user, until it is dropped.
#[derive(Debug)]
pub(super) struct PlacePermit {
    places: PlacesByUser,
    user_id: String,
}

/// Who calls, with their place among the calls in flight until it is dropped.
#[derive(Debug)]
pub(super) struct Held<T> {
    caller: T,
    permit: PlacePermit,
}

impl<T> Held<T> {
    pub(super) fn new(caller: T, permit: PlacePermit) -> Self {
        Self { caller, permit }
    }

    /// The same place for the same caller, seen otherwise.
    pub(super) fn map<U, E>(self, see: impl FnOnce(T) -> Result<U, E>) -> Result<Held<U>, E> {
        Ok(Held { caller: see(self.caller)?, permit: self.permit })
    }
}

impl<T> std::ops::Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.caller
    }
}

impl PlacesByUser {
    pub(super) fn streams(limit: u32) -> Self {
        Self { limit, refusal: ("TOO_MANY_STREAMS", "too many streams of this user"), counts: Arc::default() }
    }

    pub(super) fn calls(limit: u32) -> Self {
        Self { limit, refusal: ("TOO_MANY_CALLS", "too many calls of this user are in flight"), counts: Arc::default() }
    }

    /// Room for one more of this user.
    pub(super) fn enter(&self, user_id: &str) -> Result<PlacePermit, Failure> {
        let mut counts = self.counts();
        let count = counts.entry(user_id.to_owned()).or_insert(0);
        if *count >= self.limit {
            let (reason, message) = self.refusal;
            let failure = Failure::new(ErrorCode::ResourceExhausted, reason, message);
            return Err(failure.retry_after(Duration::from_secs(1)));
        }
        *count += 1;
        Ok(PlacePermit { places: self.clone(), user_id: user_id.to_owned() })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        // Only map operations run under this lock.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PlacePermit {
    fn drop(&mut self) {
        let mut counts = self.places.counts();
        if let Some(count) = counts.get_mut(&self.user_id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.user_id);
            }
        }
    }
}

/// Frames of one stream: `per_second` on average, as many at once.
#[derive(Debug)]
pub(super) struct FrameRate {
    per_second: f64,
    tokens: f64,
    filled_at: Instant,
}

impl FrameRate {
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, tokens: per_second, filled_at: Instant::now() }
    }

    /// Takes one frame, or says how long to wait.
    pub(super) fn take(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let filled = now.duration_since(self.filled_at).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + filled).min(self.per_second);
        self.filled_at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((1.0 - self.tokens) / self.per_second);
        let failure = Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_FRAMES", "too many frames per second");
        Err(failure.retry_after(wait.max(Duration::from_millis(1))))
    }
}

/// Frames that could not be decoded, within a minute.
#[derive(Debug)]
pub(super) struct Strikes {
    limit: usize,
    at: VecDeque<Instant>,
}

const STRIKE_WINDOW: Duration = Duration::from_secs(60);

impl Strikes {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, at: VecDeque::new() }
    }

    /// One more; `true` when it is one too many.
    pub(super) fn strike(&mut self) -> bool {
        let now = Instant::now();
        self.at.retain(|at| now.duration_since(*at) < STRIKE_WINDOW);
        self.at.push_back(now);
        self.at.len() >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_streams_and_others_have_their_own() {
        let streams = PlacesByUser::streams(2);
        let first = streams.enter("alice").unwrap();
        let _second = streams.enter("alice").unwrap();
        assert_eq!(streams.enter("alice").unwrap_err().reason, "TOO_MANY_STREAMS");
        let _bob = streams.enter("bob").unwrap();
        drop(first);
        assert!(streams.enter("alice").is_ok());
    }

    #[test]
    fn nobody_is_remembered_who_has_no_stream() {
        let streams = PlacesByUser::streams(2);
        for n in 0..1000 {
            drop(streams.enter(&n.to_string()).unwrap());
        }
        assert!(streams.counts().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn frames_come_at_the_rate_and_the_answer_says_when() {
        let mut rate = FrameRate::new(10);
        for _ in 0..10 {
            rate.take().unwrap();
        }
        let wait = rate.take().unwrap_err().retry_after.unwrap();
        assert_eq!(wait, Duration::from_millis(100));
        tokio::time::advance(wait).await;
        rate.take().unwrap();
        assert!(rate.take().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn strikes_count_within_a_minute() {
        let mut strikes = Strikes::new(3);
        assert!(!strikes.strike());
        assert!(!strikes.strike());
        tokio::time::advance(STRIKE_WINDOW).await;
        assert!(!strikes.strike());
        assert!(!strikes.strike());
        assert!(strikes.strike());
    }
}

//! So many a minute for each user, by the generic cell rate algorithm: one moment is kept for each user, and nothing once
//! it has passed.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
};

use tokio::time::{Duration, Instant};

const MINUTE: f64 = 60.0;

/// Users per generation. Two are kept: whoever did nothing during one is forgotten with it.
const GENERATION: usize = 65_536;

/// A user, by a hash that nobody outside can aim at: ids of any length cost the same.
type User = (u64, u64);

/// When each user's allowance would be whole again.
#[derive(Debug, Default)]
pub(super) struct Rate {
    hashers: (RandomState, RandomState),
    whole_at: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<User, Instant>,
    old: HashMap<User, Instant>,
}

impl Rate {
    /// One more of this user, who may have so many a minute and all of them at once; or how long until it may be.
    pub(super) fn take(&self, user_id: &str, per_minute: f64, now: Instant) -> Result<(), Duration> {
        let user = (self.hashers.0.hash_one(user_id), self.hashers.1.hash_one(user_id));
        let each = Duration::from_secs_f64(MINUTE / per_minute);
        let at_once = each.mul_f64((per_minute - 1.0).max(0.0));
        // Only map operations run under this lock.
        let mut known = self.whole_at.lock().unwrap_or_else(PoisonError::into_inner);
        let whole_at = known.young.get(&user).or_else(|| known.old.get(&user)).copied().unwrap_or(now).max(now);
        let wait = whole_at.duration_since(now).saturating_sub(at_once);
        // Times are not exact to the nanosecond.
        if wait > Duration::from_micros(1) {
            return Err(wait);
        }
        known.keep(user, whole_at + each, now);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let known = self.whole_at.lock().unwrap_or_else(PoisonError::into_inner);
        known.young.len() + known.old.len()
    }
}

impl Generations {
    fn keep(&mut self, user: User, whole_at: Instant, now: Instant) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&user) {
            self.young.retain(|_, whole_at| *whole_at > now);
            // More than half of them are busy: the older ones go.
            if self.young.len() > GENERATION / 2 {
                self.old = std::mem::take(&mut self.young);
            }
        }
        self.young.insert(user, whole_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_allowance_comes_back_steadily() {
        let rate = Rate::default();
        let take = || rate.take("alice", 30.0, Instant::now());
        for _ in 0..30 {
            take().unwrap();
        }
        let wait = take().unwrap_err();
        assert!(wait > Duration::from_millis(1_990) && wait <= Duration::from_secs(2), "{wait:?}");
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(2)).await;
            take().unwrap();
            take().unwrap_err();
        }
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!((0..100).take_while(|_| take().is_ok()).count(), 30, "no more than all of it is saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn less_than_one_a_minute_is_one_now_and_then() {
        let rate = Rate::default();
        rate.take("alice", 0.5, Instant::now()).unwrap();
        let wait = rate.take("alice", 0.5, Instant::now()).unwrap_err();
        assert_eq!(wait, Duration::from_secs(120));
        tokio::time::advance(wait).await;
        rate.take("alice", 0.5, Instant::now()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_newcomers_are_never_refused() {
        let rate = Rate::default();
        let busy = 4 * GENERATION;
        for n in 0..busy {
            rate.take(&n.to_string(), 1.0, Instant::now()).unwrap();
            assert!(rate.len() <= 2 * GENERATION);
        }
        assert!(rate.take(&(busy - 1).to_string(), 1.0, Instant::now()).is_err(), "who came last is known");
        // Those whose allowance is whole again are nobody.
        tokio::time::advance(Duration::from_secs(61)).await;
        for n in 0..=GENERATION {
            rate.take(&format!("new {n}"), 1.0, Instant::now()).unwrap();
        }
        assert!(rate.len() <= 2 * GENERATION);
    }
}

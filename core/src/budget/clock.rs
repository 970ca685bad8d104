//! Which day it is.

use std::{fmt, sync::Arc, time::Duration};

use crate::domain::time::Timestamp;

const DAY: i64 = 24 * 60 * 60 * 1_000;

/// Tells the time of day. Days are the only thing that budgets need a wall clock for: nothing is judged dead by it.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The system's.
    #[must_use]
    pub fn system() -> Self {
        Self::new(Timestamp::now)
    }

    /// One of the caller's.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Days since the Unix epoch, in UTC.
    #[must_use]
    pub fn day(&self) -> u32 {
        u32::try_from((self.0)().millis().div_euclid(DAY)).unwrap_or(0)
    }

    /// Until the day ends.
    #[must_use]
    pub fn until_midnight(&self) -> Duration {
        let left = DAY - (self.0)().millis().rem_euclid(DAY);
        Duration::from_millis(left.unsigned_abs())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_ends_at_midnight() {
        let clock = |millis| Clock::new(move || Timestamp::from_millis(millis));
        let midnight = 20_000 * DAY;
        assert_eq!((clock(midnight - 1).day(), clock(midnight).day()), (19_999, 20_000));
        assert_eq!(clock(midnight - 1).until_midnight(), Duration::from_millis(1));
        assert_eq!(clock(midnight).until_midnight(), Duration::from_secs(24 * 3_600));
        assert_eq!(clock(-5).day(), 0, "a broken clock");
    }
}

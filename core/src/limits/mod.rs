//! What all cores together allow, as the share of this one: each gives out its part, so that nobody has to be asked. The
//! number of cores is what the register of cores says; until it has said so, this core takes itself for the only one.
//!
//! Nothing here waits, and nothing is refused because memory is full: whoever is forgotten may do more, not less.

mod rate;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use chatbox_proto::{error_code::ErrorCode, status::Failure};
use tokio::time::{Duration, Instant};

use self::rate::Rate;

/// When a place for a reply may be free again.
const REPLY_RETRY: Duration = Duration::from_secs(1);

/// What all cores together allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Messages, and calls that write, of one user in a minute; 0: no limit.
    pub messages_per_minute: u32,
    /// Replies that are generated at a time.
    pub replies: u32,
}

/// This core's share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Quota {
    limits: QuotaLimits,
    cores: Arc<AtomicU32>,
    rate: Arc<Rate>,
}

impl Quota {
    /// The share of a core that is alone.
    #[must_use]
    pub fn new(limits: QuotaLimits) -> Self {
        Self { limits, cores: Arc::new(AtomicU32::new(1)), rate: Arc::default() }
    }

    /// So many cores are alive, this one included.
    pub fn set_cores(&self, cores: usize) {
        self.cores.store(u32::try_from(cores).unwrap_or(u32::MAX).max(1), Ordering::Relaxed);
    }

    /// Takes note of one write of a user.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` `TOO_MANY_MESSAGES` with the time to wait; it does not count then.
    pub fn write(&self, user_id: &str) -> Result<(), Failure> {
        if self.limits.messages_per_minute == 0 {
            return Ok(());
        }
        let share = f64::from(self.limits.messages_per_minute) / f64::from(self.cores());
        self.rate.take(user_id, share, Instant::now()).map_err(|wait| {
            let message = "too many messages of this user within a minute";
            Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_MESSAGES", message)
                .retry_after(wait.max(Duration::from_millis(1)))
        })
    }

    /// Whether one more reply may begin while so many run here.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` `TOO_MANY_REPLIES`.
    pub fn reply(&self, running: i64) -> Result<(), Failure> {
        if running < i64::from((self.limits.replies / self.cores()).max(1)) {
            return Ok(());
        }
        let message = "as many replies are generated as may be";
        Err(Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_REPLIES", message).retry_after(REPLY_RETRY))
    }

    fn cores(&self) -> u32 {
        self.cores.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(messages_per_minute: u32, replies: u32) -> Quota {
        Quota::new(QuotaLimits { messages_per_minute, replies })
    }

    fn taken(quota: &Quota, user: &str) -> usize {
        (0..1_000).take_while(|_| quota.write(user).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_core_allows_its_part_and_each_user_has_one_of_their_own() {
        let quota = quota(60, 1);
        assert_eq!((taken(&quota, "alice"), taken(&quota, "bob")), (60, 60));
        let failure = quota.write("alice").unwrap_err();
        assert_eq!((failure.code, &*failure.reason), (ErrorCode::ResourceExhausted, "TOO_MANY_MESSAGES"));
        assert_eq!(failure.retry_after, Some(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(60)).await;
        quota.set_cores(3);
        assert_eq!(taken(&quota, "alice"), 20);
        assert_eq!(quota.write("alice").unwrap_err().retry_after, Some(Duration::from_secs(3)));
        quota.set_cores(0);
        assert_eq!(quota.cores(), 1, "this core is there");
    }

    #[test]
    fn without_a_limit_nothing_is_remembered() {
        let quota = quota(0, 1);
        assert_eq!(taken(&quota, "alice"), 1_000);
        assert_eq!(quota.rate.len(), 0);
    }

    #[test]
    fn replies_are_shared_too_and_every_core_may_have_one() {
        let quota = quota(0, 10);
        assert!(quota.reply(9).is_ok());
        assert_eq!(quota.reply(10).unwrap_err().reason, "TOO_MANY_REPLIES");
        quota.set_cores(3);
        assert!(quota.reply(2).is_ok() && quota.reply(3).is_err());
        quota.set_cores(50);
        assert!(quota.reply(0).is_ok() && quota.reply(1).is_err());
    }
}

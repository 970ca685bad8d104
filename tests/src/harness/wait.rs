//! Waiting for a condition, with a limit and a name for the failure.

use std::{future::Future, time::Duration};

use anyhow::{Context as _, Result};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Long enough for a loaded machine with two cores, short enough to be reported before the runner ends the test.
pub const LIMIT: Duration = Duration::from_secs(20);

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(10);

/// Looks until `probe` has an answer, and returns it.
///
/// # Errors
/// When there is none within `limit`; the error names `what`.
pub async fn wait_for<T, F, P>(what: &str, limit: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> P,
    P: Future<Output = Option<T>>,
{
    within(what, limit, async {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(found) = probe().await {
                return found;
            }
        }
    })
    .await
}

/// Looks until `holds` is true; for conditions that need no waiting themselves.
///
/// # Errors
/// When it is not within `limit`; the error names `what`.
pub async fn wait_until<F: FnMut() -> bool>(what: &str, limit: Duration, mut holds: F) -> Result<()> {
    wait_for(what, limit, || std::future::ready(holds().then_some(()))).await
}

/// Awaits a future for at most `limit`.
///
/// # Errors
/// When it is not done within `limit`; the error names `what`.
pub async fn within<F: Future>(what: &str, limit: Duration, future: F) -> Result<F::Output> {
    timeout(limit, future).await.with_context(|| format!("not within {limit:?}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_is_looked_at_until_it_holds() {
        let mut looks = 0;
        let found = wait_for("three looks", LIMIT, || {
            looks += 1;
            std::future::ready((looks == 3).then_some(looks))
        });
        assert_eq!(found.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_condition_that_never_holds_fails_at_the_limit_with_its_name() {
        let error = wait_until("the moon", Duration::from_millis(50), || false).await.unwrap_err();
        assert_eq!(error.to_string(), "not within 50ms: the moon");
    }
}

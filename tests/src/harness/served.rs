//! One app on a runtime and a thread of its own, as the binaries run theirs: what it leaves behind can be counted.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::{runtime, sync::oneshot};
use tokio_util::sync::CancellationToken;

use super::wait::{LIMIT, wait_until, within};

/// What a drained runtime may still need to notice that its sockets are closed.
const SETTLE: Duration = Duration::from_secs(5);

/// A running app. [`Served::shutdown`] ends it in good order; dropped, it is only asked to end.
#[derive(Debug)]
pub struct Served {
    name: String,
    shutdown: CancellationToken,
    ended: oneshot::Receiver<Result<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Served {
    /// Binds an app and runs it. `bind` returns what the test has to know of it (its addresses) and how it runs.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub async fn start<T, B, F, R, E>(name: &str, bind: B) -> Result<(T, Self)>
    where
        T: Send + 'static,
        B: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<(T, R)>>,
        R: FnOnce(CancellationToken) -> E,
        E: Future<Output = Result<()>>,
    {
        let (bound, was_bound) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let body = move || {
            let outcome = runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from);
            let outcome = outcome.and_then(|runtime| {
                let outcome = runtime.block_on(async {
                    let (facts, run) = bind().await?;
                    // A test that has gone away has also cancelled the token.
                    let _ = bound.send(facts);
                    run(token).await?;
                    let metrics = runtime::Handle::current().metrics();
                    let left = || metrics.num_alive_tasks();
                    let none = wait_until("no task is left", SETTLE, || left() == 0).await;
                    none.with_context(|| format!("{} tasks were leaked", left()))
                });
                runtime.shutdown_timeout(Duration::from_millis(100));
                outcome
            });
            let _ = end.send(outcome);
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body)?;
        let mut served = Self { name: name.to_owned(), shutdown, ended, thread: Some(thread) };
        match within(&format!("{name} is bound"), LIMIT, was_bound).await? {
            Ok(facts) => Ok((facts, served)),
            Err(_) => Err(served.outcome().await.err().unwrap_or_else(|| anyhow!("{name} ended before it was bound"))),
        }
    }

    /// Whether it runs; an app that ended by itself does not.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Asks it to end, without waiting. Asking twice changes nothing.
    pub fn cancel(&self) {
        self.shutdown.cancel();
    }

    /// Asks it to end and insists that it does: in time, without an error, and with no task left on its runtime.
    ///
    /// # Errors
    /// When it does not.
    pub async fn shutdown(mut self) -> Result<()> {
        if !self.runs() {
            self.outcome().await?;
            bail!("{} had ended by itself", self.name);
        }
        self.cancel();
        self.outcome().await
    }

    async fn outcome(&mut self) -> Result<()> {
        let ended = within(&format!("{} drains", self.name), LIMIT * 2, &mut self.ended).await?;
        if let Some(thread) = self.thread.take() {
            // It has said its last word, or panicked.
            thread.join().map_err(|_| anyhow!("{} panicked", self.name))?;
        }
        ended?.with_context(|| self.name.clone())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Run = fn(CancellationToken) -> std::pin::Pin<Box<dyn Future<Output = Result<()>>>>;

    async fn served(run: Run) -> Served {
        let started = Served::start("an app", move || async move { Ok((7, run)) }).await;
        let (facts, served) = started.unwrap();
        assert_eq!(facts, 7);
        served
    }

    #[tokio::test]
    async fn an_app_that_drains_is_told_from_one_that_fails_and_from_one_that_leaks() {
        let clean = served(|stop| {
            Box::pin(async move {
                stop.cancelled().await;
                Ok(())
            })
        })
        .await;
        assert!(clean.runs());
        clean.shutdown().await.unwrap();

        let failing = served(|stop| {
            Box::pin(async move {
                stop.cancelled().await;
                Err(anyhow!("it could not end well"))
            })
        })
        .await;
        failing.shutdown().await.unwrap_err();

        let leaking = served(|stop| {
            Box::pin(async move {
                let tasks = tokio_util::task::TaskTracker::new();
                tasks.spawn(std::future::pending::<()>());
                stop.cancelled().await;
                Ok(())
            })
        });
        let error = leaking.await.shutdown().await.unwrap_err();
        assert!(format!("{error:#}").contains("1 tasks were leaked"), "{error:#}");
    }

    #[tokio::test]
    async fn an_app_that_cannot_be_bound_says_why() {
        let bind = || async { Err::<((), Run), _>(anyhow!("the port is taken")) };
        let error = Served::start("an app", bind).await.unwrap_err();
        assert!(format!("{error:#}").contains("the port is taken"), "{error:#}");
    }
}

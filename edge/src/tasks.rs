//! Every task of the edge: tracked by name, counted when it panics, awaited at the end.

use std::{future::Future, panic::AssertUnwindSafe};

use futures_util::FutureExt as _;
use prometheus_client::metrics::counter::Counter;
use tokio_util::task::TaskTracker;

/// Where tasks are started. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    panics: Counter,
}

impl Tasks {
    pub(crate) fn new(panics: Counter) -> Self {
        Self { tracker: TaskTracker::new(), panics }
    }

    /// Starts a task. It must end by itself when the edge drains. A panic ends it alone: it is logged and counted.
    pub(crate) fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let panics = self.panics.clone();
        // No async block: it would keep a second copy of the future beside the one it awaits, in every connection.
        self.tracker.spawn(AssertUnwindSafe(future).catch_unwind().map(move |result| {
            if result.is_err() {
                panics.inc();
                tracing::error!(task.name = name, "a task panicked");
            }
        }));
    }

    /// How many run.
    pub(crate) fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Waits until none runs. No new ones may be started after this.
    pub(crate) async fn drained(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_one_task_and_is_counted() {
        let tasks = Tasks::new(Counter::default());
        let (tx, rx) = tokio::sync::oneshot::channel();
        tasks.spawn("bad", async { panic!("this panic is part of a test") });
        tasks.spawn("good", async move {
            let _ = tx.send(());
        });
        rx.await.unwrap();
        tasks.drained().await;
        assert_eq!((tasks.panics.get(), tasks.len()), (1, 0));
    }
}

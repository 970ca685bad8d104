//! A place where a scripted server waits until the test lets it go on.

use tokio::sync::watch;

/// A one-way gate; clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate {
    open: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { open: watch::Sender::new(false), waiting: watch::Sender::new(0) }
    }
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until the gate is open.
    pub async fn pass(&self) {
        self.waiting.send_modify(|count| *count += 1);
        // The sender is in `self`, so the channel cannot be closed.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    /// Waits until somebody has arrived at the gate.
    pub async fn reached(&self) {
        let _ = self.waiting.subscribe().wait_for(|count| *count > 0).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn nobody_passes_a_closed_gate_and_everybody_an_open_one() {
        let gate = Gate::new();
        let mut arrived = Box::pin(gate.reached());
        assert!(arrived.as_mut().now_or_never().is_none());
        let mut waiting = Box::pin(gate.pass());
        assert!(waiting.as_mut().now_or_never().is_none());
        arrived.await;
        gate.open();
        waiting.await;
        gate.pass().await;
    }
}

//! All deadlines of a connection on one timer.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// What can be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// No `open` came.
    Open,
    /// The token is about to expire.
    Warning,
    /// The token has expired.
    Expiry,
    /// The client was quiet.
    Ping,
    /// Nothing came after a ping.
    Pong,
    /// The client did not take what was sent.
    Write,
    /// Core did not take a frame.
    Forward,
    /// The next frame may be handed to core.
    Pace,
    /// Nothing came from core, not even a heartbeat.
    Feed,
    /// Core did not end the stream after the client left.
    Leave,
    /// It is this connection's turn to drain.
    Drain,
}

const TIMERS: [Timer; 11] = [
    Timer::Open,
    Timer::Warning,
    Timer::Expiry,
    Timer::Ping,
    Timer::Pong,
    Timer::Write,
    Timer::Forward,
    Timer::Pace,
    Timer::Feed,
    Timer::Leave,
    Timer::Drain,
];

#[derive(Debug)]
pub(super) struct Deadlines {
    at: [Option<Instant>; TIMERS.len()],
    /// Fires at the earliest deadline or before it: moving a deadline back does not touch it.
    sleep: Pin<Box<Sleep>>,
    armed: bool,
}

impl Deadlines {
    pub(super) fn new(now: Instant) -> Self {
        Self { at: [None; TIMERS.len()], sleep: Box::pin(sleep_until(now)), armed: false }
    }

    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.at[timer as usize] = Some(at);
        if !self.armed || at < self.sleep.deadline() {
            self.sleep.as_mut().reset(at);
            self.armed = true;
        }
    }

    /// Sets a deadline unless it is set already.
    pub(super) fn start(&mut self, timer: Timer, at: Instant) {
        if self.at[timer as usize].is_none() {
            self.set(timer, at);
        }
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        self.at[timer as usize] = None;
    }

    /// The next deadline that has passed; it is cleared.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<Timer> {
        while self.armed {
            std::task::ready!(self.sleep.as_mut().poll(cx));
            let now = self.sleep.deadline();
            let due = TIMERS.into_iter().find(|timer| self.at[*timer as usize].is_some_and(|at| at <= now));
            if let Some(timer) = due {
                self.clear(timer);
                return Poll::Ready(timer);
            }
            match self.at.iter().flatten().min() {
                Some(next) => self.sleep.as_mut().reset(*next),
                None => self.armed = false,
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadlines_come_in_order_and_cleared_ones_do_not() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::new(start);
        deadlines.set(Timer::Ping, after(25));
        deadlines.set(Timer::Open, after(5));
        deadlines.set(Timer::Expiry, after(60));
        deadlines.start(Timer::Expiry, after(10));
        deadlines.clear(Timer::Open);
        // Moved back while armed for its first time.
        deadlines.set(Timer::Ping, after(30));
        assert_eq!(poll_fn(|cx| deadlines.poll_due(cx)).await, Timer::Ping);
        assert_eq!(start.elapsed(), Duration::from_secs(30));
        assert_eq!(poll_fn(|cx| deadlines.poll_due(cx)).await, Timer::Expiry);
        assert_eq!(start.elapsed(), Duration::from_secs(60));
        let nothing = tokio::time::timeout(Duration::from_secs(3600), poll_fn(|cx| deadlines.poll_due(cx))).await;
        assert!(nothing.is_err());
        deadlines.set(Timer::Write, Instant::now());
        assert_eq!(poll_fn(|cx| deadlines.poll_due(cx)).await, Timer::Write);
    }
}

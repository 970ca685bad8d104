//! Hints between the cores that share a store. The traits' text is the contract; `conformance` tests it against every
//! implementation.
//!
//! The store is the truth and the bus is a hint: what it carries may be lost at any time, and whoever listens must be able
//! to do without. A bus sees topics and sealed bytes; it knows nothing of sessions, entries or replies.

#[cfg(test)]
mod conformance;
pub mod local;
pub mod nats;

use std::{fmt, pin::Pin, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// There is no connection, or the bus is closed.
    #[error("the bus is not available")]
    Unavailable,
    /// Nobody answered in time, or nobody listens.
    #[error("nobody answered")]
    NoAnswer,
    /// The payload is larger than [`Bus::max_payload`].
    #[error("the payload is too large for the bus")]
    TooLarge,
}

/// What a subscription yields.
#[derive(Debug)]
pub enum Delivery {
    /// Something was published.
    Message(Bytes),
    /// Something was asked; whoever has the answer gives it, everybody else drops it.
    Request(Bytes, Answer),
    /// Anything published before what follows may have been missed.
    Lost,
}

/// The way to answer one request.
pub struct Answer(Box<dyn FnOnce(Bytes) + Send>);

impl Answer {
    /// Answers. Never waits; an answer that comes too late, or after another one, is dropped.
    pub fn give(self, payload: Bytes) {
        (self.0)(payload);
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer(..)")
    }
}

/// How a bus is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// It can reach the others now.
    pub connected: bool,
    /// It could reach them at least once.
    pub was_connected: bool,
    /// What was published and could not be kept until it was sent.
    pub dropped: u64,
}

/// Publish, subscribe and request, at most once each.
///
/// A topic is made of ASCII letters, digits, `-` and `.`, neither beginning nor ending with a dot.
#[async_trait]
pub trait Bus: Send + Sync + fmt::Debug + 'static {
    /// Gives a payload to every subscription of the topic on *other* handles of this bus; one's own are not told. Never
    /// waits: what does not fit into the bounded way out, is larger than [`Bus::max_payload`], or meets no connection is
    /// dropped and counted. What one handle publishes on one topic arrives in this order, if it arrives.
    fn publish(&self, topic: &str, payload: Bytes);

    /// Listens. When this returns, everything published from then on is delivered or marked as [`Delivery::Lost`]. Never
    /// fails: without a connection the subscription begins with `Lost` once there is one. A mark stands before the first
    /// delivery that follows what was missed; it may be given without need and more than once. Dropping the subscription
    /// ends it.
    async fn subscribe(&self, topic: &str) -> Subscription;

    /// Asks all subscriptions of the topic on other handles; the first answer counts. A question may overtake what was
    /// published before it.
    ///
    /// # Errors
    /// [`BusError::NoAnswer`] when none came within `deadline`; it may come sooner when nobody listens. The question may
    /// have been received all the same.
    async fn request(&self, topic: &str, payload: Bytes, deadline: Duration) -> Result<Bytes, BusError>;

    /// Whether there can be anybody else. When not, nothing needs to be published.
    fn has_peers(&self) -> bool;

    /// The largest payload that can be published, asked or answered now.
    fn max_payload(&self) -> usize;

    /// How it is doing. Does not wait.
    fn liveness(&self) -> Liveness;

    /// Sends what was accepted, for a bounded time, and ends all subscriptions. Idempotent; what is published afterwards is
    /// dropped, and requests fail as [`BusError::Unavailable`].
    async fn close(&self);
}

/// One topic, listened to. Bounded by count; what does not fit is dropped and marked.
pub struct Subscription(Pin<Box<dyn Stream<Item = Delivery> + Send>>);

impl Subscription {
    /// A subscription that yields what the stream yields.
    pub fn new(deliveries: impl Stream<Item = Delivery> + Send + 'static) -> Self {
        Self(Box::pin(deliveries))
    }

    /// The next delivery; `None` once the bus is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.0.next().await
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subscription(..)")
    }
}

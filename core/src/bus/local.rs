//! A bus within one process: for one core, which has nobody to talk to, and for several in one process, as in tests.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{Notify, oneshot};

use super::{Answer, Bus, BusError, Delivery, Liveness, Subscription};

/// What may wait for one subscription; more is dropped and marked.
const QUEUE: usize = 256;
const QUEUE_BYTES: usize = 1024 * 1024;

/// As large as the smallest common default of a real bus, so that what fits here fits there.
const MAX_PAYLOAD: usize = 1024 * 1024;

/// What the handles of one bus share.
#[derive(Debug, Default)]
struct Hub {
    topics: Mutex<HashMap<String, Vec<Arc<Mailbox>>>>,
    handles: AtomicU64,
}

impl Hub {
    fn topics(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<Mailbox>>>> {
        // Only map operations and pushes run under this lock.
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One handle of a bus within the process.
#[derive(Debug)]
pub struct LocalBus {
    hub: Arc<Hub>,
    handle: u64,
    has_peers: bool,
    closed: AtomicBool,
    dropped: AtomicU64,
}

impl LocalBus {
    /// A bus with nobody else on it.
    #[must_use]
    pub fn alone() -> Self {
        Self::on(Arc::default(), false)
    }

    /// A bus that others may join by [`LocalBus::join`].
    #[must_use]
    pub fn shared() -> Self {
        Self::on(Arc::default(), true)
    }

    /// Another handle of the same bus.
    #[must_use]
    pub fn join(&self) -> Self {
        Self::on(self.hub.clone(), true)
    }

    fn on(hub: Arc<Hub>, has_peers: bool) -> Self {
        let handle = hub.handles.fetch_add(1, Ordering::Relaxed);
        Self { hub, handle, has_peers, closed: AtomicBool::new(false), dropped: AtomicU64::new(0) }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Bus for LocalBus {
    fn publish(&self, topic: &str, payload: Bytes) {
        if self.is_closed() || payload.len() > MAX_PAYLOAD {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        for mailbox in self.hub.topics().get(topic).into_iter().flatten().filter(|m| m.handle != self.handle) {
            mailbox.push(payload.len(), Delivery::Message(payload.clone()));
        }
    }

    async fn subscribe(&self, topic: &str) -> Subscription {
        let mailbox = Arc::new(Mailbox { handle: self.handle, state: Mutex::default(), changed: Notify::new() });
        self.hub.topics().entry(topic.to_owned()).or_default().push(mailbox.clone());
        let member = Member { hub: self.hub.clone(), topic: topic.to_owned(), mailbox };
        // Closed before it was listed: nobody else would end it.
        if self.is_closed() {
            member.mailbox.close();
        }
        Subscription::new(stream::unfold(member, |member| async move {
            let delivery = member.mailbox.next().await?;
            Some((delivery, member))
        }))
    }

    async fn request(&self, topic: &str, payload: Bytes, deadline: Duration) -> Result<Bytes, BusError> {
        if self.is_closed() {
            return Err(BusError::Unavailable);
        }
        if payload.len() > MAX_PAYLOAD {
            return Err(BusError::TooLarge);
        }
        let (sender, answer) = oneshot::channel();
        let sender = Arc::new(Mutex::new(Some(sender)));
        for mailbox in self.hub.topics().get(topic).into_iter().flatten().filter(|m| m.handle != self.handle) {
            let sender = sender.clone();
            let give = Answer(Box::new(move |answer| {
                let first = sender.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(sender) = first {
                    // Whoever asked may have given up.
                    let _ = sender.send(answer);
                }
            }));
            mailbox.push(payload.len(), Delivery::Request(payload.clone(), give));
        }
        // With the last question dropped unanswered the channel closes: nobody will answer any more.
        drop(sender);
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(BusError::NoAnswer),
        }
    }

    fn has_peers(&self) -> bool {
        self.has_peers
    }

    fn max_payload(&self) -> usize {
        MAX_PAYLOAD
    }

    fn liveness(&self) -> Liveness {
        let connected = !self.is_closed();
        Liveness { connected, was_connected: true, dropped: self.dropped.load(Ordering::Relaxed) }
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        for mailbox in self.hub.topics().values().flatten().filter(|m| m.handle == self.handle) {
            mailbox.close();
        }
    }
}

/// A place in the hub; given up when the subscription is dropped.
struct Member {
    hub: Arc<Hub>,
    topic: String,
    mailbox: Arc<Mailbox>,
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut topics = self.hub.topics();
        if let Some(mailboxes) = topics.get_mut(&self.topic) {
            mailboxes.retain(|mailbox| !Arc::ptr_eq(mailbox, &self.mailbox));
            if mailboxes.is_empty() {
                topics.remove(&self.topic);
            }
        }
        drop(topics);
        // Unanswered questions end here, so that whoever asked need not wait.
        self.mailbox.close();
    }
}

/// What waits for one subscription.
#[derive(Debug)]
struct Mailbox {
    handle: u64,
    state: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    deliveries: VecDeque<(usize, Delivery)>,
    bytes: usize,
    closed: bool,
}

impl Mailbox {
    fn push(&self, bytes: usize, delivery: Delivery) {
        let mut waiting = self.lock();
        if waiting.closed {
            return;
        }
        let fits = waiting.deliveries.len() < QUEUE && waiting.bytes + bytes <= QUEUE_BYTES;
        if fits {
            waiting.bytes += bytes;
            waiting.deliveries.push_back((bytes, delivery));
        } else if !matches!(waiting.deliveries.back(), Some((_, Delivery::Lost))) {
            waiting.deliveries.push_back((0, Delivery::Lost));
        }
        drop(waiting);
        self.changed.notify_one();
    }

    async fn next(&self) -> Option<Delivery> {
        loop {
            {
                let mut waiting = self.lock();
                if let Some((bytes, delivery)) = waiting.deliveries.pop_front() {
                    waiting.bytes -= bytes;
                    return Some(delivery);
                }
                if waiting.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let dropped = std::mem::take(&mut waiting.deliveries);
        drop(waiting);
        // After the lock: a question tells whoever asked.
        drop(dropped);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bus::conformance::{Fixture, bus_conformance};

    struct LocalFixture(LocalBus);

    #[async_trait]
    impl Fixture for LocalFixture {
        async fn handle(&self) -> Arc<dyn Bus> {
            Arc::new(self.0.join())
        }
    }

    bus_conformance!(LocalFixture(LocalBus::shared()));

    #[tokio::test]
    async fn a_queue_that_overflows_by_bytes_is_marked_too() {
        let bus = LocalBus::shared();
        let mut subscription = bus.join().subscribe("t").await;
        for _ in 0..3 {
            bus.publish("t", Bytes::from(vec![0; QUEUE_BYTES / 2]));
        }
        for expected in [false, false, true] {
            assert_eq!(matches!(subscription.next().await, Some(Delivery::Lost)), expected);
        }
    }

    #[tokio::test]
    async fn topics_without_subscriptions_are_forgotten() {
        let bus = LocalBus::shared();
        let (one, two) = (bus.subscribe("t").await, bus.subscribe("t").await);
        drop(one);
        assert_eq!(bus.hub.topics().len(), 1);
        drop(two);
        assert!(bus.hub.topics().is_empty());
    }
}

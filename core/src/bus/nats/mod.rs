//! The bus between processes: core NATS, at most once, no streams. A topic is a subject below a prefix.
//!
//! The client reconnects by itself, for ever. Every connection that was made, every one that was lost and every overflow
//! of the client's own queues is a mark for all subscriptions: which of them missed something is not known.

mod options;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, Event, Message, Statistics, Subscriber, connection::State};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::options::{NatsAuth, NatsOptions};
use super::{Answer, Bus, BusError, Delivery, Liveness, Subscription};

/// What may wait on its way out; more is dropped and counted.
const OUTBOX: usize = 4_096;
const OUTBOX_BYTES: usize = 16 * 1024 * 1024;

/// What may wait for one subscription within the client; more is dropped there, and marked.
const SUBSCRIPTION_QUEUE: usize = 256;

/// Commands that wait within the client. Small: what waits is kept and counted in the way out.
const CLIENT_QUEUE: usize = 64;

/// A server that answers no ping for three of these is gone.
const PING_INTERVAL: Duration = Duration::from_secs(5);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two tries to connect, at most.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// One question to the server and back.
const ROUND_TRIP: Duration = Duration::from_secs(1);

/// What was accepted is sent for so long when the bus is closed.
const FLUSH: Duration = Duration::from_secs(1);

struct Outgoing {
    subject: String,
    payload: Bytes,
}

/// See the module's text.
#[derive(Debug)]
pub struct NatsBus {
    client: Client,
    prefix: String,
    outbox: mpsc::Sender<Outgoing>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Ends subscriptions, and the way out once it is empty.
    closed: CancellationToken,
}

/// What the handle, its subscriptions and the client's events share.
#[derive(Debug)]
struct Shared {
    waiting_bytes: AtomicUsize,
    dropped: AtomicU64,
    was_connected: AtomicBool,
    /// Counts what may have made subscriptions miss something.
    losses: watch::Sender<u64>,
    client: OnceLock<Client>,
    prefix: String,
}

impl Shared {
    async fn event(&self, event: Event) {
        match event {
            Event::Connected => {
                self.was_connected.store(true, Ordering::Relaxed);
                tracing::info!("connected to the bus");
                if let Some(client) = self.client.get() {
                    // Behind the subscriptions that the client makes anew: what comes after the mark is heard.
                    round_trip(client, &self.prefix).await;
                }
                self.lost();
            }
            Event::Disconnected => {
                tracing::warn!("the connection to the bus is lost");
                self.lost();
            }
            Event::SlowConsumer(_) => self.lost(),
            Event::ServerError(error) => tracing::warn!(%error, "the bus refused something"),
            Event::ClientError(error) => tracing::warn!(%error, "the bus cannot be reached"),
            Event::LameDuckMode | Event::Draining | Event::Closed => {}
        }
    }

    fn lost(&self) {
        self.losses.send_modify(|losses| *losses += 1);
    }
}

impl NatsBus {
    /// A handle that connects in the background, and again whenever it has to. Needs a tokio runtime.
    ///
    /// # Errors
    /// One line about the setting that cannot be used; whether a server can be reached is not waited for.
    pub async fn connect(options: NatsOptions) -> Result<Self, String> {
        let shared = Arc::new(Shared {
            waiting_bytes: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            was_connected: AtomicBool::new(false),
            losses: watch::Sender::new(0),
            client: OnceLock::new(),
            prefix: options.prefix.clone(),
        });
        // Weak: the client's task lives as long as there is a client, and tells its events to the end.
        let events = Arc::downgrade(&shared);
        let (connect, servers) = options.client_options()?;
        let client = connect
            .custom_inbox_prefix(format!("{}.inbox", options.prefix))
            .no_echo()
            .retry_on_initial_connect()
            .client_capacity(CLIENT_QUEUE)
            .subscription_capacity(SUBSCRIPTION_QUEUE)
            .ping_interval(PING_INTERVAL)
            .connection_timeout(CONNECT_TIMEOUT)
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |event| {
                let shared = events.clone();
                async move {
                    if let Some(shared) = shared.upgrade() {
                        shared.event(event).await;
                    }
                }
            })
            .connect(servers)
            .await
            .map_err(|error| error.to_string())?;
        let _ = shared.client.set(client.clone());
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let (tasks, closed) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(send(client.clone(), shared.clone(), outgoing, closed.clone()));
        Ok(Self { client, prefix: options.prefix, outbox, shared, tasks, closed })
    }

    fn subject(&self, topic: &str) -> String {
        format!("{}.{topic}", self.prefix)
    }

    fn is_connected(&self) -> bool {
        !self.closed.is_cancelled() && self.client.connection_state() == State::Connected
    }

    /// Accepts what fits.
    fn accept(&self, topic: &str, payload: Bytes) -> bool {
        if payload.len() > self.client.max_payload() || !self.is_connected() {
            return false;
        }
        let (waiting, bytes) = (&self.shared.waiting_bytes, payload.len());
        if waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > OUTBOX_BYTES
            || self.outbox.try_send(Outgoing { subject: self.subject(topic), payload }).is_err()
        {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }
}

#[async_trait]
impl Bus for NatsBus {
    fn publish(&self, topic: &str, payload: Bytes) {
        if !self.accept(topic, payload) {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn subscribe(&self, topic: &str) -> Subscription {
        let mut listening = Listening {
            subject: self.subject(topic),
            client: self.client.clone(),
            prefix: self.prefix.clone(),
            connects: 0,
            statistics: self.client.statistics(),
            losses: self.shared.losses.subscribe(),
            subscriber: None,
        };
        if self.is_connected() {
            // In vain only when the connection breaks now: then it begins with a mark.
            let _ = tokio::time::timeout(ROUND_TRIP, listening.begin()).await;
        }
        let closed = self.closed.clone();
        Subscription::new(stream::unfold((listening, closed), |(mut listening, closed)| async move {
            tokio::select! {
                biased;
                () = closed.cancelled() => None,
                delivery = listening.next() => delivery.map(|delivery| (delivery, (listening, closed))),
            }
        }))
    }

    async fn request(&self, topic: &str, payload: Bytes, deadline: Duration) -> Result<Bytes, BusError> {
        if payload.len() > self.client.max_payload() {
            return Err(BusError::TooLarge);
        }
        if !self.is_connected() {
            return Err(BusError::Unavailable);
        }
        let request = async_nats::Request::new().payload(payload).timeout(None);
        match tokio::time::timeout(deadline, self.client.send_request(self.subject(topic), request)).await {
            Ok(Ok(answer)) => Ok(answer.payload),
            Ok(Err(_)) | Err(_) => Err(BusError::NoAnswer),
        }
    }

    fn has_peers(&self) -> bool {
        true
    }

    fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    fn liveness(&self) -> Liveness {
        Liveness {
            connected: self.is_connected(),
            was_connected: self.shared.was_connected.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
        }
    }

    async fn close(&self) {
        let was_connected = self.is_connected();
        self.closed.cancel();
        self.tasks.close();
        let flush = async {
            self.tasks.wait().await;
            if was_connected {
                // Nothing can be done about what cannot be sent now.
                let _ = self.client.flush().await;
                let _ = self.client.drain().await;
            }
        };
        let _ = tokio::time::timeout(FLUSH, flush).await;
    }
}

/// The way out: what was accepted goes to the client in order, at the pace of the connection.
async fn send(client: Client, shared: Arc<Shared>, mut outgoing: mpsc::Receiver<Outgoing>, closed: CancellationToken) {
    loop {
        let next = tokio::select! {
            biased;
            next = outgoing.recv() => next,
            // Only once nothing waits any more.
            () = closed.cancelled() => None,
        };
        let Some(Outgoing { subject, payload }) = next else { return };
        let bytes = payload.len();
        if client.publish(subject, payload).await.is_err() {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Asks the server something that nobody answers: what was sent before has arrived when it has said so.
async fn round_trip(client: &Client, prefix: &str) -> bool {
    let request = async_nats::Request::new().timeout(Some(ROUND_TRIP));
    match client.send_request(format!("{prefix}.nobody"), request).await {
        Ok(_) => true,
        Err(error) => error.kind() == async_nats::client::RequestErrorKind::NoResponders,
    }
}

fn reconnect_delay(attempts: usize) -> Duration {
    let exponent = u32::try_from(attempts).unwrap_or(u32::MAX).min(8);
    let delay = Duration::from_millis(4 << exponent).min(MAX_RECONNECT_DELAY);
    // Not all cores at once.
    delay.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// One subscription, begun again if it could not be begun at once.
struct Listening {
    subject: String,
    client: Client,
    prefix: String,
    /// Connections when it last said whether something was missed.
    connects: u64,
    statistics: Arc<Statistics>,
    losses: watch::Receiver<u64>,
    subscriber: Option<Subscriber>,
}

impl Listening {
    /// Listens from here on. `false`: not yet.
    async fn begin(&mut self) -> bool {
        self.losses.mark_unchanged();
        let connects = self.statistics.connects.load(Ordering::Relaxed);
        let Ok(subscriber) = self.client.subscribe(self.subject.clone()).await else { return false };
        if !round_trip(&self.client, &self.prefix).await {
            return false;
        }
        self.connects = connects;
        self.subscriber = Some(subscriber);
        true
    }

    async fn next(&mut self) -> Option<Delivery> {
        loop {
            let connects = self.statistics.connects.load(Ordering::Relaxed);
            let Some(subscriber) = &mut self.subscriber else {
                if self.begin().await {
                    return Some(Delivery::Lost);
                }
                // Told when there is a connection; asked now and then in case that was missed.
                let _ = tokio::time::timeout(ROUND_TRIP, self.losses.changed()).await;
                continue;
            };
            if self.connects != connects {
                // Before anything of the new connection: the event that tells of it may come late.
                self.connects = connects;
                return Some(Delivery::Lost);
            }
            tokio::select! {
                biased;
                changed = self.losses.changed() => {
                    changed.ok()?;
                    return Some(Delivery::Lost);
                }
                message = subscriber.next() => {
                    // What was received meanwhile belongs behind a mark that is due.
                    let message = delivery(self.client.clone(), message?);
                    return Some(message);
                }
            }
        }
    }
}

fn delivery(client: Client, message: Message) -> Delivery {
    let Some(inbox) = message.reply else { return Delivery::Message(message.payload) };
    Delivery::Request(
        message.payload,
        Answer(Box::new(move |payload| {
            // The client's queue has a place, or whoever asked does without: an answer never waits.
            let publish = tokio::task::coop::unconstrained(client.publish(inbox, payload));
            let _ = futures_util::FutureExt::now_or_never(publish);
        })),
    )
}

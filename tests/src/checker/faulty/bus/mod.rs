//! A bus that lies: the real one, and between it and whoever listens what was asked for.

mod lie;
mod payload;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use chatbox_core::{
    bus::{Bus, BusError, Delivery, Liveness, Subscription},
    seal::KeyRing,
    store::SessionStore,
};
use chatbox_proto::ids::SessionId;
use futures_util::stream;

pub use lie::BusLie;
use payload::{Opener, moved};

/// What a process logs when its bus has lied once.
pub const LIED: &str = "the bus has lied";

/// Payloads after which one is said again.
const LONG_AGO: usize = 12;

/// A bus that lies.
#[derive(Debug)]
pub struct FaultyBus {
    inner: Arc<dyn Bus>,
    sessions: Arc<dyn SessionStore>,
    ring: KeyRing,
    lie: BusLie,
    memory: Arc<Memory>,
}

/// What lies have to remember across sessions.
#[derive(Debug, Default)]
struct Memory {
    told: AtomicBool,
    /// The last payload of each topic.
    heard: Mutex<HashMap<String, Bytes>>,
    answer: Mutex<Option<Bytes>>,
}

impl Memory {
    fn tell(&self, lie: BusLie) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(lie = lie.name(), "{LIED}");
        }
    }

    /// Plain data, never held over an await.
    fn heard(&self) -> MutexGuard<'_, HashMap<String, Bytes>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FaultyBus {
    /// Around a bus, for sessions in this store that are sealed with this ring.
    #[must_use]
    pub fn new(inner: Arc<dyn Bus>, sessions: Arc<dyn SessionStore>, ring: KeyRing, lie: BusLie) -> Self {
        Self { inner, sessions, ring, lie, memory: Arc::default() }
    }

    async fn opener(&self, topic: &str) -> Option<Opener> {
        let session: SessionId = topic.strip_prefix("session.")?.parse().ok()?;
        let header = self.sessions.session(session).await.ok()??;
        Some(Opener { session, key: self.ring.unwrap(session, &header.wrapped_key).ok()? })
    }
}

#[async_trait]
impl Bus for FaultyBus {
    fn publish(&self, topic: &str, payload: Bytes) {
        self.inner.publish(topic, payload);
    }

    async fn subscribe(&self, topic: &str) -> Subscription {
        let subscription = self.inner.subscribe(topic).await;
        let hearing = Hearing {
            lie: self.lie,
            topic: topic.to_owned(),
            opener: self.opener(topic).await,
            memory: Arc::clone(&self.memory),
            count: 0,
            held: None,
            past: VecDeque::new(),
            missing: HashMap::new(),
        };
        Subscription::new(stream::unfold(
            (subscription, hearing, VecDeque::new()),
            |(mut from, mut hearing, mut next)| async {
                loop {
                    if let Some(delivery) = next.pop_front() {
                        return Some((delivery, (from, hearing, next)));
                    }
                    next.extend(hearing.hear(from.next().await?));
                }
            },
        ))
    }

    async fn request(&self, topic: &str, payload: Bytes, deadline: Duration) -> Result<Bytes, BusError> {
        let answer = self.inner.request(topic, payload, deadline).await?;
        if self.lie != BusLie::StaleAnswer {
            return Ok(answer);
        }
        let mut older = self.memory.answer.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match older.replace(answer.clone()) {
            Some(older) => {
                self.memory.tell(self.lie);
                older
            }
            None => answer,
        })
    }

    fn has_peers(&self) -> bool {
        self.inner.has_peers()
    }

    fn max_payload(&self) -> usize {
        self.inner.max_payload()
    }

    fn liveness(&self) -> Liveness {
        self.inner.liveness()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// One subscription, as it is heard.
struct Hearing {
    lie: BusLie,
    topic: String,
    opener: Option<Opener>,
    memory: Arc<Memory>,
    /// Payloads so far.
    count: u64,
    held: Option<Bytes>,
    past: VecDeque<Bytes>,
    /// Bytes of each reply that were left out.
    missing: HashMap<String, u64>,
}

impl fmt::Debug for Hearing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hearing").field("lie", &self.lie).field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Hearing {
    fn hear(&mut self, delivery: Delivery) -> Vec<Delivery> {
        match delivery {
            Delivery::Request(..) if self.lie == BusLie::Mute => {
                self.memory.tell(self.lie);
                Vec::new()
            }
            Delivery::Message(payload) => {
                self.count += 1;
                let told = self.told(&payload);
                if told.is_some() {
                    self.memory.tell(self.lie);
                }
                told.unwrap_or_else(|| vec![Delivery::Message(payload)])
            }
            delivery @ (Delivery::Request(..) | Delivery::Lost) => vec![delivery],
        }
    }

    /// What is heard in place of it; `None`: the truth.
    fn told(&mut self, payload: &Bytes) -> Option<Vec<Delivery>> {
        let second = self.count.is_multiple_of(2);
        let all = match self.lie {
            BusLie::Double => vec![payload.clone(), payload.clone()],
            BusLie::Swapped => match self.held.take() {
                Some(held) => vec![payload.clone(), held],
                None => {
                    self.held = Some(payload.clone());
                    Vec::new()
                }
            },
            BusLie::Late => {
                self.past.push_back(payload.clone());
                let late = if self.past.len() > LONG_AGO { self.past.pop_front() } else { None };
                vec![payload.clone(), late?]
            }
            BusLie::Lost if second => Vec::new(),
            BusLie::Foreign => {
                let mut heard = self.memory.heard();
                heard.insert(self.topic.clone(), payload.clone());
                let foreign = heard.iter().find(|(topic, _)| **topic != self.topic).map(|(_, foreign)| foreign.clone());
                vec![foreign?, payload.clone()]
            }
            BusLie::Moved => {
                let before = self.held.clone();
                if self.opener.as_ref().and_then(|opener| opener.document(payload)).is_some() {
                    self.held = Some(payload.clone());
                }
                vec![moved(payload, &before?)?]
            }
            BusLie::Broken if second => {
                let mut broken = payload.to_vec();
                *broken.last_mut()? ^= 1;
                vec![broken.into()]
            }
            BusLie::Marked if second => return Some(vec![Delivery::Lost, Delivery::Message(payload.clone())]),
            BusLie::FarHead if self.count % 4 == 1 => vec![self.opener.as_ref()?.far_head(), payload.clone()],
            BusLie::ChangedText => vec![self.opener.as_ref()?.changed_text(payload)?],
            BusLie::Invented => vec![payload.clone(), self.opener.as_ref()?.invented(payload)?],
            BusLie::ChangedDelta => {
                let opener = self.opener.as_ref()?;
                let delta = opener.delta(payload)?;
                let (offset, text) = (delta.offset, "x".repeat(delta.text.len()));
                vec![opener.seal_delta(delta, offset, &text)]
            }
            BusLie::ClosedGap => {
                let opener = self.opener.as_ref()?;
                let delta = opener.delta(payload)?;
                let missing = self.missing.entry(delta.reply.clone()).or_default();
                if *missing == 0 {
                    *missing = delta.text.len() as u64;
                    Vec::new()
                } else {
                    let (offset, text) = (delta.offset.saturating_sub(*missing), delta.text.clone());
                    vec![opener.seal_delta(delta, offset, &text)]
                }
            }
            BusLie::Lost | BusLie::Broken | BusLie::Marked | BusLie::FarHead | BusLie::Mute | BusLie::StaleAnswer => {
                return None;
            }
        };
        Some(all.into_iter().map(Delivery::Message).collect())
    }
}

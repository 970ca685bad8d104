//! Several cores in one process over one store and one bus, each of which can be stopped for a while as by a signal, and a
//! bus that loses, doubles, delays and reorders what it is given, by a seed.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use chatbox_proto::ids::{MessageId, SessionId};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::sync::watch;

use super::fixture::{Core, Place};
use crate::{
    bus::{Bus, BusError, Delivery, Liveness, Subscription, local::LocalBus},
    domain::entry::Seq,
    store::{
        ActiveSession, Append, AppendId, Appended, BootId, Created, Derived, Header, KeyedHash, LogDocument,
        MessageKey, NewSession, ReplyLease, ReplyRow, SessionQuery, SessionStore, StoreError,
        sqlite::{SqliteOptions, SqliteStore},
    },
};

/// Cores over one store and one bus.
pub(in crate::session) struct Cluster {
    place: Place,
    store: Arc<dyn SessionStore>,
    bus: LocalBus,
}

/// One core of it, and what can be done to it.
pub(super) struct Seat {
    pub(super) core: Core,
    pub(super) store: Arc<Stoppable>,
    pub(super) bus: Arc<Lossy>,
    stop: tokio_util::sync::DropGuard,
}

impl Cluster {
    pub(in crate::session) fn new() -> Self {
        let place = Place::new();
        let store = SqliteStore::open_in(place.folder.path(), &SqliteOptions::default()).unwrap();
        Self { place, store: Arc::new(store), bus: LocalBus::shared() }
    }

    /// The store alone, as a core sees it.
    pub(in crate::session) fn stoppable(self) -> Arc<dyn SessionStore> {
        Arc::new(Stoppable { inner: self.store, runs: watch::Sender::new(true), _place: self.place })
    }

    /// Another core, with its loops.
    pub(super) async fn core(&self) -> Seat {
        self.core_with(0, Losses::default()).await
    }

    pub(super) async fn core_with(&self, seed: u64, losses: Losses) -> Seat {
        let store = Arc::new(Stoppable {
            inner: self.store.clone(),
            runs: watch::Sender::new(true),
            _place: self.place.clone(),
        });
        let bus = Arc::new(Lossy::new(self.bus.join(), seed, losses));
        let core = Core::with(store.clone(), bus.clone(), self.place.clone()).await;
        let token = tokio_util::sync::CancellationToken::new();
        let run = core.directory.clone().run(token.clone());
        core.directory.shared.tasks.spawn(run);
        Seat { core, store, bus, stop: token.drop_guard() }
    }
}

impl Seat {
    /// As by SIGSTOP: whatever it was about to write or say waits, and it hears nothing.
    pub(super) fn stop(&self) {
        self.store.runs.send_replace(false);
        self.bus.silent.store(true, Ordering::Relaxed);
    }

    /// As by SIGCONT. What it was not told meanwhile it never hears.
    pub(super) fn go_on(&self) {
        self.bus.silent.store(false, Ordering::Relaxed);
        self.store.runs.send_replace(true);
    }

    /// Cut from the bus; the store is there.
    pub(super) fn unplug(&self) {
        self.bus.silent.store(true, Ordering::Relaxed);
    }

    /// So much of what it publishes next is lost.
    pub(super) fn lose(&self, count: u32) {
        self.bus.lose.store(count, Ordering::Relaxed);
    }

    /// Its rooms are told that they may have missed something.
    pub(super) fn mark_loss(&self) {
        self.bus.marks.send_replace(());
    }

    /// Cut from the bus, and told so.
    pub(super) fn cut_off(&self) {
        self.bus.cut_off.store(true, Ordering::Relaxed);
        self.unplug();
    }

    pub(super) async fn leave(self) {
        self.go_on();
        drop(self.stop);
        self.core.directory.start_draining();
        self.core.directory.cut();
        super::fixture::patiently("the drain", self.core.directory.drained()).await;
    }
}

/// The paused clock of a test must stand still while a store's thread works.
pub(super) async fn held<T>(call: impl Future<Output = T>) -> T {
    let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
    let held = tokio::task::spawn_blocking(move || {
        let _ = released.recv();
    });
    let result = call.await;
    drop(release);
    let _ = held.await;
    result
}

/// A store that several cores share, for one of them.
#[derive(Debug)]
pub(super) struct Stoppable {
    inner: Arc<dyn SessionStore>,
    runs: watch::Sender<bool>,
    _place: Place,
}

impl Stoppable {
    async fn running(&self) {
        let _ = self.runs.subscribe().wait_for(|runs| *runs).await;
    }
}

macro_rules! pass_on {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)+) => {
        #[async_trait]
        impl SessionStore for Stoppable {
            $(async fn $name(&self, $($argument: $type),*) -> Result<$result, StoreError> {
                self.running().await;
                let result = held(self.inner.$name($($argument),*)).await;
                self.running().await;
                result
            })+

            fn is_shared(&self) -> bool {
                true
            }

            async fn close(&self) {}
        }
    };
}

pass_on! {
    fn create_session(new: NewSession) -> Created;
    fn session(id: SessionId) -> Option<Header>;
    fn active_session(owner: &str) -> Option<Header>;
    fn list_sessions(query: SessionQuery) -> Vec<Header>;
    fn append(append: Append) -> Appended;
    fn find_append(session_id: SessionId, append_id: AppendId) -> Option<Seq>;
    fn find_message(session_id: SessionId, key: KeyedHash) -> Option<MessageKey>;
    fn head(session_id: SessionId) -> Seq;
    fn heads(sessions: &[SessionId]) -> Vec<(SessionId, Seq)>;
    fn read_after(session_id: SessionId, after: Seq, limit: u32) -> Vec<LogDocument>;
    fn read_before(session_id: SessionId, before: Seq, limit: u32) -> Vec<LogDocument>;
    fn replace_derived(session_id: SessionId, expected: Seq, derived: Derived) -> bool;
    fn active_sessions(after: Option<SessionId>, limit: u32) -> Vec<ActiveSession>;
    fn unfinished_sessions(after: Option<SessionId>, limit: u32) -> Vec<(SessionId, Seq)>;
    fn reply_row(session_id: SessionId) -> Option<ReplyRow>;
    fn reply_rows(after: Option<MessageId>, limit: u32) -> Vec<ReplyLease>;
    fn renew_reply(message_id: MessageId, boot_id: BootId, expected: u64, checkpoint: Vec<u8>) -> bool;
    fn replace_wrapped_key(session_id: SessionId, expected: Vec<u8>, new: Vec<u8>) -> bool;
    fn erase_session(session_id: SessionId, fence: Seq) -> bool;
    fn remove_reply(message_id: MessageId) -> ();
    fn wrapped_keys(after: Option<SessionId>, limit: u32) -> Vec<(SessionId, Vec<u8>)>;
    fn mark_read(session_id: SessionId, user_id: &str, seq: Seq) -> ();
    fn read_marks(session_id: SessionId) -> Vec<(String, Seq)>;
    fn installation_value(name: &str) -> Option<Vec<u8>>;
    fn init_installation_value(name: &str, value: Vec<u8>) -> Vec<u8>;
    fn replace_installation_value(name: &str, expected: Vec<u8>, new: Vec<u8>) -> bool;
    fn ping() -> ();
}

/// How often something happens to what is published: in 100.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Losses {
    pub(super) lost: u32,
    pub(super) doubled: u32,
    pub(super) delayed: u32,
}

/// A bus that does what a bus may, without a word.
#[derive(Debug)]
pub(super) struct Lossy {
    inner: Arc<LocalBus>,
    losses: Losses,
    random: Mutex<SmallRng>,
    silent: Arc<AtomicBool>,
    /// It is silent and knows it.
    cut_off: AtomicBool,
    /// So much of what is published next is lost.
    lose: AtomicU32,
    /// Changes when subscriptions are told that they may have missed something.
    marks: watch::Sender<()>,
}

impl Lossy {
    fn new(inner: LocalBus, seed: u64, losses: Losses) -> Self {
        Self {
            inner: Arc::new(inner),
            losses,
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            silent: Arc::default(),
            cut_off: AtomicBool::new(false),
            lose: AtomicU32::new(0),
            marks: watch::Sender::new(()),
        }
    }

    fn happens(&self, percent: u32) -> bool {
        self.random.lock().unwrap().random_range(0..100) < percent
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Bus for Lossy {
    fn publish(&self, topic: &str, payload: Bytes) {
        let lose = self.lose.try_update(Ordering::Relaxed, Ordering::Relaxed, |lose| lose.checked_sub(1)).is_ok();
        if lose || self.is_silent() || self.happens(self.losses.lost) {
            return;
        }
        if self.happens(self.losses.doubled) {
            self.inner.publish(topic, payload.clone());
        }
        if self.happens(self.losses.delayed) {
            // What comes later overtakes it.
            let (inner, topic) = (self.inner.clone(), topic.to_owned());
            let delay = Duration::from_millis(self.random.lock().unwrap().random_range(1..200));
            let late = async move {
                tokio::time::sleep(delay).await;
                inner.publish(&topic, payload);
            };
            tokio_util::task::TaskTracker::new().spawn(late);
            return;
        }
        self.inner.publish(topic, payload);
    }

    async fn subscribe(&self, topic: &str) -> Subscription {
        let heard = (self.inner.subscribe(topic).await, self.silent.clone(), self.marks.subscribe());
        let heard = futures_util::stream::unfold(heard, |(mut subscription, silent, mut marks)| async move {
            loop {
                let delivery = tokio::select! {
                    delivery = subscription.next() => delivery?,
                    marked = marks.changed() => {
                        marked.ok()?;
                        return Some((Delivery::Lost, (subscription, silent, marks)));
                    }
                };
                if !silent.load(Ordering::Relaxed) {
                    return Some((delivery, (subscription, silent, marks)));
                }
            }
        });
        Subscription::new(heard)
    }

    async fn request(&self, topic: &str, payload: Bytes, deadline: Duration) -> Result<Bytes, BusError> {
        if self.is_silent() || self.happens(self.losses.lost) {
            tokio::time::sleep(deadline).await;
            return Err(BusError::NoAnswer);
        }
        self.inner.request(topic, payload, deadline).await
    }

    fn has_peers(&self) -> bool {
        true
    }

    fn max_payload(&self) -> usize {
        self.inner.max_payload()
    }

    fn liveness(&self) -> Liveness {
        let liveness = self.inner.liveness();
        Liveness { connected: liveness.connected && !self.cut_off.load(Ordering::Relaxed), ..liveness }
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

//! Rooms by session id: finds the room of a live session or opens one, looks after sessions that a crash left unfinished,
//! compares heads with the store, and drains.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chatbox_proto::{ids::SessionId, status::Failure};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    budgets::sweep_budgets,
    error::{SessionError, shutting_down},
    holds::HoldWatch,
    idle,
    link::{Link, is_cut_off},
    log::SessionLog,
    naming::NamingLimits,
    queue::HelpQueue,
    room::{Opening, Room, RoomHandle},
    sweep::Sweep,
};
use crate::{
    budget::Budgets,
    bus::Bus,
    limits::Quota,
    llm::registry::Models,
    metrics::Metrics,
    seal::{InstallationSecret, KeyRing},
    store::{BootId, HandoffStore, Header, SessionStore, ShareStore, SlotRule, StoreErrorKind},
};

/// How often the heads of live sessions are compared with the store, in one read.
const COMPARE_HEADS: Duration = Duration::from_secs(5);

/// How often while other cores cannot be heard.
const COMPARE_CUT_OFF: Duration = Duration::from_secs(1);

/// After a loss they are compared after so long.
const COMPARE_SOON: Duration = Duration::from_millis(50);

/// Sessions per read while heads are compared, and while unfinished sessions are looked for.
const BATCH: usize = 500;

/// Limits and times of live sessions; see the configuration for units and ranges.
#[derive(Debug, Clone)]
pub struct SessionLimits {
    /// Active sessions per user; 0: as many as they like.
    pub max_active: u32,
    /// Entries that `open` replays at most.
    pub replay: u64,
    /// Messages that may wait for a reply.
    pub max_unanswered: usize,
    /// Rounds of deciding again after a conflict.
    pub append_rounds: u32,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Between two checkpoints of a reply that makes progress.
    pub checkpoint: Duration,
    /// One call of the store.
    pub store_call: Duration,
    /// A reply whose lease was not renewed for so long is dead; its core stops it by then.
    pub reply_lapse: Duration,
    /// A session in which nothing has happened for so long ends. `None`: never.
    pub idle_end: Option<Duration>,
    /// How sessions get their names.
    pub naming: NamingLimits,
    /// A hold whose admin was gone for so long goes back to the queue.
    pub hold_lapse: Duration,
    /// What the product says to who asks for a person when nobody of the team is there; empty: nothing.
    pub offline_notice: String,
    /// Clients of a core that leaves come back spread over this time.
    pub away_jitter: Duration,
}

impl SessionLimits {
    /// Which slot a session may take that is made by its own call, or brought back.
    pub(super) fn slot_rule(&self) -> SlotRule {
        if self.max_active == 0 { SlotRule::Unlimited } else { SlotRule::AnyOf(self.max_active) }
    }
}

/// How far the drain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Everything is served.
    Serving,
    /// No new replies, no new subscribers; running replies may finish.
    Draining,
    /// Running replies are cut.
    Cutting,
}

/// What all rooms share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Arc<dyn SessionStore>,
    pub(super) handoffs: Arc<dyn HandoffStore>,
    pub(super) shares: Arc<dyn ShareStore>,
    pub(super) queue: HelpQueue,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) models: Models,
    pub(super) budgets: Option<Budgets>,
    pub(super) quota: Quota,
    pub(super) ring: Arc<KeyRing>,
    pub(super) secret: Arc<InstallationSecret>,
    pub(super) limits: SessionLimits,
    pub(super) metrics: Metrics,
    pub(super) boot_id: BootId,
    /// Rooms and replies; both are waited for at shutdown.
    pub(super) tasks: TaskTracker,
    pub(super) phase: watch::Receiver<Phase>,
    /// Permits for names that are being made.
    pub(super) naming: Arc<Semaphore>,
    rooms: Mutex<HashMap<SessionId, RoomHandle>>,
    compare_now: Notify,
}

impl Shared {
    /// Opaque per user and installation, for abuse detection at a provider.
    pub(super) fn user_hash(&self, user_id: &str) -> String {
        let hash = self.secret.hash("provider user", &[user_id.as_bytes()]);
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Logs and counts a failure once, where it becomes an answer.
    pub(super) fn report(&self, error: &SessionError, what: &'static str) -> Failure {
        self.count(error);
        tracing::warn!(error = error as &dyn std::error::Error, "{what}");
        Failure::from(error)
    }

    /// Counts a failure of the store, and what it gave that cannot be read.
    pub(super) fn count(&self, error: &SessionError) {
        match error {
            SessionError::Store(error) => self.metrics.store_failed(error.kind()),
            SessionError::Seal(_) | SessionError::Form(_) | SessionError::Order(_) => {
                self.metrics.store_failed(StoreErrorKind::Corrupt);
            }
            SessionError::StoreTimeout => {}
        }
    }

    /// Heads are compared as soon as may be: a room may have missed something.
    pub(super) fn compare_heads_now(&self) {
        self.compare_now.notify_one();
    }

    /// Takes out the room that asks.
    pub(super) fn retire(&self, id: SessionId) {
        let mut rooms = self.rooms();
        // The entry is this room's: a closed room is only replaced after it has retired.
        rooms.remove(&id);
        self.metrics.sessions_live.set(rooms.len().try_into().unwrap_or(i64::MAX));
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<SessionId, RoomHandle>> {
        // Only map operations run under this lock.
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rooms of this core. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Directory {
    pub(super) shared: Arc<Shared>,
    phase: watch::Sender<Phase>,
}

/// What a directory is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where sessions are kept.
    pub store: Arc<dyn SessionStore>,
    /// Where it is kept which of them wait for a person or are held by one.
    pub handoffs: Arc<dyn HandoffStore>,
    /// Share links.
    pub shares: Arc<dyn ShareStore>,
    /// The way to the other cores that share the store.
    pub bus: Arc<dyn Bus>,
    /// Who can answer.
    pub models: Models,
    /// What may be used in a day; `None`: nothing is limited.
    pub budgets: Option<Budgets>,
    /// What this core may take on of what all may.
    pub quota: Quota,
    /// The key ring, after its self-test.
    pub ring: Arc<KeyRing>,
    /// The installation's secret, from the self-test.
    pub secret: Arc<InstallationSecret>,
    /// Limits and times.
    pub limits: SessionLimits,
    /// Figures.
    pub metrics: Metrics,
}

impl Directory {
    /// A directory without rooms.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let (phase, watched) = watch::channel(Phase::Serving);
        let naming = Arc::new(Semaphore::new(parts.limits.naming.at_once));
        let shared = Shared {
            store: parts.store,
            queue: HelpQueue::new(parts.handoffs.clone(), parts.bus.clone()),
            handoffs: parts.handoffs,
            shares: parts.shares,
            bus: parts.bus,
            models: parts.models,
            budgets: parts.budgets,
            quota: parts.quota,
            ring: parts.ring,
            secret: parts.secret,
            limits: parts.limits,
            metrics: parts.metrics,
            boot_id: rand::random(),
            tasks: TaskTracker::new(),
            phase: watched,
            naming,
            rooms: Mutex::default(),
            compare_now: Notify::new(),
        };
        Self { shared: Arc::new(shared), phase }
    }

    /// Names this run of this core.
    #[must_use]
    pub fn boot_id(&self) -> BootId {
        self.shared.boot_id
    }

    /// Opaque per user and installation, for abuse detection at a provider.
    pub(super) fn user_hash(&self, user_id: &str) -> String {
        self.shared.user_hash(user_id)
    }

    /// What may be used in a day, for work outside of sessions. `None`: nothing is limited.
    #[must_use]
    pub fn budgets(&self) -> Option<&Budgets> {
        self.shared.budgets.as_ref()
    }

    /// The room of a session, opened if need be.
    pub(super) async fn room(&self, id: SessionId) -> Result<RoomHandle, Failure> {
        if let Some(room) = self.live(id) {
            return Ok(room);
        }
        let header = self.header(id).await?.ok_or_else(Failure::session_not_found)?;
        self.open(header).await
    }

    /// The room of a session whose header was just read.
    pub(super) async fn room_of(&self, header: Header) -> Result<RoomHandle, Failure> {
        match self.live(header.id) {
            Some(room) => Ok(room),
            None => self.open(header).await,
        }
    }

    /// The room of a session that is live here.
    pub(super) fn live(&self, id: SessionId) -> Option<RoomHandle> {
        self.shared.rooms().get(&id).filter(|room| !room.is_closed()).cloned()
    }

    /// The header of a session that is not erased.
    pub(super) async fn header(&self, id: SessionId) -> Result<Option<Header>, Failure> {
        Ok(self.any_header(id).await?.filter(|header| !header.is_erased()))
    }

    pub(super) async fn any_header(&self, id: SessionId) -> Result<Option<Header>, Failure> {
        let call = tokio::time::timeout(self.shared.limits.store_call, self.shared.store.session(id));
        let result = call.await.map_err(|_| SessionError::StoreTimeout).and_then(|r| r.map_err(SessionError::from));
        result.map_err(|error| self.shared.report(&error, "a header could not be read"))
    }

    pub(super) fn log(&self, header: &Header) -> Result<SessionLog, SessionError> {
        SessionLog::open(header, &self.shared.ring, self.shared.store.clone(), self.shared.limits.store_call)
    }

    /// Opens a room: the folded state, the tail of the log, the read marks. When two open the same session at once, one
    /// room stays.
    async fn open(&self, header: Header) -> Result<RoomHandle, Failure> {
        let read = async {
            let log = self.log(&header)?;
            let link = Link::new(self.shared.bus.clone(), log.id, log.key.clone());
            // Before the state is read: what is written from here on is either read or heard.
            let subscription = link.subscribe().await;
            let state = log.state(&header.derived).await?;
            if state.head > header.derived.applied_seq {
                // Repaired by whoever opens; losing the race to somebody else is as good.
                let derived = log.derive(&state)?;
                log.call(log.store.replace_derived(log.id, header.derived.applied_seq, derived)).await?;
            }
            let read_marks: BTreeMap<_, _> = log.call(log.store.read_marks(log.id)).await?.into_iter().collect();
            let (owner, created_at) = (header.owner.clone(), header.created_at);
            Ok::<_, SessionError>(Opening { log, owner, created_at, state, read_marks, link, subscription })
        };
        let opening = read.await.map_err(|error| self.shared.report(&error, "a session could not be opened"))?;
        if opening.state.erased {
            // Whoever wrote the fence may have died on it.
            let destroyed = self.destroy(header.id, opening.state.head).await;
            destroyed.map_err(|error| self.shared.report(&error, "an erased session could not be destroyed yet"))?;
            return Err(Failure::session_not_found());
        }

        let mut rooms = self.shared.rooms();
        if let Some(room) = rooms.get(&header.id).filter(|room| !room.is_closed()) {
            return Ok(room.clone());
        }
        if *self.shared.phase.borrow() != Phase::Serving {
            return Err(shutting_down());
        }
        let (room, handle) = Room::new(self.shared.clone(), opening);
        rooms.insert(header.id, handle.clone());
        self.shared.metrics.sessions_live.set(rooms.len().try_into().unwrap_or(i64::MAX));
        drop(rooms);
        // Boxed: an async fn keeps its argument beside its local copy, so the room itself would be held twice.
        self.shared.tasks.spawn(Box::new(room).run());
        Ok(handle)
    }

    /// Opens the sessions that a crash left unfinished, so that their replies are finished and their messages answered,
    /// and compares heads with the store, until `token` is cancelled. Where other cores share the store, what they leave
    /// unfinished is looked for all the time.
    pub async fn run(self, token: CancellationToken) {
        let recover = async {
            if self.shared.store.is_shared() {
                Sweep::new(self.clone()).run().await;
            } else {
                self.recover().await;
            }
        };
        tokio::select! {
            () = token.cancelled() => {}
            _ = async {
                let holds = HoldWatch::new(self.clone()).run();
                let (idle, budgets) = (idle::run(&self), sweep_budgets(self.clone()));
                tokio::join!(recover, self.compare_heads(), self.shared.queue.run(&self), holds, idle, budgets)
            } => {}
        }
    }

    async fn recover(&self) {
        let mut after = None;
        loop {
            let limit = u32::try_from(BATCH).unwrap_or(u32::MAX);
            let call = tokio::time::timeout(
                self.shared.limits.store_call,
                self.shared.store.unfinished_sessions(after, limit),
            );
            match call.await.map_err(|_| SessionError::StoreTimeout).and_then(|r| r.map_err(Into::into)) {
                Ok(ids) if ids.is_empty() => return,
                Ok(ids) => {
                    for (id, _) in &ids {
                        // What could not be opened was reported, and is tried again by whoever opens it.
                        let _ = self.room(*id).await;
                    }
                    after = ids.last().map(|(id, _)| *id);
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "unfinished sessions could not be listed");
                    tokio::time::sleep(COMPARE_HEADS).await;
                }
            }
        }
    }

    async fn compare_heads(&self) {
        let mut ticks = tokio::time::interval(COMPARE_CUT_OFF);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut compared = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    // Half a tick early rather than half a tick late.
                    let due = compared.is_none_or(|at: Instant| at.elapsed() + COMPARE_CUT_OFF / 2 >= COMPARE_HEADS);
                    if !due && !is_cut_off(&*self.shared.bus) {
                        continue;
                    }
                }
                () = self.shared.compare_now.notified() => {
                    // What one loss has done to many rooms is found out by one read.
                    tokio::time::sleep(COMPARE_SOON).await;
                }
            }
            let read_at = Instant::now();
            compared = Some(read_at);
            let live: Vec<SessionId> = self.shared.rooms().keys().copied().collect();
            for batch in live.chunks(BATCH) {
                let call = tokio::time::timeout(self.shared.limits.store_call, self.shared.store.heads(batch));
                match call.await.map_err(|_| SessionError::StoreTimeout).and_then(|r| r.map_err(Into::into)) {
                    Ok(heads) => {
                        for (id, head) in heads {
                            if let Some(room) = self.live(id) {
                                room.hint_store_head(head, read_at);
                            }
                        }
                    }
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "heads could not be compared");
                    }
                }
            }
        }
    }

    /// Takes no new replies and no new subscribers; tells everybody that this core is leaving.
    pub fn start_draining(&self) {
        self.phase.send_replace(Phase::Draining);
        self.shared.tasks.close();
    }

    /// Cuts the replies that still run.
    pub fn cut(&self) {
        self.phase.send_replace(Phase::Cutting);
    }

    /// Waits until all rooms and replies are done, and what providers have to be told about replies that were cut.
    pub async fn drained(&self) {
        self.shared.tasks.wait().await;
        self.shared.models.settled().await;
    }

    /// Rooms and replies that are not done.
    #[must_use]
    pub fn tasks_left(&self) -> usize {
        self.shared.tasks.len()
    }
}

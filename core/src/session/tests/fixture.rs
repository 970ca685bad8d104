//! A directory on a store of its own, a provider led by the test, and clients that read their queues.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chatbox_proto::{
    ids::{MessageId, SessionId},
    status::Failure,
    token::{Role, Roles},
    v1::{self, ChatResponse, chat_response::Event},
};
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    budget::{BudgetLimits, Budgets, Clock},
    bus::{Bus, local::LocalBus},
    domain::{
        entry::{Message, Sender, SenderRole},
        time::Timestamp,
    },
    limits::{Quota, QuotaLimits},
    llm::{
        Chunk, ChunkStream, Prompt, Provider, ProviderError,
        registry::{Model, ModelInfo, Models},
    },
    metrics::Metrics,
    seal::{KeyRing, self_test},
    session::{
        Attach, Directory, Frame, NamedBy, NamingLimits, OpenSession, Parts, Queue, QueueLimits, QueueStream,
        SessionLimits, Sessions,
    },
    store::{
        AuditStore, BudgetStore, HandoffStore, SessionStore, ShareStore,
        sqlite::{SqliteOptions, SqliteStore},
    },
};

/// When it always is, for budgets.
const NOON: i64 = (20_000 * 24 + 12) * 3_600_000;
/// The day of it.
pub(crate) const TODAY: u32 = 20_000;

/// Nothing here takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a provider is asked, and the way to answer.
pub(crate) struct Turn {
    pub(crate) prompt: Prompt,
    pub(crate) chunks: mpsc::Sender<Result<Chunk, ProviderError>>,
}

impl Turn {
    pub(crate) async fn say(&self, text: &str) {
        self.chunks.send(Ok(Chunk::Text(text.into()))).await.unwrap();
    }

    pub(crate) async fn finish(self) {
        self.chunks.send(Ok(Chunk::Finished(crate::domain::entry::FinishReason::Stop))).await.unwrap();
    }
}

#[derive(Debug)]
pub(crate) struct Led {
    turns: mpsc::Sender<Turn>,
    panics: bool,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").finish_non_exhaustive()
    }
}

#[async_trait]
impl Provider for Led {
    async fn generate(&self, prompt: Prompt) -> Result<ChunkStream, ProviderError> {
        assert!(!self.panics, "this provider panics");
        let (chunks, stream) = mpsc::channel(16);
        self.turns.send(Turn { prompt, chunks }).await.map_err(|_| ProviderError::Truncated)?;
        Ok(ReceiverStream::new(stream).boxed())
    }
}

/// One core without its network.
pub(crate) struct Core {
    pub(crate) sessions: Sessions,
    pub(crate) directory: Directory,
    pub(crate) store: Arc<dyn SessionStore>,
    pub(crate) models: Models,
    pub(crate) turns: Mutex<mpsc::Receiver<Turn>>,
    pub(crate) secret: Arc<crate::seal::InstallationSecret>,
    pub(crate) budgets: Option<Arc<dyn BudgetStore>>,
    pub(crate) place: Place,
}

/// Where a store is, and the key of what is in it.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) key: String,
    pub(crate) folder: Arc<tempfile::TempDir>,
    /// Of all its cores, and left alone by what the tests do to the others.
    pub(crate) handoffs: Arc<dyn HandoffStore>,
    pub(crate) audit: Arc<dyn AuditStore>,
    pub(crate) shares: Arc<dyn ShareStore>,
    pub(crate) budgets: BudgetLimits,
    pub(crate) quota: QuotaLimits,
    pub(crate) lapse: Duration,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let beside = SqliteStore::open(&folder.path().join("beside.db"), &SqliteOptions::default()).unwrap();
        let beside = Arc::new(beside);
        let handoffs = Arc::new(super::handoff::Timeless(beside.clone()));
        Self {
            key: KeyRing::generate_key(),
            folder,
            handoffs,
            audit: beside.clone(),
            shares: Arc::new(super::shares::Timeless(beside)),
            budgets: BudgetLimits::default(),
            quota: QuotaLimits { messages_per_minute: 0, replies: 1_000 },
            lapse: Duration::from_secs(10),
        }
    }
}

fn alone() -> Arc<dyn Bus> {
    Arc::new(LocalBus::alone())
}

impl Core {
    pub(crate) async fn start() -> Self {
        Self::start_with(|store| store).await
    }

    pub(crate) async fn start_with(decorate: impl FnOnce(Arc<dyn SessionStore>) -> Arc<dyn SessionStore>) -> Self {
        let place = Place::new();
        let store = SqliteStore::open_in(place.folder.path(), &SqliteOptions::default()).unwrap();
        Self::with(decorate(Arc::new(store)), alone(), place).await
    }

    pub(crate) async fn with(store: Arc<dyn SessionStore>, bus: Arc<dyn Bus>, place: Place) -> Self {
        let limits = SessionLimits { reply_lapse: place.lapse, ..limits() };
        Self::assemble(store, None, bus, place, limits).await
    }

    /// With the limits of a place, and its budgets as `decorate` hands them on.
    pub(crate) async fn limited(
        place: Place,
        decorate: impl FnOnce(Arc<dyn BudgetStore>) -> Arc<dyn BudgetStore>,
    ) -> Self {
        let store = Arc::new(SqliteStore::open_in(place.folder.path(), &SqliteOptions::default()).unwrap());
        let limits = SessionLimits { reply_lapse: place.lapse, ..limits() };
        Self::assemble(store.clone(), Some(decorate(store)), alone(), place, limits).await
    }

    /// Alone on a store of its own.
    pub(crate) async fn start_limited(limits: SessionLimits) -> Self {
        let place = Place::new();
        let store = SqliteStore::open_in(place.folder.path(), &SqliteOptions::default()).unwrap();
        Self::with_limits(Arc::new(store), alone(), place, limits).await
    }

    pub(crate) async fn with_limits(
        store: Arc<dyn SessionStore>,
        bus: Arc<dyn Bus>,
        place: Place,
        limits: SessionLimits,
    ) -> Self {
        Self::assemble(store, None, bus, place, limits).await
    }

    async fn assemble(
        store: Arc<dyn SessionStore>,
        budgets: Option<Arc<dyn BudgetStore>>,
        bus: Arc<dyn Bus>,
        place: Place,
        limits: SessionLimits,
    ) -> Self {
        let ring = Arc::new(KeyRing::from_config("k1", [("k1", place.key.as_str())]).unwrap());
        let secret = Arc::new(self_test(&ring, &*store).await.unwrap());
        let (sender, turns) = mpsc::channel(64);
        let model = |id: &str, panics| Model {
            info: ModelInfo {
                id: id.into(),
                name: id.into(),
                provider: "led".into(),
                upstream_model: id.into(),
                context_tokens: 4096,
                max_output_tokens: 1024,
                system_prompt: None,
                ..ModelInfo::default()
            },
            provider: Arc::new(Led { turns: sender.clone(), panics }),
        };
        let mut vip = model("vip", false);
        vip.info.roles = vec![Role::Admin];
        let models = vec![model("led", false), model("panics", true), model("other", false), vip];
        let models = Models::new(models, "led").unwrap();
        let metrics = Metrics::default();
        let limited = place.budgets != BudgetLimits::default();
        let kept = budgets.clone().filter(|_| limited).map(|budgets| {
            let noon = Clock::new(|| Timestamp::from_millis(NOON));
            let call = Duration::from_secs(5);
            Budgets::new(budgets, place.budgets.clone(), models.clone(), metrics.clone(), call, noon)
        });
        let directory = Directory::new(Parts {
            store: store.clone(),
            handoffs: place.handoffs.clone(),
            shares: place.shares.clone(),
            bus,
            models: models.clone(),
            budgets: kept,
            quota: Quota::new(place.quota),
            ring,
            secret: secret.clone(),
            limits,
            metrics,
        });
        let sessions = Sessions::new(directory.clone());
        Self { sessions, directory, store, models, turns: Mutex::new(turns), secret, budgets, place }
    }

    /// As after `kill -9`: nothing is finished, the store is opened anew.
    pub(crate) async fn crash(self) -> Self {
        let Self { sessions, directory, store, models: _, turns, secret: _, budgets, place } = self;
        store.close().await;
        // Rooms of the dead core can write no more; they end when nobody waits for them.
        directory.cut();
        drop((sessions, turns, store, budgets));
        drop(directory);
        Self::limited(place, |budgets| budgets).await
    }

    pub(crate) async fn turn(&self) -> Turn {
        patiently("a turn", async { self.turns.lock().await.recv().await.unwrap() }).await
    }

    pub(crate) async fn open(&self, user: &str) -> Client {
        self.resume(user, None, None, None).await.unwrap()
    }

    /// The same, with the session known.
    pub(crate) async fn opened(&self, user: &str) -> Client {
        let mut client = self.open(user).await;
        client.session = client.opened().await.session.unwrap().session_id.parse().ok();
        client
    }

    /// The reply that started last.
    pub(crate) async fn last_reply(&self, client: &Client) -> MessageId {
        let history = self.history(&client.sender.user_id, client.session.unwrap()).await;
        history.iter().rfind(|message| message.reply.is_some()).unwrap().message_id.parse().unwrap()
    }

    pub(crate) async fn resume(
        &self,
        user: &str,
        session: Option<SessionId>,
        after_seq: Option<u64>,
        reply: Option<(MessageId, u32)>,
    ) -> Result<Client, Failure> {
        self.attach(user, session, after_seq, reply, "").await
    }

    /// Opens the active session with a token of these roles.
    pub(crate) async fn open_as(&self, user: &str, roles: &[Role]) -> Client {
        self.join((sender(user), roles.iter().copied().collect()), None, None, None, "").await.unwrap()
    }

    pub(crate) async fn attach(
        &self,
        user: &str,
        session: Option<SessionId>,
        after_seq: Option<u64>,
        reply: Option<(MessageId, u32)>,
        model: &str,
    ) -> Result<Client, Failure> {
        self.attach_as(sender(user), session, after_seq, reply, model).await
    }

    pub(crate) async fn attach_as(
        &self,
        sender: Sender,
        session: Option<SessionId>,
        after_seq: Option<u64>,
        reply: Option<(MessageId, u32)>,
        model: &str,
    ) -> Result<Client, Failure> {
        self.join((sender, [Role::User].into_iter().collect()), session, after_seq, reply, model).await
    }

    async fn join(
        &self,
        (sender, roles): (Sender, Roles),
        session: Option<SessionId>,
        after_seq: Option<u64>,
        reply: Option<(MessageId, u32)>,
        model: &str,
    ) -> Result<Client, Failure> {
        let queue = Queue::new(QueueLimits { events: 256, bytes: 1024 * 1024, merge: std::time::Duration::ZERO });
        let events = QueueStream::new(queue.clone());
        let open = patiently(
            "open",
            self.sessions.attach(&sender, session, model, |created, done| Attach {
                trace: None,
                queue: queue.clone(),
                sender: sender.clone(),
                roles,
                after_seq,
                reply,
                request_id: String::new(),
                created,
                done,
            }),
        )
        .await?;
        Ok(Client { open, events, sender, session })
    }

    /// Leaves in order: what runs is cut, everything is waited for.
    pub(crate) async fn stop(&self) {
        self.directory.start_draining();
        self.directory.cut();
        patiently("the drain", self.directory.drained()).await;
        self.store.close().await;
    }

    pub(crate) async fn history(&self, user: &str, id: SessionId) -> Vec<v1::Message> {
        self.sessions.messages_before(user, id, None, 0, 1000).await.unwrap().messages
    }
}

pub(crate) fn limits() -> SessionLimits {
    SessionLimits {
        max_active: 1,
        replay: 20,
        max_unanswered: 8,
        append_rounds: 8,
        heartbeat: Duration::from_secs(15),
        checkpoint: Duration::from_millis(10),
        store_call: Duration::from_secs(5),
        reply_lapse: Duration::from_secs(10),
        idle_end: None,
        naming: NamingLimits { by: NamedBy::Nobody, timeout: Duration::from_secs(15), at_once: 2 },
        hold_lapse: Duration::from_secs(8),
        offline_notice: "nobody is online".into(),
        away_jitter: Duration::from_millis(100),
    }
}

pub(crate) fn sender(user: &str) -> Sender {
    Sender { role: SenderRole::User, user_id: user.into(), display_name: String::new() }
}

/// One attached stream.
pub(crate) struct Client {
    pub(crate) open: OpenSession,
    pub(crate) events: QueueStream,
    pub(crate) sender: Sender,
    /// Once it is known.
    pub(crate) session: Option<SessionId>,
}

impl Client {
    pub(crate) async fn event(&mut self) -> Event {
        let next = patiently("an event", self.events.next()).await;
        ChatResponse::decode(next.expect("the stream goes on").unwrap()).unwrap().event.unwrap()
    }

    /// The next event that `pick` takes.
    pub(crate) async fn until<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let found = async {
            loop {
                if let Some(found) = pick(self.event().await) {
                    return found;
                }
            }
        };
        // Heartbeats keep a stream alive that nothing else happens on.
        patiently("an event that fits", found).await
    }

    pub(crate) async fn opened(&mut self) -> v1::chat_response::Opened {
        self.until(|event| if let Event::Opened(opened) = event { Some(opened) } else { None }).await
    }

    pub(crate) async fn entry(&mut self) -> v1::Entry {
        self.until(|event| if let Event::Entry(entry) = event { Some(entry) } else { None }).await
    }

    pub(crate) async fn finished(&mut self) -> v1::entry::ReplyFinished {
        loop {
            if let Some(v1::entry::Kind::ReplyFinished(finished)) = self.entry().await.kind {
                return finished;
            }
        }
    }

    pub(crate) async fn started(&mut self) -> v1::entry::ReplyStarted {
        loop {
            if let Some(v1::entry::Kind::ReplyStarted(started)) = self.entry().await.kind {
                return started;
            }
        }
    }

    /// Sends a frame and waits for its answer.
    pub(crate) async fn frame(&mut self, frame: Frame) -> Result<v1::chat_response::Ack, v1::Error> {
        self.post("r", frame).await;
        self.until(|event| {
            if let Event::Error(error) = event {
                return Some(Err(error));
            }
            if let Event::Ack(ack) = event { Some(Ok(ack)) } else { None }
        })
        .await
    }

    pub(crate) async fn post(&self, request_id: &str, frame: Frame) {
        self.open.room.frame(self.open.subscriber, request_id.into(), frame).await.unwrap();
    }

    pub(crate) fn message(&self, client_message_id: &str, text: &str) -> Frame {
        Frame::Send(Message {
            id: MessageId::generate(),
            sender: self.sender.clone(),
            client_message_id: Some(client_message_id.into()),
            text: text.into(),
            file_ids: Vec::new(),
        })
    }

    pub(crate) async fn send(&mut self, client_message_id: &str, text: &str) -> v1::chat_response::Ack {
        let frame = self.message(client_message_id, text);
        self.frame(frame).await.unwrap()
    }
}

pub(crate) async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited too long for {what}"),
    }
}

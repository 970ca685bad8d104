//! What the tests of several modules need: a configuration, tokens, and a core that does what a test says.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use chatbox_proto::{
    settings::Profile,
    status::Failure,
    token::{MintClaims, Role, Secret, Verifier, mint_hs256},
    v1::{ChatRequest, ChatResponse, chat_request, chat_response},
};
use futures_channel::mpsc;
use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use tokio::sync::Mutex as AsyncMutex;

use crate::{
    config::Config,
    core_api::{Call, Caller, CoreApi, Events, Frames, core_unavailable},
    state::Edge,
};

pub(crate) const SECRET: &str = "9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM";

/// Any free port, no metrics listener, a drain without delay.
pub(crate) fn config() -> Config {
    let mut config = Config {
        profile: Profile::Dev,
        listen: ([127, 0, 0, 1], 0).into(),
        metrics_listen: String::new(),
        ..Config::default()
    };
    config.token.secret = Secret::new(SECRET);
    config.drain.notice = Duration::ZERO;
    config.drain.jitter = Duration::ZERO;
    config.limits.handshakes_per_ip = 100_000;
    // Cores that tests play send no heartbeats, and their end is the end unless a test is about what follows.
    config.core.heartbeat = Duration::ZERO;
    config.core.reopen_timeout = Duration::ZERO;
    config
}

pub(crate) fn edge_with(config: Config, core: &Arc<FakeCore>) -> Arc<Edge> {
    let verifier = Arc::new(Verifier::new(&config.token, None).unwrap());
    Arc::new(Edge::new(config, Arc::clone(core) as Arc<dyn CoreApi>, verifier))
}

pub(crate) fn token(user_id: &str) -> String {
    token_for(user_id, Duration::from_secs(3600), &[Role::User])
}

pub(crate) fn token_for(user_id: &str, lifetime: Duration, roles: &[Role]) -> String {
    let claims = MintClaims {
        user_id: user_id.to_owned(),
        display_name: String::new(),
        roles: roles.to_vec(),
        scopes: Vec::new(),
        issuer: String::new(),
        audience: String::new(),
        issued_at: SystemTime::now(),
        lifetime,
    };
    mint_hs256(&Secret::new(SECRET), &claims)
}

/// A core that a test plays.
#[derive(Debug)]
pub(crate) struct FakeCore {
    latency: Duration,
    opened: mpsc::Sender<Chat>,
    chats: AsyncMutex<mpsc::Receiver<Chat>>,
    pub(crate) ready: AtomicBool,
    /// Streams never come up.
    pub(crate) hang: AtomicBool,
    /// Events of new streams panic.
    pub(crate) panics: AtomicBool,
    /// No stream comes up.
    pub(crate) down: AtomicBool,
    /// What the next streams are refused with.
    pub(crate) refusals: Mutex<VecDeque<Failure>>,
    /// Streams that are being opened now, and the most there ever were.
    pub(crate) opening: AtomicUsize,
    pub(crate) most_opening: AtomicUsize,
    /// Answers of the next unary calls; without one: an empty message.
    pub(crate) answers: Mutex<VecDeque<Result<Bytes, Failure>>>,
    pub(crate) calls: Mutex<Vec<(Call, Caller, Bytes)>>,
}

/// The core's end of a session stream.
#[derive(Debug)]
pub(crate) struct Chat {
    pub(crate) caller: Caller,
    pub(crate) frames: Frames,
    pub(crate) events: mpsc::Sender<Result<Bytes, Failure>>,
}

impl Chat {
    pub(crate) async fn frame(&mut self) -> Option<chat_request::Frame> {
        let frame = self.frames.next().await?;
        ChatRequest::decode(frame).unwrap().frame
    }

    pub(crate) async fn send(&mut self, event: chat_response::Event) {
        let event = ChatResponse { event: Some(event) };
        let _ = self.events.send(Ok(event.encode_to_vec().into())).await;
    }

    /// Whether the edge has let go of it.
    pub(crate) fn is_gone(&self) -> bool {
        self.events.is_closed()
    }

    pub(crate) async fn fail(mut self, failure: Failure) {
        let _ = self.events.send(Err(failure)).await;
    }
}

impl FakeCore {
    pub(crate) fn new() -> Arc<Self> {
        Self::slow(Duration::ZERO)
    }

    /// Streams take this long to come up.
    pub(crate) fn slow(latency: Duration) -> Arc<Self> {
        let (opened, chats) = mpsc::channel(10_000);
        Arc::new(Self {
            latency,
            opened,
            chats: AsyncMutex::new(chats),
            ready: AtomicBool::new(true),
            hang: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            down: AtomicBool::new(false),
            refusals: Mutex::default(),
            opening: AtomicUsize::new(0),
            most_opening: AtomicUsize::new(0),
            answers: Mutex::default(),
            calls: Mutex::default(),
        })
    }

    /// The next stream that the edge opens.
    pub(crate) async fn chat(&self) -> Chat {
        self.chats.lock().await.next().await.unwrap()
    }

    pub(crate) fn answer(&self, answer: Result<impl prost::Message, Failure>) {
        self.answers.lock().unwrap().push_back(answer.map(|message| message.encode_to_vec().into()));
    }
}

#[async_trait]
impl CoreApi for FakeCore {
    async fn chat(&self, caller: &Caller, frames: Frames) -> Result<Events, Failure> {
        if self.hang.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        let now = self.opening.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_opening.fetch_max(now, Ordering::Relaxed);
        // So that those who come at once meet.
        tokio::time::sleep(self.latency).await;
        self.opening.fetch_sub(1, Ordering::Relaxed);
        if self.down.load(Ordering::Relaxed) {
            return Err(core_unavailable());
        }
        let refusal = self.refusals.lock().unwrap().pop_front();
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        if self.panics.load(Ordering::Relaxed) {
            return Ok(Box::pin(futures_util::stream::poll_fn(|_| panic!("this panic is part of a test"))));
        }
        let (events, stream) = mpsc::channel(0);
        let _ = self.opened.clone().send(Chat { caller: caller.clone(), frames, events }).await;
        Ok(Box::pin(stream))
    }

    async fn call(&self, call: Call, caller: &Caller, request: Bytes) -> Result<Bytes, Failure> {
        assert_ne!(call.method, "ReopenSession", "MARKER: this panic is part of a test");
        self.calls.lock().unwrap().push((call, caller.clone(), request));
        self.answers.lock().unwrap().pop_front().unwrap_or_else(|| Ok(Bytes::new()))
    }

    async fn check(&self, _timeout: Duration) -> Result<(), Failure> {
        if self.ready.load(Ordering::Relaxed) { Ok(()) } else { Err(core_unavailable()) }
    }
}

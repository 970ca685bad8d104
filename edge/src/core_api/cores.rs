//! The cores that an edge knows: where they are, which of them serve, how many streams each has. The least loaded one that
//! serves is chosen; a lost one is tried again with a bounded, jittered back-off, and by one asker at a time.

use std::{
    collections::HashSet,
    fmt,
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use chatbox_proto::codec::RawCodec;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::uri::PathAndQuery;
use prost::Message as _;
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    client::Grpc,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::config::CoreConfig;

/// PERFORMANCE 2.5: with small windows h2 ends a whole connection when many small DATA frames wait unread. The stream's
/// window is what one slow reader can hold; the connection's is all of theirs.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 64 << 20;

/// Events and answers above this are not taken: a page of 1,000 messages of 32 KiB is the largest honest one.
const MAX_MESSAGE: usize = 40 << 20;

/// Cores that are kept; a name with more addresses than this is a mistake.
const MAX_CORES: usize = 64;

/// Whoever asks about a core that was asked this short a time ago gets the same answer: a thousand streams that look for
/// a new place are not a thousand connection attempts.
const SAME_ANSWER: Duration = Duration::from_millis(50);

/// After a loss: doubled each time, up to the maximum, and drawn between half of it and all of it.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// What is known of a core, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Serving,
    /// Not asked yet, or lost a moment ago.
    Unknown,
    /// It answers, and does not serve: it drains, or its store is away.
    Refusing,
    Down,
}

/// One core.
pub(super) struct Core {
    address: SocketAddr,
    channels: Vec<Channel>,
    turn: AtomicUsize,
    streams: AtomicUsize,
    /// Held for one look.
    health: Mutex<Health>,
    /// When it was asked last. Held while it is asked.
    asked: AsyncMutex<Option<Instant>>,
    suspected: Notify,
    gone: CancellationToken,
    timeout: Duration,
}

impl Core {
    /// A client that can be used at once.
    ///
    /// # Errors
    /// When its channel is not there any more.
    pub(super) async fn client(&self) -> Result<Grpc<Channel>, Status> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let channel = self.channels[turn % self.channels.len()].clone();
        let mut client = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
        client.ready().await.map_err(|_| Status::unavailable("not connected"))?;
        Ok(client)
    }

    /// One more stream, until it is dropped.
    pub(super) fn stream(self: &Arc<Self>) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(Arc::clone(self))
    }

    /// It was lost by somebody: it is asked again before it is chosen.
    pub(super) fn suspect(&self) {
        let mut health = self.lock();
        if *health == Health::Serving {
            *health = Health::Unknown;
            self.suspected.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> Health {
        *self.lock()
    }

    /// Asks it, unless somebody just did.
    async fn ask(&self) -> Health {
        let mut asked = self.asked.lock().await;
        let known = self.health();
        if known != Health::Unknown && asked.is_some_and(|at| at.elapsed() < SAME_ANSWER) {
            return known;
        }
        let now = tokio::time::timeout(self.timeout, self.check()).await.unwrap_or(Health::Down);
        *asked = Some(Instant::now());
        *self.lock() = now;
        if known != now {
            tracing::info!(core.address = %self.address, core.health = ?now, streams = self.load(), "a core has changed");
        }
        now
    }

    async fn check(&self) -> Health {
        #[derive(Clone, Copy, PartialEq, prost::Message)]
        struct HealthCheckResponse {
            #[prost(int32, tag = "1")]
            status: i32,
        }
        const SERVING: i32 = 1;

        let Ok(mut client) = self.client().await else { return Health::Down };
        // The empty name asks for the server as a whole.
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        match client.unary(Request::new(Bytes::new()), path, RawCodec).await {
            Ok(answer) => match HealthCheckResponse::decode(answer.into_inner()) {
                Ok(HealthCheckResponse { status: SERVING }) => Health::Serving,
                Ok(_) | Err(_) => Health::Refusing,
            },
            Err(status) if super::is_of_the_way(&status) => Health::Down,
            Err(_) => Health::Refusing,
        }
    }

    fn load(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Asks again and again, until it is no longer one of the cores.
    async fn watch(self: Arc<Self>, interval: Duration) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let wait = if self.ask().await == Health::Down {
                let wait = backoff.mul_f64(0.5 + rand::random::<f64>() / 2.0);
                backoff = (backoff * 2).min(MAX_BACKOFF);
                wait
            } else {
                backoff = FIRST_BACKOFF;
                interval.mul_f64(0.8 + 0.4 * rand::random::<f64>())
            };
            tokio::select! {
                () = self.gone.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.suspected.notified() => {}
            }
        }
    }
}

/// A stream on a core, counted until it is dropped.
pub(super) struct OpenStream(Arc<Core>);

impl Deref for OpenStream {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.0
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Finds the addresses of a `host:port`.
pub(super) type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// As the system does.
pub(super) fn system_lookup() -> Lookup {
    Arc::new(|place| async move { Ok(tokio::net::lookup_host(place).await?.collect()) }.boxed())
}

/// All of them.
pub(super) struct Cores {
    config: CoreConfig,
    lookup: Lookup,
    url: http::Uri,
    tls: Option<ClientTlsConfig>,
    /// `host:port` each; a host that is a name is looked up again and again.
    places: Vec<String>,
    /// Replaced as a whole; held for one look.
    known: RwLock<Arc<[Arc<Core>]>>,
    /// Held while places are looked up.
    resolving: AsyncMutex<()>,
    turn: AtomicUsize,
}

impl fmt::Debug for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cores").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Cores {
    pub(super) fn new(config: &CoreConfig, lookup: Lookup) -> anyhow::Result<Self> {
        let url: http::Uri = config.url.parse()?;
        let tls = url.scheme() == Some(&http::uri::Scheme::HTTPS);
        let tls = tls.then(|| tls_config(config, url.host().unwrap_or_default())).transpose()?;
        let places = if config.addresses.is_empty() { vec![place(&url)?] } else { config.addresses.clone() };
        let cores = Self {
            config: config.clone(),
            lookup,
            tls,
            places,
            known: RwLock::new(Arc::from([])),
            resolving: AsyncMutex::new(()),
            turn: AtomicUsize::new(0),
            url: url.clone(),
        };
        // Built once for nothing, so that a bad certificate is found before anything is started.
        cores.endpoint(url)?;
        Ok(cores)
    }

    fn endpoint(&self, uri: http::Uri) -> anyhow::Result<Endpoint> {
        let keepalive = self.config.keepalive;
        let endpoint = Endpoint::from(uri)
            // Whoever connects to an address still asks for the name.
            .origin(self.url.clone())
            .user_agent(concat!("chatbox-edge/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(self.config.connect_timeout)
            .tcp_nodelay(true)
            .http2_adaptive_window(false)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(keepalive)
            .keep_alive_timeout(keepalive.min(Duration::from_secs(10)))
            .keep_alive_while_idle(true);
        Ok(match &self.tls {
            Some(tls) => endpoint.tls_config(tls.clone())?,
            None => endpoint,
        })
    }

    fn known(&self) -> Arc<[Arc<Core>]> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Those that are known, looked up first if there was no look-up yet.
    async fn all(&self) -> Arc<[Arc<Core>]> {
        let known = self.known();
        if !known.is_empty() {
            return known;
        }
        let _one_at_a_time = self.resolving.lock().await;
        if self.known().is_empty() {
            self.resolve().await;
        }
        self.known()
    }

    /// Looks the places up. Those that are there already stay as they are; a place that cannot be looked up changes nothing.
    async fn resolve(&self) {
        let mut addresses = Vec::new();
        for place in &self.places {
            match tokio::time::timeout(self.config.health_timeout, (self.lookup)(place.clone())).await {
                Ok(Ok(found)) => addresses.extend(found),
                Ok(Err(error)) => return tracing::warn!(place, error = %error, "core's name cannot be looked up"),
                Err(_) => return tracing::warn!(place, "core's name cannot be looked up in time"),
            }
        }
        if addresses.is_empty() {
            return tracing::warn!("core's name has no address");
        }
        let mut seen = HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        if addresses.len() > MAX_CORES {
            tracing::warn!(addresses = addresses.len(), max = MAX_CORES, "more cores than are used");
            addresses.truncate(MAX_CORES);
        }
        let before = self.known();
        let kept = |address| before.iter().find(|core| core.address == address).cloned();
        let now: anyhow::Result<Vec<_>> =
            addresses.into_iter().map(|address| kept(address).map_or_else(|| self.core(address), Ok)).collect();
        let now = match now {
            Ok(now) => now,
            Err(error) => return tracing::error!(error = %error, "core's addresses cannot be used"),
        };
        for gone in before.iter().filter(|core| !seen.contains(&core.address)) {
            // Its streams go on; nothing new comes to it.
            gone.gone.cancel();
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = now.into();
    }

    fn core(&self, address: SocketAddr) -> anyhow::Result<Arc<Core>> {
        let scheme = self.url.scheme_str().unwrap_or("http");
        let endpoint = self.endpoint(format!("{scheme}://{address}/").parse()?)?;
        Ok(Arc::new(Core {
            address,
            channels: (0..self.config.channels.max(1)).map(|_| endpoint.connect_lazy()).collect(),
            turn: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            health: Mutex::new(Health::Unknown),
            asked: AsyncMutex::new(None),
            suspected: Notify::new(),
            gone: CancellationToken::new(),
            timeout: self.config.health_timeout,
        }))
    }

    /// The least loaded core that serves. When none is known to, they are asked; one that answers and does not serve is
    /// better than none, since it says why.
    pub(super) async fn choose(&self) -> Option<Arc<Core>> {
        let all = self.all().await;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut ranked: Vec<_> = all.iter().enumerate().collect();
        // Equals take turns.
        ranked.sort_by_key(|(index, core)| (core.health(), core.load(), (index + turn) % all.len()));
        let mut refusing = None;
        for (_, core) in ranked {
            let health = if core.health() == Health::Serving { Health::Serving } else { core.ask().await };
            match health {
                Health::Serving => return Some(Arc::clone(core)),
                Health::Refusing => refusing = refusing.or_else(|| Some(Arc::clone(core))),
                Health::Unknown | Health::Down => {}
            }
        }
        refusing
    }

    /// Asks all of them at once; the first that serves is enough.
    pub(super) async fn any_serves(&self) -> bool {
        let all = self.all().await;
        let mut answers: FuturesUnordered<_> = all.iter().map(|core| core.ask()).collect();
        while let Some(health) = answers.next().await {
            if health == Health::Serving {
                return true;
            }
        }
        false
    }

    /// Looks places up and asks cores, for ever.
    pub(super) async fn watch(&self) {
        let mut watched: FuturesUnordered<_> = FuturesUnordered::new();
        let mut known = HashSet::new();
        loop {
            let all = self.all().await;
            known.retain(|address| all.iter().any(|core| core.address == *address));
            for core in all.iter() {
                if known.insert(core.address) {
                    watched.push(Arc::clone(core).watch(self.config.health_interval).boxed());
                }
            }
            let again = tokio::time::sleep(self.config.resolve_interval.mul_f64(0.8 + 0.4 * rand::random::<f64>()));
            tokio::pin!(again);
            loop {
                tokio::select! {
                    () = &mut again => break,
                    // One that is gone has ended; the others do not end.
                    Some(()) = watched.next(), if !watched.is_empty() => {}
                }
            }
            self.resolve_now().await;
        }
    }

    /// Looks the places up, one asker at a time.
    pub(super) async fn resolve_now(&self) {
        let _one_at_a_time = self.resolving.lock().await;
        self.resolve().await;
    }
}

/// Host and port of a URL.
fn place(url: &http::Uri) -> anyhow::Result<String> {
    let host = url.host().context("url: has no host")?;
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    Ok(format!("{host}:{port}"))
}

fn tls_config(config: &CoreConfig, host: &str) -> anyhow::Result<ClientTlsConfig> {
    let read = |setting: &str, file: &str| std::fs::read(file).with_context(|| format!("{setting}: {file}"));
    let mut tls = ClientTlsConfig::new();
    tls = if config.ca_file.is_empty() {
        tls.with_native_roots()
    } else {
        tls.ca_certificate(Certificate::from_pem(read("core.ca_file", &config.ca_file)?))
    };
    if !config.cert_file.is_empty() {
        let certificate = read("core.cert_file", &config.cert_file)?;
        tls = tls.identity(Identity::from_pem(certificate, read("core.key_file", &config.key_file)?));
    }
    // Connections are made to addresses: the name to expect is that of the URL.
    let name = if config.server_name.is_empty() { host.trim_matches(['[', ']']) } else { &config.server_name };
    Ok(tls.domain_name(name))
}

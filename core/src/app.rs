//! Core as a whole: bound first, then run, then drained. No state is process-wide, so several fit into one process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use chatbox_proto::token::Verifier;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::{
    config::{Config, StoreTarget, TlsConfig},
    grpc::{FrameLimits, GrpcLimits, GrpcServer, Health, PageSizes, Services},
    keys,
    llm::registry::Models,
    metrics::Metrics,
    operators,
    seal::{self, KeyRing},
    session::{
        Directory, Parts, QueueLimits, SessionLimits, Sessions, register::Register, rotation::Rotation,
        verify::Verifier as PayloadVerifier,
    },
    store::{
        SessionStore,
        sqlite::{SqliteOptions, SqliteStore},
    },
};

pub use crate::session::verify::{Finding, Verified};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A unary call takes at most this long, unless its client wants it sooner.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A core whose row in the register has not moved for this long is dead.
const CORE_LAPSE: Duration = Duration::from_secs(10);

/// How often the store is asked whether it serves.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// A core that is bound and not running yet. Dropping it releases everything.
#[derive(Debug)]
pub struct App {
    config: Config,
    store: Arc<dyn SessionStore>,
    directory: Directory,
    server: GrpcServer,
    verifier: Arc<Verifier>,
    register: Register,
    metrics: Metrics,
    streams: TaskTracker,
    leaving: CancellationToken,
    grpc: TcpListener,
    operators: Option<TcpListener>,
}

impl App {
    /// Builds the parts and binds the listeners. Needs a tokio runtime; starts no task. The configuration has been checked
    /// by [`Config::load`].
    ///
    /// # Errors
    /// One line that names the setting; everything that was acquired is released.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let models = config.build_models()?;
        Self::bind_with(config, models).await
    }

    /// Like [`bind`](Self::bind), with models of the caller's.
    ///
    /// # Errors
    /// One line that names the setting; everything that was acquired is released.
    pub async fn bind_with(config: Config, models: Models) -> anyhow::Result<Self> {
        let ring = Arc::new(KeyRing::from_config(config.keys.primary_id().unwrap_or_default(), config.keys.pairs())?);
        let key_error = |error| anyhow::anyhow!("token: {error}");
        let source = keys::source(&config.token).map_err(key_error)?;
        let verifier = Arc::new(Verifier::new(&config.token, source).map_err(key_error)?);
        let tls = server_tls(&config)?;
        if let Err(error) = verifier.refresh().await {
            // A file that cannot be read will not get better; an issuer may come back.
            anyhow::ensure!(config.token.jwks_file.is_empty(), "token.jwks_file: {error}");
            tracing::warn!(%error, "token.jwks_url: the key set could not be read, trying again later");
        }
        let store = open_store(&config)?;
        let secret = match seal::self_test(&ring, &*store).await {
            Ok(secret) => secret,
            Err(error) => {
                store.close().await;
                return Err(error).context("keys.ring: the self-test failed");
            }
        };
        // Last, so that a port that listens is a core that can serve.
        let bound = listen("listen", config.listen).and_then(|grpc| Ok((grpc, listen_operators(&config)?)));
        let (grpc, operators) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                store.close().await;
                return Err(error);
            }
        };

        let metrics = Metrics::with_models(models.clone());
        let (streams, leaving) = (TaskTracker::new(), CancellationToken::new());
        let directory = Directory::new(Parts {
            store: store.clone(),
            models: models.clone(),
            ring: ring.clone(),
            secret,
            limits: session_limits(&config),
            metrics: metrics.clone(),
        });
        let call = config.store.call_timeout;
        let register = Register::new(store.clone(), directory.boot_id(), &ring, CORE_LAPSE, call);
        let services = Services {
            sessions: Sessions::new(directory.clone()),
            rotation: Rotation::new(store.clone(), ring.clone(), register.clone(), call),
            models,
            verifier: verifier.clone(),
            ring,
            limits: grpc_limits(&config),
            metrics: metrics.clone(),
            tasks: streams.clone(),
            leaving: leaving.clone(),
        };
        let server = GrpcServer::new(services, tls);
        Ok(Self { config, store, directory, server, verifier, register, metrics, streams, leaving, grpc, operators })
    }

    /// Where clients connect to.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn grpc_addr(&self) -> std::io::Result<SocketAddr> {
        self.grpc.local_addr()
    }

    /// Where `/metrics` is, if it is served.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.operators.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `shutdown`, then drains. Returns at the latest when the drain deadline has passed.
    ///
    /// # Errors
    /// When the server could not be started, or ended by itself.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { config, store, directory, server, verifier, register, metrics, streams, leaving, grpc, operators } =
            self;
        let health = server.health();
        let (stop_accepting, stop) = (CancellationToken::new(), CancellationToken::new());
        // Dropping this future, rather than cancelling `shutdown`, leaves no task behind.
        let _stop_when_dropped =
            (leaving.clone().drop_guard(), stop_accepting.clone().drop_guard(), stop.clone().drop_guard());
        let ready = operators::Ready::default();

        let background = TaskTracker::new();
        let mut serving = background.spawn(server.serve(grpc, stop_accepting.clone()));
        if let Some(listener) = operators {
            let serve = operators::serve(listener, metrics.clone(), ready.clone(), stop.clone());
            background.spawn(serve);
        }
        background.spawn(directory.clone().run(stop.clone()));
        let entry = register.clone();
        background.spawn(until(stop.clone(), async move { entry.keep().await }));
        background.spawn(until(stop.clone(), async move { verifier.keep_fresh().await }));
        let probe = Probe {
            store: store.clone(),
            health: health.clone(),
            ready: ready.clone(),
            limit: config.store.call_timeout,
            directory: directory.clone(),
            streams: streams.clone(),
            metrics: metrics.clone(),
        };
        background.spawn(until(leaving.clone(), probe.run()));
        tracing::info!("serving");

        tokio::select! {
            () = shutdown.cancelled() => {}
            ended = &mut serving => {
                store.close().await;
                ended.context("the gRPC server died")?.context("listen")?;
                anyhow::bail!("the gRPC server ended by itself");
            }
        }

        // The phases of the way out. One deadline bounds them all; whoever does not make it is cut by the runtime's end.
        // 1. Readiness goes down, and load balancers get time to notice.
        // 2. No connection is accepted any more; every stream is told `going_away`.
        // 3. Running replies may finish within the grace.
        // 4. The rest is cut as INTERRUPTED, and written.
        // 5. Listeners and background tasks end; the store is closed.
        let drain = &config.drain;
        let deadline = Instant::now() + drain.deadline;
        tracing::info!(sessions = metrics.sessions_live.get(), streams = metrics.subscribers.get(), "draining");
        ready.set(false);
        leaving.cancel();
        health.set_ready(false).await;
        let grace = Instant::now() + drain.notice + drain.grace;
        tokio::time::sleep_until((Instant::now() + drain.notice).min(deadline)).await;
        stop_accepting.cancel();
        directory.start_draining();
        let finished = tokio::time::timeout_at(grace.min(deadline), directory.drained()).await;
        if finished.is_err() {
            tracing::info!(tasks = directory.tasks_left(), "cutting the replies that still run");
            directory.cut();
        }
        let rest = async {
            directory.drained().await;
            streams.close();
            streams.wait().await;
            // Its row would lapse all the same.
            let _ = register.leave().await;
            store.close().await;
            stop.cancel();
            background.close();
            background.wait().await;
        };
        match tokio::time::timeout_at(deadline, rest).await {
            Ok(()) => tracing::info!("drained"),
            Err(_) => tracing::warn!(
                replies = directory.tasks_left(),
                streams = streams.len(),
                background = background.len(),
                "the drain deadline has passed, cutting the rest"
            ),
        }
        Ok(())
    }
}

/// Reads everything that is sealed in the store of a configuration, for `keys verify`. An embedded store must not be open
/// elsewhere.
///
/// # Errors
/// When the store or the ring cannot be opened, or the store fails meanwhile; findings are none.
pub async fn verify_payloads(
    config: &Config,
    progress: impl FnMut(Verified, Option<Finding>),
) -> anyhow::Result<Verified> {
    let ring = Arc::new(KeyRing::from_config(config.keys.primary_id().unwrap_or_default(), config.keys.pairs())?);
    let store = open_store(config)?;
    let verified = async {
        seal::self_test(&ring, &*store).await.context("keys.ring: the self-test failed")?;
        Ok(PayloadVerifier::new(store.clone(), ring, config.store.call_timeout).run(progress).await?)
    };
    let verified = verified.await;
    store.close().await;
    verified
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Looks every second: readiness is what the store says; tasks are counted.
struct Probe {
    store: Arc<dyn SessionStore>,
    health: Health,
    ready: operators::Ready,
    limit: Duration,
    directory: Directory,
    streams: TaskTracker,
    metrics: Metrics,
}

impl Probe {
    async fn run(self) {
        let mut ticks = tokio::time::interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before = None;
        loop {
            ticks.tick().await;
            let tasks = self.directory.tasks_left() + self.streams.len();
            self.metrics.tasks_live.set(tasks.try_into().unwrap_or(i64::MAX));
            let serves = matches!(tokio::time::timeout(self.limit, self.store.ping()).await, Ok(Ok(())));
            if before != Some(serves) {
                before = Some(serves);
                tracing::info!(ready = serves, "readiness");
                self.ready.set(serves);
                self.health.set_ready(serves).await;
            }
        }
    }
}

fn listen(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for the sockets of the process before it.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket.into())
    };
    bind().map_err(|error| anyhow::anyhow!("{setting}: {address}: {error}"))
}

fn listen_operators(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    match config.metrics_listen.as_str() {
        "" => Ok(None),
        address => listen("metrics_listen", address.parse()?).map(Some),
    }
}

fn open_store(config: &Config) -> anyhow::Result<Arc<dyn SessionStore>> {
    let StoreTarget::Sqlite(path) = config.store.target().map_err(|rule| anyhow::anyhow!("store.url: {rule}"))?;
    let max = config.store.max_size.as_usize() as u64;
    let mut options = SqliteOptions::default();
    options.max_bytes = (max > 0).then_some(max);
    let store = SqliteStore::open(&path, &options).with_context(|| format!("store.url: {}", path.display()))?;
    Ok(Arc::new(store))
}

fn server_tls(config: &Config) -> anyhow::Result<Option<ServerTlsConfig>> {
    let TlsConfig { cert_file, key_file, client_ca_file } = &config.tls;
    if !config.tls.is_enabled() {
        return Ok(None);
    }
    let read = |setting: &str, file: &str| std::fs::read(file).with_context(|| format!("tls.{setting}: {file}"));
    let identity = Identity::from_pem(read("cert_file", cert_file)?, read("key_file", key_file)?);
    let mut tls = ServerTlsConfig::new().identity(identity).timeout(config.limits.handshake_timeout);
    if !client_ca_file.is_empty() {
        tls = tls.client_ca_root(Certificate::from_pem(read("client_ca_file", client_ca_file)?));
    }
    // Built once for nothing, so that a file that is no certificate is refused before anything listens.
    tonic::transport::Server::builder().tls_config(tls.clone()).context("tls.cert_file, tls.key_file")?;
    Ok(Some(tls))
}

fn queue_limits(config: &Config) -> QueueLimits {
    QueueLimits { events: config.session.queue_events, bytes: config.session.queue_bytes.as_usize() }
}

fn session_limits(config: &Config) -> SessionLimits {
    let session = &config.session;
    SessionLimits {
        max_active: session.active_per_user,
        replay: session.replay_entries,
        max_unanswered: session.unanswered,
        append_rounds: session.append_rounds,
        heartbeat: session.heartbeat,
        checkpoint: session.checkpoint,
        store_call: config.store.call_timeout,
        away_jitter: config.drain.jitter,
    }
}

fn grpc_limits(config: &Config) -> GrpcLimits {
    let (limits, session) = (&config.limits, &config.session);
    GrpcLimits {
        connections: limits.connections as usize,
        streams: limits.streams_per_connection,
        user_streams: limits.streams_per_user,
        message_bytes: limits.request_bytes.as_usize(),
        header_bytes: u32::try_from(limits.header_bytes.as_usize()).unwrap_or(u32::MAX),
        ping_interval: limits.keepalive,
        call_timeout: CALL_TIMEOUT,
        queue: queue_limits(config),
        frames: FrameLimits {
            frame_bytes: limits.frame_bytes.as_usize(),
            text_bytes: session.message_bytes.as_usize(),
            per_second: limits.frames_per_second,
            malformed_per_minute: limits.malformed_per_minute as usize,
            expiry_warning: session.expiry_warning,
        },
        pages: PageSizes { default: session.page_size, max: session.max_page_size },
    }
}

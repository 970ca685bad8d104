//! Core as a whole: bound first, then run, then drained. No state is process-wide, so several fit into one process.

mod configured;
mod peers;
mod probe;
mod watch;

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use chatbox_proto::{
    spans::{Exporter, Tracer},
    token::Verifier,
};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    configured::{Listeners, budgets, grpc_limits, open_store, quota, server_tls, session_limits},
    peers::Peers,
    probe::{Probe, count_cores},
    watch::Watched,
};
use crate::{
    bus::Bus,
    config::{Config, DrainConfig},
    generate::Generator,
    grpc::{GrpcServer, Health, Services},
    keys,
    limits::Quota,
    llm::{observed::Observer, registry::Models},
    metrics::Metrics,
    operators,
    seal::{self, KeyRing},
    session::{
        Directory, Parts, Sessions, Shares,
        alerts::{Alerts, Starts},
        audit::AuditTrail,
        rotation::Rotation,
        verify::Verifier as PayloadVerifier,
    },
    store::{SessionStore, Stores},
};

pub use crate::session::{
    audit::Audited,
    verify::{Finding, Verified},
};

/// Hands a bus on, with something around it.
pub type BusDecorator = Box<dyn FnOnce(Arc<dyn Bus>) -> Arc<dyn Bus> + Send>;

/// A core that is bound and not running yet. Dropping it releases everything.
#[derive(Debug)]
pub struct App {
    config: Config,
    store: Arc<dyn SessionStore>,
    peers: Peers,
    directory: Directory,
    generator: Generator,
    server: GrpcServer,
    verifier: Arc<Verifier>,
    watched: Watched,
    quota: Quota,
    metrics: Metrics,
    exporter: Option<Exporter>,
    streams: TaskTracker,
    leaving: CancellationToken,
    listeners: Listeners,
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
        // Boxed: it is large, and callers hold it inside futures of their own.
        Box::pin(Self::bind_over(config, models, |store| (store, Box::new(|bus| bus)))).await
    }

    /// Like [`bind_with`](Self::bind_with), with store and bus as `decorate` hands them on: for whoever watches or disturbs
    /// what is asked of them.
    ///
    /// # Errors
    /// One line that names the setting; everything that was acquired is released.
    pub async fn bind_over(
        config: Config,
        models: Models,
        decorate: impl FnOnce(Arc<dyn SessionStore>) -> (Arc<dyn SessionStore>, BusDecorator),
    ) -> anyhow::Result<Self> {
        let ring = Arc::new(KeyRing::from_config(config.keys.primary_id().unwrap_or_default(), config.keys.pairs())?);
        let verifier = verifier(&config).await?;
        let tls = server_tls(&config)?;
        let rules = config.alerts.build().map_err(anyhow::Error::msg)?;
        let (tracer, exporter) =
            Tracer::new(&config.telemetry, "chatbox-core").map_err(|error| anyhow::anyhow!(error))?;
        let stores = open_store(&config).await?;
        let Stores { sessions, shares, outbox, handoffs, audit, budgets: kept } = stores;
        let (store, decorate_bus) = decorate(sessions);
        let secret = match seal::self_test(&ring, &*store).await {
            Ok(secret) => Arc::new(secret),
            Err(error) => {
                store.close().await;
                return Err(error).context("keys.ring: the self-test failed");
            }
        };
        let (mut peers, listeners) = match join_and_listen(&config, &store, &ring).await {
            Ok(bound) => bound,
            Err(error) => {
                store.close().await;
                return Err(error);
            }
        };

        peers.bus = decorate_bus(peers.bus);
        let metrics = Metrics::with_models(models.clone(), &tracer);
        let models = models.observed(&(Arc::new(metrics.clone()) as Arc<dyn Observer>), &tracer);
        let (streams, leaving) = (TaskTracker::new(), CancellationToken::new());
        let quota = quota(&config);
        let directory = Directory::new(Parts {
            budgets: budgets(&config, kept, &models, &metrics),
            quota: quota.clone(),
            store: store.clone(),
            handoffs: handoffs.clone(),
            shares: shares.clone(),
            bus: peers.bus.clone(),
            models: models.clone(),
            ring: ring.clone(),
            secret: secret.clone(),
            limits: session_limits(&config),
            metrics: metrics.clone(),
        });
        let call = config.store.call_timeout;
        let alerts = Alerts::new(outbox, Arc::new(directory.clone()), rules, call, metrics.clone());
        let sessions = Sessions::new(directory.clone());
        let generator = Generator::new(models.clone());
        let watched = Watched { alerts, models: models.clone(), metrics: metrics.clone(), handoffs: handoffs.clone() };
        let services = Services {
            shares: Shares::new(sessions.clone(), shares),
            sessions,
            audit: AuditTrail::new(audit, secret, call),
            rotation: Rotation::new(store.clone(), ring.clone(), peers.register.clone(), call),
            models,
            generator: generator.clone(),
            verifier: verifier.clone(),
            ring,
            limits: grpc_limits(&config),
            metrics: metrics.clone(),
            tracer,
            tasks: streams.clone(),
            leaving: leaving.clone(),
        };
        let server = GrpcServer::new(services, tls);
        Ok(Self {
            config,
            store,
            peers,
            directory,
            generator,
            server,
            verifier,
            watched,
            quota,
            metrics,
            exporter,
            streams,
            leaving,
            listeners,
        })
    }

    /// Where clients connect to.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn grpc_addr(&self) -> std::io::Result<SocketAddr> {
        self.listeners.grpc.local_addr()
    }

    /// Where admins connect to, if that is a place of its own.
    #[must_use]
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.listeners.admin.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Where `/metrics` is, if it is served.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.listeners.operators.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `shutdown`, then drains. Returns at the latest when the drain deadline has passed.
    ///
    /// # Errors
    /// When the server could not be started, or ended by itself.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self {
            config,
            store,
            peers,
            directory,
            generator,
            server,
            verifier,
            watched,
            quota,
            metrics,
            exporter,
            streams,
            leaving,
            listeners,
        } = self;
        let Listeners { grpc, admin, operators } = listeners;
        let health = server.health();
        let (stop_accepting, stop) = (CancellationToken::new(), CancellationToken::new());
        // Dropping this future, rather than cancelling `shutdown`, leaves no task behind.
        let _stop_when_dropped =
            (leaving.clone().drop_guard(), stop_accepting.clone().drop_guard(), stop.clone().drop_guard());
        let ready = operators::Ready::default();
        let background = TaskTracker::new();
        let mut serving = background.spawn(server.serve(grpc, admin, stop_accepting.clone()));
        if let Some(listener) = operators {
            background.spawn(operators::serve(listener, metrics.clone(), ready.clone(), stop.clone()));
        }
        if let Some(exporter) = exporter {
            // What is left when everything else has ended is sent, too.
            background.spawn(exporter.run(stop.clone().cancelled_owned()));
        }
        background.spawn(directory.clone().run(stop.clone()));
        background.spawn(until(stop.clone(), count_cores(peers.register.clone(), quota)));
        background.spawn(until(stop.clone(), async move { verifier.keep_fresh().await }));
        let (starts, stored) = watch::start(watched, &store, &config, &leaving, &background);
        let probe = Probe {
            stored,
            store: store.clone(),
            bus: peers.bus.clone(),
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
            () = peers.lost() => {
                tracing::error!("another core has taken the store over, this one leaves");
            }
            ended = &mut serving => {
                store.close().await;
                ended.context("the gRPC server died")?.context("listen")?;
                anyhow::bail!("the gRPC server ended by itself");
            }
        }

        // Nobody must take this core for dead while it leaves.
        let (entry, entered) = (peers.register.clone(), CancellationToken::new());
        background.spawn(until(entered.clone(), async move { entry.keep().await }));
        let leaving = Leaving {
            store,
            peers,
            entered,
            directory,
            generator,
            starts,
            metrics,
            streams,
            leaving,
            health,
            ready,
            stop_accepting,
            stop,
            background,
        };
        Box::pin(leaving.drain(&config.drain)).await;
        Ok(())
    }
}

/// The listeners come last, so that a port that listens is a core that can serve.
async fn join_and_listen(
    config: &Config,
    store: &Arc<dyn SessionStore>,
    ring: &KeyRing,
) -> anyhow::Result<(Peers, Listeners)> {
    let peers = Box::pin(Peers::join(config, store.clone(), ring)).await?;
    match Listeners::bind(config) {
        Ok(listeners) => Ok((peers, listeners)),
        Err(error) => {
            peers.leave().await;
            Err(error)
        }
    }
}

/// What has to end.
struct Leaving {
    store: Arc<dyn SessionStore>,
    peers: Peers,
    /// Ends the renewals of this core's row.
    entered: CancellationToken,
    directory: Directory,
    generator: Generator,
    starts: Starts,
    metrics: Metrics,
    streams: TaskTracker,
    leaving: CancellationToken,
    health: Health,
    ready: operators::Ready,
    stop_accepting: CancellationToken,
    stop: CancellationToken,
    background: TaskTracker,
}

impl Leaving {
    async fn drain(self, drain: &DrainConfig) {
        let Self {
            store,
            peers,
            entered,
            directory,
            generator,
            starts,
            metrics,
            streams,
            leaving,
            health,
            ready,
            stop_accepting,
            stop,
            background,
        } = self;
        // The phases of the way out. One deadline bounds them all; whoever does not make it is cut by the runtime's end.
        // 1. Readiness goes down, and load balancers get time to notice.
        // 2. No connection is accepted any more; every stream is told `going_away`.
        // 3. Running replies, and the turns of services, may finish within the grace.
        // 4. The rest is cut as INTERRUPTED, and written.
        // 5. The bus is closed, so that the last entries reach the other cores; then the store.
        // 6. Listeners and background tasks end.
        let deadline = Instant::now() + drain.deadline;
        tracing::info!(sessions = metrics.sessions_live.get(), streams = metrics.subscribers.get(), "draining");
        ready.set(false);
        leaving.cancel();
        health.set_ready(false).await;
        let grace = Instant::now() + drain.notice + drain.grace;
        tokio::time::sleep_until((Instant::now() + drain.notice).min(deadline)).await;
        stop_accepting.cancel();
        directory.start_draining();
        let finished = async { tokio::join!(directory.drained(), generator.drained()) };
        if tokio::time::timeout_at(grace.min(deadline), finished).await.is_err() {
            let (tasks, turns) = (directory.tasks_left(), generator.running());
            tracing::info!(tasks, turns, "cutting the replies and turns that still run");
            directory.cut();
            generator.cut();
        }
        let rest = async {
            directory.drained().await;
            streams.close();
            streams.wait().await;
            // Without it this end counts as a crash, for a while.
            let _ = starts.leave().await;
            entered.cancel();
            peers.leave().await;
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
    let store = open_store(config).await?.sessions;
    let verified = async {
        seal::self_test(&ring, &*store).await.context("keys.ring: the self-test failed")?;
        Ok(PayloadVerifier::new(store.clone(), ring, config.store.call_timeout).run(progress).await?)
    };
    let verified = verified.await;
    store.close().await;
    verified
}

/// Follows the chain of the audit trail of a configuration, for `audit verify`. An embedded store must not be open elsewhere.
///
/// # Errors
/// When the store or the ring cannot be opened, or the store fails meanwhile; faults of the trail are none.
pub async fn verify_audit(config: &Config) -> anyhow::Result<Audited> {
    let ring = KeyRing::from_config(config.keys.primary_id().unwrap_or_default(), config.keys.pairs())?;
    let stores = open_store(config).await?;
    let verified = async {
        let secret = seal::self_test(&ring, &*stores.sessions).await.context("keys.ring: the self-test failed")?;
        Ok(AuditTrail::new(stores.audit, Arc::new(secret), config.store.call_timeout).verify().await?)
    };
    let verified = verified.await;
    stores.sessions.close().await;
    verified
}

/// What verifies tokens, with its keys if they can be had.
async fn verifier(config: &Config) -> anyhow::Result<Arc<Verifier>> {
    let key_error = |error| anyhow::anyhow!("token: {error}");
    let source = keys::source(&config.token).map_err(key_error)?;
    let verifier = Arc::new(Verifier::new(&config.token, source).map_err(key_error)?);
    if let Err(error) = verifier.refresh().await {
        // A file that cannot be read will not get better; an issuer may come back.
        anyhow::ensure!(config.token.jwks_file.is_empty(), "token.jwks_file: {error}");
        tracing::warn!(%error, "token.jwks_url: the key set could not be read, trying again later");
    }
    Ok(verifier)
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

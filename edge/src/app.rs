//! The edge as a whole: bound first, then run, then drained. No state is process-wide, so several fit into one process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use chatbox_proto::{
    spans::{Exporter, Tracer},
    token::Verifier,
};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    config::Config,
    core_api::{CoreApi, GrpcCore},
    http::server::{self, Until},
    keys, router,
    state::Edge,
    tasks::Tasks,
};

/// Time for the last scrape to be answered.
const OPERATORS_GRACE: Duration = Duration::from_millis(500);

/// What is left of the deadline when the rest is cut: for the operators' listener, and the end of the process.
const LAST_STEPS: Duration = Duration::from_millis(700);

/// An edge that is bound and not running yet. Dropping it releases everything.
#[derive(Debug)]
pub struct App {
    edge: Arc<Edge>,
    public: TcpListener,
    operators: Option<TcpListener>,
    exporter: Option<Exporter>,
}

impl App {
    /// Builds the parts and binds the listeners. Needs a tokio runtime; starts no task.
    ///
    /// # Errors
    /// One line that names the setting.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let (tracer, exporter) =
            Tracer::new(&config.telemetry, "chatbox-edge").map_err(|error| anyhow::anyhow!(error))?;
        let core = Arc::new(GrpcCore::new(&config.core).context("core")?.traced(tracer.clone()));
        let app = Self::bind_with(config, core).await?;
        app.edge.metrics.count_spans(tracer);
        Ok(Self { exporter, ..app })
    }

    /// Like [`bind`](Self::bind), with another way to core.
    ///
    /// # Errors
    /// One line that names the setting.
    pub async fn bind_with(config: Config, core: Arc<dyn CoreApi>) -> anyhow::Result<Self> {
        let mistakes = config.check();
        anyhow::ensure!(mistakes.is_empty(), "{}", mistakes.join("\n"));
        let key_error = |error| anyhow::anyhow!("token: {error}");
        let source = keys::source(&config.token).map_err(key_error)?;
        let verifier = Verifier::new(&config.token, source).map_err(key_error)?;
        if let Err(error) = verifier.refresh().await {
            // A file that cannot be read will not get better; an issuer may come back.
            anyhow::ensure!(config.token.jwks_file.is_empty(), "token.jwks_file: {error}");
            tracing::warn!(error = %error, "token.jwks_url: the key set could not be read, trying again later");
        }
        let public = server::bind("listen", config.listen)?;
        let operators = match config.metrics_listen.as_str() {
            "" => None,
            address => Some(server::bind("metrics_listen", address.parse()?)?),
        };
        Ok(Self { edge: Arc::new(Edge::new(config, core, Arc::new(verifier))), public, operators, exporter: None })
    }

    /// Where browsers connect to.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn http_addr(&self) -> std::io::Result<SocketAddr> {
        self.public.local_addr()
    }

    /// Where `/metrics` is, if it is served.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.operators.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `shutdown`, then drains. Returns at the latest when the drain deadline has passed.
    ///
    /// # Errors
    /// None today; wiring that can fail is done in [`bind`](Self::bind).
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { edge, public, operators, exporter } = self;
        let stop_accepting = CancellationToken::new();
        let _when_dropped = (edge.leaving.clone().drop_guard(), edge.draining.clone().drop_guard());
        let _accepting_when_dropped = stop_accepting.clone().drop_guard();

        let until = Until { accepting: stop_accepting.clone(), serving: edge.draining.clone() };
        let serving = server::serve(Arc::clone(&edge), public, router::public(&edge), edge.tasks.clone(), until);
        edge.tasks.spawn("public listener", serving);
        let operators = operators.map(|listener| Operators::serve(&edge, listener));
        let verifier = Arc::clone(&edge.verifier);
        let until = edge.draining.clone();
        edge.tasks.spawn("key set", async move {
            tokio::select! {
                () = verifier.keep_fresh() => {}
                () = until.cancelled() => {}
            }
        });
        let (core, until) = (Arc::clone(&edge.core), edge.draining.clone());
        edge.tasks.spawn("cores", async move {
            tokio::select! {
                () = core.watch() => {}
                () = until.cancelled() => {}
            }
        });
        let exporting = exporter.map(|exporter| {
            // Its own, so that it ends when everything that makes spans has.
            let (tasks, stop) = (Tasks::new(edge.metrics.panics.clone()), CancellationToken::new());
            tasks.spawn("spans", exporter.run(stop.clone().cancelled_owned()));
            (stop, tasks)
        });
        tracing::info!("serving");
        shutdown.cancelled().await;
        let until = drain(&edge, &stop_accepting).await;
        if let Some((stop, exporting)) = exporting {
            stop.cancel();
            // What is left is sent before the deadline, or lost.
            let _ = tokio::time::timeout_at(until, exporting.drained()).await;
        }
        if let Some(operators) = operators {
            operators.stop().await;
        }
        Ok(())
    }
}

/// The listener for operators: there until the drain is over, so that it can be watched.
struct Operators {
    tasks: Tasks,
    stop: DropGuard,
}

impl Operators {
    fn serve(edge: &Arc<Edge>, listener: TcpListener) -> Self {
        let tasks = Tasks::new(edge.metrics.panics.clone());
        let stop = CancellationToken::new();
        let until = Until { accepting: stop.clone(), serving: stop.clone() };
        let serving = server::serve(Arc::clone(edge), listener, router::operators(edge), tasks.clone(), until);
        tasks.spawn("operators' listener", serving);
        Self { tasks, stop: stop.drop_guard() }
    }

    async fn stop(self) {
        drop(self.stop);
        let _ = tokio::time::timeout(OPERATORS_GRACE, self.tasks.drained()).await;
    }
}

/// For the spans that are left, whatever else took its time.
const LAST_SPANS: Duration = Duration::from_millis(100);

/// The phases of the way out, each bounded, all of them before one deadline whatever clients and core do:
/// 1. readiness goes down, and load balancers get time to notice;
/// 2. no connection is accepted any more;
/// 3. every socket is told `going_away` and closed with 1001, spread over the jitter; HTTP answers are finished;
/// 4. all of it is waited for, until the deadline;
/// 5. what is left is cut: its task ends with the runtime. The operators' listener goes last.
async fn drain(edge: &Edge, stop_accepting: &CancellationToken) -> tokio::time::Instant {
    let config = &edge.config.drain;
    let started = tokio::time::Instant::now();
    tracing::info!(connections = edge.metrics.connections.get(), "draining");
    edge.leaving.cancel();
    tokio::time::sleep(config.notice).await;
    stop_accepting.cancel();
    edge.draining.cancel();
    let cut_at = started + config.deadline.saturating_sub(LAST_STEPS);
    match tokio::time::timeout_at(cut_at, edge.tasks.drained()).await {
        Ok(()) => tracing::info!(drain.duration_ms = started.elapsed().as_millis(), "drained"),
        Err(_) => tracing::warn!(tasks = edge.tasks.len(), "the drain deadline has passed, cutting the rest"),
    }
    cut_at.max(tokio::time::Instant::now() + LAST_SPANS)
}

#[cfg(test)]
mod tests;

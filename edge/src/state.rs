//! What all requests and connections of one edge share. Built once by [`crate::App`], immutable but for the small owners
//! inside.

use std::{net::IpAddr, sync::Arc, time::Duration};

use chatbox_proto::{status::Failure, token::Verifier};
use http::HeaderMap;
use tokio::{
    sync::{Mutex, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    client::TrustedProxies,
    config::Config,
    core_api::{CoreApi, core_unavailable},
    limits::{Handshakes, Seats},
    metrics::Metrics,
    origin::AllowedOrigins,
    tasks::Tasks,
};

/// How long an answer of core about its readiness is good for.
const READINESS_AGE: Duration = Duration::from_secs(1);

/// Core has this long to say that it is ready.
const READINESS_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct Edge {
    pub(crate) config: Config,
    pub(crate) core: Arc<dyn CoreApi>,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) origins: AllowedOrigins,
    pub(crate) proxies: TrustedProxies,
    pub(crate) handshakes: Handshakes,
    /// Looks at what was shared, per address.
    pub(crate) shared: Handshakes,
    pub(crate) seats: Seats,
    /// One permit per socket.
    pub(crate) sockets: Arc<Semaphore>,
    /// One permit per stream that is being opened again.
    pub(crate) reopens: Semaphore,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
    /// Cancelled when the edge no longer wants new work.
    pub(crate) leaving: CancellationToken,
    /// Cancelled when sockets shall close, and answers be the last ones of their connection.
    pub(crate) draining: CancellationToken,
    /// The last answer about readiness. Held while core is asked, so that all who ask share one answer.
    readiness: Mutex<Option<(Instant, bool)>>,
}

/// Who sent a request, as far as the connection tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

impl Edge {
    pub(crate) fn new(config: Config, core: Arc<dyn CoreApi>, verifier: Arc<Verifier>) -> Self {
        let metrics = Metrics::new();
        Self {
            origins: AllowedOrigins::new(&config.origins, !config.profile.is_production()),
            proxies: TrustedProxies::parse(&config.trusted_proxies).unwrap_or_default(),
            handshakes: Handshakes::new(config.limits.handshakes_per_ip),
            shared: Handshakes::new(config.limits.shared_per_ip),
            seats: Seats::new(config.limits.connections_per_user),
            sockets: Arc::new(Semaphore::new(config.limits.connections as usize)),
            reopens: Semaphore::new(config.core.reopens),
            tasks: Tasks::new(metrics.panics.clone()),
            metrics,
            leaving: CancellationToken::new(),
            draining: CancellationToken::new(),
            readiness: Mutex::new(None),
            core,
            verifier,
            config,
        }
    }

    pub(crate) fn client_ip(&self, peer: Peer, headers: &HeaderMap) -> IpAddr {
        self.proxies.client_ip(peer.0, headers)
    }

    /// Whether this edge can serve: it is not leaving, and core said within the last second that it is ready.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn ready(&self) -> Result<(), Failure> {
        if self.leaving.is_cancelled() {
            return Err(leaving());
        }
        let mut known = self.readiness.lock().await;
        let fresh = known.filter(|(asked, _)| asked.elapsed() < READINESS_AGE);
        let ready = match fresh {
            Some((_, ready)) => ready,
            None => {
                let ready = self.core.check(READINESS_TIMEOUT).await.is_ok();
                *known = Some((Instant::now(), ready));
                ready
            }
        };
        if ready { Ok(()) } else { Err(core_unavailable()) }
    }
}

/// This edge takes no new work.
pub(crate) fn leaving() -> Failure {
    use chatbox_proto::error_code::ErrorCode;
    Failure::new(ErrorCode::Unavailable, "DRAINING", "this server is leaving").retry_after(Duration::from_secs(1))
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edge").field("listen", &self.config.listen).finish_non_exhaustive()
    }
}

//! What the configuration asks for, made: listeners, store, certificates, limits.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::{
    budget::{BudgetLimits, Budgets, Clock},
    config::{Config, Naming, StoreTarget, TlsConfig},
    grpc::{FrameLimits, GenerateLimits, GrpcLimits, PageSizes},
    limits::{Quota, QuotaLimits},
    llm::registry::Models,
    metrics::Metrics,
    session::{NamedBy, NamingLimits, QueueLimits, SessionLimits},
    store::{
        BudgetStore, Stores,
        mongo::{MongoOptions, MongoStore},
        sqlite::{SqliteOptions, SqliteStore},
    },
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A unary call takes at most this long, unless its client wants it sooner.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a core is reached.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) grpc: TcpListener,
    pub(super) admin: Option<TcpListener>,
    /// Of `/metrics` and its like.
    pub(super) operators: Option<TcpListener>,
}

impl Listeners {
    pub(super) fn bind(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            grpc: listen("listen", config.listen)?,
            admin: listen_admin(config)?,
            operators: listen_operators(config)?,
        })
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

/// The listener of the team's calls, if they have their own.
fn listen_admin(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    match config.admin.listen.as_str() {
        "" => Ok(None),
        address => listen("admin.listen", address.parse()?).map(Some),
    }
}

pub(super) async fn open_store(config: &Config) -> anyhow::Result<Stores> {
    let settings = &config.store;
    match settings.target().map_err(|rule| anyhow::anyhow!("store.url: {rule}"))? {
        StoreTarget::Sqlite(path) => {
            let max = settings.max_size.as_usize() as u64;
            let mut options = SqliteOptions::default();
            options.max_bytes = (max > 0).then_some(max);
            let store = SqliteStore::open(&path, &options).with_context(|| format!("store.url: {}", path.display()))?;
            Ok(Arc::new(store).into())
        }
        StoreTarget::Mongo(uri) => {
            // Sooner than the limit of whoever calls the store, so that its word is heard about what is certain.
            let call_timeout = settings.call_timeout * 9 / 10;
            let options = MongoOptions { uri, call_timeout, pool_size: settings.pool_size };
            Ok(Arc::new(MongoStore::open(&options).await.context("store.url")?).into())
        }
    }
}

pub(super) fn server_tls(config: &Config) -> anyhow::Result<Option<ServerTlsConfig>> {
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

pub(super) fn quota(config: &Config) -> Quota {
    let limits = &config.limits;
    Quota::new(QuotaLimits { messages_per_minute: limits.messages_per_minute, replies: limits.replies })
}

/// `None` when nothing is limited.
pub(super) fn budgets(
    config: &Config,
    store: Arc<dyn BudgetStore>,
    models: &Models,
    metrics: &Metrics,
) -> Option<Budgets> {
    let limits = config.budgets.limits();
    let limited = limits != BudgetLimits::default();
    let (models, metrics) = (models.clone(), metrics.clone());
    limited.then(|| Budgets::new(store, limits, models, metrics, config.store.call_timeout, Clock::system()))
}

fn queue_limits(config: &Config) -> QueueLimits {
    QueueLimits {
        events: config.session.queue_events,
        bytes: config.session.queue_bytes.as_usize(),
        merge: config.limits.merge_deltas,
    }
}

pub(super) fn session_limits(config: &Config) -> SessionLimits {
    let session = &config.session;
    SessionLimits {
        max_active: session.active_per_user,
        replay: session.replay_entries,
        max_unanswered: session.unanswered,
        append_rounds: session.append_rounds,
        heartbeat: session.heartbeat,
        checkpoint: session.checkpoint,
        store_call: config.store.call_timeout,
        reply_lapse: session.reply_lapse,
        idle_end: (!session.idle_end.is_zero()).then_some(session.idle_end),
        naming: NamingLimits {
            by: match session.naming {
                Naming::Model => NamedBy::Model,
                Naming::Rule => NamedBy::Rule,
                Naming::Off => NamedBy::Nobody,
            },
            timeout: session.naming_timeout,
            at_once: session.naming_at_once,
        },
        hold_lapse: session.hold_lapse,
        offline_notice: session.offline_notice.clone(),
        away_jitter: config.drain.jitter,
    }
}

pub(super) fn grpc_limits(config: &Config) -> GrpcLimits {
    let (limits, session) = (&config.limits, &config.session);
    GrpcLimits {
        connections: limits.connections as usize,
        ip_connections: limits.connections_per_ip as usize,
        handshake_timeout: limits.handshake_timeout,
        streams: limits.streams_per_connection,
        user_streams: limits.streams_per_user,
        user_calls: limits.calls_per_user,
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
        admin_calls_per_minute: config.admin.calls_per_minute,
        heartbeat: session.heartbeat,
        generate: GenerateLimits {
            frame_bytes: config.generate.frame_bytes.as_usize(),
            conversation_bytes: config.generate.conversation_bytes.as_usize(),
            messages: config.generate.messages as usize,
            streams: config.generate.streams_per_caller,
        },
        pages: PageSizes { default: session.page_size, max: session.max_page_size },
    }
}

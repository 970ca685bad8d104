//! The gRPC server: services, layers and the limits of HTTP/2.

use std::{sync::Arc, time::Duration};

use chatbox_proto::{
    FILE_DESCRIPTOR_SET,
    spans::Tracer,
    token::Verifier,
    v1::{admin::chat_admin_server::ChatAdminServer, core::chat_core_server::ChatCoreServer},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, ServerTlsConfig};
use tonic_health::server::HealthReporter;

use super::{
    accept::{ConnectionLimits, connections},
    admin::{AdminService, CallRate, Gate},
    auth::Authenticator,
    core::{CoreService, FrameLimits},
    details::DetailsLayer,
    generate::{Generate, GenerateLimits},
    limits::PlacesByUser,
    page::PageSizes,
};
use crate::{
    generate::Generator,
    llm::registry::Models,
    metrics::Metrics,
    seal::KeyRing,
    session::{QueueLimits, Sessions, Shares, audit::AuditTrail, rotation::Rotation},
};

/// Many small unread DATA frames end a whole channel with `ENHANCE_YOUR_CALM`; the budget grows with this window, so it is
/// generous, and never adaptive.
const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
const STREAM_WINDOW: u32 = 1024 * 1024;

/// A peer that does not answer a ping within this time is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Streams that a client has reset before they were taken up (CVE-2023-44487). Above it the connection ends with
/// `ENHANCE_YOUR_CALM`; clients that give up many calls at once are far below it between two reads.
const RESETS_BEFORE_ACCEPT: usize = 64;

/// Streams that a client has made us reset (CVE-2025-8671). Must be said: left out it means without limit.
const RESETS_OF_OURS: usize = 1_024;

/// Limits of the server; see the configuration for units and ranges.
#[derive(Debug, Clone, Copy)]
pub struct GrpcLimits {
    /// Connections at once; above it the listener's backlog waits.
    pub connections: usize,
    /// Connections at once from one address; above it they are closed.
    pub ip_connections: usize,
    /// Until a connection has begun to speak HTTP/2.
    pub handshake_timeout: Duration,
    /// Streams per connection.
    pub streams: u32,
    /// Streams per user.
    pub user_streams: u32,
    /// Unary calls of one user in flight.
    pub user_calls: u32,
    /// Bytes of one message.
    pub message_bytes: usize,
    /// Bytes of all headers of a call.
    pub header_bytes: u32,
    /// Between two pings of an idle connection: cloud balancers drop those silently after a minute.
    pub ping_interval: Duration,
    /// A unary call.
    pub call_timeout: Duration,
    /// Bounds of a subscriber's queue.
    pub queue: QueueLimits,
    /// Limits of a `Chat` stream.
    pub frames: FrameLimits,
    /// Calls of one admin per minute.
    pub admin_calls_per_minute: u32,
    /// Between two heartbeats of a stream.
    pub heartbeat: Duration,
    /// Sizes of pages.
    pub pages: PageSizes,
    /// Limits of `Generate` streams.
    pub generate: GenerateLimits,
}

impl GrpcLimits {
    fn of_connections(&self) -> ConnectionLimits {
        ConnectionLimits {
            total: self.connections,
            per_ip: self.ip_connections,
            handshake: self.handshake_timeout,
            // A peer that answers pings is never silent for as long as this.
            silence: 2 * (self.ping_interval + PING_TIMEOUT),
            // One that could not even be asked.
            stall: self.ping_interval + PING_TIMEOUT,
        }
    }
}

/// What the services need.
#[derive(Debug)]
pub struct Services {
    /// Sessions.
    pub sessions: Sessions,
    /// Share links.
    pub shares: Shares,
    /// The audit trail.
    pub audit: AuditTrail,
    /// Rotations of the key ring.
    pub rotation: Rotation,
    /// Models.
    pub models: Models,
    /// Turns without a session.
    pub generator: Generator,
    /// Tokens.
    pub verifier: Arc<Verifier>,
    /// For page tokens.
    pub ring: Arc<KeyRing>,
    /// Limits.
    pub limits: GrpcLimits,
    /// Figures.
    pub metrics: Metrics,
    /// Spans.
    pub tracer: Tracer,
    /// Where the tasks of streams are counted.
    pub tasks: TaskTracker,
    /// Cancelled when the server begins to leave.
    pub leaving: CancellationToken,
}

impl Services {
    /// The calls of clients, and those of the team.
    fn into_services(self) -> (CoreService, AdminService) {
        let Self {
            sessions,
            shares,
            audit,
            rotation,
            models,
            generator,
            verifier,
            ring,
            limits,
            metrics,
            tracer: _,
            tasks,
            leaving,
        } = self;
        let authenticator = Authenticator::new(verifier);
        let sealer = Arc::new(ring.page_token_sealer());
        let rate = CallRate::new(limits.admin_calls_per_minute);
        let gate = Gate { authenticator: authenticator.clone(), audit, sessions: sessions.clone(), rate };
        let streams = PlacesByUser::streams(limits.user_streams);
        let admin = AdminService {
            gate: gate.clone(),
            sessions: sessions.clone(),
            rotation,
            sealer: sealer.clone(),
            pages: limits.pages,
            streams: streams.clone(),
            heartbeat: limits.heartbeat,
        };
        let core = CoreService {
            sessions,
            shares,
            models,
            authenticator,
            gate,
            sealer,
            queue: limits.queue,
            limits: limits.frames,
            pages: limits.pages,
            streams,
            calls: PlacesByUser::calls(limits.user_calls),
            tasks,
            leaving,
            metrics,
            generate: Generate::new(generator, limits.generate),
        };
        (core, admin)
    }
}

/// Why the server could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// TLS, or the listener.
    #[error("transport")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors.
    #[error("reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A server that is ready to serve.
#[derive(Debug)]
pub struct GrpcServer {
    services: Services,
    health: HealthReporter,
    tls: Option<ServerTlsConfig>,
}

impl GrpcServer {
    /// With its services; health is `NOT_SERVING` until [`Health::set_ready`].
    #[must_use]
    pub fn new(services: Services, tls: Option<ServerTlsConfig>) -> Self {
        Self { services, health: HealthReporter::new(), tls }
    }

    /// The reporter that health checks ask.
    #[must_use]
    pub fn health(&self) -> Health {
        Health(self.health.clone())
    }

    /// Serves until `stop`, then until the streams have ended. The caller bounds that. With a listener of their own the
    /// calls of the team are served there and nowhere else.
    ///
    /// # Errors
    /// What the transport says, or the reflection service of the descriptors.
    pub async fn serve(
        self,
        listener: TcpListener,
        admin_listener: Option<TcpListener>,
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        let Self { services, health, tls } = self;
        let (limits, metrics, tracer) = (services.limits, services.metrics.clone(), services.tracer.clone());
        let (core, admin) = services.into_services();
        let core = ChatCoreServer::new(core).max_decoding_message_size(limits.message_bytes);
        let admin = ChatAdminServer::new(admin).max_decoding_message_size(limits.message_bytes);
        let health = tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(health),
        );
        // Both versions: older tools know v1alpha only. The descriptors of error details let grpcurl print them.
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let v1 = reflection().build_v1()?;
        let v1alpha = reflection().build_v1alpha()?;
        let layer = DetailsLayer { metrics: metrics.clone(), tracer, call_timeout: limits.call_timeout };
        let (beside, own) = match admin_listener {
            None => (Some(admin), None),
            Some(listener) => (None, Some((admin, listener))),
        };
        let incoming = |listener| connections(listener, limits.of_connections(), metrics.connections.clone());
        let main = builder(limits, tls.clone())?
            .layer(layer.clone())
            .add_service(core)
            .add_optional_service(beside)
            .add_service(health.clone())
            .add_service(v1.clone())
            .add_service(v1alpha.clone())
            .serve_with_incoming_shutdown(incoming(listener), stop.clone().cancelled_owned());
        let team = async {
            let Some((admin, listener)) = own else { return Ok(()) };
            builder(limits, tls)?
                .layer(layer)
                .add_service(admin)
                .add_service(health)
                .add_service(v1)
                .add_service(v1alpha)
                .serve_with_incoming_shutdown(incoming(listener), stop.cancelled_owned())
                .await
        };
        // Boxed: each holds a whole server.
        tokio::try_join!(Box::pin(main), Box::pin(team))?;
        Ok(())
    }
}

/// A server with the limits of HTTP/2 and TLS.
fn builder(limits: GrpcLimits, tls: Option<ServerTlsConfig>) -> Result<Server, tonic::transport::Error> {
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_adaptive_window(Some(false))
        .http2_keepalive_interval(Some(limits.ping_interval))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .http2_max_header_list_size(Some(limits.header_bytes))
        .http2_max_pending_accept_reset_streams(Some(RESETS_BEFORE_ACCEPT))
        .http2_max_local_error_reset_streams(Some(RESETS_OF_OURS))
        .max_concurrent_streams(limits.streams);
    match tls {
        Some(tls) => server.tls_config(tls),
        None => Ok(server),
    }
}

/// What health checks are told. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health(HealthReporter);

impl Health {
    /// The whole server and each service.
    pub async fn set_ready(&self, ready: bool) {
        let status = if ready { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
        for service in ["", "chatbox.v1.ChatCore", "chatbox.v1.ChatAdmin"] {
            self.0.set_service_status(service, status).await;
        }
    }
}

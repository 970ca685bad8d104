//! `ChatCore`: who calls, convert, call, convert.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use chatbox_proto::{
    ids::SessionId,
    status::Failure,
    token::Identity,
    v1::{self, core::chat_core_server::ChatCore},
};
use futures_util::{Stream, StreamExt as _};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{
    admin::Gate,
    auth::{self, Authenticator},
    chat::Connection,
    convert,
    details::client_timeout,
    generate::{self, Call, Generate},
    limits::{Held, PlacesByUser},
    page::{self, PageSizes},
    shares, trace,
};
use crate::{
    domain::{
        entry::{Sender, Seq},
        time::Timestamp,
    },
    llm::registry::Models,
    metrics::Metrics,
    seal::TokenSealer,
    session::{MAX_NAME, Queue, QueueLimits, QueueStream, Sessions, Shares},
};

/// Limits of one `Chat` stream; see the configuration for units and ranges.
#[derive(Debug, Clone, Copy)]
pub struct FrameLimits {
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Bytes of a message's text.
    pub text_bytes: usize,
    /// Frames per second.
    pub per_second: u32,
    /// Frames that cannot be decoded.
    pub malformed_per_minute: usize,
    /// How long before its expiry a token is announced to expire.
    pub expiry_warning: Duration,
}

/// The service. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct CoreService {
    pub(super) sessions: Sessions,
    pub(super) shares: Shares,
    pub(super) models: Models,
    pub(super) authenticator: Authenticator,
    pub(super) sealer: Arc<TokenSealer>,
    pub(super) queue: QueueLimits,
    pub(super) limits: FrameLimits,
    pub(super) pages: PageSizes,
    pub(super) streams: PlacesByUser,
    pub(super) calls: PlacesByUser,
    pub(super) tasks: TaskTracker,
    pub(super) leaving: CancellationToken,
    pub(super) metrics: Metrics,
    /// For admins who open somebody else's session.
    pub(super) gate: Gate,
    pub(super) generate: Generate,
}

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

impl CoreService {
    /// Who makes a unary call, with a place for it; the call keeps it until it is answered.
    async fn identity(&self, metadata: &MetadataMap) -> Result<Held<Identity>, Failure> {
        let identity = self.authenticator.caller(metadata).await?;
        let permit = self.calls.enter(&identity.user_id)?;
        Ok(Held::new(identity, permit))
    }

    /// The same for calls about sessions.
    async fn caller(&self, metadata: &MetadataMap) -> Result<Held<Sender>, Failure> {
        self.identity(metadata).await?.map(|identity| auth::session_caller(&identity))
    }

    /// A call that a later version builds: the caller is checked all the same, so that nobody learns more than they may.
    async fn not_yet<T>(&self, metadata: &MetadataMap) -> Answer<T> {
        let _held = self.identity(metadata).await?;
        Err(Failure::unimplemented().into())
    }
}

#[tonic::async_trait]
impl ChatCore for CoreService {
    type ChatStream = EventStream<Bytes>;
    type GenerateStream = EventStream<Bytes>;
    type DownloadFileStream = EventStream<v1::DownloadFileResponse>;

    async fn chat(&self, request: Request<Streaming<Bytes>>) -> Answer<Self::ChatStream> {
        let identity = self.authenticator.caller(request.metadata()).await?;
        let caller = auth::session_caller(&identity)?;
        let queue = Queue::new(self.queue);
        let events = QueueStream::new(queue.clone());
        // Held by the answer too: one that nobody reads is still a stream, also after its task has ended.
        let permit = Arc::new(self.streams.enter(&caller.user_id)?);
        let answer_permit = permit.clone();
        let trace = trace::context_or_new(request.metadata().as_ref());
        let connection = Box::new(Connection::new(self, identity, caller, queue, trace));
        let gauge = self.metrics.subscribers.clone();
        let frames = request.into_inner();
        // A task of its own: frames are taken while events wait for the transport, and the other way round.
        self.tasks.spawn(async move {
            gauge.inc();
            let _left = (Left(gauge), permit);
            connection.run(frames).await;
        });
        Ok(Response::new(Box::pin(events.map(move |event| {
            let _held = &answer_permit;
            event.map_err(Status::from)
        }))))
    }

    async fn generate(&self, request: Request<Streaming<Bytes>>) -> Answer<Self::GenerateStream> {
        // From here on, so that a token that is slow to be verified does not buy time.
        let arrived = Instant::now();
        let identity = self.authenticator.caller(request.metadata()).await?;
        auth::service(&identity, "generate")?;
        let permit = Arc::new(self.generate.streams.enter(&identity.user_id)?);
        let answer_permit = permit.clone();
        let (metadata, _, frames) = request.into_parts();
        let headers = metadata.into_headers();
        let call = Call {
            trace: trace::context_or_new(&headers),
            deadline: client_timeout(&headers).and_then(|wanted| arrived.checked_add(wanted)),
            identity,
        };
        let (connection, events) = generate::Connection::new(self, call);
        let gauge = self.metrics.generate_streams.clone();
        self.tasks.spawn(async move {
            gauge.inc();
            let _left = (Left(gauge), permit);
            Box::new(connection).run(frames).await;
        });
        Ok(Response::new(Box::pin(events.map(move |event| {
            let _held = &answer_permit;
            event.map_err(Status::from)
        }))))
    }

    async fn list_models(&self, request: Request<v1::ListModelsRequest>) -> Answer<v1::ListModelsResponse> {
        let identity = self.identity(request.metadata()).await?;
        let models = self.models.iter().filter(|model| model.info.is_for(identity.roles)).map(|model| v1::Model {
            id: model.info.id.clone(),
            name: model.info.name.clone(),
            context_tokens: model.info.context_tokens,
            max_output_tokens: model.info.max_output_tokens,
            demo: model.provider.is_demo(),
            images: false,
        });
        let default_model = self.models.default_model().info.id.clone();
        Ok(Response::new(v1::ListModelsResponse { models: models.collect(), default_model }))
    }

    async fn create_session(&self, request: Request<v1::CreateSessionRequest>) -> Answer<v1::CreateSessionResponse> {
        let identity = self.identity(request.metadata()).await?;
        let caller = auth::session_caller(&identity)?;
        let v1::CreateSessionRequest { request_id, model } = request.into_inner();
        convert::printable("request_id", &request_id)?;
        convert::bounded("model", &model, 128)?;
        auth::may_choose(&identity, &self.models, &model)?;
        let session = self.sessions.create(&caller.user_id, &model, &request_id).await?;
        Ok(Response::new(v1::CreateSessionResponse { session: Some(session) }))
    }

    async fn get_session(&self, request: Request<v1::GetSessionRequest>) -> Answer<v1::GetSessionResponse> {
        let caller = self.caller(request.metadata()).await?;
        let id = convert::session_id("session_id", &request.into_inner().session_id)?;
        let session = self.sessions.get(&caller.user_id, id).await?;
        Ok(Response::new(v1::GetSessionResponse { session: Some(session) }))
    }

    async fn list_sessions(&self, request: Request<v1::ListSessionsRequest>) -> Answer<v1::ListSessionsResponse> {
        let caller = self.caller(request.metadata()).await?;
        let request = request.into_inner();
        let size = self.pages.size(request.page_size)?;
        convert::bounded("name_contains", &request.name_contains, MAX_NAME)?;
        let ended = match v1::SessionStatus::try_from(request.status) {
            Ok(v1::SessionStatus::Unspecified) => None,
            Ok(v1::SessionStatus::Active) => Some(false),
            Ok(v1::SessionStatus::Ended) => Some(true),
            Err(_) => return Err(Failure::invalid("status", "must be a known status").into()),
        };
        let scope = page::scope("sessions", &caller.user_id, &[&request.status.to_string(), &request.name_contains]);
        let after = page::open::<24>(&self.sealer, &scope, &request.page_token)?.map(session_position);
        let page = match request.name_contains.as_str() {
            "" => self.sessions.list(&caller.user_id, ended, after, size).await?,
            name => self.sessions.search(&caller.user_id, name, ended, after, size).await?,
        };
        let next = page.next.map(|(time, id)| {
            let position = [time.millis().to_be_bytes().as_slice(), id.as_bytes()].concat();
            self.sealer.seal(&scope, &position)
        });
        Ok(Response::new(v1::ListSessionsResponse {
            sessions: page.sessions,
            next_page_token: next.unwrap_or_default(),
            page_size: i32::try_from(size).unwrap_or(i32::MAX),
        }))
    }

    async fn list_messages(&self, request: Request<v1::ListMessagesRequest>) -> Answer<v1::ListMessagesResponse> {
        let caller = self.caller(request.metadata()).await?;
        let request = request.into_inner();
        let id = convert::session_id("session_id", &request.session_id)?;
        let size = self.pages.size(request.page_size)?;
        let order =
            v1::PageOrder::try_from(request.order).map_err(|_| Failure::invalid("order", "must be a known order"))?;
        let parameters = [request.session_id.as_str(), &request.order.to_string(), &request.after_seq.to_string()];
        let scope = page::scope("messages", &caller.user_id, &parameters);
        let position: Option<Seq> = page::open::<8>(&self.sealer, &scope, &request.page_token)?.map(u64::from_be_bytes);
        let (owner, limit) = (&caller.user_id, size as usize);
        let page = match order {
            v1::PageOrder::Unspecified => {
                self.sessions.messages_before(owner, id, position, request.after_seq, limit).await?
            }
            v1::PageOrder::OldestFirst => {
                self.sessions.messages_after(owner, id, position.unwrap_or(request.after_seq), limit).await?
            }
        };
        Ok(Response::new(v1::ListMessagesResponse {
            messages: page.messages,
            next_page_token: page.next.map(|seq| self.sealer.seal(&scope, &seq.to_be_bytes())).unwrap_or_default(),
            page_size: i32::try_from(size).unwrap_or(i32::MAX),
            head: page.head,
        }))
    }

    async fn end_session(&self, request: Request<v1::EndSessionRequest>) -> Answer<v1::EndSessionResponse> {
        let caller = self.caller(request.metadata()).await?;
        let id = convert::session_id("session_id", &request.into_inner().session_id)?;
        let session = self.sessions.end(&caller, id).await?;
        Ok(Response::new(v1::EndSessionResponse { session: Some(session) }))
    }

    async fn update_session(&self, request: Request<v1::UpdateSessionRequest>) -> Answer<v1::UpdateSessionResponse> {
        let caller = self.caller(request.metadata()).await?;
        let v1::UpdateSessionRequest { session_id, name } = request.into_inner();
        let id = convert::session_id("session_id", &session_id)?;
        // Ahead of the name, so that foreign sessions and unknown ones are told from nothing.
        self.sessions.owned(&caller.user_id, id).await?;
        let session = self.sessions.rename(&caller.user_id, id, convert::name("name", name)?).await?;
        Ok(Response::new(v1::UpdateSessionResponse { session: Some(session) }))
    }

    async fn reopen_session(&self, request: Request<v1::ReopenSessionRequest>) -> Answer<v1::ReopenSessionResponse> {
        let caller = self.caller(request.metadata()).await?;
        let id = convert::session_id("session_id", &request.into_inner().session_id)?;
        let session = self.sessions.reopen(&caller, id).await?;
        Ok(Response::new(v1::ReopenSessionResponse { session: Some(session) }))
    }

    async fn delete_session(&self, request: Request<v1::DeleteSessionRequest>) -> Answer<v1::DeleteSessionResponse> {
        let caller = self.caller(request.metadata()).await?;
        let id = convert::session_id("session_id", &request.into_inner().session_id)?;
        self.sessions.erase(&caller, id).await?;
        Ok(Response::new(v1::DeleteSessionResponse {}))
    }

    async fn create_share(&self, request: Request<v1::CreateShareRequest>) -> Answer<v1::CreateShareResponse> {
        let caller = self.caller(request.metadata()).await?;
        Ok(Response::new(shares::create(self, &caller, request.into_inner()).await?))
    }

    async fn list_shares(&self, request: Request<v1::ListSharesRequest>) -> Answer<v1::ListSharesResponse> {
        let caller = self.caller(request.metadata()).await?;
        Ok(Response::new(shares::list(self, &caller, request.into_inner()).await?))
    }

    async fn revoke_share(&self, request: Request<v1::RevokeShareRequest>) -> Answer<v1::RevokeShareResponse> {
        let caller = self.caller(request.metadata()).await?;
        Ok(Response::new(shares::revoke(self, &caller, request.into_inner()).await?))
    }

    async fn get_shared_session(
        &self,
        request: Request<v1::GetSharedSessionRequest>,
    ) -> Answer<v1::GetSharedSessionResponse> {
        // Whoever has nothing but the link has its secret for a token.
        let bears_secret = auth::bears(request.metadata(), &request.get_ref().secret);
        let _held = if bears_secret { None } else { Some(self.identity(request.metadata()).await?) };
        Ok(Response::new(shares::shown(self, request.into_inner()).await?))
    }

    async fn upload_file(&self, request: Request<Streaming<v1::UploadFileRequest>>) -> Answer<v1::UploadFileResponse> {
        self.not_yet(request.metadata()).await
    }

    async fn download_file(&self, request: Request<v1::DownloadFileRequest>) -> Answer<Self::DownloadFileStream> {
        self.not_yet(request.metadata()).await
    }
}

fn session_position(bytes: [u8; 24]) -> (Timestamp, SessionId) {
    let (mut millis, mut id) = ([0; 8], [0; 16]);
    millis.copy_from_slice(&bytes[..8]);
    id.copy_from_slice(&bytes[8..]);
    (Timestamp::from_millis(i64::from_be_bytes(millis)), SessionId::from_bytes(id))
}

/// Counts a stream out, a panicking one too.
struct Left(prometheus_client::metrics::gauge::Gauge);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.dec();
    }
}

//! `ChatAdmin`: the calls of the team. Each is: the gate, convert, the record of what is about to be done, call, convert. Those
//! that are not built yet are checked for their roles and refused.

mod filter;
mod gate;

use std::{pin::Pin, sync::Arc, time::Duration};

use chatbox_proto::{
    ids::SessionId,
    status::Failure,
    token::Role,
    v1::{self, admin::chat_admin_server::ChatAdmin},
};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use self::gate::Admin;
pub(super) use self::gate::{CallRate, Gate};
use super::{
    auth, convert,
    limits::PlacesByUser,
    page::{self, PageSizes},
};
use crate::{
    domain::{
        entry::{Sender, SenderRole},
        handoff::Reach,
        time::Timestamp,
    },
    seal::TokenSealer,
    session::{
        Act, Sessions,
        audit::Record,
        event,
        rotation::{Rotation, RotationProgress},
        watch::Watched,
    },
};

/// Progress that waits for a slow reader; newer figures replace nothing and are left out then.
const PROGRESS_QUEUE: usize = 16;

/// What waits for a slow watcher.
const WATCH_QUEUE: usize = 64;

/// Bytes of a user's id.
const MAX_USER_ID: usize = 255;

/// The service. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct AdminService {
    pub(super) gate: Gate,
    pub(super) sessions: Sessions,
    pub(super) rotation: Rotation,
    pub(super) sealer: Arc<TokenSealer>,
    pub(super) pages: PageSizes,
    pub(super) streams: PlacesByUser,
    pub(super) heartbeat: Duration,
}

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

impl AdminService {
    async fn not_yet<T>(&self, metadata: &MetadataMap) -> Answer<T> {
        self.gate.admin(metadata).await?;
        Err(Failure::unimplemented().into())
    }

    /// A call that changes one session.
    async fn act(&self, admin: &Admin, action: &'static str, call: Call<'_>, act: Act) -> Result<v1::Session, Failure> {
        let id = convert::session_id("session_id", call.session_id)?;
        gate::request_id(call.request_id)?;
        self.gate.record(admin, action, Some(id), call.reason).await?;
        self.sessions.act(&admin.sender, id, act, call.request_id).await
    }

    /// The rotation runs as long as its stream is read: a caller that goes away stops it, and may begin again.
    async fn rotate(&self, request: Request<v1::RotateKeysRequest>) -> Answer<EventStream<v1::RotateKeysResponse>> {
        let admin = self.gate.admin(request.metadata()).await?;
        auth::operator(&admin.identity)?;
        let turn = self.rotation.claim()?;
        self.gate.record(&admin, "RotateKeys", None, &request.into_inner().reason).await?;
        tracing::info!(actor = admin.identity.user_id, "rotating data keys");
        let (progress, seen) = mpsc::channel(PROGRESS_QUEUE);
        let rotation = self.rotation.clone();
        let work = async move {
            let _turn = turn;
            let result = rotation.run(&progress).await;
            // By the same way as the figures before it: the last word comes last.
            let _ = progress.send(result).await;
        };
        let seen = tokio_stream::wrappers::ReceiverStream::new(seen);
        let work = stream::once(work).filter_map(async |()| None);
        let events = stream::select(seen, work).map(|event| event.map(wire_progress).map_err(Status::from));
        Ok(Response::new(Box::pin(events)))
    }

    /// Runs as long as its stream is read.
    async fn watch(
        &self,
        request: Request<v1::WatchSessionsRequest>,
    ) -> Answer<EventStream<v1::WatchSessionsResponse>> {
        let admin = self.gate.admin(request.metadata()).await?;
        let v1::WatchSessionsRequest { cursor, reason } = request.into_inner();
        convert::printable("cursor", &cursor)?;
        let permit = self.streams.enter(&admin.identity.user_id)?;
        self.gate.record(&admin, "WatchSessions", None, &reason).await?;
        let (watcher, seen) = mpsc::channel(WATCH_QUEUE);
        let (sessions, heartbeat) = (self.sessions.clone(), self.heartbeat);
        let work = async move {
            let _permit = permit;
            sessions.watch(heartbeat, watcher).await;
        };
        let seen = tokio_stream::wrappers::ReceiverStream::new(seen);
        let work = stream::once(work).filter_map(async |()| None);
        let events = stream::select(seen, work).map(|event| event.map(wire_watched).map_err(Status::from));
        Ok(Response::new(Box::pin(events)))
    }
}

/// What the calls that change a session have in common.
struct Call<'a> {
    session_id: &'a str,
    request_id: &'a str,
    reason: &'a str,
}

/// Those who run the installation may end anybody's hold, the others their own.
fn reach(admin: &Admin) -> Reach {
    if admin.identity.roles.contains_any(&[Role::Admin]) { Reach::Any } else { Reach::Own }
}

fn wire_progress(now: RotationProgress) -> v1::RotateKeysResponse {
    v1::RotateKeysResponse { rewrapped: now.rewrapped, total: now.total, complete: now.complete }
}

fn wire_watched(watched: Watched) -> v1::WatchSessionsResponse {
    use v1::watch_sessions_response as wire;
    let now = Timestamp::now();
    let event = match watched {
        Watched::Session(session) => wire::Event::Session(*session),
        Watched::CaughtUp => wire::Event::CaughtUp(wire::CaughtUp {}),
        Watched::Heartbeat => wire::Event::Heartbeat(wire::Heartbeat { server_time: Some(event::wire_time(now)) }),
    };
    v1::WatchSessionsResponse { cursor: now.millis().to_string(), event: Some(event) }
}

fn wire_record(record: Record) -> v1::AuditRecord {
    v1::AuditRecord {
        seq: record.seq,
        create_time: Some(event::wire_time(record.at)),
        actor: record.actor,
        action: record.action,
        session_id: record.session_id.map(|id: SessionId| id.to_string()).unwrap_or_default(),
        user_id: record.user_id,
        reason: record.reason,
        hash: record.hash.to_vec().into(),
    }
}

macro_rules! chat_admin {
    (
        { $($built:item)* }
        not_yet { $($method:ident($request:ident) -> $response:ty;)* }
    ) => {
        #[tonic::async_trait]
        impl ChatAdmin for AdminService {
            type WatchSessionsStream = EventStream<v1::WatchSessionsResponse>;
            type ExportUserStream = EventStream<v1::ExportUserResponse>;
            type RotateKeysStream = EventStream<v1::RotateKeysResponse>;

            $($built)*

            $(async fn $method(&self, request: Request<v1::$request>) -> Result<Response<$response>, Status> {
                self.not_yet(request.metadata()).await
            })*
        }
    };
}

chat_admin! {
    {
        async fn rotate_keys(&self, request: Request<v1::RotateKeysRequest>) -> Answer<Self::RotateKeysStream> {
            self.rotate(request).await
        }

        async fn watch_sessions(&self, request: Request<v1::WatchSessionsRequest>) -> Answer<Self::WatchSessionsStream> {
            self.watch(request).await
        }

        async fn get_session(
            &self,
            request: Request<v1::ChatAdminGetSessionRequest>,
        ) -> Answer<v1::ChatAdminGetSessionResponse> {
            let admin = self.gate.admin(request.metadata()).await?;
            let request = request.into_inner();
            let id = convert::session_id("session_id", &request.session_id)?;
            let size = self.pages.size(request.page_size)?;
            let scope = page::scope("admin messages", &admin.identity.user_id, &[&request.session_id]);
            let before = page::open::<8>(&self.sealer, &scope, &request.page_token)?.map(u64::from_be_bytes);
            self.gate.record(&admin, "GetSession", Some(id), &request.reason).await?;
            let session = self.sessions.inspect(id).await?;
            let page = self.sessions.inspect_messages(id, before, size as usize).await?;
            Ok(Response::new(v1::ChatAdminGetSessionResponse {
                session: Some(session),
                messages: page.messages,
                next_page_token: page.next.map(|seq| self.sealer.seal(&scope, &seq.to_be_bytes())).unwrap_or_default(),
            }))
        }

        async fn take_over(&self, request: Request<v1::TakeOverRequest>) -> Answer<v1::TakeOverResponse> {
            let admin = self.gate.admin(request.metadata()).await?;
            let v1::TakeOverRequest { session_id, request_id, reason } = request.into_inner();
            let call = Call { session_id: &session_id, request_id: &request_id, reason: &reason };
            let session = self.act(&admin, "TakeOver", call, Act::TakeOver).await?;
            Ok(Response::new(v1::TakeOverResponse { session: Some(session) }))
        }

        async fn release(&self, request: Request<v1::ReleaseRequest>) -> Answer<v1::ReleaseResponse> {
            let admin = self.gate.admin(request.metadata()).await?;
            let v1::ReleaseRequest { session_id, request_id, reason } = request.into_inner();
            let call = Call { session_id: &session_id, request_id: &request_id, reason: &reason };
            let session = self.act(&admin, "Release", call, Act::Release(reach(&admin))).await?;
            Ok(Response::new(v1::ReleaseResponse { session: Some(session) }))
        }

        async fn reassign(&self, request: Request<v1::ReassignRequest>) -> Answer<v1::ReassignResponse> {
            let admin = self.gate.admin(request.metadata()).await?;
            let v1::ReassignRequest { session_id, admin_id, request_id, reason } = request.into_inner();
            if admin_id.is_empty() || admin_id.len() > MAX_USER_ID {
                return Err(Failure::invalid("admin_id", "1 to 255 bytes").into());
            }
            let to = Sender { role: SenderRole::Admin, user_id: admin_id, display_name: String::new() };
            let call = Call { session_id: &session_id, request_id: &request_id, reason: &reason };
            let session = self.act(&admin, "Reassign", call, Act::Reassign(to, reach(&admin))).await?;
            Ok(Response::new(v1::ReassignResponse { session: Some(session) }))
        }

        async fn end_session(
            &self,
            request: Request<v1::ChatAdminEndSessionRequest>,
        ) -> Answer<v1::ChatAdminEndSessionResponse> {
            let admin = self.gate.admin(request.metadata()).await?;
            let v1::ChatAdminEndSessionRequest { session_id, request_id, reason } = request.into_inner();
            let call = Call { session_id: &session_id, request_id: &request_id, reason: &reason };
            let session = self.act(&admin, "EndSession", call, Act::End).await?;
            Ok(Response::new(v1::ChatAdminEndSessionResponse { session: Some(session) }))
        }

        async fn list_audit(&self, request: Request<v1::ListAuditRequest>) -> Answer<v1::ListAuditResponse> {
            let admin = self.gate.admin(request.metadata()).await?;
            let request = request.into_inner();
            let size = self.pages.size(request.page_size)?;
            let mut query = filter::audit(&request.filter)?;
            let scope = page::scope("audit", &admin.identity.user_id, &[&request.filter]);
            query.before = page::open::<8>(&self.sealer, &scope, &request.page_token)?.map(u64::from_be_bytes);
            // One more than wanted tells whether there is a next page.
            query.limit = size + 1;
            self.gate.record(&admin, "ListAudit", None, &request.reason).await?;
            let mut records = self.gate.audit.list(query).await?;
            let more = records.len() > size as usize;
            records.truncate(size as usize);
            let next = records.last().filter(|_| more).map(|record| self.sealer.seal(&scope, &record.seq.to_be_bytes()));
            Ok(Response::new(v1::ListAuditResponse {
                records: records.into_iter().map(wire_record).collect(),
                next_page_token: next.unwrap_or_default(),
            }))
        }
    }
    not_yet {
        list_sessions(ChatAdminListSessionsRequest) -> v1::ChatAdminListSessionsResponse;
        get_metrics(GetMetricsRequest) -> v1::GetMetricsResponse;
        export_user(ExportUserRequest) -> Self::ExportUserStream;
        erase_user(EraseUserRequest) -> v1::EraseUserResponse;
        get_config(GetConfigRequest) -> v1::GetConfigResponse;
        set_log_level(SetLogLevelRequest) -> v1::SetLogLevelResponse;
    }
}

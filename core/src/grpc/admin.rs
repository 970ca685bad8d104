//! `ChatAdmin`: the calls of the team. Those that are not built yet are checked for their roles and refused.

use std::pin::Pin;

use chatbox_proto::{
    status::Failure,
    v1::{self, admin::chat_admin_server::ChatAdmin},
};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::auth::{self, Authenticator};
use crate::session::rotation::{Rotation, RotationProgress};

/// Bytes of the reason that an admin gives.
const MAX_REASON: usize = 500;

/// Progress that waits for a slow reader; newer figures replace nothing and are left out then.
const PROGRESS_QUEUE: usize = 16;

/// The service. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct AdminService {
    pub(super) authenticator: Authenticator,
    pub(super) rotation: Rotation,
}

impl AdminService {
    async fn not_yet<T>(&self, metadata: &MetadataMap) -> Result<Response<T>, Status> {
        auth::admin(&self.authenticator.caller(metadata).await?)?;
        Err(Failure::unimplemented().into())
    }
}

impl AdminService {
    /// The rotation runs as long as its stream is read: a caller that goes away stops it, and may begin again.
    async fn rotate(
        &self,
        request: Request<v1::RotateKeysRequest>,
    ) -> Result<Response<EventStream<v1::RotateKeysResponse>>, Status> {
        let caller = self.authenticator.caller(request.metadata()).await?;
        auth::operator(&caller)?;
        let reason = request.into_inner().reason;
        if reason.len() > MAX_REASON {
            return Err(Failure::invalid("reason", "at most 500 bytes").into());
        }
        let turn = self.rotation.claim()?;
        tracing::info!(actor = caller.user_id, reason, "rotating data keys");
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
}

fn wire_progress(now: RotationProgress) -> v1::RotateKeysResponse {
    v1::RotateKeysResponse { rewrapped: now.rewrapped, total: now.total, complete: now.complete }
}

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

macro_rules! not_yet {
    ($($method:ident($request:ident) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl ChatAdmin for AdminService {
            type WatchSessionsStream = EventStream<v1::WatchSessionsResponse>;
            type ExportUserStream = EventStream<v1::ExportUserResponse>;
            type RotateKeysStream = EventStream<v1::RotateKeysResponse>;

            async fn rotate_keys(
                &self,
                request: Request<v1::RotateKeysRequest>,
            ) -> Result<Response<Self::RotateKeysStream>, Status> {
                self.rotate(request).await
            }

            $(async fn $method(&self, request: Request<v1::$request>) -> Result<Response<$response>, Status> {
                self.not_yet(request.metadata()).await
            })*
        }
    };
}

not_yet! {
    list_sessions(ChatAdminListSessionsRequest) -> v1::ChatAdminListSessionsResponse;
    get_session(ChatAdminGetSessionRequest) -> v1::ChatAdminGetSessionResponse;
    watch_sessions(WatchSessionsRequest) -> Self::WatchSessionsStream;
    take_over(TakeOverRequest) -> v1::TakeOverResponse;
    release(ReleaseRequest) -> v1::ReleaseResponse;
    reassign(ReassignRequest) -> v1::ReassignResponse;
    end_session(ChatAdminEndSessionRequest) -> v1::ChatAdminEndSessionResponse;
    get_metrics(GetMetricsRequest) -> v1::GetMetricsResponse;
    list_audit(ListAuditRequest) -> v1::ListAuditResponse;
    export_user(ExportUserRequest) -> Self::ExportUserStream;
    erase_user(EraseUserRequest) -> v1::EraseUserResponse;
    get_config(GetConfigRequest) -> v1::GetConfigResponse;
    set_log_level(SetLogLevelRequest) -> v1::SetLogLevelResponse;
}

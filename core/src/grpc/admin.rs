//! `ChatAdmin`: declared, checked for its roles, and built later.

use std::pin::Pin;

use chatbox_proto::{
    status::Failure,
    v1::{self, admin::chat_admin_server::ChatAdmin},
};
use futures_util::Stream;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::auth::{self, Authenticator};

/// The service. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct AdminService {
    pub(super) authenticator: Authenticator,
}

impl AdminService {
    async fn not_yet<T>(&self, metadata: &MetadataMap) -> Result<Response<T>, Status> {
        auth::admin(&self.authenticator.caller(metadata).await?)?;
        Err(Failure::unimplemented().into())
    }
}

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

macro_rules! not_yet {
    ($($method:ident($request:ident) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl ChatAdmin for AdminService {
            type WatchSessionsStream = EventStream<v1::WatchSessionsResponse>;
            type ExportUserStream = EventStream<v1::ExportUserResponse>;
            type RotateKeysStream = EventStream<v1::RotateKeysResponse>;

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
    rotate_keys(RotateKeysRequest) -> Self::RotateKeysStream;
    get_config(GetConfigRequest) -> v1::GetConfigResponse;
    set_log_level(SetLogLevelRequest) -> v1::SetLogLevelResponse;
}

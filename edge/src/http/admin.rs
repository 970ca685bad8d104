//! The calls of the team. Each has a reason, which core keeps in the audit trail before it acts.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use chatbox_proto::v1::{
    ChatAdminEndSessionRequest, ChatAdminEndSessionResponse, ChatAdminGetSessionRequest, ChatAdminGetSessionResponse,
    ListAuditRequest, ListAuditResponse, ReassignRequest, ReassignResponse, ReleaseRequest, ReleaseResponse,
    TakeOverRequest, TakeOverResponse,
};

use super::{
    call::{self, From},
    error::HttpFailure,
};
use crate::{core_api::Call, state::Edge};

/// `GET /api/v1/admin/sessions/{session_id}`
pub(crate) async fn get(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "ChatAdmin/GetSession", writes: false };
    call::forward_team::<ChatAdminGetSessionRequest, ChatAdminGetSessionResponse>(&edge, CALL, From::Query, request)
        .await
}

/// `POST /api/v1/admin/sessions/{session_id}/takeover`
pub(crate) async fn take_over(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "ChatAdmin/TakeOver", writes: true };
    call::forward_team::<TakeOverRequest, TakeOverResponse>(&edge, CALL, From::Body, request).await
}

/// `POST /api/v1/admin/sessions/{session_id}/release`
pub(crate) async fn release(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "ChatAdmin/Release", writes: true };
    call::forward_team::<ReleaseRequest, ReleaseResponse>(&edge, CALL, From::Body, request).await
}

/// `POST /api/v1/admin/sessions/{session_id}/reassign`
pub(crate) async fn reassign(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "ChatAdmin/Reassign", writes: true };
    call::forward_team::<ReassignRequest, ReassignResponse>(&edge, CALL, From::Body, request).await
}

/// `POST /api/v1/admin/sessions/{session_id}/end`
pub(crate) async fn end(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "ChatAdmin/EndSession", writes: true };
    call::forward_team::<ChatAdminEndSessionRequest, ChatAdminEndSessionResponse>(&edge, CALL, From::Body, request)
        .await
}

/// `GET /api/v1/admin/audit`
pub(crate) async fn audit(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "ChatAdmin/ListAudit", writes: false };
    call::forward_team::<ListAuditRequest, ListAuditResponse>(&edge, CALL, From::Query, request).await
}

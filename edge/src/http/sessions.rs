//! The sessions of a user.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use chatbox_proto::v1::{
    CreateSessionRequest, CreateSessionResponse, DeleteSessionRequest, DeleteSessionResponse, EndSessionRequest,
    EndSessionResponse, GetSessionRequest, GetSessionResponse, ListSessionsRequest, ListSessionsResponse,
    ReopenSessionRequest, ReopenSessionResponse, UpdateSessionRequest, UpdateSessionResponse,
};

use super::{
    call::{self, From},
    error::HttpFailure,
};
use crate::{core_api::Call, state::Edge};

/// `GET /api/v1/sessions`
pub(crate) async fn list(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "ListSessions", writes: false };
    call::forward::<ListSessionsRequest, ListSessionsResponse>(&edge, CALL, From::Query, request).await
}

/// `POST /api/v1/sessions`
pub(crate) async fn create(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "CreateSession", writes: true };
    call::forward::<CreateSessionRequest, CreateSessionResponse>(&edge, CALL, From::Body, request).await
}

/// `GET /api/v1/sessions/{session_id}`
pub(crate) async fn get(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "GetSession", writes: false };
    call::forward::<GetSessionRequest, GetSessionResponse>(&edge, CALL, From::Query, request).await
}

/// `PATCH /api/v1/sessions/{session_id}`
pub(crate) async fn update(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "UpdateSession", writes: true };
    call::forward::<UpdateSessionRequest, UpdateSessionResponse>(&edge, CALL, From::Body, request).await
}

/// `POST /api/v1/sessions/{session_id}/end`
pub(crate) async fn end(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "EndSession", writes: true };
    call::forward::<EndSessionRequest, EndSessionResponse>(&edge, CALL, From::Body, request).await
}

/// `POST /api/v1/sessions/{session_id}/reopen`
pub(crate) async fn reopen(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "ReopenSession", writes: true };
    call::forward::<ReopenSessionRequest, ReopenSessionResponse>(&edge, CALL, From::Body, request).await
}

/// `DELETE /api/v1/sessions/{session_id}`
pub(crate) async fn delete(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "DeleteSession", writes: true };
    call::forward::<DeleteSessionRequest, DeleteSessionResponse>(&edge, CALL, From::Query, request).await
}

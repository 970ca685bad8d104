//! The messages of a session.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use chatbox_proto::v1::{ListMessagesRequest, ListMessagesResponse};

use super::{
    call::{self, From},
    error::HttpFailure,
};
use crate::{core_api::Call, state::Edge};

/// `GET /api/v1/sessions/{session_id}/messages`
pub(crate) async fn list(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "ListMessages", writes: false };
    call::forward::<ListMessagesRequest, ListMessagesResponse>(&edge, CALL, From::Query, request).await
}

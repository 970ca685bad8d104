//! The models that may be chosen.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use chatbox_proto::v1::{ListModelsRequest, ListModelsResponse};

use super::{
    call::{self, From},
    error::HttpFailure,
};
use crate::{core_api::Call, state::Edge};

/// `GET /api/v1/models`
pub(crate) async fn list(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "ListModels", writes: false };
    call::forward::<ListModelsRequest, ListModelsResponse>(&edge, CALL, From::Query, request).await
}

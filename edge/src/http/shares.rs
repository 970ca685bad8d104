//! Share links: for the owners of sessions, and what a link shows to whoever has it.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    response::Response,
};
use chatbox_proto::{
    error_code::ErrorCode,
    status::Failure,
    v1::{
        CreateShareRequest, CreateShareResponse, GetSharedSessionRequest, GetSharedSessionResponse, ListSharesRequest,
        ListSharesResponse, RevokeShareRequest, RevokeShareResponse,
    },
};
use tokio::time::Instant;

use super::{
    call::{self, From},
    error::HttpFailure,
};
use crate::{
    auth,
    core_api::Call,
    state::{Edge, Peer},
};

/// Bytes of a secret at most; ours have 43.
const MAX_SECRET: usize = 128;

/// `POST /api/v1/sessions/{session_id}/shares`
pub(crate) async fn create(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "CreateShare", writes: true };
    call::forward::<CreateShareRequest, CreateShareResponse>(&edge, CALL, From::Body, request).await
}

/// `GET /api/v1/sessions/{session_id}/shares`
pub(crate) async fn list(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "ListShares", writes: false };
    call::forward::<ListSharesRequest, ListSharesResponse>(&edge, CALL, From::Query, request).await
}

/// `POST /api/v1/sessions/{session_id}/shares/{share_id}/revoke`
pub(crate) async fn revoke(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "RevokeShare", writes: true };
    call::forward::<RevokeShareRequest, RevokeShareResponse>(&edge, CALL, From::Body, request).await
}

/// `GET /api/v1/shared/{share_id}` with the secret of the link as the bearer token: nobody has to be known to see what was
/// shared. So many per second and address.
pub(crate) async fn shown(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, HttpFailure> {
    const CALL: Call = Call { method: "GetSharedSession", writes: false };
    let headers = request.headers();
    let peer = request.extensions().get::<Peer>().copied().ok_or_else(Failure::internal)?;
    let client_ip = edge.client_ip(peer, headers);
    if let Err(wait) = edge.shared.take(client_ip, Instant::now()) {
        let failure =
            Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_REQUESTS", "too many requests; wait a little");
        return Err(failure.retry_after(wait.max(Duration::from_millis(1))).into());
    }
    let secret = auth::bearer(headers).map_err(|error| auth::refused(error, client_ip))?;
    let secret = secret.filter(|secret| secret.len() <= MAX_SECRET).ok_or_else(Failure::unauthenticated)?.to_owned();
    let caller = auth::caller(&secret, client_ip, headers);
    call::forward_with::<GetSharedSessionRequest, GetSharedSessionResponse>(&edge, CALL, &caller, "secret", request)
        .await
}

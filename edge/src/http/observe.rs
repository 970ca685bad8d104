//! What happens around every request: panics become a bare 500, requests are counted, tokens in the query are refused.

use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use chatbox_proto::{error_code::ErrorCode, status::Failure};
use futures_util::FutureExt as _;
use http::Method;

use super::error::HttpFailure;
use crate::{metrics::RequestLabels, state::Edge};

/// Names under which people put tokens into URLs. URLs end up in logs, histories and Referer headers.
const TOKEN_PARAMETERS: [&str; 4] = ["token", "access_token", "jwt", "authorization"];

/// Refuses a request with a token in its query, whatever it asks for.
pub(crate) async fn refuse_query_tokens(request: Request, next: Next) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let names = query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
    if names.into_iter().any(|name| TOKEN_PARAMETERS.iter().any(|known| name.eq_ignore_ascii_case(known))) {
        let failure = Failure::new(
            ErrorCode::Unauthenticated,
            "TOKEN_IN_QUERY",
            "tokens are not accepted in the URL: send an Authorization header, the subprotocol bearer.<token>, or open.token",
        );
        return HttpFailure::from(failure).into_response();
    }
    next.run(request).await
}

/// Ends a panic with a 500 that says nothing but under which id the log has it.
pub(crate) async fn catch_panics(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            edge.metrics.panics.inc();
            let id = format!("{:032x}", rand::random::<u128>());
            tracing::error!(correlation.id = id, "a request handler panicked");
            HttpFailure::from(Failure::internal()).correlated(&id)
        }
    }
}

/// Counts by route and status.
pub(crate) async fn count(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let method = method_name(request.method());
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    let route = route.unwrap_or_else(|| "none".to_owned());
    let status = u32::from(response.status().as_u16());
    tracing::debug!(http.route = route, http.method = method, http.status = status, "request");
    edge.metrics.requests.get_or_create(&RequestLabels { route, method, status }).inc();
    response
}

/// A client may invent methods: each would become a series of its own.
fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

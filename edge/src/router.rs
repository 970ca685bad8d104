//! The routes, grouped by who calls them. Everything is under the path prefix.

use std::sync::Arc;

use axum::{
    Router, middleware,
    routing::{get, post},
};

use crate::{
    headers,
    http::{admin, error, health, messages, models, observe, pages, sessions, shares},
    state::Edge,
    ws,
};

/// The public listener.
pub(crate) fn public(edge: &Arc<Edge>) -> Router {
    let api = Router::new()
        .route("/models", get(models::list))
        .route("/sessions", get(sessions::list).post(sessions::create))
        .route("/sessions/{session_id}", get(sessions::get).patch(sessions::update).delete(sessions::delete))
        .route("/sessions/{session_id}/end", post(sessions::end))
        .route("/sessions/{session_id}/reopen", post(sessions::reopen))
        .route("/sessions/{session_id}/messages", get(messages::list))
        .route("/sessions/{session_id}/shares", get(shares::list).post(shares::create))
        .route("/sessions/{session_id}/shares/{share_id}/revoke", post(shares::revoke))
        .route("/shared/{share_id}", get(shares::shown))
        // People of the team.
        .route("/admin/sessions/{session_id}", get(admin::get))
        .route("/admin/sessions/{session_id}/takeover", post(admin::take_over))
        .route("/admin/sessions/{session_id}/release", post(admin::release))
        .route("/admin/sessions/{session_id}/reassign", post(admin::reassign))
        .route("/admin/sessions/{session_id}/end", post(admin::end))
        .route("/admin/audit", get(admin::audit))
        .fallback(error::not_found);

    let all = Router::new()
        .nest("/api/v1", api)
        // Browsers and native clients.
        .route("/ws", get(ws::upgrade::upgrade))
        // Load balancers and container platforms.
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        // People.
        .route("/{*path}", get(pages::file));

    let prefix = edge.config.path_prefix.as_str();
    let routed = if prefix.is_empty() {
        all.route("/", get(pages::index))
    } else {
        // axum does not nest the bare slash: it is what people open, and where the path without it leads to.
        Router::new()
            .route(prefix, get(pages::redirect))
            .route(&format!("{prefix}/"), get(pages::index))
            .nest(prefix, all)
    };

    routed
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        // The last one is the outermost: headers are on whatever happens inside, a panic becomes a bare 500 inside them.
        .layer(middleware::from_fn(observe::refuse_query_tokens))
        .layer(middleware::from_fn_with_state(Arc::clone(edge), observe::catch_panics))
        .layer(middleware::from_fn_with_state(Arc::clone(edge), observe::count))
        .layer(middleware::from_fn_with_state(Arc::clone(edge), headers::add))
        .with_state(Arc::clone(edge))
}

/// The listener for operators: never reachable from outside.
pub(crate) fn operators(edge: &Arc<Edge>) -> Router {
    Router::new()
        .route("/metrics", get(health::metrics))
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .fallback(error::not_found)
        .layer(middleware::from_fn_with_state(Arc::clone(edge), headers::add))
        .with_state(Arc::clone(edge))
}

//! Whether the process lives, whether it can serve, and its figures.

use std::sync::Arc;

use axum::{extract::State, response::IntoResponse};
use http::header;

use super::error::HttpFailure;
use crate::state::Edge;

const JSON: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];

/// The process answers: nothing else is asked of anybody.
pub(crate) async fn live() -> impl IntoResponse {
    (JSON, r#"{"status":"live"}"#)
}

/// The edge can serve: it is not leaving and core is ready.
pub(crate) async fn ready(State(edge): State<Arc<Edge>>) -> Result<impl IntoResponse, HttpFailure> {
    edge.ready().await?;
    Ok((JSON, r#"{"status":"ready"}"#))
}

/// Figures for Prometheus.
pub(crate) async fn metrics(State(edge): State<Arc<Edge>>) -> impl IntoResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], edge.metrics.encode())
}

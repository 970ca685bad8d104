//! The web pages, built into the binary. Without them the product runs and says so.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::error;
use crate::{headers, state::Edge};

/// One file of the pages.
pub(crate) struct Page {
    path: &'static str,
    content_type: &'static str,
    etag: &'static str,
    /// Its name changes with its content: it may be kept forever.
    immutable: bool,
    content: &'static [u8],
}

// `PAGES: &[Page]`, made by the build script from `web/dist`.
include!(concat!(env!("OUT_DIR"), "/pages.rs"));

const INDEX: &str = "index.html";

/// Whether the web page is part of this build.
#[must_use]
pub fn is_built() -> bool {
    find(INDEX).is_some()
}

const NOT_BUILT: Page = Page {
    path: INDEX,
    content_type: "text/html; charset=utf-8",
    etag: "\"not-built\"",
    immutable: false,
    content: b"<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Chatbox</title></head><body>\n\
        <h1>Chatbox is running</h1>\n<p>The web page is not part of this build. To add it, install Node.js and run \
        <code>make web</code>, then build again.</p>\n<p>The API works without it: WebSocket at <code>ws</code>, HTTP \
        at <code>api/v1</code>, and <code>chatbox chat</code> in the terminal.</p>\n</body></html>\n",
};

/// `GET {prefix}/`
pub(crate) async fn index(State(edge): State<Arc<Edge>>, headers: HeaderMap) -> Response {
    serve(&edge, find(INDEX).unwrap_or(&NOT_BUILT), &headers)
}

/// `GET {prefix}/{*path}`
pub(crate) async fn file(State(edge): State<Arc<Edge>>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    match find(&path) {
        Some(page) => serve(&edge, page, &headers),
        None => error::not_found().await.into_response(),
    }
}

/// `GET {prefix}`: relative links of the page need the slash.
pub(crate) async fn redirect(State(edge): State<Arc<Edge>>) -> Response {
    let target = HeaderValue::try_from(format!("{}/", edge.config.path_prefix));
    let target = target.unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, target)]).into_response()
}

fn find(path: &str) -> Option<&'static Page> {
    PAGES.iter().find(|page| page.path == path)
}

fn serve(edge: &Edge, page: &'static Page, request: &HeaderMap) -> Response {
    let caching = if page.immutable { "public, max-age=31536000, immutable" } else { "no-cache" };
    let fixed = [
        (header::CACHE_CONTROL, HeaderValue::from_static(caching)),
        (header::ETAG, HeaderValue::from_static(page.etag)),
        (header::CONTENT_SECURITY_POLICY, headers::page_policy(&edge.config)),
    ];
    if known(request, page.etag) {
        return (StatusCode::NOT_MODIFIED, fixed).into_response();
    }
    (fixed, [(header::CONTENT_TYPE, HeaderValue::from_static(page.content_type))], page.content).into_response()
}

/// RFC 9110 section 13.1.2, with the weak comparison it asks for.
fn known(request: &HeaderMap, etag: &str) -> bool {
    let values = request.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == etag || tag == "*")
}

//! What all channels over HTTP share: a client that goes nowhere else, and what an answer means.

use std::{sync::Arc, time::Duration};

use reqwest::{Client, RequestBuilder, Url, redirect};

use super::{DeliveryError, address::PublicResolver};

/// Connection and answer together.
const TIMEOUT: Duration = Duration::from_secs(10);

/// No redirects (they could lead anywhere), no proxy from the environment, and unless it is allowed no address that is not
/// public.
pub(super) fn client(url: &Url, allow_private: bool) -> Result<Client, reqwest::Error> {
    let mut builder = Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .timeout(TIMEOUT)
        .pool_max_idle_per_host(0)
        .user_agent(concat!("chatbox/", env!("CARGO_PKG_VERSION")));
    if !allow_private {
        builder = builder.dns_resolver(Arc::new(PublicResolver)).https_only(true);
    }
    // A plain URL must work on a machine without certificates, so theirs are not loaded for it.
    if url.scheme() == "http" {
        builder = builder.tls_certs_only([]);
    }
    builder.build()
}

/// What a transport failure may be called: reqwest's own text holds the URL.
fn failure(error: &reqwest::Error) -> DeliveryError {
    let what = if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection, or the address is not allowed"
    } else {
        "the connection broke"
    };
    DeliveryError::temporary(what)
}

/// Sends a message. The answer's body is not read: what counts is the status.
pub(super) async fn send(request: RequestBuilder) -> Result<(), DeliveryError> {
    let answer = request.send().await.map_err(|error| failure(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    Err(DeliveryError::of_status(status.as_u16(), retry_after(answer.headers())))
}

/// How long the other side asks to be left alone: seconds or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    let value = headers.get(reqwest::header::RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(std::time::SystemTime::now()).ok(),
    }
}

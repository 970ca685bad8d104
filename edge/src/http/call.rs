//! Read the request, make the call, write the JSON: the same for every route.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequestParts as _, Query, RawPathParams, Request},
    response::{IntoResponse as _, Response},
};
use chatbox_proto::{
    error_code::ErrorCode,
    json,
    status::Failure,
    token::{Identity, Role},
};
use http::{HeaderMap, StatusCode, Uri, header, request::Parts};
use http_body_util::{BodyExt as _, Limited};
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::error::HttpFailure;
use crate::{
    auth,
    core_api::{Call, Caller},
    state::{Edge, Peer},
};

/// Where the fields of a request are, beside those in the path.
#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    /// In the query, each as `name=value`.
    Query,
    /// In a JSON body; an empty one is an empty object.
    Body,
}

/// Time for a client to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the unary call that a route stands for.
pub(super) async fn forward<Req, Resp>(
    edge: &Arc<Edge>,
    call: Call,
    from: From,
    request: Request,
) -> Result<Response, HttpFailure>
where
    Req: Message + Default + DeserializeOwned,
    Resp: Message + Default + Serialize,
{
    let (parts, body) = request.into_parts();
    let (caller, _) = authenticate(edge, &parts).await?;
    forward_as::<Req, Resp>(edge, call, from, caller, (parts, body)).await
}

/// Like [`forward`], for people of the team: others are refused here, and would be by core.
pub(super) async fn forward_team<Req, Resp>(
    edge: &Arc<Edge>,
    call: Call,
    from: From,
    request: Request,
) -> Result<Response, HttpFailure>
where
    Req: Message + Default + DeserializeOwned,
    Resp: Message + Default + Serialize,
{
    let (parts, body) = request.into_parts();
    let (caller, identity) = authenticate(edge, &parts).await?;
    if !identity.roles.contains_any(&[Role::ChatAdmin, Role::Admin]) {
        let said = "this needs the role chat_admin or admin";
        return Err(Failure::new(ErrorCode::PermissionDenied, "PERMISSION_DENIED", said).into());
    }
    forward_as::<Req, Resp>(edge, call, from, caller, (parts, body)).await
}

async fn forward_as<Req, Resp>(
    edge: &Arc<Edge>,
    call: Call,
    from: From,
    caller: Caller,
    (mut parts, body): (Parts, Body),
) -> Result<Response, HttpFailure>
where
    Req: Message + Default + DeserializeOwned,
    Resp: Message + Default + Serialize,
{
    let mut fields = path_fields(&mut parts).await;
    match from {
        From::Query => add_query(&mut fields, &parts.uri)?,
        From::Body => add_body(&mut fields, &parts.headers, body, edge.config.limits.body_bytes.as_usize()).await?,
    }
    make::<Req, Resp>(edge, call, &caller, &fields).await
}

/// Makes a unary call whose caller is known by the one field of it that is in none of path and query.
pub(super) async fn forward_with<Req, Resp>(
    edge: &Arc<Edge>,
    call: Call,
    caller: &Caller,
    field: &'static str,
    request: Request,
) -> Result<Response, HttpFailure>
where
    Req: Message + Default + DeserializeOwned,
    Resp: Message + Default + Serialize,
{
    let (mut parts, _) = request.into_parts();
    let mut fields = path_fields(&mut parts).await;
    add(&mut fields, field.to_owned(), Value::String(caller.token.clone()))?;
    add_query(&mut fields, &parts.uri)?;
    make::<Req, Resp>(edge, call, caller, &fields).await
}

async fn make<Req, Resp>(
    edge: &Edge,
    call: Call,
    caller: &Caller,
    fields: &Map<String, Value>,
) -> Result<Response, HttpFailure>
where
    Req: Message + Default + DeserializeOwned,
    Resp: Message + Default + Serialize,
{
    let message: Req = read(fields)?;
    let answer = edge.core.call(call, caller, message.encode_to_vec().into()).await?;
    let answer = Resp::decode(answer).map_err(|error| {
        tracing::error!(rpc.method = call.method, error = %error, "core's answer does not decode");
        Failure::internal()
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json::to_vec(&answer)).into_response())
}

async fn authenticate(edge: &Edge, parts: &Parts) -> Result<(Caller, Identity), Failure> {
    let headers = &parts.headers;
    let peer = parts.extensions.get::<Peer>().copied().ok_or_else(Failure::internal)?;
    let client_ip = edge.client_ip(peer, headers);
    let token = auth::bearer(headers).map_err(|error| auth::refused(error, client_ip))?;
    let token = token.ok_or_else(Failure::unauthenticated)?;
    let identity = auth::verify(&edge.verifier, token, client_ip).await?;
    Ok((auth::caller(token, client_ip, headers), identity))
}

async fn path_fields(parts: &mut Parts) -> Map<String, Value> {
    let params = RawPathParams::from_request_parts(parts, &()).await;
    let pairs = params.iter().flat_map(|params| params.iter());
    pairs.map(|(name, value)| (name.to_owned(), Value::String(value.to_owned()))).collect()
}

fn add_query(fields: &mut Map<String, Value>, uri: &Uri) -> Result<(), Failure> {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|_| Failure::invalid("query", "must be name=value pairs in UTF-8"))?;
    pairs.0.into_iter().try_for_each(|(name, value)| add(fields, name, Value::String(value)))
}

async fn add_body(
    fields: &mut Map<String, Value>,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<(), HttpFailure> {
    let body = collect(body, limit).await?;
    if body.is_empty() {
        return Ok(());
    }
    if !is_json(headers) {
        let failure = Failure::invalid("content-type", "must be application/json");
        return Err(HttpFailure::with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE, failure));
    }
    let body: Map<String, Value> =
        serde_json::from_slice(&body).map_err(|_| Failure::invalid("body", "must be a JSON object"))?;
    Ok(body.into_iter().try_for_each(|(name, value)| add(fields, name, value))?)
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, HttpFailure> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let failure = Failure::new(
                ErrorCode::ResourceExhausted,
                "BODY_TOO_LARGE",
                format!("the body may have at most {limit} bytes"),
            );
            Err(HttpFailure::with_status(StatusCode::PAYLOAD_TOO_LARGE, failure))
        }
        Ok(Err(_)) => Err(Failure::invalid("body", "could not be read").into()),
        Err(_) => {
            let failure = Failure::new(ErrorCode::DeadlineExceeded, "BODY_TOO_SLOW", "the body took too long");
            Err(HttpFailure::with_status(StatusCode::REQUEST_TIMEOUT, failure))
        }
    }
}

/// A page of another origin can send other types without asking first (a "simple request").
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// A field may be given once, under either spelling: the path's cannot be overruled.
fn add(fields: &mut Map<String, Value>, name: String, value: Value) -> Result<(), Failure> {
    let same = |known: &String| known.replace('_', "").eq_ignore_ascii_case(&name.replace('_', ""));
    if fields.keys().any(same) {
        return Err(Failure::invalid(name, "is given twice"));
    }
    fields.insert(name, value);
    Ok(())
}

fn read<Req: DeserializeOwned>(fields: &Map<String, Value>) -> Result<Req, Failure> {
    let text = json::to_vec(fields);
    json::from_slice_strict(&text).map_err(|mut failure| {
        // Lines and columns would be those of a text that nobody wrote.
        for (field, rule) in &mut failure.violations {
            if !rule.starts_with("no such field") {
                *rule = "is not of the field's type, or out of its range".into();
            }
            failure.message = format!("{field}: {rule}").into();
        }
        failure
    })
}

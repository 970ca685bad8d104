//! One layer over everything the server answers: each failed call carries google.rpc details with exactly one `ErrorInfo`,
//! tonic's own failures included (no such method, a message that does not decode, a limit), whose text is not passed on;
//! and each call is counted by method and code. Deadlines are kept here: tonic's own, further out, end a call without
//! details.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use chatbox_proto::{
    FILE_DESCRIPTOR_SET,
    error_code::ErrorCode,
    spans::Tracer,
    status::{Failure, generic_message, generic_reason},
};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::Instrument as _;

use super::trace;
use crate::metrics::Metrics;

const GRPC_STATUS: &str = "grpc-status";
const DETAILS: &str = "grpc-status-details-bin";

/// Wraps a service with [`Details`].
#[derive(Debug, Clone)]
pub(super) struct DetailsLayer {
    pub(super) metrics: Metrics,
    pub(super) tracer: Tracer,
    /// Until the head of the answer is there: all of a unary call, the beginning of a stream.
    pub(super) call_timeout: Duration,
}

impl<S> Layer<S> for DetailsLayer {
    type Service = Details<S>;

    fn layer(&self, inner: S) -> Details<S> {
        Details { inner, metrics: self.metrics.clone(), tracer: self.tracer.clone(), call_timeout: self.call_timeout }
    }
}

/// See the module's text.
#[derive(Debug, Clone)]
pub(super) struct Details<S> {
    inner: S,
    metrics: Metrics,
    tracer: Tracer,
    call_timeout: Duration,
}

impl<S> Service<Request<Body>> for Details<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Send,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let count =
            Count { metrics: self.metrics.clone(), method: method(request.uri().path()), started: Instant::now() };
        let wanted = client_timeout(request.headers());
        // Made now and not when it is first waited for, so that it is over before tonic's own.
        let deadline = tokio::time::sleep(wanted.map_or(self.call_timeout, |wanted| wanted.min(self.call_timeout)));
        let mut traced = trace::start(&self.tracer, count.method.name, request.headers_mut());
        let span = trace::span(count.method.name, request.headers());
        let answer = self.inner.call(request).instrument(span);
        Box::pin(async move {
            let answer = tokio::select! {
                biased;
                answer = AssertUnwindSafe(answer).catch_unwind() => match answer {
                    Ok(answer) => answer?,
                    // The panic hook has logged and counted it.
                    Err(_) => Status::from(Failure::internal()).into_http(),
                },
                () = deadline => too_late().into_http(),
            };
            let (mut head, body) = answer.into_parts();
            // Of a stream, this is its opening: the rest of it may take hours.
            if head.headers.contains_key(GRPC_STATUS) {
                let code = complete(&mut head.headers);
                if code != Code::Ok {
                    traced.fail(class(code));
                }
                count.status(code);
                return Ok(Response::from_parts(head, body));
            }
            drop(traced);
            Ok(Response::from_parts(head, Body::new(Trailers { body, count: Some(count) })))
        })
    }
}

/// The header `grpc-timeout`: at most eight digits and a unit. What is not one is ignored.
pub(super) fn client_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

fn too_late() -> Status {
    let code = ErrorCode::DeadlineExceeded;
    Failure::new(code, generic_reason(code), generic_message(code)).into()
}

struct Count {
    metrics: Metrics,
    method: Method,
    started: Instant,
}

/// A method of the contract, or of a stranger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Method {
    name: &'static str,
    streams: bool,
}

impl Count {
    fn status(&self, code: Code) {
        self.metrics.grpc_request(self.method.name, class(code));
        if !self.method.streams {
            self.metrics.grpc_took(self.method.name, self.started.elapsed());
        }
    }
}

fn class(code: Code) -> &'static str {
    if code == Code::Ok { "OK" } else { generic_reason(ErrorCode::from_grpc(code)) }
}

/// Only names of the contract become label values: a stranger's path must not.
fn method(path: &str) -> Method {
    static METHODS: LazyLock<Vec<(String, bool)>> = LazyLock::new(methods);
    let known = METHODS.iter().find(|(known, _)| *known == path);
    known.map_or(Method { name: "unknown", streams: false }, |(name, streams)| Method { name, streams: *streams })
}

fn methods() -> Vec<(String, bool)> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut methods = Vec::new();
    for file in &set.file {
        for service in &file.service {
            methods.extend(service.method.iter().map(|method| {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                (path, method.client_streaming() || method.server_streaming())
            }));
        }
    }
    methods
}

/// Gives a failed status its details, unless it brought ours. Says what the status is.
fn complete(headers: &mut HeaderMap) -> Code {
    let Some(status) = Status::from_header_map(headers) else { return Code::Ok };
    let code = status.code();
    if code == Code::Ok || headers.contains_key(DETAILS) {
        return code;
    }
    let failure = if code == Code::OutOfRange {
        // tonic's word for a message above the limit. No position of ours is ever sent without details.
        Failure::new(ErrorCode::ResourceExhausted, "MESSAGE_TOO_BIG", "the message is longer than the limit")
    } else {
        Failure::from(&status)
    };
    let code = if code == Code::OutOfRange { Code::ResourceExhausted } else { code };
    let own = Status::from(failure);
    let mut replaced = HeaderMap::new();
    if own.add_header(&mut replaced).is_ok() {
        for (name, value) in replaced {
            if let Some(name) = name {
                headers.insert(name, value);
            }
        }
        // The class stays that of the status that came.
        headers.insert(GRPC_STATUS, HeaderValue::from(code as i32));
    }
    code
}

/// A response body whose trailers are completed.
struct Trailers {
    body: Body,
    count: Option<Count>,
}

impl HttpBody for Trailers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            let code = complete(trailers);
            if let Some(count) = self.count.take() {
                count.status(code);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Trailers {
    fn drop(&mut self) {
        // The client left before the end.
        if let Some(count) = self.count.take() {
            count.status(Code::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    fn headers(status: &Status) -> HeaderMap {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers
    }

    #[test]
    fn a_status_of_tonic_gets_an_error_info_and_loses_its_text() {
        let mut map = headers(&Status::unimplemented("secret internals"));
        assert_eq!(complete(&mut map), Code::Unimplemented);
        let status = Status::from_header_map(&map).unwrap();
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(!status.message().contains("secret"));
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "UNIMPLEMENTED");
    }

    #[test]
    fn a_message_above_the_limit_is_a_limit_and_no_position() {
        let mut map = headers(&Status::out_of_range("decoded message length too large: found 5242880 bytes"));
        assert_eq!(complete(&mut map), Code::ResourceExhausted);
        let status = Status::from_header_map(&map).unwrap();
        let info = status.get_error_details().error_info().unwrap().reason.clone();
        assert_eq!((status.code(), info.as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_BIG"));
    }

    #[test]
    fn a_deadline_is_read_in_every_unit_and_junk_is_none() {
        let read = |text: &str| {
            client_timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]))
        };
        for (text, millis) in
            [("2H", 7_200_000), ("1M", 60_000), ("3S", 3_000), ("4m", 4), ("5000u", 5), ("6000000n", 6)]
        {
            assert_eq!(read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for junk in ["", "1", "S", "-1S", "123456789S", "1x"] {
            assert_eq!(read(junk), None, "{junk}");
        }
        assert_eq!(client_timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn a_status_of_ours_is_left_alone() {
        let mut map = headers(&Status::from(Failure::session_not_found()));
        let before = map.clone();
        complete(&mut map);
        assert_eq!(map, before);
    }

    #[test]
    fn success_needs_no_details() {
        let mut map = headers(&Status::ok(""));
        assert_eq!(complete(&mut map), Code::Ok);
        assert!(!map.contains_key(DETAILS));
    }

    #[test]
    fn only_names_of_the_contract_become_labels() {
        let chat = "/chatbox.v1.ChatCore/Chat";
        assert_eq!(method(chat), Method { name: chat, streams: true });
        assert_eq!(method("/strangers/choice"), Method { name: "unknown", streams: false });
    }
}

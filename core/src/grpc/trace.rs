//! The span of a call: its method, and the W3C trace context that came with it, so that one id finds what the edge and core
//! have logged about one request.

use chatbox_proto::{
    spans::{Kind, Span as TracedSpan, Tracer},
    trace::{TRACEPARENT, TraceContext},
};
use http::{HeaderMap, HeaderValue};
use tracing::Span;

/// The span of a call of `method`.
pub(super) fn span(method: &'static str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!("call", rpc.method = method, trace.id = tracing::field::Empty);
    if let Some(context) = context(headers) {
        span.record("trace.id", context.trace_id_hex());
    }
    span
}

/// The span that a collector is told of. From here on the call belongs to it, if it is one.
pub(super) fn start(tracer: &Tracer, method: &'static str, headers: &mut HeaderMap) -> TracedSpan {
    if !tracer.is_on() {
        return tracer.start("", Kind::Server, None);
    }
    let mut span = tracer.start(method, Kind::Server, context(headers));
    span.set("rpc.system", "grpc");
    span.set("rpc.method", method);
    if let Some(value) = span.context().and_then(|context| HeaderValue::try_from(context.to_string()).ok()) {
        headers.insert(TRACEPARENT, value);
    }
    span
}

/// The place in a trace that came with a call. A stranger's text becomes part of a log line only in the form that the
/// standard gives it.
pub(super) fn context(headers: &HeaderMap) -> Option<TraceContext> {
    TraceContext::parse(headers.get(TRACEPARENT)?.to_str().ok()?)
}

/// The same, or a new trace: the provider can always be asked about a call by its id.
pub(super) fn context_or_new(headers: &HeaderMap) -> Option<TraceContext> {
    Some(context(headers).unwrap_or_else(|| TraceContext::random(false)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_logged_during_a_call_names_its_method_and_its_trace() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let log = tempfile::NamedTempFile::new().unwrap();
        let writer = Arc::new(log.reopen().unwrap());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        tracing::subscriber::with_default(subscriber, || {
            let context = format!("00-{id}-00f067aa0ba902b7-01").parse().unwrap();
            for headers in [HeaderMap::from_iter([("traceparent".parse().unwrap(), context)]), HeaderMap::new()] {
                span("/a.B/C", &headers).in_scope(|| tracing::info!("at work"));
            }
        });
        let text = std::fs::read_to_string(log.path()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines.len() == 2 && lines.iter().all(|line| line.contains("/a.B/C") && line.contains("at work")),
            "{text}"
        );
        assert!(lines[0].contains(id) && !lines[1].contains("trace.id"), "{text}");
    }
}

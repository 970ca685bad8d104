//! The span of a call: its method, and the W3C trace context that came with it, so that one id finds what the edge and core
//! have logged about one request.

use http::HeaderMap;
use tracing::Span;

/// The span of a call of `method`.
pub(super) fn span(method: &'static str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!("call", rpc.method = method, trace.id = tracing::field::Empty);
    if let Some(id) = trace_id(headers) {
        span.record("trace.id", id);
    }
    span
}

/// The trace id in the header `traceparent` (W3C Trace Context, 3.2). A stranger's text becomes part of a log line only in
/// the form that the standard gives it.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let mut parts = text.split('-');
    let (version, id, parent) = (parts.next()?, parts.next()?, parts.next()?);
    // Later versions may add parts; version ff is none, and zeros are no id.
    let known = hex(version, 2) && version != "ff" && hex(parent, 16) && (version != "00" || parts.count() == 1);
    (known && hex(id, 32) && id.bytes().any(|byte| byte != b'0')).then_some(id)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn id_in(value: &str) -> Option<String> {
        trace_id(&HeaderMap::from_iter([("traceparent".parse().unwrap(), value.parse().unwrap())])).map(str::to_owned)
    }

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

    #[test]
    fn a_trace_context_is_taken_by_its_standard_and_nothing_else_is() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        for good in [
            format!("00-{id}-00f067aa0ba902b7-01"),
            format!("cc-{id}-00f067aa0ba902b7-01"),
            format!("cc-{id}-00f067aa0ba902b7-01-what-will-be"),
        ] {
            assert_eq!(id_in(&good).as_deref(), Some(id), "{good}");
        }
        for bad in [
            String::new(),
            id.to_owned(),
            format!("ff-{id}-00f067aa0ba902b7-01"),
            format!("00-{id}-00f067aa0ba902b7-01-more"),
            format!("00-{id}-00f067aa0ba902b7"),
            format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", &id[1..]),
            format!("00-{id}-xxx-01"),
        ] {
            assert_eq!(id_in(&bad), None, "{bad}");
        }
    }
}

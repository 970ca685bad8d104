//! W3C Trace Context: which trace a request belongs to, from the browser to the provider.

use std::fmt;

use uuid::Uuid;

/// The header and the metadata key.
pub const TRACEPARENT: &str = "traceparent";

/// A place in a trace: its id, the span that is the parent of what comes next, and whether somebody records it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    sampled: bool,
}

impl TraceContext {
    /// A trace of its own.
    #[must_use]
    pub fn random(sampled: bool) -> Self {
        Self { trace_id: Uuid::new_v4().into_bytes(), span_id: random_span(), sampled }
    }

    /// The header `traceparent` (W3C Trace Context, 3.2). `None` for everything that the standard does not call one: a
    /// stranger's text becomes an id only in its form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version: [u8; 1] = hex(parts.next()?)?;
        let trace_id: [u8; 16] = hex(parts.next()?)?;
        let span_id: [u8; 8] = hex(parts.next()?)?;
        let flags: [u8; 1] = hex(parts.next()?)?;
        // Later versions may add parts; version ff is none, and zeros are no id.
        let known = version[0] != 0xff && (version[0] != 0 || parts.next().is_none());
        let ids = trace_id != [0; 16] && span_id != [0; 8];
        (known && ids).then_some(Self { trace_id, span_id, sampled: flags[0] & 1 == 1 })
    }

    /// The same trace, with a new span as the parent of what comes next.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span_id: random_span(), ..*self }
    }

    /// The same place, recorded or not by whoever comes next.
    #[must_use]
    pub fn with_sampled(self, sampled: bool) -> Self {
        Self { sampled, ..self }
    }

    /// 16 bytes.
    #[must_use]
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// 8 bytes.
    #[must_use]
    pub fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    /// Whether the sender records it.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The id of the trace as logs show it.
    #[must_use]
    pub fn trace_id_hex(&self) -> String {
        self.trace_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for TraceContext {
    /// As the header says it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", u8::from(self.sampled))
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceContext({self})")
    }
}

fn random_span() -> [u8; 8] {
    let mut span = [0; 8];
    // The first half holds the version; the second one its variant in two bits, and is never zero.
    span.copy_from_slice(&Uuid::new_v4().into_bytes()[8..]);
    span
}

/// Exactly `N` bytes in lower-case hexadecimal.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_trace_context_is_taken_by_its_standard_and_nothing_else_is() {
        for good in [
            format!("00-{ID}-00f067aa0ba902b7-01"),
            format!("cc-{ID}-00f067aa0ba902b7-00"),
            format!("cc-{ID}-00f067aa0ba902b7-01-what-will-be"),
        ] {
            assert_eq!(TraceContext::parse(&good).unwrap().trace_id_hex(), ID, "{good}");
        }
        for bad in [
            String::new(),
            ID.to_owned(),
            format!("ff-{ID}-00f067aa0ba902b7-01"),
            format!("00-{ID}-00f067aa0ba902b7-01-more"),
            format!("00-{ID}-00f067aa0ba902b7"),
            format!("00-{ID}-00f067aa0ba902b7-1"),
            format!("00-{}-00f067aa0ba902b7-01", ID.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{ID}-{}-01", "0".repeat(16)),
            format!("00-{}-00f067aa0ba902b7-01", &ID[1..]),
            format!("00-{ID}-xxx-01"),
            format!("00-{ID}-00f067aa0ba902bü-01"),
        ] {
            assert_eq!(TraceContext::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_a_child_is_of_the_same_trace() {
        for sampled in [false, true] {
            let context = TraceContext::random(sampled);
            assert_eq!(TraceContext::parse(&context.to_string()), Some(context));
            let child = context.child();
            assert_eq!((child.trace_id(), child.is_sampled()), (context.trace_id(), sampled));
            assert_ne!(child.span_id(), context.span_id());
        }
        assert_ne!(TraceContext::random(true).trace_id(), TraceContext::random(true).trace_id());
    }
}

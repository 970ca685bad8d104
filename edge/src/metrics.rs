//! Figures for Prometheus. The registry belongs to one edge, so that two fit into one process.

use std::sync::{Arc, OnceLock, atomic::AtomicU64};

use chatbox_proto::spans::Tracer;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
    },
    registry::Registry,
};

/// All figures of one edge.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    spans: Arc<OnceLock<Tracer>>,
    /// Sockets that are open.
    pub(crate) connections: Gauge,
    pub(crate) frames_received: Counter,
    pub(crate) frames_sent: Counter,
    pub(crate) frames_refused: Family<ReasonLabel, Counter>,
    pub(crate) closes: Family<CloseLabels, Counter>,
    pub(crate) handshakes_refused: Family<ReasonLabel, Counter>,
    pub(crate) requests: Family<RequestLabels, Counter<u64, AtomicU64>>,
    pub(crate) panics: Counter,
    /// Sockets whose stream to core is being opened again.
    pub(crate) reopening: Gauge,
    pub(crate) reopens: Family<OutcomeLabel, Counter>,
}

/// How something ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OutcomeLabel {
    pub(crate) outcome: &'static str,
}

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    pub(crate) reason: &'static str,
}

/// How a socket ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CloseLabels {
    /// The close code; 0 for a private one that a client made up.
    pub(crate) code: u32,
    /// `client` or `edge`.
    pub(crate) by: &'static str,
}

/// What was asked for over HTTP, and how it went.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    /// The route as registered, never the path as sent.
    pub(crate) route: String,
    pub(crate) method: &'static str,
    pub(crate) status: u32,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("chatbox_edge");
        let mut metrics = Self {
            connections: Gauge::default(),
            frames_received: Counter::default(),
            frames_sent: Counter::default(),
            frames_refused: Family::default(),
            closes: Family::default(),
            handshakes_refused: Family::default(),
            requests: Family::default(),
            panics: Counter::default(),
            reopening: Gauge::default(),
            reopens: Family::default(),
            registry: Registry::default(),
            spans: Arc::default(),
        };
        registry.register_collector(Box::new(SpanCollector { tracer: metrics.spans.clone() }));
        registry.register("connections", "WebSocket connections that are open", metrics.connections.clone());
        registry.register("frames_received", "Frames received from clients", metrics.frames_received.clone());
        registry.register("frames_sent", "Events sent to clients", metrics.frames_sent.clone());
        registry.register(
            "frames_refused",
            "Frames that were answered with an error by the edge",
            metrics.frames_refused.clone(),
        );
        registry.register("closes", "WebSocket connections that ended, by close code", metrics.closes.clone());
        registry.register(
            "handshakes_refused",
            "WebSocket handshakes that were refused",
            metrics.handshakes_refused.clone(),
        );
        registry.register("http_requests", "HTTP requests, by route and status", metrics.requests.clone());
        registry.register(
            "streams_reopening",
            "Connections whose stream to core is being opened again",
            metrics.reopening.clone(),
        );
        registry.register("reopens", "Streams to core that were lost, by what became of it", metrics.reopens.clone());
        registry.register("panics", "Panics that were caught", metrics.panics.clone());
        metrics.registry = registry;
        metrics
    }

    /// Shows what becomes of the spans of this tracer. Once.
    pub(crate) fn count_spans(&self, tracer: Tracer) {
        let _ = self.spans.set(tracer);
    }

    /// In the text format of Prometheus.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    pub(crate) fn frame_refused(&self, reason: &'static str) {
        self.frames_refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn handshake_refused(&self, reason: &'static str) {
        self.handshakes_refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn reopened(&self, outcome: &'static str) {
        self.reopens.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn closed(&self, code: u16, by: &'static str) {
        // A client may send any private code: each would become a series of its own.
        let code = if by == "client" && code >= 3000 { 0 } else { u32::from(code) };
        self.closes.get_or_create(&CloseLabels { code, by }).inc();
    }
}

/// What became of the spans of requests.
#[derive(Debug)]
struct SpanCollector {
    tracer: Arc<OnceLock<Tracer>>,
}

impl Collector for SpanCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let tracer = self.tracer.get().cloned().unwrap_or_default();
        for (name, help, count) in [
            ("spans_exported", "Spans that the collector has taken", tracer.exported()),
            ("spans_lost", "Spans that did not fit, or that no collector took", tracer.lost()),
        ] {
            let count = ConstCounter::new(count);
            count.encode(encoder.encode_descriptor(name, help, None, count.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_units_are_those_of_prometheus() {
        let metrics = Metrics::new();
        metrics.connections.inc();
        metrics.closed(4013, "edge");
        metrics.closed(4999, "client");
        let text = metrics.encode();
        for line in [
            "chatbox_edge_connections 1",
            "chatbox_edge_frames_received_total 0",
            "chatbox_edge_closes_total{code=\"4013\",by=\"edge\"} 1",
            "chatbox_edge_closes_total{code=\"0\",by=\"client\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}

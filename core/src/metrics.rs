//! What core counts and measures. A value, not a global: two servers in one process have two.
//!
//! Names follow Prometheus: base units (seconds), `_total` on counters. No label is ever taken from a client.

mod gen_ai;
mod providers;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use chatbox_proto::spans::Tracer;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use crate::{
    domain::entry::ReplyFinished,
    llm::{
        observed::{Observer, Turn},
        registry::Models,
    },
    store::StoreErrorKind,
    telemetry,
};

/// Seconds. A commit takes milliseconds; the limit of a store call is seconds.
const APPEND_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Seconds.
const FIRST_TEXT_BUCKETS: [f64; 11] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
/// Seconds.
const REPLY_BUCKETS: [f64; 11] = [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0];
/// Seconds. Streams are not measured here: they live for hours.
const CALL_BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

type Seconds<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelOutcome {
    model: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfModel {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tokens {
    model: String,
    kind: &'static str,
    estimated: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Alert {
    event: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodCode {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

/// Everything that is measured. A clone measures into the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Sessions with a room in this core.
    pub sessions_live: Gauge,
    /// Attached streams.
    pub subscribers: Gauge,
    /// `Generate` streams.
    pub generate_streams: Gauge,
    /// Replies being generated.
    pub replies_running: Gauge,
    /// Tasks that run.
    pub tasks_live: Gauge,
    /// Connections to the gRPC listener.
    pub connections: Gauge,
    /// Whether the other cores can be reached: 0 or 1.
    pub bus_connected: Gauge,
    /// Hints that could not be kept until they were sent.
    pub bus_dropped: Counter,
    /// Calls that were refused for who made them, or for how many they were.
    pub refused: Counter,
    /// Pieces of replies that were given to rooms.
    pub deltas: Counter,
    appends: Family<Outcome, Counter>,
    append_seconds: Seconds<Outcome>,
    replies: Family<ModelOutcome, Counter>,
    first_text_seconds: Seconds<OfModel>,
    reply_seconds: Seconds<OfModel>,
    tokens: Family<Tokens, Counter>,
    store_errors: Family<Kind, Counter>,
    alerts: Family<Alert, Counter>,
    requests: Family<MethodCode, Counter>,
    request_seconds: Seconds<Method>,
    gen_ai: gen_ai::GenAi,
}

impl Metrics {
    /// A registry with everything at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::build(None, &Tracer::off())
    }

    /// The same, with the figures of the providers of these models.
    #[must_use]
    pub fn with_models(models: Models, tracer: &Tracer) -> Self {
        Self::build(Some(models), tracer)
    }

    fn build(models: Option<Models>, tracer: &Tracer) -> Self {
        let mut metrics = Self {
            registry: Arc::default(),
            sessions_live: Gauge::default(),
            subscribers: Gauge::default(),
            generate_streams: Gauge::default(),
            replies_running: Gauge::default(),
            tasks_live: Gauge::default(),
            connections: Gauge::default(),
            bus_connected: Gauge::default(),
            bus_dropped: Counter::default(),
            refused: Counter::default(),
            deltas: Counter::default(),
            appends: Family::default(),
            append_seconds: Family::new_with_constructor(|| Histogram::new(APPEND_BUCKETS)),
            replies: Family::default(),
            first_text_seconds: Family::new_with_constructor(|| Histogram::new(FIRST_TEXT_BUCKETS)),
            reply_seconds: Family::new_with_constructor(|| Histogram::new(REPLY_BUCKETS)),
            tokens: Family::default(),
            store_errors: Family::default(),
            alerts: Family::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(|| Histogram::new(CALL_BUCKETS)),
            gen_ai: gen_ai::GenAi::default(),
        };
        let mut registry = metrics.register();
        metrics.gen_ai.register(&mut registry);
        registry.register_collector(Box::new(SpanCollector { tracer: tracer.clone() }));
        if let Some(models) = models {
            registry.register_collector(Box::new(providers::ProviderCollector { models }));
        }
        metrics.registry = Arc::new(registry);
        metrics
    }

    fn register(&self) -> Registry {
        let mut root = Registry::default();
        root.register_collector(Box::new(ProcessCollector { started: SystemTime::now() }));
        let core = root.sub_registry_with_prefix("chatbox_core");
        core.register("sessions_live", "Sessions with a room in this core", self.sessions_live.clone());
        core.register("subscribers", "Attached streams", self.subscribers.clone());
        core.register("generate_streams", "Generate streams", self.generate_streams.clone());
        core.register("replies_running", "Replies being generated", self.replies_running.clone());
        core.register("tasks_live", "Tasks that run", self.tasks_live.clone());
        core.register("connections", "Connections to the gRPC listener", self.connections.clone());
        core.register("bus_connected", "Whether the bus can be reached", self.bus_connected.clone());
        core.register("bus_dropped", "Hints that were not sent to other cores", self.bus_dropped.clone());
        core.register("refused", "Calls refused for who made them or how many they were", self.refused.clone());
        core.register("deltas", "Pieces of replies", self.deltas.clone());
        core.register("appends", "Appends to logs, by outcome", self.appends.clone());
        core.register("replies", "Finished replies, by model and outcome", self.replies.clone());
        core.register("tokens", "Tokens used, by model and kind", self.tokens.clone());
        core.register("store_errors", "Failures of the store, by kind", self.store_errors.clone());
        core.register("alerts", "Alerts, by event and outcome", self.alerts.clone());
        core.register("grpc_requests", "Calls that ended, by method and code", self.requests.clone());
        let seconds = || Unit::Seconds;
        core.register_with_unit("append_duration", "Time of one append", seconds(), self.append_seconds.clone());
        let help = "Time from the start of a reply to its first text";
        core.register_with_unit("reply_first_text", help, seconds(), self.first_text_seconds.clone());
        let help = "Time from the start of a reply to its end";
        core.register_with_unit("reply_duration", help, seconds(), self.reply_seconds.clone());
        core.register_with_unit(
            "grpc_request_duration",
            "Time of one unary call",
            seconds(),
            self.request_seconds.clone(),
        );
        root
    }

    /// An append ended, with one of a few fixed outcomes.
    pub fn appended(&self, outcome: &'static str) {
        self.appends.get_or_create(&Outcome { outcome }).inc();
    }

    /// An append took this long.
    pub fn append_took(&self, outcome: &'static str, took: Duration) {
        self.append_seconds.get_or_create(&Outcome { outcome }).observe(took.as_secs_f64());
    }

    /// A reply showed its first text this long after it started. `model` is one of the configured ids.
    pub fn first_text(&self, model: &str, after: Duration) {
        self.first_text_seconds.get_or_create(&OfModel { model: model.to_owned() }).observe(after.as_secs_f64());
    }

    /// A reply ended. `ran_for` is `None` when it did not run in this core.
    pub fn reply_finished(&self, finished: &ReplyFinished, ran_for: Option<Duration>) {
        let model = || finished.model.clone();
        self.replies.get_or_create(&ModelOutcome { model: model(), outcome: finished.finish.name() }).inc();
        if let Some(ran_for) = ran_for {
            self.reply_seconds.get_or_create(&OfModel { model: model() }).observe(ran_for.as_secs_f64());
        }
        let usage = &finished.usage;
        let estimated = if usage.estimated { "true" } else { "false" };
        for (kind, count) in
            [("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens), ("cached", usage.cached_tokens)]
        {
            self.tokens.get_or_create(&Tokens { model: model(), kind, estimated }).inc_by(count);
        }
    }

    /// The store failed.
    pub fn store_failed(&self, kind: StoreErrorKind) {
        let kind = match kind {
            StoreErrorKind::Unavailable => "unavailable",
            StoreErrorKind::OutcomeUnknown => "outcome_unknown",
            StoreErrorKind::Full => "full",
            StoreErrorKind::Refused => "refused",
            StoreErrorKind::Corrupt => "corrupt",
            StoreErrorKind::Internal => "internal",
        };
        self.store_errors.get_or_create(&Kind { kind }).inc();
    }

    /// An alert was raised, delivered, tried in vain or given up.
    pub fn alert(&self, event: &'static str, outcome: &'static str) {
        self.alerts.get_or_create(&Alert { event, outcome }).inc();
    }

    /// A call ended. `method` is one of the contract's, or `unknown`.
    pub fn grpc_request(&self, method: &'static str, code: &'static str) {
        self.requests.get_or_create(&MethodCode { method, code }).inc();
        if matches!(code, "UNAUTHENTICATED" | "PERMISSION_DENIED" | "RESOURCE_EXHAUSTED") {
            self.refused.inc();
        }
    }

    /// A unary call took this long.
    pub fn grpc_took(&self, method: &'static str, took: Duration) {
        self.request_seconds.get_or_create(&Method { method }).observe(took.as_secs_f64());
    }

    /// Everything in the text format of `OpenMetrics`; serve it as
    /// `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for Metrics {
    fn turn(&self, turn: Turn<'_>) {
        self.gen_ai.turn(turn);
    }
}

/// What became of the spans of requests.
#[derive(Debug)]
struct SpanCollector {
    tracer: Tracer,
}

impl Collector for SpanCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, help, count) in [
            ("chatbox_core_spans_exported", "Spans that the collector has taken", self.tracer.exported()),
            ("chatbox_core_spans_lost", "Spans that did not fit, or that no collector took", self.tracer.lost()),
        ] {
            let count = ConstCounter::new(count);
            count.encode(encoder.encode_descriptor(name, help, None, count.metric_type())?)?;
        }
        Ok(())
    }
}

/// What belongs to the process rather than to a server in it.
#[derive(Debug)]
struct ProcessCollector {
    started: SystemTime,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let started = ConstGauge::new(self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        started.encode(encoder.encode_descriptor(
            "process_start_time",
            "Start of the process since the Unix epoch",
            Some(&Unit::Seconds),
            started.metric_type(),
        )?)?;
        let panics = ConstCounter::new(telemetry::panics());
        panics.encode(encoder.encode_descriptor(
            "chatbox_core_panics",
            "Panics in this process",
            None,
            panics.metric_type(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use chatbox_proto::ids::MessageId;

    use super::*;
    use crate::domain::entry::{FinishReason, Usage};

    fn finished(finish: FinishReason) -> ReplyFinished {
        ReplyFinished {
            id: MessageId::generate(),
            started_seq: 2,
            text: "not in any metric".to_owned(),
            finish,
            usage: Usage { prompt_tokens: 9, completion_tokens: 2, cached_tokens: 4, estimated: true },
            provider_request_id: Some("req".to_owned()),
            model: "gpt".to_owned(),
        }
    }

    #[test]
    fn what_is_measured_is_shown_with_its_unit() {
        let metrics = Metrics::new();
        metrics.sessions_live.set(3);
        metrics.deltas.inc();
        metrics.appended("done");
        metrics.append_took("done", Duration::from_millis(3));
        metrics.first_text("gpt", Duration::from_secs(1));
        metrics.reply_finished(&finished(FinishReason::ProviderError), Some(Duration::from_secs(3)));
        metrics.reply_finished(&finished(FinishReason::ProviderError), None);
        metrics.store_failed(StoreErrorKind::Full);
        metrics.grpc_request("Chat", "OK");
        metrics.grpc_took("GetSession", Duration::from_millis(1));
        let text = metrics.encode();
        for line in [
            "chatbox_core_sessions_live 3",
            "chatbox_core_deltas_total 1",
            "chatbox_core_appends_total{outcome=\"done\"} 1",
            "chatbox_core_append_duration_seconds_bucket{le=\"0.005\",outcome=\"done\"} 1",
            "chatbox_core_reply_first_text_seconds_sum{model=\"gpt\"} 1.0",
            "chatbox_core_replies_total{model=\"gpt\",outcome=\"provider_error\"} 2",
            "chatbox_core_reply_duration_seconds_count{model=\"gpt\"} 1",
            "chatbox_core_tokens_total{model=\"gpt\",kind=\"prompt\",estimated=\"true\"} 18",
            "chatbox_core_store_errors_total{kind=\"full\"} 1",
            "chatbox_core_grpc_requests_total{method=\"Chat\",code=\"OK\"} 1",
            "chatbox_core_grpc_request_duration_seconds_count{method=\"GetSession\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} in\n{text}");
        }
        assert!(!text.contains("not in any metric") && text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_process_has_a_start_time_that_stays_and_a_count_of_panics() {
        let metrics = Metrics::new();
        let start =
            |text: &str| text.lines().find(|line| line.starts_with("process_start_time_seconds ")).map(str::to_owned);
        let first = start(&metrics.encode()).expect("shown");
        let seconds: f64 = first.split(' ').nth(1).expect("value").parse().expect("number");
        assert!(seconds > 1.7e9);
        assert_eq!(start(&metrics.encode()), Some(first));
        assert!(metrics.encode().lines().any(|line| line.starts_with("chatbox_core_panics_total ")));
    }

    #[test]
    fn two_servers_measure_apart_and_clones_together() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.clone().subscribers.inc();
        assert_eq!((one.subscribers.get(), other.subscribers.get()), (1, 0));
    }
}

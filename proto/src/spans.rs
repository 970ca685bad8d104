//! Spans: what a process did for one request, told to an OpenTelemetry collector, if there is one.
//!
//! A [`Tracer`] is off unless a collector is configured, and then costs nothing. On, it never waits: spans go into a bounded
//! queue, what does not fit is counted as lost, and [`Exporter::run`] sends the rest in batches. Which traces are recorded
//! is decided here, by their id, so that all processes with the same share agree; what a stranger's flag says is not asked.
//!
//! Names and attributes come from the code and the configuration, never from clients.

mod otlp;

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use self::otlp::Exporter;
use crate::{settings, trace::TraceContext};

/// How spans are told. Shared by all processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// `http://host:port` or `https://host:port` of a collector that takes OTLP over gRPC; empty: nothing is told. Default
    /// empty.
    pub otlp_endpoint: String,
    /// Share of the traces that are recorded: 0 to 1. Default 1.
    pub sample_ratio: f64,
    /// Spans that wait to be sent; more are lost and counted: 1 to 100,000. Default 4,096.
    pub queue_spans: usize,
    /// Spans that are sent together: 1 to 10,000. Default 512.
    pub batch_spans: usize,
    /// How long a span waits for others, at most: 10 ms to 1 min. Default 1 s.
    #[serde(with = "settings::duration")]
    pub batch_wait: Duration,
    /// Time for the collector to take a batch, after which it is lost and counted: 100 ms to 1 min. Default 5 s.
    #[serde(with = "settings::duration")]
    pub export_timeout: Duration,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: String::new(),
            sample_ratio: 1.0,
            queue_spans: 4_096,
            batch_spans: 512,
            batch_wait: Duration::from_secs(1),
            export_timeout: Duration::from_secs(5),
        }
    }
}

impl TelemetryConfig {
    /// Every mistake, each naming its setting.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut must = |holds: bool, rule: &str| {
            if !holds {
                mistakes.push(format!("telemetry.{rule}"));
            }
        };
        let endpoint = self.otlp_endpoint.as_str();
        let usable = endpoint.is_empty() || otlp::is_endpoint(endpoint);
        must(usable, "otlp_endpoint: must be empty, or like http://127.0.0.1:4317, without a path or a user name");
        must((0.0..=1.0).contains(&self.sample_ratio), "sample_ratio: must be from 0 to 1");
        must((1..=100_000).contains(&self.queue_spans), "queue_spans: must be from 1 to 100000");
        must((1..=10_000).contains(&self.batch_spans), "batch_spans: must be from 1 to 10000");
        let minute = Duration::from_secs(60);
        must((Duration::from_millis(10)..=minute).contains(&self.batch_wait), "batch_wait: must be from 10ms to 1m");
        let timeout = Duration::from_millis(100)..=minute;
        must(timeout.contains(&self.export_timeout), "export_timeout: must be from 100ms to 1m");
        mistakes
    }
}

/// What a span is to its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call that came in.
    Server,
    /// A call that went out.
    Client,
}

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// From the code or the configuration.
    Text(Cow<'static, str>),
    /// A count.
    Int(i64),
    /// A measure.
    Float(f64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Int(i64::try_from(count).unwrap_or(i64::MAX))
    }
}

impl From<f64> for Value {
    fn from(measure: f64) -> Self {
        Self::Float(measure)
    }
}

/// A span that has ended.
#[derive(Debug)]
struct Ended {
    context: TraceContext,
    parent: Option<TraceContext>,
    name: Cow<'static, str>,
    kind: Kind,
    started: SystemTime,
    took: Duration,
    attributes: Vec<(&'static str, Value)>,
    failed: bool,
}

#[derive(Debug)]
struct Shared {
    queue: mpsc::Sender<Ended>,
    ratio: f64,
    exported: AtomicU64,
    lost: AtomicU64,
}

/// Makes spans. A clone tells the same collector.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Shared>>);

impl Tracer {
    /// Tells nobody.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// As configured, for a process of this name; with what sends the spans, which somebody has to run.
    ///
    /// # Errors
    /// For an endpoint that cannot be used.
    pub fn new(config: &TelemetryConfig, service: &'static str) -> Result<(Self, Option<Exporter>), String> {
        if config.otlp_endpoint.is_empty() {
            return Ok((Self::off(), None));
        }
        let (queue, spans) = mpsc::channel(config.queue_spans.max(1));
        let shared = Shared { queue, ratio: config.sample_ratio, exported: AtomicU64::new(0), lost: AtomicU64::new(0) };
        let tracer = Self(Some(Arc::new(shared)));
        let exporter = Exporter::new(config, service, spans, tracer.clone())?;
        Ok((tracer, Some(exporter)))
    }

    /// A span that begins now. Without a parent it begins a trace.
    #[must_use]
    pub fn start(&self, name: impl Into<Cow<'static, str>>, kind: Kind, parent: Option<TraceContext>) -> Span {
        let Some(shared) = &self.0 else {
            return Span { context: parent.map(|parent| parent.with_sampled(false)), live: None };
        };
        let context = parent.map_or_else(|| TraceContext::random(true), |parent| parent.child());
        let recorded = is_recorded(&context, shared.ratio);
        let context = context.with_sampled(recorded);
        let live = recorded.then(|| {
            Box::new(Live {
                shared: shared.clone(),
                parent,
                name: name.into(),
                kind,
                started: (SystemTime::now(), std::time::Instant::now()),
                attributes: Vec::new(),
                failed: false,
            })
        });
        Span { context: Some(context), live }
    }

    /// Whether a collector is configured.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Spans that a collector has taken.
    #[must_use]
    pub fn exported(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.exported.load(Ordering::Relaxed))
    }

    /// Spans that did not fit, or that no collector took.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.lost.load(Ordering::Relaxed))
    }

    fn count(&self, spans: usize, taken: bool) {
        if let Some(shared) = &self.0 {
            let counter = if taken { &shared.exported } else { &shared.lost };
            counter.fetch_add(spans as u64, Ordering::Relaxed);
        }
    }
}

/// By the half of the id that is random by every version of the standard.
fn is_recorded(context: &TraceContext, ratio: f64) -> bool {
    let mut low = [0; 8];
    low.copy_from_slice(&context.trace_id()[8..]);
    // The variant of a UUID is in the two highest bits: they are the same in many ids.
    let place = u64::from_be_bytes(low) & (u64::MAX >> 8);
    (place as f64) < ratio * (u64::MAX >> 8) as f64 + f64::from(u8::from(ratio >= 1.0))
}

/// What one process does for a request. It ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    context: Option<TraceContext>,
    live: Option<Box<Live>>,
}

#[derive(Debug)]
struct Live {
    shared: Arc<Shared>,
    parent: Option<TraceContext>,
    name: Cow<'static, str>,
    kind: Kind,
    started: (SystemTime, std::time::Instant),
    attributes: Vec<(&'static str, Value)>,
    failed: bool,
}

impl Span {
    /// What comes next is told as its place. `None`: there is no trace.
    #[must_use]
    pub fn context(&self) -> Option<TraceContext> {
        self.context
    }

    /// Whether attributes are kept: what is expensive to find out need not be otherwise.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.live.is_some()
    }

    /// Sets an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(live) = &mut self.live {
            live.attributes.push((key, value.into()));
        }
    }

    /// It did not go well; of which kind the failure was.
    pub fn fail(&mut self, error: &'static str) {
        self.set("error.type", error);
        if let Some(live) = &mut self.live {
            live.failed = true;
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let (Some(context), Some(live)) = (self.context, self.live.take()) else { return };
        let Live { shared, parent, name, kind, started: (at, clock), attributes, failed } = *live;
        let took = clock.elapsed();
        let ended = Ended { context, parent, name, kind, started: at, took, attributes, failed };
        if shared.queue.try_send(ended).is_err() {
            shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(queue_spans: usize, sample_ratio: f64) -> (Tracer, Exporter) {
        let config = TelemetryConfig {
            otlp_endpoint: "http://127.0.0.1:1".to_owned(),
            queue_spans,
            sample_ratio,
            ..TelemetryConfig::default()
        };
        let (tracer, exporter) = Tracer::new(&config, "test").unwrap();
        (tracer, exporter.unwrap())
    }

    #[test]
    fn without_a_collector_nothing_is_kept_and_the_trace_goes_on_unsampled() {
        let (tracer, exporter) = Tracer::new(&TelemetryConfig::default(), "test").unwrap();
        assert!(exporter.is_none() && !tracer.is_on());
        let parent = TraceContext::random(true);
        let span = tracer.start("x", Kind::Server, Some(parent));
        assert_eq!((span.context(), span.is_recorded()), (Some(parent.with_sampled(false)), false));
        assert_eq!(tracer.start("x", Kind::Server, None).context(), None);
    }

    #[tokio::test]
    async fn spans_that_do_not_fit_are_lost_and_counted_and_nobody_waits() {
        let (tracer, _exporter) = on(4, 1.0);
        for _ in 0..10 {
            drop(tracer.start("x", Kind::Client, None));
        }
        assert_eq!((tracer.lost(), tracer.exported()), (6, 0));
    }

    #[tokio::test]
    async fn a_share_of_the_traces_is_recorded_whatever_strangers_say_and_all_processes_agree() {
        let (one, _one) = on(100_000, 0.25);
        let (other, _other) = on(100_000, 0.25);
        let mut recorded = 0;
        for number in 0..4_000 {
            let parent = TraceContext::random(number % 2 == 0);
            let (here, there) =
                (one.start("x", Kind::Server, Some(parent)), other.start("y", Kind::Server, Some(parent)));
            assert_eq!(here.is_recorded(), there.is_recorded());
            let context = here.context().unwrap();
            assert_eq!((context.is_sampled(), context.trace_id()), (here.is_recorded(), parent.trace_id()));
            recorded += u32::from(here.is_recorded());
        }
        assert!((800..1_200).contains(&recorded), "{recorded}");
        for (ratio, expect) in [(0.0, false), (1.0, true)] {
            let (tracer, _exporter) = on(100, ratio);
            assert_eq!(tracer.start("x", Kind::Server, None).is_recorded(), expect);
        }
    }

    #[test]
    fn every_bad_setting_is_named() {
        assert!(TelemetryConfig::default().check().is_empty());
        let change = |change: fn(&mut TelemetryConfig)| {
            let mut config = TelemetryConfig::default();
            change(&mut config);
            config.check()
        };
        for (mistakes, name) in [
            (change(|c| c.otlp_endpoint = "collector:4317".to_owned()), "telemetry.otlp_endpoint: "),
            (change(|c| c.otlp_endpoint = "http://me:secret@c.test:4317".to_owned()), "telemetry.otlp_endpoint: "),
            (change(|c| c.sample_ratio = 1.5), "telemetry.sample_ratio: "),
            (change(|c| c.sample_ratio = f64::NAN), "telemetry.sample_ratio: "),
            (change(|c| c.queue_spans = 0), "telemetry.queue_spans: "),
            (change(|c| c.batch_spans = 0), "telemetry.batch_spans: "),
            (change(|c| c.batch_wait = Duration::ZERO), "telemetry.batch_wait: "),
            (change(|c| c.export_timeout = Duration::from_secs(90)), "telemetry.export_timeout: "),
        ] {
            assert!(mistakes.len() == 1 && mistakes[0].starts_with(name), "{name} in {mistakes:?}");
            assert!(!mistakes[0].contains("secret"));
        }
    }
}

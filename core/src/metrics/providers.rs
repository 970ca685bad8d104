//! How the providers do, read from them when it is asked for.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::llm::{Load, breaker::Phase, registry::Models};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    provider: String,
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    provider: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProvider {
    provider: String,
}

/// The figures of all providers that have a model.
#[derive(Debug)]
pub(super) struct ProviderCollector {
    pub(super) models: Models,
}

impl Collector for ProviderCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let loads = self.models.loads();
        let help = "Whether a provider is asked (closed), left alone (open) or probed (half_open)";
        let mut breaker = encoder.encode_descriptor("chatbox_core_provider_breaker", help, None, MetricType::Gauge)?;
        for (provider, load) in &loads {
            for (phase, name) in [(Phase::Closed, "closed"), (Phase::Open, "open"), (Phase::HalfOpen, "half_open")] {
                let labels = InPhase { provider: provider.clone(), phase: name };
                ConstGauge::new(i64::from(load.breaker == phase)).encode(breaker.encode_family(&labels)?)?;
            }
        }
        let help = "How often a provider was left alone";
        let name = "chatbox_core_provider_breaker_opened";
        let mut opened = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (provider, load) in &loads {
            let labels = OfProvider { provider: provider.clone() };
            ConstCounter::new(load.opened).encode(opened.encode_family(&labels)?)?;
        }
        let help = "Replies at a provider, running and waiting for a place";
        let mut replies = encoder.encode_descriptor("chatbox_core_provider_replies", help, None, MetricType::Gauge)?;
        for (provider, load) in &loads {
            for (state, number) in [("running", load.queue.running), ("waiting", load.queue.waiting)] {
                let labels = InState { provider: provider.clone(), state };
                let number = i64::try_from(number).unwrap_or(i64::MAX);
                ConstGauge::new(number).encode(replies.encode_family(&labels)?)?;
            }
        }
        let help = "Replies that found no room in the queue of a provider";
        let name = "chatbox_core_provider_refused";
        let mut refused = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (provider, load) in &loads {
            let labels = OfProvider { provider: provider.clone() };
            ConstCounter::new(load.queue.refused).encode(refused.encode_family(&labels)?)?;
        }
        encode_waits(&loads, &mut encoder)
    }
}

fn encode_waits(loads: &[(String, Load)], encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let help = "Replies that waited for a place at a provider";
    let mut waits = encoder.encode_descriptor("chatbox_core_provider_waits", help, None, MetricType::Counter)?;
    for (provider, load) in loads {
        let labels = OfProvider { provider: provider.clone() };
        ConstCounter::new(load.queue.waits).encode(waits.encode_family(&labels)?)?;
    }
    let help = "Time that they waited, all together";
    let unit = Some(&Unit::Seconds);
    let mut waited = encoder.encode_descriptor("chatbox_core_provider_wait", help, unit, MetricType::Counter)?;
    for (provider, load) in loads {
        let labels = OfProvider { provider: provider.clone() };
        ConstCounter::new(load.queue.waited.as_secs_f64()).encode(waited.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Metrics;
    use crate::llm::{
        Model, ModelInfo, Models,
        demo::Demo,
        upstream::{Upstream, UpstreamLimits},
    };

    #[test]
    fn each_provider_is_shown_once_however_many_models_it_has() {
        let upstream = Arc::new(Upstream::new("p", Arc::new(Demo::default()), UpstreamLimits::default()));
        let model = |id: &str| Model {
            info: ModelInfo { id: id.to_owned(), provider: "p".to_owned(), ..ModelInfo::default() },
            provider: upstream.clone(),
        };
        let models = Models::new(vec![model("a"), model("b")], "a").expect("valid");
        let text = Metrics::with_models(models, &chatbox_proto::spans::Tracer::off()).encode();
        for line in [
            "chatbox_core_provider_breaker{provider=\"p\",phase=\"closed\"} 1",
            "chatbox_core_provider_breaker{provider=\"p\",phase=\"open\"} 0",
            "chatbox_core_provider_breaker_opened_total{provider=\"p\"} 0",
            "chatbox_core_provider_replies{provider=\"p\",state=\"waiting\"} 0",
            "chatbox_core_provider_refused_total{provider=\"p\"} 0",
            "chatbox_core_provider_waits_total{provider=\"p\"} 0",
            "chatbox_core_provider_wait_seconds_total{provider=\"p\"} 0.0",
        ] {
            assert_eq!(text.lines().filter(|shown| *shown == line).count(), 1, "{line} in\n{text}");
        }
    }
}

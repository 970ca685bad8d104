//! The metrics of OpenTelemetry's semantic conventions for generative AI, in their Prometheus form: names, units and buckets
//! are those of the conventions. Label values come from the configuration and from lists in the code.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::llm::observed::Turn;

const DURATION: [f64; 14] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const FIRST: [f64; 16] = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const PER_TOKEN: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// The only thing that models are asked for.
const CHAT: &str = "chat";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfModel {
    gen_ai_operation_name: &'static str,
    gen_ai_provider_name: String,
    gen_ai_request_model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    gen_ai_operation_name: &'static str,
    gen_ai_provider_name: String,
    gen_ai_request_model: String,
    /// How it ended.
    outcome: &'static str,
    /// The same where it is a failure; empty otherwise.
    error_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTokens {
    gen_ai_operation_name: &'static str,
    gen_ai_provider_name: String,
    gen_ai_request_model: String,
    gen_ai_token_type: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Of every turn, whoever it was for.
#[derive(Debug, Clone)]
pub(super) struct GenAi {
    duration: Histograms<Ended>,
    first_token: Histograms<OfModel>,
    per_token: Histograms<OfModel>,
    tokens: Histograms<OfTokens>,
}

impl Default for GenAi {
    fn default() -> Self {
        Self {
            duration: Family::new_with_constructor(|| Histogram::new(DURATION)),
            first_token: Family::new_with_constructor(|| Histogram::new(FIRST)),
            per_token: Family::new_with_constructor(|| Histogram::new(PER_TOKEN)),
            tokens: Family::new_with_constructor(|| Histogram::new(TOKENS)),
        }
    }
}

impl GenAi {
    pub(super) fn register(&self, registry: &mut Registry) {
        let seconds = || Unit::Seconds;
        let help = "Time of one turn, from the request to its end";
        registry.register_with_unit("gen_ai_client_operation_duration", help, seconds(), self.duration.clone());
        let help = "Tokens of one turn, by direction";
        registry.register("gen_ai_client_token_usage", help, self.tokens.clone());
        let help = "Time from the request to the first text";
        registry.register_with_unit("gen_ai_server_time_to_first_token", help, seconds(), self.first_token.clone());
        let help = "Time of one token after the first, of turns that ended well";
        registry.register_with_unit("gen_ai_server_time_per_output_token", help, seconds(), self.per_token.clone());
    }

    pub(super) fn turn(&self, turn: Turn<'_>) {
        let (provider, model) = (&turn.model.provider, &turn.model.id);
        let of_model = || OfModel {
            gen_ai_operation_name: CHAT,
            gen_ai_provider_name: provider.clone(),
            gen_ai_request_model: model.clone(),
        };
        let outcome = turn.finish.name();
        let ended = Ended {
            gen_ai_operation_name: CHAT,
            gen_ai_provider_name: provider.clone(),
            gen_ai_request_model: model.clone(),
            outcome,
            error_type: if turn.finish.is_failure() { outcome } else { "" },
        };
        self.duration.get_or_create(&ended).observe(turn.took.as_secs_f64());
        if let Some(first) = turn.first_text {
            self.first_token.get_or_create(&of_model()).observe(first.as_secs_f64());
        }
        if let Some(per_token) = turn.per_token() {
            self.per_token.get_or_create(&of_model()).observe(per_token.as_secs_f64());
        }
        let Some(usage) = turn.usage else { return };
        for (kind, count) in [("input", usage.prompt_tokens), ("output", usage.completion_tokens)] {
            let labels = OfTokens {
                gen_ai_operation_name: CHAT,
                gen_ai_provider_name: provider.clone(),
                gen_ai_request_model: model.clone(),
                gen_ai_token_type: kind,
            };
            self.tokens.get_or_create(&labels).observe(count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        domain::entry::{FinishReason, Usage},
        llm::{ModelInfo, observed::Observer as _},
        metrics::Metrics,
    };

    #[test]
    fn a_turn_is_measured_by_the_names_of_the_conventions() {
        let metrics = Metrics::new();
        let model = ModelInfo { id: "m".to_owned(), provider: "p".to_owned(), ..ModelInfo::default() };
        let usage = Usage { prompt_tokens: 9, completion_tokens: 11, ..Usage::default() };
        let (took, first_text) = (Duration::from_secs(3), Some(Duration::from_secs(1)));
        let mut turn = Turn { model: &model, finish: FinishReason::Stop, took, first_text, usage: Some(usage) };
        metrics.turn(turn);
        (turn.finish, turn.usage, turn.first_text) = (FinishReason::Timeout, None, None);
        metrics.turn(turn);
        let text = metrics.encode();
        let of = "gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"p\",gen_ai_request_model=\"m\"";
        for line in [
            format!("gen_ai_client_operation_duration_seconds_sum{{{of},outcome=\"stop\",error_type=\"\"}} 3.0"),
            format!(
                "gen_ai_client_operation_duration_seconds_count{{{of},outcome=\"timeout\",error_type=\"timeout\"}} 1"
            ),
            format!("gen_ai_server_time_to_first_token_seconds_count{{{of}}} 1"),
            format!("gen_ai_server_time_per_output_token_seconds_sum{{{of}}} 0.2"),
            format!("gen_ai_client_token_usage_sum{{{of},gen_ai_token_type=\"input\"}} 9.0"),
            format!("gen_ai_client_token_usage_sum{{{of},gen_ai_token_type=\"output\"}} 11.0"),
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} in\n{text}");
        }
    }
}

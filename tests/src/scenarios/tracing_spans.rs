//! One trace from the browser to the provider, told to a collector, without a word of what was said.

use std::{collections::HashMap, time::Duration};

use chatbox_proto::{spans::TelemetryConfig, trace::TraceContext, v1::FinishReason};
use tonic::metadata::MetadataMap;

use super::generate::service;
use crate::harness::{
    client::Client,
    collector::{Collector, Told},
    generate::Generation,
    provider::{Provider, Script},
    stack::{Setup, Stack},
    wait::{LIMIT, wait_for},
    ws::{Auth, Connect, Encoding},
};

const SECRET: &str = "what-only-these-two-know";

fn traced(provider: &Provider, endpoint: &str, change: impl FnOnce(&mut TelemetryConfig)) -> Setup {
    let mut config = TelemetryConfig { otlp_endpoint: endpoint.to_owned(), ..TelemetryConfig::default() };
    config.batch_wait = Duration::from_millis(50);
    change(&mut config);
    Setup::new().unwrap().with_models(provider, &["m"]).with(|setup| {
        setup.core.telemetry = config.clone();
        setup.edge.telemetry = config;
    })
}

fn of_trace(told: &[Told], trace: TraceContext) -> HashMap<String, Told> {
    let ours = told.iter().filter(|told| told.span.trace_id == trace.trace_id());
    ours.map(|told| (format!("{} {}", told.service, told.span.name), told.clone())).collect()
}

#[tokio::test]
async fn one_trace_goes_from_the_browser_over_edge_and_core_to_the_provider() {
    let (provider, collector) = (Provider::start().await.unwrap(), Collector::start().await.unwrap());
    let stack = Stack::start(traced(&provider, &collector.endpoint(), |_| {})).await.unwrap();
    provider.always("m", Script::reply([SECRET]));
    let browser = TraceContext::random(false);
    let token = stack.token("alice", "user").unwrap();
    let connect = Connect::new(stack.addresses().http).encoding(Encoding::Json).auth(Auth::Header(token.clone()));
    let socket = connect.header("traceparent", &browser.to_string()).connect().await.unwrap();
    let mut client = Client::over_socket(socket);
    client.open(chatbox_proto::v1::chat_request::Open::default()).await.unwrap();
    client.say("first", SECRET).await.unwrap();
    assert_eq!(client.reply().await.unwrap().finished.finish_reason(), FinishReason::Stop);

    let names = ["chatbox-edge Chat", "chatbox-core /chatbox.v1.ChatCore/Chat", "chatbox-core chat m"];
    let all = |told: &[Told]| names.iter().all(|name| of_trace(told, browser).contains_key(*name));
    let told = collector.wait_told("the spans of one message", all).await.unwrap();
    let spans = of_trace(&told, browser);
    let mut parent = browser.span_id().to_vec();
    for name in names {
        let span = &spans[name].span;
        assert_eq!(span.parent_span_id, parent, "{name}");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
        parent.clone_from(&span.span_id);
    }
    let asked = provider.requests().pop().unwrap();
    let at_provider = TraceContext::parse(&asked.headers["traceparent"]).unwrap();
    assert_eq!((at_provider.trace_id(), at_provider.span_id().to_vec()), (browser.trace_id(), parent));
    let turn = &spans["chatbox-core chat m"];
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.usage.input_tokens", "7"),
        ("gen_ai.usage.output_tokens", "3"),
        ("gen_ai.response.finish_reasons", "stop"),
    ] {
        assert_eq!(turn.attribute(key).as_deref(), Some(value), "{key}");
    }
    let shown = format!("{told:?}");
    for secret in [SECRET, "alice", token.as_str()] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }

    // A service's turn belongs to its own trace, and a failure says of which kind it is.
    provider.always("m", Script::stream().delta("x").truncate());
    let caller = TraceContext::random(true);
    let mut metadata = MetadataMap::new();
    metadata.insert("traceparent", caller.to_string().parse().unwrap());
    let mut stream = Generation::open_with(service(&stack, "indexer"), metadata, None).await.unwrap();
    stream.ask("1", "m", SECRET).await.unwrap();
    assert_eq!(stream.turn("1").await.unwrap().end.finish_reason(), FinishReason::ProviderError);
    let failed = |told: &[Told]| of_trace(told, caller).contains_key("chatbox-core chat m");
    let told = collector.wait_told("the turn of the service", failed).await.unwrap();
    let turn = &of_trace(&told, caller)["chatbox-core chat m"];
    assert_eq!(turn.attribute("error.type").as_deref(), Some("provider_error"));
    assert_eq!(turn.span.status.as_ref().map(|status| status.code), Some(2));
    let figure = "gen_ai_client_operation_duration_seconds_count{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"server-4\",gen_ai_request_model=\"m\",outcome=\"provider_error\",error_type=\"provider_error\"}";
    assert_eq!(stack.core_metric(figure).await.unwrap(), 1.0);
    drop((stream, client));
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_is_left_is_told_before_the_process_ends() {
    let (provider, collector) = (Provider::start().await.unwrap(), Collector::start().await.unwrap());
    let setup = traced(&provider, &collector.endpoint(), |config| config.batch_wait = LIMIT);
    let stack = Stack::start(setup).await.unwrap();
    let caller = TraceContext::random(true);
    let mut metadata = MetadataMap::new();
    metadata.insert("traceparent", caller.to_string().parse().unwrap());
    let mut stream = Generation::open_with(service(&stack, "indexer"), metadata, None).await.unwrap();
    stream.ask("1", "m", "x").await.unwrap();
    stream.turn("1").await.unwrap();
    stream.half_close();
    stream.ended().await.unwrap();
    stack.shutdown().await.unwrap();
    assert!(of_trace(&collector.told(), caller).contains_key("chatbox-core chat m"), "{:?}", collector.told());
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_spans_and_nothing_else() {
    let provider = Provider::start().await.unwrap();
    // Accepts, and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let setup = traced(&provider, &endpoint, |config| {
        config.export_timeout = Duration::from_millis(100);
        (config.queue_spans, config.batch_spans) = (2, 1);
    });
    let stack = Stack::start(setup).await.unwrap();
    let mut stream = Generation::open(service(&stack, "indexer")).await.unwrap();
    for id in ["1", "2", "3", "4", "5", "6"] {
        stream.ask(id, "m", "x").await.unwrap();
        assert_eq!(stream.turn(id).await.unwrap().end.finish_reason(), FinishReason::Stop);
    }
    let lost = || async { (stack.core_metric("chatbox_core_spans_lost_total").await.unwrap() >= 2.0).then_some(()) };
    wait_for("lost spans are counted", LIMIT, lost).await.unwrap();
    drop(stream);
    stack.shutdown().await.unwrap();
}

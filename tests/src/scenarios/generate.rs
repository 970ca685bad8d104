//! Text for services, without a session: turns, their ends, what a stream remembers, deadlines, and who may ask.

use std::time::{Duration, Instant};

use chatbox_core::config::{ModelConfig, OnLoss};
use chatbox_proto::v1::{
    ErrorCode, FinishReason,
    generate_request::{Frame, Parameters, PromptRole},
    generate_response::Event,
};
use serde_json::json;
use tonic::{Code, metadata::MetadataMap};

use super::routing::{add, model, patient};
use crate::harness::{
    contract::error_info,
    gate::Gate,
    generate::{Generation, SeenTurn, start},
    grpc::{self, Core},
    programs::run,
    provider::{Dialect, Provider, Script},
    stack::{Setup, Stack},
    token::claims,
    wait::LIMIT,
};

/// A token of a service with this scope.
pub(super) fn service_token(stack: &Stack, name: &str, scope: &str) -> String {
    let mut claims = claims(name, "service");
    claims["scope"] = json!(scope);
    stack.token_of(&claims).unwrap()
}

/// The calls of core as a service that may generate.
pub(super) fn service(stack: &Stack, name: &str) -> Core {
    let token = service_token(stack, name, "generate");
    grpc::core(grpc::channel(stack.addresses().grpc).unwrap(), Some(&token)).unwrap()
}

/// A setup whose model `m` may take its time.
pub(super) fn with_model(provider: &Provider) -> Setup {
    let mut setup = Setup::new().unwrap();
    add(&mut setup, patient(Dialect::OpenAi, provider, "m"), model("m"));
    setup
}

fn seen(turn: &SeenTurn) -> (FinishReason, &str) {
    (turn.end.finish_reason(), turn.text.as_str())
}

fn said(messages: &[(String, String)]) -> Vec<(&str, &str)> {
    messages.iter().map(|(role, text)| (role.as_str(), text.as_str())).collect()
}

#[tokio::test]
async fn turns_of_a_stream_share_a_conversation_and_say_what_they_used() {
    let provider = Provider::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    for (dialect, id) in [(Dialect::OpenAi, "one"), (Dialect::Anthropic, "two")] {
        let model = ModelConfig { system_prompt: format!("be {id}"), ..model(id) };
        add(&mut setup, patient(dialect, &provider, id), model);
    }
    let stack = Stack::start(setup).await.unwrap();
    let mut stream = Generation::open(service(&stack, "indexer")).await.unwrap();
    provider.script("one", Script::reply(["fi", "rst"]).header("x-request-id", "req-1"));
    stream.ask("a", "", "hello").await.unwrap();
    let turn = stream.turn("a").await.unwrap();
    assert_eq!((seen(&turn), turn.models.as_slice()), ((FinishReason::Stop, "first"), &["one".to_owned()][..]));
    assert_eq!(turn.end.provider_request_id, "req-1");
    let usage = turn.end.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.estimated), (7, 3, false));

    // Another model goes on with the same conversation, with what this start asks of it.
    let parameters =
        Parameters { max_output_tokens: Some(5), temperature: Some(0.5), top_p: Some(0.25), stop: vec!["END".into()] };
    let next = start("two", &[(PromptRole::Assistant, "really"), (PromptRole::User, "more")], Some(parameters));
    provider.script("two", Script::reply(["second"]));
    stream.send("b", Frame::Start(next)).await.unwrap();
    assert_eq!(seen(&stream.turn("b").await.unwrap()), (FinishReason::Stop, "second"));
    let asked = provider.requests();
    assert_eq!(said(&asked[0].messages()), [("system", "be one"), ("user", "hello")]);
    assert_eq!(said(&asked[1].messages()), [("user", "hello"), ("assistant", "firstreally"), ("user", "more")]);
    let body = &asked[1].body;
    assert_eq!(
        (&body["max_tokens"], &body["temperature"], &body["top_p"], &body["stop_sequences"], &body["system"]),
        (&json!(5), &json!(0.5), &json!(0.25), &json!(["END"]), &json!("be two"))
    );
    assert!(!asked[1].body.to_string().contains("indexer"), "the caller has no name at the provider");

    // Instructions of the service's own take the place of the model's.
    let mut other = Generation::open(service(&stack, "indexer")).await.unwrap();
    let own = start("one", &[(PromptRole::System, "be brief"), (PromptRole::User, "hi")], None);
    other.send("", Frame::Start(own)).await.unwrap();
    assert_eq!(seen(&other.turn("").await.unwrap()), (FinishReason::Stop, "You said: hi"));
    assert_eq!(said(&provider.requests()[2].messages()), [("system", "be brief"), ("user", "hi")]);
    other.half_close();
    other.ended().await.unwrap();
    drop(stream);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_cancel_and_a_client_that_leaves_close_the_request_upstream_within_a_second() {
    let provider = Provider::start().await.unwrap();
    let stack = Stack::start(with_model(&provider)).await.unwrap();
    let mut stream = Generation::open(service(&stack, "indexer")).await.unwrap();
    // Nothing runs: nothing happens.
    stream.cancel().await.unwrap();
    provider.script("m", Script::stream().delta("pärt").hang());
    stream.ask("a", "m", "go on").await.unwrap();
    assert!(matches!(stream.expect("a").await.unwrap(), Event::Started(_)));
    assert!(matches!(stream.expect("a").await.unwrap(), Event::Delta(_)));
    let began = Instant::now();
    stream.cancel().await.unwrap();
    let Event::Finished(end) = stream.expect("a").await.unwrap() else { panic!("not the end") };
    provider.wait_left(1).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let usage = end.usage.unwrap();
    assert_eq!((end.finish_reason(), usage.completion_tokens, usage.estimated), (FinishReason::Cancelled, 2, true));

    // What was said until then is part of the conversation.
    provider.script("m", Script::stream().delta("more").hang());
    stream.ask("b", "m", "and?").await.unwrap();
    assert!(matches!(stream.expect("b").await.unwrap(), Event::Started(_)));
    let asked = provider.requests();
    assert_eq!(said(&asked[1].messages()), [("user", "go on"), ("assistant", "pärt"), ("user", "and?")]);
    let began = Instant::now();
    drop(stream);
    provider.wait_left(2).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn every_fault_of_a_provider_is_one_typed_end_and_a_failed_turn_leaves_no_trace() {
    let provider = Provider::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    let dialects = [(Dialect::OpenAi, "one"), (Dialect::Anthropic, "two"), (Dialect::Dify, "three")];
    for (dialect, id) in dialects {
        let mut provider = patient(dialect, &provider, id);
        provider.chunk_timeout = Duration::from_millis(300);
        provider.breaker_failures = 0;
        add(&mut setup, provider, model(id));
    }
    let stack = Stack::start(setup).await.unwrap();
    for (_, id) in dialects {
        let mut stream = Generation::open(service(&stack, "indexer")).await.unwrap();
        let down = json!({"error": {"message": "down"}});
        for (index, (script, finish, text)) in [
            (Script::status(500, &down), FinishReason::ProviderError, ""),
            (Script::stream().reset(), FinishReason::ProviderError, ""),
            (Script::stream().delta("half").truncate(), FinishReason::ProviderError, "half"),
            (Script::stream().delta("half").reset(), FinishReason::ProviderError, "half"),
            (Script::stream().delta("half").error_event("boom"), FinishReason::ProviderError, "half"),
            (Script::stream().delta("half").bad_json(), FinishReason::ProviderError, "half"),
            (Script::stream().delta("half").hang(), FinishReason::Timeout, "half"),
        ]
        .into_iter()
        .enumerate()
        {
            provider.script(id, script);
            let request_id = format!("fault-{index}");
            stream.ask(&request_id, id, "hello").await.unwrap();
            let turn = stream.turn(&request_id).await.unwrap();
            assert_eq!(seen(&turn), (finish, text), "{id} {request_id}");
        }
        provider.script(id, Script::reply(["well"]));
        stream.ask("good", id, "again").await.unwrap();
        assert_eq!(seen(&stream.turn("good").await.unwrap()), (FinishReason::Stop, "well"), "{id}");
        let asked = provider.requests();
        assert_eq!(said(&asked.last().unwrap().messages()), [("user", "again")], "{id}");
        stream.half_close();
        stream.ended().await.unwrap();
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_fallback_is_named_before_the_text_and_again_in_the_middle() {
    let provider = Provider::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    for (id, on_loss) in [("one", OnLoss::Restart), ("two", OnLoss::Finish)] {
        let fallbacks = if id == "one" { vec!["two".to_owned()] } else { Vec::new() };
        add(&mut setup, patient(Dialect::OpenAi, &provider, id), ModelConfig { fallbacks, on_loss, ..model(id) });
    }
    let stack = Stack::start(setup).await.unwrap();
    let mut stream = Generation::open(service(&stack, "indexer")).await.unwrap();
    provider.script("one", Script::status(503, &json!({})));
    provider.script("two", Script::reply(["hello"]));
    stream.ask("a", "one", "x").await.unwrap();
    let turn = stream.turn("a").await.unwrap();
    assert_eq!((turn.models.as_slice(), turn.text.as_str()), (&["two".to_owned()][..], "hello"));
    provider.script("one", Script::stream().delta("ha").truncate());
    provider.script("two", Script::reply(["hello"]));
    stream.ask("b", "one", "x").await.unwrap();
    let turn = stream.turn("b").await.unwrap();
    assert_eq!(
        (turn.models.as_slice(), turn.text.as_str()),
        (&["one".to_owned(), "two".to_owned()][..], "ha\n\n---\n\nhello")
    );
    drop(stream);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_deadline_of_the_call_ends_the_turn_at_the_provider_too() {
    let provider = Provider::start().await.unwrap();
    let stack = Stack::start(with_model(&provider)).await.unwrap();
    provider.always("m", Script::stream().delta("slow").hang());
    let deadline = Some(Duration::from_secs(2));
    let mut stream = Generation::open_with(service(&stack, "indexer"), MetadataMap::new(), deadline).await.unwrap();
    for id in ["runs", "waits"] {
        stream.ask(id, "m", "x").await.unwrap();
    }
    let turn = stream.turn("runs").await.unwrap();
    assert!(turn.end.finish_reason() == FinishReason::Timeout && "slow".starts_with(&turn.text), "{turn:?}");
    // The other had no time left: it may have begun, or not.
    match stream.expect("waits").await.unwrap() {
        Event::Error(error) => assert_eq!(error.code(), ErrorCode::DeadlineExceeded),
        Event::Finished(end) => assert_eq!(end.finish_reason(), FinishReason::Timeout),
        other => panic!("{other:?}"),
    }
    let status = stream.ended().await.unwrap_err();
    assert_eq!(
        (status.code(), error_info(&status).unwrap().reason.as_str()),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED")
    );
    provider.wait_left(1).await.unwrap();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn only_services_with_the_scope_may_generate_and_only_models_for_them() {
    let provider = Provider::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    add(&mut setup, patient(Dialect::OpenAi, &provider, "all"), model("all"));
    let roles = vec!["admin".to_owned()];
    add(&mut setup, patient(Dialect::OpenAi, &provider, "few"), ModelConfig { roles, ..model("few") });
    let stack = Stack::start(setup).await.unwrap();
    let channel = grpc::channel(stack.addresses().grpc).unwrap();
    let refused = [
        (None, Code::Unauthenticated),
        (Some(stack.token("alice", "user").unwrap()), Code::PermissionDenied),
        (Some(stack.token("alice", "admin").unwrap()), Code::PermissionDenied),
        (Some(service_token(&stack, "indexer", "files sessions")), Code::PermissionDenied),
    ];
    for (token, code) in refused {
        let status = Generation::open(grpc::core(channel.clone(), token.as_deref()).unwrap()).await.unwrap_err();
        assert_eq!(status.code(), code);
    }
    let mut stream = Generation::open(service(&stack, "indexer")).await.unwrap();
    for (id, model) in [("unknown", "nope"), ("foreign", "few")] {
        stream.ask(id, model, "x").await.unwrap();
        let Event::Error(error) = stream.expect(id).await.unwrap() else { panic!("no error") };
        assert_eq!((error.code(), error.request_id.as_str()), (ErrorCode::InvalidArgument, id));
        assert_eq!(error.field_violations[0].field, "start.model");
    }
    stream.ask("good", "all", "x").await.unwrap();
    assert_eq!(seen(&stream.turn("good").await.unwrap()), (FinishReason::Stop, "You said: x"));
    assert_eq!(provider.requests().len(), 1);
    stream.half_close();
    stream.ended().await.unwrap();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_core_that_leaves_lets_the_turn_finish_and_cuts_it_after_the_grace() {
    for grace in [LIMIT, Duration::from_millis(300)] {
        let provider = Provider::start().await.unwrap();
        let mut setup = with_model(&provider);
        (setup.core.drain.grace, setup.core.drain.deadline) = (grace, 2 * LIMIT);
        let mut stack = Stack::start(setup).await.unwrap();
        let mut stream = Generation::open(service(&stack, "indexer")).await.unwrap();
        let gate = Gate::new();
        provider.script("m", Script::stream().delta("half").gate(&gate).delta(" whole").finish("stop").done());
        for id in ["runs", "waits"] {
            stream.ask(id, "m", "x").await.unwrap();
        }
        assert!(matches!(stream.expect("runs").await.unwrap(), Event::Started(_)));
        assert!(matches!(stream.expect("runs").await.unwrap(), Event::Delta(_)));
        let reading = async {
            let going = stream.expect("").await.unwrap();
            assert!(matches!(&going, Event::GoingAway(going) if going.reason == "SHUTTING_DOWN"), "{going:?}");
            let Event::Error(error) = stream.expect("waits").await.unwrap() else { panic!("no error") };
            assert_eq!((error.code(), error.reason.as_str()), (ErrorCode::Unavailable, "SHUTTING_DOWN"));
            if grace == LIMIT {
                stream.ask("late", "m", "x").await.unwrap();
                let Event::Error(error) = stream.expect("late").await.unwrap() else { panic!("no error") };
                assert_eq!(error.code(), ErrorCode::Unavailable);
                gate.open();
            }
            let mut text = String::new();
            let end = loop {
                match stream.expect("runs").await.unwrap() {
                    Event::Delta(delta) => text.push_str(&delta.text),
                    Event::Finished(end) => break end,
                    other => panic!("{other:?}"),
                }
            };
            let status = stream.ended().await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable);
            (end.finish_reason(), text)
        };
        let (stopped, outcome) = tokio::join!(stack.stop_core(), reading);
        stopped.unwrap();
        let expect = if grace == LIMIT { (FinishReason::Stop, " whole") } else { (FinishReason::Interrupted, "") };
        assert_eq!((outcome.0, outcome.1.as_str()), expect);
        stack.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn grpcurl_and_buf_hold_a_conversation_of_two_turns() {
    const FRAMES: &str = r#"
{"requestId": "1", "start": {"messages": [{"role": "PROMPT_ROLE_USER", "text": "hello"}]}}
{"requestId": "2", "start": {"messages": [{"role": "PROMPT_ROLE_USER", "text": "and again"}]}}
"#;
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let header = format!("authorization: Bearer {}", service_token(&stack, "indexer", "generate"));
    let target = stack.addresses().grpc.to_string();
    let grpcurl = ["-plaintext", "-H", &header, "-d", "@", &target, "chatbox.v1.ChatCore/Generate"];
    let url = format!("http://{target}/chatbox.v1.ChatCore/Generate");
    let buf = ["curl", "--protocol", "grpc", "--http2-prior-knowledge", "-H", &header, "-d", "@-", &url];
    for (program, arguments) in [("bin/grpcurl", &grpcurl[..]), ("bin/buf", &buf[..])] {
        let output = run(program, arguments, FRAMES, LIMIT).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout.matches("FINISH_REASON_STOP").count(), 2, "{output:?}");
        assert_eq!(output.stdout.matches("\"started\"").count(), 2, "{output:?}");
    }
    stack.shutdown().await.unwrap();
}

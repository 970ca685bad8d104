//! Whatever a provider does, a reply ends with exactly one typed outcome, its text so far is kept, and the session goes on.

use std::time::{Duration, Instant};

use chatbox_core::config::{ModelConfig, ProviderConfig};
use chatbox_proto::v1::{
    FinishReason, Message,
    chat_request::{Frame, Open, Read},
    chat_response::Event,
};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::transcript::{Transcript, all_answered};
use crate::harness::{
    client::{Answer, Client, Transport, streamed},
    gate::Gate,
    history,
    llmock::Llmock,
    provider::{Provider, Script},
    stack::{Setup, Stack},
    wait::LIMIT,
};

/// What the provider says before it fails.
const PART: &str = "pärt ";

/// Falls silent before its first text: nothing else is asked of it, so that it may be short.
const QUICK_START: &str = "quick-start";
/// Falls silent after its first text.
const QUICK_CHUNK: &str = "quick-chunk";
/// Never silent for long, and never done.
const QUICK_TOTAL: &str = "quick-total";
/// Fails by what it says: its times are so long that no busy machine is taken for a silent provider.
const PATIENT: &str = "patient";
/// Like [`PATIENT`], but it is tried again.
const STUBBORN: &str = "stubborn";

/// One way to fail.
struct Fault {
    name: &'static str,
    provider: &'static str,
    script: Script,
    finish: FinishReason,
    text: &'static str,
}

fn fault(
    name: &'static str,
    provider: &'static str,
    finish: FinishReason,
    text: &'static str,
    script: Script,
) -> Fault {
    Fault { name, provider, script, finish, text }
}

/// All of them. The gate opens once the client has the text: a reset may overtake what was sent before it.
fn faults(gate: &Gate) -> Vec<Fault> {
    use FinishReason::{Filtered, Length, ProviderError, Stop, Timeout};
    let begun = || Script::stream().delta(PART);
    let answer = |status, body: Value| Script::status(status, &body);
    vec![
        fault("hang-before-head", QUICK_START, Timeout, "", Script::stream().hang_before_head()),
        fault("hang-before-text", QUICK_START, Timeout, "", Script::stream().hang()),
        fault("hang-in-text", QUICK_CHUNK, Timeout, PART, begun().hang()),
        fault("hang-until-total", QUICK_TOTAL, Timeout, PART, begun().hang()),
        fault("reset-before-head", PATIENT, ProviderError, "", Script::stream().reset_before_head()),
        fault("reset-in-text", PATIENT, ProviderError, PART, begun().gate(gate).reset()),
        fault("truncated", PATIENT, ProviderError, PART, begun().gate(gate).truncate()),
        fault("ends-without-mark", PATIENT, ProviderError, PART, begun()),
        fault("done-without-reason", PATIENT, ProviderError, PART, begun().done()),
        fault("bad-json", PATIENT, ProviderError, PART, begun().bad_json().finish("stop").done()),
        fault("not-an-object", PATIENT, ProviderError, PART, begun().data("[1]").finish("stop").done()),
        fault("invalid-utf8", PATIENT, ProviderError, PART, begun().invalid_utf8().finish("stop").done()),
        fault("huge-line", PATIENT, ProviderError, PART, begun().huge_line(200_000)),
        fault("null-choices", PATIENT, ProviderError, PART, begun().null_choices()),
        fault("null-choices-then-end", PATIENT, Stop, PART, begun().null_choices().finish("stop").done()),
        fault("error-event", PATIENT, ProviderError, PART, begun().error_event("boom").finish("stop").done()),
        fault("error-event-first", PATIENT, ProviderError, "", Script::stream().error_event("boom")),
        fault("status-400", PATIENT, ProviderError, "", answer(400, json!({"error": {"message": "timeout"}}))),
        fault("status-401", PATIENT, ProviderError, "", answer(401, json!({"error": {"message": "no"}}))),
        fault("status-500", PATIENT, ProviderError, "", answer(500, json!("oops"))),
        fault("status-429", PATIENT, ProviderError, "", Script::too_many_requests(Duration::ZERO)),
        fault("not-a-stream", PATIENT, ProviderError, "", answer(200, json!({"choices": []}))),
        fault("filtered", PATIENT, Filtered, PART, begun().finish("content_filter").done()),
        fault("at-its-limit", PATIENT, Length, PART, begun().finish("length").done()),
    ]
}

fn setup(base_url: &str, models: &[(&str, &str)]) -> Setup {
    let patient = ProviderConfig {
        base_url: base_url.to_owned(),
        first_byte_timeout: LIMIT,
        chunk_timeout: LIMIT,
        total_timeout: 2 * LIMIT,
        retries: 0,
        backoff: Duration::from_millis(20),
        event_bytes: chatbox_proto::settings::ByteSize::kib(64),
        ..ProviderConfig::default()
    };
    let short = Duration::from_millis(300);
    let providers = [
        (QUICK_START, ProviderConfig { first_byte_timeout: short, ..patient.clone() }),
        (QUICK_CHUNK, ProviderConfig { chunk_timeout: short, ..patient.clone() }),
        (QUICK_TOTAL, ProviderConfig { total_timeout: Duration::from_secs(3), ..patient.clone() }),
        (STUBBORN, ProviderConfig { retries: 2, ..patient.clone() }),
        (PATIENT, patient),
    ];
    Setup::new().unwrap().with(|setup| {
        for (name, provider) in providers {
            setup.core.providers.insert(name.to_owned(), provider);
        }
        for (id, provider) in models {
            let model = ModelConfig { id: (*id).into(), provider: (*provider).into(), ..ModelConfig::default() };
            setup.core.models.push(model);
        }
        models[0].0.clone_into(&mut setup.core.default_model);
    })
}

/// Opens a session with this model and asks a first question.
async fn ask(stack: &Stack, transport: Transport, user: &str, model: &str) -> (Client, String) {
    let mut client = stack.connect(transport, user).await.unwrap();
    let open = Open { model: model.to_owned(), ..Open::default() };
    let session = client.open(open).await.unwrap().session.unwrap();
    assert_eq!(session.model, model);
    client.say("first", "question").await.unwrap();
    (client, session.session_id)
}

/// What the session has seen and stored, checked against each other.
async fn settled(stack: &Stack, client: &mut Client, user: &str, session_id: &str) -> (Transcript, Vec<Message>) {
    // Answered after everything that was queued before it.
    let answer = client.request(Frame::Read(Read { seq: 1 })).await.unwrap();
    assert!(matches!(answer, Answer::Ack(_)), "{answer:?}");
    let mut transcript = Transcript::default();
    transcript.keep(client);
    let stored = history::agreed(&mut stack.core(user).unwrap(), &stack.http(user).unwrap(), session_id).await.unwrap();
    transcript.check(&stored).unwrap();
    all_answered(&stored).unwrap();
    (transcript, stored)
}

async fn ends_once(stack: &Stack, provider: &Provider, transport: Transport, index: usize) {
    let gate = Gate::new();
    let fault = faults(&gate).swap_remove(index);
    let (name, user) = (fault.name, format!("{}-{transport:?}", fault.name));
    provider.script(name, fault.script);
    let (mut client, session_id) = ask(stack, transport, &user, name).await;
    if !fault.text.is_empty() {
        client.until("the first piece", |event| matches!(event, Event::ReplyDelta(_)).then_some(())).await.unwrap();
    }
    gate.open();
    let reply = client.reply().await.unwrap();
    assert_eq!((reply.finished.finish_reason(), reply.finished.text.as_str()), (fault.finish, fault.text), "{name}");
    assert_eq!(reply.streamed, fault.text, "{name}");
    let usage = reply.finished.usage.unwrap();
    assert!(usage.estimated && (usage.completion_tokens > 0) != fault.text.is_empty(), "{name}: {usage:?}");

    let mut texts = vec!["question", fault.text];
    if fault.provider == PATIENT {
        // There is no script for the second question: it is answered.
        texts.extend(["and now?", "You said: and now?"]);
        client.say("second", "and now?").await.unwrap();
        let second = client.reply().await.unwrap().finished;
        assert_eq!((second.finish_reason(), second.usage.unwrap().estimated), (FinishReason::Stop, false), "{name}");
    }
    let (transcript, stored) = settled(stack, &mut client, &user, &session_id).await;
    assert_eq!(transcript.finished().len(), texts.len() / 2, "{name}");
    assert!(!transcript.events().iter().any(|event| matches!(event, Event::Error(_))), "{name}");
    assert_eq!(stored.iter().map(|message| message.text.as_str()).collect::<Vec<_>>(), texts, "{name}");
}

#[tokio::test]
async fn every_fault_of_a_provider_is_one_typed_outcome_on_every_transport() {
    let provider = Provider::start().await.unwrap();
    let all = faults(&Gate::new());
    let models: Vec<_> = all.iter().map(|fault| (fault.name, fault.provider)).collect();
    let stack = Stack::start(setup(&provider.base_url(), &models)).await.unwrap();
    let (stack_ref, provider_ref) = (&stack, &provider);
    let each = (0..all.len()).map(|index| {
        Box::pin(async move {
            for transport in Transport::ALL {
                ends_once(stack_ref, provider_ref, transport, index).await;
            }
        })
    });
    join_all(each).await;
    for fault in &all {
        let (outcome, count) = match fault.finish {
            FinishReason::Timeout => ("timeout", 3.0),
            FinishReason::Filtered => ("filtered", 3.0),
            FinishReason::Length => ("length", 3.0),
            FinishReason::Stop => ("stop", 6.0),
            _ => ("provider_error", 3.0),
        };
        let figure = format!("chatbox_core_replies_total{{model=\"{}\",outcome=\"{outcome}\"}}", fault.name);
        assert_eq!(stack.core_metric(&figure).await.unwrap(), count, "{figure}");
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_provider_is_tried_again_only_before_its_first_text_and_not_sooner_than_it_asks() {
    let provider = Provider::start().await.unwrap();
    let stack = Stack::start(setup(&provider.base_url(), &[("m", STUBBORN)])).await.unwrap();
    let second = Duration::from_secs(1);
    let refused = |status, text: &str| Script::status(status, &json!({"error": {"message": text}}));
    let good = || Script::reply(["good"]);
    let gate = Gate::new();
    let cases = [
        ("asked to wait", vec![Script::too_many_requests(second), good()], second, Some("good")),
        ("asked to wait for an hour", vec![Script::too_many_requests(3_600 * second)], Duration::ZERO, None),
        ("down twice", vec![refused(500, ""), refused(503, ""), good()], Duration::ZERO, Some("good")),
        ("down for good", vec![refused(500, ""), refused(502, ""), refused(503, "")], Duration::ZERO, None),
        ("not connected", vec![Script::stream().reset_before_head(), good()], Duration::ZERO, Some("good")),
        ("a fault of ours", vec![refused(400, "timeout")], Duration::ZERO, None),
        ("broken in the text", vec![Script::stream().delta(PART).gate(&gate).reset()], Duration::ZERO, None),
    ];
    let mut requests = 0;
    for (name, scripts, at_least, text) in cases {
        requests += scripts.len();
        for script in scripts {
            provider.script("m", script);
        }
        let started = Instant::now();
        let (mut client, session_id) = ask(&stack, Transport::Grpc, name, "m").await;
        if name == "broken in the text" {
            client.until("text", |event| matches!(event, Event::ReplyDelta(_)).then_some(())).await.unwrap();
            gate.open();
        }
        let reply = client.reply().await.unwrap().finished;
        let finish = if text.is_some() { FinishReason::Stop } else { FinishReason::ProviderError };
        assert_eq!(reply.finish_reason(), finish, "{name}");
        assert!(started.elapsed() >= at_least, "{name}: {:?}", started.elapsed());
        assert!(text.is_none_or(|text| text == reply.text), "{name}: {}", reply.text);
        assert_eq!(provider.requests().len(), requests, "{name}");
        settled(&stack, &mut client, name, &session_id).await;
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_faults_of_a_server_that_we_did_not_write_are_typed_outcomes_too() {
    use FinishReason::{ProviderError, Stop, Timeout};
    let llmock = Llmock::start().await.unwrap();
    let models = [
        ("patient-model", PATIENT),
        ("start-model", QUICK_START),
        ("chunk-model", QUICK_CHUNK),
        ("stubborn-model", STUBBORN),
    ];
    let stack = Stack::start(setup(&llmock.base_url(), &models)).await.unwrap();
    let breaks = |kind: &str| json!({"type": "stream_fault", "kind": kind, "after_chunks": 4, "stall_seconds": 60});
    let fails = |status: u16| json!({"type": "fail", "status": status, "message": "boom"});
    let cases = [
        ("disconnect", "patient-model", breaks("disconnect"), ProviderError, true),
        ("truncate", "patient-model", breaks("truncate"), ProviderError, true),
        ("malformed", "patient-model", breaks("malformed"), ProviderError, true),
        ("stall", "chunk-model", breaks("stall"), Timeout, true),
        ("late", "start-model", json!({"type": "delay", "seconds": 60}), Timeout, false),
        ("late text", "start-model", json!({"type": "slow_first_token", "seconds": 60}), Timeout, false),
        ("400", "stubborn-model", fails(400), ProviderError, false),
        ("401", "stubborn-model", fails(401), ProviderError, false),
        ("429", "stubborn-model", json!({"type": "fail", "status": 429, "retry_after": 1}), Stop, true),
        ("503", "stubborn-model", fails(503), Stop, true),
    ];
    for transport in [Transport::ALL[0], Transport::Grpc] {
        for (name, model, behaviour, finish, has_text) in &cases {
            let user = format!("{name}-{transport:?}");
            llmock.scenario(&json!({"behaviors": [behaviour]})).await.unwrap();
            let (mut client, session_id) = ask(&stack, transport, &user, model).await;
            let reply = client.reply().await.unwrap();
            assert_eq!(reply.finished.finish_reason(), *finish, "{name}");
            assert_eq!(
                (reply.streamed.as_str(), reply.finished.text.is_empty()),
                (reply.finished.text.as_str(), !has_text)
            );
            assert_eq!(streamed(&client.seen, &reply.finished.message_id).unwrap(), reply.finished.text);
            settled(&stack, &mut client, &user, &session_id).await;
            if *finish == Stop {
                let verdict = llmock.verdict().await.unwrap();
                assert!(verdict.contains("PASS"), "{name}: {verdict}");
            }
        }
    }
    stack.shutdown().await.unwrap();
}

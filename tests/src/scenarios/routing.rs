//! Which model answers when providers fail, who waits when they are busy, and who may choose what.

use std::time::Duration;

use chatbox_core::config::{ModelConfig, OnLoss, ProviderConfig, ProviderKind};
use chatbox_proto::v1::{
    CreateSessionRequest, ErrorCode, FinishReason, ListModelsRequest, Message,
    chat_request::{Frame, Open},
    chat_response::Event,
};
use serde_json::json;
use tonic::Code;

use super::transcript::{Transcript, all_answered};
use crate::harness::{
    client::{Answer, Client, SeenReply, Transport},
    gate::Gate,
    grpc, history,
    provider::{Dialect, Provider, Script},
    stack::{Setup, Stack},
    token::claims,
    wait::{LIMIT, wait_for, within},
};

/// Stands between a lost answer and the one that begins again.
const MARK: &str = "\n\n---\n\n";

/// A provider of this dialect with times that no busy machine exceeds, and without retries. `model` matters to Dify alone.
pub(super) fn patient(dialect: Dialect, provider: &Provider, model: &str) -> ProviderConfig {
    let (kind, base_url) = match dialect {
        Dialect::OpenAi => (ProviderKind::OpenAi, provider.base_url()),
        Dialect::Anthropic => (ProviderKind::Anthropic, provider.base_url()),
        Dialect::Dify => (ProviderKind::Dify, provider.dify_url(model)),
    };
    ProviderConfig {
        kind,
        base_url,
        first_byte_timeout: LIMIT,
        chunk_timeout: LIMIT,
        total_timeout: 2 * LIMIT,
        retries: 0,
        backoff: Duration::from_millis(20),
        ..ProviderConfig::default()
    }
}

/// Adds a model with a provider of its own, of the same name. The first one is the default, instead of the demo model.
pub(super) fn add(setup: &mut Setup, provider: ProviderConfig, model: ModelConfig) {
    if setup.core.default_model == "demo" {
        setup.core.default_model.clone_from(&model.id);
    }
    setup.core.providers.insert(model.id.clone(), provider);
    setup.core.models.push(ModelConfig { provider: model.id.clone(), ..model });
}

pub(super) fn model(id: &str) -> ModelConfig {
    ModelConfig { id: id.to_owned(), ..ModelConfig::default() }
}

/// Opens a session and asks a first question.
pub(super) async fn ask(stack: &Stack, transport: Transport, user: &str, model: &str) -> (Client, String) {
    let mut client = stack.connect(transport, user).await.unwrap();
    let open = Open { model: model.to_owned(), ..Open::default() };
    let session = client.open(open).await.unwrap().session.unwrap();
    client.say("first", "question").await.unwrap();
    (client, session.session_id)
}

/// What the session has seen and stored, checked against each other.
pub(super) async fn settled(stack: &Stack, client: &mut Client, user: &str, session_id: &str) -> Vec<Message> {
    let read = client.request(Frame::Read(chatbox_proto::v1::chat_request::Read { seq: 1 })).await.unwrap();
    assert!(matches!(read, Answer::Ack(_)), "{read:?}");
    let mut transcript = Transcript::default();
    transcript.keep(client);
    let stored = history::agreed(&mut stack.core(user).unwrap(), &stack.http(user).unwrap(), session_id).await.unwrap();
    transcript.check(&stored).unwrap();
    all_answered(&stored).unwrap();
    stored
}

fn outcome(reply: &SeenReply) -> (FinishReason, &str, &str) {
    assert_eq!(reply.streamed, reply.finished.text);
    (reply.finished.finish_reason(), reply.finished.model.as_str(), reply.finished.text.as_str())
}

fn down() -> Script {
    Script::status(503, &json!({"error": {"message": "down"}}))
}

#[tokio::test]
async fn the_first_fallback_that_answers_is_named_whatever_they_speak() {
    let provider = Provider::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    let fallbacks = |list: &[&str]| list.iter().map(|id| (*id).to_owned()).collect();
    for (dialect, id, list) in [
        (Dialect::OpenAi, "one", &["two", "three"][..]),
        (Dialect::Anthropic, "two", &[]),
        (Dialect::Dify, "three", &["one"]),
    ] {
        let model = ModelConfig { fallbacks: fallbacks(list), system_prompt: format!("be {id}"), ..model(id) };
        add(&mut setup, patient(dialect, &provider, id), model);
    }
    let stack = Stack::start(setup).await.unwrap();

    provider.always("one", down());
    provider.script("two", Script::reply(["from ", "two"]));
    let (mut client, session_id) = ask(&stack, Transport::ALL[0], "alice", "one").await;
    let reply = client.reply().await.unwrap();
    assert_eq!(outcome(&reply), (FinishReason::Stop, "two", "from two"));
    assert_eq!(reply.finished.provider_request_id, "msg_2");
    let usage = reply.finished.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.estimated), (7, 3, 3, false));
    let asked = provider.requests();
    assert_eq!(asked[1].body["system"], "be one", "the instructions of the one that was chosen");

    provider.script("two", Script::too_many_requests(Duration::from_secs(3_600)));
    client.say("second", "question").await.unwrap();
    // Without a script it says what it was asked, which is everything so far.
    let reply = client.reply().await.unwrap();
    let said = "be one\n\nUser: question\n\nAssistant: from two\n\nUser: question";
    assert_eq!(outcome(&reply), (FinishReason::Stop, "three", format!("You said: {said}").as_str()));

    provider.script("two", down());
    provider.script("three", down());
    client.say("third", "question").await.unwrap();
    let reply = client.reply().await.unwrap();
    assert_eq!(outcome(&reply), (FinishReason::ProviderError, "one", ""));

    // What was wrong with the question is wrong everywhere.
    let before = provider.requests().len();
    provider.script("one", Script::status(400, &json!({"error": {"message": "try another model"}})));
    client.say("fourth", "question").await.unwrap();
    assert_eq!(outcome(&client.reply().await.unwrap()), (FinishReason::ProviderError, "one", ""));
    assert_eq!(provider.requests().len(), before + 1);

    let stored = settled(&stack, &mut client, "alice", &session_id).await;
    let models: Vec<_> = stored.iter().filter_map(|message| Some(message.reply.as_ref()?.model.as_str())).collect();
    assert_eq!(models, ["two", "three", "one", "one"]);
    for (model, outcome, count) in [("two", "stop", 1.0), ("three", "stop", 1.0), ("one", "provider_error", 2.0)] {
        let figure = format!("chatbox_core_replies_total{{model=\"{model}\",outcome=\"{outcome}\"}}");
        assert_eq!(stack.core_metric(&figure).await.unwrap(), count, "{figure}");
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_ends_there_or_begins_again_below_a_mark() {
    let provider = Provider::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    for (id, on_loss) in [("ends", OnLoss::Finish), ("again", OnLoss::Restart)] {
        let model = ModelConfig { fallbacks: vec!["spare".to_owned()], on_loss, ..model(id) };
        add(&mut setup, patient(Dialect::OpenAi, &provider, id), model);
    }
    add(&mut setup, patient(Dialect::Anthropic, &provider, "spare"), model("spare"));
    let stack = Stack::start(setup).await.unwrap();
    for transport in Transport::ALL {
        for (id, expect) in [
            ("ends", (FinishReason::ProviderError, "ends", "half".to_owned())),
            ("again", (FinishReason::Stop, "spare", format!("half{MARK}whole"))),
        ] {
            provider.script(id, Script::stream().delta("half").truncate());
            provider.script("spare", Script::reply(["whole"]));
            let user = format!("{id}-{transport:?}");
            let (mut client, session_id) = ask(&stack, transport, &user, id).await;
            let reply = client.reply().await.unwrap();
            assert_eq!(outcome(&reply), (expect.0, expect.1, expect.2.as_str()));
            let usage = reply.finished.usage.unwrap();
            assert!(usage.estimated, "nobody told what the lost one used: {usage:?}");
            assert_eq!(usage.completion_tokens, if id == "again" { 3 + 1 } else { 1 });
            settled(&stack, &mut client, &user, &session_id).await;
        }
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_provider_that_fails_too_often_is_left_alone_until_it_answers_again() {
    let provider = Provider::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    let fragile = ProviderConfig {
        breaker_failures: 3,
        breaker_pause: Duration::from_millis(1_500),
        ..patient(Dialect::OpenAi, &provider, "m")
    };
    add(&mut setup, fragile, model("m"));
    let stack = Stack::start(setup).await.unwrap();
    provider.always("m", down());
    let (mut client, session_id) = ask(&stack, Transport::Grpc, "alice", "m").await;
    client.reply().await.unwrap();
    for round in 0..2 {
        client.say(&format!("down-{round}"), "question").await.unwrap();
        client.reply().await.unwrap();
    }
    assert_eq!(provider.requests().len(), 3);
    let breaker = |phase: &str| format!("chatbox_core_provider_breaker{{provider=\"m\",phase=\"{phase}\"}}");
    assert_eq!(stack.core_metric(&breaker("open")).await.unwrap(), 1.0);
    // Nothing is asked while it is left alone. A machine that is slow here may be late for that, and then it is the probe.
    client.say("alone", "question").await.unwrap();
    let reply = client.reply().await.unwrap();
    assert_eq!(outcome(&reply), (FinishReason::ProviderError, "m", ""));
    let opened = stack.core_metric("chatbox_core_provider_breaker_opened_total{provider=\"m\"}").await.unwrap();
    assert_eq!(provider.requests().len() - 3, if opened > 1.0 { 1 } else { 0 });

    provider.always("m", Script::reply(["back"]));
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let back = within("it answers again", LIMIT, async {
        for round in 0_u32.. {
            ticks.tick().await;
            client.say(&format!("back-{round}"), "question").await.unwrap();
            let reply = client.reply().await.unwrap().finished;
            if reply.text == "back" {
                return reply.finish_reason();
            }
        }
        unreachable!("it is asked for ever")
    });
    assert_eq!(back.await.unwrap(), FinishReason::Stop);
    assert_eq!(stack.core_metric(&breaker("closed")).await.unwrap(), 1.0);
    settled(&stack, &mut client, "alice", &session_id).await;
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn who_finds_a_provider_busy_waits_in_turn_and_not_for_ever() {
    let provider = Provider::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    let busy = |queue, queue_timeout| ProviderConfig {
        concurrency: 1,
        queue,
        queue_timeout,
        ..patient(Dialect::Anthropic, &provider, "m")
    };
    add(&mut setup, busy(2, LIMIT), model("waits"));
    add(&mut setup, busy(0, LIMIT), model("full"));
    add(&mut setup, busy(2, Duration::from_millis(200)), model("soon"));
    let stack = Stack::start(setup).await.unwrap();
    let delta = |event: &Event| matches!(event, Event::ReplyDelta(_)).then_some(());
    for (name, expect) in [("full", FinishReason::ProviderError), ("soon", FinishReason::Timeout)] {
        let gate = Gate::new();
        provider.script(name, Script::stream().delta("a").gate(&gate).finish("stop").done());
        let (mut first, _) = ask(&stack, Transport::Grpc, &format!("{name}-1"), name).await;
        first.until("text", delta).await.unwrap();
        let (mut second, session_id) = ask(&stack, Transport::Grpc, &format!("{name}-2"), name).await;
        assert_eq!(outcome(&second.reply().await.unwrap()), (expect, name, ""));
        gate.open();
        assert_eq!(outcome(&first.reply().await.unwrap()).0, FinishReason::Stop);
        settled(&stack, &mut second, &format!("{name}-2"), &session_id).await;
    }

    let before = provider.requests().len();
    let gate = Gate::new();
    provider.script("waits", Script::stream().delta("a").gate(&gate).finish("stop").done());
    let (mut first, _) = ask(&stack, Transport::Grpc, "w-1", "waits").await;
    first.until("text", delta).await.unwrap();
    let (mut second, _) = ask(&stack, Transport::Grpc, "w-2", "waits").await;
    let (mut third, _) = ask(&stack, Transport::Grpc, "w-3", "waits").await;
    let waiting = "chatbox_core_provider_replies{provider=\"waits\",state=\"waiting\"}";
    wait_for("two wait", LIMIT, || async { stack.core_metric(waiting).await.ok().filter(|n| *n == 2.0) })
        .await
        .unwrap();
    assert_eq!(provider.requests().len(), before + 1);
    gate.open();
    for client in [&mut first, &mut second, &mut third] {
        assert_eq!(outcome(&client.reply().await.unwrap()).0, FinishReason::Stop);
    }
    assert_eq!(stack.core_metric(waiting).await.unwrap(), 0.0);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_model_for_some_roles_does_not_exist_for_the_others() {
    let provider = Provider::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    add(&mut setup, patient(Dialect::OpenAi, &provider, "all"), model("all"));
    let some = ModelConfig { roles: vec!["admin".to_owned()], ..model("some") };
    add(&mut setup, patient(Dialect::OpenAi, &provider, "some"), some);
    let stack = Stack::start(setup).await.unwrap();
    let as_role = |role: &str| {
        let token = stack.token_of(&claims(role, role)).unwrap();
        grpc::core(grpc::channel(stack.addresses().grpc).unwrap(), Some(&token)).unwrap()
    };
    for (role, ids) in [("user", &["demo", "all"][..]), ("admin", &["demo", "all", "some"])] {
        let mut core = as_role(role);
        let listed = core.list_models(ListModelsRequest {}).await.unwrap().into_inner();
        assert_eq!(listed.models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ids, "{role}");
        let create = |model: &str| CreateSessionRequest { model: model.to_owned(), ..Default::default() };
        let made = core.create_session(create("some")).await;
        if role == "admin" {
            assert_eq!(made.unwrap().into_inner().session.unwrap().model, "some");
            continue;
        }
        let (refused, unknown) = (made.unwrap_err(), core.create_session(create("nope")).await.unwrap_err());
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, unknown.message()));
        assert_eq!(refused.details(), unknown.details());
        let mut client = stack.connect(Transport::ALL[0], role).await.unwrap();
        let open = Open { model: "some".to_owned(), ..Open::default() };
        let Answer::Error(error) = client.request(Frame::Open(open)).await.unwrap() else { panic!("it was opened") };
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
    }
    stack.shutdown().await.unwrap();
}

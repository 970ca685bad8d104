//! People are told: mails through a real server, signed requests to a receiver, through failures on the way.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, http::HeaderMap, routing::post};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use chatbox_core::config::{ChannelConfig, ChannelKind, ProviderConfig, RuleConfig, SecurityConfig, ServerConfig};
use chatbox_proto::{
    token::Secret,
    v1::{
        FinishReason,
        chat_request::{Frame, Open, RequestHelp},
    },
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::{net::TcpListener, task::JoinSet};

use super::routing::{add, ask, model, patient};
use crate::harness::{
    client::{Answer, Transport},
    ports::free_port,
    provider::{Dialect, Provider, Script},
    smtp::{MailServer, PASSWORD, USER},
    stack::{Setup, Stack},
    wait::{LIMIT, wait_until, within},
};

const SIGNING: &str = "a-secret-for-webhooks-of-tests";

fn server(host: &str, port: u16, mail: &MailServer) -> ServerConfig {
    ServerConfig {
        host: host.to_owned(),
        port,
        security: SecurityConfig::StartTls,
        user: USER.to_owned(),
        password: Secret::new(PASSWORD),
        ca_file: mail.authority().display().to_string(),
        ..ServerConfig::default()
    }
}

fn channel(servers: Vec<ServerConfig>) -> ChannelConfig {
    ChannelConfig {
        from: "Chat <chat@example.org>".to_owned(),
        to: vec!["ops@example.org".to_owned(), "Night Shift <night@example.org>".to_owned()],
        servers,
        ..ChannelConfig::default()
    }
}

/// A provider that is given up after two failures.
fn fragile(provider: &Provider) -> ProviderConfig {
    ProviderConfig {
        breaker_failures: 2,
        breaker_pause: Duration::from_secs(600),
        ..patient(Dialect::OpenAi, provider, "fragile")
    }
}

fn rule(channels: &[&str]) -> RuleConfig {
    RuleConfig { channels: channels.iter().map(|name| (*name).to_owned()).collect(), ..RuleConfig::default() }
}

/// Asks until the provider is left alone.
async fn break_the_provider(stack: &Stack, provider: &Provider) {
    provider.always("fragile", Script::status(500, &json!({"error": {"message": "down"}})));
    let (mut client, _) = ask(stack, Transport::Grpc, "alice", "fragile").await;
    for number in 0..3 {
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.finished.finish_reason(), FinishReason::ProviderError);
        client.say(&format!("c{number}"), "and now?").await.unwrap();
    }
    client.reply().await.unwrap();
}

fn header<'a>(mail: &'a str, name: &str) -> &'a str {
    let prefix = format!("{name}: ");
    mail.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_else(|| panic!("no {name} in {mail}"))
}

/// What a webhook's receiver got.
type Received = Arc<Mutex<Vec<(HeaderMap, String)>>>;

/// A webhook's receiver, which ends with its task.
async fn receiver() -> (String, Received, JoinSet<()>) {
    let received = Received::default();
    let keep = Arc::clone(&received);
    let keep = move |headers: HeaderMap, body: String| async move {
        keep.lock().unwrap_or_else(PoisonError::into_inner).push((headers, body));
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        axum::serve(listener, Router::new().route("/hook", post(keep))).await.unwrap();
    });
    (url, received, server)
}

#[tokio::test]
async fn a_provider_that_fails_is_told_once_on_every_channel_through_the_first_server_that_takes_it() {
    let (provider, mail) = (Provider::start().await.unwrap(), MailServer::start().await.unwrap());
    let (url, received, _server) = receiver().await;
    let mut setup = Setup::new().unwrap();
    add(&mut setup, fragile(&provider), model("fragile"));
    let nobody = free_port().unwrap().port();
    let mails = channel(vec![server("localhost", nobody, &mail), server("localhost", mail.port(), &mail)]);
    let hook = ChannelConfig {
        kind: ChannelKind::Webhook,
        url: Secret::new(url),
        secret: Secret::new(SIGNING),
        allow_private: true,
        ..ChannelConfig::default()
    };
    setup.core.alerts.channels = [("mail".to_owned(), mails), ("hook".to_owned(), hook)].into();
    setup.core.alerts.rules = [("provider_down".to_owned(), rule(&["mail", "hook"]))].into();
    let stack = Stack::start(setup).await.unwrap();
    break_the_provider(&stack, &provider).await;

    let mails = mail.wait_for_mails(1).await.unwrap();
    assert_eq!(header(&mails[0], "Subject"), "The model provider fragile fails");
    assert_eq!(header(&mails[0], "X-MailFrom"), "chat@example.org");
    assert_eq!(header(&mails[0], "X-RcptTo"), "ops@example.org, night@example.org");
    assert_eq!(header(&mails[0], "Auto-Submitted"), "auto-generated");
    let id = header(&mails[0], "Message-ID");
    assert!(id.len() == 32 + "<@example.org>".len() && id.ends_with("@example.org>"), "{id}");

    let got = || received.lock().unwrap().clone();
    wait_until("a request", LIMIT, || !got().is_empty()).await.unwrap();
    let (headers, body) = got().remove(0);
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    let signed = format!("{}.{}.{body}", header("webhook-id"), header("webhook-timestamp"));
    let tag = BASE64_STANDARD.decode(header("webhook-signature").strip_prefix("v1,").unwrap()).unwrap();
    Hmac::<Sha256>::new_from_slice(SIGNING.as_bytes()).unwrap().chain_update(signed).verify_slice(&tag).unwrap();
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["type"], &body["id"]), (&json!("provider_down"), &json!(header("webhook-id"))));

    let delivered = r#"chatbox_core_alerts_total{event="provider_down",outcome="delivered"}"#;
    wait_until_metric(&stack, delivered, 2.0).await;
    stack.shutdown().await.unwrap();
    assert_eq!((mail.mails().unwrap().len(), got().len()), (1, 1));
}

async fn wait_until_metric(stack: &Stack, name: &str, value: f64) {
    let probe = || async { stack.core_metric(name).await.ok().filter(|now| *now >= value) };
    crate::harness::wait::wait_for(name, LIMIT, probe).await.unwrap();
}

#[tokio::test]
async fn an_alert_survives_a_server_that_hangs_and_a_core_that_leaves_meanwhile() {
    let provider = Provider::start().await.unwrap();
    let mut mail = MailServer::prepare().unwrap();
    // It takes connections and says nothing.
    let silent = TcpListener::bind(("127.0.0.1", mail.port())).await.unwrap();
    let mut setup = Setup::new().unwrap();
    add(&mut setup, fragile(&provider), model("fragile"));
    let mails = channel(vec![server("localhost", mail.port(), &mail)]);
    setup.core.alerts.channels = [("mail".to_owned(), mails)].into();
    setup.core.alerts.rules = [("provider_down".to_owned(), rule(&["mail"]))].into();
    let mut stack = Stack::start(setup).await.unwrap();
    break_the_provider(&stack, &provider).await;
    let (_held, _) = within("a connection to the mail server", LIMIT, silent.accept()).await.unwrap().unwrap();

    // The try is cut, and the core leaves in time.
    within("the core leaves", LIMIT, stack.stop_core()).await.unwrap().unwrap();
    drop((silent, _held));
    mail.run(false).await.unwrap();
    // The claim of the core that left would run out in three minutes: the row's time has come.
    let rows = rusqlite::Connection::open(stack.data().join("chatbox.db")).unwrap();
    assert_eq!(rows.execute("UPDATE outbox SET due_at = 0 WHERE state = 0", []).unwrap(), 1);
    drop(rows);
    stack.start_core().await.unwrap();
    let mails = mail.wait_for_mails(1).await.unwrap();
    assert_eq!(header(&mails[0], "Subject"), "The model provider fragile fails");
    stack.shutdown().await.unwrap();
    assert_eq!(mail.mails().unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_mail_server_refuses_for_now_stays_in_the_outbox_with_its_reason() {
    let provider = Provider::start().await.unwrap();
    let mut mail = MailServer::prepare().unwrap();
    mail.run(true).await.unwrap();
    let mut setup = Setup::new().unwrap();
    add(&mut setup, fragile(&provider), model("fragile"));
    setup.core.alerts.channels = [("mail".to_owned(), channel(vec![server("localhost", mail.port(), &mail)]))].into();
    setup.core.alerts.rules = [("provider_down".to_owned(), rule(&["mail"]))].into();
    let mut stack = Stack::start(setup).await.unwrap();
    break_the_provider(&stack, &provider).await;
    let retried = r#"chatbox_core_alerts_total{event="provider_down",outcome="retried"}"#;
    wait_until_metric(&stack, retried, 1.0).await;
    stack.stop_core().await.unwrap();
    mail.kill().unwrap();
    mail.run(false).await.unwrap();
    let rows = rusqlite::Connection::open(stack.data().join("chatbox.db")).unwrap();
    let error: String = rows.query_row("SELECT error FROM outbox WHERE state = 0", [], |row| row.get(0)).unwrap();
    assert_eq!(error, "localhost: answered 451");
    rows.execute("UPDATE outbox SET due_at = 0", []).unwrap();
    drop(rows);
    stack.start_core().await.unwrap();
    mail.wait_for_mails(1).await.unwrap();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_visitor_who_asks_for_a_person_is_told_of_by_one_mail_over_a_restart() {
    let mail = MailServer::start().await.unwrap();
    let mut setup = Setup::new().unwrap();
    setup.core.alerts.channels = [("mail".to_owned(), channel(vec![server("localhost", mail.port(), &mail)]))].into();
    setup.core.alerts.rules = [("help_requested".to_owned(), rule(&["mail"]))].into();
    "https://chat.example.org/admin/{session}".clone_into(&mut setup.core.alerts.link);
    let mut stack = Stack::start(setup).await.unwrap();
    let mut alice = stack.connect(Transport::Grpc, "alice").await.unwrap();
    let session = alice.open(Open::default()).await.unwrap().session.unwrap();
    let reason = "my parcel is lost\r\nBcc: everybody@example.org".to_owned();
    let ask = || Frame::RequestHelp(RequestHelp { reason: reason.clone() });
    for _ in 0..2 {
        assert!(matches!(alice.request(ask()).await.unwrap(), Answer::Ack(_)));
    }
    let mails = mail.wait_for_mails(1).await.unwrap();
    assert_eq!(header(&mails[0], "Subject"), "A visitor asks for a person");
    assert_eq!(header(&mails[0], "X-RcptTo"), "ops@example.org, night@example.org");
    assert!(mails[0].contains("alice asks for a person") && mails[0].contains(&session.session_id), "{}", mails[0]);
    // She waits still; the core that starts looks at all who wait, her first.
    stack.restart_core().await.unwrap();
    let mut bob = stack.connect(Transport::Grpc, "bob").await.unwrap();
    bob.open(Open::default()).await.unwrap();
    assert!(matches!(bob.request(ask()).await.unwrap(), Answer::Ack(_)));
    let mails = mail.wait_for_mails(2).await.unwrap();
    assert_eq!(mails.iter().filter(|mail| mail.contains("bob asks for a person")).count(), 1);
    stack.shutdown().await.unwrap();
    assert_eq!(mail.mails().unwrap().len(), 2);
}

//! What is said, and what opens doors, is in no log, whatever a provider does and however much is logged.

use chatbox_proto::v1::chat_request::Open;
use serde_json::json;

use crate::harness::{
    client::Transport,
    pair::{Pair, Role, Settings},
    provider::{Dialect, Provider, Script},
};

const MARK: &str = "MARKER";

#[tokio::test]
async fn no_text_and_no_key_reaches_the_log() {
    let provider = Provider::start().await.unwrap();
    let mut core = String::from("default_model = \"OpenAi\"\nlog.filter = \"debug\"\n");
    let mut models = String::new();
    for dialect in Dialect::ALL {
        let (kind, url) = match dialect {
            Dialect::OpenAi => ("openai", provider.base_url()),
            Dialect::Anthropic => ("anthropic", provider.base_url()),
            Dialect::Dify => ("dify", provider.dify_url("Dify")),
        };
        let id = format!("{dialect:?}");
        core.push_str(&format!(
            "providers.{id} = {{ kind = \"{kind}\", base_url = \"{url}\", api_key = \"{MARK}-key\", retries = 1, \
             backoff = \"10ms\", headers = {{ x-team = \"{MARK}-header\" }} }}\n"
        ));
        models.push_str(&format!("{{id = \"{id}\", provider = \"{id}\", system_prompt = \"{MARK}-system\"}},"));
        let body = json!({"error": {"message": format!("{MARK}-body"), "code": format!("{MARK}-code")}});
        provider.script(&id, Script::status(503, &body).header("x-request-id", "req-1").header("request-id", "req-1"));
        provider.script(&id, Script::stream().delta(&format!("{MARK}-text")).error_event(&format!("{MARK}-event")));
        provider.script(&id, Script::stream().delta(MARK).data(&format!("{{\"{MARK}\": ")));
        provider.script(&id, Script::reply([MARK]));
    }
    core.push_str(&format!("models = [{models}]\n"));
    let mut pair = Pair::start(Settings { core, ..Settings::default() }).await.unwrap();
    for dialect in Dialect::ALL {
        let id = format!("{dialect:?}");
        let mut client = pair.connect(Transport::ALL[0], &id).await.unwrap();
        client.open(Open { model: id, ..Open::default() }).await.unwrap();
        for round in 0..3 {
            client.say(&format!("c{round}"), &format!("{MARK}-question")).await.unwrap();
            let reply = client.reply().await.unwrap();
            assert!(reply.finished.text.starts_with(MARK), "{reply:?}");
        }
    }
    assert_eq!(provider.requests().len(), 4 * Dialect::ALL.len());
    let log = pair.process(Role::Core).log();
    for told in ["provider refused a request", "req-1", "provider failed"] {
        assert!(log.contains(told), "{told} in {log}");
    }
    let shown: Vec<_> = log.lines().filter(|line| line.contains(MARK)).collect();
    assert!(shown.is_empty(), "{shown:#?}");
    assert!(!pair.process(Role::Edge).log().contains(MARK));
}

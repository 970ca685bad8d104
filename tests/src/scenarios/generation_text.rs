//! Text is opaque: what a person writes reaches the model and comes back byte for byte, and what is secret reaches nobody.

use chatbox_proto::v1::{FinishReason, chat_request::Open, chat_response::Event, entry};
use serde_json::json;

use super::transcript::Transcript;
use crate::harness::{
    client::{Client, Transport},
    gate::Gate,
    history,
    pair::{Pair, Role, Settings},
    provider::{Provider, Script},
    stack::{Setup, Stack},
};

/// What software likes to change: markup, quotes, NUL, line ends, blanks at the ends, composed and decomposed letters, signs
/// beyond 16 bits, joined signs, a change of direction, a byte order mark, what looks like an escape.
const TEXT: &str = " \t<b> & \"q\" 'x' \u{0} ünï \u{0}u\u{308} 👩\u{200d}🚀 \u{202e}abc\u{202c} \u{feff} \\u0041 &amp; %3Cb%3E\r\n\n$\u{7f}\u{1} ";

fn kept() -> String {
    TEXT.replace('\0', "")
}

#[tokio::test]
async fn text_reaches_model_stream_and_history_byte_for_byte_but_for_nul() {
    let provider = Provider::start().await.unwrap();
    let stack = Stack::start(Setup::new().unwrap().with_models(&provider, &["m"])).await.unwrap();
    for (round, transport) in Transport::ALL.into_iter().enumerate() {
        let user = format!("user-{round}");
        let kept = kept();
        // In pieces that end inside of what a person takes for one sign.
        provider.script("m", Script::reply(kept.chars().map(String::from)));
        let mut client = stack.connect(transport, &user).await.unwrap();
        let mut transcript = Transcript::default();
        transcript.attach(&mut client).await.unwrap();
        client.say("first", TEXT).await.unwrap();
        let reply = client.reply().await.unwrap();
        assert_eq!((&reply.streamed, &reply.finished.text), (&kept, &kept));
        client.say("second", "again").await.unwrap();
        client.reply().await.unwrap();

        let asked = provider.wait_requests(2 * (round + 1)).await.unwrap();
        let prompt = |index: usize| asked[2 * round + index].messages();
        assert_eq!(prompt(0), [("user".to_owned(), kept.clone())]);
        let role = |role: &str, text: &str| (role.to_owned(), text.to_owned());
        assert_eq!(prompt(1), [role("user", &kept), role("assistant", &kept), role("user", "again")]);

        let entries = client.entries();
        let written = entries.iter().find_map(|entry| match &entry.kind {
            Some(entry::Kind::Message(message)) => Some(message.text.clone()),
            _ => None,
        });
        assert_eq!(written.as_ref(), Some(&kept));
        let session = transcript.session_id();
        let stored = history::agreed(&mut stack.core(&user).unwrap(), &stack.http(&user).unwrap(), session).await;
        let stored = stored.unwrap();
        assert_eq!(stored[..2].iter().map(|message| &message.text).collect::<Vec<_>>(), [&kept, &kept]);
        // Repeating it is the same message, whether or not the caller knows what becomes of NUL.
        for text in [TEXT, &kept] {
            assert!(client.say("first", text).await.unwrap().duplicate);
        }
    }
    stack.shutdown().await.unwrap();
}

/// The longest text that the default settings let a reply have.
const LONGEST: usize = 1 << 20;

#[tokio::test]
async fn a_reply_as_long_as_may_be_reaches_every_reader_as_it_is_and_ends_at_its_limit() {
    let provider = Provider::start().await.unwrap();
    let stack = Stack::start(Setup::new().unwrap().with_models(&provider, &["m"])).await.unwrap();
    let piece = "0123456789abcde ".repeat(1024);
    let quarter = LONGEST / 4;
    for (round, transport) in Transport::ALL.into_iter().enumerate() {
        let user = format!("user-{round}");
        let gates = [Gate::new(), Gate::new(), Gate::new(), Gate::new()];
        let mut script = Script::stream();
        for gate in &gates {
            script = (0..quarter / piece.len()).fold(script, |script, _| script.delta(&piece)).gate(gate);
        }
        provider.script("m", script.delta("one too many").finish("stop").done());
        let mut client = stack.connect(transport, &user).await.unwrap();
        let mut transcript = Transcript::default();
        transcript.attach(&mut client).await.unwrap();
        client.say("first", "go on").await.unwrap();
        // As a model does: no faster than its readers.
        for (number, gate) in (1..).zip(&gates) {
            let has = |event: &Event| {
                matches!(event, Event::ReplyDelta(delta) if delta.next_offset as usize >= number * quarter)
                    .then_some(())
            };
            client.until("a quarter", has).await.unwrap();
            gate.open();
        }
        let reply = client.reply().await.unwrap();
        assert_eq!((reply.finished.finish_reason(), reply.finished.text.len()), (FinishReason::Length, LONGEST));
        assert!(reply.streamed == reply.finished.text, "{} bytes were streamed", reply.streamed.len());
        client.say("second", "and now?").await.unwrap();
        client.reply().await.unwrap();
    }
    stack.shutdown().await.unwrap();
}

const OF_PROVIDER: &str = "MARKER-said-by-the-provider";
const OF_USER: &str = "MARKER-said-by-the-user";
const KEY: &str = "MARKER-api-key";

#[tokio::test]
async fn what_a_provider_says_about_its_failure_reaches_neither_client_nor_log() {
    let provider = Provider::start().await.unwrap();
    let error = json!({"error": {"message": OF_PROVIDER, "type": OF_PROVIDER, "code": OF_PROVIDER}});
    let begun = || Script::stream().delta(OF_PROVIDER);
    let scripts = [
        ("bad-request", Script::status(400, &error)),
        ("down", Script::status(503, &error).header("x-reason", OF_PROVIDER)),
        ("slow-down", Script::status(429, &error).header("retry-after", OF_PROVIDER)),
        ("event", Script::stream().data(&error.to_string())),
        ("named-event", Script::stream().bytes(format!("event: error\ndata: {error}\n\n"))),
        ("bad-json", Script::stream().data(&format!("{{\"{OF_PROVIDER}"))),
        ("bad-type", Script::stream().data(&json!({"choices": OF_PROVIDER}).to_string())),
        ("moved", Script::status(302, &error).header("location", &format!("{}/{OF_PROVIDER}", provider.base_url()))),
        ("truncated", begun().truncate()),
    ];
    let mut core = format!(
        "default_model = \"event\"\nlog.filter = \"trace\"\ndrain.notice = \"0s\"\ndrain.jitter = \"0s\"\n\
         [providers.scripted]\nbase_url = \"{}\"\napi_key = \"{KEY}\"\nretries = 1\nbackoff = \"0s\"\n",
        provider.base_url()
    );
    let models = scripts.each_ref().map(|(model, _)| *model);
    for (model, script) in scripts {
        core.push_str(&format!("[[models]]\nid = \"{model}\"\nprovider = \"scripted\"\n"));
        provider.always(model, script);
    }
    let edge = "log.filter = \"trace\"\ndrain.notice = \"0s\"\ndrain.jitter = \"0s\"\n".to_owned();
    let mut pair = Pair::start(Settings { core, edge, vars: Vec::new() }).await.unwrap();
    let mut markers: Vec<String> = [OF_PROVIDER, OF_USER, KEY].map(ToOwned::to_owned).into();
    let rounds = [Transport::ALL[0], Transport::Grpc].into_iter().flat_map(|t| models.map(|model| (t, model)));
    for (transport, model) in rounds {
        let token = pair.token(&format!("{model}-{transport:?}"), "user").unwrap();
        markers.extend(token.rsplit('.').next().map(ToOwned::to_owned));
        let mut client = Client::connect(transport, pair.addresses(), &token).await.unwrap();
        client.open(Open { model: model.to_owned(), ..Open::default() }).await.unwrap();
        client.say("one", OF_USER).await.unwrap();
        let reply = client.reply().await.unwrap().finished;
        assert_eq!(reply.finish_reason(), FinishReason::ProviderError, "{model}");
        let told = |event: &Event| !matches!(event, Event::ReplyDelta(_)) && format!("{event:?}").contains(OF_PROVIDER);
        // Its text is its text; nothing else that it says is passed on.
        let leaked: Vec<_> = client.seen.iter().filter(|event| told(event)).collect();
        assert!(if model == "truncated" { leaked.len() == 1 } else { leaked.is_empty() }, "{model}: {leaked:?}");
    }
    let asked = provider.requests();
    assert!(asked.iter().all(|request| request.headers["authorization"] == format!("Bearer {KEY}")));
    assert!(asked.iter().all(|request| request.path == "/v1/chat/completions"), "a redirect was followed");
    for role in Role::ALL {
        let log = pair.process(role).log();
        // Libraries included, as far as the edge lets them.
        assert!(log.contains("TRACE") || role == Role::Edge, "{role:?} does not log everything");
        for marker in &markers {
            let line = log.lines().find(|line| line.contains(marker));
            assert!(line.is_none(), "{role:?} logs {marker}: {line:?}");
        }
    }
    pair.shutdown().await.unwrap();
}

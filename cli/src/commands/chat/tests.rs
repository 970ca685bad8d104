//! Conversations with a real instance, as a person and as a program would have them.

use std::time::Duration;

use chatbox_proto::{
    json,
    settings::Vars,
    v1::{ChatResponse, FinishReason, SessionStatus, chat_response::Event},
};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

use super::testing::{Input, Style, chat};
use crate::{
    args::ChatArgs,
    client::Client,
    commands::dev::testing::{ANY_PORTS, AT_ONCE, Cable, Instance, LIMIT, SLOWLY, Written, chat_args, pipe},
};

/// The other end of a conversation.
struct Hands {
    input: mpsc::Sender<Input>,
    interrupt: mpsc::Sender<()>,
    out: Written,
    err: Written,
}

impl Hands {
    async fn types(&self, line: &str) {
        self.input.send(Input::Line(line.to_owned())).await.unwrap();
    }

    async fn presses_ctrl_c(&self) {
        self.interrupt.send(()).await.unwrap();
    }
}

fn client(args: &ChatArgs) -> Client {
    Client::new(&args.server, &Vars::new()).unwrap()
}

/// A conversation, and the hands it is led by.
fn begin(client: Client, style: Style) -> (impl Future<Output = anyhow::Result<u8>>, Hands) {
    let (input, lines) = mpsc::channel(8);
    let (interrupt, interrupts) = mpsc::channel(1);
    let (out, err) = (Written::new(), Written::new());
    let talk = chat(client, style, (Box::new(out.clone()), Box::new(err.clone())), (lines, interrupts));
    let talk = async { timeout(LIMIT, talk).await.expect("an end") };
    (talk, Hands { input, interrupt, out, err })
}

#[tokio::test]
async fn ctrl_c_stops_the_running_reply_and_the_conversation_goes_on() {
    let folder = TempDir::new().unwrap();
    let instance = Instance::start(folder.path(), ANY_PORTS, &[SLOWLY]).await;
    let args = chat_args(folder.path(), instance.started.grpc);
    let (talk, hands) = begin(client(&args), Style::Terminal);
    let person = async {
        hands.types("a long answer please").await;
        hands.out.contains("You asked for").await;
        hands.presses_ctrl_c().await;
        hands.out.contains("— stopped").await;
        hands.types("short").await;
        hands.out.contains("— complete").await;
        hands.types("/quit").await;
    };
    let (code, ()) = tokio::join!(talk, person);
    assert_eq!(code.unwrap(), 0);
    let session = client(&args).sessions(1).await.unwrap().remove(0);
    let messages = client(&args).messages_after(&session.session_id, 0).await.unwrap();
    let ends: Vec<_> = messages.iter().filter_map(|m| m.reply.as_ref().map(|reply| reply.finish_reason())).collect();
    assert_eq!(ends, [FinishReason::Cancelled, FinishReason::Stop]);
    instance.stop().await;
}

#[tokio::test]
async fn ctrl_c_twice_leaves_and_so_does_the_end_of_the_input() {
    let folder = TempDir::new().unwrap();
    let instance = Instance::start(folder.path(), ANY_PORTS, &[AT_ONCE]).await;
    let args = chat_args(folder.path(), instance.started.grpc);
    let (talk, hands) = begin(client(&args), Style::Terminal);
    let person = async {
        hands.out.contains("/help").await;
        hands.presses_ctrl_c().await;
        hands.out.contains("Ctrl-C again leaves").await;
        hands.presses_ctrl_c().await;
    };
    let (code, ()) = tokio::join!(talk, person);
    assert_eq!(code.unwrap(), super::talk::INTERRUPTED);

    let (talk, hands) = begin(client(&args), Style::Terminal);
    let Hands { input, interrupt: _interrupt, .. } = hands;
    drop(input);
    assert_eq!(talk.await.unwrap(), 0);
    instance.stop().await;
}

#[tokio::test]
async fn who_comes_back_sees_what_was_said_and_may_begin_anew() {
    let folder = TempDir::new().unwrap();
    let instance = Instance::start(folder.path(), ANY_PORTS, &[AT_ONCE]).await;
    let args = chat_args(folder.path(), instance.started.grpc);
    let (code, _, err) = pipe(&args, &["remember \u{1b}]0;title\u{7}this"]).await;
    assert_eq!((code, err.as_str()), (0, ""));

    let (talk, hands) = begin(client(&args), Style::Terminal);
    let person = async {
        hands.out.contains("— complete").await;
        hands.types("/models").await;
        hands.out.contains("* demo").await;
        hands.types("/new").await;
        hands.types("/nonsense").await;
        hands.out.contains("no such command").await;
        hands.types("/end").await;
        hands.out.contains("the session has ended").await;
        hands.types("too late").await;
        hands.out.contains("/new begins another").await;
        hands.types("/quit").await;
    };
    let (code, ()) = tokio::join!(talk, person);
    assert_eq!(code.unwrap(), 0);
    let text = anstream::adapter::strip_str(&hands.out.text()).to_string();
    assert!(text.contains("> remember this\ndemo\nThis is the built-in demo model"), "{text}");
    assert!(!hands.out.text().contains("\u{1b}]0;"), "escape sequences of others stay out");
    let sessions = client(&args).sessions(10).await.unwrap();
    let seen: Vec<_> = sessions.iter().map(|session| (session.status(), session.message_count)).collect();
    assert_eq!(seen, [(SessionStatus::Ended, 0), (SessionStatus::Ended, 2)]);
    instance.stop().await;
}

#[tokio::test]
async fn events_are_lines_of_canonical_json_and_tokens_are_renewed_in_time() {
    let folder = TempDir::new().unwrap();
    let warning = ("CHATBOX_CORE_SESSION_EXPIRY_WARNING", "1h");
    let instance = Instance::start(folder.path(), ANY_PORTS, &[AT_ONCE, warning]).await;
    let args = chat_args(folder.path(), instance.started.grpc);
    let client = client(&args).lifetime(Duration::from_secs(3601));
    let (talk, hands) = begin(client, Style::Events);
    let program = async {
        hands.types("hello").await;
        hands.out.contains("replyFinished").await;
        hands.out.contains("refresh-1").await;
        let Hands { input, interrupt, out, err } = hands;
        drop(input);
        (interrupt, out, err)
    };
    let (code, (_interrupt, out, err)) = tokio::join!(talk, program);
    assert_eq!((code.unwrap(), err.text().as_str()), (0, ""));
    let events: Vec<Event> = out
        .text()
        .lines()
        .filter_map(|line| json::from_slice::<ChatResponse>(line.as_bytes()).expect("canonical JSON").event)
        .collect();
    assert!(matches!(events.first(), Some(Event::Opened(_))), "{events:?}");
    let renewed = |event: &Event| matches!(event, Event::Ack(ack) if ack.request_id == "refresh-1");
    let expiring = |event: &Event| matches!(event, Event::TokenExpiring(_));
    assert!(events.iter().position(expiring) < events.iter().position(renewed), "{events:?}");
    instance.stop().await;
}

#[tokio::test]
async fn what_does_not_work_is_said_in_one_line_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    let other = TempDir::new().unwrap();
    let instance = Instance::start(folder.path(), ANY_PORTS, &[AT_ONCE]).await;
    let nobody = instance.started.grpc;
    // The folder of another instance: its tokens are not accepted here.
    Instance::start(other.path(), ANY_PORTS, &[]).await.stop().await;
    let (talk, _hands) = begin(client(&chat_args(other.path(), nobody)), Style::Replies);
    let error = format!("{:#}", talk.await.unwrap_err());
    assert!(error.contains("--data") && !error.contains('\n'), "{error}");

    let args = chat_args(folder.path(), nobody);
    let long = "x".repeat(40 * 1024);
    let (code, out, err) = pipe(&args, &[&long, "still there?"]).await;
    assert_eq!(code, 1, "one message was refused");
    assert!(err.contains("a message was not taken: ") && out.contains("> still there?"), "{err} {out}");
    instance.stop().await;

    let (talk, _hands) = begin(client(&args), Style::Replies);
    let error = format!("{:#}", talk.await.unwrap_err());
    assert!(error.contains("cannot reach http://127.0.0.1:") && error.contains("chatbox dev"), "{error}");
    let missing = chat_args(&folder.path().join("nowhere"), nobody);
    let error = Client::new(&missing.server, &Vars::new()).unwrap_err().to_string();
    assert!(error.contains("there is no instance in ") && !folder.path().join("nowhere").exists(), "{error}");
}

#[tokio::test]
async fn a_reply_goes_on_over_cut_connections_without_loss_or_doubling() {
    let folder = TempDir::new().unwrap();
    // So slowly that the reply outlives three reconnects with their pauses.
    let slowly = ("CHATBOX_CORE_PROVIDERS_DEMO_WORD_DELAY", "80ms");
    let instance = Instance::start(folder.path(), ANY_PORTS, &[slowly]).await;
    let cable = Cable::to(instance.started.grpc).await;
    let args = chat_args(folder.path(), cable.address);
    let (talk, Hands { input, interrupt: _interrupt, out, err }) = begin(client(&args), Style::Replies);
    input.try_send(Input::Line("something longish".to_owned())).unwrap();
    drop(input);
    let mut connections = cable.connections.clone();
    let cutting = async {
        for (cuts, seen) in ["built-in", "longish", "provider"].into_iter().enumerate() {
            out.contains(seen).await;
            // Each cuts a connection of its own.
            connections.wait_for(|count| *count > cuts).await.unwrap();
            cable.cut.send(()).await.unwrap();
        }
    };
    let (code, ()) = tokio::join!(talk, cutting);
    assert_eq!((code.unwrap(), err.text().as_str()), (0, ""));
    assert_eq!(*cable.connections.borrow(), 4, "one more than cuts");

    let session = client(&args).sessions(1).await.unwrap().remove(0);
    let messages = client(&args).messages_after(&session.session_id, 0).await.unwrap();
    let stored: Vec<_> =
        messages.iter().filter(|message| message.reply.is_some()).map(|message| &message.text).collect();
    assert_eq!(stored, [&out.text()]);
    instance.stop().await;
}

#[tokio::test]
async fn a_conversation_survives_the_restart_of_the_instance() {
    let folder = TempDir::new().unwrap();
    let no_grace = ("CHATBOX_CORE_DRAIN_GRACE", "0s");
    let first = Instance::start(folder.path(), ANY_PORTS, &[SLOWLY, no_grace]).await;
    let (http, grpc) = (first.started.http, first.started.grpc);
    let args = chat_args(folder.path(), grpc);

    let (talk, Hands { input, interrupt: _interrupt, out, err }) = begin(client(&args), Style::Replies);
    for line in ["a long answer please", "and now the short one"] {
        input.try_send(Input::Line(line.to_owned())).unwrap();
    }
    drop(input);
    let restarting = async {
        out.contains("You asked for").await;
        first.stop().await;
        Instance::start(folder.path(), &format!("--http {http} --grpc {grpc}"), &[AT_ONCE]).await
    };
    let (code, second) = tokio::join!(talk, restarting);
    // The first reply was cut, which is a failure; the second message was answered nonetheless.
    assert_eq!(code.unwrap(), 1);
    assert!(err.text().contains("interrupted"), "{}", err.text());
    let text = out.text();
    assert_eq!(
        (text.matches("You asked for").count(), text.matches("> and now the short one").count()),
        (1, 1),
        "{text}"
    );
    second.stop().await;
}

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chatbox_proto::settings::Mistakes;
use clap::Parser as _;
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener as AsyncListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use super::*;
use crate::{
    args::{Args, ChatArgs, Command},
    client::Client,
    commands::chat::testing::{Input, Style, chat},
};

/// Above everything that is waited for here.
const LIMIT: Duration = Duration::from_secs(20);

fn vars(list: &[(&str, &str)]) -> Vars {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn dev_args(folder: &Path, line: &str) -> DevArgs {
    let folder = folder.to_str().unwrap();
    let fixed = ["chatbox", "dev", "--no-local-models", "--data", folder];
    let args = Args::try_parse_from(fixed.into_iter().chain(line.split_whitespace())).unwrap();
    let Command::Dev(args) = args.command else { panic!("not dev") };
    args
}

fn chat_args(folder: &Path, grpc: SocketAddr) -> ChatArgs {
    let (folder, grpc) = (folder.to_str().unwrap(), grpc.to_string());
    let args = Args::try_parse_from(["chatbox", "chat", "--data", folder, "--grpc", &grpc]).unwrap();
    let Command::Chat(args) = args.command else { panic!("not chat") };
    args
}

async fn bind(args: &DevArgs, vars: Vars) -> Result<Dev> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Dev::bind(Prepared::new(args, vars).await?).await
}

/// A running instance.
struct Instance {
    started: Started,
    shutdown: CancellationToken,
    tasks: JoinSet<Result<()>>,
}

impl Instance {
    async fn start(folder: &Path, line: &str, list: &[(&str, &str)]) -> Self {
        let dev = bind(&dev_args(folder, line), vars(list)).await.unwrap();
        let (started, shutdown) = (dev.started.clone(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(dev.run(shutdown.clone()));
        timeout(LIMIT, ready(&started)).await.unwrap().unwrap();
        Self { started, shutdown, tasks }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        timeout(LIMIT, self.tasks.join_next()).await.unwrap().unwrap().unwrap().unwrap();
    }
}

const ANY_PORTS: &str = "--http 127.0.0.1:0 --grpc 127.0.0.1:0";
const AT_ONCE: (&str, &str) = ("CHATBOX_CORE_PROVIDERS_DEMO_WORD_DELAY", "0s");
const SLOWLY: (&str, &str) = ("CHATBOX_CORE_PROVIDERS_DEMO_WORD_DELAY", "10ms");

/// What was written, for whoever waits for something in it.
#[derive(Clone)]
struct Written(watch::Sender<String>);

impl Written {
    fn new() -> Self {
        Self(watch::Sender::new(String::new()))
    }

    fn text(&self) -> String {
        self.0.borrow().clone()
    }

    async fn contains(&self, text: &str) {
        let mut written = self.0.subscribe();
        let found = timeout(LIMIT, written.wait_for(|written| written.contains(text))).await;
        assert!(found.is_ok(), "{text:?} is not in {:?}", self.text());
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_modify(|text| text.push_str(std::str::from_utf8(bytes).unwrap()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Feeds these lines to `chatbox chat` as a program would; returns exit code, replies and complaints.
async fn pipe(args: &ChatArgs, lines: &[&str]) -> (u8, String, String) {
    let (out, err) = (Written::new(), Written::new());
    let (input, lines_of_input) = mpsc::channel(lines.len().max(1));
    for line in lines {
        input.try_send(Input::Line((*line).to_owned())).unwrap();
    }
    drop(input);
    let (_interrupt, interrupts) = mpsc::channel(1);
    let client = Client::new(&args.server, &Vars::new()).unwrap();
    let talk =
        chat(client, Style::Replies, (Box::new(out.clone()), Box::new(err.clone())), (lines_of_input, interrupts));
    let code = timeout(LIMIT, talk).await.expect("an end").unwrap();
    (code, out.text(), err.text())
}

#[tokio::test]
async fn a_conversation_goes_through_everything_twice_in_one_process() {
    let folder = TempDir::new().unwrap();
    for round in 1..=2 {
        let instance = Instance::start(folder.path(), ANY_PORTS, &[AT_ONCE]).await;
        let args = chat_args(folder.path(), instance.started.grpc);
        let (code, out, err) = pipe(&args, &["first question", "", "second question"]).await;
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        let (first, second) = (out.find("> first question"), out.find("> second question"));
        assert!(first.is_some() && first < second, "{out}");
        assert_eq!(out.matches("the built-in demo model").count(), 2, "{out}");

        // What was said before is still there.
        let client = Client::new(&args.server, &Vars::new()).unwrap();
        let sessions = client.sessions(10).await.unwrap();
        assert_eq!(sessions.iter().map(|session| session.message_count).collect::<Vec<_>>(), [4 * round]);
        assert_eq!(client.models().await.unwrap().default_model, "demo");
        instance.stop().await;
    }
}

#[tokio::test]
async fn a_second_instance_on_the_same_folder_is_refused_in_one_line() {
    let folder = TempDir::new().unwrap();
    let first = Instance::start(folder.path(), ANY_PORTS, &[]).await;
    let error = bind(&dev_args(folder.path(), ANY_PORTS), Vars::new()).await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.starts_with("another chatbox dev runs on ") && error.contains("--data"), "{error}");
    assert!(!error.contains('\n'), "{error}");
    first.stop().await;
    Instance::start(folder.path(), ANY_PORTS, &[]).await.stop().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_with_the_flag_that_chooses_another() {
    let folder = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for (flag, other) in [("--http", "--grpc"), ("--grpc", "--http")] {
        let args = dev_args(&folder.path().join("data"), &format!("{flag} {address} {other} 127.0.0.1:0"));
        let error = bind(&args, Vars::new()).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains(flag), "{error}");
    }
    assert!(!folder.path().join("data").exists());
}

#[tokio::test]
async fn mistakes_of_both_configurations_are_reported_at_once() {
    let folder = TempDir::new().unwrap();
    let list = [
        ("CHATBOX_CORE_SESSION_HEARTBEAT", "0s"),
        ("CHATBOX_EDGE_SOCKET_PING_INTERVAL", "0s"),
        ("CHATBOX_EDGE_NO", "1"),
    ];
    let error = bind(&dev_args(folder.path(), ANY_PORTS), vars(&list)).await.unwrap_err();
    let mistakes = &error.downcast_ref::<Mistakes>().expect("mistakes").0;
    assert!(mistakes.iter().any(|mistake| mistake.starts_with("core: session.heartbeat")), "{mistakes:?}");
    assert!(mistakes.iter().any(|mistake| mistake.starts_with("edge: ")), "{mistakes:?}");
}

#[tokio::test]
async fn the_link_opens_the_page_of_this_instance_for_its_user() {
    let folder = TempDir::new().unwrap();
    let list = [("CHATBOX_EDGE_PATH_PREFIX", "/talk"), ("CHATBOX_TOKEN_ISSUER", "https://id.test")];
    let instance = Instance::start(folder.path(), ANY_PORTS, &list).await;
    let Started { http, url, token, .. } = &instance.started;
    assert_eq!(*url, format!("http://{http}/talk/#token={token}"));
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let page = client.get(url).send().await.unwrap();
    assert!(page.status().is_success());
    let models = client.get(format!("http://{http}/talk/api/v1/models")).bearer_auth(token).send().await.unwrap();
    assert!(models.text().await.unwrap().contains("\"demo\""));
    let origins = [format!("http://{http}"), format!("http://localhost:{}", http.port())];
    for (origin, accepted) in origins.iter().map(|origin| (origin.as_str(), true)).chain([("http://evil.test", false)])
    {
        let host = origin.strip_prefix("http://").unwrap();
        let upgrade = client
            .get(format!("http://{http}/talk/ws"))
            .header("host", if accepted { host.to_owned() } else { http.to_string() })
            .header("origin", origin)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", format!("chatbox.v1.json, bearer.{token}"));
        let status = upgrade.send().await.unwrap().status();
        assert_eq!(status.as_u16() == 101, accepted, "{origin}: {status}");
    }
    instance.stop().await;
}

/// Passes connections on, and cuts them all when told.
struct Cable {
    address: SocketAddr,
    cut: mpsc::Sender<()>,
    connections: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Cable {
    async fn to(target: SocketAddr) -> Self {
        let listener = AsyncListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, mut cuts) = mpsc::channel(1);
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut live = JoinSet::new();
            loop {
                tokio::select! {
                    Some(()) = cuts.recv() => live.shutdown().await,
                    accepted = listener.accept() => {
                        let (mut near, _) = accepted.unwrap();
                        counted.fetch_add(1, Ordering::Relaxed);
                        live.spawn(async move {
                            let mut far = TcpStream::connect(target).await.unwrap();
                            let _ = copy_bidirectional(&mut near, &mut far).await;
                        });
                    }
                }
            }
        });
        Self { address, cut, connections, _task: task }
    }
}

#[tokio::test]
async fn a_reply_goes_on_over_cut_connections_without_loss_or_doubling() {
    let folder = TempDir::new().unwrap();
    let instance = Instance::start(folder.path(), ANY_PORTS, &[SLOWLY]).await;
    let cable = Cable::to(instance.started.grpc).await;
    let args = chat_args(folder.path(), cable.address);
    let client = || Client::new(&args.server, &Vars::new()).unwrap();

    let (out, err) = (Written::new(), Written::new());
    let (input, lines) = mpsc::channel(1);
    let (_interrupt, interrupts) = mpsc::channel(1);
    input.try_send(Input::Line("something longish".to_owned())).unwrap();
    drop(input);
    let talk = chat(client(), Style::Replies, (Box::new(out.clone()), Box::new(err.clone())), (lines, interrupts));
    let cutting = async {
        for seen in ["built-in", "longish", "provider"] {
            out.contains(seen).await;
            cable.cut.send(()).await.unwrap();
        }
    };
    let (code, ()) = tokio::join!(timeout(LIMIT, talk), cutting);
    assert_eq!((code.unwrap().unwrap(), err.text().as_str()), (0, ""));
    assert_eq!(cable.connections.load(Ordering::Relaxed), 4, "one more than cuts");

    let session = client().sessions(1).await.unwrap().remove(0);
    let messages = client().messages_after(&session.session_id, 0).await.unwrap();
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

    let (out, err) = (Written::new(), Written::new());
    let (input, lines) = mpsc::channel(2);
    let (_interrupt, interrupts) = mpsc::channel(1);
    for line in ["a long answer please", "and now the short one"] {
        input.try_send(Input::Line(line.to_owned())).unwrap();
    }
    drop(input);
    let client = Client::new(&args.server, &Vars::new()).unwrap();
    let talk = chat(client, Style::Replies, (Box::new(out.clone()), Box::new(err.clone())), (lines, interrupts));
    let restarting = async {
        out.contains("You asked for").await;
        first.stop().await;
        Instance::start(folder.path(), &format!("--http {http} --grpc {grpc}"), &[AT_ONCE]).await
    };
    let (code, second) = tokio::join!(timeout(LIMIT, talk), restarting);
    // The first reply was cut, which is a failure; the second message was answered nonetheless.
    assert_eq!(code.unwrap().unwrap(), 1);
    assert!(err.text().contains("interrupted"), "{}", err.text());
    let text = out.text();
    assert_eq!(
        (text.matches("You asked for").count(), text.matches("> and now the short one").count()),
        (1, 1),
        "{text}"
    );
    second.stop().await;
}

#[tokio::test]
async fn models_of_variables_come_before_the_demo_and_can_be_chosen() {
    let folder = TempDir::new().unwrap();
    let list = [
        ("CHATBOX_PROVIDERS_OPENAI_BASE_URL", "http://127.0.0.1:9/v1"),
        ("CHATBOX_MODELS", "[{id = \"one\"}, {id = \"two\", context_tokens = 512, max_output_tokens = 100}]"),
    ];
    let prepared = Prepared::new(&dev_args(folder.path(), ANY_PORTS), vars(&list)).await.unwrap();
    let ids =
        |prepared: &Prepared| prepared.settings.core.models.iter().map(|model| model.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&prepared), ["one", "two", "demo"]);
    assert_eq!(prepared.settings.core.default_model, "one");
    let chosen = [list[0], list[1], ("CHATBOX_DEFAULT_MODEL", "demo")];
    let prepared = Prepared::new(&dev_args(folder.path(), ANY_PORTS), vars(&chosen)).await.unwrap();
    assert_eq!(prepared.settings.core.default_model, "demo");
}

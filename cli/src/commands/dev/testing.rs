//! Instances for tests, and what stands around them.

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use anyhow::Result;
use chatbox_proto::settings::Vars;
use clap::Parser as _;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Dev, Prepared, Started, ready};
use crate::{
    args::{Args, ChatArgs, Command, DevArgs},
    client::Client,
    commands::chat::testing::{Input, Style, chat},
};

/// Above everything that is waited for here.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn vars(list: &[(&str, &str)]) -> Vars {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn dev_args(folder: &Path, line: &str) -> DevArgs {
    let folder = folder.to_str().unwrap();
    let fixed = ["chatbox", "dev", "--no-local-models", "--data", folder];
    let args = Args::try_parse_from(fixed.into_iter().chain(line.split_whitespace())).unwrap();
    let Command::Dev(args) = args.command else { panic!("not dev") };
    args
}

pub(crate) fn chat_args(folder: &Path, grpc: SocketAddr) -> ChatArgs {
    let (folder, grpc) = (folder.to_str().unwrap(), grpc.to_string());
    let args = Args::try_parse_from(["chatbox", "chat", "--data", folder, "--grpc", &grpc]).unwrap();
    let Command::Chat(args) = args.command else { panic!("not chat") };
    args
}

pub(crate) async fn bind(args: &DevArgs, vars: Vars) -> Result<Dev> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Dev::bind(Prepared::new(args, vars).await?).await
}

/// A running instance.
pub(crate) struct Instance {
    pub(crate) started: Started,
    shutdown: CancellationToken,
    tasks: JoinSet<Result<()>>,
}

impl Instance {
    pub(crate) async fn start(folder: &Path, line: &str, list: &[(&str, &str)]) -> Self {
        let dev = Box::pin(bind(&dev_args(folder, line), vars(list))).await.unwrap();
        let (started, shutdown) = (dev.started.clone(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(dev.run(shutdown.clone()));
        timeout(LIMIT, ready(&started)).await.unwrap().unwrap();
        Self { started, shutdown, tasks }
    }

    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        timeout(LIMIT, self.tasks.join_next()).await.unwrap().unwrap().unwrap().unwrap();
    }
}

pub(crate) const ANY_PORTS: &str = "--http 127.0.0.1:0 --grpc 127.0.0.1:0";
pub(crate) const AT_ONCE: (&str, &str) = ("CHATBOX_CORE_PROVIDERS_DEMO_WORD_DELAY", "0s");
pub(crate) const SLOWLY: (&str, &str) = ("CHATBOX_CORE_PROVIDERS_DEMO_WORD_DELAY", "10ms");

/// What was written, for whoever waits for something in it.
#[derive(Clone)]
pub(crate) struct Written(watch::Sender<String>);

impl Written {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(String::new()))
    }

    pub(crate) fn text(&self) -> String {
        self.0.borrow().clone()
    }

    pub(crate) async fn contains(&self, text: &str) {
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
pub(crate) async fn pipe(args: &ChatArgs, lines: &[&str]) -> (u8, String, String) {
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

/// Passes connections on, and cuts them all when told.
pub(crate) struct Cable {
    pub(crate) address: SocketAddr,
    pub(crate) cut: mpsc::Sender<()>,
    /// How many there were so far.
    pub(crate) connections: watch::Receiver<usize>,
    _task: JoinSet<()>,
}

impl Cable {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, mut cuts) = mpsc::channel(1);
        let (counted, connections) = watch::channel(0);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut live = JoinSet::new();
            loop {
                tokio::select! {
                    Some(()) = cuts.recv() => live.shutdown().await,
                    accepted = listener.accept() => {
                        let (mut near, _) = accepted.unwrap();
                        counted.send_modify(|count| *count += 1);
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

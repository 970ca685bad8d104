//! The two binaries as an operator meets them: settings, ports, signals.

use std::{
    fmt::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use chatbox_proto::v1::chat_request::Open;
use futures_util::future::join_all;
use reqwest::Method;

use crate::harness::{
    client::Transport,
    http::client,
    pair::{Pair, Role, Settings},
    ports::free_port,
    process::Process,
    stack::SECRET,
    tools::binary,
    wait::LIMIT,
};

/// What `sysexits.h` calls a usage error.
const BAD_CONFIG: i32 = 64;

const QUICK: &str = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n";

fn quick() -> Settings {
    Settings { core: QUICK.to_owned(), edge: QUICK.to_owned(), vars: Vec::new() }
}

/// Good settings of one role, as lines, so that one of them can be replaced.
fn good(role: Role, listen: SocketAddr) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("profile", "\"dev\"".to_owned()),
        ("listen", format!("\"{listen}\"")),
        ("metrics_listen", "\"\"".to_owned()),
        ("token.secret", format!("\"{SECRET}\"")),
    ];
    if role == Role::Core {
        let key = chatbox_core::seal::KeyRing::generate_key();
        lines.push(("store.url", "\"sqlite:chatbox.db\"".to_owned()));
        lines.push(("keys.ring", format!("[{{id = \"k1\", key = \"{key}\"}}]")));
    }
    lines
}

/// One bad value for a key, and the key that the answer has to name.
const BAD_CORE: [(&str, &str); 17] = [
    ("profile", "\"staging\""),
    ("listen", "\"localhost\""),
    ("metrics_listen", "\"nowhere\""),
    ("default_model", "\"nope\""),
    ("store.url", "\"mysql://x\""),
    ("store.call_timeout", "\"1h\""),
    ("keys.ring", "[]"),
    ("token.secret", "\"short\""),
    ("token.secret_file", "\"/nowhere/secret\""),
    ("token.algorithm", "\"none\""),
    ("token.leeway", "\"1h\""),
    ("session.page_size", "0"),
    ("session.message_bytes", "\"1B\""),
    ("limits.frame_bytes", "\"2MiB\""),
    ("drain.deadline", "\"1ms\""),
    ("log.filter", "\"=,=\""),
    ("no_such_setting", "1"),
];

const BAD_EDGE: [(&str, &str); 15] = [
    ("profile", "7"),
    ("listen", "\"127.0.0.1\""),
    ("metrics_listen", "\"nowhere\""),
    ("path_prefix", "\"chatbox/\""),
    ("origins", "[\"*\"]"),
    ("frame_ancestors", "[\"'unsafe-inline' ; script-src *\"]"),
    ("trusted_proxies", "[\"everybody\"]"),
    ("core.url", "\"core:50051\""),
    ("core.channels", "0"),
    ("token.secret", "\"\""),
    ("limits.frame_bytes", "\"1GiB\""),
    ("socket.ping_interval", "\"0s\""),
    ("hsts.max_age", "\"1s\""),
    ("drain.deadline", "\"1h\""),
    ("log.format", "\"xml\""),
];

/// A start that cannot be is over within 2 s; a machine that is so busy that a process which only says its version takes
/// long just now has as much more time.
fn assert_at_once(role: Role, took: Duration, what: &str) {
    let started = Instant::now();
    assert!(Command::new(binary(role.binary()).unwrap()).arg("--version").output().unwrap().status.success());
    let limit = Duration::from_secs(2).max(started.elapsed() * 20);
    assert!(took < limit, "{role:?} with {what} took {took:?} of {limit:?}");
}

#[tokio::test]
async fn every_bad_setting_is_named_and_nothing_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let cases = BAD_CORE.map(|case| (Role::Core, case)).into_iter().chain(BAD_EDGE.map(|case| (Role::Edge, case)));
    for (number, (role, (key, value))) in cases.enumerate() {
        let listen = free_port().unwrap();
        let mut lines = good(role, listen);
        match lines.iter_mut().find(|(known, _)| *known == key) {
            Some((_, good)) => value.clone_into(good),
            None => lines.push((key, value.to_owned())),
        }
        let text = lines.iter().fold(String::new(), |mut text, (key, value)| {
            let _ = writeln!(text, "{key} = {value}");
            text
        });
        let file = folder.path().join(format!("{number}.toml"));
        std::fs::write(&file, text).unwrap();
        let started = Instant::now();
        let mut command = Command::new(binary(role.binary()).unwrap());
        command.env_clear().arg("--config").arg(&file).current_dir(folder.path());
        let mut process = Process::start(role.binary(), command, &folder.path().join(format!("{number}.log"))).unwrap();
        let status = process.wait_exit(LIMIT).await.unwrap();
        assert_at_once(role, started.elapsed(), &format!("{key} = {value}"));
        let said = process.log();
        assert_eq!(status.code(), Some(BAD_CONFIG), "{role:?} with {key} = {value}: {said}");
        let naming = said.lines().filter(|line| line.contains(key)).count();
        assert_eq!(naming, 1, "{role:?} with {key} = {value} says: {said}");
        assert!(!said.contains(SECRET) && !said.contains("panicked"), "{said}");
        assert!(TcpStream::connect(listen).is_err(), "{role:?} with {key} = {value} listened");
        assert!(!folder.path().join("chatbox.db").exists(), "{role:?} with {key} = {value} opened its store");
    }
}

#[tokio::test]
async fn all_mistakes_are_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("core.toml");
    std::fs::write(&file, "profile = \"dev\"\nsession.page_size = 0\ntoken.leeway = \"1h\"\n").unwrap();
    let output = Command::new(binary("chatbox-core").unwrap()).env_clear().arg("--config").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(BAD_CONFIG), "{said}");
    for key in ["session.page_size", "token.leeway", "token.secret", "keys.ring"] {
        assert!(said.contains(key), "{key} is not in {said}");
    }
}

#[tokio::test]
async fn a_second_process_on_a_taken_port_says_so_and_leaves_the_first_alone() {
    let mut pair = Pair::start(quick()).await.unwrap();
    for role in Role::ALL {
        let folder = tempfile::tempdir().unwrap();
        let taken = if role == Role::Core { pair.addresses().grpc } else { pair.addresses().http };
        let lines: Vec<_> = good(role, taken).into_iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let file = folder.path().join("second.toml");
        std::fs::write(&file, lines.concat()).unwrap();
        let mut command = Command::new(binary(role.binary()).unwrap());
        command.env_clear().arg("--config").arg(&file).current_dir(folder.path());
        let started = Instant::now();
        let mut second = Process::start("the second", command, &folder.path().join("log")).unwrap();
        let status = second.wait_exit(LIMIT).await.unwrap();
        assert_at_once(role, started.elapsed(), "a taken port");
        let said = second.log();
        assert!(!status.success() && said.contains(&taken.to_string()), "{status}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        pair.ready().await.unwrap();
    }
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_prefix_that_is_changed_in_the_file_alone_works_and_health_agrees() {
    for prefix in ["/help/desk", ""] {
        let mut pair = Pair::start_under(prefix, quick()).await.unwrap();
        let address = pair.addresses().http;
        let status = |path: String| async move {
            client().get(format!("http://{address}{path}")).send().await.unwrap().status().as_u16()
        };
        assert_eq!(status(format!("{prefix}/healthz")).await, 200, "{prefix:?}");
        assert_eq!(status("/chatbox/healthz".to_owned()).await, 404, "{prefix:?}");
        for role in Role::ALL {
            let healthy = |pair: &Pair| {
                let mut command = Command::new(binary(role.binary()).unwrap());
                command.env_clear().arg("--config").arg(pair.settings(role)).arg("health");
                // As in an image without certificates: asking oneself takes none.
                command.env("SSL_CERT_FILE", "/nowhere").env("SSL_CERT_DIR", "/nowhere");
                command.output().unwrap().status.success()
            };
            assert!(healthy(&pair), "{role:?} under {prefix:?}");
        }
        let settings = pair.settings(Role::Edge);
        pair.drained(Role::Edge).await.unwrap();
        let mut command = Command::new(binary("chatbox-edge").unwrap());
        let output = command.env_clear().arg("--config").arg(settings).arg("health").output().unwrap();
        assert!(!output.status.success(), "an edge that is gone is healthy");
        pair.drained(Role::Core).await.unwrap();
    }
}

/// Opens many sockets and breaks half of them by a reset, while the other half closes in order.
async fn storm(pair: &Pair, count: usize) {
    let sockets = (0..count).map(|number| async move {
        let mut client = pair.connect(Transport::ALL[number % 2], &format!("user-{number}")).await.unwrap();
        client.open(Open::default()).await.unwrap();
        client
    });
    let clients = join_all(sockets).await;
    let ends = clients.into_iter().enumerate().map(|(number, mut client)| async move {
        let socket = client.socket().unwrap();
        if number.is_multiple_of(2) {
            // Linger 0: the kernel sends a reset instead of an orderly end.
            socket.tcp().set_zero_linger().unwrap();
        } else {
            // It may be told to go away at the same moment.
            let _ = socket.close().await;
        }
    });
    join_all(ends).await;
}

#[tokio::test]
async fn connections_that_break_while_the_process_leaves_do_no_harm() {
    for _ in 0..3 {
        let limits = "limits.handshakes_per_ip = 1000\nlimits.connections_per_user = 100\n";
        let settings = Settings { edge: format!("{QUICK}{limits}"), ..quick() };
        let mut pair = Pair::start(settings).await.unwrap();
        storm(&pair, 100).await;
        let gone = || async {
            let open = pair.metric(Role::Edge, "chatbox_edge_connections").await.ok()?;
            (open == 0.0).then_some(())
        };
        crate::harness::wait::wait_for("no connection is counted", LIMIT, gone).await.unwrap();
        // The second wave meets the signal.
        let edge = pair.process(Role::Edge).pid();
        storm_through(&pair, 100, edge).await;
        for role in [Role::Edge, Role::Core] {
            // The edge has had its signal.
            let process = pair.process(role);
            let status = match role {
                Role::Edge => process.wait_exit(LIMIT * 2).await.unwrap(),
                Role::Core => process.terminate(LIMIT * 2).await.unwrap(),
            };
            let log = pair.process(role).log();
            assert!(status.success(), "{role:?} ended with {status}:\n{log}");
            assert!(!log.contains("panicked") && log.contains("drained"), "{log}");
        }
    }
}

/// Like [`storm`], with SIGTERM to the edge once all are open.
async fn storm_through(pair: &Pair, count: usize, edge: u32) {
    let sockets = (0..count).map(|number| async move {
        let mut client = pair.connect(Transport::ALL[number % 2], &format!("user-{number}")).await.unwrap();
        client.open(Open::default()).await.unwrap();
        client
    });
    let clients = join_all(sockets).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(edge).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ends = clients.into_iter().enumerate().map(|(number, mut client)| async move {
        match number % 3 {
            0 => client.socket().unwrap().tcp().set_zero_linger().unwrap(),
            1 => {
                let _ = client.socket().unwrap().close().await;
            }
            _ => {
                let closed = client.until_closed().await.unwrap();
                assert_eq!(closed.code, Some(1001), "{closed:?}");
            }
        }
    });
    join_all(ends).await;
}

#[tokio::test]
async fn a_port_that_is_free_again_is_taken_at_once() {
    let mut pair = Pair::start(quick()).await.unwrap();
    for role in [Role::Edge, Role::Core] {
        pair.drained(role).await.unwrap();
    }
    assert!(TcpListener::bind(pair.addresses().http).is_ok());
    pair.restart(Role::Core).unwrap();
    pair.restart(Role::Edge).unwrap();
    pair.ready().await.unwrap();
    let answer = pair.http("alice").unwrap().send(Method::GET, "/api/v1/models", None).await.unwrap();
    assert_eq!(answer.status, 200);
    pair.shutdown().await.unwrap();
}

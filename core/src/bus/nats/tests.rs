//! The suite every bus passes, and what only this one has to show: it comes back, and it lets nobody in who may not.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::*;
use crate::bus::conformance::{Fixture, bus_conformance};

/// Nothing here takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(15);

/// A server in a folder of its own; ended when dropped.
struct Server {
    child: Child,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    port: u16,
}

impl Server {
    fn start() -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), &[])
    }

    fn start_with(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let child = spawn(&folder, -1, &arguments);
        let mut server = Self { child, folder, arguments, port: 0 };
        server.port = server.announced_port();
        server
    }

    /// The server writes it once it listens.
    fn announced_port(&self) -> u16 {
        let file = self.folder.path().join(format!("nats-server_{}.ports", self.child.id()));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ports =
                std::fs::read(&file).ok().and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
            let url = ports.as_ref().and_then(|ports| ports["nats"][0].as_str()).map(ToOwned::to_owned);
            if let Some(port) = url.and_then(|url| url.rsplit(':').next().and_then(|port| port.parse().ok())) {
                return port;
            }
            assert!(Instant::now() < deadline, "the server did not say where it listens");
            std::thread::yield_now();
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.child = spawn(&self.folder, self.port.into(), &self.arguments);
        self.announced_port();
    }

    fn options(&self) -> NatsOptions {
        NatsOptions {
            servers: vec![format!("nats://127.0.0.1:{}", self.port)],
            prefix: "test".into(),
            auth: NatsAuth::None,
            ca_file: None,
            client_cert: None,
        }
    }

    async fn handle(&self) -> NatsBus {
        connected(self.options()).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &tempfile::TempDir, port: i32, arguments: &[String]) -> Child {
    #[expect(clippy::disallowed_methods, reason = "where the cache is, is a fact about the machine")]
    let cache = std::env::var_os("CHATBOX_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache"));
    let program = cache.join("bin/nats-server");
    assert!(program.exists(), "{} is missing: run `make test-tools`", program.display());
    Command::new(program)
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "--ports_file_dir"])
        .arg(folder.path())
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

async fn connected(options: NatsOptions) -> NatsBus {
    let bus = NatsBus::connect(options).await.unwrap();
    until("a connection", || bus.is_connected()).await;
    bus
}

/// Polls a condition.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct NatsFixture(Server);

#[async_trait]
impl Fixture for NatsFixture {
    async fn handle(&self) -> Arc<dyn Bus> {
        Arc::new(self.0.handle().await)
    }
}

bus_conformance!(NatsFixture(Server::start()));

/// Yields up to and with the next message; says whether a mark came before it.
async fn marked_message(subscription: &mut Subscription) -> (bool, Bytes) {
    let mut marked = false;
    loop {
        let next = tokio::time::timeout(PATIENCE, subscription.next()).await.expect("something comes");
        match next {
            Some(Delivery::Message(payload)) => return (marked, payload),
            Some(Delivery::Lost) => marked = true,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_server_that_went_and_came_back_is_a_mark_and_then_goes_on() {
    let mut server = Server::start();
    let (one, two) = (server.handle().await, server.handle().await);
    let mut heard = two.subscribe("t").await;
    one.publish("t", Bytes::from_static(b"before"));
    assert_eq!(marked_message(&mut heard).await.1, "before");
    server.kill();
    until("the loss", || !one.is_connected() && !two.is_connected()).await;
    let dropped = one.liveness().dropped;
    one.publish("t", Bytes::from_static(b"nobody hears this"));
    assert_eq!(one.liveness().dropped, dropped + 1);
    assert_eq!(one.request("t", Bytes::new(), PATIENCE).await, Err(BusError::Unavailable));
    // Made while there is no connection: it begins with a mark when there is one.
    let mut late = two.subscribe("t").await;
    server.start_again();
    until("the connections", || one.is_connected() && two.is_connected()).await;
    assert!(matches!(tokio::time::timeout(PATIENCE, late.next()).await, Ok(Some(Delivery::Lost))));
    one.publish("t", Bytes::from_static(b"after"));
    assert_eq!(marked_message(&mut late).await.1, "after");
    assert_eq!(marked_message(&mut heard).await, (true, Bytes::from_static(b"after")));
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for_without_holding_anybody_up() {
    let mut server = Server::start();
    server.kill();
    let bus = NatsBus::connect(server.options()).await.unwrap();
    assert!(!bus.liveness().connected && !bus.liveness().was_connected);
    server.start_again();
    until("a connection", || bus.liveness().connected && bus.liveness().was_connected).await;
}

#[tokio::test]
async fn a_token_a_user_or_nothing_is_let_in_as_the_server_says() {
    let server = Server::start_with(tempfile::tempdir().unwrap(), &["--auth", "open-sesame"]);
    let with = |auth| NatsOptions { auth, ..server.options() };
    let wrong = NatsBus::connect(with(NatsAuth::Token("wrong".into()))).await.unwrap();
    let nobody = NatsBus::connect(server.options()).await.unwrap();
    connected(with(NatsAuth::Token("open-sesame".into()))).await.close().await;
    assert!(!wrong.liveness().was_connected && !nobody.liveness().was_connected);

    let server = Server::start_with(tempfile::tempdir().unwrap(), &["--user", "core", "--pass", "open-sesame"]);
    let auth = NatsAuth::User { name: "core".into(), password: "open-sesame".into() };
    connected(NatsOptions { auth, ..server.options() }).await.close().await;
}

#[tokio::test]
async fn tls_is_spoken_with_the_servers_that_our_authority_signed() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let ca = write("cert.pem", certificate.cert.pem());
    let key = write("key.pem", certificate.signing_key.serialize_pem());
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other = write("other.pem", other.cert.pem());
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = ["--tls", "--tlscert", ca.to_str().unwrap(), "--tlskey", key.to_str().unwrap()];
    let server = Server::start_with(tempfile::tempdir().unwrap(), &arguments);
    let tls = |ca: &Path| NatsOptions {
        servers: vec![format!("tls://localhost:{}", server.port)],
        ca_file: Some(ca.to_owned()),
        ..server.options()
    };
    let stranger = NatsBus::connect(tls(&other)).await.unwrap();
    connected(tls(&ca)).await.close().await;
    assert!(!stranger.liveness().was_connected, "a certificate of somebody else is not enough");
    let plain = Server::start();
    let refused = NatsOptions { servers: vec![format!("tls://localhost:{}", plain.port)], ..tls(&ca) };
    let refused = NatsBus::connect(refused).await.unwrap();
    connected(tls(&ca)).await.close().await;
    assert!(!refused.liveness().was_connected, "a server without TLS is not enough");
}

#[tokio::test]
async fn mistakes_in_files_are_told_at_once_and_show_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let junk = folder.path().join("junk.pem");
    std::fs::write(&junk, "SECRET").unwrap();
    let options = NatsOptions {
        servers: vec!["nats://127.0.0.1:1".into()],
        prefix: "test".into(),
        auth: NatsAuth::Credentials("SECRET".into()),
        ca_file: None,
        client_cert: None,
    };
    let tell = async |options: NatsOptions| {
        let error = NatsBus::connect(options).await.unwrap_err();
        assert!(!error.contains("SECRET"), "{error}");
        error
    };
    assert!(!format!("{options:?}").contains("SECRET"));
    assert!(tell(options.clone()).await.starts_with("credentials_file:"));
    let options = NatsOptions { auth: NatsAuth::None, ..options };
    assert!(tell(NatsOptions { ca_file: Some(junk.clone()), ..options.clone() }).await.starts_with("ca_file:"));
    let client_cert = Some((junk.clone(), junk));
    assert!(tell(NatsOptions { client_cert, ..options }).await.starts_with("cert_file:"));
}

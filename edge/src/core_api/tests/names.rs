//! Core's host is a name whose addresses change while the edge runs.

use futures_util::FutureExt as _;

use super::{super::cores::Lookup, *};

/// What the name stands for now; `None`: there is no answer.
#[derive(Clone)]
struct Names(Arc<Mutex<Option<Vec<SocketAddr>>>>);

impl Names {
    fn new(first: Vec<SocketAddr>) -> Self {
        Self(Arc::new(Mutex::new(Some(first))))
    }

    /// From the next look-up on.
    fn change(&self, addresses: Option<Vec<SocketAddr>>) {
        *self.0.lock().unwrap() = addresses;
    }

    fn lookup(&self) -> Lookup {
        let names = self.clone();
        Arc::new(move |place| {
            assert!(place.starts_with("core.test:"), "{place}");
            let answer = names.0.lock().unwrap().clone();
            async move { answer.ok_or_else(|| std::io::Error::other("no such name")) }.boxed()
        })
    }
}

/// An edge's way to cores by name, looked up again and again.
fn by_name(names: &Names, port: u16) -> (Arc<GrpcCore>, tokio::task::JoinSet<()>) {
    let config = CoreConfig {
        url: format!("http://core.test:{port}"),
        health_interval: Duration::from_millis(100),
        resolve_interval: Duration::from_millis(100),
        ..CoreConfig::default()
    };
    let core = GrpcCore {
        cores: Cores::new(&config, names.lookup()).unwrap(),
        call_timeout: config.call_timeout,
        tracer: Tracer::off(),
    };
    let core = Arc::new(core);
    let (watching, mut tasks) = (Arc::clone(&core), tokio::task::JoinSet::new());
    tasks.spawn_on(async move { watching.watch().await }, &tokio::runtime::Handle::current());
    (core, tasks)
}

/// Two servers on one port of two addresses, as a name has them.
fn two() -> [Server; 2] {
    loop {
        let first = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        // Somebody else may have the port there.
        if let Ok(second) = std::net::TcpListener::bind(("127.0.0.2", port)) {
            return [serve_at(echo, first), serve_at(echo, second)];
        }
    }
}

/// Opens streams until one is on this server.
async fn reaches(core: &GrpcCore, servers: &[&Server], wanted: usize) {
    let reached = async { while open(core, servers).await.0 != wanted {} };
    tokio::time::timeout(Duration::from_secs(20), reached).await.unwrap();
}

#[tokio::test]
async fn a_name_that_gets_other_addresses_is_followed_and_open_streams_stay() {
    let servers = two();
    let [first, second] = servers.each_ref();
    let both = [first, second];
    let names = Names::new(vec![first.address]);
    let (core, _watching) = by_name(&names, first.address.port());
    let (place, mut frames, mut events) = open(&core, &both).await;
    assert_eq!(place, 0);
    // One more core under the name: it gets its share.
    names.change(Some(vec![first.address, second.address]));
    reaches(&core, &both, 1).await;
    // The first one leaves the name: nothing new comes to it, and what it has goes on.
    names.change(Some(vec![second.address]));
    let moved = async {
        let mut in_turn = 0;
        while in_turn < 8 {
            in_turn = if open(&core, &both).await.0 == 1 { in_turn + 1 } else { 0 };
        }
    };
    tokio::time::timeout(Duration::from_secs(20), moved).await.unwrap();
    frames.try_send(Bytes::from_static(b"still")).unwrap();
    assert_eq!(events.next().await, Some(Ok(Bytes::from_static(b"still"))));
}

#[tokio::test]
async fn a_name_that_cannot_be_looked_up_or_has_no_address_changes_nothing() {
    let servers = two();
    let [first, second] = servers.each_ref();
    let both = [first, second];
    let names = Names::new(vec![first.address]);
    let (core, _watching) = by_name(&names, first.address.port());
    assert_eq!(open(&core, &both).await.0, 0);
    for none in [None, Some(Vec::new())] {
        names.change(none);
        core.cores.resolve_now().await;
        assert_eq!(open(&core, &both).await.0, 0);
    }
    // And when there is an answer again, it counts.
    names.change(Some(vec![second.address]));
    reaches(&core, &both, 1).await;
}

//! The way out: bounded whatever clients and core do, and at once when asked twice.

use std::time::{Duration, Instant};

use chatbox_proto::v1::{chat_request::Open, chat_response::Event};
use futures_util::future::join_all;
use rustix::process::Signal;

use crate::harness::{
    client::{Client, Transport},
    pair::{Pair, Role, Settings},
    wait::{LIMIT, wait_until},
    ws::Encoding,
};

const DEADLINE: Duration = Duration::from_secs(5);

fn settings() -> Settings {
    let core = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n".to_owned();
    let edge = "drain.notice = \"300ms\"\ndrain.jitter = \"500ms\"\ndrain.deadline = \"5s\"\n\
                limits.handshakes_per_ip = 1000\n";
    Settings { core, edge: edge.to_owned(), vars: Vec::new() }
}

async fn open(pair: &Pair, number: usize) -> Client {
    let transport = Transport::Socket(Encoding::ALL[number % 2]);
    let mut client = pair.connect(transport, &format!("user-{number}")).await.unwrap();
    client.open(Open::default()).await.unwrap();
    client
}

#[tokio::test]
async fn the_edge_leaves_before_its_deadline_with_clients_that_read_nothing_and_a_core_that_stands_still() {
    for core_stands_still in [false, true] {
        let mut pair = Pair::start(settings()).await.unwrap();
        let readers: Vec<_> = join_all((0..10).map(|number| open(&pair, number))).await;
        // These neither read nor answer a close, until the process is gone.
        let stuck: Vec<_> = join_all((10..30).map(|number| open(&pair, number))).await;
        // A handshake that was never finished, and a request whose head never ends.
        let silent = tokio::net::TcpStream::connect(pair.addresses().http).await.unwrap();
        if core_stands_still {
            pair.process(Role::Core).signal(Signal::STOP).unwrap();
        }
        let started = Instant::now();
        pair.process(Role::Edge).signal(Signal::TERM).unwrap();
        let told = join_all(readers.into_iter().map(|mut client| async move {
            let away = client.until("the farewell", |event| match event {
                Event::GoingAway(away) => Some(away.clone()),
                _ => None,
            });
            let away = away.await.unwrap();
            assert!(away.retry_after.is_some());
            (away.close_code, client.until_closed().await.unwrap().code)
        }));
        for (announced, code) in told.await {
            assert_eq!((announced, code), (1001, Some(1001)));
        }
        let edge = pair.process(Role::Edge);
        let status = edge.wait_exit(LIMIT).await.unwrap();
        assert!(status.success(), "{status}: {}", edge.log());
        assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
        assert!(!edge.log().contains("panicked"), "{}", edge.log());
        drop((stuck, silent));
        if core_stands_still {
            pair.process(Role::Core).signal(Signal::CONT).unwrap();
        }
        pair.drained(Role::Core).await.unwrap();
    }
}

#[tokio::test]
async fn a_second_signal_ends_either_process_at_once() {
    for role in Role::ALL {
        let slow = "drain.notice = \"20s\"\ndrain.deadline = \"60s\"\n";
        let settings = Settings { core: slow.to_owned(), edge: slow.to_owned(), vars: Vec::new() };
        let mut pair = Pair::start(settings).await.unwrap();
        let client = open(&pair, 0).await;
        let process = pair.process(role);
        process.signal(Signal::TERM).unwrap();
        wait_until("it drains", LIMIT, || process.log().contains("draining")).await.unwrap();
        assert!(process.exited().unwrap().is_none());
        let started = Instant::now();
        process.signal(Signal::INT).unwrap();
        let status = process.wait_exit(LIMIT).await.unwrap();
        assert!(!status.success(), "{role:?}: {status}");
        assert!(started.elapsed() < Duration::from_secs(2), "{role:?}: {:?}", started.elapsed());
        assert!(process.log().contains("second signal"), "{}", process.log());
        drop(client);
    }
}

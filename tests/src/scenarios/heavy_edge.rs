//! What strangers can do to an edge by quantity: it stays bounded, others are served, and the figures end where they began.

use std::time::{Duration, Instant, SystemTime};

use chatbox_proto::{
    time::Timestamp,
    v1::{chat_request::Open, chat_response::Event},
};
use futures_util::future::join_all;
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{
    client::{Client, Transport},
    pair::{Pair, Role, Settings},
    wait::{LIMIT, wait_for, wait_until, within},
    ws::{Auth, Connect, Encoding},
};

/// What a flood may add to the edge's memory.
const MORE_MEMORY: u64 = 64 << 20;

fn settings() -> Settings {
    let drain = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n";
    let edge = format!("{drain}limits.handshakes_per_ip = 100000\nlimits.header_timeout = \"2s\"\n");
    Settings { core: format!("{drain}session.unanswered = 100\n"), edge, vars: Vec::new() }
}

async fn steady(pair: &Pair) -> Client {
    let mut client = pair.connect(Transport::Socket(Encoding::Proto), "steady").await.unwrap();
    client.open(Open::default()).await.unwrap();
    client
}

/// Somebody else is served within a second or two while this goes on.
async fn is_served(client: &mut Client, id: &str) {
    let started = Instant::now();
    client.say(id, "hello").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "{id}: {:?}", started.elapsed());
}

async fn connections_are(pair: &Pair, count: f64) {
    let so_many = || async {
        let open = pair.metric(Role::Edge, "chatbox_edge_connections").await.ok()?;
        (open == count).then_some(())
    };
    wait_for("the connections are counted", LIMIT, so_many).await.unwrap();
}

fn memory(pair: &mut Pair) -> u64 {
    pair.process(Role::Edge).resident_bytes().unwrap()
}

/// A socket as bytes, open and asked for nothing.
async fn raw(pair: &Pair, user: &str) -> TcpStream {
    let mut stream = TcpStream::connect(pair.addresses().http).await.unwrap();
    let token = pair.token(user, "user").unwrap();
    let head = format!(
        "GET /chatbox/ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-protocol: chatbox.v1.json\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    stream
}

/// A frame of a client, masked with zeros.
fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 126);
    [&[head, 0x80 | length, 0, 0, 0, 0][..], payload].concat()
}

#[tokio::test]
async fn heavy_floods_of_handshakes_and_resets_leave_nothing_behind() {
    let mut pair = Pair::start(settings()).await.unwrap();
    let mut client = steady(&pair).await;
    is_served(&mut client, "before").await;
    let before = memory(&mut pair);
    for round in 0..3 {
        // Heads that never end, heads that are none, sockets that are reset before and after they were opened.
        let address = pair.addresses().http;
        let halves = join_all((0..500).map(|number| async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let text = if number % 2 == 0 { "GET /chatbox/ws HTTP/1.1\r\nhost" } else { "\x16\x03\x01 what\r\n\r\n" };
            let _ = stream.write_all(text.as_bytes()).await;
            stream
        }))
        .await;
        is_served(&mut client, &format!("halves-{round}")).await;
        for batch in 0..4 {
            let sockets = (0..50).map(|number| {
                let token = pair.token(&format!("user-{round}-{batch}-{number}"), "user").unwrap();
                async move { Connect::new(address).auth(Auth::Header(token)).connect().await.unwrap() }
            });
            for (number, mut socket) in join_all(sockets).await.into_iter().enumerate() {
                if number % 2 == 0 {
                    let open = chatbox_proto::v1::chat_request::Frame::Open(Open::default());
                    let request = chatbox_proto::v1::ChatRequest { request_id: String::new(), frame: Some(open) };
                    socket.send(&request).await.unwrap();
                }
                socket.tcp().set_zero_linger().unwrap();
            }
            is_served(&mut client, &format!("resets-{round}-{batch}")).await;
        }
        drop(halves);
    }
    connections_are(&pair, 1.0).await;
    let more = memory(&mut pair).saturating_sub(before);
    assert!(more < MORE_MEMORY, "{more} bytes more");
    drop(client);
    connections_are(&pair, 0.0).await;
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn heavy_floods_of_pings_and_tiny_fragments_stay_bounded() {
    let mut pair = Pair::start(settings()).await.unwrap();
    let mut client = steady(&pair).await;
    let before = memory(&mut pair);
    // Pings whose answers nobody reads.
    let ping = frame(0x89, &[b'x'; 100]).repeat(100);
    // One message in fragments of one byte, which never ends: the first with its opcode, the others as continuations.
    let fragments = frame(0x00, b"x").repeat(1000);
    let mut floods = Vec::new();
    for number in 0..4 {
        floods.push((raw(&pair, &format!("pings-{number}")).await, ping.clone()));
        let mut stream = raw(&pair, &format!("fragments-{number}")).await;
        stream.write_all(&frame(0x01, b"{")).await.unwrap();
        floods.push((stream, fragments.clone()));
    }
    connections_are(&pair, 9.0).await;
    let flooding = floods.into_iter().map(|(mut stream, bytes)| async move {
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            // Refused or cut is as good as held back.
            let written = tokio::time::timeout(Duration::from_millis(200), stream.write_all(&bytes)).await;
            if let Ok(Err(_)) = written {
                break;
            }
        }
    });
    let served = async {
        for number in 0..10 {
            is_served(&mut client, &format!("flood-{number}")).await;
        }
    };
    tokio::join!(join_all(flooding), served);
    let more = memory(&mut pair).saturating_sub(before);
    assert!(more < MORE_MEMORY, "{more} bytes more");
    connections_are(&pair, 1.0).await;
    drop(client);
    connections_are(&pair, 0.0).await;
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn heavy_four_thousand_streams_outlive_a_second_in_which_core_stands_still() {
    const STREAMS: usize = 4000;
    const AT_ONCE: usize = 100;
    let mut settings = settings();
    settings.core.push_str("session.heartbeat = \"5s\"\n");
    // Nobody answers pings while the others come.
    settings.edge.push_str("socket.ping_interval = \"5m\"\n");
    let mut pair = Pair::start(settings).await.unwrap();
    let mut clients = Vec::new();
    for batch in 0..STREAMS / AT_ONCE {
        let opening = (0..AT_ONCE).map(|number| {
            let (pair, number) = (&pair, batch * AT_ONCE + number);
            async move {
                let transport = Transport::Socket(Encoding::Proto);
                let mut client = pair.connect(transport, &format!("user-{number}")).await.unwrap();
                client.open(Open::default()).await.unwrap();
                client.caught_up().await.unwrap();
                client
            }
        });
        clients.extend(join_all(opening).await);
    }
    connections_are(&pair, STREAMS as f64).await;
    pair.process(Role::Core).signal(Signal::STOP).unwrap();
    let still = Instant::now();
    // Some say something into the silence.
    let mut asked = Vec::new();
    for (number, client) in clients.iter_mut().enumerate().step_by(40) {
        let send = chatbox_proto::v1::chat_request::Send {
            client_message_id: format!("m{number}"),
            text: "hello?".to_owned(),
            ..Default::default()
        };
        asked.push((number, client.send(chatbox_proto::v1::chat_request::Frame::Send(send)).await.unwrap()));
    }
    wait_until("a second has passed", LIMIT, || still.elapsed() >= Duration::from_secs(1)).await.unwrap();
    pair.process(Role::Core).signal(Signal::CONT).unwrap();
    for (number, request_id) in asked {
        let is_ack = |event: &Event| matches!(event, Event::Ack(ack) if ack.request_id == request_id);
        clients[number].until_seen("the ack", is_ack).await.unwrap();
    }
    // All of them hear from core afterwards, on the stream they had.
    let goes_on = Timestamp::from(SystemTime::now());
    let goes_on = (goes_on.seconds, goes_on.nanos);
    let heard = clients.iter_mut().map(|client| async move {
        let later = |event: &Event| match event {
            Event::Heartbeat(beat) => beat.server_time.filter(|time| (time.seconds, time.nanos) > goes_on).map(|_| ()),
            _ => None,
        };
        client.until("a heartbeat of a core that goes on", later).await.unwrap();
    });
    within("all hear from core", LIMIT * 2, join_all(heard)).await.unwrap();
    connections_are(&pair, STREAMS as f64).await;
    assert!(
        pair.metric(Role::Edge, "chatbox_edge_reopens_total{outcome=\"resumed\"}").await.is_err(),
        "streams were lost"
    );
    drop(clients);
    connections_are(&pair, 0.0).await;
    pair.shutdown().await.unwrap();
}

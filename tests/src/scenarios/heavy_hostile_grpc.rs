//! Clients that speak HTTP/2 against its spirit at core's public port, against the real process: each is cut or refused with
//! the code of the RFC, memory stays flat, and a conversation of somebody else goes on meanwhile.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use chatbox_proto::v1::{
    ChatRequest,
    chat_request::{Detach, Frame as ChatFrame, Open},
};
use futures_util::future::join_all;
use prost::Message as _;
use tokio::time::Instant;

use crate::harness::{
    client::{Client, Transport},
    pair::{Pair, Role, Settings},
    raw_h2::{End, PREFACE, RawH2, call, code, fields, flag, frame, kind, message, reset},
    wait::{LIMIT, wait_for},
};

const CHAT: &str = "/chatbox.v1.ChatCore/Chat";
const LIST_MODELS: &str = "/chatbox.v1.ChatCore/ListModels";

/// Where the hostile clients are: another address than everybody else's.
const HOSTILE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const HANDSHAKE: Duration = Duration::from_millis(500);
const PER_IP: usize = 24;
const TOTAL: usize = 64;
const STREAMS: u32 = 1_000;

/// Growth of the process that is still flat: buffers of the allocator, no matter how often the attack is repeated.
const FLAT: u64 = 8 << 20;
const ROUNDS: usize = 4;

/// A core under attack, and a guest who talks.
struct Scene {
    pair: Pair,
    guest: Client,
    messages: usize,
}

impl Scene {
    async fn start() -> Self {
        let core = format!(
            "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\nlimits.handshake_timeout = \"{}ms\"\nlimits.keepalive = \"1s\"\n\
             limits.connections = {TOTAL}\nlimits.connections_per_ip = {PER_IP}\nlimits.streams_per_connection = {STREAMS}\nlimits.frames_per_second = 10000\n\
             providers.demo.kind = \"demo\"\nproviders.demo.word_delay = \"0s\"\n",
            HANDSHAKE.as_millis()
        );
        let edge = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n".to_owned();
        let pair = Pair::start(Settings { core, edge, vars: Vec::new() }).await.unwrap();
        let mut guest = pair.connect(Transport::Grpc, "guest").await.unwrap();
        guest.open(Open::default()).await.unwrap();
        let mut scene = Self { pair, guest, messages: 0 };
        scene.talk().await;
        scene
    }

    fn core(&self) -> SocketAddr {
        self.pair.addresses().grpc
    }

    /// A message and the whole reply to it.
    async fn talk(&mut self) {
        self.messages += 1;
        self.guest.say(&format!("m{}", self.messages), "hello").await.unwrap();
        self.guest.reply().await.unwrap();
        self.guest.seen.clear();
    }

    /// The guest talks for as long as this takes.
    async fn talk_during<T>(&mut self, attack: impl Future<Output = T>) -> T {
        let over = Cell::new(false);
        let attack = async {
            let outcome = attack.await;
            over.set(true);
            outcome
        };
        let talk = async {
            while !over.get() {
                self.talk().await;
            }
        };
        tokio::join!(attack, talk).0
    }

    /// The attack, again and again, with the guest talking all the while.
    async fn survives<F: Future<Output = ()>>(&mut self, attack: impl Fn(SocketAddr, String) -> F) {
        let core = self.core();
        let token = self.pair.token("mallory", "user").unwrap();
        let mut before = 0;
        for round in 0..ROUNDS {
            self.talk_during(attack(core, token.clone())).await;
            self.talk().await;
            if round == 0 {
                // What the first of its kind costs (buffers, code pages) is not growth.
                before = self.pair.process(Role::Core).resident_bytes().unwrap();
            }
        }
        let grown = self.pair.process(Role::Core).resident_bytes().unwrap().saturating_sub(before);
        assert!(grown < FLAT, "core grew by {grown} bytes");
        // Whoever was cut is gone: the guest and the edge are left.
        let pair = &self.pair;
        let alone = || async {
            let connections = pair.metric(Role::Core, "chatbox_core_connections").await.ok()?;
            (connections <= 3.0).then_some(())
        };
        wait_for("the hostile connections are gone", LIMIT, alone).await.unwrap();
    }

    async fn end(self) {
        drop(self.guest);
        self.pair.shutdown().await.unwrap();
    }
}

/// The n-th stream of a client.
fn stream(number: u32) -> u32 {
    2 * number + 1
}

fn headers(number: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS | flags, stream(number), block)
}

async fn connect(core: SocketAddr, settings: &[(u16, u32)]) -> RawH2 {
    RawH2::connect(HOSTILE, core, settings).await.unwrap()
}

/// Everything that is sent at once; the peer may close before it has taken all.
async fn cut_with(core: SocketAddr, bytes: Vec<u8>) -> End {
    let mut client = connect(core, &[]).await;
    let _ = client.send_unread(&bytes, LIMIT).await;
    client.end().await.unwrap()
}

/// A GOAWAY may be lost to the reset that follows it when the attacker still sends; gone is gone then.
fn assert_cut(end: End, code: u32) {
    assert!(end == End::GoAway(code) || end == End::Closed, "{end:?} instead of {code}");
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let mut scene = Scene::start().await;
    scene
        .survives(|core, token| async move {
            let block = call(CHAT, Some(&token));
            let pairs = (0..200).map(|number| {
                let cancel = frame(kind::RST_STREAM, flag::NONE, stream(number), &code::CANCEL.to_be_bytes());
                [headers(number, flag::NONE, &block), cancel].concat()
            });
            let end = cut_with(core, pairs.collect::<Vec<_>>().concat()).await;
            assert_eq!(end, End::GoAway(code::ENHANCE_YOUR_CALM));
        })
        .await;
    scene.end().await;
}

#[tokio::test]
async fn making_the_server_reset_streams_without_end_ends_the_connection() {
    let mut scene = Scene::start().await;
    scene
        .survives(|core, _| async move {
            // Each is malformed in itself (RFC 9113 8.2.2), which costs the stream and not the connection.
            let block = [call(CHAT, None), fields(&[("connection", "close")])].concat();
            let all = (0..1_100).map(|number| headers(number, flag::NONE, &block)).collect::<Vec<_>>().concat();
            assert_cut(cut_with(core, all).await, code::ENHANCE_YOUR_CALM);
        })
        .await;
    scene.end().await;
}

#[tokio::test]
async fn headers_without_end_end_the_connection_and_long_ones_are_refused() {
    let mut scene = Scene::start().await;
    scene
        .survives(|core, token| async move {
            let block = call(CHAT, Some(&token));
            let piece = fields(&[("x-more", &"x".repeat(900))]);
            let open_ended = [
                frame(kind::HEADERS, flag::NONE, 1, &block),
                frame(kind::CONTINUATION, flag::NONE, 1, &piece).repeat(200),
            ];
            assert_cut(cut_with(core, open_ended.concat()).await, code::ENHANCE_YOUR_CALM);
            // One list above the limit of 32 KiB in frames as large as they may be: refused, and the connection lives.
            let list = [block.clone(), fields(&[("x-long", &"x".repeat(14_000))]).repeat(3)].concat();
            let mut client = connect(core, &[]).await;
            let (first, rest) = list.split_at(16_000);
            let mut frames = frame(kind::HEADERS, flag::END_STREAM, 1, first);
            let count = rest.chunks(16_000).count();
            for (index, piece) in rest.chunks(16_000).enumerate() {
                let flags = if index + 1 == count { flag::END_HEADERS } else { flag::NONE };
                frames.extend(frame(kind::CONTINUATION, flags, 1, piece));
            }
            client.send(&frames).await.unwrap();
            let is_answer =
                |came: &crate::harness::raw_h2::Frame| (came.stream == 1).then_some(came.flags & flag::END_STREAM);
            assert_eq!(client.until("a refusal", is_answer).await.unwrap(), flag::END_STREAM);
            client.send(&headers(1, flag::END_STREAM, &block)).await.unwrap();
            let lives = |came: &crate::harness::raw_h2::Frame| (came.stream == stream(1)).then_some(());
            client.until("an answer to the next call", lives).await.unwrap();
        })
        .await;
    scene.end().await;
}

#[tokio::test]
async fn frames_against_the_protocol_end_the_connection() {
    let mut scene = Scene::start().await;
    scene
        .survives(|core, token| async move {
            let block = call(CHAT, Some(&token));
            let empty = frame(kind::DATA, flag::NONE, 1, &[]).repeat(2_000);
            for (bytes, code) in [
                ([headers(0, flag::NONE, &block), empty].concat(), code::ENHANCE_YOUR_CALM),
                (frame(kind::DATA, flag::NONE, 0, b"x"), code::PROTOCOL_ERROR),
                (frame(kind::HEADERS, flag::END_HEADERS, 2, &block), code::PROTOCOL_ERROR),
                (frame(kind::CONTINUATION, flag::END_HEADERS, 1, &block), code::PROTOCOL_ERROR),
                (frame(kind::WINDOW_UPDATE, flag::NONE, 0, &[0; 4]), code::PROTOCOL_ERROR),
                (frame(kind::PING, flag::NONE, 0, &[0; 8_192]), code::PROTOCOL_ERROR),
                (frame(kind::DATA, flag::NONE, 1, &[0; 20_000]), code::FRAME_SIZE_ERROR),
            ] {
                assert_cut(cut_with(core, bytes).await, code);
            }
            // No HTTP/2 at all.
            let mut client = RawH2::silent(HOSTILE, core).await.unwrap();
            let _ = client.send(b"GET / HTTP/1.1\r\nhost: core\r\n\r\n").await;
            client.end().await.unwrap();
        })
        .await;
    scene.end().await;
}

#[tokio::test]
async fn streams_above_the_limit_are_refused_and_those_of_a_user_too() {
    let mut scene = Scene::start().await;
    scene
        .survives(|core, token| async move {
            // Calls whose request never comes.
            let block = call(LIST_MODELS, Some(&token));
            let mut client = connect(core, &[]).await;
            for first in (0..=STREAMS).step_by(100) {
                let some = (first..(first + 100).min(STREAMS + 1)).map(|number| headers(number, flag::NONE, &block));
                client.send(&some.collect::<Vec<_>>().concat()).await.unwrap();
            }
            let refused = client.until("a refusal", |came| reset(came).map(|code| (came.stream, code))).await.unwrap();
            assert_eq!(refused, (stream(STREAMS), code::REFUSED_STREAM));
            // `Chat` streams of one user, 20 of which are allowed, and which end one by one as the first 20 do.
            let mut client = connect(core, &[]).await;
            let block = call(CHAT, Some(&token));
            let chats = (0..21).map(|number| headers(number, flag::NONE, &block)).collect::<Vec<_>>();
            client.send(&chats.concat()).await.unwrap();
            let ended = |came: &crate::harness::raw_h2::Frame| {
                (came.kind == kind::HEADERS && came.flags & flag::END_STREAM != 0).then_some(came.stream)
            };
            assert_eq!(client.until("a refused chat", ended).await.unwrap(), stream(20));
        })
        .await;
    scene.end().await;
}

#[tokio::test]
async fn answers_that_nobody_reads_stay_bounded() {
    const NO_WINDOW: [(u16, u32); 1] = [(4, 0)];
    let mut scene = Scene::start().await;
    scene
        .survives(|core, token| async move {
            let block = call(CHAT, Some(&token));
            let chat = |frame: ChatFrame| {
                message(&ChatRequest { request_id: "r".to_owned(), frame: Some(frame) }.encode_to_vec())
            };
            let open = chat(ChatFrame::Open(Open::default()));
            let leave = chat(ChatFrame::Detach(Detach {}));
            let mut client = connect(core, &NO_WINDOW).await;
            // Each leaves at once, without having read a byte of what it was answered: its place is not free again.
            for number in 0..40 {
                let frames = [
                    headers(number, flag::NONE, &block),
                    frame(kind::DATA, flag::NONE, stream(number), &open),
                    frame(kind::DATA, flag::END_STREAM, stream(number), &leave),
                ];
                client.send(&frames.concat()).await.unwrap();
            }
            let mut refused = 0;
            let count = |came: &crate::harness::raw_h2::Frame| {
                refused += usize::from(came.kind == kind::HEADERS && came.flags & flag::END_STREAM != 0);
                (refused == 20).then_some(())
            };
            client.until("20 of 40 refused", count).await.unwrap();
        })
        .await;
    scene.end().await;
}

#[tokio::test]
async fn who_does_not_begin_is_cut_and_holds_no_place_for_long() {
    let mut scene = Scene::start().await;
    scene
        .survives(|core, _| async move {
            // An address of its own: places are given back a moment after a peer has seen the end.
            let alone = Ipv4Addr::new(127, 0, 0, 67).into();
            let started = Instant::now();
            let mut client = RawH2::silent(alone, core).await.unwrap();
            // A part of the preface is not a beginning.
            client.send(&PREFACE[..10]).await.unwrap();
            client.end_in_silence().await.unwrap();
            assert!(started.elapsed() >= HANDSHAKE, "{:?}", started.elapsed());
            // More silent ones than there are places for their address: the others are closed at once, and all are in the end.
            let mut crowd = Vec::new();
            for _ in 0..PER_IP + 8 {
                crowd.push(RawH2::silent(HOSTILE, core).await.unwrap());
            }
            join_all(crowd.iter_mut().map(|client| async { client.end_in_silence().await.unwrap() })).await;
        })
        .await;
    // From many addresses, more than there are places at all: somebody new is served when the first of them are cut.
    let mut crowd = Vec::new();
    for number in 0..TOTAL + 32 {
        let address = Ipv4Addr::new(127, 0, 1, 1 + (number % 8) as u8);
        crowd.push(RawH2::silent(address.into(), scene.core()).await.unwrap());
    }
    let mut late = scene.pair.connect(Transport::Grpc, "late").await.unwrap();
    late.open(Open::default()).await.unwrap();
    scene.talk().await;
    drop((crowd, late));
    scene.end().await;
}

#[tokio::test]
async fn floods_of_a_client_that_never_reads_fill_no_memory_and_end_with_it() {
    let mut scene = Scene::start().await;
    scene.talk().await;
    let core = scene.core();
    let before = scene.pair.process(Role::Core).resident_bytes().unwrap();
    let friends = scene.pair.metric(Role::Core, "chatbox_core_connections").await.unwrap();
    // Each asks for an answer; 64 MiB of them, as far as they are taken.
    let settings = frame(kind::SETTINGS, flag::NONE, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(1 << 16);
    let pings = frame(kind::PING, flag::NONE, 0, &[7; 8]).repeat(1 << 16);
    let flood = |bytes: Vec<u8>| async move {
        let mut client = connect(core, &[]).await;
        let deadline = Instant::now() + 2 * LIMIT;
        while client.send_unread(&bytes, Duration::from_secs(1)).await {
            assert!(Instant::now() < deadline, "somebody reads answers that nobody takes");
        }
        // The server's own ping stays unanswered.
        client
    };
    let floods = join_all([flood(settings), flood(pings)]);
    let mut clients = scene.talk_during(floods).await;
    scene.talk().await;
    let grown = scene.pair.process(Role::Core).resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < FLAT, "core grew by {grown} bytes");
    let pair = &scene.pair;
    let alone = || async { (pair.metric(Role::Core, "chatbox_core_connections").await.ok()? <= friends).then_some(()) };
    wait_for("those who never read are cut", 2 * LIMIT, alone).await.unwrap();
    for client in &mut clients {
        client.end().await.unwrap();
    }
    scene.talk().await;
    scene.end().await;
}

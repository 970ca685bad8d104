//! Readers that do not read and processes that stand still: only the slow one pays, and nothing is lost.

use std::time::Duration;

use chatbox_proto::v1::{
    ErrorCode, FinishReason,
    chat_request::{Frame, Open, Read},
    chat_response::Event,
};
use futures_util::future::join_all;
use rustix::process::Signal;
use socket2::SockRef;
use tokio::time::{Instant, timeout_at};

use super::{resume_crash::settings, transcript::Transcript};
use crate::harness::{
    client::{Answer, Client, Transport},
    gate::Gate,
    history,
    pair::{Pair, Role},
    provider::{Provider, Script},
    wait::{LIMIT, wait_for},
    ws::Encoding,
};

/// Of one reply, in pieces of 8 KiB.
const LONG: usize = 512 << 10;

/// Replies that the slow reader does not read: far more than every buffer on the way to it.
const REPLIES: usize = 6;

/// What a process may grow by, whatever readers do: some times what may wait for one of them, and far less than
/// everything that was said.
const GROWTH: u64 = 48 << 20;

fn long() -> Script {
    let piece = "0123456789abcde ".repeat(512);
    let script = (0..LONG / piece.len()).fold(Script::stream(), |script, _| script.delta(&piece));
    script.finish("stop").usage(1, 1).done()
}

#[tokio::test]
async fn heavy_a_reader_that_never_reads_hurts_only_itself() {
    let provider = Provider::start().await.unwrap();
    let mut settings = settings(&provider);
    settings
        .edge
        .push_str("socket.write_timeout = \"500ms\"\nsocket.close_timeout = \"30s\"\ndrain.deadline = \"40s\"\n");
    let mut pair = Pair::start(settings).await.unwrap();
    provider.always("m", long());

    let mut slow = pair.connect(Transport::ALL[0], "user").await.unwrap();
    // Little, so that nearly everything waits in the edge or in core, but enough to be read quickly in the end.
    SockRef::from(slow.socket().unwrap().tcp()).set_recv_buffer_size(64 << 10).unwrap();
    let mut behind = Transcript::default();
    behind.attach(&mut slow).await.unwrap();
    slow.caught_up().await.unwrap();
    let mut others = Vec::new();
    for transport in [Transport::Socket(Encoding::Proto), Transport::Socket(Encoding::Proto), Transport::Grpc] {
        let mut transcript = Transcript::of(behind.session_id());
        let mut client = pair.connect(transport, "user").await.unwrap();
        transcript.attach(&mut client).await.unwrap();
        client.caught_up().await.unwrap();
        others.push((client, transcript));
    }
    let before = [Role::Core, Role::Edge].map(|role| pair.process(role).resident_bytes().unwrap());
    for round in 0..REPLIES {
        others[0].0.say(&format!("m{round}"), "go on").await.unwrap();
        for (client, transcript) in &mut others {
            let reply = client.reply().await.unwrap();
            assert_eq!((reply.streamed.len(), reply.finished.text.len()), (LONG, LONG));
            transcript.keep(client);
        }
    }
    // By core's clock: twice the time that a socket may be blocked.
    for _ in 0..10 {
        let beat = |event: &Event| matches!(event, Event::Heartbeat(_)).then_some(());
        others[2].0.until("a heartbeat", beat).await.unwrap();
    }
    for (role, before) in [Role::Core, Role::Edge].into_iter().zip(before) {
        let grown = pair.process(role).resident_bytes().unwrap().saturating_sub(before);
        assert!(grown < GROWTH, "{role:?} has grown by {grown} bytes");
    }
    // Now it reads: what was on the way, why it ends, and the end, which it may come back after.
    let closed = slow.until_closed().await.unwrap();
    assert_eq!(closed.code, Some(4010), "{closed:?}");
    let Some(Event::Error(error)) = slow.seen.last() else { panic!("{:?}", slow.seen.last()) };
    assert_eq!(
        (error.code(), error.reason.as_str(), error.close_code),
        (ErrorCode::Unavailable, "SLOW_CONSUMER", 4010)
    );
    behind.keep(&mut slow);
    assert!(behind.finished().len() < REPLIES, "it was never behind");
    let mut back = pair.connect(Transport::ALL[0], "user").await.unwrap();
    behind.attach(&mut back).await.unwrap();
    back.caught_up().await.unwrap();
    behind.keep(&mut back);

    let (mut core, http) = (pair.core("user").unwrap(), pair.http("user").unwrap());
    let stored = history::by_grpc(&mut core, behind.session_id(), 4).await.unwrap();
    assert_eq!(history::by_http(&http, behind.session_id(), 5).await.unwrap(), stored);
    behind.check(&stored).unwrap();
    for (client, transcript) in &mut others {
        transcript.keep(client);
        transcript.check(&stored).unwrap();
    }
    // A close that nobody answers would be waited for.
    drop((others, back, slow));
    pair.shutdown().await.unwrap();
}

/// Streams through a stall.
const STREAMS: usize = 500;

/// Frames of each that pile up meanwhile.
const FRAMES: usize = 4;

/// Pieces of each reply that pile up meanwhile.
const PIECES: usize = 30;

fn held(gate: &Gate) -> Script {
    let script = Script::stream().delta("first ").gate(gate);
    (0..PIECES).fold(script, |script, _| script.delta("piece ")).finish("stop").usage(1, 1).done()
}

async fn begins(client: &mut Client, id: &str) {
    client.say(id, "go on").await.unwrap();
    let text = |event: &Event| matches!(event, Event::ReplyDelta(delta) if delta.offset == 0);
    client.until_seen("the first piece", text).await.unwrap();
}

async fn ends(client: &mut Client) {
    let reply = client.reply().await.unwrap();
    assert_eq!(reply.finished.finish_reason(), FinishReason::Stop);
    assert_eq!((reply.streamed.len(), reply.finished.text.len()), (6 * (PIECES + 1), 6 * (PIECES + 1)));
    client.seen.clear();
}

#[tokio::test]
async fn heavy_five_hundred_streams_survive_a_stall_of_core_and_a_stall_of_the_edge() {
    let provider = Provider::start().await.unwrap();
    let mut pair = Pair::start(settings(&provider)).await.unwrap();
    let gate = Gate::new();
    provider.always("m", held(&gate));
    let mut clients = Vec::new();
    for n in 0..STREAMS {
        let transport = Transport::ALL[n % 2];
        clients.push(pair.connect(transport, &format!("user-{n}")).await.unwrap());
    }
    join_all(clients.iter_mut().map(|client| {
        Box::pin(async move {
            client.open(Open::default()).await.unwrap();
            begins(client, "one").await;
        })
    }))
    .await;

    pair.process(Role::Core).signal(Signal::STOP).unwrap();
    let stalled = Instant::now() + Duration::from_secs(1);
    let mut asked = Vec::new();
    for client in &mut clients {
        let mut ids = Vec::new();
        for _ in 0..FRAMES {
            ids.push(client.send(Frame::Read(Read { seq: 1 })).await.unwrap());
        }
        asked.push(ids);
    }
    // The stall itself: nothing is answered for a second.
    while let Ok(received) = timeout_at(stalled, clients[0].receive()).await {
        received.unwrap();
    }
    assert!(
        !clients[0].seen.iter().any(|event| matches!(event, Event::Ack(ack) if asked[0].contains(&ack.request_id)))
    );
    pair.process(Role::Core).signal(Signal::CONT).unwrap();
    join_all(clients.iter_mut().zip(asked).map(|(client, ids)| {
        Box::pin(async move {
            for id in ids {
                assert!(matches!(client.answer(&id).await.unwrap(), Answer::Ack(_)));
            }
        })
    }))
    .await;
    gate.open();
    join_all(clients.iter_mut().map(|client| Box::pin(ends(client)))).await;

    let gate = Gate::new();
    provider.always("m", held(&gate));
    join_all(clients.iter_mut().map(|client| Box::pin(begins(client, "two")))).await;
    pair.process(Role::Edge).signal(Signal::STOP).unwrap();
    gate.open();
    let replies = "chatbox_core_replies_total{model=\"m\",outcome=\"stop\"}";
    let over = || async { (pair.metric(Role::Core, replies).await.ok()? == 2.0 * STREAMS as f64).then_some(()) };
    wait_for("all replies end while the edge stands still", 2 * LIMIT, over).await.unwrap();
    pair.process(Role::Edge).signal(Signal::CONT).unwrap();
    join_all(clients.iter_mut().map(|client| Box::pin(ends(client)))).await;
    assert_eq!(pair.metric(Role::Edge, "chatbox_edge_connections").await.unwrap(), STREAMS as f64);
    drop(clients);
    pair.shutdown().await.unwrap();
}

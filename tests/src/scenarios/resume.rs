//! Reload and loss of the network in the middle of a reply: nothing is missing, nothing comes twice.

use std::time::Duration;

use chatbox_proto::v1::{ErrorCode, FinishReason, chat_response::Event};

use super::transcript::Transcript;
use crate::harness::{
    client::{Client, Transport, streamed},
    gate::Gate,
    history,
    provider::{Provider, Script},
    stack::{Setup, Stack},
    wait::LIMIT,
    ws::Encoding,
};

/// Pieces between two gates.
const PIECES: usize = 10;

/// How a device leaves.
#[derive(Debug, Clone, Copy)]
enum Leave {
    /// It says so.
    Close,
    /// Its connection is reset.
    Reset,
    /// It is gone: the connection ends without a word. On gRPC the call is cancelled.
    Vanish,
}

async fn leave(mut client: Client, how: Leave) {
    match (how, client.socket()) {
        (Leave::Close, Ok(socket)) => socket.close().await.unwrap(),
        (Leave::Close, Err(_)) => client.grpc().unwrap().half_close(),
        (Leave::Reset, Ok(socket)) => socket.tcp().set_zero_linger().unwrap(),
        (Leave::Reset, Err(_)) | (Leave::Vanish, _) => {}
    }
}

/// The text of one part of the answer.
fn part(n: usize) -> Vec<String> {
    (0..PIECES).map(|piece| format!("wörd-{n}-{piece} ")).collect()
}

/// An answer in as many parts as there are gates, and one more.
fn answer(gates: &[Gate]) -> Script {
    let mut script = Script::stream();
    for n in 0..=gates.len() {
        script = part(n).iter().fold(script, |script, piece| script.delta(piece));
        if let Some(gate) = gates.get(n) {
            script = script.gate(gate);
        }
    }
    script.finish("stop").usage(5, 7).done()
}

fn parts(count: usize) -> String {
    (0..count).flat_map(part).collect()
}

/// Reads until the device has the first `count` parts.
async fn has_parts(client: &mut Client, count: usize) {
    let bytes = u32::try_from(parts(count).len()).unwrap();
    client
        .until(&format!("{count} parts"), |event| match event {
            Event::ReplyDelta(delta) if delta.next_offset >= bytes => Some(()),
            Event::ReplySnapshot(shot) if shot.next_offset >= bytes => Some(()),
            _ => None,
        })
        .await
        .unwrap();
}

/// Where the snapshot of a resumed connection begins, when there is one.
fn resumed_from(client: &Client) -> Option<u32> {
    client.seen.iter().find_map(|event| match event {
        Event::ReplySnapshot(shot) => Some(shot.offset),
        _ => None,
    })
}

/// One device stays, another leaves and comes back three times: while pieces arrive, while none do, and over the end.
async fn goes_on(stack: &Stack, provider: &Provider, transport: Transport, how: Leave) {
    let user = format!("{transport:?}-{how:?}");
    let gates = [Gate::new(), Gate::new(), Gate::new()];
    provider.script("m", answer(&gates));
    let mut moving = Transcript::default();
    let mut client = stack.connect(transport, &user).await.unwrap();
    moving.attach(&mut client).await.unwrap();
    client.say("question", "go on").await.unwrap();
    let mut staying = Transcript::of(moving.session_id());
    let other = if transport == Transport::Grpc { Transport::Socket(Encoding::Json) } else { Transport::Grpc };
    let mut stays = stack.connect(other, &user).await.unwrap();
    staying.attach(&mut stays).await.unwrap();

    has_parts(&mut client, 1).await;
    moving.keep(&mut client);
    leave(client, how).await;
    gates[0].open();
    has_parts(&mut stays, 2).await;

    let mut client = stack.connect(transport, &user).await.unwrap();
    moving.attach(&mut client).await.unwrap();
    client.caught_up().await.unwrap();
    assert_eq!(resumed_from(&client), u32::try_from(parts(1).len()).ok());
    moving.keep(&mut client);
    assert_eq!(streamed(moving.events(), &moving.position().reply.unwrap().message_id).unwrap(), parts(2));
    leave(client, how).await;

    let mut client = stack.connect(transport, &user).await.unwrap();
    moving.attach(&mut client).await.unwrap();
    gates[1].open();
    has_parts(&mut client, 3).await;
    moving.keep(&mut client);
    leave(client, how).await;
    gates[2].open();
    let end = stays.reply().await.unwrap();
    assert_eq!((&end.streamed, &end.finished.text), (&parts(4), &parts(4)));

    let mut client = stack.connect(transport, &user).await.unwrap();
    moving.attach(&mut client).await.unwrap();
    client.caught_up().await.unwrap();
    moving.keep(&mut client);
    staying.keep(&mut stays);
    let stored = {
        let (mut core, http) = (stack.core(&user).unwrap(), stack.http(&user).unwrap());
        history::agreed(&mut core, &http, moving.session_id()).await.unwrap()
    };
    for transcript in [&moving, &staying] {
        transcript.check(&stored).unwrap();
        assert_eq!(transcript.finished()[0].finish_reason(), FinishReason::Stop);
    }
    assert_eq!(streamed(moving.events(), &end.finished.message_id).unwrap(), parts(3));
}

#[tokio::test]
async fn a_device_that_leaves_and_comes_back_in_mid_reply_misses_nothing_and_sees_nothing_twice() {
    let provider = Provider::start().await.unwrap();
    let setup = Setup::new().unwrap().with_models(&provider, &["m"]).with(|setup| {
        for provider in setup.core.providers.values_mut() {
            (provider.first_byte_timeout, provider.chunk_timeout) = (LIMIT, LIMIT);
        }
    });
    let stack = Stack::start(setup).await.unwrap();
    for transport in Transport::ALL {
        for how in [Leave::Close, Leave::Reset, Leave::Vanish] {
            goes_on(&stack, &provider, transport, how).await;
        }
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn when_the_way_from_edge_to_core_breaks_in_mid_reply_the_browser_is_told_and_resumes() {
    let provider = Provider::start().await.unwrap();
    let setup = Setup::new().unwrap().with_models(&provider, &["m"]).proxied();
    // Here it is the browser that comes back.
    let setup = setup.with(|setup| setup.edge.core.reopen_timeout = Duration::ZERO);
    let stack = Stack::start(setup).await.unwrap();
    for encoding in Encoding::ALL {
        let (transport, user) = (Transport::Socket(encoding), format!("{encoding:?}"));
        let gates = [Gate::new(), Gate::new()];
        provider.script("m", answer(&gates));
        let mut transcript = Transcript::default();
        let mut client = stack.connect(transport, &user).await.unwrap();
        transcript.attach(&mut client).await.unwrap();
        client.say("question", "go on").await.unwrap();
        for part in 1..=2 {
            has_parts(&mut client, part).await;
            stack.proxy().unwrap().cut();
            let told = client.until("why it ends", |event| match event {
                Event::Error(error) => Some(error.clone()),
                _ => None,
            });
            let told = told.await.unwrap();
            assert_eq!((told.code(), told.close_code), (ErrorCode::Unavailable, 4013), "{told:?}");
            assert!(told.retry_after.is_some(), "{told:?}");
            assert_eq!(client.until_closed().await.unwrap().code, Some(4013));
            transcript.keep(&mut client);
            gates[part - 1].open();
            client = stack.connect(transport, &user).await.unwrap();
            transcript.attach(&mut client).await.unwrap();
        }
        let end = client.until("the end", |event| match event {
            Event::Entry(entry) => crate::harness::client::finished(entry).cloned(),
            _ => None,
        });
        assert_eq!(end.await.unwrap().text, parts(3));
        transcript.keep(&mut client);
        let (mut core, http) = (stack.core(&user).unwrap(), stack.http(&user).unwrap());
        let stored = history::agreed(&mut core, &http, transcript.session_id()).await.unwrap();
        transcript.check(&stored).unwrap();
    }
    stack.shutdown().await.unwrap();
}

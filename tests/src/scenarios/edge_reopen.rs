//! Core dies or leaves, and the browser's socket stays: no second `opened`, no hole, no double, every send acknowledged once.

use std::{collections::BTreeMap, time::Duration};

use chatbox_proto::v1::{
    Message,
    chat_request::{Frame, Open, Send},
    chat_response::Event,
};
use futures_util::future::join_all;
use rustix::process::Signal;

use super::transcript::{Transcript, all_answered};
use crate::harness::{
    client::{Client, Transport, finished},
    history,
    pair::{Pair, Role, Settings},
    provider::{Provider, Script},
    wait::{LIMIT, wait_for},
    ws::Encoding,
};

/// A core with the scripted model `m` and heartbeats that come often, and an edge that waits for it.
fn settings(provider: &Provider) -> Settings {
    let drain = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n";
    let core = format!(
        "default_model = \"m\"\n{drain}drain.grace = \"300ms\"\ndrain.deadline = \"10s\"\n\
         limits.frames_per_second = 10000\nsession.heartbeat = \"200ms\"\nsession.checkpoint = \"50ms\"\n\
         session.unanswered = 100\n\
         [providers.scripted]\nbase_url = \"{}\"\n[[models]]\nid = \"m\"\nprovider = \"scripted\"\n",
        provider.base_url()
    );
    let edge = format!(
        "{drain}core.heartbeat = \"4s\"\ncore.reopens = 16\nlimits.frames_per_second = 10000\n\
         limits.handshakes_per_ip = 10000\n"
    );
    Settings { core, edge, vars: Vec::new() }
}

/// How core goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Killed,
    Drained,
}

async fn lose(pair: &mut Pair, loss: Loss) {
    let core = pair.process(Role::Core);
    match loss {
        Loss::Killed => {
            core.kill().unwrap();
        }
        Loss::Drained => assert!(core.terminate(LIMIT).await.unwrap().success(), "{}", core.log()),
    }
}

async fn send(client: &mut Client, number: usize) -> String {
    let (client_message_id, text) = (format!("m{number}"), format!("text {number}"));
    client.send(Frame::Send(Send { client_message_id, text, ..Send::default() })).await.unwrap()
}

/// The history once every message in it is answered.
async fn settled(pair: &Pair, user: &str, session_id: &str) -> Vec<Message> {
    let http = pair.http(user).unwrap();
    let quiet = || async {
        let all = history::by_http(&http, session_id, 0).await.ok()?;
        (history::check(&all).is_ok() && all_answered(&all).is_ok()).then_some(())
    };
    wait_for("all is answered", LIMIT, quiet).await.unwrap();
    history::agreed(&mut pair.core(user).unwrap(), &http, session_id).await.unwrap()
}

/// Reads until the end of the last reply.
async fn until_head(client: &mut Client, stored: &[Message]) {
    let last = stored.iter().filter_map(|message| Some(message.reply.as_ref()?.finished_seq)).max().unwrap();
    client
        .until_seen("the last entry", |event| matches!(event, Event::Entry(entry) if entry.seq == last))
        .await
        .unwrap();
}

fn count(client: &Client, is_it: impl Fn(&Event) -> bool) -> usize {
    client.seen.iter().filter(|event| is_it(event)).count()
}

/// One socket, sends before, during and after each loss.
async fn stays(encoding: Encoding, losses: &[Loss]) {
    let provider = Provider::start().await.unwrap();
    provider.always("m", Script::reply(["so ", "it ", "is"]));
    let mut pair = Pair::start(settings(&provider)).await.unwrap();
    let mut transcript = Transcript::default();
    let mut client = pair.connect(Transport::Socket(encoding), "user").await.unwrap();
    transcript.attach(&mut client).await.unwrap();
    let mut asked = BTreeMap::new();
    let mut number = 0;
    for &loss in losses {
        for moment in 0..4 {
            match moment {
                // Some are on their way when core goes, some come while there is none.
                1 => lose(&mut pair, loss).await,
                2 => pair.restart(Role::Core).unwrap(),
                _ => {}
            }
            for _ in 0..4 {
                asked.insert(send(&mut client, number).await, number);
                number += 1;
            }
        }
        // All of them are acknowledged, by whichever core.
        for request_id in asked.keys().cloned().collect::<Vec<_>>() {
            let is_answer = |event: &Event| matches!(event, Event::Ack(ack) if ack.request_id == request_id);
            client.until_seen(&format!("the ack of {request_id}"), is_answer).await.unwrap();
        }
    }
    let stored = settled(&pair, "user", transcript.session_id()).await;
    until_head(&mut client, &stored).await;
    assert_eq!(count(&client, |event| matches!(event, Event::Opened(_))), 1);
    assert_eq!(count(&client, |event| matches!(event, Event::CaughtUp(_))), 1);
    assert_eq!(count(&client, |event| matches!(event, Event::GoingAway(_) | Event::Error(_))), 0);
    for (request_id, number) in &asked {
        let acks: Vec<_> = client
            .seen
            .iter()
            .filter_map(|event| match event {
                Event::Ack(ack) if ack.request_id == *request_id => Some(ack),
                _ => None,
            })
            .collect();
        let kept: Vec<_> = stored.iter().filter(|message| message.client_message_id == format!("m{number}")).collect();
        let ([ack], [kept]) = (&acks[..], &kept[..]) else { panic!("{acks:?} for {kept:?}") };
        assert_eq!((&ack.message_id, ack.seq), (&kept.message_id, kept.seq));
    }
    // Sent in order, and never out of it, however often they were sent again.
    let order: Vec<_> = stored.iter().filter(|message| message.reply.is_none()).map(|m| m.text.clone()).collect();
    assert_eq!(order, (0..number).map(|number| format!("text {number}")).collect::<Vec<_>>());
    transcript.keep(&mut client);
    transcript.check(&stored).unwrap();
    let resumed = pair.metric(Role::Edge, "chatbox_edge_reopens_total{outcome=\"resumed\"}").await.unwrap();
    assert!(resumed >= losses.len() as f64, "{resumed}");
    assert_eq!(pair.metric(Role::Edge, "chatbox_edge_streams_reopening").await.unwrap(), 0.0);
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_socket_with_text_frames_outlives_cores_that_are_killed_and_drained() {
    stays(Encoding::Json, &[Loss::Killed, Loss::Drained, Loss::Killed]).await;
}

#[tokio::test]
async fn a_socket_with_binary_frames_outlives_cores_that_are_killed_and_drained() {
    stays(Encoding::Proto, &[Loss::Drained, Loss::Killed, Loss::Drained]).await;
}

#[tokio::test]
async fn a_reply_under_way_ends_once_and_the_next_one_comes_over_the_same_socket() {
    let provider = Provider::start().await.unwrap();
    let mut pair = Pair::start(settings(&provider)).await.unwrap();
    for (encoding, loss) in [(Encoding::Json, Loss::Killed), (Encoding::Proto, Loss::Drained)] {
        let user = format!("{loss:?}");
        provider.script("m", Script::stream().delta("pärt ").delta("öf it").hang());
        let mut transcript = Transcript::default();
        let mut client = pair.connect(Transport::Socket(encoding), &user).await.unwrap();
        transcript.attach(&mut client).await.unwrap();
        client.say("first", "question").await.unwrap();
        let whole = |event: &Event| matches!(event, Event::ReplyDelta(delta) if delta.next_offset == 12).then_some(());
        client.until("the text", whole).await.unwrap();
        lose(&mut pair, loss).await;
        pair.restart(Role::Core).unwrap();
        client.say("second", "and now?").await.unwrap();
        let stored = settled(&pair, &user, transcript.session_id()).await;
        until_head(&mut client, &stored).await;
        assert_eq!(count(&client, |event| matches!(event, Event::Opened(_))), 1);
        transcript.keep(&mut client);
        transcript.check(&stored).unwrap();
        let ends: Vec<_> = transcript.finished().iter().map(|end| end.text.clone()).collect();
        assert_eq!(ends.len(), 2);
        assert!("pärt öf it".starts_with(&ends[0]) && ends[1] == "You said: and now?", "{ends:?}");
    }
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn heavy_two_hundred_sockets_outlive_a_restart() {
    const SOCKETS: usize = 200;
    let provider = Provider::start().await.unwrap();
    provider.always("m", Script::reply(["fine"]));
    let mut pair = Pair::start(settings(&provider)).await.unwrap();
    let mut clients = Vec::new();
    for number in 0..SOCKETS {
        let transport = Transport::Socket(Encoding::ALL[number % 2]);
        let mut client = pair.connect(transport, &format!("user-{number}")).await.unwrap();
        client.open(Open::default()).await.unwrap();
        client.caught_up().await.unwrap();
        clients.push(client);
    }
    for loss in [Loss::Killed, Loss::Drained] {
        lose(&mut pair, loss).await;
        pair.restart(Role::Core).unwrap();
        let said = clients.iter_mut().map(|client| async move {
            client.say(&format!("{loss:?}"), "still here").await.unwrap();
            client.reply().await.unwrap();
        });
        join_all(said).await;
    }
    for client in &clients {
        assert_eq!(count(client, |event| matches!(event, Event::Opened(_) | Event::CaughtUp(_))), 2);
        let seqs: Vec<_> = client.entries().iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    }
    let resumed = pair.metric(Role::Edge, "chatbox_edge_reopens_total{outcome=\"resumed\"}").await.unwrap();
    assert!(resumed >= (SOCKETS * 2) as f64, "{resumed}");
    drop(clients);
    let gone = || async {
        let open = pair.metric(Role::Edge, "chatbox_edge_connections").await.ok()?;
        (open == 0.0).then_some(())
    };
    wait_for("no connection is counted", LIMIT, gone).await.unwrap();
    assert_eq!(pair.metric(Role::Edge, "chatbox_edge_streams_reopening").await.unwrap(), 0.0);
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_core_that_stands_still_is_left_and_taken_up_again() {
    let provider = Provider::start().await.unwrap();
    provider.always("m", Script::reply(["fine"]));
    let mut pair = Pair::start(settings(&provider)).await.unwrap();
    let mut client = pair.connect(Transport::Socket(Encoding::Json), "user").await.unwrap();
    client.open(Open::default()).await.unwrap();
    client.caught_up().await.unwrap();
    pair.process(Role::Core).signal(Signal::STOP).unwrap();
    let request_id = send(&mut client, 1).await;
    let left = || async {
        let reopening = pair.metric(Role::Edge, "chatbox_edge_streams_reopening").await.ok()?;
        (reopening == 1.0).then_some(())
    };
    // Two and a half heartbeats of 4 s.
    wait_for("the silence is noticed", LIMIT, left).await.unwrap();
    pair.process(Role::Core).signal(Signal::CONT).unwrap();
    let answered = |event: &Event| matches!(event, Event::Ack(ack) if ack.request_id == request_id);
    client.until_seen("the ack", answered).await.unwrap();
    // It may have come before the acknowledgement.
    let ended = |event: &Event| matches!(event, Event::Entry(entry) if finished(entry).is_some());
    client.until_seen("the end of the reply", ended).await.unwrap();
    assert_eq!(count(&client, |event| matches!(event, Event::Opened(_))), 1);
    let seqs: Vec<_> = client.entries().iter().map(|entry| entry.seq).collect();
    assert_eq!(seqs, [1, 2, 3]);
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn when_core_stays_away_the_socket_is_closed_to_come_back_later() {
    let provider = Provider::start().await.unwrap();
    let mut settings = settings(&provider);
    settings.edge.push_str("core.reopen_timeout = \"1s\"\n");
    let mut pair = Pair::start(settings).await.unwrap();
    let mut client = pair.connect(Transport::Socket(Encoding::Json), "user").await.unwrap();
    client.open(Open::default()).await.unwrap();
    let started = std::time::Instant::now();
    lose(&mut pair, Loss::Killed).await;
    let closed = client.until_closed().await.unwrap();
    assert_eq!(closed.code, Some(4013), "{closed:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let status = pair.process(Role::Edge).terminate(LIMIT).await.unwrap();
    assert!(status.success());
}

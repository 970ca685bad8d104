//! Power cuts: what was acknowledged is there, each reply has ended once, and clients go on where they were.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use chatbox_proto::v1::{
    FinishReason, Message,
    chat_request::{Frame, Send},
    chat_response::Event,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::transcript::{Transcript, all_answered};
use crate::harness::{
    client::{Client, Received, Transport},
    history,
    pair::{Pair, Role, Settings},
    provider::{Provider, Script},
    wait::{LIMIT, wait_for},
    ws::Encoding,
};

/// Settings of a core whose model `m` is scripted, of which heartbeats and checkpoints come often, and that lets one user
/// write as fast as the store takes it. The edge does not open streams again: here it is clients that come back.
pub(super) fn settings(provider: &Provider) -> Settings {
    let drain = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n";
    let core = format!(
        "default_model = \"m\"\n{drain}drain.grace = \"300ms\"\ndrain.deadline = \"10s\"\n\
         limits.frames_per_second = 10000\nlimits.streams_per_user = 10000\n\
         session.heartbeat = \"100ms\"\nsession.checkpoint = \"50ms\"\nsession.unanswered = 100\n\
         [providers.scripted]\nbase_url = \"{}\"\n[[models]]\nid = \"m\"\nprovider = \"scripted\"\n",
        provider.base_url()
    );
    let edge = format!(
        "{drain}core.reopen_timeout = \"0s\"\nlimits.frames_per_second = 10000\nlimits.connections_per_user = 1000\nlimits.handshakes_per_ip = 10000\n"
    );
    Settings { core, edge, vars: Vec::new() }
}

/// Comes back as a client does: tries until it is let in.
async fn back(pair: &Pair, transport: Transport, user: &str, transcript: &Transcript) -> Client {
    let attempt = || async {
        let mut client = pair.connect(transport, user).await.ok()?;
        client.open(transcript.position()).await.ok()?;
        Some(client)
    };
    wait_for("the product is back", LIMIT, attempt).await.unwrap()
}

/// The history once every reply in it has ended.
async fn settled(pair: &Pair, user: &str, session_id: &str) -> Vec<Message> {
    let http = pair.http(user).unwrap();
    let quiet = || async {
        let all = history::by_http(&http, session_id, 0).await.ok()?;
        (history::check(&all).is_ok() && all_answered(&all).is_ok()).then_some(())
    };
    wait_for("all is answered", LIMIT, quiet).await.unwrap();
    history::agreed(&mut pair.core(user).unwrap(), &http, session_id).await.unwrap()
}

/// Reads until the transcript has everything up to the end of the last reply.
async fn until_head(client: &mut Client, transcript: &mut Transcript, stored: &[Message]) {
    transcript.keep(client);
    let last = stored.iter().filter_map(|message| Some(message.reply.as_ref()?.finished_seq)).max().unwrap();
    while transcript.position().after_seq < Some(last) {
        let entry = |event: &Event| matches!(event, Event::Entry(_)).then_some(());
        client.until("the rest", entry).await.unwrap();
        transcript.keep(client);
    }
}

#[tokio::test]
async fn a_core_that_dies_in_mid_reply_leaves_its_checkpoint_and_answers_what_waits() {
    let provider = Provider::start().await.unwrap();
    let mut pair = Pair::start(settings(&provider)).await.unwrap();
    for (round, transport) in [Transport::Socket(Encoding::Json), Transport::Grpc].into_iter().enumerate() {
        let user = format!("user-{round}");
        provider.script("m", Script::stream().delta("pärt ").delta("öf it").hang());
        let mut transcript = Transcript::default();
        let mut client = pair.connect(transport, &user).await.unwrap();
        transcript.attach(&mut client).await.unwrap();
        client.say("first", "question").await.unwrap();
        let whole = |event: &Event| matches!(event, Event::ReplyDelta(delta) if delta.next_offset == 12).then_some(());
        client.until("the text", whole).await.unwrap();
        let waiting = client.say("second", "and now?").await.unwrap();
        // By core's own clock: twenty times as long as a checkpoint may take to be due.
        for _ in 0..10 {
            client.until("a heartbeat", |event| matches!(event, Event::Heartbeat(_)).then_some(())).await.unwrap();
        }
        pair.process(Role::Core).kill().unwrap();
        let closed = client.until_closed().await.unwrap();
        if transport != Transport::Grpc {
            assert_eq!(closed.code, Some(4013), "{closed:?}");
        }
        transcript.keep(&mut client);
        provider.wait_left(round + 1).await.unwrap();
        pair.restart(Role::Core).unwrap();

        let mut client = back(&pair, transport, &user, &transcript).await;
        let stored = settled(&pair, &user, transcript.session_id()).await;
        until_head(&mut client, &mut transcript, &stored).await;
        transcript.check(&stored).unwrap();
        let ends = transcript.finished();
        assert_eq!((ends[0].finish_reason(), ends[0].text.as_str()), (FinishReason::Interrupted, "pärt öf it"));
        assert_eq!((ends[1].finish_reason(), ends[1].text.as_str()), (FinishReason::Stop, "You said: and now?"));
        let answers = stored.last().and_then(|message| message.reply.as_ref()).map(|reply| reply.answers.clone());
        assert_eq!(answers, Some(vec![waiting.message_id]));
    }
    pair.shutdown().await.unwrap();
}

/// A client that numbers its messages, remembers which were acknowledged, and sends the others again.
#[derive(Debug, Default)]
struct Writer {
    written: usize,
    waiting: VecDeque<usize>,
    acked: BTreeMap<usize, (String, u64)>,
}

/// Messages on their way at any time.
const WINDOW: usize = 4;

impl Writer {
    async fn send(client: &mut Client, n: usize) -> String {
        let send = Send { client_message_id: format!("m{n}"), text: format!("text {n}"), ..Send::default() };
        client.send(Frame::Send(send)).await.unwrap()
    }

    /// Sends again what was not acknowledged and then new messages, until so many more are acknowledged.
    async fn write(&mut self, client: &mut Client, acks: usize) {
        let mut on_the_way = BTreeMap::new();
        for &n in &self.waiting {
            on_the_way.insert(Self::send(client, n).await, n);
        }
        let mut got = 0;
        while got < acks {
            while on_the_way.len() < WINDOW {
                let n = self.written;
                self.written += 1;
                self.waiting.push_back(n);
                on_the_way.insert(Self::send(client, n).await, n);
            }
            let Received::Event(event) = client.receive().await.unwrap() else { panic!("closed: {on_the_way:?}") };
            match *event {
                Event::Ack(ack) => {
                    let n = on_the_way.remove(&ack.request_id).unwrap();
                    self.waiting.retain(|&waiting| waiting != n);
                    assert!(self.acked.insert(n, (ack.message_id, ack.seq)).is_none(), "{n} was acknowledged twice");
                    got += 1;
                }
                Event::Error(error) => panic!("{error:?}"),
                _ => {}
            }
        }
    }

    /// Everything acknowledged is in history where the ack said; nothing is there twice; nothing is there that was not sent.
    fn check(&self, stored: &[Message]) {
        let mut found = BTreeMap::new();
        for message in stored.iter().filter(|message| message.reply.is_none()) {
            let n: usize = message.client_message_id.trim_start_matches('m').parse().unwrap();
            assert_eq!(message.text, format!("text {n}"));
            assert!(found.insert(n, (message.message_id.clone(), message.seq)).is_none(), "{n} is there twice");
        }
        for (n, acked) in &self.acked {
            assert_eq!(found.get(n), Some(acked), "message {n} was acknowledged");
        }
        assert!(found.keys().all(|&n| n < self.written));
    }
}

async fn survives(transport: Transport, dies: Role, rounds: usize) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let provider = Provider::start().await.unwrap();
    let mut pair = Pair::start(settings(&provider)).await.unwrap();
    let (mut writer, mut transcript) = (Writer::default(), Transcript::default());
    let mut client = pair.connect(transport, "user").await.unwrap();
    transcript.attach(&mut client).await.unwrap();
    for _ in 0..rounds {
        writer.write(&mut client, random.random_range(1..=20)).await;
        pair.process(dies).kill().unwrap();
        // Acks that were on their way count too: they were given.
        while let Ok(Received::Event(event)) = client.receive().await {
            if let Event::Ack(ack) = *event {
                // Which message it was for is told by what it says.
                assert!(ack.seq > 0);
            }
        }
        transcript.keep(&mut client);
        pair.restart(dies).unwrap();
        client = back(&pair, transport, "user", &transcript).await;
    }
    writer.write(&mut client, WINDOW).await;
    let rest: Vec<usize> = writer.waiting.drain(..).collect();
    for n in rest {
        let ack = client.say(&format!("m{n}"), &format!("text {n}")).await.unwrap();
        writer.acked.insert(n, (ack.message_id, ack.seq));
    }
    assert_eq!(writer.acked.len(), writer.written);
    let stored = settled(&pair, "user", transcript.session_id()).await;
    until_head(&mut client, &mut transcript, &stored).await;
    writer.check(&stored);
    transcript.check(&stored).unwrap();
    let acked = transcript.events().iter().filter_map(|event| match event {
        Event::Ack(ack) => Some((ack.message_id.as_str(), ack.seq)),
        _ => None,
    });
    for (message_id, seq) in acked {
        assert!(stored.iter().any(|message| message.message_id == message_id && message.seq == seq), "{message_id}");
    }
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_core_is_killed_at_any_moment() {
    survives(Transport::Socket(Encoding::Json), Role::Core, 6).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_core_is_killed_under_a_grpc_client() {
    survives(Transport::Grpc, Role::Core, 3).await;
}

#[tokio::test]
async fn a_message_that_was_under_way_when_the_edge_was_killed_is_there_once() {
    survives(Transport::Socket(Encoding::Proto), Role::Edge, 6).await;
}

#[tokio::test]
async fn a_core_that_is_asked_to_leave_tells_everybody_and_keeps_what_was_said() {
    let provider = Provider::start().await.unwrap();
    let mut pair = Pair::start(settings(&provider)).await.unwrap();
    provider.always("m", Script::stream().delta("pärt").hang());
    let mut devices = Vec::new();
    for transport in Transport::ALL {
        let user = format!("{transport:?}");
        let mut transcript = Transcript::default();
        let mut client = pair.connect(transport, &user).await.unwrap();
        transcript.attach(&mut client).await.unwrap();
        client.say("first", "question").await.unwrap();
        client.until("text", |event| matches!(event, Event::ReplyDelta(_)).then_some(())).await.unwrap();
        devices.push((transport, user, transcript, client));
    }
    let started = Instant::now();
    pair.process(Role::Core).signal(rustix::process::Signal::TERM).unwrap();
    for (transport, _, transcript, client) in &mut devices {
        let away = client.until("the farewell", |event| match event {
            Event::GoingAway(away) => Some(away.clone()),
            _ => None,
        });
        assert_eq!(away.await.unwrap().close_code, 1001);
        let closed = client.until_closed().await.unwrap();
        let code = if *transport == Transport::Grpc { 14 } else { 1001 };
        assert_eq!(closed.code, Some(code), "{transport:?} {closed:?}");
        transcript.keep(client);
    }
    // Well before its deadline of 10 s, by itself.
    let core = pair.process(Role::Core);
    assert!(core.wait_exit(LIMIT).await.unwrap().success(), "{}", core.log());
    assert!(core.log().contains("drained"), "{}", core.log());
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    provider.wait_left(Transport::ALL.len()).await.unwrap();

    provider.always("m", Script::reply(["fine"]));
    pair.restart(Role::Core).unwrap();
    for (transport, user, mut transcript, _) in devices {
        let mut client = back(&pair, transport, &user, &transcript).await;
        client.say("second", "and now?").await.unwrap();
        let stored = settled(&pair, &user, transcript.session_id()).await;
        until_head(&mut client, &mut transcript, &stored).await;
        transcript.check(&stored).unwrap();
        let ends: Vec<_> = transcript.finished().iter().map(|end| (end.finish_reason(), end.text.clone())).collect();
        let (cut, good) = ((FinishReason::Interrupted, "pärt".to_owned()), (FinishReason::Stop, "fine".to_owned()));
        assert_eq!(ends, [cut, good], "{transport:?}");
    }
    pair.shutdown().await.unwrap();
}

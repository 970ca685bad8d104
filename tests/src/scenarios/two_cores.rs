//! Two real cores on one MongoDB and one NATS server: one session through both, the death of either, and of the bus.

use std::time::{Duration, Instant};

use chatbox_proto::v1::{
    FinishReason, Message,
    chat_request::{Frame, Open, Stop},
    chat_response::Event,
};
use rustix::process::Signal;

use super::transcript::all_answered;
use crate::harness::{
    client::{Answer, Client},
    cores::Cores,
    gate::Gate,
    history,
    mongod::Database,
    provider::{Provider, Script},
    wait::{LIMIT, wait_for},
};

/// The reply lapse of the cores here.
const LAPSE: Duration = Duration::from_secs(4);

struct World {
    cores: Cores,
    provider: Provider,
    database: Database,
}

impl World {
    async fn start() -> Self {
        let database = Database::new().unwrap();
        let provider = Provider::start().await.unwrap();
        let settings = format!(
            "default_model = \"m\"\ndrain.notice = \"0s\"\ndrain.jitter = \"0s\"\ndrain.grace = \"300ms\"\n\
             drain.deadline = \"15s\"\nsession.reply_lapse = \"4s\"\nsession.checkpoint = \"50ms\"\n\
             [providers.scripted]\nbase_url = \"{}\"\n[[models]]\nid = \"m\"\nprovider = \"scripted\"\n",
            provider.base_url()
        );
        let cores = Cores::start(2, &database.uri, &settings).await.unwrap();
        Self { cores, provider, database }
    }

    /// The user's stream on either core, on one session.
    async fn both(&self, user: &str) -> (Client, Client, String) {
        let mut first = self.cores.connect(0, user).await.unwrap();
        let session_id = first.open(Open::default()).await.unwrap().session.unwrap().session_id;
        let mut second = self.cores.connect(1, user).await.unwrap();
        second.open(from_the_start(&session_id)).await.unwrap();
        (first, second, session_id)
    }

    /// The history as core 1 tells it, once all in it is answered.
    async fn settled(&self, user: &str, session_id: &str) -> Vec<Message> {
        let quiet = || async {
            let mut core = self.cores.core(1, user).ok()?;
            let all = history::by_grpc(&mut core, session_id, 0).await.ok()?;
            (history::check(&all).is_ok() && all_answered(&all).is_ok()).then_some(all)
        };
        wait_for("all is answered", LIMIT, quiet).await.unwrap()
    }

    async fn end(self) {
        self.cores.shutdown().await.unwrap();
        self.database.drop_it().await.unwrap();
    }
}

fn from_the_start(session_id: &str) -> Open {
    Open { session_id: session_id.to_owned(), after_seq: Some(0), ..Open::default() }
}

/// Waits until so much of a running reply has been shown.
async fn shown(client: &mut Client, bytes: u32) -> String {
    let whole = |event: &Event| {
        if let Event::ReplyDelta(delta) = event {
            return (delta.next_offset >= bytes).then(|| delta.message_id.clone());
        }
        let Event::ReplySnapshot(snapshot) = event else { return None };
        (snapshot.next_offset >= bytes).then(|| snapshot.message_id.clone())
    };
    client.until("the text", whole).await.unwrap()
}

#[tokio::test]
async fn one_session_through_two_cores_is_one_conversation() {
    let world = World::start().await;
    let (mut first, mut second, session_id) = world.both("alice").await;
    let gate = Gate::new();
    world.provider.script("m", Script::stream().delta("hälf ").gate(&gate).delta("and half").finish("stop").done());
    first.say("m1", "question").await.unwrap();
    let reply = shown(&mut second, 6).await;
    // Sent through the other core, and a third stream that joins in mid-reply.
    let waiting = second.say("m2", "and this?").await.unwrap();
    let mut third = world.cores.connect(1, "alice").await.unwrap();
    third.open(from_the_start(&session_id)).await.unwrap();
    assert_eq!(shown(&mut third, 6).await, reply);
    gate.open();
    let mut seen = Vec::new();
    for client in [&mut first, &mut second, &mut third] {
        let end = client.reply_of(&reply).await.unwrap();
        assert_eq!(end.finished.text, "hälf and half");
        assert_eq!(end.streamed, end.finished.text, "what was shown is what is kept");
        let last = client.reply().await.unwrap();
        assert_eq!(last.finished.text, "You said: and this?");
        seen.push(client.entries().into_iter().cloned().collect::<Vec<_>>());
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[1], seen[2]);
    let stored = world.settled("alice", &session_id).await;
    assert_eq!(stored.last().unwrap().reply.as_ref().unwrap().answers, [waiting.message_id]);
    // A repeat through the other core is the same message.
    assert!(first.say("m2", "and this?").await.unwrap().duplicate);

    // A stop through the core that does not run it.
    world.provider.script("m", Script::stream().delta("never ending").hang());
    first.say("m3", "go on").await.unwrap();
    let message_id = shown(&mut second, 12).await;
    let answer = second.request(Frame::Stop(Stop { message_id: message_id.clone() })).await.unwrap();
    assert!(matches!(answer, Answer::Ack(_)), "{answer:?}");
    let end = first.reply_of(&message_id).await.unwrap().finished;
    assert_eq!((end.finish_reason(), end.text.as_str()), (FinishReason::Cancelled, "never ending"));
    world.provider.wait_left(1).await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_core_that_dies_in_mid_reply_is_stood_in_for_in_time_by_the_other() {
    let mut world = World::start().await;
    let (mut first, mut second, session_id) = world.both("alice").await;
    world.provider.script("m", Script::stream().delta("as far as it came").hang());
    first.say("m1", "question").await.unwrap();
    let reply = shown(&mut second, 17).await;
    let waiting = second.say("m2", "and this?").await.unwrap();
    world.cores.process(0).kill().unwrap();
    let died = Instant::now();
    let end = second.reply_of(&reply).await.unwrap().finished;
    let took = died.elapsed();
    assert_eq!((end.finish_reason(), end.text.as_str()), (FinishReason::Interrupted, "as far as it came"));
    assert!(took <= LAPSE + Duration::from_secs(1), "{took:?}");
    let next = second.reply().await.unwrap().finished;
    assert_eq!(next.text, "You said: and this?");
    let stored = world.settled("alice", &session_id).await;
    assert_eq!(stored.last().unwrap().reply.as_ref().unwrap().answers, [waiting.message_id]);
    // Nobody needs to be there: the other way round, without a stream on the core that stands in.
    world.cores.restart(0).unwrap();
    world.cores.ready(0).await.unwrap();
    let mut lonely = world.cores.connect(0, "bob").await.unwrap();
    let session_id = lonely.open(Open::default()).await.unwrap().session.unwrap().session_id;
    world.provider.script("m", Script::stream().delta("alone").hang());
    lonely.say("m1", "question").await.unwrap();
    shown(&mut lonely, 5).await;
    world.cores.process(0).kill().unwrap();
    let stored = world.settled("bob", &session_id).await;
    assert_eq!(stored[1].reply.as_ref().unwrap().finish_reason(), FinishReason::Interrupted);
    world.cores.restart(0).unwrap();
    world.cores.ready(0).await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_core_that_was_stopped_and_comes_back_adds_nothing() {
    let mut world = World::start().await;
    let (mut first, mut second, session_id) = world.both("alice").await;
    let gate = Gate::new();
    world.provider.script("m", Script::stream().delta("before").gate(&gate).delta(" never this").finish("stop").done());
    first.say("m1", "question").await.unwrap();
    let reply = shown(&mut second, 6).await;
    shown(&mut first, 6).await;
    world.cores.process(0).signal(Signal::STOP).unwrap();
    gate.open();
    let end = second.reply_of(&reply).await.unwrap().finished;
    assert_eq!((end.finish_reason(), end.text.as_str()), (FinishReason::Interrupted, "before"));
    world.cores.process(0).signal(Signal::CONT).unwrap();
    let late = first.reply_of(&reply).await.unwrap();
    assert_eq!((late.streamed.as_str(), late.finished.finish_reason()), ("before", FinishReason::Interrupted));
    let stored = world.settled("alice", &session_id).await;
    assert_eq!(stored.len(), 2);
    world.end().await;
}

#[tokio::test]
async fn without_nats_it_is_slower_and_right_and_with_it_again_as_before() {
    let mut world = World::start().await;
    let (mut first, mut second, session_id) = world.both("alice").await;
    first.say("m0", "before").await.unwrap();
    for client in [&mut first, &mut second] {
        client.reply().await.unwrap();
    }
    world.cores.kill_nats().await.unwrap();
    let gate = Gate::new();
    world.provider.script("m", Script::stream().delta("checkpointed").gate(&gate).finish("stop").done());
    first.say("m1", "meanwhile").await.unwrap();
    // By the comparison of heads, and then by the checkpoint.
    let reply = shown(&mut second, 12).await;
    let mut third = world.cores.connect(1, "alice").await.unwrap();
    third.open(from_the_start(&session_id)).await.unwrap();
    shown(&mut third, 12).await;
    // What needs the other core is done without it.
    let answer = second.request(Frame::Stop(Stop { message_id: reply.clone() })).await.unwrap();
    assert!(matches!(answer, Answer::Ack(_)), "{answer:?}");
    let end = first.reply_of(&reply).await.unwrap().finished;
    assert_eq!((end.finish_reason(), end.text.as_str()), (FinishReason::Interrupted, "checkpointed"));
    gate.open();

    world.cores.restart_nats().await.unwrap();
    second.say("m2", "after").await.unwrap();
    for client in [&mut first, &mut second, &mut third] {
        let after = |event: &Event| {
            let Event::Entry(entry) = event else { return None };
            let finished = crate::harness::client::finished(entry)?;
            (finished.text == "You said: after").then_some(())
        };
        client.until("the reply after it", after).await.unwrap();
    }
    let stored = world.settled("alice", &session_id).await;
    assert_eq!(stored.len(), 6);
    world.end().await;
}

#[tokio::test]
async fn several_cores_without_a_common_bus_are_refused() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("alone.toml");
    let secret = crate::harness::stack::SECRET;
    // The keys of the others: other ones would be refused for that.
    let ring = world.cores.ring_line().unwrap();
    let text = format!(
        "profile = \"dev\"\nlisten = \"127.0.0.1:0\"\nmetrics_listen = \"\"\ntoken.secret = \"{secret}\"\n\
         store.url = \"{}\"\n{ring}\nsession.reply_lapse = \"4s\"\n",
        world.database.uri
    );
    std::fs::write(&config, text).unwrap();
    let mut command = std::process::Command::new(crate::harness::tools::binary("chatbox-core").unwrap());
    command.env_clear().arg("--config").arg(&config);
    let log = folder.path().join("log");
    let mut process = crate::harness::process::Process::start("chatbox-core", command, &log).unwrap();
    let status = process.wait_exit(LIMIT).await.unwrap();
    assert!(!status.success());
    let log = process.log();
    assert!(log.contains("bus.url") && log.contains("another core uses this store"), "{log}");
    world.end().await;
}

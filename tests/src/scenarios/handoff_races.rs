//! Takeovers through two real cores on one MongoDB: one winner, and nothing generated after it, whatever the timing and
//! whether the cores hear each other or not.

use chatbox_proto::v1::{
    ReleaseRequest, TakeOverRequest,
    chat_request::{Frame, Open, RequestHelp},
    chat_response::Event,
    entry::Kind,
};
use futures_util::future::join_all;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rustix::process::Signal;
use tonic::Code;

use crate::harness::{
    client::Client,
    cores::Cores,
    history,
    mongod::Database,
    provider::{Provider, Script},
    wait::{LIMIT, wait_for},
};

struct World {
    cores: Cores,
    provider: Provider,
    database: Database,
}

impl World {
    async fn start(settings: &str) -> Self {
        let database = Database::new().unwrap();
        let provider = Provider::start().await.unwrap();
        let settings = format!(
            "default_model = \"m\"\ndrain.notice = \"0s\"\ndrain.jitter = \"0s\"\ndrain.grace = \"300ms\"\n\
             drain.deadline = \"15s\"\nsession.reply_lapse = \"4s\"\nsession.checkpoint = \"50ms\"\n\
             admin.calls_per_minute = 10000\n{settings}\n\
             [providers.scripted]\nbase_url = \"{}\"\n[[models]]\nid = \"m\"\nprovider = \"scripted\"\n",
            provider.base_url()
        );
        let cores = Cores::start(2, &database.uri, &settings).await.unwrap();
        Self { cores, provider, database }
    }

    async fn end(self) {
        self.cores.shutdown().await.unwrap();
        self.database.drop_it().await.unwrap();
    }
}

fn taking(session_id: &str, request_id: &str) -> TakeOverRequest {
    TakeOverRequest {
        session_id: session_id.to_owned(),
        request_id: request_id.to_owned(),
        reason: "a race".to_owned(),
    }
}

async fn until_taken(client: &mut Client) -> String {
    client
        .until("the takeover", |event| match event {
            Event::Entry(entry) => match &entry.kind {
                Some(Kind::TakenOver(taken)) => taken.admin.as_ref().map(|admin| admin.user_id.clone()),
                _ => None,
            },
            _ => None,
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn of_fifty_takeovers_by_many_admins_through_two_cores_one_wins() {
    let world = World::start("").await;
    let mut alice = world.cores.connect(0, "alice").await.unwrap();
    let id = alice.open(Open::default()).await.unwrap().session.unwrap().session_id;
    alice.request(Frame::RequestHelp(RequestHelp::default())).await.unwrap();
    let calls = (0..50).map(|n| {
        let mut team = world.cores.team(n % 2, &format!("admin-{}", n % 10)).unwrap();
        let id = id.clone();
        async move { (n % 10, team.take_over(taking(&id, &format!("call-{n}"))).await) }
    });
    let results = join_all(calls).await;
    let winner = until_taken(&mut alice).await;
    for (admin, result) in results {
        match result {
            Ok(_) => assert_eq!(format!("admin-{admin}"), winner),
            Err(status) => {
                assert_ne!(format!("admin-{admin}"), winner, "{status:?}");
                assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
                assert_eq!(status.message(), format!("{winner} holds the session"));
            }
        }
    }
    let takeovers = alice.entries().iter().filter(|e| matches!(e.kind, Some(Kind::TakenOver(_)))).count();
    assert_eq!(takeovers, 1);
    world.end().await;
}

/// One conversation that is taken over after some pieces of a reply, through the core that does not run it.
async fn round(world: &World, user: &str, random: &mut SmallRng) {
    let (runs, other) = if random.random() { (0, 1) } else { (1, 0) };
    let mut script = Script::stream();
    for piece in 0..24 {
        let pause = std::time::Duration::from_micros(random.random_range(0..4_000));
        script = script.pause(pause).delta(&format!("{piece} "));
    }
    world.provider.script("m", script.finish("stop").done());
    let mut visitor = world.cores.connect(runs, user).await.unwrap();
    let id = visitor.open(Open::default()).await.unwrap().session.unwrap().session_id;
    let mut reader = world.cores.connect(other, user).await.unwrap();
    reader.open(Open { session_id: id.clone(), after_seq: Some(0), ..Open::default() }).await.unwrap();
    visitor.say("1", "hello").await.unwrap();
    let pieces = random.random_range(0..20_u32);
    let mut seen = 0;
    let enough = |event: &Event| {
        seen += u32::from(matches!(event, Event::ReplyDelta(_)));
        (seen >= pieces || matches!(event, Event::Entry(e) if matches!(e.kind, Some(Kind::ReplyFinished(_)))))
            .then_some(())
    };
    visitor.until("some of the reply", enough).await.unwrap();
    let through = if random.random_range(0..3) == 0 { runs } else { other };
    let mut team = world.cores.team(through, "bob").unwrap();
    team.take_over(taking(&id, "t")).await.unwrap();
    visitor.say("2", "while it is held").await.unwrap();
    for client in [&mut visitor, &mut reader] {
        if !client
            .seen
            .iter()
            .any(|event| matches!(event, Event::Entry(e) if matches!(e.kind, Some(Kind::TakenOver(_)))))
        {
            until_taken(client).await;
        }
        let held = |event: &Event| matches!(event, Event::Entry(e) if matches!(&e.kind, Some(Kind::Message(m)) if m.text == "while it is held"));
        client.until_seen("what was said while it was held", held).await.unwrap();
        let taken = |event: &Event| matches!(event, Event::Entry(e) if matches!(e.kind, Some(Kind::TakenOver(_))));
        let after = client.seen.iter().position(taken).unwrap();
        for event in &client.seen[after..] {
            let generated = match event {
                Event::ReplyDelta(_) | Event::ReplySnapshot(_) => true,
                Event::Entry(entry) => matches!(entry.kind, Some(Kind::ReplyStarted(_) | Kind::ReplyFinished(_))),
                _ => false,
            };
            assert!(!generated, "{user}: {event:?} came after the takeover");
        }
    }
    let release = ReleaseRequest { session_id: id.clone(), reason: "done".to_owned(), ..ReleaseRequest::default() };
    team.release(release).await.unwrap();
    let mut core = world.cores.core(runs, user).unwrap();
    let all = history::by_grpc(&mut core, &id, 0).await.unwrap();
    history::check(&all).unwrap();
    assert_eq!(all.len(), 3, "{all:?}");
}

#[tokio::test]
async fn heavy_nothing_generated_comes_after_a_takeover_with_and_without_the_bus() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut world = World::start("").await;
    for n in 0..24 {
        round(&world, &format!("with-{n}"), &mut random).await;
    }
    world.cores.kill_nats().await.unwrap();
    for n in 0..6 {
        round(&world, &format!("without-{n}"), &mut random).await;
    }
    world.cores.restart_nats().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn heavy_a_hold_outlives_its_core_while_the_admin_comes_back_and_lapses_when_nobody_does() {
    let mut world = World::start("session.hold_lapse = \"15s\"").await;
    let mut alice = world.cores.connect(0, "alice").await.unwrap();
    let id = alice.open(Open::default()).await.unwrap().session.unwrap().session_id;
    alice.request(Frame::RequestHelp(RequestHelp::default())).await.unwrap();
    let opening = || Open { session_id: id.clone(), after_seq: Some(0), reason: "help".to_owned(), ..Open::default() };
    let mut bob = world.cores.connect_admin(1, "bob").await.unwrap();
    bob.open(opening()).await.unwrap();
    world.cores.team(1, "bob").unwrap().take_over(taking(&id, "t")).await.unwrap();
    until_taken(&mut alice).await;
    world.cores.process(1).signal(Signal::KILL).unwrap();
    let mut back = world.cores.connect_admin(0, "bob").await.unwrap();
    back.open(opening()).await.unwrap();
    back.say("b1", "I am back").await.unwrap();
    drop((bob, back));
    let lapsed = |event: &Event| match event {
        Event::Entry(entry) => match &entry.kind {
            Some(Kind::Released(released)) => Some(released.lapsed),
            _ => None,
        },
        _ => None,
    };
    assert!(alice.until("the lapse", lapsed).await.unwrap());
    let placed = |event: &Event| matches!(event, Event::Help(help) if help.position == 1).then_some(());
    alice.until("the old place", placed).await.unwrap();
    world.cores.restart(1).unwrap();
    world.cores.ready(1).await.unwrap();
    let through_the_other = || async {
        let mut again = world.cores.connect(1, "alice").await.ok()?;
        let help = again.open(Open { session_id: id.clone(), ..Open::default() }).await.ok()?.session?.help?;
        (help.position == 1).then_some(())
    };
    wait_for("the place after a restart", LIMIT, through_the_other).await.unwrap();
    world.end().await;
}

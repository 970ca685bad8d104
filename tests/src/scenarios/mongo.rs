//! The real binaries on MongoDB: a conversation, a core that dies, a database that stops and comes back.

use std::time::Duration;

use chatbox_proto::v1::{
    ErrorCode, FinishReason,
    chat_request::{Frame, Open, Send},
};
use rustix::process::Signal;

use crate::harness::{
    client::{Answer, Client, Transport},
    history,
    mongod::{Database, ReplicaSet},
    pair::{Pair, Role, Settings},
    wait::{LIMIT, wait_for},
    ws::Encoding,
};

/// Settings of a core on this database, with the demo model and a short time for each call.
fn settings(uri: &str) -> Settings {
    let drain = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n";
    let core = format!(
        "{drain}drain.grace = \"300ms\"\ndrain.deadline = \"10s\"\nstore.call_timeout = \"2s\"\n\
         limits.frames_per_second = 10000\nproviders.demo.word_delay = \"0s\"\n"
    );
    let vars = vec![("CHATBOX_CORE_STORE_URL".to_owned(), uri.to_owned())];
    Settings { core, edge: drain.to_owned(), vars }
}

async fn back(pair: &Pair, transport: Transport, open: &Open) -> Client {
    let attempt = || async {
        let mut client = pair.connect(transport, "alice").await.ok()?;
        client.open(open.clone()).await.ok()?;
        Some(client)
    };
    wait_for("the product is back", LIMIT * 3, attempt).await.unwrap()
}

#[tokio::test]
async fn a_conversation_is_kept_by_mongodb_through_the_death_of_core() {
    let database = Database::new().unwrap();
    let mut pair = Pair::start(settings(&database.uri)).await.unwrap();
    let transport = Transport::Socket(Encoding::Json);
    let mut client = pair.connect(transport, "alice").await.unwrap();
    let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
    for n in 0..5 {
        client.say(&format!("m{n}"), &format!("text {n}")).await.unwrap();
        assert_eq!(client.reply().await.unwrap().finished.finish_reason(), FinishReason::Stop);
    }
    let http = pair.http("alice").unwrap();
    let before = history::agreed(&mut pair.core("alice").unwrap(), &http, &session_id).await.unwrap();
    assert_eq!(before.len(), 10);
    pair.kill_and_restart(Role::Core).unwrap();
    drop(client);

    let open = Open { session_id: session_id.clone(), ..Open::default() };
    let mut client = back(&pair, transport, &open).await;
    let after = history::agreed(&mut pair.core("alice").unwrap(), &http, &session_id).await.unwrap();
    assert_eq!(after, before);
    // The same message is the same message, on this core too.
    let ack = client.say("m4", "text 4").await.unwrap();
    assert!(ack.duplicate);
    client.say("m5", "text 5").await.unwrap();
    client.reply().await.unwrap();
    history::check(&history::by_http(&http, &session_id, 0).await.unwrap()).unwrap();
    // The URL is nowhere to be read.
    let log = pair.process(Role::Core).log();
    assert!(!log.contains("mongodb://"), "{log}");
    pair.shutdown().await.unwrap();
    database.drop_it().await.unwrap();
}

#[tokio::test]
async fn while_the_database_is_gone_nothing_is_acknowledged_and_afterwards_all_goes_on() {
    let mut set = ReplicaSet::start(1).await.unwrap();
    let mut pair = Pair::start(settings(&set.uri("chatbox"))).await.unwrap();
    let mut client = pair.connect(Transport::Grpc, "alice").await.unwrap();
    let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
    client.say("m0", "before").await.unwrap();
    client.reply().await.unwrap();

    for (round, hangs) in [(1, false), (2, true)] {
        if hangs {
            set.process(0).signal(Signal::STOP).unwrap();
        } else {
            set.process(0).kill().unwrap();
        }
        let id = format!("m{round}");
        let send = Send { client_message_id: id.clone(), text: "meanwhile".to_owned(), ..Send::default() };
        let answer = client.request(Frame::Send(send)).await.unwrap();
        let Answer::Error(error) = answer else { panic!("it was acknowledged: {answer:?}") };
        assert!(matches!(error.code(), ErrorCode::Unavailable | ErrorCode::DeadlineExceeded), "{error:?}");
        assert!(error.retry_after.is_some() || error.outcome_unknown, "it is said what to do: {error:?}");
        if hangs {
            set.process(0).signal(Signal::CONT).unwrap();
        } else {
            set.restart(0).unwrap();
        }
        pair.ready().await.unwrap();
        // The stream may have lived; whoever sends the same again is answered once.
        let open = Open { session_id: session_id.clone(), ..Open::default() };
        client = back(&pair, Transport::Grpc, &open).await;
        let again = || Send { client_message_id: id.clone(), text: "meanwhile".to_owned(), ..Send::default() };
        let client = &mut client;
        let mut acked = false;
        for _ in 0..20 {
            if let Answer::Ack(_) = client.request(Frame::Send(again())).await.unwrap() {
                acked = true;
                break;
            }
        }
        assert!(acked, "it is accepted now");
    }
    let http = pair.http("alice").unwrap();
    let answered = || async {
        let all = history::by_http(&http, &session_id, 0).await.ok()?;
        (all.len() == 6 && history::check(&all).is_ok()).then_some(all)
    };
    let all = wait_for("all is answered once", Duration::from_secs(40), answered).await.unwrap();
    let sent: Vec<_> = all.iter().filter(|message| message.reply.is_none()).map(|message| &message.text).collect();
    assert_eq!(sent, ["before", "meanwhile", "meanwhile"]);
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn core_leaves_by_its_deadline_while_the_database_hangs() {
    let mut set = ReplicaSet::start(1).await.unwrap();
    let mut pair = Pair::start(settings(&set.uri("chatbox"))).await.unwrap();
    let mut client = pair.connect(Transport::Grpc, "alice").await.unwrap();
    client.open(Open::default()).await.unwrap();
    client.say("m0", "before").await.unwrap();
    client.reply().await.unwrap();
    set.process(0).signal(Signal::STOP).unwrap();
    let send = Send { client_message_id: "m1".to_owned(), text: "meanwhile".to_owned(), ..Send::default() };
    client.send(Frame::Send(send)).await.unwrap();
    // `drain.deadline`, and two seconds for a machine that does much else.
    pair.process(Role::Core).terminate(Duration::from_secs(12)).await.unwrap();
    assert!(!pair.process(Role::Core).log().contains("panicked"));
    set.process(0).signal(Signal::CONT).unwrap();
}

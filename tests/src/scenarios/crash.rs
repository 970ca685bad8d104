//! What was acknowledged survives the end of a process, however it comes.

use chatbox_proto::v1::chat_request::Open;

use crate::harness::{
    client::Transport,
    history,
    pair::{Pair, Role},
};

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9_of_core() {
    let mut pair = Pair::start("", "").await.unwrap();
    let mut session_id = String::new();
    for round in 0..3 {
        let mut client = pair.connect(Transport::Grpc, "alice").await.unwrap();
        session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
        client.say(&format!("m{round}"), &format!("message {round}")).await.unwrap();
        pair.kill_and_restart(Role::Core).unwrap();
        pair.ready().await.unwrap();
    }
    let mut client = pair.connect(Transport::Grpc, "alice").await.unwrap();
    client.open(Open { session_id: session_id.clone(), after_seq: Some(0), ..Open::default() }).await.unwrap();
    client.caught_up().await.unwrap();
    let last = client.say("last", "the last one").await.unwrap();
    loop {
        let reply = client.reply().await.unwrap();
        if reply.finished.started_seq > last.seq {
            break;
        }
    }
    let messages = history::by_grpc(&mut pair.core("alice").unwrap(), &session_id, 0).await.unwrap();
    history::check(&messages).unwrap();
    for round in 0..3 {
        let text = format!("message {round}");
        assert_eq!(messages.iter().filter(|message| message.text == text).count(), 1, "{text}");
    }
    pair.shutdown().await.unwrap();
}

//! One conversation is the same over every transport.

use chatbox_proto::v1::chat_request::Open;

use crate::harness::{
    client::Transport,
    pair::{Pair, Settings},
    stack::{Setup, Stack},
};

#[tokio::test]
async fn a_stack_answers_on_every_transport_and_drains() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    for transport in Transport::ALL {
        let mut client = stack.connect(transport, "alice").await.unwrap();
        client.open(Open::default()).await.unwrap();
        client.say(&format!("{transport:?}"), "hello").await.unwrap();
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.streamed, reply.finished.text);
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_pair_answers_and_drains() {
    let drain = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"".to_owned();
    let settings = Settings { core: drain.clone(), edge: drain, vars: Vec::new() };
    let pair = Pair::start(settings).await.unwrap();
    let mut client = pair.connect(Transport::ALL[0], "alice").await.unwrap();
    client.open(Open::default()).await.unwrap();
    client.say("one", "hello").await.unwrap();
    client.reply().await.unwrap();
    pair.shutdown().await.unwrap();
}

//! Starting and stopping: often, in one process, and with everything still going on.

use chatbox_proto::v1::{chat_request::Open, chat_response::ResumeVerdict};
use futures_util::future::try_join_all;

use crate::harness::{
    client::Transport,
    history,
    stack::{Setup, Stack},
};

#[tokio::test]
async fn core_and_edge_start_and_stop_50_times_in_one_process() {
    for _ in 0..50 {
        Stack::start(Setup::new().unwrap()).await.unwrap().shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn fifty_parallel_first_messages_make_one_session() {
    let mut setup = Setup::new().unwrap();
    setup.core.limits.streams_per_user = 100;
    setup.edge.limits.connections_per_user = 100;
    setup.edge.limits.handshakes_per_ip = 100;
    let stack = Stack::start(setup).await.unwrap();
    let one = |number: usize| {
        let stack = &stack;
        async move {
            let mut client = stack.connect(Transport::ALL[number % 3], "alice").await?;
            let opened = client.open(Open::default()).await?;
            client.say("first", "hello").await?;
            anyhow::Ok(opened.session.map(|session| session.session_id).unwrap_or_default())
        }
    };
    let ids = try_join_all((0..50).map(one)).await.unwrap();
    assert_eq!(ids.len(), 50);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let messages = history::by_grpc(&mut stack.core("alice").unwrap(), &ids[0], 0).await.unwrap();
    assert_eq!(messages.iter().filter(|message| message.text == "hello").count(), 1);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_client_resumes_after_core_was_restarted_without_loss_or_doubling() {
    for transport in Transport::ALL {
        let mut stack = Stack::start(Setup::new().unwrap()).await.unwrap();
        let mut before = stack.connect(transport, "alice").await.unwrap();
        let session_id = before.open(Open::default()).await.unwrap().session.unwrap().session_id;
        before.say("before", "one").await.unwrap();
        before.reply().await.unwrap();
        stack.restart_core().await.unwrap();
        before.until_closed().await.unwrap();

        let seen = before.entries().last().unwrap().seq;
        let mut after = stack.connect(transport, "alice").await.unwrap();
        let opened = after.open(Open { session_id, after_seq: Some(seen), ..Open::default() }).await.unwrap();
        assert_eq!((opened.verdict(), opened.created), (ResumeVerdict::Replayed, false), "{transport:?}");
        after.say("after", "two").await.unwrap();
        after.reply().await.unwrap();
        let seqs: Vec<u64> = before.entries().iter().chain(&after.entries()).map(|entry| entry.seq).collect();
        assert_eq!(seqs, (1..=6).collect::<Vec<_>>(), "{transport:?}");
        stack.shutdown().await.unwrap();
    }
}

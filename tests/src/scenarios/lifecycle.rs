//! Starting and stopping: often, in one process, and with everything still going on.

use chatbox_proto::v1::{chat_request::Open, chat_response::ResumeVerdict};

use crate::harness::{
    client::Transport,
    stack::{Setup, Stack},
};

#[tokio::test]
async fn core_and_edge_start_and_stop_50_times_in_one_process() {
    for _ in 0..50 {
        Stack::start(Setup::new().unwrap()).await.unwrap().shutdown().await.unwrap();
    }
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

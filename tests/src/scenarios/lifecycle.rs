//! Starting and stopping: often, in one process, and with everything still going on.

use std::time::Duration;

use chatbox_proto::v1::{chat_request::Open, chat_response::ResumeVerdict};

use crate::harness::{
    client::Transport,
    stack::{Setup, Stack},
    wait::{LIMIT, wait_until},
};

/// Entries of a folder of `/proc/self`: open files, or threads.
fn count(of: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{of}")).unwrap().count()
}

async fn settled() -> (usize, usize) {
    // The threads that an app ran blocking work on have been told to end and do so in their own time.
    let before = std::cell::Cell::new((usize::MAX, usize::MAX));
    let steady = || {
        let now = (count("fd"), count("task"));
        before.replace(now) == now
    };
    wait_until("files and threads are steady", LIMIT, steady).await.unwrap();
    before.get()
}

#[tokio::test]
async fn core_and_edge_start_and_stop_50_times_in_one_process_and_leave_nothing() {
    let mut first = None;
    for _ in 0..50 {
        let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
        stack.shutdown().await.unwrap();
        if first.is_none() {
            first = Some(settled().await);
        }
    }
    let (first, last) = (first.unwrap(), settled().await);
    assert!(first.0.abs_diff(last.0) <= 2, "{} open files became {}", first.0, last.0);
    assert!(first.1.abs_diff(last.1) <= 2, "{} threads became {}", first.1, last.1);
}

#[tokio::test]
async fn two_live_in_one_process_stopping_twice_is_once_and_a_failed_start_leaves_nothing() {
    let (one, other) =
        (Stack::start(Setup::new().unwrap()).await.unwrap(), Stack::start(Setup::new().unwrap()).await.unwrap());
    let before = settled().await;
    // A port that is taken, and a key ring that is none: whatever was acquired before is released.
    let taken = Setup::new().unwrap().with(|setup| setup.core.listen = one.addresses().grpc);
    let error = Stack::start(taken).await.unwrap_err();
    assert!(format!("{error:#}").contains(&one.addresses().grpc.to_string()), "{error:#}");
    let keyless = Setup::new().unwrap().with(|setup| setup.core.keys.ring.clear());
    Stack::start(keyless).await.unwrap_err();
    let after = settled().await;
    assert!(before.0.abs_diff(after.0) <= 2 && before.1.abs_diff(after.1) <= 2, "{before:?} became {after:?}");
    one.cancel();
    one.cancel();
    one.shutdown().await.unwrap();
    let mut client = other.connect(Transport::Grpc, "alice").await.unwrap();
    client.open(Open::default()).await.unwrap();
    other.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_device_that_breaks_off_takes_nothing_from_another_on_the_same_session() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    for (number, transport) in Transport::ALL.into_iter().enumerate() {
        let user = format!("user-{number}");
        let mut first = stack.connect(Transport::ALL[0], &user).await.unwrap();
        let session_id = first.open(Open::default()).await.unwrap().session.unwrap().session_id;
        let mut second = stack.connect(transport, &user).await.unwrap();
        second.open(Open { session_id, ..Open::default() }).await.unwrap();
        // A reset, after the second one has joined: whoever tears the first one down must not take the session for its own.
        first.socket().unwrap().tcp().set_zero_linger().unwrap();
        drop(first);
        for (id, text) in [("m1", "still here?"), ("m2", "and now?")] {
            second.say(id, text).await.unwrap();
            let said = second.reply().await.unwrap().finished.text;
            assert!(said.contains(&format!("> {text}\n")), "{transport:?}: {said}");
        }
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_client_resumes_after_core_was_restarted_without_loss_or_doubling() {
    for transport in Transport::ALL {
        // Here it is the client that comes back.
        let setup = Setup::new().unwrap().with(|setup| setup.edge.core.reopen_timeout = Duration::ZERO);
        let mut stack = Stack::start(setup).await.unwrap();
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

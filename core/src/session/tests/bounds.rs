//! Bounds that only a race, a crowd or a store that stands still reaches.

use chatbox_proto::{
    ids::{MessageId, SessionId},
    v1::{self, FinishReason, chat_response::Event},
};
use tokio::time::Instant;

use super::{
    faults::{Fault, faulty},
    fixture::{Client, limits},
};
use crate::session::Frame;

/// As `session::room` has it.
const STOP_WAITERS: usize = 64;

async fn opened(client: &mut Client) -> SessionId {
    client.opened().await.session.unwrap().session_id.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_write_that_loses_as_many_races_as_it_may_is_aborted_and_one_fewer_is_written() {
    let (core, faults) = faulty().await;
    let mut client = core.open("alice").await;
    opened(&mut client).await;
    faults.conflict(limits().append_rounds + 1);
    let refused = client.message("m1", "hello");
    let error = client.frame(refused).await.unwrap_err();
    assert_eq!((error.code(), error.reason.as_str()), (v1::ErrorCode::Aborted, "TOO_MANY_CONFLICTS"));
    faults.conflict(limits().append_rounds);
    let ack = client.send("m1", "hello").await;
    assert_eq!((ack.seq, ack.duplicate), (1, false));
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn sixty_four_stops_wait_for_the_end_of_a_reply_and_the_next_is_refused() {
    let (core, faults) = faulty().await;
    let mut client = core.open("alice").await;
    opened(&mut client).await;
    client.post("", client.message("m1", "hello")).await;
    let _turn = core.turn().await;
    let reply: MessageId = client.started().await.message_id.parse().unwrap();
    // Its end cannot be written yet.
    faults.plan("append", 0, u32::MAX, Fault::Held);
    for n in 0..=STOP_WAITERS {
        client.post(&format!("s{n}"), Frame::Stop(reply)).await;
    }
    let refused = client.until(|event| if let Event::Error(error) = event { Some(error) } else { None }).await;
    assert_eq!(refused.request_id, format!("s{STOP_WAITERS}"));
    assert_eq!((refused.code(), refused.reason.as_str()), (v1::ErrorCode::ResourceExhausted, "TOO_MANY_WRITES"));
    assert!(refused.retry_after.is_some());
    faults.release();
    assert_eq!(client.finished().await.finish_reason(), FinishReason::Cancelled);
    for n in 0..STOP_WAITERS {
        let ack = client.until(|event| if let Event::Ack(ack) = event { Some(ack) } else { None }).await;
        assert_eq!((ack.request_id, ack.message_id), (format!("s{n}"), reply.to_string()));
    }
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_given_its_time_and_no_more() {
    let (core, faults) = faulty().await;
    let id = core.sessions.create("alice", "", "").await.unwrap().session_id.parse().unwrap();
    for call in ["session", "list_sessions", "head"] {
        faults.plan(call, 0, 1, Fault::Hang);
        let began = Instant::now();
        let failure = match call {
            "session" => core.sessions.get("alice", id).await.err(),
            "list_sessions" => core.sessions.list("alice", None, None, 10).await.err(),
            _ => core.sessions.messages_before("alice", id, None, 0, 10).await.err(),
        };
        assert_eq!(began.elapsed().as_secs(), limits().store_call.as_secs(), "{call}");
        let failure = failure.expect("it hangs");
        assert_eq!(failure.reason, "STORE_TIMEOUT", "{call}");
        assert!(failure.code.retryable() && failure.retry_after.is_some());
    }
    core.sessions.get("alice", id).await.unwrap();
    core.stop().await;
}

//! What one user may have in flight, while the database stands still.

use chatbox_proto::v1::{GetSessionRequest, ListModelsRequest, chat_request::Open};
use rustix::process::Signal;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::{
    client::Transport,
    mongod::ReplicaSet,
    pair::{Pair, Settings},
    wait::{LIMIT, wait_for},
};

#[tokio::test]
async fn calls_of_a_user_above_the_limit_are_refused_and_those_of_others_are_not() {
    let mut set = ReplicaSet::start(1).await.unwrap();
    let drain = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n".to_owned();
    let core = format!("{drain}limits.calls_per_user = 2\nstore.call_timeout = \"9s\"\n");
    let vars = vec![("CHATBOX_CORE_STORE_URL".to_owned(), set.uri("chatbox"))];
    let pair = Pair::start(Settings { core, edge: drain, vars }).await.unwrap();
    let mut stream = pair.connect(Transport::Grpc, "alice").await.unwrap();
    let session_id = stream.open(Open::default()).await.unwrap().session.unwrap().session_id;
    let alice = pair.core("alice").unwrap();
    let bob = pair.core("bob").unwrap();

    set.process(0).signal(Signal::STOP).unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (mut alice, session_id) = (alice.clone(), session_id.clone());
        waiting.spawn(async move { alice.get_session(GetSessionRequest { session_id }).await });
    }
    let refused = || {
        let mut alice = alice.clone();
        async move { alice.list_models(ListModelsRequest {}).await.err() }
    };
    let status = wait_for("one call too many is refused", LIMIT, refused).await.unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("TOO_MANY_CALLS"));
    assert!(details.retry_info().is_some_and(|info| info.retry_delay.is_some()), "{details:?}");
    bob.clone().list_models(ListModelsRequest {}).await.expect("it is another user's limit");

    set.process(0).signal(Signal::CONT).unwrap();
    while let Some(answered) = waiting.join_next().await {
        // Answered, or told that the database did not: in any case over.
        if let Err(status) = answered.unwrap() {
            assert!(matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded), "{status:?}");
        }
    }
    alice.clone().list_models(ListModelsRequest {}).await.expect("their places are free");
    drop(stream);
    pair.shutdown().await.unwrap();
}

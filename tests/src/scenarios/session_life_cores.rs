//! How many sessions a user has, with two real cores on one MongoDB that both make, end and bring back sessions.

use chatbox_proto::v1::{
    CreateSessionRequest, EndSessionRequest, ListSessionsRequest, ReopenSessionRequest, SessionStatus,
};

use crate::harness::{
    cores::Cores,
    grpc::Core,
    mongod::Database,
    wait::{LIMIT, wait_for},
};

const SETTINGS: &str = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\ndrain.grace = \"300ms\"\ndrain.deadline = \"15s\"\n\
    session.active_per_user = ";

/// What came of a call: nothing when there is no place for another session. A store that is too busy says that it is, and
/// the same call made again is the same call.
async fn outcome<T, F: Future<Output = Result<tonic::Response<T>, tonic::Status>>>(call: impl Fn() -> F) -> Option<T> {
    let answered = || async {
        match call().await {
            Ok(done) => Some(Some(done.into_inner())),
            Err(status) if status.code() == tonic::Code::FailedPrecondition => Some(None),
            Err(status) => {
                let passes = [tonic::Code::Unavailable, tonic::Code::DeadlineExceeded, tonic::Code::Aborted];
                assert!(passes.contains(&status.code()), "{status:?}");
                None
            }
        }
    };
    wait_for("the store has time for the call", LIMIT * 3, answered).await.unwrap()
}

async fn create(core: Core) -> Option<String> {
    let request_id = chatbox_proto::ids::MessageId::generate().to_string();
    let call = || {
        let (mut core, request_id) = (core.clone(), request_id.clone());
        async move { core.create_session(CreateSessionRequest { request_id, ..Default::default() }).await }
    };
    Some(outcome(call).await?.session.unwrap().session_id)
}

async fn reopen(core: Core, session_id: String) -> Option<String> {
    let call = || {
        let (mut core, session_id) = (core.clone(), session_id.clone());
        async move { core.reopen_session(ReopenSessionRequest { session_id }).await }
    };
    Some(outcome(call).await?.session.unwrap().session_id)
}

async fn active(mut core: Core) -> Vec<String> {
    let request = ListSessionsRequest { status: SessionStatus::Active.into(), page_size: 1_000, ..Default::default() };
    let listed = core.list_sessions(request).await.unwrap().into_inner();
    let mut ids: Vec<_> = listed.sessions.into_iter().map(|session| session.session_id).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn of_fifty_parallel_calls_on_two_cores_no_more_sessions_become_active_than_may_be() {
    const LIMIT: usize = 3;
    let database = Database::new().unwrap();
    let cores = Cores::start(2, &database.uri, &format!("{SETTINGS}{LIMIT}")).await.unwrap();
    let core = |n: usize| cores.core(n % 2, "alice").unwrap();

    let made = futures_util::future::join_all((0..50).map(|n| create(core(n)))).await;
    let mut made: Vec<_> = made.into_iter().flatten().collect();
    made.sort();
    assert_eq!(made.len(), LIMIT);
    assert_eq!(active(core(0)).await, made);

    // Each of many ended sessions is brought back through both cores, while new ones are made.
    let mut ended = Vec::new();
    for round in 0..4 {
        for session_id in std::mem::take(&mut made) {
            core(round).end_session(EndSessionRequest { session_id: session_id.clone() }).await.unwrap();
            ended.push(session_id);
        }
        if round < 3 {
            for n in 0..LIMIT {
                made.push(create(core(n)).await.expect("all of the others have ended"));
            }
        }
    }
    let returns = (0..36).map(|n| (n, ended[n % ended.len()].clone()));
    let (back, new) = tokio::join!(
        futures_util::future::join_all(returns.map(|(n, id)| reopen(core(n / 12), id))),
        futures_util::future::join_all((0..14).map(|n| create(core(n)))),
    );
    let mut won: Vec<_> = back.into_iter().chain(new).flatten().collect();
    won.sort();
    // A session that is active already is brought back by whoever asks: that is no other one.
    won.dedup();
    assert_eq!(won.len(), LIMIT, "{won:?}");
    assert_eq!(active(core(1)).await, won);
    assert!(create(core(0)).await.is_none());
    cores.shutdown().await.unwrap();
    database.drop_it().await.unwrap();
}

//! How many sessions a user has, with two real cores on one MongoDB that both make, end and bring back sessions.

use chatbox_proto::v1::{
    CreateSessionRequest, EndSessionRequest, ListSessionsRequest, ReopenSessionRequest, SessionStatus,
};

use crate::harness::{cores::Cores, grpc::Core, mongod::Database};

const SETTINGS: &str = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\ndrain.grace = \"300ms\"\ndrain.deadline = \"15s\"\n\
    session.active_per_user = ";

async fn create(mut core: Core) -> Option<String> {
    match core.create_session(CreateSessionRequest::default()).await {
        Ok(made) => Some(made.into_inner().session.unwrap().session_id),
        Err(status) => {
            assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status:?}");
            None
        }
    }
}

async fn reopen(mut core: Core, session_id: String) -> Option<String> {
    match core.reopen_session(ReopenSessionRequest { session_id: session_id.clone() }).await {
        Ok(_) => Some(session_id),
        Err(status) => {
            assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status:?}");
            None
        }
    }
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

//! The store on MongoDB when servers die, hang and answer late: nothing acknowledged is lost, no head steps back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chatbox_core::{
    domain::time::Timestamp,
    store::{
        Append, Appended, Derived, NewSession, SessionStore, SlotRule, StoreErrorKind,
        mongo::{MongoOptions, MongoStore},
    },
};
use chatbox_proto::{ids::SessionId, token::Secret};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{
    mongod::ReplicaSet,
    proxy::{Proxy, Way},
    wait::{LIMIT, wait_for, wait_until},
};

async fn open(uri: String, call_timeout: Duration) -> Arc<MongoStore> {
    let options = MongoOptions { uri: Secret::new(uri), call_timeout, pool_size: 16 };
    Arc::new(MongoStore::open(&options).await.unwrap())
}

fn derived(applied_seq: u64) -> Derived {
    let last_activity = Timestamp::now();
    Derived { applied_seq, state: vec![7; 100], last_activity, ended: false, unfinished: applied_seq % 2 == 1 }
}

async fn session(store: &MongoStore) -> SessionId {
    let id = SessionId::generate();
    let new = NewSession {
        id,
        owner: id.to_string(),
        slot: SlotRule::First,
        wrapped_key: vec![7; 64],
        created_at: Timestamp::now(),
        request: None,
        derived: derived(0),
    };
    store.create_session(new).await.unwrap();
    id
}

fn append(session_id: SessionId, head: u64) -> Append {
    Append {
        session_id,
        append_id: rand::random(),
        expected_head: head,
        count: 1,
        sealed: rand::random::<[u8; 16]>().to_vec(),
        messages: Vec::new(),
        ends_session: false,
        takes_slot: None,
        derived: derived(head + 1),
        reply_started: None,
        reply_finished: None,
    }
}

/// What one writer, the only one of its session, was promised: what each entry holds, in order.
#[derive(Debug, Default)]
struct Promised(Vec<Vec<u8>>);

/// Appends until it is told to end; does with every outcome what a room does.
async fn write(store: Arc<MongoStore>, id: SessionId, acked: Arc<AtomicU64>, end: CancellationToken) -> Promised {
    let mut promised = Promised::default();
    while !end.is_cancelled() {
        let head = promised.0.len() as u64;
        let append = append(id, head);
        let (append_id, sealed) = (append.append_id, append.sealed.clone());
        let written = match store.append(append).await {
            Ok(Appended::Done(head)) => Some(head),
            Ok(Appended::Conflict | Appended::NoSlot) => panic!("nobody else writes to {id}, at {head}"),
            Err(error) if error.kind() == StoreErrorKind::Unavailable => None,
            Err(error) if error.kind() == StoreErrorKind::OutcomeUnknown => {
                let look = || async { store.find_append(id, append_id).await.ok() };
                wait_for("the outcome", Duration::from_secs(60), look).await.unwrap()
            }
            Err(error) => panic!("{error:?}"),
        };
        if let Some(written) = written {
            assert_eq!(written, head + 1);
            promised.0.push(sealed);
            acked.store(written, Ordering::SeqCst);
        }
    }
    promised
}

/// Asks for heads through another core until it is told to end: none may be older than what was acknowledged before.
async fn watch(store: Arc<MongoStore>, sessions: Vec<(SessionId, Arc<AtomicU64>)>, end: CancellationToken) -> u64 {
    let mut answers = 0;
    while !end.is_cancelled() {
        for (id, acked) in &sessions {
            let before = acked.load(Ordering::SeqCst);
            if let Ok(head) = store.head(*id).await {
                assert!(head >= before, "{id}: {head} after {before} was acknowledged");
                answers += 1;
            }
            let ids: Vec<SessionId> = sessions.iter().map(|(id, _)| *id).collect();
            let before: Vec<u64> = sessions.iter().map(|(_, acked)| acked.load(Ordering::SeqCst)).collect();
            if let Ok(heads) = store.heads(&ids).await {
                for (id, head) in heads {
                    let at = ids.iter().position(|other| *other == id).unwrap();
                    assert!(head >= before[at], "{id}: {head} after {} was acknowledged", before[at]);
                }
            }
        }
    }
    answers
}

async fn more_by(acked: &[Arc<AtomicU64>], count: u64) {
    let before: Vec<u64> = acked.iter().map(|acked| acked.load(Ordering::SeqCst)).collect();
    let grown = || acked.iter().zip(&before).all(|(now, before)| now.load(Ordering::SeqCst) >= before + count);
    wait_until("all sessions grow", Duration::from_secs(60), grown).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_a_primary_that_dies_and_one_that_hangs_lose_nothing_acknowledged() {
    let mut set = ReplicaSet::start(3).await.unwrap();
    let uri = set.uri("failover");
    let (store, other) =
        (open(uri.clone(), Duration::from_secs(4)).await, open(uri.clone(), Duration::from_secs(4)).await);
    let (end, mut writers, mut watchers) = (CancellationToken::new(), JoinSet::new(), JoinSet::new());
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push((session(&store).await, Arc::new(AtomicU64::new(0))));
    }
    for (id, acked) in &sessions {
        let (store, id, acked, end) = (Arc::clone(&store), *id, Arc::clone(acked), end.clone());
        writers.spawn(async move { (id, write(store, id, acked, end).await) });
    }
    watchers.spawn(watch(Arc::clone(&other), sessions.clone(), end.clone()));
    let acked: Vec<_> = sessions.iter().map(|(_, acked)| Arc::clone(acked)).collect();

    more_by(&acked, 20).await;
    let first = set.primary(None).await.unwrap();
    set.process(first).kill().unwrap();
    more_by(&acked, 20).await;
    set.restart(first).unwrap();
    set.settled().await.unwrap();

    let second = set.primary(None).await.unwrap();
    set.process(second).signal(Signal::STOP).unwrap();
    let third = set.primary(Some(second)).await.unwrap();
    assert_ne!(third, second);
    more_by(&acked, 20).await;
    // It believes to be the primary still, and may have writes in its sockets.
    set.process(second).signal(Signal::CONT).unwrap();
    set.settled().await.unwrap();
    more_by(&acked, 20).await;

    end.cancel();
    let fresh = open(uri, Duration::from_secs(10)).await;
    while let Some(promised) = writers.join_next().await {
        let (id, Promised(entries)) = promised.unwrap();
        let stored = fresh.read_after(id, 0, 1_000_000).await.unwrap();
        let numbers: Vec<u64> = stored.iter().map(|document| document.first_seq).collect();
        assert_eq!(numbers, (1..=entries.len() as u64).collect::<Vec<_>>());
        let stored: Vec<_> = stored.into_iter().map(|document| document.sealed).collect();
        assert!(stored == entries, "{id} holds something else than was acknowledged");
    }
    assert!(watchers.join_next().await.unwrap().unwrap() > 0, "heads were looked at");
    for store in [store, other, fresh] {
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_without_a_majority_nothing_is_acknowledged_and_nothing_is_read() {
    let mut set = ReplicaSet::start(3).await.unwrap();
    let store = open(set.uri("alone"), Duration::from_secs(3)).await;
    let id = session(&store).await;
    assert_eq!(store.append(append(id, 0)).await.unwrap(), Appended::Done(1));
    let primary = set.primary(None).await.unwrap();
    let others: Vec<usize> = (0..3).filter(|number| *number != primary).collect();
    for &number in &others {
        set.process(number).signal(Signal::STOP).unwrap();
    }
    let lonely = append(id, 1);
    let append_id = lonely.append_id;
    let (appended, head, read) = tokio::join!(store.append(lonely), store.head(id), store.read_after(id, 0, 10));
    let kind = appended.unwrap_err().kind();
    assert!(matches!(kind, StoreErrorKind::OutcomeUnknown | StoreErrorKind::Unavailable), "{kind:?}");
    // The primary itself would have answered.
    assert_eq!(head.unwrap_err().kind(), StoreErrorKind::Unavailable);
    assert_eq!(read.unwrap_err().kind(), StoreErrorKind::Unavailable);
    store.find_append(id, append_id).await.unwrap_err();
    for &number in &others {
        set.process(number).signal(Signal::CONT).unwrap();
    }
    set.settled().await.unwrap();
    let look = || async { store.find_append(id, append_id).await.ok() };
    let outcome = wait_for("the outcome", Duration::from_secs(60), look).await.unwrap();
    assert!(outcome.is_none_or(|head| head == 2 && kind == StoreErrorKind::OutcomeUnknown), "{kind:?}: {outcome:?}");
    let head = outcome.unwrap_or(1);
    assert_eq!(store.head(id).await.unwrap(), head);
    assert_eq!(store.append(append(id, head)).await.unwrap(), Appended::Done(head + 1));
    assert_eq!(store.read_after(id, 0, 10).await.unwrap().len() as u64, head + 1);
    store.close().await;
}

/// A store whose way to the server misbehaves, and one whose way does not.
async fn through_proxy(set: &ReplicaSet) -> (Proxy, Arc<MongoStore>, Arc<MongoStore>) {
    let proxy = Proxy::start(set.address(0)).await.unwrap();
    let uri = format!("mongodb://{}/faults?directConnection=true", proxy.address());
    let direct = open(set.uri("faults"), LIMIT).await;
    (proxy, open(uri, Duration::from_secs(3)).await, direct)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_reaches_the_server_after_its_outcome_was_asked_for_is_not_written() {
    let set = ReplicaSet::start(1).await.unwrap();
    let (proxy, store, direct) = through_proxy(&set).await;
    let id = session(&store).await;
    proxy.stall_way(Way::Up);
    let late = append(id, 0);
    let append_id = late.append_id;
    let error = store.append(late).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::OutcomeUnknown, "{error:?}");
    assert_eq!(direct.find_append(id, append_id).await.unwrap(), None);
    // Now what was sent arrives, all of it, and so do the driver's own tries.
    proxy.resume();
    wait_for("the store is back", LIMIT, || async { store.ping().await.ok() }).await.unwrap();
    assert_eq!(store.head(id).await.unwrap(), 0);
    assert_eq!(store.append(append(id, 0)).await.unwrap(), Appended::Done(1));
    assert_eq!(store.find_append(id, append_id).await.unwrap(), None);
    assert_eq!(direct.head(id).await.unwrap(), 1);
    store.close().await;
    direct.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_whose_answer_is_lost_is_found_and_was_written_once() {
    let set = ReplicaSet::start(1).await.unwrap();
    let (proxy, store, direct) = through_proxy(&set).await;
    let id = session(&store).await;
    proxy.stall_way(Way::Down);
    let lost = append(id, 0);
    let append_id = lost.append_id;
    let error = store.append(lost).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::OutcomeUnknown, "{error:?}");
    proxy.resume();
    let found = || async { store.find_append(id, append_id).await.ok() };
    assert_eq!(wait_for("the outcome", LIMIT, found).await.unwrap(), Some(1));
    assert_eq!(direct.read_after(id, 0, 10).await.unwrap().len(), 1);
    // What accompanies it is written once its outcome is known.
    let header = store.session(id).await.unwrap().unwrap();
    assert_eq!((header.derived.applied_seq, header.derived.unfinished), (1, true));
    store.close().await;
    direct.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_is_said_within_the_limit_and_comes_back_without_a_restart() {
    let mut set = ReplicaSet::start(1).await.unwrap();
    let store = open(set.uri("faults"), Duration::from_secs(2)).await;
    let id = session(&store).await;
    assert_eq!(store.append(append(id, 0)).await.unwrap(), Appended::Done(1));
    set.process(0).kill().unwrap();
    let mut unknown = None;
    for _ in 0..2 {
        let started = std::time::Instant::now();
        let next = append(id, 1);
        let append_id = next.append_id;
        let kind = store.append(next).await.unwrap_err().kind();
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        assert!(matches!(kind, StoreErrorKind::Unavailable | StoreErrorKind::OutcomeUnknown), "{kind:?}");
        unknown = (kind == StoreErrorKind::OutcomeUnknown).then_some(append_id).or(unknown);
    }
    for kind in [
        store.head(id).await.unwrap_err().kind(),
        store.ping().await.unwrap_err().kind(),
        store.read_before(id, 9, 1).await.unwrap_err().kind(),
    ] {
        assert_eq!(kind, StoreErrorKind::Unavailable);
    }
    set.restart(0).unwrap();
    wait_for("the store is back", Duration::from_secs(60), || async { store.ping().await.ok() }).await.unwrap();
    if let Some(append_id) = unknown {
        assert_eq!(store.find_append(id, append_id).await.unwrap(), None);
    }
    assert_eq!(store.append(append(id, 1)).await.unwrap(), Appended::Done(2));
    assert_eq!(store.head(id).await.unwrap(), 2);
    // Closing has a limit too when the server is gone again.
    set.process(0).kill().unwrap();
    let started = std::time::Instant::now();
    let (_, ()) = tokio::join!(store.append(append(id, 2)), store.close());
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

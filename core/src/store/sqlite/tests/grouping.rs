//! Group commit: one sync for all that is ready, a verdict for each, and a queue with a bound.

use std::{
    fs,
    sync::mpsc::{SyncSender, sync_channel},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use rusqlite::Connection;

use chatbox_proto::ids::SessionId;

use super::*;
use crate::{
    domain::time::Timestamp,
    store::{
        Append, Appended, Derived, NewSession, SlotRule, StoreErrorKind,
        sqlite::{fault::Fault, writer::Verdict},
    },
};

fn new_session() -> NewSession {
    NewSession {
        id: SessionId::generate(),
        owner: "alice".to_owned(),
        slot: SlotRule::Unlimited,
        wrapped_key: vec![1],
        created_at: Timestamp::from_millis(1),
        request: None,
        derived: state(0),
    }
}

fn state(applied_seq: u64) -> Derived {
    let last_activity = Timestamp::from_millis(1);
    Derived { applied_seq, state: Vec::new(), last_activity, ended: false, unfinished: false }
}

fn append(session_id: SessionId, expected_head: u64, bytes: usize) -> Append {
    Append {
        session_id,
        append_id: *SessionId::generate().as_bytes(),
        expected_head,
        count: 1,
        sealed: vec![7; bytes],
        messages: Vec::new(),
        ends_session: false,
        takes_slot: None,
        derived: state(expected_head + 1),
        reply_started: None,
        reply_finished: None,
    }
}

async fn session(store: &SqliteStore) -> SessionId {
    let new = new_session();
    let id = new.id;
    store.create_session(new).await.unwrap();
    id
}

/// Keeps the writer busy in a group of its own until the sender is used; the future ends with that group.
async fn hold(store: &SqliteStore) -> (SyncSender<()>, BoxFuture<'_, ()>) {
    let (release, released) = sync_channel::<()>(1);
    let (held, holding) = tokio::sync::oneshot::channel();
    let work = move |_: &Connection| {
        let _ = held.send(());
        let _ = released.recv();
        Ok(Verdict::Undo(()))
    };
    let mut holder = store.writer.submit("hold", 0, work).map(Result::unwrap).boxed();
    assert!(holder.as_mut().now_or_never().is_none());
    holding.await.unwrap();
    (release, holder)
}

#[tokio::test]
async fn what_waits_during_a_commit_is_one_commit_with_a_verdict_each() {
    let SqliteFixture { folder: _folder, store } = SqliteFixture::new();
    let mut ids = Vec::new();
    for _ in 0..64 {
        ids.push(session(&store).await);
    }
    let (release, holder) = hold(&store).await;
    let before = store.commits();
    // In the same group: appends, one on a wrong head, one that panics after writing, and one that breaks a rule of the schema.
    let panics = store.writer.submit("panics", 0, |db| {
        db.execute("INSERT INTO installation VALUES ('panicked', x'00')", [])?;
        panic!("on purpose");
        #[expect(unreachable_code, reason = "gives the closure its type")]
        Ok(Verdict::Keep(()))
    });
    let breaks = store.writer.submit("breaks", 0, |db| {
        db.execute("INSERT INTO installation VALUES ('broken', x'00')", [])?;
        db.execute("INSERT INTO sessions (id) VALUES (x'00')", [])?;
        Ok(Verdict::Keep(()))
    });
    let late = store.append(append(ids[0], 9, 10));
    let appends = join_all(ids.iter().map(|id| store.append(append(*id, 0, 200))));
    let released = async {
        release.send(()).unwrap();
        holder.await;
    };
    let (panics, breaks, late, appends, ()) = tokio::join!(biased; panics, breaks, late, appends, released);

    assert_eq!(panics.unwrap_err().kind(), StoreErrorKind::Internal);
    assert_eq!(breaks.unwrap_err().kind(), StoreErrorKind::Internal);
    assert_eq!(late.unwrap(), Appended::Conflict);
    assert!(appends.into_iter().all(|verdict| verdict.unwrap() == Appended::Done(1)));
    assert_eq!(store.commits() - before, 2, "the one that held it, and one for all the rest");
    for undone in ["panicked", "broken"] {
        assert_eq!(store.installation_value(undone).await.unwrap(), None, "{undone}");
    }
    store.close().await;
}

#[tokio::test]
async fn groups_have_the_size_that_was_asked_for() {
    let options = SqliteOptions { max_group: 1, ..SqliteOptions::default() };
    let SqliteFixture { folder: _folder, store } = SqliteFixture::with(&options);
    let before = store.commits();
    join_all((0..20).map(|_| session(&store))).await;
    assert_eq!(store.commits() - before, 20);
    store.close().await;
}

#[tokio::test]
async fn a_full_queue_makes_callers_wait_and_those_that_leave_leave_nothing() {
    let SqliteFixture { folder: _folder, store } = SqliteFixture::new();
    let ids = [session(&store).await, session(&store).await, session(&store).await];
    let (release, holder) = hold(&store).await;
    // Two of 12 MiB are accepted, the third is not.
    let mut appends: Vec<_> = ids.iter().map(|id| store.append(append(*id, 0, 12 << 20)).boxed()).collect();
    for append in &mut appends {
        assert!(append.as_mut().now_or_never().is_none());
    }
    drop(appends.pop());
    release.send(()).unwrap();
    holder.await;
    for verdict in join_all(appends).await {
        assert_eq!(verdict.unwrap(), Appended::Done(1));
    }
    assert_eq!(store.head(ids[2]).await.unwrap(), 0, "it never was in the queue");
    // There is room again, also for more than the queue can hold at once.
    assert_eq!(store.append(append(ids[2], 0, 40 << 20)).await.unwrap(), Appended::Done(1));
    store.close().await;
}

#[tokio::test]
async fn a_read_that_panics_harms_nobody_else() {
    let SqliteFixture { folder: _folder, store } = SqliteFixture::new();
    for _ in 0..5 {
        let read = store.readers.submit("panics", |_| -> Result<(), Fault> { panic!("on purpose") });
        assert_eq!(read.await.unwrap_err().kind(), StoreErrorKind::Internal);
    }
    store.ping().await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn readers_cannot_write() {
    let SqliteFixture { folder: _folder, store } = SqliteFixture::new();
    let write = store.readers.submit("writes", |db| Ok(db.execute("DELETE FROM installation", [])?));
    assert_eq!(write.await.unwrap_err().kind(), StoreErrorKind::Unavailable);
    store.close().await;
}

#[tokio::test]
async fn while_a_stranger_holds_the_write_lock_writes_are_unavailable_and_reads_go_on() {
    let fixture = SqliteFixture::new();
    let store = Arc::clone(&fixture.store);
    let id = session(&store).await;
    let stranger = Connection::open(fixture.path()).unwrap();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(store.append(append(id, 0, 10)).await.unwrap_err().kind(), StoreErrorKind::Unavailable);
    assert_eq!(store.ping().await.unwrap_err().kind(), StoreErrorKind::Unavailable);
    assert_eq!(store.head(id).await.unwrap(), 0);
    stranger.execute_batch("ROLLBACK").unwrap();
    assert_eq!(store.append(append(id, 0, 10)).await.unwrap(), Appended::Done(1));
    store.ping().await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_full_store_says_so_and_what_is_there_stays() {
    let options = SqliteOptions { max_bytes: Some(1 << 20), ..SqliteOptions::default() };
    let mut fixture = SqliteFixture::with(&options);
    let store = Arc::clone(&fixture.store);
    let id = session(&store).await;
    let mut head = 0;
    let error = loop {
        match store.append(append(id, head, 50_000)).await {
            Ok(verdict) => assert_eq!(verdict, Appended::Done(head + 1)),
            Err(error) => break error,
        }
        head += 1;
    };
    assert_eq!(error.kind(), StoreErrorKind::Full);
    assert!(head > 5, "{head}");
    assert_eq!(store.head(id).await.unwrap(), head);
    assert_eq!(store.append(append(id, head, 50_000)).await.unwrap_err().kind(), StoreErrorKind::Full);
    drop(store);
    fixture.reopen().await;
    let store = Arc::clone(&fixture.store);
    let documents = store.read_after(id, 0, 1000).await.unwrap();
    assert_eq!(documents.len() as u64, head);
    assert!(documents.iter().all(|document| document.sealed == vec![7; 50_000]));
    assert_eq!(store.append(append(id, head, 50_000)).await.unwrap(), Appended::Done(head + 1));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_write_ahead_log_stays_bounded_while_readers_never_pause() {
    let fixture = SqliteFixture::new();
    let store = Arc::clone(&fixture.store);
    let id = session(&store).await;
    let (writing, reading) = (Arc::clone(&store), Arc::clone(&store));
    let writer = async move {
        for head in 0..150 {
            assert_eq!(writing.append(append(id, head, 1 << 20)).await.unwrap(), Appended::Done(head + 1));
        }
    };
    let reader = async move {
        loop {
            let reads = (0..4).map(|_| reading.read_before(id, u64::MAX, 8));
            join_all(reads).await.into_iter().for_each(|read| drop(read.unwrap()));
        }
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(reader);
    writer.await;
    tasks.shutdown().await;
    let wal = fs::metadata(fixture.folder.path().join("chatbox.db-wal")).unwrap().len();
    assert!(wal < 80 << 20, "150 MiB were written, {wal} bytes are in the log");
    store.close().await;
}

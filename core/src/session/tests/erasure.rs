//! Sessions that are erased: by their owner, while a reply runs, through another core, and by whoever comes after a crash.

use std::time::Duration;

use chatbox_proto::{
    error_code::ErrorCode,
    ids::SessionId,
    status::Failure,
    v1::{self, chat_response::Event, entry::Kind},
};
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use super::{
    faults::{Fault, faulty},
    fixture::{Client, Core, limits, patiently, sender},
    shared::Cluster,
};
use crate::store::StoreErrorKind;

/// A session with an answered message.
async fn talked(core: &Core, user: &str) -> (Client, SessionId) {
    let mut client = core.open(user).await;
    let id = client.opened().await.session.unwrap().session_id.parse().unwrap();
    client.send("m1", "keep this to yourself").await;
    core.turn().await.finish().await;
    client.finished().await;
    (client, id)
}

/// The entries that still came, and how the stream ended.
async fn ended(client: &mut Client) -> (Vec<Kind>, Failure) {
    let mut entries = Vec::new();
    let failure = patiently("the end of the stream", async {
        loop {
            match client.events.next().await.expect("it ends with a failure") {
                Ok(event) => {
                    if let Some(Event::Entry(entry)) = v1::ChatResponse::decode(event).unwrap().event {
                        entries.extend(entry.kind);
                    }
                }
                Err(failure) => return failure,
            }
        }
    });
    let failure = failure.await;
    (entries, failure)
}

async fn assert_unknown(core: &Core, user: &str, id: SessionId) {
    let known = [
        core.sessions.get(user, id).await.err(),
        core.sessions.messages_before(user, id, None, 0, 10).await.err(),
        core.sessions.messages_after(user, id, 0, 10).await.err(),
        core.sessions.end(&sender(user), id).await.err(),
        core.sessions.reopen(&sender(user), id).await.err(),
        core.sessions.rename(user, id, "back".into()).await.err(),
        core.resume(user, Some(id), Some(0), None).await.err(),
    ];
    for failure in known {
        assert_eq!(failure.expect("it is not known").reason, "SESSION_NOT_FOUND");
    }
    assert!(core.sessions.list(user, None, None, 10).await.unwrap().sessions.is_empty());
}

async fn assert_destroyed(core: &Core, id: SessionId) {
    let header = core.store.session(id).await.unwrap().unwrap();
    assert!(header.is_erased() && header.derived.state.is_empty() && header.slot.is_none());
    assert_eq!(core.store.reply_row(id).await.unwrap(), None);
    assert_eq!(core.store.read_marks(id).await.unwrap(), []);
}

async fn wait_destroyed(core: &Core, id: SessionId) {
    let destroyed = async {
        while !core.store.session(id).await.unwrap().unwrap().is_erased() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    patiently("the destruction", destroyed).await;
    assert_destroyed(core, id).await;
}

#[tokio::test(start_paused = true)]
async fn an_erased_session_is_unknown_to_all_calls_and_leaves_its_owner_room_for_another() {
    let (core, _faults) = faulty().await;
    let (mut client, id) = talked(&core, "alice").await;
    client.frame(crate::session::Frame::Read(3)).await.unwrap();
    for stranger in ["mallory", ""] {
        let failure = core.sessions.erase(&sender(stranger), id).await.unwrap_err();
        assert_eq!(failure.reason, "SESSION_NOT_FOUND");
    }
    let failure = core.sessions.erase(&sender("alice"), SessionId::generate()).await.unwrap_err();
    assert_eq!(failure.reason, "SESSION_NOT_FOUND");
    core.sessions.erase(&sender("alice"), id).await.unwrap();
    let (entries, failure) = ended(&mut client).await;
    assert!(matches!(entries[..], [Kind::Ended(_), Kind::Erased(_)]), "{entries:?}");
    assert_eq!((failure.code, failure.reason.as_ref()), (ErrorCode::NotFound, "SESSION_NOT_FOUND"));
    assert_destroyed(&core, id).await;
    // Twice is once, for the owner alone.
    core.sessions.erase(&sender("alice"), id).await.unwrap();
    assert_eq!(core.sessions.erase(&sender("mallory"), id).await.unwrap_err().reason, "SESSION_NOT_FOUND");
    assert_unknown(&core, "alice", id).await;
    patiently("the room to go, with the key it held", async {
        while core.directory.live(id).is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let mut next = core.open("alice").await;
    let opened = next.opened().await;
    assert!(opened.created);
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_reply_that_runs_and_what_waits_end_with_the_session() {
    let (core, _faults) = faulty().await;
    let mut client = core.open("alice").await;
    let id: SessionId = client.opened().await.session.unwrap().session_id.parse().unwrap();
    client.send("m1", "one").await;
    let turn = core.turn().await;
    turn.say("on its way").await;
    client.send("m2", "two").await;
    core.sessions.erase(&sender("alice"), id).await.unwrap();
    patiently("the request upstream to be dropped", turn.chunks.closed()).await;
    let (entries, _) = ended(&mut client).await;
    let mut kinds = entries.iter().rev();
    assert!(matches!(kinds.next(), Some(Kind::Erased(_))));
    assert!(matches!(kinds.next(), Some(Kind::Ended(_))));
    let replies = entries.iter().filter_map(|kind| {
        let Kind::ReplyFinished(finished) = kind else { return None };
        Some(finished.finish_reason())
    });
    assert_eq!(replies.collect::<Vec<_>>(), [v1::FinishReason::Cancelled; 2]);
    assert_destroyed(&core, id).await;
    assert_unknown(&core, "alice", id).await;
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_made_an_erased_session_does_not_make_it_again() {
    let (core, _faults) = faulty().await;
    let made = core.sessions.create("alice", "led", "r1").await.unwrap();
    let id: SessionId = made.session_id.parse().unwrap();
    core.sessions.erase(&sender("alice"), id).await.unwrap();
    let failure = core.sessions.create("alice", "led", "r1").await.unwrap_err();
    assert_eq!(failure.reason, "SESSION_NOT_FOUND");
    core.sessions.create("alice", "led", "r2").await.unwrap();
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn all_sessions_of_a_user_are_erased_and_nobody_elses() {
    let (core, _faults) = faulty().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let made = core.sessions.create("alice", "led", "").await.unwrap();
        let id: SessionId = made.session_id.parse().unwrap();
        core.sessions.end(&sender("alice"), id).await.unwrap();
        ids.push(id);
    }
    let (_client, bobs) = talked(&core, "bob").await;
    assert_eq!(core.sessions.erase_all("alice", &sender("root")).await.unwrap(), 3);
    assert_eq!(core.sessions.erase_all("alice", &sender("root")).await.unwrap(), 0);
    for id in ids {
        assert_destroyed(&core, id).await;
    }
    assert_eq!(core.history("bob", bobs).await.len(), 2);
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_destruction_that_fails_is_told_and_done_as_soon_as_the_store_lets_it() {
    let (core, faults) = faulty().await;
    let (_client, id) = talked(&core, "alice").await;
    faults.plan("erase_session", 0, 3, Fault::Fail(StoreErrorKind::Unavailable));
    let failure = core.sessions.erase(&sender("alice"), id).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Unavailable);
    assert!(failure.outcome_unknown, "the fence is there");
    wait_destroyed(&core, id).await;
    core.sessions.erase(&sender("alice"), id).await.unwrap();
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_fence_that_cannot_be_written_erases_nothing() {
    let (core, faults) = faulty().await;
    let (_client, id) = talked(&core, "alice").await;
    faults.plan("append", 0, 1, Fault::Fail(StoreErrorKind::Unavailable));
    let failure = core.sessions.erase(&sender("alice"), id).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Unavailable);
    assert_eq!(core.history("alice", id).await.len(), 2);
    core.sessions.erase(&sender("alice"), id).await.unwrap();
    assert_destroyed(&core, id).await;
    core.stop().await;
}

#[tokio::test]
async fn after_a_crash_between_fence_and_destruction_the_next_start_destroys() {
    let (core, faults) = faulty().await;
    let (_client, id) = talked(&core, "alice").await;
    faults.plan("erase_session", 0, u32::MAX, Fault::Fail(StoreErrorKind::Unavailable));
    core.sessions.erase(&sender("alice"), id).await.unwrap_err();
    assert!(!core.store.session(id).await.unwrap().unwrap().is_erased());
    let core = core.crash().await;
    let token = CancellationToken::new();
    core.directory.shared.tasks.spawn(core.directory.clone().run(token.clone()));
    wait_destroyed(&core, id).await;
    assert_unknown(&core, "alice", id).await;
    token.cancel();
    core.stop().await;
}

#[tokio::test]
async fn whoever_opens_a_fenced_session_destroys_it() {
    let (core, faults) = faulty().await;
    let (_client, id) = talked(&core, "alice").await;
    faults.plan("erase_session", 0, u32::MAX, Fault::Fail(StoreErrorKind::Unavailable));
    core.sessions.erase(&sender("alice"), id).await.unwrap_err();
    let core = core.crash().await;
    // Nobody looks after anything here but whoever comes.
    let mut next = core.open("alice").await;
    assert!(next.opened().await.created);
    let failure = core.resume("alice", Some(id), Some(0), None).await.err().unwrap();
    assert_eq!(failure.reason, "SESSION_NOT_FOUND");
    assert_destroyed(&core, id).await;
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn streams_on_another_core_end_and_its_room_goes() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (_first, id) = talked(&one.core, "alice").await;
    for lost in [false, true] {
        let id = if lost { talked(&one.core, "bob").await.1 } else { id };
        let user = if lost { "bob" } else { "alice" };
        let mut second = two.core.resume(user, Some(id), Some(0), None).await.unwrap();
        second.opened().await;
        if lost {
            // It is not told, and finds out.
            one.lose(2);
        }
        one.core.sessions.erase(&sender(user), id).await.unwrap();
        let (entries, failure) = ended(&mut second).await;
        assert!(matches!(entries.last(), Some(Kind::Erased(_))), "{entries:?}");
        assert_eq!(failure.reason, "SESSION_NOT_FOUND");
        assert_unknown(&two.core, user, id).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(two.core.directory.live(id).is_none(), "its key is forgotten");
    }
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn an_erasure_through_another_core_ends_the_reply_that_runs() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let mut first = one.core.open("alice").await;
    let id: SessionId = first.opened().await.session.unwrap().session_id.parse().unwrap();
    first.send("m1", "hello").await;
    let turn = one.core.turn().await;
    turn.say("so far").await;
    two.core.sessions.erase(&sender("alice"), id).await.unwrap();
    patiently("the request upstream to be dropped", turn.chunks.closed()).await;
    assert_eq!(ended(&mut first).await.1.reason, "SESSION_NOT_FOUND");
    assert_destroyed(&two.core, id).await;
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_core_leaves_between_fence_and_destruction_another_core_destroys_after_the_lapse() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (client, id) = talked(&one.core, "alice").await;
    let room = one.core.directory.room(id).await.unwrap();
    let (done, fenced) = tokio::sync::oneshot::channel();
    let erase = crate::session::room::Command::Erase { by: sender("alice"), done };
    room.command(erase).await.ok().unwrap();
    patiently("the fence", fenced).await.unwrap().unwrap();
    one.stop();
    let began = tokio::time::Instant::now();
    while !two.core.store.session(id).await.unwrap().unwrap().is_erased() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(began.elapsed() <= limits().reply_lapse + Duration::from_secs(3), "{:?}", began.elapsed());
    }
    assert_destroyed(&two.core, id).await;
    assert_unknown(&two.core, "alice", id).await;
    drop((client, room));
    one.leave().await;
    two.leave().await;
}

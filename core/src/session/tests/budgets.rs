//! What messages and replies may use: refused before anything is written, reserved before a provider is asked, settled once
//! with what the reply's end says, whatever happens in between.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chatbox_proto::{
    ids::{MessageId, SessionId},
    token::Role,
    v1,
};
use tokio_util::sync::CancellationToken;

use super::fixture::{Client, Core, Place, TODAY, Turn, patiently};
use crate::{
    budget::{BudgetLimits, Work},
    domain::entry::Usage,
    limits::QuotaLimits,
    llm::Chunk,
    session::Frame,
    store::{
        BudgetStore, StoreError, StoreErrorKind,
        budgets::{Amount, BudgetKey, BudgetRow, Reservation, Reserved, Settlement},
    },
};

/// What an answer to a short question reserves: 1,024 tokens, and a little for the prompt.
const ONE_REPLY: u64 = 1_024;

/// Budgets that fail so many times from here on.
#[derive(Debug)]
struct Failing {
    inner: Arc<dyn BudgetStore>,
    reads: Arc<AtomicU32>,
    reservations: Arc<AtomicU32>,
    settlements: Arc<AtomicU32>,
}

fn fails(times: &AtomicU32) -> Result<(), StoreError> {
    let left = times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    left.map_or(Ok(()), |_| Err(StoreError::bare(StoreErrorKind::Unavailable, "planned")))
}

#[async_trait]
impl BudgetStore for Failing {
    async fn reserve_budget(&self, key: &BudgetKey, new: Reservation, limit: Amount) -> Result<Reserved, StoreError> {
        fails(&self.reservations)?;
        self.inner.reserve_budget(key, new, limit).await
    }

    async fn settle_budget(&self, key: &BudgetKey, id: MessageId, end: Settlement) -> Result<bool, StoreError> {
        fails(&self.settlements)?;
        self.inner.settle_budget(key, id, end).await
    }

    async fn budget(&self, key: &BudgetKey) -> Result<Option<BudgetRow>, StoreError> {
        fails(&self.reads)?;
        self.inner.budget(key).await
    }

    async fn open_budgets(&self, after: Option<BudgetKey>, limit: u32) -> Result<Vec<BudgetRow>, StoreError> {
        self.inner.open_budgets(after, limit).await
    }

    async fn drop_budgets(&self, before: u32, limit: u32) -> Result<u32, StoreError> {
        self.inner.drop_budgets(before, limit).await
    }
}

fn place(tokens: u64) -> Place {
    let user = Some(Amount::new(tokens, Amount::MAX.cost));
    Place {
        budgets: BudgetLimits { user, ..BudgetLimits::default() },
        lapse: Duration::from_millis(50),
        ..Place::new()
    }
}

async fn limited(tokens: u64) -> Core {
    Core::limited(place(tokens), |budgets| budgets).await
}

async fn row(core: &Core, subject: &str) -> BudgetRow {
    let key = BudgetKey { day: TODAY, subject: subject.to_owned() };
    core.budgets.as_ref().unwrap().budget(&key).await.unwrap().unwrap_or_else(|| BudgetRow::new(key))
}

/// The row once it is as it should be.
async fn settled(core: &Core, subject: &str, settlements: u64) -> BudgetRow {
    let wait = async {
        loop {
            let row = row(core, subject).await;
            if row.settled == settlements && row.open.is_empty() {
                return row;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    patiently("the settlements", wait).await
}

/// The tokens of all replies of a session, as its history tells them.
async fn told(core: &Core, client: &Client) -> u64 {
    let messages = core.history("alice", session(client)).await;
    let usage = messages.iter().filter_map(|message| message.reply.as_ref()?.usage);
    usage.map(|usage| usage.prompt_tokens + usage.completion_tokens).sum()
}

fn session(client: &Client) -> SessionId {
    client.session.expect("opened")
}

async fn end(turn: Turn, prompt_tokens: u64, completion_tokens: u64) {
    let usage = Usage { prompt_tokens, completion_tokens, ..Usage::default() };
    turn.chunks.send(Ok(Chunk::Usage(usage))).await.unwrap();
    turn.finish().await;
}

async fn refused(client: &mut Client, id: &str, text: &str) -> v1::Error {
    let frame = client.message(id, text);
    client.frame(frame).await.unwrap_err()
}

#[tokio::test]
async fn a_reply_is_reserved_before_and_settled_after_with_the_figures_of_its_end() {
    let core = limited(10_000).await;
    let mut client = core.opened("alice").await;
    client.send("m1", "question").await;
    let turn = core.turn().await;
    let during = row(&core, "user:alice").await;
    assert!(during.reserved.tokens > ONE_REPLY && during.settled == 0, "{during:?}");
    assert_eq!(during.open[0].session_id, client.session);
    end(turn, 30, 12).await;
    client.finished().await;
    let after = settled(&core, "user:alice", 1).await;
    assert_eq!((after.used.tokens, after.estimated, after.reserved.tokens), (42, 0, 0));
    // One that is stopped, and one whose provider says nothing of usage.
    client.send("m2", "and this?").await;
    let turn = core.turn().await;
    turn.say("some words").await;
    client.frame(Frame::Stop(core.last_reply(&client).await)).await.unwrap();
    client.send("m3", "or that?").await;
    let turn = core.turn().await;
    turn.say("more words").await;
    turn.finish().await;
    client.finished().await;
    let after = settled(&core, "user:alice", 3).await;
    assert_eq!((after.estimated, after.total().tokens), (2, told(&core, &client).await));
    assert!(after.total().tokens > 42 + 4);
    core.stop().await;
}

#[tokio::test]
async fn a_message_that_no_budget_has_room_for_is_refused_and_nothing_is_stored() {
    let core = limited(ONE_REPLY).await;
    let mut client = core.opened("alice").await;
    let error = refused(&mut client, "m1", "question").await;
    assert_eq!((error.code(), error.reason.as_str()), (v1::ErrorCode::ResourceExhausted, "BUDGET_EXHAUSTED"));
    let noon = 12 * 3_600;
    assert_eq!(error.retry_after.unwrap().seconds, noon, "until the day ends");
    assert!(core.history("alice", session(&client)).await.is_empty());
    assert_eq!(core.store.head(session(&client)).await.unwrap(), 0);
    core.stop().await;
}

#[tokio::test]
async fn a_repeat_is_recognised_although_there_is_no_room_and_room_comes_back_with_the_settlement() {
    let core = limited(ONE_REPLY + 200).await;
    let mut client = core.opened("alice").await;
    let first = client.send("m1", "question").await;
    let turn = core.turn().await;
    let error = refused(&mut client, "m2", "another").await;
    assert_eq!((error.reason.as_str(), error.retry_after.unwrap().seconds), ("BUDGET_EXHAUSTED", 5));
    let again = client.send("m1", "question").await;
    assert_eq!((again.message_id, again.duplicate), (first.message_id, true));
    end(turn, 10, 10).await;
    client.finished().await;
    settled(&core, "user:alice", 1).await;
    client.send("m2", "another").await;
    end(core.turn().await, 10, 10).await;
    client.finished().await;
    assert_eq!(settled(&core, "user:alice", 2).await.total().tokens, told(&core, &client).await);
    core.stop().await;
}

#[tokio::test]
async fn a_message_that_waited_while_the_budget_was_used_up_gets_a_reply_that_says_so() {
    let core = limited(2 * ONE_REPLY + 200).await;
    let mut client = core.opened("alice").await;
    client.send("m1", "question").await;
    let turn = core.turn().await;
    let waiting = client.send("m2", "and this?").await;
    // More than anybody could foresee.
    end(turn, 1_000, 1_000).await;
    client.finished().await;
    let started = client.started().await;
    assert_eq!(started.answers, [waiting.message_id]);
    let finished = client.finished().await;
    assert_eq!((finished.finish_reason(), finished.text.as_str()), (v1::FinishReason::BudgetExhausted, ""));
    assert_eq!(finished.usage, Some(v1::Usage::default()));
    assert!(core.turns.lock().await.try_recv().is_err(), "no provider was asked");
    let row = settled(&core, "user:alice", 1).await;
    assert!(row.over.tokens > 0 && row.used.tokens > ONE_REPLY, "{row:?}");
    assert_eq!(row.total().tokens, 2_000);
    core.stop().await;
}

#[tokio::test]
async fn after_a_crash_the_row_is_the_sum_of_what_the_log_tells() {
    let core = limited(100_000).await;
    let mut client = core.opened("alice").await;
    client.send("m1", "question").await;
    end(core.turn().await, 20, 5).await;
    client.finished().await;
    client.send("m2", "go on").await;
    let turn = core.turn().await;
    turn.say("as far as it came").await;
    let header = core.directory.header(session(&client)).await.unwrap().unwrap();
    let log = core.directory.log(&header).unwrap();
    let kept = async {
        loop {
            let row = core.store.reply_row(header.id).await.unwrap();
            let text = row.map(|row| log.open_checkpoint(row.message_id, &row.checkpoint).unwrap());
            if text.is_some_and(|text| text == "as far as it came") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    patiently("the checkpoint", kept).await;
    drop(log);
    let mut core = core.crash().await;
    for _ in 0..2 {
        let stop = CancellationToken::new();
        core.directory.shared.tasks.spawn(core.directory.clone().run(stop.clone()));
        let row = settled(&core, "user:alice", 2).await;
        assert_eq!((row.total().tokens, row.estimated), (told(&core, &client).await, 1));
        assert!(row.total().tokens > 25);
        stop.cancel();
        // And once more, with nothing left to do.
        core = core.crash().await;
    }
    core.stop().await;
}

#[tokio::test]
async fn what_could_not_be_settled_is_settled_by_the_sweep_once() {
    let settlements = Arc::new(AtomicU32::new(0));
    let (none, failing) = (Arc::new(AtomicU32::new(0)), settlements.clone());
    let core = Core::limited(place(100_000), |inner| {
        Arc::new(Failing { inner, reads: none.clone(), reservations: none, settlements: failing })
    })
    .await;
    let mut client = core.opened("alice").await;
    // All tries of the room, and the first of the sweep.
    settlements.store(5, Ordering::SeqCst);
    client.send("m1", "question").await;
    end(core.turn().await, 20, 5).await;
    client.finished().await;
    let stop = CancellationToken::new();
    core.directory.shared.tasks.spawn(core.directory.clone().run(stop.clone()));
    let row = settled(&core, "user:alice", 1).await;
    assert_eq!((row.total().tokens, row.estimated), (25, 0));
    assert_eq!(settlements.load(Ordering::SeqCst), 0, "it was tried");
    stop.cancel();
    core.stop().await;
}

#[tokio::test]
async fn work_outside_of_sessions_that_its_process_left_behind_costs_what_it_reserved() {
    let core = limited(100_000).await;
    let budgets = core.directory.budgets().unwrap().clone();
    let charge = budgets.charge("alice", [Role::User].into_iter().collect()).unwrap();
    let work = Work { id: MessageId::generate(), session_id: None };
    let model = &core.models.get("led").unwrap().info;
    drop(budgets.reserve(&charge, work, model, 10).await.unwrap());
    let core = core.crash().await;
    let stop = CancellationToken::new();
    core.directory.shared.tasks.spawn(core.directory.clone().run(stop.clone()));
    let row = settled(&core, "user:alice", 1).await;
    assert_eq!((row.used.tokens, row.estimated), (ONE_REPLY + 10, 1));
    stop.cancel();
    core.stop().await;
}

#[tokio::test]
async fn while_the_budgets_cannot_be_reached_nothing_is_taken_and_nothing_given() {
    let (reads, reservations) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (failing_reads, failing_reservations) = (reads.clone(), reservations.clone());
    let core = Core::limited(place(100_000), |inner| {
        Arc::new(Failing {
            inner,
            reads: failing_reads,
            reservations: failing_reservations,
            settlements: Arc::default(),
        })
    })
    .await;
    let mut client = core.opened("alice").await;
    reads.store(1, Ordering::SeqCst);
    let error = refused(&mut client, "m1", "question").await;
    assert_eq!((error.code(), error.reason.as_str()), (v1::ErrorCode::Unavailable, "STORE_UNAVAILABLE"));
    assert!(error.retry_after.is_some());
    assert!(core.history("alice", session(&client)).await.is_empty());
    reservations.store(1, Ordering::SeqCst);
    client.send("m1", "question").await;
    let finished = client.finished().await;
    assert_eq!(finished.finish_reason(), v1::FinishReason::Interrupted);
    assert!(core.turns.lock().await.try_recv().is_err(), "no provider was asked");
    assert_eq!(row(&core, "user:alice").await.settled, 0);
    client.send("m2", "again").await;
    end(core.turn().await, 1, 1).await;
    client.finished().await;
    settled(&core, "user:alice", 1).await;
    core.stop().await;
}

#[tokio::test]
async fn a_user_writes_so_often_in_a_minute_and_a_repeat_is_recognised_all_the_same() {
    let quota = QuotaLimits { messages_per_minute: 3, replies: 10 };
    let core = Core::limited(Place { quota, ..Place::new() }, |budgets| budgets).await;
    let mut client = core.opened("alice").await;
    for n in 0..3 {
        client.send(&format!("m{n}"), "x").await;
    }
    let error = refused(&mut client, "m3", "x").await;
    assert_eq!((error.code(), error.reason.as_str()), (v1::ErrorCode::ResourceExhausted, "TOO_MANY_MESSAGES"));
    let wait = Duration::try_from(error.retry_after.unwrap()).unwrap();
    assert!(wait > Duration::from_secs(10) && wait <= Duration::from_secs(20), "{wait:?}");
    assert!(client.send("m1", "x").await.duplicate);
    // Calls that write are of the same minute, and another user has another.
    let failure = core.sessions.create("alice", "", "").await.unwrap_err();
    assert_eq!(failure.reason, "TOO_MANY_MESSAGES");
    let failure = core.sessions.end(&client.sender, session(&client)).await.unwrap_err();
    assert_eq!(failure.reason, "TOO_MANY_MESSAGES");
    core.opened("bob").await.send("m0", "x").await;
    core.stop().await;
}

#[tokio::test]
async fn no_more_replies_begin_than_this_core_may_generate() {
    let quota = QuotaLimits { messages_per_minute: 0, replies: 1 };
    let core = Core::limited(Place { quota, ..Place::new() }, |budgets| budgets).await;
    let (mut alice, mut bob) = (core.opened("alice").await, core.opened("bob").await);
    alice.send("m1", "question").await;
    let turn = core.turn().await;
    let error = refused(&mut bob, "m1", "question").await;
    assert_eq!((error.code(), error.reason.as_str()), (v1::ErrorCode::ResourceExhausted, "TOO_MANY_REPLIES"));
    alice.send("m2", "what waits needs no place of its own").await;
    turn.finish().await;
    alice.finished().await;
    core.turn().await.finish().await;
    alice.finished().await;
    bob.send("m1", "question").await;
    core.turn().await.finish().await;
    bob.finished().await;
    core.stop().await;
}

use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::{
    domain::time::Timestamp,
    llm::{Model, demo::Demo, registry::Price},
    store::{
        SessionStore as _,
        budgets::BudgetRow,
        sqlite::{SqliteOptions, SqliteStore},
    },
};

const DAY: i64 = 24 * 60 * 60 * 1_000;
const NOON: i64 = 20_000 * DAY + DAY / 2;

struct World {
    budgets: Budgets,
    store: Arc<SqliteStore>,
    now: Arc<AtomicI64>,
    models: Models,
    _folder: tempfile::TempDir,
}

fn model(id: &str, prompt: u64, fallbacks: &[&str], on_loss: OnLoss) -> Model {
    let info = ModelInfo {
        id: id.to_owned(),
        max_output_tokens: 100,
        price: Price { prompt, cached: 0, completion: 10 },
        fallbacks: fallbacks.iter().map(|id| (*id).to_owned()).collect(),
        on_loss,
        ..ModelInfo::default()
    };
    Model { info, provider: Arc::new(Demo::default()) }
}

impl World {
    fn new(limits: BudgetLimits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open_in(folder.path(), &SqliteOptions::default()).unwrap());
        let models = vec![
            model("cheap", 1_000, &[], OnLoss::Finish),
            model("dear", 9_000, &[], OnLoss::Finish),
            model("both", 1_000, &["dear"], OnLoss::Restart),
        ];
        let models = Models::new(models, "cheap").unwrap();
        let now = Arc::new(AtomicI64::new(NOON));
        let told = now.clone();
        let clock = Clock::new(move || Timestamp::from_millis(told.load(Ordering::Relaxed)));
        let call = Duration::from_secs(5);
        let budgets = Budgets::new(store.clone(), limits, models.clone(), Metrics::new(), call, clock);
        Self { budgets, store, now, models, _folder: folder }
    }

    fn of_a_user(tokens: u64, cost: u64) -> Self {
        Self::new(BudgetLimits { user: Some(Amount::new(tokens, cost)), ..BudgetLimits::default() })
    }

    async fn reserve(&self, charge: &Charge, model: &str, prompt: u64) -> Result<Held, BudgetError> {
        let work = Work { id: MessageId::generate(), session_id: None };
        self.budgets.reserve(charge, work, &self.models.get(model).unwrap().info, prompt).await
    }

    async fn row(&self, day: u32, subject: &str) -> BudgetRow {
        let key = BudgetKey { day, subject: subject.to_owned() };
        self.store.budget(&key).await.unwrap().unwrap_or_else(|| BudgetRow::new(key))
    }
}

fn roles(roles: &[Role]) -> Roles {
    roles.iter().copied().collect()
}

fn usage(prompt_tokens: u64, completion_tokens: u64) -> Usage {
    Usage { prompt_tokens, completion_tokens, cached_tokens: 0, estimated: false }
}

fn retry_after(error: &BudgetError) -> Option<Duration> {
    if let BudgetError::Exhausted { retry_after } = error { Some(*retry_after) } else { None }
}

#[tokio::test]
async fn the_subjects_are_the_user_or_the_service_and_the_roles_that_have_a_limit() {
    let limit = Some(Amount::new(10, 10));
    let all = BudgetLimits {
        user: limit,
        service: limit,
        roles: vec![(Role::User, Amount::MAX), (Role::Admin, Amount::MAX)],
    };
    let world = World::new(all);
    let subjects = |id: &str, of: &[Role]| world.budgets.charge(id, roles(of)).map(|charge| charge.subjects);
    assert_eq!(subjects("alice", &[Role::User]).unwrap(), ["user:alice", "role:user"]);
    assert_eq!(subjects("a:b", &[Role::ChatAdmin]).unwrap(), ["user:a:b"]);
    assert_eq!(subjects("crm", &[Role::Service, Role::Admin]).unwrap(), ["service:crm", "role:admin"]);
    let world = World::of_a_user(10, 10);
    assert_eq!(world.budgets.charge("crm", roles(&[Role::Service])), None, "without a limit there is no row");
    let again = world.budgets.charge_to(["role:user".to_owned(), "user:alice".to_owned()]).unwrap();
    assert_eq!(again, Charge { day: 20_000, subjects: vec!["user:alice".to_owned()] }, "limits that are gone");
}

#[tokio::test]
async fn reserved_is_the_most_that_any_stand_in_may_use() {
    let world = World::of_a_user(1, 1);
    let most = |id: &str| world.budgets.most(&world.models.get(id).unwrap().info, 50);
    assert_eq!(most("cheap"), Amount::new(150, 51));
    assert_eq!(most("dear"), Amount::new(150, 451));
    assert_eq!(most("both"), Amount::new(300, 902), "at the price of its fallback, and twice");
}

#[tokio::test]
async fn work_is_settled_once_with_what_it_used_and_at_the_price_of_who_answered() {
    let world = World::of_a_user(1_000, 10_000);
    let charge = world.budgets.charge("alice", roles(&[Role::User])).unwrap();
    let held = world.reserve(&charge, "both", 50).await.unwrap();
    let id = held.id;
    assert_eq!(world.row(20_000, "user:alice").await.reserved, Amount::new(300, 902));
    held.settle("dear", &usage(40, 10)).await;
    let row = world.row(20_000, "user:alice").await;
    assert_eq!((row.used, row.over, row.settled), (Amount::new(50, 361), Amount::default(), 1));
    world.budgets.settle(&charge, id, Settlement::Unknown).await;
    assert_eq!(world.row(20_000, "user:alice").await, row, "the second time nothing happens");
    // A model that there is no more.
    let held = world.reserve(&charge, "cheap", 50).await.unwrap();
    held.settle("gone", &usage(1, 1)).await;
    let row = world.row(20_000, "user:alice").await;
    assert_eq!((row.used, row.estimated), (Amount::new(200, 412), 1));
}

#[tokio::test]
async fn a_subject_without_room_leaves_nothing_in_the_others() {
    let limits = BudgetLimits {
        user: Some(Amount::new(1_000, 1_000_000)),
        service: None,
        roles: vec![(Role::User, Amount::new(1_000, 1_000_000)), (Role::Admin, Amount::new(10, 1_000_000))],
    };
    let world = World::new(limits);
    let charge = world.budgets.charge("alice", roles(&[Role::User, Role::Admin])).unwrap();
    assert_eq!(charge.subjects.len(), 3);
    let refused = world.reserve(&charge, "cheap", 50).await.unwrap_err();
    assert!(matches!(refused, BudgetError::Exhausted { .. }));
    for subject in &charge.subjects {
        let row = world.row(20_000, subject).await;
        assert_eq!((row.reserved, row.open.len(), row.settled), (Amount::default(), 0, 0), "{subject}");
    }
}

#[tokio::test]
async fn a_refusal_says_when_there_may_be_room() {
    let world = World::of_a_user(200, 1_000_000);
    let charge = world.budgets.charge("alice", roles(&[Role::User])).unwrap();
    let held = world.reserve(&charge, "cheap", 50).await.unwrap();
    let most = world.budgets.most(&world.models.get("cheap").unwrap().info, 50);
    let in_use = world.reserve(&charge, "cheap", 50).await.unwrap_err();
    assert_eq!(retry_after(&in_use), Some(IN_USE_RETRY));
    assert_eq!(retry_after(&world.budgets.check(&charge, most).await.unwrap_err()), Some(IN_USE_RETRY));
    held.settle("cheap", &usage(100, 1)).await;
    let used_up = world.reserve(&charge, "cheap", 50).await.unwrap_err();
    assert_eq!(retry_after(&used_up), Some(Duration::from_secs(12 * 3_600)), "at midnight");
    let checked = world.budgets.check(&charge, most).await.unwrap_err();
    let failure = Failure::from(&checked);
    assert_eq!((failure.code, &*failure.reason), (ErrorCode::ResourceExhausted, "BUDGET_EXHAUSTED"));
    assert_eq!(failure.retry_after, Some(Duration::from_secs(12 * 3_600)));
    world.budgets.check(&charge, Amount::new(99, 1)).await.unwrap();
}

#[tokio::test]
async fn at_midnight_there_is_a_new_budget_and_what_began_before_is_settled_where_it_was_reserved() {
    let world = World::of_a_user(200, 1_000_000);
    let yesterday = world.budgets.charge("alice", roles(&[Role::User])).unwrap();
    let held = world.reserve(&yesterday, "cheap", 50).await.unwrap();
    world.now.store(20_001 * DAY, Ordering::Relaxed);
    let today = world.budgets.charge("alice", roles(&[Role::User])).unwrap();
    assert_eq!((yesterday.day, today.day), (20_000, 20_001));
    let next = world.reserve(&today, "cheap", 50).await.unwrap();
    held.settle("cheap", &usage(120, 60)).await;
    next.settle("cheap", &usage(1, 1)).await;
    let (before, after) = (world.row(20_000, "user:alice").await, world.row(20_001, "user:alice").await);
    assert_eq!((before.total().tokens, before.used.tokens), (180, 150), "what was billed beyond it is apart");
    assert_eq!((after.total().tokens, after.settled), (2, 1));
}

#[tokio::test]
async fn a_store_that_is_away_gives_nothing_and_keeps_nobody_waiting() {
    let world = World::of_a_user(200, 1_000_000);
    let charge = world.budgets.charge("alice", roles(&[Role::User])).unwrap();
    world.store.close().await;
    let checked = world.budgets.check(&charge, Amount::default()).await.unwrap_err();
    let failure = Failure::from(&checked);
    assert_eq!((failure.code, &*failure.reason), (ErrorCode::Unavailable, "STORE_UNAVAILABLE"));
    assert!(failure.retry_after.is_some());
    let reserved = world.reserve(&charge, "cheap", 1).await.unwrap_err();
    assert!(matches!(reserved, BudgetError::Store(_)));
}

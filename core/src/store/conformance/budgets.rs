//! What subjects have used: limits are kept, settlements count once, and rows are what was done to them.

use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use super::*;
use crate::store::budgets::{
    Amount, BudgetKey, BudgetRow, BudgetStore, MAX_RESERVATIONS, Reservation, Reserved, Settlement,
};

fn key(day: u32, subject: &str) -> BudgetKey {
    BudgetKey { day, subject: subject.to_owned() }
}

fn amount(tokens: u64, cost: u64) -> Amount {
    Amount::new(tokens, cost)
}

fn reservation(tokens: u64, cost: u64) -> Reservation {
    let session_id = tokens.is_multiple_of(2).then(SessionId::generate);
    Reservation { id: MessageId::generate(), amount: amount(tokens, cost), boot_id: hash(5), session_id }
}

fn used(tokens: u64, cost: u64) -> Settlement {
    Settlement::Used { amount: amount(tokens, cost), estimated: false }
}

async fn row(store: &Arc<dyn BudgetStore>, key: &BudgetKey) -> BudgetRow {
    store.budget(key).await.unwrap().unwrap()
}

pub(crate) async fn what_is_reserved_and_settled_is_in_the_row(f: &mut impl Fixture) {
    let (store, key) = (f.budgets(), key(20_000, "user:älice"));
    assert_eq!(store.budget(&key).await.unwrap(), None);
    let mut one = [reservation(60, 5), reservation(31, 6)];
    one.sort_by_key(|reservation| *reservation.id.as_bytes());
    for reservation in &one {
        let reserved = store.reserve_budget(&key, reservation.clone(), amount(100, 11)).await.unwrap();
        assert_eq!(reserved, Reserved::Done);
    }
    let expected = BudgetRow { reserved: amount(91, 11), open: one.to_vec(), ..BudgetRow::new(key.clone()) };
    assert_eq!(row(&store, &key).await, expected);
    f.reopen().await;
    let store = f.budgets();
    assert_eq!(row(&store, &key).await, expected);
    assert!(store.settle_budget(&key, one[0].id, used(7, 1)).await.unwrap());
    let estimate = Settlement::Used { amount: amount(3, 0), estimated: true };
    assert!(store.settle_budget(&key, one[1].id, estimate).await.unwrap());
    let expected = BudgetRow { used: amount(10, 1), settled: 2, estimated: 1, ..BudgetRow::new(key.clone()) };
    assert_eq!(row(&store, &key).await, expected);
}

pub(crate) async fn nothing_is_reserved_above_the_limit(f: &mut impl Fixture) {
    let (store, key) = (f.budgets(), key(20_000, "user:alice"));
    let reserve = |tokens, cost, limit| {
        let (store, key) = (store.clone(), key.clone());
        async move { store.reserve_budget(&key, reservation(tokens, cost), limit).await.unwrap() }
    };
    assert_eq!(reserve(101, 0, amount(100, 100)).await, Reserved::Refused);
    assert_eq!(reserve(0, 101, amount(100, 100)).await, Reserved::Refused);
    assert_eq!(reserve(100, 100, amount(100, 100)).await, Reserved::Done, "as much as the limit");
    assert_eq!(reserve(1, 0, amount(100, 100)).await, Reserved::Refused);
    assert_eq!(reserve(0, 1, amount(100, 100)).await, Reserved::Refused);
    assert_eq!(reserve(0, 0, amount(99, 100)).await, Reserved::Refused, "a limit that has become smaller");
    assert_eq!(reserve(1, 1, Amount::MAX).await, Reserved::Done);
    let row = row(&store, &key).await;
    assert_eq!((row.reserved, row.open.len()), (amount(101, 101), 2), "a refusal leaves nothing");
}

pub(crate) async fn a_reservation_is_settled_once_and_only_where_it_is(f: &mut impl Fixture) {
    let (store, here) = (f.budgets(), key(20_000, "user:alice"));
    let reservation = reservation(50, 50);
    let id = reservation.id;
    store.reserve_budget(&here, reservation, amount(100, 100)).await.unwrap();
    for elsewhere in [key(20_001, "user:alice"), key(20_000, "user:bob")] {
        assert!(!store.settle_budget(&elsewhere, id, used(1, 1)).await.unwrap());
    }
    assert!(!store.settle_budget(&here, MessageId::generate(), used(1, 1)).await.unwrap());
    let racers = (1..=20).map(|n| {
        let (store, here) = (store.clone(), here.clone());
        async move { store.settle_budget(&here, id, used(n, n)).await.unwrap().then_some(n) }
    });
    let winners: Vec<u64> = race(racers).await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    let row = row(&store, &here).await;
    assert_eq!((row.total(), row.settled, row.reserved), (amount(winners[0], winners[0]), 1, Amount::default()));
}

pub(crate) async fn what_goes_beyond_a_reservation_is_counted_apart(f: &mut impl Fixture) {
    let (store, key) = (f.budgets(), key(20_000, "user:alice"));
    let (one, other) = (reservation(50, 5), reservation(50, 5));
    for reservation in [&one, &other] {
        store.reserve_budget(&key, reservation.clone(), amount(100, 100)).await.unwrap();
    }
    assert!(store.settle_budget(&key, one.id, used(80, 2)).await.unwrap());
    assert!(store.settle_budget(&key, other.id, Settlement::Unknown).await.unwrap());
    let row = row(&store, &key).await;
    assert_eq!((row.used, row.over), (amount(100, 7), amount(30, 0)));
    assert_eq!((row.settled, row.estimated), (2, 1));
    let more = store.reserve_budget(&key, reservation(0, 0), amount(100, 100)).await.unwrap();
    assert_eq!(more, Reserved::Refused, "it counts for what follows");
}

pub(crate) async fn what_is_released_was_no_settlement(f: &mut impl Fixture) {
    let (store, key) = (f.budgets(), key(20_000, "user:alice"));
    let reservation = reservation(100, 0);
    store.reserve_budget(&key, reservation.clone(), amount(100, 0)).await.unwrap();
    assert!(store.settle_budget(&key, reservation.id, Settlement::Released).await.unwrap());
    assert_eq!(row(&store, &key).await, BudgetRow::new(key.clone()));
}

pub(crate) async fn a_repeated_reservation_is_one(f: &mut impl Fixture) {
    let (store, key) = (f.budgets(), key(20_000, "user:alice"));
    let reservation = reservation(60, 0);
    for _ in 0..3 {
        let reserved = store.reserve_budget(&key, reservation.clone(), amount(100, 0)).await.unwrap();
        assert_eq!(reserved, Reserved::Done);
    }
    assert_eq!(row(&store, &key).await.reserved, amount(60, 0));
}

pub(crate) async fn racing_reservations_stay_below_the_limit(f: &mut impl Fixture) {
    let (store, key) = (f.budgets(), key(20_000, "role:user"));
    let racers = (0..50).map(|_| {
        let (store, key) = (store.clone(), key.clone());
        async move { store.reserve_budget(&key, reservation(30, 1), amount(300, 100)).await.unwrap() }
    });
    let done = race(racers).await.into_iter().filter(|reserved| *reserved == Reserved::Done).count();
    assert_eq!(done, 10);
    assert_eq!(row(&store, &key).await.reserved, amount(300, 10));
}

pub(crate) async fn a_row_holds_a_bounded_number_of_reservations(f: &mut impl Fixture) {
    let (store, key) = (f.budgets(), key(20_000, "role:user"));
    for _ in 0..MAX_RESERVATIONS {
        assert_eq!(store.reserve_budget(&key, reservation(1, 0), Amount::MAX).await.unwrap(), Reserved::Done);
    }
    assert_eq!(store.reserve_budget(&key, reservation(1, 0), Amount::MAX).await.unwrap(), Reserved::Refused);
    let first = row(&store, &key).await.open[0].id;
    assert!(store.settle_budget(&key, first, used(1, 0)).await.unwrap());
    assert_eq!(store.reserve_budget(&key, reservation(1, 0), Amount::MAX).await.unwrap(), Reserved::Done);
}

pub(crate) async fn rows_with_reservations_come_page_by_page_in_the_order_of_keys(f: &mut impl Fixture) {
    let store = f.budgets();
    let mut keys = Vec::new();
    for day in [9, 20_000, 100_001] {
        for subject in ["role:user", "user:a", "user:b/c"] {
            let key = key(day, subject);
            let reservation = reservation(1, 1);
            store.reserve_budget(&key, reservation.clone(), amount(9, 9)).await.unwrap();
            if day == 20_000 && subject == "user:a" {
                store.settle_budget(&key, reservation.id, used(1, 1)).await.unwrap();
            } else {
                keys.push(key);
            }
        }
    }
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.open_budgets(after, 3).await.unwrap();
        assert!(page.iter().all(|row| row.open.len() == 1));
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        found.extend(page.into_iter().map(|row| row.key));
    }
    assert_eq!(found, keys);
}

pub(crate) async fn old_rows_go_once_nothing_is_reserved_in_them(f: &mut impl Fixture) {
    let store = f.budgets();
    let keys = [key(10, "user:a"), key(10, "user:b"), key(11, "user:a"), key(12, "user:a")];
    let mut open = Vec::new();
    for key in &keys {
        let reservation = reservation(1, 1);
        open.push(reservation.id);
        store.reserve_budget(key, reservation, amount(9, 9)).await.unwrap();
    }
    assert_eq!(store.drop_budgets(12, 10).await.unwrap(), 0);
    for (key, id) in keys.iter().zip(&open).skip(1) {
        store.settle_budget(key, *id, used(1, 1)).await.unwrap();
    }
    assert_eq!(store.drop_budgets(12, 1).await.unwrap(), 1);
    assert_eq!(store.drop_budgets(12, 10).await.unwrap(), 1);
    let mut left = Vec::new();
    for key in &keys {
        left.extend(store.budget(key).await.unwrap().map(|row| row.key));
    }
    assert_eq!(left, [keys[0].clone(), keys[3].clone()]);
}

/// What is done to one of a few rows.
#[derive(Debug, Clone)]
enum Step {
    Reserve {
        row: usize,
        tokens: u64,
        cost: u64,
    },
    /// What becomes of the reservation at this place of those that were made, settled ones included.
    Settle {
        at: usize,
        settlement: Settlement,
    },
    /// All of these at once.
    Race {
        row: usize,
        tokens: Vec<u64>,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let settlement = prop_oneof![
        4 => (0_u64..60, 0_u64..60, any::<bool>()).prop_map(|(tokens, cost, estimated)| Settlement::Used {
            amount: Amount::new(tokens, cost),
            estimated,
        }),
        1 => Just(Settlement::Unknown),
        1 => Just(Settlement::Released),
    ];
    prop_oneof![
        12 => (0_usize..3, 0_u64..50, 0_u64..50).prop_map(|(row, tokens, cost)| Step::Reserve { row, tokens, cost }),
        12 => (0_usize..20, settlement).prop_map(|(at, settlement)| Step::Settle { at, settlement }),
        4 => (0_usize..3, prop::collection::vec(1_u64..50, 2..6)).prop_map(|(row, tokens)| Step::Race { row, tokens }),
        1 => Just(Step::Reopen),
    ]
}

const LIMIT: Amount = Amount { tokens: 120, cost: 90 };

#[derive(Default)]
struct Model {
    rows: Vec<BudgetRow>,
    made: Vec<(usize, MessageId)>,
    /// What was settled in each row.
    sums: [Amount; 3],
}

impl Model {
    fn reserved(&mut self, row: usize, reservation: Reservation) {
        let of = &mut self.rows[row];
        of.reserved = of.reserved.plus(reservation.amount);
        self.made.push((row, reservation.id));
        of.open.push(reservation);
        of.open.sort_by_key(|reservation| *reservation.id.as_bytes());
    }

    /// Whether there is something to settle.
    fn settle(&mut self, row: usize, id: MessageId, settlement: Settlement) -> bool {
        let of = &mut self.rows[row];
        let Some(at) = of.open.iter().position(|open| open.id == id) else { return false };
        let reserved = of.open.remove(at).amount;
        of.reserved = of.reserved.minus(reserved);
        let (used, estimated) = match settlement {
            Settlement::Used { amount, estimated } => (amount, estimated),
            Settlement::Unknown => (reserved, true),
            Settlement::Released => return true,
        };
        of.used = of.used.plus(used.min(reserved));
        of.over = of.over.plus(used.minus(reserved));
        of.settled += 1;
        of.estimated += u64::from(estimated);
        self.sums[row] = self.sums[row].plus(used);
        true
    }
}

pub(crate) async fn random_interleavings_keep_the_invariants(f: &mut impl Fixture) {
    let mut runner = TestRunner::default();
    let histories = prop::collection::vec(step(), 1..30);
    for case in 0..8 {
        let history = histories.new_tree(&mut runner).expect("the strategy rejects nothing").current();
        let keys: Vec<_> = (0..3).map(|n| key(20_000 + case, &format!("user:{n}"))).collect();
        let rows = keys.iter().cloned().map(BudgetRow::new).collect();
        let mut model = Model { rows, ..Model::default() };
        for (n, step) in history.iter().enumerate() {
            take(f, step, &keys, &mut model, &format!("step {n} of {history:#?}")).await;
        }
        for (row, key) in keys.iter().enumerate() {
            let stored = f.budgets().budget(key).await.unwrap().unwrap_or_else(|| BudgetRow::new(key.clone()));
            assert_eq!(stored, model.rows[row], "{history:#?}");
            assert_eq!(stored.total(), model.sums[row], "the sum of its settlements: {history:#?}");
            assert!(stored.used.plus(stored.reserved).fits(LIMIT), "{stored:?} of {history:#?}");
        }
    }
}

async fn take(f: &mut impl Fixture, step: &Step, keys: &[BudgetKey], model: &mut Model, context: &str) {
    let store = f.budgets();
    match step {
        Step::Reserve { row, tokens, cost } => {
            let reservation = reservation(*tokens, *cost);
            let fits = model.rows[*row].taken().plus(reservation.amount).fits(LIMIT);
            let reserved = store.reserve_budget(&keys[*row], reservation.clone(), LIMIT).await.unwrap();
            assert_eq!(reserved == Reserved::Done, fits, "{context}");
            if fits {
                model.reserved(*row, reservation);
            }
        }
        Step::Settle { at, settlement } => {
            let Some((row, id)) = model.made.get(*at).copied() else { return };
            let there = model.settle(row, id, *settlement);
            assert_eq!(store.settle_budget(&keys[row], id, *settlement).await.unwrap(), there, "{context}");
        }
        Step::Race { row, tokens } => {
            let racing: Vec<_> = tokens.iter().map(|tokens| reservation(*tokens, 1)).collect();
            let calls = racing.iter().map(|one| store.reserve_budget(&keys[*row], one.clone(), LIMIT));
            for (reservation, reserved) in racing.iter().zip(join_all(calls).await) {
                if reserved.unwrap() == Reserved::Done {
                    model.reserved(*row, reservation.clone());
                }
            }
            assert!(model.rows[*row].used.plus(model.rows[*row].reserved).fits(LIMIT), "{context}");
        }
        Step::Reopen => {
            drop(store);
            f.reopen().await;
        }
    }
}

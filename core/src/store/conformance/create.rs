//! Making sessions: slots under races, idempotent calls.

use super::*;
use crate::store::StoreErrorKind;

pub(crate) async fn a_new_session_is_read_back_as_it_was_made(f: &mut impl Fixture) {
    let store = f.store();
    let mut new = new_session("alice", SlotRule::First);
    new.derived = Derived { unfinished: true, ..derived(0, 77) };
    let Created::New(header) = store.create_session(new.clone()).await.unwrap() else { panic!("not new") };
    let expected = Header {
        id: new.id,
        owner: new.owner,
        slot: Some(0),
        wrapped_key: new.wrapped_key,
        created_at: new.created_at,
        derived: new.derived,
    };
    assert_eq!(header, expected);
    assert_eq!(store.session(new.id).await.unwrap(), Some(expected));
    assert_eq!(store.session(SessionId::generate()).await.unwrap(), None);
}

async fn race_for(store: &Arc<dyn SessionStore>, slot: SlotRule) -> (Vec<Header>, Vec<Header>) {
    let calls = (0..50).map(|_| {
        let store = Arc::clone(store);
        async move { store.create_session(new_session("alice", slot)).await.unwrap() }
    });
    let (mut new, mut taken) = (Vec::new(), Vec::new());
    for created in race(calls).await {
        match created {
            Created::New(header) => new.push(header),
            Created::SlotTaken(header) => taken.push(header),
            other @ (Created::Repeated(_) | Created::RequestReused) => panic!("{other:?}"),
        }
    }
    (new, taken)
}

pub(crate) async fn of_fifty_racing_first_opens_one_makes_the_session(f: &mut impl Fixture) {
    let (new, taken) = race_for(&f.store(), SlotRule::First).await;
    assert_eq!((new.len(), taken.len()), (1, 49));
    assert_eq!(new[0].slot, Some(0));
    assert!(taken.iter().all(|header| header == &new[0]), "all meet at the one session");
}

pub(crate) async fn no_more_sessions_than_slots_are_made_in_a_race(f: &mut impl Fixture) {
    let (new, taken) = race_for(&f.store(), SlotRule::AnyOf(3)).await;
    let mut slots: Vec<_> = new.iter().map(|header| header.slot.unwrap()).collect();
    slots.sort_unstable();
    assert_eq!(slots, [0, 1, 2]);
    let lowest = new.iter().find(|header| header.slot == Some(0)).unwrap();
    assert_eq!(taken.len(), 47);
    assert!(taken.iter().all(|header| header.id == lowest.id));
}

async fn create(store: &Arc<dyn SessionStore>, slot: SlotRule) -> Created {
    store.create_session(new_session("alice", slot)).await.unwrap()
}

async fn end(store: &Arc<dyn SessionStore>, id: SessionId) {
    let head = store.head(id).await.unwrap();
    let mut append = entries(id, head, 1);
    append.ends_session = true;
    append.derived.ended = true;
    done(store, append).await;
}

fn slot_of(created: &Created) -> Option<u32> {
    match created {
        Created::New(header) => header.slot,
        other @ (Created::SlotTaken(_) | Created::Repeated(_) | Created::RequestReused) => panic!("{other:?}"),
    }
}

fn id_of(created: &Created) -> SessionId {
    match created {
        Created::New(header) | Created::SlotTaken(header) | Created::Repeated(header) => header.id,
        Created::RequestReused => panic!("request reused"),
    }
}

pub(crate) async fn the_lowest_free_slot_is_taken(f: &mut impl Fixture) {
    let store = f.store();
    let mut made = Vec::new();
    for slot in 0..4 {
        let created = create(&store, SlotRule::AnyOf(4)).await;
        assert_eq!(slot_of(&created), Some(slot));
        made.push(id_of(&created));
    }
    end(&store, made[1]).await;
    end(&store, made[3]).await;
    assert_eq!(slot_of(&create(&store, SlotRule::AnyOf(4)).await), Some(1));
    // A smaller limit than before counts only its own slots.
    assert_eq!(id_of(&create(&store, SlotRule::AnyOf(2)).await), made[0]);
    end(&store, made[0]).await;
    assert_eq!(slot_of(&create(&store, SlotRule::First).await), Some(0));
}

pub(crate) async fn without_a_limit_every_call_makes_a_session(f: &mut impl Fixture) {
    let store = f.store();
    create(&store, SlotRule::First).await;
    for _ in 0..5 {
        assert_eq!(slot_of(&create(&store, SlotRule::Unlimited).await), None);
    }
    assert!(matches!(create(&store, SlotRule::First).await, Created::SlotTaken(_)), "and takes no slot of others");
}

pub(crate) async fn owners_do_not_share_slots(f: &mut impl Fixture) {
    let store = f.store();
    for owner in ["alice", "alic", "Alice", "alice ", "älice"] {
        let created = store.create_session(new_session(owner, SlotRule::First)).await.unwrap();
        assert_eq!(slot_of(&created), Some(0), "{owner:?}");
    }
}

fn call(owner: &str, slot: SlotRule, id: u32, content: u32) -> NewSession {
    NewSession { request: Some(RequestKey { id: hash(id), content: hash(content) }), ..new_session(owner, slot) }
}

pub(crate) async fn a_repeated_call_finds_the_session_it_made(f: &mut impl Fixture) {
    let store = f.store();
    let first = store.create_session(call("alice", SlotRule::Unlimited, 1, 1)).await.unwrap();
    done(&store, entries(id_of(&first), 0, 1)).await;
    let again = store.create_session(call("alice", SlotRule::Unlimited, 1, 1)).await.unwrap();
    let Created::Repeated(header) = again else { panic!("{again:?}") };
    assert_eq!(Some(header), store.session(id_of(&first)).await.unwrap(), "as it is now");
    let other = store.create_session(call("alice", SlotRule::Unlimited, 2, 1)).await.unwrap();
    assert_ne!(id_of(&other), id_of(&first));
}

pub(crate) async fn a_repeated_call_is_recognised_before_slots_are_looked_at(f: &mut impl Fixture) {
    let store = f.store();
    let first = store.create_session(call("alice", SlotRule::First, 1, 1)).await.unwrap();
    let again = store.create_session(call("alice", SlotRule::First, 1, 1)).await.unwrap();
    assert!(matches!(&again, Created::Repeated(header) if header.id == id_of(&first)), "{again:?}");
    end(&store, id_of(&first)).await;
    let after_the_end = store.create_session(call("alice", SlotRule::First, 1, 1)).await.unwrap();
    assert!(matches!(&after_the_end, Created::Repeated(header) if header.id == id_of(&first)), "{after_the_end:?}");
}

pub(crate) async fn of_fifty_racing_equal_calls_one_makes_the_session(f: &mut impl Fixture) {
    let store = f.store();
    let calls = (0..50).map(|_| {
        let store = Arc::clone(&store);
        async move { store.create_session(call("alice", SlotRule::Unlimited, 1, 1)).await.unwrap() }
    });
    let created = race(calls).await;
    let new = created.iter().filter(|created| matches!(created, Created::New(_))).count();
    let repeated = created.iter().filter(|created| matches!(created, Created::Repeated(_))).count();
    assert_eq!((new, repeated), (1, 49));
    assert!(created.iter().all(|one| id_of(one) == id_of(&created[0])));
}

pub(crate) async fn a_request_id_with_other_content_is_reused(f: &mut impl Fixture) {
    let store = f.store();
    store.create_session(call("alice", SlotRule::Unlimited, 1, 1)).await.unwrap();
    let reused = store.create_session(call("alice", SlotRule::Unlimited, 1, 2)).await.unwrap();
    assert!(matches!(reused, Created::RequestReused), "{reused:?}");
}

pub(crate) async fn request_ids_belong_to_their_owner(f: &mut impl Fixture) {
    let store = f.store();
    store.create_session(call("alice", SlotRule::First, 1, 1)).await.unwrap();
    let other = store.create_session(call("bob", SlotRule::First, 1, 2)).await.unwrap();
    assert!(matches!(other, Created::New(_)), "{other:?}");
}

pub(crate) async fn an_id_that_exists_is_an_internal_error(f: &mut impl Fixture) {
    let store = f.store();
    let new = new_session("alice", SlotRule::Unlimited);
    store.create_session(new.clone()).await.unwrap();
    let error = store.create_session(NewSession { owner: "bob".to_owned(), ..new.clone() }).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Internal);
    assert_eq!(store.session(new.id).await.unwrap().unwrap().owner, "alice");
}

pub(crate) async fn ending_frees_the_slot(f: &mut impl Fixture) {
    let store = f.store();
    let first = id_of(&create(&store, SlotRule::First).await);
    end(&store, first).await;
    assert_eq!(store.session(first).await.unwrap().unwrap().slot, None);
    let second = create(&store, SlotRule::First).await;
    assert_eq!(slot_of(&second), Some(0));
    // A conflicting end frees nothing.
    let mut late = entries(id_of(&second), 7, 1);
    late.ends_session = true;
    assert_eq!(store.append(late).await.unwrap(), Appended::Conflict);
    assert!(matches!(create(&store, SlotRule::First).await, Created::SlotTaken(_)));
}

/// The append that brings an ended session back.
fn comeback(id: SessionId, head: Seq, rule: SlotRule) -> Append {
    Append { takes_slot: Some(rule), ..entries(id, head, 1) }
}

async fn slot_now(store: &Arc<dyn SessionStore>, id: SessionId) -> Option<u32> {
    store.session(id).await.unwrap().unwrap().slot
}

pub(crate) async fn a_session_comes_back_into_a_free_slot_or_not_at_all(f: &mut impl Fixture) {
    let store = f.store();
    let first = id_of(&create(&store, SlotRule::AnyOf(2)).await);
    end(&store, first).await;
    let second = id_of(&create(&store, SlotRule::First).await);
    assert_eq!(store.append(comeback(first, 1, SlotRule::First)).await.unwrap(), Appended::NoSlot);
    assert_eq!(store.head(first).await.unwrap(), 1, "nothing was written");
    assert_eq!(slot_now(&store, first).await, None);
    assert_eq!(store.append(comeback(first, 1, SlotRule::AnyOf(2))).await.unwrap(), Appended::Done(2));
    assert_eq!(slot_now(&store, first).await, Some(1));
    assert!(matches!(create(&store, SlotRule::AnyOf(2)).await, Created::SlotTaken(_)));
    // It ends a second time and comes back a second time, now into the other slot.
    end(&store, second).await;
    end(&store, first).await;
    assert_eq!(slot_now(&store, first).await, None);
    assert_eq!(store.append(comeback(first, 3, SlotRule::First)).await.unwrap(), Appended::Done(4));
    assert_eq!(slot_now(&store, first).await, Some(0));
    drop(store);
    f.reopen().await;
    let store = f.store();
    assert_eq!(slot_now(&store, first).await, Some(0));
    assert!(matches!(create(&store, SlotRule::First).await, Created::SlotTaken(_)));
    // Where the number is not limited, there is nothing to take.
    assert_eq!(store.append(comeback(second, 1, SlotRule::Unlimited)).await.unwrap(), Appended::Done(2));
    assert_eq!(slot_now(&store, second).await, None);
}

pub(crate) async fn a_return_that_loses_its_place_leaves_no_slot_taken(f: &mut impl Fixture) {
    let store = f.store();
    let first = id_of(&create(&store, SlotRule::First).await);
    end(&store, first).await;
    // Renamed meanwhile, say.
    done(&store, entries(first, 1, 1)).await;
    assert_eq!(store.append(comeback(first, 1, SlotRule::First)).await.unwrap(), Appended::Conflict);
    assert_eq!(slot_now(&store, first).await, None);
    assert!(matches!(create(&store, SlotRule::First).await, Created::New(_)));
    assert_eq!(store.append(comeback(first, 2, SlotRule::First)).await.unwrap(), Appended::NoSlot);
}

pub(crate) async fn of_racing_returns_and_new_sessions_no_more_than_slots_are_active(f: &mut impl Fixture) {
    const SLOTS: u32 = 3;
    let store = f.store();
    let mut ended = Vec::new();
    for _ in 0..10 {
        let id = id_of(&create(&store, SlotRule::First).await);
        end(&store, id).await;
        ended.push(id);
    }
    let racing = race((0..30).map(|n: usize| {
        let (store, back) = (store.clone(), ended[n % 10]);
        async move {
            if n < 20 {
                // Each of them twice at the same time: by two cores.
                let verdict = store.append(comeback(back, 1, SlotRule::AnyOf(SLOTS))).await.unwrap();
                u32::from(verdict == Appended::Done(2))
            } else {
                u32::from(matches!(create(&store, SlotRule::AnyOf(SLOTS)).await, Created::New(_)))
            }
        }
    }));
    assert_eq!(racing.await.into_iter().sum::<u32>(), SLOTS);
    assert!(matches!(create(&store, SlotRule::AnyOf(SLOTS)).await, Created::SlotTaken(_)));
}

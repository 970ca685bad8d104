//! Lists: their order, their pages, their filters.

use super::*;
use crate::store::SessionQuery;

fn query(owner: &str, limit: u32) -> SessionQuery {
    SessionQuery { owner: owner.to_owned(), ended: None, after: None, limit }
}

/// A session with this activity, ended or not.
async fn session(store: &Arc<dyn SessionStore>, owner: &str, activity: i64, ended: bool) -> SessionId {
    let new =
        NewSession { derived: Derived { ended, ..derived(0, activity) }, ..new_session(owner, SlotRule::Unlimited) };
    let id = new.id;
    store.create_session(new).await.unwrap();
    id
}

/// Three activities shared by many, some ended, and somebody else's sessions in between; in the order of the list.
async fn seeded(store: &Arc<dyn SessionStore>) -> Vec<(SessionId, i64, bool)> {
    let mut seeded = Vec::new();
    for n in 0..30_i64 {
        let (activity, ended) = (1000 + n % 3, n % 4 == 0);
        seeded.push((session(store, "alice", activity, ended).await, activity, ended));
        session(store, "bob", activity, ended).await;
    }
    seeded.sort_by_key(|(id, activity, _)| std::cmp::Reverse((*activity, *id)));
    seeded
}

fn ids(headers: &[Header]) -> Vec<SessionId> {
    headers.iter().map(|header| header.id).collect()
}

async fn page_through(store: &Arc<dyn SessionStore>, mut query: SessionQuery) -> Vec<SessionId> {
    let mut all = Vec::new();
    loop {
        let page = store.list_sessions(query.clone()).await.unwrap();
        assert!(page.len() <= query.limit as usize);
        all.extend(ids(&page));
        match page.last() {
            Some(last) => query.after = Some((last.derived.last_activity, last.id)),
            None => return all,
        }
    }
}

pub(crate) async fn the_order_is_by_activity_with_larger_ids_first(f: &mut impl Fixture) {
    let store = f.store();
    let expected: Vec<_> = seeded(&store).await.into_iter().map(|(id, ..)| id).collect();
    let headers = store.list_sessions(query("alice", 1000)).await.unwrap();
    assert_eq!(ids(&headers), expected);
    assert!(headers.iter().all(|header| header.owner == "alice" && header.wrapped_key == b"wrapped"));
    assert_eq!(store.list_sessions(query("nobody", 1000)).await.unwrap(), []);
}

pub(crate) async fn pages_neither_overlap_nor_skip(f: &mut impl Fixture) {
    let store = f.store();
    let expected: Vec<_> = seeded(&store).await.into_iter().map(|(id, ..)| id).collect();
    for limit in [1, 2, 7, 29, 30, 31] {
        assert_eq!(page_through(&store, query("alice", limit)).await, expected, "pages of {limit}");
    }
}

pub(crate) async fn a_session_that_does_not_change_is_on_exactly_one_page(f: &mut impl Fixture) {
    let store = f.store();
    let seeded = seeded(&store).await;
    let mut query = query("alice", 4);
    let mut seen = Vec::new();
    let mut touched = Vec::new();
    for round in 0.. {
        let page = store.list_sessions(query.clone()).await.unwrap();
        let Some(last) = page.last() else { break };
        query.after = Some((last.derived.last_activity, last.id));
        seen.extend(ids(&page));
        // Meanwhile one comes, one is written to, and one ends.
        session(&store, "alice", 9000 + round, false).await;
        let (first, second) = (seeded[(round as usize * 5 + 3) % 30].0, seeded[(round as usize * 5 + 4) % 30].0);
        touch(&store, first, 9000 + round, false).await;
        touch(&store, second, 9000 + round, true).await;
        touched.extend([first, second]);
    }
    for (id, ..) in seeded.iter().filter(|(id, ..)| !touched.contains(id)) {
        assert_eq!(seen.iter().filter(|seen| *seen == id).count(), 1);
    }
    assert!(touched.len() < 30, "some did not change");
}

async fn touch(store: &Arc<dyn SessionStore>, id: SessionId, activity: i64, ended: bool) {
    let head = store.head(id).await.unwrap();
    let mut append = entries(id, head, 1);
    append.derived = Derived { ended, ..derived(head + 1, activity) };
    done(store, append).await;
}

pub(crate) async fn the_ended_filter_splits_the_list(f: &mut impl Fixture) {
    let store = f.store();
    let seeded = seeded(&store).await;
    for wanted in [true, false] {
        let expected: Vec<_> = seeded.iter().filter(|(.., ended)| *ended == wanted).map(|(id, ..)| *id).collect();
        for limit in [3, 1000] {
            let query = SessionQuery { ended: Some(wanted), ..query("alice", limit) };
            assert_eq!(page_through(&store, query).await, expected, "ended {wanted}, pages of {limit}");
        }
    }
}

pub(crate) async fn the_active_session_is_the_latest_that_has_not_ended(f: &mut impl Fixture) {
    let store = f.store();
    assert_eq!(store.active_session("alice").await.unwrap(), None);
    session(&store, "alice", 5, true).await;
    session(&store, "bob", 9, false).await;
    assert_eq!(store.active_session("alice").await.unwrap(), None);
    let older = session(&store, "alice", 1, false).await;
    let one = session(&store, "alice", 2, false).await;
    let two = session(&store, "alice", 2, false).await;
    assert_eq!(store.active_session("alice").await.unwrap().unwrap().id, one.max(two));
    touch(&store, older, 3, false).await;
    assert_eq!(store.active_session("alice").await.unwrap().unwrap().id, older);
    touch(&store, older, 4, true).await;
    assert_eq!(store.active_session("alice").await.unwrap().unwrap().id, one.max(two));
}

pub(crate) async fn unfinished_sessions_come_page_by_page_in_the_order_of_ids(f: &mut impl Fixture) {
    let store = f.store();
    let mut unfinished = Vec::new();
    for n in 0..20 {
        let header = made(&store, "alice").await;
        if n % 3 == 0 {
            continue;
        }
        let mut append = entries(header.id, 0, 1);
        append.derived.unfinished = true;
        done(&store, append).await;
        unfinished.push(header.id);
    }
    // One of them finishes.
    let finished = unfinished.remove(4);
    assert!(store.replace_derived(finished, 1, derived(1, 1)).await.unwrap());
    unfinished.sort_unstable();
    for limit in [1, 5, 100] {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = store.unfinished_sessions(after, limit).await.unwrap();
            assert!(page.len() <= limit as usize);
            let Some(last) = page.last() else { break };
            after = Some(last.0);
            all.extend(page.into_iter().map(|(id, _)| id));
        }
        assert_eq!(all, unfinished, "pages of {limit}");
    }
}

pub(crate) async fn unfinished_sessions_tell_how_far_they_are(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    for (head, count) in [(0, 2), (2, 3)] {
        let mut append = entries(id, head, count);
        append.derived.unfinished = true;
        let head = done(&store, append).await;
        assert_eq!(store.unfinished_sessions(None, 10).await.unwrap(), [(id, head)]);
    }
    assert_eq!(store.unfinished_sessions(Some(id), 10).await.unwrap(), []);
}

pub(crate) async fn active_sessions_come_page_by_page_and_tell_how_long_they_stand_still(f: &mut impl Fixture) {
    let store = f.store();
    let mut active = Vec::new();
    for owner in ["alice", "bob", "carol"] {
        for _ in 0..3 {
            active.push(made(&store, owner).await.id);
        }
        let ended = made(&store, owner).await.id;
        let mut append = entries(ended, 0, 1);
        (append.ends_session, append.derived.ended) = (true, true);
        done(&store, append).await;
    }
    active.sort();
    // What a core's clock says about the last activity does not matter: this is the store's.
    let pause = std::time::Duration::from_millis(300);
    tokio::time::sleep(pause).await;
    done(&store, entries(active[4], 0, 2)).await;
    let (mut walked, mut after) = (Vec::new(), None);
    loop {
        let page = store.active_sessions(after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        walked.extend(page);
    }
    assert_eq!(walked.iter().map(|session| session.id).collect::<Vec<_>>(), active);
    let moved = walked[4];
    assert_eq!(moved.applied_seq, 2);
    for session in walked.iter().filter(|session| session.id != moved.id) {
        // A second is how exact a new session's time is.
        assert!(session.still_for + std::time::Duration::from_secs(1) >= pause, "{session:?}");
        assert!(session.still_for < std::time::Duration::from_secs(600) && session.applied_seq == 0, "{session:?}");
    }
    assert!(moved.still_for <= walked[0].still_for, "{moved:?}, {:?}", walked[0]);
}

use chatbox_proto::ids::ShareId;

use super::*;
use crate::store::{RequestKey, Share, ShareCreated, ShareRevoked};

const LIMIT: u32 = 1_000;

fn share(session_id: SessionId) -> Share {
    Share {
        id: ShareId::generate(),
        session_id,
        secret_hash: hash(7),
        snapshot: Some(3),
        created_at: time(1_000),
        expires_at: Some(time(2_000)),
        revoked: false,
    }
}

async fn made_share(store: &Arc<dyn ShareStore>, session_id: SessionId) -> Share {
    let share = share(session_id);
    assert_eq!(store.create_share(share.clone(), None, LIMIT).await.unwrap(), ShareCreated::New);
    share
}

fn call(id: u32, content: u32) -> Option<RequestKey> {
    Some(RequestKey { id: hash(id), content: hash(content) })
}

pub(crate) async fn a_share_is_read_back_as_it_was_made(f: &mut impl Fixture) {
    let session = SessionId::generate();
    let plain = Share { snapshot: None, expires_at: None, ..share(session) };
    let store = f.shares();
    let full = made_share(&store, session).await;
    store.create_share(plain.clone(), None, LIMIT).await.unwrap();
    let twice = store.create_share(full.clone(), None, LIMIT).await.unwrap_err();
    assert_eq!(twice.kind(), crate::store::StoreErrorKind::Internal);
    drop(store);
    f.reopen().await;
    assert_eq!(f.shares().share(full.id).await.unwrap(), Some(full));
    assert_eq!(f.shares().share(plain.id).await.unwrap(), Some(plain));
    assert_eq!(f.shares().share(ShareId::generate()).await.unwrap(), None);
}

pub(crate) async fn shares_of_a_session_come_newest_first_page_by_page(f: &mut impl Fixture) {
    let (store, session) = (f.shares(), SessionId::generate());
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(made_share(&store, session).await);
        made_share(&store, SessionId::generate()).await;
    }
    made.sort_by_key(|share| std::cmp::Reverse(share.id));
    let (mut listed, mut before) = (Vec::new(), None);
    loop {
        let page = store.shares(session, before, 3).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        listed.extend(page);
    }
    assert_eq!(listed, made);
}

pub(crate) async fn a_share_is_revoked_once_and_only_through_its_session(f: &mut impl Fixture) {
    let (store, session) = (f.shares(), SessionId::generate());
    let share = made_share(&store, session).await;
    let other = store.revoke_share(SessionId::generate(), share.id).await.unwrap();
    assert_eq!(other, ShareRevoked::Unknown);
    assert_eq!(store.share(share.id).await.unwrap(), Some(share.clone()));
    let racing = race((0..8).map(|_| {
        let (store, id) = (store.clone(), share.id);
        async move { store.revoke_share(session, id).await.unwrap() }
    }));
    let revoked = Share { revoked: true, ..share };
    let verdicts = racing.await;
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == ShareRevoked::Now(revoked.clone())).count(), 1);
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == ShareRevoked::Before(revoked.clone())).count(), 7);
    assert_eq!(store.share(revoked.id).await.unwrap(), Some(revoked));
}

pub(crate) async fn a_repeated_call_finds_the_share_it_made(f: &mut impl Fixture) {
    let (store, session) = (f.shares(), SessionId::generate());
    let racing = race((0..20).map(|_| {
        let store = store.clone();
        async move {
            let share = share(session);
            (share.id, store.create_share(share, call(1, 1), LIMIT).await.unwrap())
        }
    }));
    let verdicts = racing.await;
    let made: Vec<_> = verdicts.iter().filter(|(_, verdict)| *verdict == ShareCreated::New).collect();
    assert_eq!(made.len(), 1);
    for (_, verdict) in &verdicts {
        match verdict {
            ShareCreated::New => {}
            ShareCreated::Repeated(earlier) => assert_eq!(earlier.id, made[0].0),
            other @ (ShareCreated::RequestReused | ShareCreated::TooMany) => panic!("{other:?}"),
        }
    }
    assert_eq!(store.create_share(share(session), call(1, 2), LIMIT).await.unwrap(), ShareCreated::RequestReused);
    let elsewhere = share(SessionId::generate());
    assert_eq!(store.create_share(elsewhere, call(1, 2), LIMIT).await.unwrap(), ShareCreated::New);
}

pub(crate) async fn a_session_has_no_more_working_shares_than_the_limit(f: &mut impl Fixture) {
    let (store, session) = (f.shares(), SessionId::generate());
    let first = share(session);
    assert_eq!(store.create_share(first.clone(), call(1, 1), 2).await.unwrap(), ShareCreated::New);
    assert_eq!(store.create_share(share(session), None, 2).await.unwrap(), ShareCreated::New);
    assert_eq!(store.create_share(share(session), None, 2).await.unwrap(), ShareCreated::TooMany);
    let repeated = store.create_share(share(session), call(1, 1), 2).await.unwrap();
    assert_eq!(repeated, ShareCreated::Repeated(first.clone()), "looked up before the limit");
    store.revoke_share(session, first.id).await.unwrap();
    assert_eq!(store.create_share(share(session), None, 2).await.unwrap(), ShareCreated::New);
}

pub(crate) async fn the_shares_of_a_session_are_removed_together(f: &mut impl Fixture) {
    let (store, session) = (f.shares(), SessionId::generate());
    let other = made_share(&store, SessionId::generate()).await;
    for _ in 0..3 {
        made_share(&store, session).await;
    }
    assert_eq!(store.remove_shares(session).await.unwrap(), 3);
    assert_eq!(store.remove_shares(session).await.unwrap(), 0);
    assert_eq!(store.shares(session, None, 10).await.unwrap(), []);
    assert_eq!(store.share(other.id).await.unwrap(), Some(other));
}

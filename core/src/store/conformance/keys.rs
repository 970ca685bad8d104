//! Wrapped data keys: replaced, destroyed, walked through.

use super::*;

async fn key(store: &Arc<dyn SessionStore>, id: SessionId) -> Vec<u8> {
    store.session(id).await.unwrap().unwrap().wrapped_key
}

pub(crate) async fn a_wrapped_key_is_replaced_by_compare_and_set(f: &mut impl Fixture) {
    let store = f.store();
    let (id, other) = (made(&store, "alice").await.id, made(&store, "alice").await.id);
    for wrong in [&b"wrappe"[..], b"wrapped ", b""] {
        assert!(!store.replace_wrapped_key(id, wrong.to_vec(), b"new".to_vec()).await.unwrap());
    }
    assert_eq!(key(&store, id).await, b"wrapped");
    assert!(store.replace_wrapped_key(id, b"wrapped".to_vec(), b"new".to_vec()).await.unwrap());
    assert!(!store.replace_wrapped_key(id, b"wrapped".to_vec(), b"again".to_vec()).await.unwrap());
    // Appends leave it alone.
    done(&store, entries(id, 0, 1)).await;
    f.reopen().await;
    let store = f.store();
    assert_eq!((key(&store, id).await, key(&store, other).await), (b"new".to_vec(), b"wrapped".to_vec()));
    let unknown = SessionId::generate();
    assert!(!store.replace_wrapped_key(unknown, b"wrapped".to_vec(), b"new".to_vec()).await.unwrap());
    assert_eq!(store.session(unknown).await.unwrap(), None);
}

pub(crate) async fn a_destroyed_key_stays_destroyed(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    assert!(!store.replace_wrapped_key(id, b"wrapped".to_vec(), Vec::new()).await.unwrap(), "not this way");
    assert!(store.erase_session(id, 0).await.unwrap());
    for expected in [&b"wrapped"[..], b""] {
        assert!(!store.replace_wrapped_key(id, expected.to_vec(), b"back".to_vec()).await.unwrap());
    }
    assert_eq!(key(&store, id).await, b"");
    assert_eq!(store.wrapped_keys(None, 10).await.unwrap(), [(id, Vec::new())]);
}

pub(crate) async fn racing_replacements_of_a_key_have_one_winner(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let replacements = (0..30_u8).map(|n| {
        let store = Arc::clone(&store);
        async move { store.replace_wrapped_key(id, b"wrapped".to_vec(), vec![n]).await.unwrap().then_some(n) }
    });
    let winners: Vec<u8> = race(replacements).await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(key(&store, id).await, winners);
}

pub(crate) async fn all_wrapped_keys_come_page_by_page_in_the_order_of_ids(f: &mut impl Fixture) {
    let store = f.store();
    let mut keys = Vec::new();
    for n in 0..20_u8 {
        let new = NewSession { wrapped_key: vec![n; 3], ..new_session("alice", SlotRule::Unlimited) };
        keys.push((new.id, new.wrapped_key.clone()));
        store.create_session(new).await.unwrap();
    }
    keys.sort_unstable();
    for limit in [1, 7, 100] {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = store.wrapped_keys(after, limit).await.unwrap();
            assert!(page.len() <= limit as usize);
            let Some(last) = page.last() else { break };
            after = Some(last.0);
            all.extend(page);
        }
        assert_eq!(all, keys, "pages of {limit}");
    }
}

//! Rows of running replies, and the folded state that accompanies appends.

use super::*;

fn row(session_id: SessionId, started_seq: Seq) -> ReplyRow {
    ReplyRow {
        session_id,
        message_id: MessageId::generate(),
        started_seq,
        boot_id: hash(77),
        renewals: 0,
        checkpoint: Vec::new(),
    }
}

async fn start(store: &Arc<dyn SessionStore>, id: SessionId, head: Seq) -> ReplyRow {
    let row = row(id, head + 1);
    done(store, Append { reply_started: Some(row.clone()), ..entries(id, head, 1) }).await;
    row
}

pub(crate) async fn a_reply_row_lives_from_start_to_finish(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let other = made(&store, "alice").await.id;
    assert_eq!(store.reply_row(id).await.unwrap(), None);
    let row = start(&store, id, 0).await;
    let others = start(&store, other, 0).await;
    assert_eq!(store.reply_row(id).await.unwrap(), Some(row.clone()));
    assert!(store.renew_reply(row.message_id, row.boot_id, 0, b"so far".to_vec()).await.unwrap());
    let renewed = ReplyRow { renewals: 1, checkpoint: b"so far".to_vec(), ..row.clone() };
    assert_eq!(store.reply_row(id).await.unwrap(), Some(renewed.clone()));
    f.reopen().await;
    let store = f.store();
    assert_eq!(store.reply_row(id).await.unwrap(), Some(renewed));
    done(&store, Append { reply_finished: Some(row.message_id), ..entries(id, 1, 1) }).await;
    assert_eq!(store.reply_row(id).await.unwrap(), None);
    assert!(!store.renew_reply(row.message_id, row.boot_id, 1, Vec::new()).await.unwrap(), "it has ended");
    assert_eq!(store.reply_row(other).await.unwrap(), Some(others));
}

pub(crate) async fn renewing_is_compare_and_set(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let row = start(&store, id, 0).await;
    let text = |text: &str| text.as_bytes().to_vec();
    assert!(!store.renew_reply(row.message_id, hash(78), 0, text("foreign")).await.unwrap());
    assert!(!store.renew_reply(row.message_id, row.boot_id, 1, text("ahead")).await.unwrap());
    assert!(!store.renew_reply(MessageId::generate(), row.boot_id, 0, text("another")).await.unwrap());
    assert_eq!(store.reply_row(id).await.unwrap(), Some(row.clone()));
    for renewals in 0..3 {
        assert!(store.renew_reply(row.message_id, row.boot_id, renewals, text("next")).await.unwrap());
        assert!(!store.renew_reply(row.message_id, row.boot_id, renewals, text("again")).await.unwrap());
    }
    let stored = store.reply_row(id).await.unwrap().unwrap();
    assert_eq!((stored.renewals, stored.checkpoint), (3, text("next")));
}

pub(crate) async fn the_latest_reply_row_is_given(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let first = start(&store, id, 0).await;
    let second = start(&store, id, 1).await;
    assert_eq!(store.reply_row(id).await.unwrap(), Some(second.clone()));
    done(&store, Append { reply_finished: Some(second.message_id), ..entries(id, 2, 1) }).await;
    assert_eq!(store.reply_row(id).await.unwrap(), Some(first));
}

pub(crate) async fn finishing_and_starting_in_one_append_swaps_the_rows(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let first = start(&store, id, 0).await;
    let second = row(id, 3);
    let append =
        Append { reply_finished: Some(first.message_id), reply_started: Some(second.clone()), ..entries(id, 1, 2) };
    done(&store, append).await;
    assert_eq!(store.reply_row(id).await.unwrap(), Some(second));
    assert!(!store.renew_reply(first.message_id, first.boot_id, 0, Vec::new()).await.unwrap());
}

pub(crate) async fn a_conflicting_append_leaves_the_rows_alone(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let first = start(&store, id, 0).await;
    let header = store.session(id).await.unwrap();
    let late = Append {
        reply_finished: Some(first.message_id),
        reply_started: Some(row(id, 1)),
        derived: derived(50, 50),
        ..entries(id, 0, 1)
    };
    assert_eq!(store.append(late).await.unwrap(), Appended::Conflict);
    assert_eq!(store.reply_row(id).await.unwrap(), Some(first));
    assert_eq!(store.session(id).await.unwrap(), header);
}

pub(crate) async fn the_folded_state_only_moves_forward(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    done(&store, entries(id, 0, 2)).await;
    assert_eq!(store.session(id).await.unwrap().unwrap().derived, derived(2, 1002));
    // An append whose folded state is older than what is stored, as after a repair by somebody else.
    let newer = Derived { unfinished: true, ended: true, ..derived(9, 9000) };
    assert!(store.replace_derived(id, 2, newer.clone()).await.unwrap());
    done(&store, entries(id, 2, 1)).await;
    assert_eq!(store.session(id).await.unwrap().unwrap().derived, newer);
}

pub(crate) async fn replacing_the_folded_state_is_compare_and_set(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    done(&store, entries(id, 0, 5)).await;
    let before = store.session(id).await.unwrap();
    for (expected, new) in [(4, 6), (6, 7), (0, 9), (u64::MAX, 9), (5, 4), (5, 0)] {
        assert!(!store.replace_derived(id, expected, derived(new, 1)).await.unwrap(), "{expected} -> {new}");
    }
    assert_eq!(store.session(id).await.unwrap(), before);
    let repaired = Derived { state: b"repaired".to_vec(), ended: true, unfinished: true, ..derived(5, 5) };
    assert!(store.replace_derived(id, 5, repaired.clone()).await.unwrap(), "the same number is not smaller");
    assert_eq!(store.session(id).await.unwrap().unwrap().derived, repaired);
    assert!(store.replace_derived(id, 5, derived(8, 8)).await.unwrap());
    assert_eq!(store.session(id).await.unwrap().unwrap().derived, derived(8, 8));
}

pub(crate) async fn racing_replacements_have_one_winner(f: &mut impl Fixture) {
    let store = f.store();
    let id = made(&store, "alice").await.id;
    let replacements = (1..=30).map(|n| {
        let store = Arc::clone(&store);
        async move { store.replace_derived(id, 0, derived(n, 1)).await.unwrap().then_some(n) }
    });
    let winners: Vec<_> = race(replacements).await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(store.session(id).await.unwrap().unwrap().derived.applied_seq, winners[0]);
}

pub(crate) async fn all_running_replies_come_page_by_page_in_the_order_of_ids(f: &mut impl Fixture) {
    let store = f.store();
    let mut leases = Vec::new();
    for _ in 0..12 {
        let id = made(&store, "alice").await.id;
        let ReplyRow { session_id, message_id, boot_id, renewals, .. } = start(&store, id, 0).await;
        leases.push(ReplyLease { session_id, message_id, boot_id, renewals });
    }
    // One is renewed, one ends.
    assert!(store.renew_reply(leases[3].message_id, leases[3].boot_id, 0, b"so far".to_vec()).await.unwrap());
    leases[3].renewals = 1;
    let ended = leases.remove(7);
    done(&store, Append { reply_finished: Some(ended.message_id), ..entries(ended.session_id, 1, 1) }).await;
    leases.sort_unstable_by_key(|lease| lease.message_id);
    for limit in [1, 5, 100] {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = store.reply_rows(after, limit).await.unwrap();
            assert!(page.len() <= limit as usize);
            let Some(last) = page.last() else { break };
            after = Some(last.message_id);
            all.extend(page);
        }
        assert_eq!(all, leases, "pages of {limit}");
    }
}

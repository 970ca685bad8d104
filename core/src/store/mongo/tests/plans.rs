//! No call walks a whole collection, and no list is sorted after it was read: what the server itself recorded.

use mongodb::bson::doc;

use super::*;
use crate::{
    domain::time::Timestamp,
    store::{
        Append, Appended, AuditQuery, AuditRow, AuditStore as _, BudgetStore, Derived, HandoffRow, HandoffStore as _,
        MessageKey, NewSession, ReplyRow, RequestKey, SessionQuery, SlotRule, Stage,
        budgets::{Amount, BudgetKey, Reservation, Settlement},
        outbox::{AlertRow, AlertState, Attempted, OutboxStore},
    },
};
use chatbox_proto::ids::MessageId;
use futures_util::TryStreamExt as _;

fn derived(applied_seq: u64) -> Derived {
    Derived {
        applied_seq,
        state: vec![1],
        last_activity: Timestamp::from_millis(5),
        ended: false,
        unfinished: applied_seq % 2 == 1,
    }
}

fn append(session_id: SessionId, expected_head: u64) -> Append {
    let message_id = MessageId::generate();
    let key = *message_id.as_bytes();
    Append {
        session_id,
        append_id: *MessageId::generate().as_bytes(),
        expected_head,
        count: 1,
        sealed: vec![2],
        messages: vec![MessageKey { key, content: key, message_id, seq: expected_head + 1 }],
        ends_session: expected_head == 9,
        takes_slot: None,
        derived: derived(expected_head + 1),
        reply_started: Some(ReplyRow {
            session_id,
            message_id,
            started_seq: expected_head + 1,
            boot_id: key,
            renewals: 0,
            checkpoint: Vec::new(),
        }),
        reply_finished: Some(MessageId::generate()),
    }
}

async fn session(store: &dyn SessionStore, slot: SlotRule) -> SessionId {
    let id = SessionId::generate();
    let request = RequestKey { id: *id.as_bytes(), content: [1; 16] };
    let new = NewSession {
        id,
        owner: "alice".to_owned(),
        slot,
        wrapped_key: vec![1],
        created_at: Timestamp::from_millis(5),
        request: Some(request),
        derived: derived(0),
    };
    store.create_session(new).await.unwrap();
    id
}

/// Every call, on a store in which a walk would be longer than what is looked for.
async fn everything(store: &dyn SessionStore) {
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(session(store, SlotRule::Unlimited).await);
    }
    ids.push(session(store, SlotRule::AnyOf(2)).await);
    session(store, SlotRule::First).await;
    for id in &ids {
        for head in 0..10 {
            let append = append(*id, head);
            let (message, append_id) = (append.messages[0].clone(), append.append_id);
            assert_eq!(store.append(append).await.unwrap(), Appended::Done(head + 1));
            store.renew_reply(message.message_id, message.key, 0, vec![1]).await.unwrap();
            if head == 5 {
                store.find_append(*id, append_id).await.unwrap().unwrap();
                store.find_append(*id, message.key).await.unwrap();
                store.find_message(*id, message.key).await.unwrap().unwrap();
            }
        }
    }
    let id = ids[7];
    let mut late = append(id, 10);
    late.messages = vec![MessageKey { key: [9; 16], ..late.messages[0].clone() }];
    late.expected_head = 4;
    assert_eq!(store.append(late).await.unwrap(), Appended::Conflict);
    store.head(id).await.unwrap();
    assert_eq!(store.heads(&ids).await.unwrap().len(), ids.len());
    store.read_after(id, 3, 4).await.unwrap();
    store.read_before(id, 8, 4).await.unwrap();
    store.session(id).await.unwrap();
    store.active_session("alice").await.unwrap();
    for ended in [None, Some(true), Some(false)] {
        for after in [None, Some((Timestamp::from_millis(5), id))] {
            store.list_sessions(SessionQuery { owner: "alice".to_owned(), ended, after, limit: 5 }).await.unwrap();
        }
    }
    store.replace_derived(id, 10, derived(10)).await.unwrap();
    for after in [None, Some(id)] {
        store.unfinished_sessions(after, 3).await.unwrap();
        store.wrapped_keys(after, 3).await.unwrap();
        store.reply_rows(after.map(|id| MessageId::from_bytes(*id.as_bytes())), 3).await.unwrap();
    }
    store.reply_row(id).await.unwrap();
    store.replace_wrapped_key(id, vec![1], vec![2]).await.unwrap();
    store.mark_read(id, "bob", 3).await.unwrap();
    store.mark_read(id, "bob", 5).await.unwrap();
    store.read_marks(id).await.unwrap();
    store.init_installation_value("a", vec![1]).await.unwrap();
    store.replace_installation_value("a", vec![1], vec![2]).await.unwrap();
    store.ping().await.unwrap();
    store.session(id).await.unwrap();
    store.remove_reply(append(id, 0).messages[0].message_id).await.unwrap();
    assert!(store.erase_session(id, 10).await.unwrap());
}

async fn all_of_the_outbox(store: &dyn OutboxStore) {
    let at = Timestamp::from_millis;
    for number in 0..60 {
        let row = AlertRow {
            id: [number; 16],
            channel: "mail".to_owned(),
            event: "provider_down".to_owned(),
            entry: None,
            detail: String::new(),
            created_at: at(i64::from(number)),
            due_at: at(i64::from(number)),
            attempts: 0,
            state: AlertState::Waiting,
            error: String::new(),
        };
        store.enqueue(row.clone()).await.unwrap();
        store.enqueue(row).await.unwrap();
    }
    for row in store.claim(at(20), at(90), 10).await.unwrap() {
        store.settle(row.id, 1, Attempted::Delivered).await.unwrap();
    }
    for state in [AlertState::Waiting, AlertState::Delivered] {
        store.alerts(state, None, 5).await.unwrap();
        store.alerts(state, Some((at(7), [7; 16])), 5).await.unwrap();
    }
    assert_eq!(store.prune_delivered(at(5), 3).await.unwrap(), 3);
}

/// The same for those who wait or are held, and for the audit trail.
async fn handoff_and_audit(store: &MongoStore) {
    let ids: Vec<SessionId> = (0..200).map(|_| SessionId::generate()).collect();
    for (mark, id) in (0..).zip(&ids) {
        let since = Timestamp::from_millis(i64::try_from(mark).unwrap_or(0));
        let stage = if mark % 2 == 0 { Stage::Held } else { Stage::Waiting { since } };
        store.put_handoff(HandoffRow { session_id: *id, stage, mark }).await.unwrap();
    }
    assert_eq!(store.waiting(5).await.unwrap().len(), 5);
    for after in [None, Some(ids[7])] {
        assert_eq!(store.handoffs(after, 5).await.unwrap().len(), 5);
    }
    store.handoff(ids[3]).await.unwrap().unwrap();
    assert!(store.remove_handoff(ids[3], 3).await.unwrap());
    for seq in 1..=200_u64 {
        let actor = format!("admin {}", seq % 50);
        let (action, session_id) = (format!("Call{}", seq % 20), Some(ids[usize::try_from(seq % 100).unwrap()]));
        let at = Timestamp::from_millis(i64::try_from(seq).unwrap_or(0));
        let row = AuditRow { seq, at, actor, action, session_id, sealed: vec![1], hash: [1; 32] };
        assert!(store.append_audit(row).await.unwrap());
    }
    let query = || AuditQuery { limit: 3, ..AuditQuery::default() };
    let actor = Some("admin 7".to_owned());
    for query in [
        query(),
        AuditQuery { before: Some(90), ..query() },
        AuditQuery { actor: actor.clone(), ..query() },
        AuditQuery { action: Some("Call3".to_owned()), before: Some(90), ..query() },
        AuditQuery { actor, action: Some("Call7".to_owned()), ..query() },
        AuditQuery { session_id: Some(ids[9]), ..query() },
    ] {
        assert!(!store.audit_before(query).await.unwrap().is_empty());
    }
    assert_eq!(store.audit_after(50, 5).await.unwrap().len(), 5);
}

/// Every call about budgets, among as many rows.
async fn all_of_budgets(store: &dyn BudgetStore) {
    let limit = Amount::new(10, 10);
    for day in 0..10 {
        for n in 0..5 {
            let key = BudgetKey { day, subject: format!("user:{n}") };
            let id = MessageId::generate();
            let reservation = Reservation { id, amount: limit, boot_id: [1; 16], session_id: None };
            store.reserve_budget(&key, reservation.clone(), limit).await.unwrap();
            store.reserve_budget(&key, Reservation { id: MessageId::generate(), ..reservation }, limit).await.unwrap();
            store.budget(&key).await.unwrap().unwrap();
            if n > 0 {
                store.settle_budget(&key, id, Settlement::Unknown).await.unwrap();
            }
        }
    }
    for after in [None, Some(BudgetKey { day: 4, subject: "user:2".to_owned() })] {
        assert!(!store.open_budgets(after, 3).await.unwrap().is_empty());
    }
    assert_eq!(store.drop_budgets(5, 10).await.unwrap(), 10);
}

/// What the server recorded that grows with the collection instead of with the answer.
async fn offences(database: &Database) -> Vec<String> {
    let ours = doc! { "ns": { "$regex": r"\.(sessions|log|replies|installation|outbox|handoffs|audit|budgets)$" } };
    let profile: Vec<Document> =
        database.collection("system.profile").find(ours).await.unwrap().try_collect().await.unwrap();
    assert!(profile.len() > 500, "the server recorded {} operations", profile.len());
    let mut found = Vec::new();
    for operation in profile {
        let number = |name| operation.get_i32(name).unwrap_or(0);
        let walked = operation.get_str("planSummary").is_ok_and(|plan| plan.contains("COLLSCAN"));
        let sorted = operation.get_bool("hasSortStage").unwrap_or(false);
        // Slots that are held and walks of a page are the longest answers here.
        let examined = number("keysExamined") > 60 || number("docsExamined") > 40;
        if walked || sorted || examined {
            found.push(format!(
                "{} {} {:?} keys {} documents {}: {:?}",
                operation.get_str("op").unwrap_or_default(),
                operation.get_str("ns").unwrap_or_default(),
                operation.get_str("planSummary"),
                number("keysExamined"),
                number("docsExamined"),
                operation.get("command"),
            ));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_answered_from_an_index() {
    let fixture = MongoFixture::new().await;
    let database = fixture.database();
    run(database, doc! { "create": "system.profile", "capped": true, "size": 64 << 20 }).await;
    run(database, doc! { "profile": 2 }).await;
    everything(&*fixture.store).await;
    all_of_the_outbox(&*fixture.store).await;
    handoff_and_audit(&fixture.store).await;
    all_of_budgets(&*fixture.store).await;
    run(database, doc! { "profile": 0 }).await;
    assert_eq!(offences(database).await, Vec::<String>::new());
    // What would be noticed.
    run(database, doc! { "profile": 2 }).await;
    run(database, doc! { "find": "sessions", "filter": { "created": 7 } }).await;
    run(database, doc! { "find": "sessions", "filter": { "owner": "alice" }, "sort": { "created": 1 } }).await;
    run(database, doc! { "profile": 0 }).await;
    assert_eq!(offences(database).await.len(), 2);
}

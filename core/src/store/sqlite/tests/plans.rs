//! No query walks a whole table, and no list is sorted after it was read.

use rusqlite::Connection;

use super::SqliteFixture;
use crate::store::sqlite::{audit, budgets, handoff, log, marks, outbox, replies, sessions, shares};

/// The steps of a query's plan that grow with the table instead of with the answer.
fn offences(db: &Connection, sql: &str) -> Vec<String> {
    let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let parameters = vec![rusqlite::types::Null; statement.parameter_count()];
    let steps = statement.query_map(rusqlite::params_from_iter(parameters), |row| row.get::<_, String>("detail"));
    let steps: Vec<String> = steps.unwrap().map(Result::unwrap).collect();
    let scans = |step: &String| step.starts_with("SCAN ") && step != "SCAN CONSTANT ROW";
    steps.into_iter().filter(|step| scans(step) || step.contains("TEMP B-TREE")).collect()
}

#[tokio::test]
async fn every_query_is_answered_from_an_index() {
    let fixture = SqliteFixture::new();
    let db = Connection::open(fixture.path()).unwrap();
    for sql in [
        sessions::BY_ID,
        sessions::BY_REQUEST,
        sessions::LOWEST_SLOT,
        sessions::TAKEN_SLOTS,
        sessions::ACTIVE,
        sessions::LIST_ONE,
        sessions::LIST_BOTH,
        sessions::UNFINISHED,
        sessions::KEYS,
        sessions::REPLACE_KEY,
        sessions::REPLACE_OLDER,
        sessions::REPLACE_EXPECTED,
        sessions::FREE_SLOT,
        sessions::TAKE_SLOT,
        sessions::ACTIVE_BY_ID,
        sessions::ERASE,
        log::EXISTS,
        log::HEAD,
        log::FIND_APPEND,
        log::FIND_MESSAGE,
        log::READ_AFTER,
        log::READ_BEFORE,
        replies::LATEST,
        replies::LEASES,
        replies::RENEW,
        replies::REMOVE,
        replies::REMOVE_ALL,
        marks::MARK,
        marks::MARKS,
        marks::REMOVE_ALL,
        marks::VALUE,
        marks::REPLACE_VALUE,
        shares::BY_ID,
        shares::BY_REQUEST,
        shares::OF_SESSION,
        shares::REVOKE,
        shares::REMOVE,
        outbox::DUE,
        outbox::LIST,
        outbox::SETTLE,
        outbox::PRUNE,
        handoff::REMOVE,
        handoff::ONE,
        handoff::ALL,
        audit::BY_SESSION,
        audit::BY_ACTOR,
        audit::BY_ACTION,
        audit::BEFORE,
        audit::AFTER,
        budgets::TAKE,
        budgets::RESERVED,
        budgets::RELEASE,
        budgets::SETTLE,
        budgets::ROW,
        budgets::OPEN,
        budgets::OPEN_ROWS,
        budgets::OLD,
    ] {
        assert_eq!(offences(&db, sql), Vec::<String>::new(), "{sql}");
    }
}

#[tokio::test]
async fn a_query_without_an_index_would_be_noticed() {
    let fixture = SqliteFixture::new();
    let db = Connection::open(fixture.path()).unwrap();
    assert_eq!(offences(&db, "SELECT id FROM sessions WHERE created_at = ?1"), ["SCAN sessions"]);
    let sorted =
        "SELECT id FROM sessions WHERE owner = ?1 AND ended = ?2 AND length(wrapped_key) > 0 ORDER BY created_at";
    assert_eq!(offences(&db, sorted), ["USE TEMP B-TREE FOR ORDER BY"]);
}

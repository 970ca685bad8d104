//! Collections, their indexes, and the version of both.
//!
//! Every step can be applied again and beside another core that applies it, so that no lock is needed: whoever starts
//! applies what the stored version lacks, and then raises the version, which only ever rises.

use mongodb::bson::{Document, doc};

use super::{connection::Connection, fault::Fault};

pub(super) const SESSIONS: &str = "sessions";
pub(super) const LOG: &str = "log";
pub(super) const REPLIES: &str = "replies";
pub(super) const SHARES: &str = "shares";
/// Small values of the installation.
pub(super) const VALUES: &str = "installation";
/// Alerts on their way.
pub(super) const OUTBOX: &str = "outbox";
pub(super) const HANDOFFS: &str = "handoffs";
pub(super) const AUDIT: &str = "audit";
/// What subjects have used.
pub(super) const BUDGETS: &str = "budgets";
/// Written to by those who read.
pub(super) const BARRIERS: &str = "barriers";
/// Holds the version.
const SCHEMA: &str = "schema";

/// The version that this program knows: the number of steps.
const VERSION: i32 = 6;

/// Brings the database to the current version.
pub(super) async fn migrate(connection: &Connection) -> Result<(), Fault> {
    let versions = connection.database.collection::<Document>(SCHEMA);
    let stored = versions.find_one(doc! { "_id": "version" }).max_time(connection.limit).await?;
    let stored = match stored {
        Some(document) => document.get_i32("version").map_err(|_| Fault::Corrupt("version"))?,
        None => 0,
    };
    if stored > VERSION {
        let why = format!("the database has version {stored}, made by a newer program; this one knows {VERSION}");
        return Err(Fault::Refused(why));
    }
    if stored < 1 {
        first_step(connection).await?;
    }
    if stored < 2 {
        outbox(connection).await?;
    }
    if stored < 3 {
        handoff_and_audit(connection).await?;
    }
    if stored < 4 {
        budgets(connection).await?;
    }
    if stored < 5 {
        standing_still(connection).await?;
    }
    if stored < 6 {
        shares(connection).await?;
    }
    if stored < VERSION {
        let raise =
            versions.update_one(doc! { "_id": "version" }, doc! { "$max": { "version": VERSION } }).upsert(true);
        match raise.await.map_err(Fault::from) {
            Ok(_) => {}
            // Another core made the document meanwhile; both were about to write the same.
            Err(fault) if fault.is_duplicate() => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(())
}

/// Each append id is the `_id` of its document, and is unique by that.
async fn first_step(connection: &Connection) -> Result<(), Fault> {
    let sessions = vec![
        index(
            "slot",
            doc! { "owner": 1, "slot": 1 },
            doc! { "unique": true, "partialFilterExpression": { "slot": { "$exists": true } } },
        ),
        index(
            "request",
            doc! { "owner": 1, "request": 1 },
            doc! { "unique": true, "partialFilterExpression": { "request": { "$exists": true } } },
        ),
        index("activity", doc! { "owner": 1, "ended": 1, "order": -1 }, doc! {}),
        index(
            "unfinished",
            doc! { "unfinished": 1, "_id": 1 },
            doc! { "partialFilterExpression": { "unfinished": true } },
        ),
        index("marked", doc! { "marked": 1, "_id": 1 }, doc! { "partialFilterExpression": { "marked": true } }),
    ];
    let log = vec![
        index("place", doc! { "session": 1, "first": 1 }, doc! { "unique": true }),
        index(
            "key",
            doc! { "session": 1, "keys": 1 },
            doc! { "unique": true, "partialFilterExpression": { "keys": { "$exists": true } } },
        ),
        index("end", doc! { "session": 1 }, doc! { "partialFilterExpression": { "ends": true } }),
    ];
    let replies = vec![index("session", doc! { "session": 1, "started": -1 }, doc! {})];
    for (collection, indexes) in [(SESSIONS, sessions), (LOG, log), (REPLIES, replies)] {
        create_indexes(connection, collection, indexes).await?;
    }
    Ok(())
}

async fn outbox(connection: &Connection) -> Result<(), Fault> {
    let waiting = doc! { "partialFilterExpression": { "state": "waiting" } };
    let indexes = vec![
        index("due", doc! { "due": 1, "_id": 1 }, waiting),
        index("age", doc! { "state": 1, "created": 1, "_id": 1 }, doc! {}),
    ];
    create_indexes(connection, OUTBOX, indexes).await
}

/// Sessions that wait or are held, and the audit trail.
async fn handoff_and_audit(connection: &Connection) -> Result<(), Fault> {
    let waiting = doc! { "partialFilterExpression": { "since": { "$exists": true } } };
    let handoffs = vec![index("waiting", doc! { "since": 1, "_id": 1 }, waiting)];
    let audit = vec![
        index("actor", doc! { "actor": 1, "_id": 1 }, doc! {}),
        index("action", doc! { "action": 1, "_id": 1 }, doc! {}),
        index("session", doc! { "session": 1, "_id": 1 }, doc! { "sparse": true }),
    ];
    create_indexes(connection, HANDOFFS, handoffs).await?;
    create_indexes(connection, AUDIT, audit).await
}

/// Sessions that have not ended can be walked, and know since when they stand still.
async fn standing_still(connection: &Connection) -> Result<(), Fault> {
    let active = index("active", doc! { "ended": 1, "_id": 1 }, doc! { "partialFilterExpression": { "ended": false } });
    create_indexes(connection, SESSIONS, vec![active]).await?;
    let (untouched, now) = (doc! { "touched": { "$exists": false } }, vec![doc! { "$set": { "touched": "$$NOW" } }]);
    connection.sessions.update_many(untouched, now).await?;
    Ok(())
}

/// Share links.
async fn shares(connection: &Connection) -> Result<(), Fault> {
    let indexes = vec![
        index("session", doc! { "session": 1, "_id": -1 }, doc! {}),
        index(
            "request",
            doc! { "session": 1, "request": 1 },
            doc! { "unique": true, "partialFilterExpression": { "request": { "$exists": true } } },
        ),
    ];
    create_indexes(connection, SHARES, indexes).await
}

async fn create_indexes(connection: &Connection, collection: &str, indexes: Vec<Document>) -> Result<(), Fault> {
    let create = doc! {
        "createIndexes": collection,
        "indexes": indexes,
        "writeConcern": { "w": "majority" },
        "maxTimeMS": i64::try_from(connection.limit.as_millis()).unwrap_or(i64::MAX),
    };
    connection.database.run_command(create).await?;
    Ok(())
}

/// Rows of budgets are found by their `_id`, those with reservations by this.
async fn budgets(connection: &Connection) -> Result<(), Fault> {
    let held = index("held", doc! { "key": 1 }, doc! { "partialFilterExpression": { "held": { "$gt": 0_i64 } } });
    create_indexes(connection, BUDGETS, vec![held]).await
}

fn index(name: &str, key: Document, options: Document) -> Document {
    let mut index = doc! { "name": name, "key": key };
    index.extend(options);
    index
}

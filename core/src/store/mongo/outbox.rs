//! The outbox. Each row is one document, and each change of it one conditional update.

use chatbox_proto::ids::SessionId;
use mongodb::{
    bson::{Bson, Document, RawDocument, doc},
    options::{FindOptions, ReturnDocument},
};

use super::{
    MongoStore, Shared,
    connection::write_concern,
    document::{self, binary, number},
    fault::{Access, Fault},
    reading::Level,
};
use crate::{
    domain::time::Timestamp,
    store::{
        StoreError,
        outbox::{AlertId, AlertRow, AlertState, Attempted, OutboxStore},
    },
};

#[async_trait::async_trait]
impl OutboxStore for MongoStore {
    async fn enqueue(&self, row: AlertRow) -> Result<bool, StoreError> {
        self.call("enqueue", Access::Write, enqueue(&self.shared, &row)).await
    }

    async fn claim(&self, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<AlertRow>, StoreError> {
        self.call("claim", Access::Write, claim(&self.shared, now, until, limit)).await
    }

    async fn settle(&self, id: AlertId, attempt: u32, outcome: Attempted) -> Result<bool, StoreError> {
        self.call("settle", Access::Write, settle(&self.shared, id, attempt, outcome)).await
    }

    async fn alerts(
        &self,
        state: AlertState,
        after: Option<(Timestamp, AlertId)>,
        limit: u32,
    ) -> Result<Vec<AlertRow>, StoreError> {
        self.call("alerts", Access::Read, list(&self.shared, state, after, limit)).await
    }

    async fn prune_delivered(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        self.call("prune_delivered", Access::Write, prune(&self.shared, before, limit)).await
    }
}

async fn enqueue(shared: &Shared, row: &AlertRow) -> Result<bool, Fault> {
    let mut new = doc! {
        "channel": &row.channel,
        "event": &row.event,
        "detail": &row.detail,
        "created": row.created_at.millis(),
        "due": row.due_at.millis(),
        "attempts": i64::from(row.attempts),
        "state": name_of(AlertState::Waiting),
        "error": "",
    };
    if let Some((session, seq)) = row.entry {
        new.insert("session", binary(session.as_bytes()));
        new.insert("seq", number(seq));
    }
    let filter = doc! { "_id": binary(&row.id) };
    match shared.connection.outbox.update_one(filter, doc! { "$setOnInsert": new }).upsert(true).await {
        Ok(done) => Ok(done.upserted_id.is_some()),
        // Somebody else made it meanwhile.
        Err(error) => match Fault::from(error) {
            fault if fault.is_duplicate() => Ok(false),
            fault => Err(fault),
        },
    }
}

async fn claim(shared: &Shared, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<AlertRow>, Fault> {
    let filter = doc! { "state": name_of(AlertState::Waiting), "due": { "$lte": now.millis() } };
    let update = doc! { "$inc": { "attempts": 1_i64 }, "$set": { "due": until.millis() } };
    let mut rows = Vec::new();
    while rows.len() < limit as usize {
        let found = shared
            .connection
            .outbox
            .find_one_and_update(filter.clone(), update.clone())
            .sort(doc! { "due": 1, "_id": 1 })
            .return_document(ReturnDocument::After)
            .write_concern(write_concern(shared.connection.limit))
            .max_time(shared.connection.limit)
            .await;
        match found {
            Ok(Some(found)) => rows.push(alert(&found)?),
            Ok(None) => break,
            // What was claimed before it is not lost for that; it would come back only at `until`.
            Err(_) if !rows.is_empty() => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(rows)
}

async fn settle(shared: &Shared, id: AlertId, attempt: u32, outcome: Attempted) -> Result<bool, Fault> {
    let filter = doc! { "_id": binary(&id), "attempts": i64::from(attempt), "state": name_of(AlertState::Waiting) };
    let mut set = doc! { "state": name_of(outcome.state()), "error": "" };
    match outcome {
        Attempted::Delivered => {}
        Attempted::Retry { due_at, error } => {
            set.insert("due", due_at.millis());
            set.insert("error", error);
        }
        Attempted::Dead { error } => {
            set.insert("error", error);
        }
    }
    Ok(shared.connection.outbox.update_one(filter, doc! { "$set": set }).await?.matched_count > 0)
}

async fn list(
    shared: &Shared,
    state: AlertState,
    after: Option<(Timestamp, AlertId)>,
    limit: u32,
) -> Result<Vec<AlertRow>, Fault> {
    let mut filter = doc! { "state": name_of(state) };
    if let Some((time, id)) = after {
        let later = doc! { "created": { "$gt": time.millis() } };
        let beside = doc! { "created": time.millis(), "_id": { "$gt": binary(&id) } };
        filter.insert("$or", vec![Bson::Document(later), Bson::Document(beside)]);
    }
    let options = FindOptions::builder().sort(doc! { "created": 1, "_id": 1 }).limit(i64::from(limit)).build();
    let found = shared.many(&shared.connection.outbox, filter, options, Level::Current).await?;
    found.iter().map(|found| alert(found)).collect()
}

async fn prune(shared: &Shared, before: Timestamp, limit: u32) -> Result<u64, Fault> {
    let outbox = &shared.connection.outbox;
    let filter = doc! { "state": name_of(AlertState::Delivered), "created": { "$lt": before.millis() } };
    let options = FindOptions::builder()
        .sort(doc! { "created": 1 })
        .limit(i64::from(limit))
        .projection(doc! { "_id": 1 })
        .build();
    let found = shared.many(outbox, filter, options, Level::Majority).await?;
    if found.is_empty() {
        return Ok(0);
    }
    let ids = found.iter().map(|found| document::id(found, "_id").map(|id| Bson::from(binary(&id))));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    let gone: Document = doc! { "_id": { "$in": ids }, "state": name_of(AlertState::Delivered) };
    Ok(outbox.delete_many(gone).await?.deleted_count)
}

fn name_of(state: AlertState) -> &'static str {
    match state {
        AlertState::Waiting => "waiting",
        AlertState::Delivered => "delivered",
        AlertState::Dead => "dead",
    }
}

fn alert(found: &RawDocument) -> Result<AlertRow, Fault> {
    let text = |field| found.get_str(field).map(str::to_owned).map_err(|_| Fault::Corrupt(field));
    let time = |field| found.get_i64(field).map(Timestamp::from_millis).map_err(|_| Fault::Corrupt(field));
    let entry = if document::has(found, "session")? {
        Some((SessionId::from_bytes(document::id(found, "session")?), document::seq(found, "seq")?))
    } else {
        None
    };
    let state = match text("state")?.as_str() {
        "waiting" => AlertState::Waiting,
        "delivered" => AlertState::Delivered,
        "dead" => AlertState::Dead,
        _ => return Err(Fault::Corrupt("state")),
    };
    Ok(AlertRow {
        id: document::id(found, "_id")?,
        channel: text("channel")?,
        event: text("event")?,
        entry,
        detail: text("detail")?,
        created_at: time("created")?,
        due_at: time("due")?,
        attempts: u32::try_from(document::seq(found, "attempts")?).map_err(|_| Fault::Corrupt("attempts"))?,
        state,
        error: text("error")?,
    })
}

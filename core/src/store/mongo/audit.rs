//! The audit trail: the number of a record is its `_id`, so that of several with the same one the server takes one.

use async_trait::async_trait;
use chatbox_proto::ids::SessionId;
use mongodb::{
    bson::{Document, RawDocument, RawDocumentBuf, doc},
    options::FindOptions,
};

use super::{
    MongoStore, Shared,
    document::{self, binary, number},
    fault::{Access, Fault},
    reading::Level,
};
use crate::{
    domain::time::Timestamp,
    store::{AuditQuery, AuditRow, AuditStore, StoreError},
};

fn row(found: &RawDocument) -> Result<AuditRow, Fault> {
    let text = |field: &'static str| found.get_str(field).map(str::to_owned).map_err(|_| Fault::Corrupt(field));
    let named = document::has(found, "session")?;
    let session_id = if named { Some(SessionId::from_bytes(document::id(found, "session")?)) } else { None };
    Ok(AuditRow {
        seq: document::seq(found, "_id")?,
        at: Timestamp::from_millis(found.get_i64("at").map_err(|_| Fault::Corrupt("at"))?),
        actor: text("actor")?,
        action: text("action")?,
        session_id,
        sealed: document::bytes(found, "sealed")?.to_vec(),
        hash: document::bytes(found, "hash")?.try_into().map_err(|_| Fault::Corrupt("hash"))?,
    })
}

async fn append(shared: &Shared, row: AuditRow) -> Result<bool, Fault> {
    // A majority has the record before it, which nobody removes: between the two there is no gap.
    let last = last(shared).await?.map_or(0, |last| last.seq);
    if row.seq != last + 1 {
        return Ok(false);
    }
    let mut document = doc! {
        "_id": number(row.seq),
        "at": row.at.millis(),
        "actor": row.actor,
        "action": row.action,
        "sealed": binary(&row.sealed),
        "hash": binary(&row.hash),
    };
    if let Some(id) = row.session_id {
        document.insert("session", binary(id.as_bytes()));
    }
    let document = RawDocumentBuf::try_from(document).map_err(|_| Fault::Misuse("a name with a zero byte"))?;
    match shared.connection.audit.insert_one(document).await.map_err(Fault::from) {
        Ok(_) => Ok(true),
        Err(fault) if fault.is_duplicate() => Ok(false),
        Err(fault) => Err(fault),
    }
}

async fn last(shared: &Shared) -> Result<Option<AuditRow>, Fault> {
    let options = FindOptions::builder().sort(doc! { "_id": -1 }).build();
    let found = shared.one(&shared.connection.audit, doc! {}, options, Level::Current).await?;
    found.map(|found| row(&found)).transpose()
}

async fn list(shared: &Shared, filter: Document, order: i32, limit: u32) -> Result<Vec<AuditRow>, Fault> {
    let options = FindOptions::builder().sort(doc! { "_id": order }).limit(i64::from(limit)).build();
    let found = shared.many(&shared.connection.audit, filter, options, Level::Majority).await?;
    found.iter().map(|found| row(found)).collect()
}

fn filter(query: AuditQuery) -> Document {
    let mut filter = Document::new();
    if let Some(before) = query.before {
        filter.insert("_id", doc! { "$lt": number(before) });
    }
    if let Some(actor) = query.actor {
        filter.insert("actor", actor);
    }
    if let Some(action) = query.action {
        filter.insert("action", action);
    }
    if let Some(id) = query.session_id {
        filter.insert("session", binary(id.as_bytes()));
    }
    let mut at = Document::new();
    if let Some(from) = query.from {
        at.insert("$gte", from.millis());
    }
    if let Some(until) = query.until {
        at.insert("$lt", until.millis());
    }
    if !at.is_empty() {
        filter.insert("at", at);
    }
    filter
}

#[async_trait]
impl AuditStore for MongoStore {
    async fn append_audit(&self, row: AuditRow) -> Result<bool, StoreError> {
        self.call("append_audit", Access::Write, append(&self.shared, row)).await
    }

    async fn last_audit(&self) -> Result<Option<AuditRow>, StoreError> {
        self.call("last_audit", Access::Read, last(&self.shared)).await
    }

    async fn audit_before(&self, query: AuditQuery) -> Result<Vec<AuditRow>, StoreError> {
        let limit = query.limit;
        self.call("audit_before", Access::Read, list(&self.shared, filter(query), -1, limit)).await
    }

    async fn audit_after(&self, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        let filter = doc! { "_id": { "$gt": number(after) } };
        self.call("audit_after", Access::Read, list(&self.shared, filter, 1, limit)).await
    }
}

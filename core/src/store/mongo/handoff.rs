//! Rows of sessions that wait for a person or are held by one.

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
    reading::{Level, fields},
};
use crate::{
    domain::time::Timestamp,
    store::{HandoffRow, HandoffStore, Stage, StoreError},
};

fn row(document: &RawDocument) -> Result<HandoffRow, Fault> {
    let stage = if document::has(document, "since")? {
        let since = document.get_i64("since").map_err(|_| Fault::Corrupt("since"))?;
        Stage::Waiting { since: Timestamp::from_millis(since) }
    } else {
        Stage::Held
    };
    let session_id = SessionId::from_bytes(document::id(document, "_id")?);
    Ok(HandoffRow { session_id, stage, mark: document::seq(document, "mark")? })
}

async fn put(shared: &Shared, row: HandoffRow) -> Result<(), Fault> {
    let mark = number(row.mark);
    let update = match row.stage {
        Stage::Waiting { since } => doc! { "$set": { "mark": mark, "since": since.millis() } },
        Stage::Held => doc! { "$set": { "mark": mark }, "$unset": { "since": "" } },
    };
    let filter = doc! { "_id": binary(row.session_id.as_bytes()) };
    let rows = &shared.connection.handoffs;
    match rows.update_one(filter.clone(), update.clone()).upsert(true).await.map_err(Fault::from) {
        // Two made it at once: it is there now.
        Err(fault) if fault.is_duplicate() => rows.update_one(filter, update).await?,
        other => other?,
    };
    Ok(())
}

async fn remove(shared: &Shared, session_id: SessionId, mark: u64) -> Result<bool, Fault> {
    let filter = doc! { "_id": binary(session_id.as_bytes()), "mark": number(mark) };
    Ok(shared.connection.handoffs.delete_one(filter).await?.deleted_count > 0)
}

async fn list(shared: &Shared, filter: Document, order: Document, limit: u32) -> Result<Vec<HandoffRow>, Fault> {
    let options = FindOptions::builder().sort(order).limit(i64::from(limit)).build();
    let found: Vec<RawDocumentBuf> = shared.many(&shared.connection.handoffs, filter, options, Level::Majority).await?;
    found.iter().map(|found| row(found)).collect()
}

#[async_trait]
impl HandoffStore for MongoStore {
    async fn put_handoff(&self, row: HandoffRow) -> Result<(), StoreError> {
        self.call("put_handoff", Access::Write, put(&self.shared, row)).await
    }

    async fn remove_handoff(&self, session_id: SessionId, mark: u64) -> Result<bool, StoreError> {
        self.call("remove_handoff", Access::Write, remove(&self.shared, session_id, mark)).await
    }

    async fn handoff(&self, session_id: SessionId) -> Result<Option<HandoffRow>, StoreError> {
        let find = async {
            let filter = doc! { "_id": binary(session_id.as_bytes()) };
            let found =
                self.shared.one(&self.shared.connection.handoffs, filter, fields(doc! {}), Level::Majority).await?;
            found.map(|found| row(&found)).transpose()
        };
        self.call("handoff", Access::Read, find).await
    }

    async fn handoffs(&self, after: Option<SessionId>, limit: u32) -> Result<Vec<HandoffRow>, StoreError> {
        let filter = after.map_or(doc! {}, |after| doc! { "_id": { "$gt": binary(after.as_bytes()) } });
        self.call("handoffs", Access::Read, list(&self.shared, filter, doc! { "_id": 1 }, limit)).await
    }

    async fn waiting(&self, limit: u32) -> Result<Vec<HandoffRow>, StoreError> {
        let filter = doc! { "since": { "$exists": true } };
        self.call("waiting", Access::Read, list(&self.shared, filter, doc! { "since": 1, "_id": 1 }, limit)).await
    }
}

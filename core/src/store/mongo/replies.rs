//! Rows of running replies: their lease and their checkpoint.

use chatbox_proto::ids::{MessageId, SessionId};
use mongodb::{
    bson::{Document, doc},
    options::FindOptions,
};

use super::{
    Shared,
    document::{self, binary, number},
    fault::Fault,
    reading::Level,
};
use crate::store::{BootId, ReplyLease, ReplyRow};

pub(super) async fn latest(shared: &Shared, session_id: SessionId) -> Result<Option<ReplyRow>, Fault> {
    let options = FindOptions::builder().sort(doc! { "started": -1 }).limit(1).build();
    let filter = doc! { "session": binary(session_id.as_bytes()) };
    let found = shared.many(&shared.connection.replies, filter, options, Level::Majority).await?;
    found.first().map(|found| document::reply(found)).transpose()
}

pub(super) async fn leases(shared: &Shared, after: Option<MessageId>, limit: u32) -> Result<Vec<ReplyLease>, Fault> {
    let mut filter = Document::new();
    if let Some(after) = after {
        filter.insert("_id", doc! { "$gt": binary(after.as_bytes()) });
    }
    let fields = doc! { "session": 1, "boot": 1, "renewals": 1 };
    let options = FindOptions::builder().sort(doc! { "_id": 1 }).limit(i64::from(limit)).projection(fields).build();
    let found = shared.many(&shared.connection.replies, filter, options, Level::Majority).await?;
    found.iter().map(|found| document::lease(found)).collect()
}

pub(super) async fn remove(shared: &Shared, message_id: MessageId) -> Result<(), Fault> {
    shared.connection.replies.delete_one(doc! { "_id": binary(message_id.as_bytes()) }).await?;
    Ok(())
}

pub(super) async fn renew(
    shared: &Shared,
    message_id: MessageId,
    boot_id: BootId,
    expected: u64,
    checkpoint: &[u8],
) -> Result<bool, Fault> {
    let filter = doc! {
        "_id": binary(message_id.as_bytes()),
        "boot": binary(&boot_id),
        "renewals": number(expected),
    };
    let update = doc! { "$inc": { "renewals": 1_i64 }, "$set": { "checkpoint": binary(checkpoint) } };
    Ok(shared.connection.replies.update_one(filter, update).await?.matched_count > 0)
}

//! How far participants have read, kept with the session's header, and the small values of the installation.

use chatbox_proto::ids::SessionId;
use mongodb::bson::{Bson, doc};

use super::{
    Shared,
    document::{self, binary, number},
    fault::Fault,
    reading::{Level, fields},
};
use crate::{domain::entry::Seq, store::MAX_READ_MARKS};

pub(super) async fn mark_read(shared: &Shared, id: SessionId, user_id: &str, seq: Seq) -> Result<(), Fault> {
    let sessions = &shared.connection.sessions;
    let (session, seq) = (binary(id.as_bytes()), number(seq));
    let known = doc! {
        "_id": session.clone(),
        // Not an erased one.
        "ended": { "$exists": true },
        "marks": { "$elemMatch": { "user": user_id, "seq": { "$lt": seq } } },
    };
    if sessions.update_one(known, doc! { "$set": { "marks.$.seq": seq } }).await?.matched_count > 0 {
        return Ok(());
    }
    // Nobody's for a session that does not exist, nor once there are as many as are kept.
    let new = doc! {
        "_id": session,
        "ended": { "$exists": true },
        "marks.user": { "$ne": user_id },
        format!("marks.{}", MAX_READ_MARKS - 1): { "$exists": false },
    };
    sessions.update_one(new, doc! { "$push": { "marks": { "user": user_id, "seq": seq } } }).await?;
    Ok(())
}

pub(super) async fn read_marks(shared: &Shared, id: SessionId) -> Result<Vec<(String, Seq)>, Fault> {
    const WRONG: Fault = Fault::Corrupt("marks");
    let filter = doc! { "_id": binary(id.as_bytes()) };
    let found = shared.one(&shared.connection.sessions, filter, fields(doc! { "marks": 1 }), Level::Majority).await?;
    let mut marks = Vec::new();
    let Some(found) = found.filter(|found| matches!(found.get("marks"), Ok(Some(_)))) else { return Ok(marks) };
    for mark in found.get_array("marks").map_err(|_| WRONG)? {
        let mark = mark.map_err(|_| WRONG)?.as_document().ok_or(WRONG)?;
        marks.push((mark.get_str("user").map_err(|_| WRONG)?.to_owned(), document::seq(mark, "seq")?));
    }
    marks.sort_unstable();
    Ok(marks)
}

pub(super) async fn value(shared: &Shared, name: &str) -> Result<Option<Vec<u8>>, Fault> {
    let wanted = fields(doc! { "value": 1 });
    let found = shared.one(&shared.connection.values, doc! { "_id": name }, wanted, Level::Current).await?;
    found.map(|found| document::bytes(&found, "value").map(<[u8]>::to_vec)).transpose()
}

pub(super) async fn init_value(shared: &Shared, name: &str, value: &[u8]) -> Result<Vec<u8>, Fault> {
    let set = doc! { "$setOnInsert": { "value": binary(value) } };
    match shared.connection.values.update_one(doc! { "_id": name }, set).upsert(true).await.map_err(Fault::from) {
        Ok(_) => {}
        // Somebody else set it meanwhile.
        Err(fault) if fault.is_duplicate() => {}
        Err(fault) => return Err(fault),
    }
    self::value(shared, name).await?.ok_or(Fault::Corrupt("value"))
}

pub(super) async fn replace_value(shared: &Shared, name: &str, expected: &[u8], new: &[u8]) -> Result<bool, Fault> {
    let filter = doc! { "_id": name, "value": Bson::from(binary(expected)) };
    let update = doc! { "$set": { "value": binary(new) } };
    Ok(shared.connection.values.update_one(filter, update).await?.matched_count > 0)
}

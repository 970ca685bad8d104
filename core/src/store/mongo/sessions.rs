//! Headers: their slots, their lists, their folded state and their keys.

use std::{collections::BTreeMap, time::Duration};

use chatbox_proto::ids::SessionId;
use mongodb::{
    bson::{Bson, Document, RawDocumentBuf, doc},
    options::FindOptions,
};
use tokio::time::sleep;

use super::{
    Shared,
    document::{self, binary, number},
    fault::Fault,
    reading::{Level, fields},
    slots,
};
use crate::{
    domain::entry::Seq,
    store::{ActiveSession, Created, Derived, Header, NewSession, RequestKey, SessionQuery, SlotRule},
};

/// Between tries of a call that somebody else got ahead of. Doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// All of a header but the read marks, which are kept in the same document.
fn header_fields() -> FindOptions {
    fields(doc! { "marks": 0 })
}

pub(super) async fn create(shared: &Shared, new: NewSession) -> Result<Created, Fault> {
    let mut pause = FIRST_PAUSE;
    // What is looked up first only saves the attempt: the unique keys decide. Who lost against them looks closer.
    let mut level = Level::Majority;
    loop {
        let slot = match look(shared, &new, level).await? {
            Look::Answer(created) => return Ok(created),
            Look::Slot(slot) => slot,
        };
        let (document, header) = stored(&new, slot)?;
        match shared.connection.sessions.insert_one(document).await.map_err(Fault::from) {
            Ok(_) => {
                shared.ends.raise(header.id, 0);
                return Ok(Created::New(header));
            }
            Err(fault) if fault.is_duplicate() => {}
            Err(fault) => return Err(fault),
        }
        level = Level::Current;
        if by_id(shared, new.id, level).await?.is_some() {
            return Err(Fault::Misuse("a session with this id exists"));
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Look {
    Answer(Created),
    Slot(Option<u32>),
}

async fn look(shared: &Shared, new: &NewSession, level: Level) -> Result<Look, Fault> {
    if let Some(earlier) = earlier_call(shared, new, level).await? {
        return Ok(Look::Answer(earlier));
    }
    let slots_wanted = match new.slot {
        SlotRule::First => 1,
        SlotRule::AnyOf(0) => return Err(Fault::Misuse("a rule of no slots")),
        SlotRule::AnyOf(slots) => slots,
        SlotRule::Unlimited => return Ok(Look::Slot(None)),
    };
    let mut patience = slots::Patience::default();
    loop {
        let taken = slots::taken(shared, &new.owner).await?;
        if let Some(free) = slots::lowest_free(&taken, slots_wanted) {
            return Ok(Look::Slot(Some(free)));
        }
        if let Some(pending) = taken.iter().find(|held| held.is_pending() && held.slot < slots_wanted) {
            patience.settle(shared, pending).await?;
            continue;
        }
        let Some(lowest) = taken.first().map(|held| held.id) else { continue };
        // The call itself may have made that session meanwhile.
        if let Some(earlier) = earlier_call(shared, new, Level::Current).await? {
            return Ok(Look::Answer(earlier));
        }
        let header = by_id(shared, lowest, Level::Current).await?;
        if let Some(header) = header.filter(|header| header.slot.is_some()) {
            return Ok(Look::Answer(Created::SlotTaken(header)));
        }
    }
}

fn stored(new: &NewSession, slot: Option<u32>) -> Result<(RawDocumentBuf, Header), Fault> {
    let mut document = doc! {
        "_id": binary(new.id.as_bytes()),
        "owner": &new.owner,
        "key": binary(&new.wrapped_key),
        "created": new.created_at.millis(),
    };
    if let Some(slot) = slot {
        document.insert("slot", i64::from(slot));
    }
    if let Some(request) = &new.request {
        document.insert("request", binary(&request.id));
        document.insert("content", binary(&request.content));
    }
    document.extend(document::derived(new.id, &new.derived));
    // The server puts its own time in the place of an empty one.
    document.insert("touched", Bson::Timestamp(mongodb::bson::Timestamp { time: 0, increment: 0 }));
    let document = RawDocumentBuf::try_from(document).map_err(|_| Fault::Misuse("an owner with a zero byte"))?;
    let NewSession { id, owner, wrapped_key, created_at, derived, .. } = new.clone();
    Ok((document, Header { id, owner, slot, wrapped_key, created_at, derived }))
}

async fn earlier_call(shared: &Shared, new: &NewSession, level: Level) -> Result<Option<Created>, Fault> {
    let Some(RequestKey { id, content }) = &new.request else { return Ok(None) };
    let filter = doc! { "owner": &new.owner, "request": binary(id) };
    let found = shared.one(&shared.connection.sessions, filter, header_fields(), level).await?;
    let Some(found) = found else { return Ok(None) };
    if document::id(&found, "content")? != *content {
        return Ok(Some(Created::RequestReused));
    }
    Ok(slots::headers(shared, &[found]).await?.pop().map(Created::Repeated))
}

pub(super) async fn by_id(shared: &Shared, id: SessionId, level: Level) -> Result<Option<Header>, Fault> {
    let filter = doc! { "_id": binary(id.as_bytes()) };
    let found = shared.one(&shared.connection.sessions, filter, header_fields(), level).await?;
    let Some(found) = found else { return Ok(None) };
    Ok(slots::headers(shared, &[found]).await?.pop())
}

pub(super) async fn active(shared: &Shared, owner: &str) -> Result<Option<Header>, Fault> {
    let query = SessionQuery { owner: owner.to_owned(), ended: Some(false), after: None, limit: 1 };
    Ok(list(shared, query).await?.pop())
}

pub(super) async fn list(shared: &Shared, query: SessionQuery) -> Result<Vec<Header>, Fault> {
    // Both values of `ended` instead of none: then the order comes from the index, by merging two walks of it.
    let ended = query.ended.map_or(doc! { "$in": [false, true] }, |ended| doc! { "$eq": ended });
    let mut filter = doc! { "owner": &query.owner, "ended": ended };
    if let Some((time, id)) = query.after {
        filter.insert("order", doc! { "$lt": document::order(time, id) });
    }
    let mut options = header_fields();
    options.sort = Some(doc! { "order": -1 });
    options.limit = Some(i64::from(query.limit));
    let found = shared.many(&shared.connection.sessions, filter, options, Level::Majority).await?;
    slots::headers(shared, &found).await
}

pub(super) async fn replace_expected(
    shared: &Shared,
    id: SessionId,
    expected: Seq,
    derived: &Derived,
) -> Result<bool, Fault> {
    if derived.applied_seq < expected || expected > i64::MAX as u64 {
        return Ok(false);
    }
    let filter = doc! { "_id": binary(id.as_bytes()), "applied": number(expected) };
    let update = document::replacement(id, derived);
    Ok(shared.connection.sessions.update_one(filter, update).await?.matched_count > 0)
}

pub(super) async fn unfinished(
    shared: &Shared,
    after: Option<SessionId>,
    limit: u32,
) -> Result<Vec<(SessionId, Seq)>, Fault> {
    let mut all = BTreeMap::new();
    // By their folded states, and those whose folded states are behind.
    for mut filter in [doc! { "unfinished": true }, doc! { "marked": true }] {
        walk(&mut filter, after);
        for found in page(shared, filter, limit, doc! { "applied": 1 }).await? {
            all.insert(SessionId::from_bytes(document::id(&found, "_id")?), document::seq(&found, "applied")?);
        }
    }
    Ok(all.into_iter().take(limit as usize).collect())
}

/// The server compares its own clock with itself.
pub(super) async fn active_sessions(
    shared: &Shared,
    after: Option<SessionId>,
    limit: u32,
) -> Result<Vec<ActiveSession>, Fault> {
    let mut filter = doc! { "ended": false };
    walk(&mut filter, after);
    let still = doc! { "$subtract": ["$$NOW", { "$toDate": { "$ifNull": ["$touched", "$$NOW"] } }] };
    let options = FindOptions::builder()
        .sort(doc! { "_id": 1 })
        .limit(i64::from(limit))
        .projection(doc! { "applied": 1, "still": { "$toLong": still } })
        .build();
    let found = shared.many(&shared.connection.sessions, filter, options, Level::Majority).await?;
    let read = |found: &RawDocumentBuf| -> Result<_, Fault> {
        let still = found.get_i64("still").map_err(|_| Fault::Corrupt("touched"))?;
        Ok(ActiveSession {
            id: SessionId::from_bytes(document::id(found, "_id")?),
            applied_seq: document::seq(found, "applied")?,
            still_for: Duration::from_millis(u64::try_from(still).unwrap_or(0)),
        })
    };
    found.iter().map(read).collect()
}

pub(super) async fn keys(
    shared: &Shared,
    after: Option<SessionId>,
    limit: u32,
) -> Result<Vec<(SessionId, Vec<u8>)>, Fault> {
    let mut filter = Document::new();
    walk(&mut filter, after);
    let found = page(shared, filter, limit, doc! { "key": 1 }).await?;
    let read = |found: &RawDocumentBuf| -> Result<_, Fault> {
        Ok((SessionId::from_bytes(document::id(found, "_id")?), document::bytes(found, "key")?.to_vec()))
    };
    found.iter().map(read).collect()
}

fn walk(filter: &mut Document, after: Option<SessionId>) {
    if let Some(after) = after {
        filter.insert("_id", doc! { "$gt": binary(after.as_bytes()) });
    }
}

async fn page(shared: &Shared, filter: Document, limit: u32, wanted: Document) -> Result<Vec<RawDocumentBuf>, Fault> {
    let options = FindOptions::builder().sort(doc! { "_id": 1 }).limit(i64::from(limit)).projection(wanted).build();
    shared.many(&shared.connection.sessions, filter, options, Level::Majority).await
}

pub(super) async fn replace_key(shared: &Shared, id: SessionId, expected: &[u8], new: &[u8]) -> Result<bool, Fault> {
    if expected.is_empty() || new.is_empty() {
        return Ok(false);
    }
    let filter = doc! { "_id": binary(id.as_bytes()), "key": binary(expected) };
    let update = doc! { "$set": { "key": binary(new) } };
    Ok(shared.connection.sessions.update_one(filter, update).await?.matched_count > 0)
}

/// The header last: until then the session is among the unfinished ones, so that whoever is cut here is followed by another.
pub(super) async fn erase(shared: &Shared, id: SessionId, fence: Seq) -> Result<bool, Fault> {
    let id = binary(id.as_bytes());
    shared.connection.replies.delete_many(doc! { "session": id.clone() }).await?;
    let update = document::erasure(fence);
    Ok(shared.connection.sessions.update_one(doc! { "_id": id }, update).await?.matched_count > 0)
}

//! Who holds which of an owner's slots. A unique key lets one session at a time have a slot in its header; whether it still
//! has it is said by the log.
//!
//! A session gets its slot when it is made, or by the append that brings it back after its end. That append claims the slot
//! before it is written: the header then holds the slot, the append's id as `claim`, and the head at that time as `since`.
//!
//! - An end that begins above `since` frees the slot.
//! - A claim whose append is in the log holds; one whose append id was given to a stand-in is void, and frees the slot.
//! - A claim that is neither is pending: its append is on its way, or its core died. Whoever needs the slot waits a moment and
//!   then looks the append up, which is final: it is in the log, or never will be.
//!
//! So a slot is never held by two active sessions, whatever is lost or late on the way, and no clock has a say in it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chatbox_proto::ids::SessionId;
use mongodb::{
    bson::{Bson, Document, RawDocument, RawDocumentBuf, doc},
    options::FindOptions,
};
use tokio::time::sleep;

use super::{
    Shared,
    document::{self, binary, number},
    fault::Fault,
    log,
    reading::{Level, fields},
};
use crate::{
    domain::entry::Seq,
    store::{Append, AppendId, Header, SlotRule},
};

/// How long an append that claimed a slot is waited for, in steps, before it is looked up for good.
const STEP: Duration = Duration::from_millis(25);
const STEPS: u32 = 20;

/// A slot that is held.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) id: SessionId,
    pub(super) slot: u32,
    /// The head when it was taken, 0 for a new session.
    since: Seq,
    /// The append that takes it, as long as it is not known to be in the log.
    pending: Option<AppendId>,
}

impl Held {
    fn read(document: &RawDocument) -> Result<Option<Self>, Fault> {
        if !document::has(document, "slot")? {
            return Ok(None);
        }
        let slot = u32::try_from(document::seq(document, "slot")?).map_err(|_| Fault::Corrupt("slot"))?;
        let claimed = document::has(document, "claim")?;
        Ok(Some(Self {
            id: SessionId::from_bytes(document::id(document, "_id")?),
            slot,
            since: if claimed { document::seq(document, "since")? } else { 0 },
            pending: claimed.then(|| document::id(document, "claim")).transpose()?,
        }))
    }

    /// Nobody knows yet whether it is held.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }
}

/// The session, if it holds a slot that it took before the end that begins at this entry.
pub(super) fn ended_at(id: SessionId, end: Seq) -> Document {
    doc! {
        "_id": binary(id.as_bytes()),
        "slot": { "$exists": true },
        // Also those without the field.
        "since": { "$not": { "$gte": number(end) } },
    }
}

/// What frees a slot.
pub(super) fn freed() -> Document {
    doc! { "$unset": { "slot": "", "since": "", "claim": "" } }
}

pub(super) fn lowest_free(taken: &[Held], slots: u32) -> Option<u32> {
    (0..slots).find(|slot| taken.iter().all(|held| held.slot != *slot))
}

/// Who holds the owner's slots, lowest first. Those that are free by the log are freed on the way.
pub(super) async fn taken(shared: &Shared, owner: &str) -> Result<Vec<Held>, Fault> {
    let filter = doc! { "owner": owner, "slot": { "$exists": true } };
    let wanted = doc! { "slot": 1, "since": 1, "claim": 1 };
    let options = FindOptions::builder().sort(doc! { "slot": 1 }).projection(wanted).build();
    let mut taken = Vec::new();
    for held in shared.many(&shared.connection.sessions, filter, options, Level::Majority).await? {
        taken.extend(Held::read(&held)?);
    }
    let ends = ends(shared, taken.iter().map(|held| held.id)).await?;
    let claims = claims(shared, &taken).await?;
    let mut kept = Vec::new();
    for mut held in taken {
        if let Some(end) = ends.get(&held.id).filter(|end| **end > held.since) {
            shared.connection.sessions.update_one(ended_at(held.id, *end), freed()).await?;
            continue;
        }
        match held.pending.and_then(|claim| claims.get(&claim)) {
            Some(session) if *session == held.id => held.pending = None,
            Some(_) => {
                release(shared, held.id, held.pending.unwrap_or_default()).await?;
                continue;
            }
            None => {}
        }
        kept.push(held);
    }
    Ok(kept)
}

/// For each of these sessions the place of its last end, if there is one.
async fn ends(shared: &Shared, ids: impl Iterator<Item = SessionId>) -> Result<HashMap<SessionId, Seq>, Fault> {
    let among: Vec<Bson> = ids.map(|id| binary(id.as_bytes()).into()).collect();
    let mut ends = HashMap::new();
    if among.is_empty() {
        return Ok(ends);
    }
    let filter = doc! { "session": { "$in": among }, "ends": true };
    let options = fields(doc! { "session": 1, "first": 1 });
    for found in shared.many(&shared.connection.log, filter, options, Level::Majority).await? {
        let first = document::seq(&found, "first")?;
        let end = ends.entry(SessionId::from_bytes(document::id(&found, "session")?)).or_insert(first);
        *end = first.max(*end);
    }
    Ok(ends)
}

/// For each claim that is settled the session of the document that has its id; a stand-in has one of its own.
async fn claims(shared: &Shared, held: &[Held]) -> Result<HashMap<AppendId, SessionId>, Fault> {
    let among: Vec<Bson> = held.iter().filter_map(|held| held.pending).map(|claim| binary(&claim).into()).collect();
    let mut claims = HashMap::new();
    if among.is_empty() {
        return Ok(claims);
    }
    let options = fields(doc! { "session": 1 });
    for found in shared.many(&shared.connection.log, doc! { "_id": { "$in": among } }, options, Level::Majority).await?
    {
        claims.insert(document::id(&found, "_id")?, SessionId::from_bytes(document::id(&found, "session")?));
    }
    Ok(claims)
}

/// How long one call has waited for the appends of others.
#[derive(Debug, Default)]
pub(super) struct Patience(u32);

impl Patience {
    /// Waits a step; in the end, finds out for good. Then look again.
    pub(super) async fn settle(&mut self, shared: &Shared, held: &Held) -> Result<(), Fault> {
        self.0 += 1;
        if self.0 <= STEPS {
            sleep(STEP).await;
        } else if let Some(claim) = held.pending {
            log::find_append(shared, held.id, claim).await?;
        }
        Ok(())
    }
}

/// Claims a slot for an append that brings its session back; `false`: the owner has none that is free.
pub(super) async fn claim(shared: &Shared, append: &Append, rule: SlotRule) -> Result<bool, Fault> {
    let wanted = match rule {
        SlotRule::First => 1,
        SlotRule::AnyOf(0) => return Err(Fault::Misuse("a rule of no slots")),
        SlotRule::AnyOf(slots) => slots,
        SlotRule::Unlimited => return Ok(true),
    };
    let id = append.session_id;
    let filter = doc! { "_id": binary(id.as_bytes()) };
    let found = shared.one(&shared.connection.sessions, filter, fields(doc! { "owner": 1 }), Level::Majority).await?;
    let Some(found) = found else { return Ok(true) };
    let owner = found.get_str("owner").map_err(|_| Fault::Corrupt("owner"))?;
    let mut patience = Patience::default();
    loop {
        let taken = taken(shared, owner).await?;
        if let Some(own) = taken.iter().find(|held| held.id == id) {
            if own.is_pending() {
                patience.settle(shared, own).await?;
                continue;
            }
            // Somebody else has brought it back: the append will find that out.
            return Ok(true);
        }
        let Some(free) = lowest_free(&taken, wanted) else {
            let Some(pending) = taken.iter().find(|held| held.is_pending() && held.slot < wanted) else {
                return Ok(false);
            };
            patience.settle(shared, pending).await?;
            continue;
        };
        let unheld = doc! { "_id": binary(id.as_bytes()), "slot": { "$exists": false } };
        let set = doc! {
            "slot": i64::from(free),
            "since": number(append.expected_head),
            "claim": binary(&append.append_id),
        };
        match shared.connection.sessions.update_one(unheld, doc! { "$set": set }).await.map_err(Fault::from) {
            Ok(done) if done.matched_count > 0 => return Ok(true),
            Ok(_) => {}
            Err(fault) if fault.is_duplicate() => {}
            Err(fault) => return Err(fault),
        }
        sleep(STEP / 10).await;
    }
}

/// Frees a slot whose append was not written.
pub(super) async fn release(shared: &Shared, id: SessionId, claim: AppendId) -> Result<(), Fault> {
    let filter = doc! { "_id": binary(id.as_bytes()), "claim": binary(&claim) };
    shared.connection.sessions.update_one(filter, freed()).await?;
    Ok(())
}

/// Headers as they were read, without the slots that are free by the log.
pub(super) async fn headers(shared: &Shared, found: &[RawDocumentBuf]) -> Result<Vec<Header>, Fault> {
    let mut held = HashMap::new();
    for document in found {
        held.extend(Held::read(document)?.map(|held| (held.id, held)));
    }
    let ends = ends(shared, held.keys().copied()).await?;
    let mut freed = HashSet::new();
    for held in held.values() {
        if let Some(end) = ends.get(&held.id).filter(|end| **end > held.since) {
            freed.insert(held.id);
            shared.companions.free_slot(held.id, *end).await;
        }
    }
    let mut headers = Vec::with_capacity(found.len());
    for document in found {
        let mut header = document::header(document)?;
        header.slot = header.slot.filter(|_| !freed.contains(&header.id));
        headers.push(header);
    }
    Ok(headers)
}

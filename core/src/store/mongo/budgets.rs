//! What subjects have used in a day, and what is reserved: one document for each row, changed by conditional updates of
//! that document alone.

use std::time::Duration;

use async_trait::async_trait;
use chatbox_proto::ids::{MessageId, SessionId};
use mongodb::{
    bson::{Bson, Document, RawDocument, doc},
    options::FindOptions,
};
use tokio::time::sleep;

use super::{
    MongoStore, Shared,
    document::{self, binary, has, id, number, seq},
    fault::{Access, Fault},
    reading::Level,
};
use crate::store::{
    StoreError,
    budgets::{Amount, BudgetKey, BudgetRow, BudgetStore, MAX_RESERVATIONS, Reservation, Reserved, Settlement},
};

/// Between tries when something moved meanwhile. Doubles up to the longest; the limit of the call ends it.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Digits of a day, so that the order of the texts is that of the keys.
const DAY_DIGITS: usize = 6;

fn name(key: &BudgetKey) -> String {
    format!("{:0DAY_DIGITS$}/{}", key.day, key.subject)
}

fn key_of(name: &str) -> Option<BudgetKey> {
    let (day, subject) = name.split_once('/')?;
    Some(BudgetKey { day: day.parse().ok()?, subject: subject.to_owned() })
}

async fn reserve(
    shared: &Shared,
    key: &BudgetKey,
    reservation: &Reservation,
    limit: Amount,
) -> Result<Reserved, Fault> {
    let budgets = &shared.connection.budgets;
    let name = name(key);
    let id = binary(reservation.id.as_bytes());
    let (tokens, cost) = (number(reservation.amount.tokens), number(reservation.amount.cost));
    let fits = |kind: &str, more: i64, limit: u64| {
        let sum = ["used", "over", "reserved"].map(|part| Bson::from(format!("${part}.{kind}")));
        let sum: Vec<Bson> = sum.into_iter().chain([Bson::from(more)]).collect();
        doc! { "$lte": [{ "$add": sum }, number(limit)] }
    };
    let room = doc! {
        "_id": &name,
        "open.id": { "$ne": id.clone() },
        "held": { "$lt": i64::from(MAX_RESERVATIONS) },
        "$expr": { "$and": [fits("tokens", tokens, limit.tokens), fits("cost", cost, limit.cost)] },
    };
    let mut set_aside = doc! { "id": id, "tokens": tokens, "cost": cost, "boot": binary(&reservation.boot_id) };
    if let Some(session) = &reservation.session_id {
        set_aside.insert("session", binary(session.as_bytes()));
    }
    let take = doc! {
        "$inc": { "reserved.tokens": tokens, "reserved.cost": cost, "held": 1_i64 },
        "$push": { "open": set_aside },
    };
    let mut pause = FIRST_PAUSE;
    loop {
        if budgets.update_one(room.clone(), take.clone()).await?.matched_count > 0 {
            return Ok(Reserved::Done);
        }
        // Why not, as a majority has it now. What stood in the way may be gone, and a row may just have been made: only one
        // that has no room now is a refusal.
        let found = shared.one(budgets, doc! { "_id": &name }, FindOptions::default(), Level::Current).await?;
        match found.map(|found| row(&found)).transpose()? {
            None => make(shared, &name).await?,
            Some(row) if row.open.iter().any(|open| open.id == reservation.id) => return Ok(Reserved::Done),
            Some(row) => {
                let full = row.open.len() >= MAX_RESERVATIONS as usize;
                if full || !row.taken().plus(reservation.amount).fits(limit) {
                    return Ok(Reserved::Refused);
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// A row in which nothing has happened, unless there is one.
async fn make(shared: &Shared, name: &str) -> Result<(), Fault> {
    let nothing = doc! { "tokens": 0_i64, "cost": 0_i64 };
    let row = doc! { "$setOnInsert": {
        "key": name,
        "used": nothing.clone(),
        "over": nothing.clone(),
        "reserved": nothing,
        "held": 0_i64,
        "settled": 0_i64,
        "estimated": 0_i64,
        "open": [],
    } };
    match shared.connection.budgets.update_one(doc! { "_id": name }, row).upsert(true).await.map_err(Fault::from) {
        Ok(_) => Ok(()),
        // Somebody else made it meanwhile.
        Err(fault) if fault.is_duplicate() => Ok(()),
        Err(fault) => Err(fault),
    }
}

async fn settle(shared: &Shared, key: &BudgetKey, id: MessageId, settlement: Settlement) -> Result<bool, Fault> {
    let id = binary(id.as_bytes());
    let filter = doc! { "_id": name(key), "open.id": id.clone() };
    let changed = shared.connection.budgets.update_one(filter, settling(&id.into(), settlement)).await?;
    Ok(changed.matched_count > 0)
}

/// The change of a row by a settlement, as one update: what was reserved is known only to the row.
fn settling(id: &Bson, settlement: Settlement) -> Vec<Document> {
    let (used, settled, estimated) = match settlement {
        Settlement::Used { amount, estimated } => (Some(amount), 1_i64, i64::from(estimated)),
        Settlement::Unknown => (None, 1, 1),
        Settlement::Released => (Some(Amount::default()), 0, 0),
    };
    let reserved = |kind: &str| Bson::from(format!("$settling.{kind}"));
    let used = |kind: &str| match used {
        Some(amount) => Bson::from(number(if kind == "tokens" { amount.tokens } else { amount.cost })),
        None => reserved(kind),
    };
    let mut changed = doc! {
        "held": { "$subtract": ["$held", 1_i64] },
        "settled": { "$add": ["$settled", settled] },
        "estimated": { "$add": ["$estimated", estimated] },
        "open": { "$filter": { "input": "$open", "cond": { "$ne": ["$$this.id", id] } } },
    };
    for kind in ["tokens", "cost"] {
        let beyond = doc! { "$max": [0_i64, { "$subtract": [used(kind), reserved(kind)] }] };
        changed.extend(doc! {
            format!("reserved.{kind}"): { "$subtract": [format!("$reserved.{kind}"), reserved(kind)] },
            format!("used.{kind}"): { "$add": [format!("$used.{kind}"), { "$min": [used(kind), reserved(kind)] }] },
            format!("over.{kind}"): { "$add": [format!("$over.{kind}"), beyond] },
        });
    }
    let this = doc! { "$filter": { "input": "$open", "cond": { "$eq": ["$$this.id", id] } } };
    vec![doc! { "$set": { "settling": { "$first": this } } }, doc! { "$set": changed }, doc! { "$unset": "settling" }]
}

async fn find(shared: &Shared, key: &BudgetKey) -> Result<Option<BudgetRow>, Fault> {
    let filter = doc! { "_id": name(key) };
    let found = shared.one(&shared.connection.budgets, filter, FindOptions::default(), Level::Majority).await?;
    found.map(|found| row(&found)).transpose()
}

async fn open_rows(shared: &Shared, after: Option<BudgetKey>, limit: u32) -> Result<Vec<BudgetRow>, Fault> {
    let mut filter = doc! { "held": { "$gt": 0_i64 } };
    filter.insert("key", doc! { "$gt": after.as_ref().map(name).unwrap_or_default() });
    let options = FindOptions::builder().sort(doc! { "key": 1 }).limit(i64::from(limit)).build();
    let found = shared.many(&shared.connection.budgets, filter, options, Level::Majority).await?;
    found.iter().map(|found| row(found)).collect()
}

async fn drop_old(shared: &Shared, before: u32, limit: u32) -> Result<u32, Fault> {
    let budgets = &shared.connection.budgets;
    let old = doc! { "_id": { "$lt": format!("{before:0DAY_DIGITS$}/") }, "held": 0_i64 };
    let options =
        FindOptions::builder().sort(doc! { "_id": 1 }).limit(i64::from(limit)).projection(doc! { "_id": 1 }).build();
    let found = shared.many(budgets, old, options, Level::Majority).await?;
    let names: Vec<&str> = found.iter().filter_map(|found| found.get_str("_id").ok()).collect();
    if names.is_empty() {
        return Ok(0);
    }
    let dropped = budgets.delete_many(doc! { "_id": { "$in": names }, "held": 0_i64 }).await?.deleted_count;
    Ok(u32::try_from(dropped).unwrap_or(u32::MAX))
}

fn row(found: &RawDocument) -> Result<BudgetRow, Fault> {
    const WRONG: Fault = Fault::Corrupt("open");
    let part = |field: &'static str| -> Result<Amount, Fault> {
        amount(found.get_document(field).map_err(|_| Fault::Corrupt(field))?)
    };
    let mut open = Vec::new();
    for reservation in found.get_array("open").map_err(|_| WRONG)? {
        let reservation = reservation.map_err(|_| WRONG)?.as_document().ok_or(WRONG)?;
        let session_id = if has(reservation, "session")? { Some(id(reservation, "session")?) } else { None };
        open.push(Reservation {
            id: MessageId::from_bytes(id(reservation, "id")?),
            amount: amount(reservation)?,
            boot_id: id(reservation, "boot")?,
            session_id: session_id.map(SessionId::from_bytes),
        });
    }
    open.sort_by_key(|reservation| *reservation.id.as_bytes());
    Ok(BudgetRow {
        key: found.get_str("_id").ok().and_then(key_of).ok_or(Fault::Corrupt("_id"))?,
        used: part("used")?,
        over: part("over")?,
        reserved: part("reserved")?,
        settled: seq(found, "settled")?,
        estimated: seq(found, "estimated")?,
        open,
    })
}

fn amount(found: &RawDocument) -> Result<Amount, Fault> {
    Ok(Amount { tokens: document::seq(found, "tokens")?, cost: document::seq(found, "cost")? })
}

#[async_trait]
impl BudgetStore for MongoStore {
    async fn reserve_budget(
        &self,
        key: &BudgetKey,
        reservation: Reservation,
        limit: Amount,
    ) -> Result<Reserved, StoreError> {
        let work = reserve(&self.shared, key, &reservation, limit);
        self.call("reserve_budget", Access::Write, work).await
    }

    async fn settle_budget(&self, key: &BudgetKey, id: MessageId, settlement: Settlement) -> Result<bool, StoreError> {
        self.call("settle_budget", Access::Write, settle(&self.shared, key, id, settlement)).await
    }

    async fn budget(&self, key: &BudgetKey) -> Result<Option<BudgetRow>, StoreError> {
        self.call("budget", Access::Read, find(&self.shared, key)).await
    }

    async fn open_budgets(&self, after: Option<BudgetKey>, limit: u32) -> Result<Vec<BudgetRow>, StoreError> {
        self.call("open_budgets", Access::Read, open_rows(&self.shared, after, limit)).await
    }

    async fn drop_budgets(&self, before: u32, limit: u32) -> Result<u32, StoreError> {
        self.call("drop_budgets", Access::Write, drop_old(&self.shared, before, limit)).await
    }
}

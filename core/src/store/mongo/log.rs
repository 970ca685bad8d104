//! The log: optimistic append, the outcome of an attempt, and reading from either end.

use std::{sync::Arc, time::Duration};

use chatbox_proto::ids::SessionId;
use mongodb::{
    ClientSession, SessionCursor,
    bson::{Bson, Document, RawDocumentBuf, doc},
    options::{FindOptions, ReadConcern},
};
use tokio::time::sleep;

use super::{
    Shared,
    document::{self, binary, number},
    fault::Fault,
    reading::{Level, fields},
    writer::Written,
};
use crate::{
    domain::entry::Seq,
    store::{Append, AppendId, Appended, KeyedHash, LogDocument, MessageKey},
};

/// Before an append is tried again whose rival cannot be seen: it may have been rolled back. Doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How often the outcome of an attempt is looked up: once more for each way in which it can come into being meanwhile.
const LOOKS: usize = 3;
/// Numbers beyond this are no place in a log.
const LAST_PLACE: Seq = i64::MAX as u64 - u32::MAX as u64;

/// Whether an append can be tried: its head is the end of a document, or 0 for a session that exists. Such an end remains
/// one, so that what follows it has one place to go, which is unique.
pub(super) async fn fits(shared: &Shared, append: &Append) -> Result<bool, Fault> {
    if append.count == 0 {
        return Err(Fault::Misuse("an append of no entries"));
    }
    let (id, head) = (append.session_id, append.expected_head);
    if head > LAST_PLACE || has_double(&append.messages) {
        return Ok(false);
    }
    match shared.ends.get(id) {
        Some(end) if end == head => return Ok(true),
        Some(end) if end > head => return Ok(false),
        Some(_) | None => {}
    }
    let fits = if head == 0 {
        let filter = doc! { "_id": binary(id.as_bytes()) };
        let options = fields(doc! { "_id": 1 });
        shared.one(&shared.connection.sessions, filter, options, Level::Current).await?.is_some()
    } else {
        let filter = doc! { "session": binary(id.as_bytes()), "first": { "$lte": number(head) } };
        last_of(shared, filter).await? == Some(head)
    };
    if fits {
        shared.ends.raise(id, head);
    }
    Ok(fits)
}

fn has_double(messages: &[MessageKey]) -> bool {
    messages.iter().enumerate().any(|(at, message)| messages[..at].iter().any(|other| other.key == message.key))
}

/// Tries an append that [`fits`].
pub(super) async fn append(shared: &Shared, append: Append) -> Result<Appended, Fault> {
    let append = Arc::new(append);
    let mut pause = FIRST_PAUSE;
    loop {
        let verdict = match shared.writer.submit(Arc::clone(&append), stored(&append)).await? {
            Written::Done => Some(Appended::Done(end_of(&append))),
            Written::Duplicate => rival(shared, &append).await?,
        };
        if let Some(verdict) = verdict {
            return Ok(verdict);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn end_of(append: &Append) -> Seq {
    append.expected_head + u64::from(append.count)
}

fn stored(append: &Append) -> RawDocumentBuf {
    use mongodb::bson::raw::cstr;

    let mut document = RawDocumentBuf::new();
    document.append(cstr!("_id"), binary(&append.append_id));
    document.append(cstr!("session"), binary(append.session_id.as_bytes()));
    document.append(cstr!("first"), number(append.expected_head + 1));
    document.append(cstr!("last"), number(end_of(append)));
    if !append.messages.is_empty() {
        let mut keys = mongodb::bson::RawArrayBuf::new();
        for message in &append.messages {
            keys.push(binary(&message.key));
        }
        document.append(cstr!("keys"), keys);
        document.append(cstr!("messages"), binary(&document::messages(&append.messages)));
    }
    if append.ends_session {
        document.append(cstr!("ends"), true);
    }
    document.append(cstr!("sealed"), binary(&append.sealed));
    document
}

/// What stood in the way: the server's word for a duplicate does not say it. What it was is held by a majority when
/// the barrier before a read is. `None`: nothing stands there any more.
async fn rival(shared: &Shared, append: &Append) -> Result<Option<Appended>, Fault> {
    let log = &shared.connection.log;
    let session = binary(append.session_id.as_bytes());
    let wanted = || fields(doc! { "_id": 1, "last": 1 });
    let place = doc! { "session": session.clone(), "first": number(append.expected_head + 1) };
    if let Some(found) = shared.one(log, place, wanted(), Level::Current).await? {
        let last = document::seq(&found, "last")?;
        shared.ends.raise(append.session_id, last);
        if document::id(&found, "_id")? != append.append_id {
            shared.companions.withdraw(append, last).await;
            return Ok(Some(Appended::Conflict));
        }
        shared.companions.follow(append).await;
        return Ok(Some(Appended::Done(last)));
    }
    let keys: Vec<Bson> = append.messages.iter().map(|message| binary(&message.key).into()).collect();
    let mut others = vec![doc! { "_id": binary(&append.append_id) }];
    if !keys.is_empty() {
        others.push(doc! { "session": session, "keys": { "$in": keys } });
    }
    for other in others {
        if shared.one(log, other, wanted(), Level::Current).await?.is_some() {
            shared.companions.withdraw(append, 0).await;
            return Ok(Some(Appended::Conflict));
        }
    }
    Ok(None)
}

/// The outcome of an attempt, for good: when there is none, a document with its id is put in its place, in no session's
/// log, and the attempt can only find its id taken, however late it arrives.
pub(super) async fn find_append(shared: &Shared, id: SessionId, append_id: AppendId) -> Result<Option<Seq>, Fault> {
    let log = &shared.connection.log;
    for _ in 0..LOOKS {
        let wanted = fields(doc! { "session": 1, "last": 1 });
        let found = shared.one(log, doc! { "_id": binary(&append_id) }, wanted, Level::Current).await?;
        if let Some(found) = found {
            if document::id(&found, "session")? != *id.as_bytes() {
                return Ok(None);
            }
            let last = document::seq(&found, "last")?;
            shared.ends.raise(id, last);
            if let Some(append) = shared.writer.take_parked(append_id) {
                shared.companions.follow(&append).await;
            }
            return Ok(Some(last));
        }
        let stand_in = doc! {
            "_id": binary(&append_id),
            // Its own session, so that it is nobody's entry and takes nobody's place.
            "session": binary(&append_id),
            "first": 0_i64,
            "last": 0_i64,
        };
        let stand_in = RawDocumentBuf::try_from(stand_in).map_err(|_| Fault::Misuse("a stand-in"))?;
        match log.insert_one(stand_in).await.map_err(Fault::from) {
            Ok(_) => {
                if let Some(append) = shared.writer.take_parked(append_id) {
                    shared.companions.withdraw(&append, 0).await;
                }
                return Ok(None);
            }
            // It, or another stand-in, came into being meanwhile.
            Err(fault) if fault.is_duplicate() => {}
            Err(fault) => return Err(fault),
        }
    }
    Err(Fault::TimedOut)
}

pub(super) async fn find_message(shared: &Shared, id: SessionId, key: KeyedHash) -> Result<Option<MessageKey>, Fault> {
    let filter = doc! { "session": binary(id.as_bytes()), "keys": binary(&key) };
    let wanted = fields(doc! { "keys": 1, "messages": 1 });
    let found = shared.one(&shared.connection.log, filter, wanted, Level::Current).await?;
    found.map(|found| document::message(&found, key)).transpose()
}

pub(super) async fn head(shared: &Shared, id: SessionId) -> Result<Seq, Fault> {
    let head = last_of(shared, doc! { "session": binary(id.as_bytes()) }).await?;
    if let Some(head) = head {
        shared.ends.raise(id, head);
    }
    Ok(head.unwrap_or(0))
}

/// The end of the last of these documents, which are of one session.
async fn last_of(shared: &Shared, filter: Document) -> Result<Option<Seq>, Fault> {
    let options = FindOptions::builder().sort(doc! { "first": -1 }).projection(doc! { "last": 1 }).build();
    let found = shared.one(&shared.connection.log, filter, options, Level::Current).await?;
    found.map(|found| document::seq(&found, "last")).transpose()
}

pub(super) async fn heads(shared: &Shared, ids: &[SessionId]) -> Result<Vec<(SessionId, Seq)>, Fault> {
    let among: Vec<Bson> = ids.iter().map(|id| binary(id.as_bytes()).into()).collect();
    // The order of an index, walked backwards, so that of each session only the last document is looked at.
    let pipeline = [
        doc! { "$match": { "session": { "$in": among.clone() } } },
        doc! { "$sort": { "session": -1, "first": -1 } },
        doc! { "$group": { "_id": "$session", "last": { "$first": "$last" } } },
    ];
    let mut session = shared.session(Level::Current).await?;
    let aggregate = shared.connection.log.aggregate(pipeline).max_time(shared.connection.limit);
    let aggregate = aggregate.read_concern(ReadConcern::majority()).with_type::<RawDocumentBuf>();
    let mut cursor = aggregate.session(&mut session).await?;
    let mut heads = Vec::with_capacity(ids.len());
    while cursor.advance(&mut session).await? {
        let id = SessionId::from_bytes(document::id(cursor.current(), "_id")?);
        heads.push((id, document::seq(cursor.current(), "last")?));
    }
    let empty: Vec<Bson> = ids
        .iter()
        .filter(|id| heads.iter().all(|(other, _)| other != *id))
        .map(|id| binary(id.as_bytes()).into())
        .collect();
    if !empty.is_empty() {
        let filter = doc! { "_id": { "$in": empty } };
        let options = fields(doc! { "_id": 1 });
        for session in shared.many(&shared.connection.sessions, filter, options, Level::Majority).await? {
            heads.push((SessionId::from_bytes(document::id(&session, "_id")?), 0));
        }
    }
    Ok(heads)
}

pub(super) async fn read_after(
    shared: &Shared,
    id: SessionId,
    after: Seq,
    limit: u32,
) -> Result<Vec<LogDocument>, Fault> {
    let log = &shared.connection.log;
    let session = binary(id.as_bytes());
    let mut causal = shared.session(Level::Current).await?;
    let wanted = number(after.saturating_add(1));
    let begin = log
        .find_one(doc! { "session": session.clone(), "first": { "$lte": wanted } })
        .sort(doc! { "first": -1 })
        .projection(doc! { "first": 1, "last": 1 })
        .read_concern(ReadConcern::majority())
        .max_time(shared.connection.limit)
        .session(&mut causal)
        .await?;
    let Some(begin) = begin else { return Ok(Vec::new()) };
    if document::seq(&begin, "last")? <= after {
        return Ok(Vec::new());
    }
    let first = number(document::seq(&begin, "first")?);
    let find = log
        .find(doc! { "session": session, "first": { "$gte": first } })
        .sort(doc! { "first": 1 })
        .limit(i64::from(limit))
        .read_concern(ReadConcern::majority())
        .max_time(shared.connection.limit)
        .session(&mut causal);
    let cursor = find.await?;
    collect(cursor, causal, limit, |document| {
        (document.first_seq + u64::from(document.count) - 1).saturating_sub(after)
    })
    .await
}

pub(super) async fn read_before(
    shared: &Shared,
    id: SessionId,
    before: Seq,
    limit: u32,
) -> Result<Vec<LogDocument>, Fault> {
    let mut session = shared.session(Level::Majority).await?;
    let find = shared
        .connection
        .log
        .find(doc! { "session": binary(id.as_bytes()), "first": { "$lt": number(before) } })
        .sort(doc! { "first": -1 })
        .limit(i64::from(limit))
        .read_concern(ReadConcern::majority())
        .max_time(shared.connection.limit)
        .session(&mut session);
    let cursor = find.await?;
    collect(cursor, session, limit, |document| before.saturating_sub(document.first_seq)).await
}

/// Documents until they hold `limit` entries; `within` counts those of one document that lie on the wanted side.
async fn collect(
    mut cursor: SessionCursor<RawDocumentBuf>,
    mut session: ClientSession,
    limit: u32,
    within: impl Fn(&LogDocument) -> u64,
) -> Result<Vec<LogDocument>, Fault> {
    let mut documents = Vec::new();
    let mut entries = 0;
    while entries < u64::from(limit) && cursor.advance(&mut session).await? {
        let document = document::log_document(cursor.current())?;
        let wanted = within(&document).min(u64::from(document.count));
        if wanted > 0 {
            entries += wanted;
            documents.push(document);
        }
    }
    Ok(documents)
}

//! Our values as BSON, both ways. Names of fields are short words: each document carries its own.

use chatbox_proto::ids::{MessageId, SessionId};
use mongodb::bson::{Binary, Document, RawDocument, doc, spec::BinarySubtype};

use super::fault::Fault;
use crate::{
    domain::{entry::Seq, time::Timestamp},
    store::{Append, Derived, Header, KeyedHash, LogDocument, MessageKey, ReplyLease, ReplyRow},
};

/// A message key's content hash, message id and number, one after the other.
const MESSAGE_BYTES: usize = 16 + 16 + 8;
/// Turns the order of signed numbers into that of their bytes.
const SIGN: u64 = 1 << 63;

/// For writing and for bounds: numbers beyond what is stored stand for its largest.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn binary(bytes: &[u8]) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() }
}

pub(super) fn bytes<'a>(document: &'a RawDocument, field: &'static str) -> Result<&'a [u8], Fault> {
    document.get_binary(field).map(|binary| binary.bytes).map_err(|_| Fault::Corrupt(field))
}

pub(super) fn id(document: &RawDocument, field: &'static str) -> Result<[u8; 16], Fault> {
    bytes(document, field)?.try_into().map_err(|_| Fault::Corrupt(field))
}

pub(super) fn seq(document: &RawDocument, field: &'static str) -> Result<Seq, Fault> {
    let value = document.get_i64(field).map_err(|_| Fault::Corrupt(field))?;
    u64::try_from(value).map_err(|_| Fault::Corrupt(field))
}

pub(super) fn flag(document: &RawDocument, field: &'static str) -> Result<bool, Fault> {
    document.get_bool(field).map_err(|_| Fault::Corrupt(field))
}

pub(super) fn has(document: &RawDocument, field: &'static str) -> Result<bool, Fault> {
    document.get(field).map(|value| value.is_some()).map_err(|_| Fault::Corrupt(field))
}

/// The place in an owner's list as one value whose bytes have the list's order: latest activity, then larger id.
pub(super) fn order(activity: Timestamp, id: SessionId) -> Binary {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend(((activity.millis() as u64) ^ SIGN).to_be_bytes());
    bytes.extend(id.as_bytes());
    Binary { subtype: BinarySubtype::Generic, bytes }
}

fn activity(document: &RawDocument) -> Result<Timestamp, Fault> {
    let order = bytes(document, "order")?;
    let millis = order.first_chunk().ok_or(Fault::Corrupt("order"))?;
    Ok(Timestamp::from_millis((u64::from_be_bytes(*millis) ^ SIGN) as i64))
}

/// What is set when the folded state is replaced.
pub(super) fn derived(id: SessionId, derived: &Derived) -> Document {
    doc! {
        "applied": number(derived.applied_seq),
        "state": binary(&derived.state),
        "order": order(derived.last_activity, id),
        "ended": derived.ended,
        "unfinished": derived.unfinished,
    }
}

/// Replaces the folded state. A mark made ahead of an append beyond it stays: see [`announced`].
pub(super) fn replacement(id: SessionId, new: &Derived) -> Vec<Document> {
    let mut fields = derived(id, new);
    // The server's clock, whoever writes.
    fields.insert("touched", "$$NOW");
    let beyond = doc! { "$gt": ["$intent.at", number(new.applied_seq)] };
    for field in ["marked", "intent"] {
        fields.insert(field, doc! { "$cond": [beyond.clone(), format!("${field}"), "$$REMOVE"] });
    }
    vec![doc! { "$set": fields }]
}

/// Marks a session that an append leaves unfinished, beside the append, ahead of the folded state that will say so. The
/// mark names the append and its last entry, and goes when the folded state has come that far.
pub(super) fn announced(append: &Append) -> Document {
    let at = append.expected_head + u64::from(append.count);
    doc! { "$set": { "marked": true, "intent": { "append": binary(&append.append_id), "at": number(at) } } }
}

/// Takes a mark back whose append was not written: at once, or when the folded state has come as far as its rival, which
/// may have left the session unfinished and overwritten its mark.
pub(super) fn withdrawal(until: Seq) -> Vec<Document> {
    let passed = doc! { "$gte": ["$applied", number(until)] };
    vec![doc! { "$set": {
        "marked": { "$cond": [passed.clone(), "$$REMOVE", "$marked"] },
        "intent": { "$cond": [passed, "$$REMOVE", { "append": "$intent.append", "at": number(until) }] },
    } }]
}

/// What is left of an erased session. Lists are walks over both values of `ended`, so that a header without it is in none.
pub(super) fn erasure(fence: Seq) -> Document {
    doc! {
        "$set": { "key": binary(&[]), "state": binary(&[]), "unfinished": false },
        "$max": { "applied": number(fence) },
        "$unset": { "ended": "", "slot": "", "since": "", "claim": "", "marked": "", "intent": "", "marks": "" },
    }
}

pub(super) fn header(document: &RawDocument) -> Result<Header, Fault> {
    let owner = document.get_str("owner").map_err(|_| Fault::Corrupt("owner"))?;
    let slot = if has(document, "slot")? {
        Some(u32::try_from(seq(document, "slot")?).map_err(|_| Fault::Corrupt("slot"))?)
    } else {
        None
    };
    let created = document.get_i64("created").map_err(|_| Fault::Corrupt("created"))?;
    let wrapped_key = bytes(document, "key")?.to_vec();
    Ok(Header {
        id: SessionId::from_bytes(id(document, "_id")?),
        owner: owner.to_owned(),
        slot,
        // See `erasure`.
        derived: Derived {
            applied_seq: seq(document, "applied")?,
            state: bytes(document, "state")?.to_vec(),
            last_activity: activity(document)?,
            ended: wrapped_key.is_empty() || flag(document, "ended")?,
            unfinished: flag(document, "unfinished")?,
        },
        wrapped_key,
        created_at: Timestamp::from_millis(created),
    })
}

pub(super) fn log_document(document: &RawDocument) -> Result<LogDocument, Fault> {
    let (first_seq, last) = (seq(document, "first")?, seq(document, "last")?);
    let count = last.checked_sub(first_seq).and_then(|more| u32::try_from(more + 1).ok());
    let count = count.ok_or(Fault::Corrupt("last"))?;
    Ok(LogDocument { first_seq, count, sealed: bytes(document, "sealed")?.to_vec() })
}

/// What belongs to the message keys of a document, in their order.
pub(super) fn messages(keys: &[MessageKey]) -> Vec<u8> {
    let mut out = Vec::with_capacity(keys.len() * MESSAGE_BYTES);
    for message in keys {
        out.extend(message.content);
        out.extend(message.message_id.as_bytes());
        out.extend(message.seq.to_be_bytes());
    }
    out
}

/// The message with this key among those of a document.
pub(super) fn message(document: &RawDocument, key: KeyedHash) -> Result<MessageKey, Fault> {
    const WRONG: Fault = Fault::Corrupt("keys");
    let mut place = None;
    for (index, stored) in document.get_array("keys").map_err(|_| WRONG)?.into_iter().enumerate() {
        if stored.map_err(|_| WRONG)?.as_binary().is_some_and(|binary| binary.bytes == key) {
            place = Some(index);
        }
    }
    let at = place.ok_or(WRONG)? * MESSAGE_BYTES;
    let message = bytes(document, "messages")?.get(at..at + MESSAGE_BYTES).ok_or(WRONG)?;
    let part = |from: usize| message[from..].first_chunk::<16>().copied().ok_or(WRONG);
    let seq = message[32..].first_chunk::<8>().copied().ok_or(WRONG)?;
    Ok(MessageKey {
        key,
        content: part(0)?,
        message_id: MessageId::from_bytes(part(16)?),
        seq: u64::from_be_bytes(seq),
    })
}

pub(super) fn reply(document: &RawDocument) -> Result<ReplyRow, Fault> {
    let ReplyLease { session_id, message_id, boot_id, renewals } = lease(document)?;
    Ok(ReplyRow {
        session_id,
        message_id,
        started_seq: seq(document, "started")?,
        boot_id,
        renewals,
        checkpoint: bytes(document, "checkpoint")?.to_vec(),
    })
}

pub(super) fn lease(document: &RawDocument) -> Result<ReplyLease, Fault> {
    Ok(ReplyLease {
        session_id: SessionId::from_bytes(id(document, "session")?),
        message_id: MessageId::from_bytes(id(document, "_id")?),
        boot_id: id(document, "boot")?,
        renewals: seq(document, "renewals")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_bytes_is_that_of_activity_and_id() {
        let (low, high) = (SessionId::from_bytes([0; 16]), SessionId::from_bytes([255; 16]));
        let times = [i64::MIN, -1, 0, 1, 1_700_000_000_000, i64::MAX];
        let mut places = Vec::new();
        for time in times {
            for id in [low, high] {
                places.push(order(Timestamp::from_millis(time), id).bytes);
            }
        }
        assert!(places.is_sorted());
        places.dedup();
        assert_eq!(places.len(), 12);
    }
}

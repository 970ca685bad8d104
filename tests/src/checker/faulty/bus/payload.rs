//! What cores tell each other about a session, opened, changed and sealed again. Its form is `core`'s own (`session/link.rs`);
//! what does not look like it is passed on as it is, and a lie that is never told fails its test.

use bytes::Bytes;
use chatbox_core::{
    domain::entry::{EntryKind, Fact, Seq},
    seal::{DataKey, Field},
};
use chatbox_proto::ids::{MessageId, SessionId};
use serde_json::{Value, json};

const DOCUMENT: u8 = 1;
const HINT: u8 = 2;
/// Kind, first number, count.
const HEADER: usize = 1 + 8 + 4;

/// A session's key, and what is sealed with it.
#[derive(Debug)]
pub(super) struct Opener {
    pub(super) session: SessionId,
    pub(super) key: DataKey,
}

/// Entries with their place.
pub(super) struct Document {
    pub(super) first_seq: Seq,
    pub(super) facts: Vec<Fact>,
}

/// The header of a document ahead of the sealed entries of another one.
pub(super) fn moved(document: &[u8], other: &[u8]) -> Option<Bytes> {
    let (header, inside) = (document.get(..HEADER)?, other.get(HEADER..)?);
    (document[0] == DOCUMENT && other[0] == DOCUMENT && header != &other[..HEADER])
        .then(|| [header, inside].concat().into())
}

impl Opener {
    fn place(&self, first_seq: Seq, count: usize) -> Field {
        Field::Log { session: self.session, first_seq, count: u32::try_from(count).unwrap_or(u32::MAX) }
    }

    pub(super) fn document(&self, payload: &[u8]) -> Option<Document> {
        let (header, sealed) = payload.split_at_checked(HEADER)?;
        let first_seq = Seq::from_be_bytes(header.get(1..9)?.try_into().ok()?);
        let count = u32::from_be_bytes(header.get(9..)?.try_into().ok()?);
        let plain =
            (header[0] == DOCUMENT).then(|| self.key.open(self.place(first_seq, count as usize), sealed))?.ok()?;
        Some(Document { first_seq, facts: serde_json::from_slice(&plain).ok()? })
    }

    pub(super) fn seal_document(&self, document: &Document) -> Option<Bytes> {
        let count = document.facts.len();
        let sealed = self.key.seal(self.place(document.first_seq, count), &serde_json::to_vec(&document.facts).ok()?);
        let mut payload = vec![DOCUMENT];
        payload.extend(document.first_seq.to_be_bytes());
        payload.extend(u32::try_from(count).ok()?.to_be_bytes());
        payload.extend(sealed);
        Some(payload.into())
    }

    fn hint(&self, payload: &[u8]) -> Option<Value> {
        let (kind, sealed) = payload.split_first()?;
        let place = Field::Bus { session: self.session, kind: HINT };
        let plain = (*kind == HINT).then(|| self.key.open(place, sealed))?.ok()?;
        serde_json::from_slice(&plain).ok()
    }

    fn seal_hint(&self, hint: &Value) -> Bytes {
        let sealed = self.key.seal(Field::Bus { session: self.session, kind: HINT }, hint.to_string().as_bytes());
        let mut payload = vec![HINT];
        payload.extend(sealed);
        payload.into()
    }

    /// A head far behind what there is.
    pub(super) fn far_head(&self) -> Bytes {
        self.seal_hint(&json!({ "head": 1_000_000 }))
    }

    /// A message of this document with another text.
    pub(super) fn changed_text(&self, payload: &[u8]) -> Option<Bytes> {
        let mut document = self.document(payload)?;
        let mut changed = false;
        for fact in &mut document.facts {
            if let EntryKind::Message(message) = &mut fact.kind {
                message.text.push('!');
                changed = true;
            }
        }
        changed.then(|| self.seal_document(&document)).flatten()
    }

    /// A message like the one in this document, behind the start of the reply to it.
    pub(super) fn invented(&self, payload: &[u8]) -> Option<Bytes> {
        let Document { first_seq, facts } = self.document(payload)?;
        if !facts.iter().any(|fact| matches!(fact.kind, EntryKind::ReplyStarted(_))) {
            return None;
        }
        let mut again = facts.iter().find(|fact| matches!(fact.kind, EntryKind::Message(_)))?.clone();
        if let EntryKind::Message(message) = &mut again.kind {
            message.id = MessageId::generate();
            message.client_message_id = None;
        }
        self.seal_document(&Document { first_seq: first_seq + facts.len() as Seq, facts: vec![again] })
    }

    /// A piece of a reply: the reply, its offset, its text.
    pub(super) fn delta(&self, payload: &[u8]) -> Option<Delta> {
        let hint = self.hint(payload)?;
        let delta = hint.get("delta")?;
        let reply = delta.get("message_id")?.as_str()?.to_owned();
        let (offset, text) = (delta.get("offset")?.as_u64()?, delta.get("text")?.as_str()?.to_owned());
        Some(Delta { hint, reply, offset, text })
    }

    /// The piece with another offset and text.
    pub(super) fn seal_delta(&self, mut delta: Delta, offset: u64, text: &str) -> Bytes {
        delta.hint["delta"]["offset"] = offset.into();
        delta.hint["delta"]["text"] = text.into();
        self.seal_hint(&delta.hint)
    }
}

/// A piece of a reply.
pub(super) struct Delta {
    hint: Value,
    pub(super) reply: String,
    pub(super) offset: u64,
    pub(super) text: String,
}

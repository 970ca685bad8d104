//! From a decision to what the store is given.

use chatbox_proto::ids::MessageId;

use super::{
    Room,
    flight::{Outcome, conflict},
};
use crate::{
    domain::{
        entry::{Entry, EntryKind, Fact, Message, Seq},
        session::SessionState,
        time::Timestamp,
    },
    session::{error::SessionError, log::SessionLog},
    store::{Append, KeyedHash, MessageKey, ReplyRow, RequestKey},
};

impl Room {
    /// The document, its keys and its companions, decided against the head.
    pub(super) fn prepare(
        &self,
        kinds: Vec<EntryKind>,
        request: Option<&RequestKey>,
    ) -> Result<(Vec<Entry>, Append), SessionError> {
        let head = self.state.head;
        let at = Timestamp::now();
        let entries: Vec<Entry> =
            (head + 1..).zip(kinds).map(|(seq, kind)| Entry { seq, fact: Fact { at, kind } }).collect();
        let mut after: SessionState = self.state.clone();
        let mut messages = Vec::new();
        for entry in &entries {
            after.apply(entry)?;
            if let EntryKind::Message(message) = &entry.fact.kind
                && message.client_message_id.is_some()
            {
                messages.push(self.message_key(message, entry.seq));
            }
        }
        // Calls that name themselves are recognised like messages: their names are unique in the session.
        messages.extend(request.map(|request| MessageKey {
            key: request.id,
            content: request.content,
            message_id: MessageId::generate(),
            seq: after.head,
        }));
        let facts: Vec<&Fact> = entries.iter().map(|entry| &entry.fact).collect();
        let reply_started =
            after.running.as_ref().filter(|running| running.started_seq > head).map(|running| ReplyRow {
                session_id: self.log.id,
                message_id: running.id,
                started_seq: running.started_seq,
                boot_id: self.shared.boot_id,
                renewals: 0,
                checkpoint: Vec::new(),
            });
        let returns = self.state.ended.is_some() && after.ended.is_none();
        let before = self.state.running.as_ref();
        let reply_finished = before.filter(|running| after.running.as_ref() != Some(running)).map(|running| running.id);
        let append = Append {
            session_id: self.log.id,
            append_id: rand::random(),
            expected_head: head,
            count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            sealed: self.log.seal(head + 1, &facts)?,
            messages,
            ends_session: after.ended.is_some() && self.state.ended.is_none(),
            takes_slot: returns.then(|| self.shared.limits.slot_rule()),
            derived: self.log.derive(&after)?,
            reply_started,
            reply_finished,
        };
        Ok((entries, append))
    }

    pub(super) fn message_key(&self, message: &Message, seq: Seq) -> MessageKey {
        let client_id = message.client_message_id.as_deref().unwrap_or_default();
        let mut content: Vec<&[u8]> = vec![message.text.as_bytes()];
        content.extend(message.file_ids.iter().map(String::as_bytes));
        MessageKey {
            key: self.log.key.keyed_hash("message", &[message.sender.user_id.as_bytes(), client_id.as_bytes()]),
            content: self.log.key.keyed_hash("content", &content),
            message_id: message.id,
            seq,
        }
    }
}

/// The message or call with this key, and what was missed.
pub(super) async fn lookup(log: SessionLog, head: Seq, key: Option<KeyedHash>) -> Outcome {
    let key = key.map(|key| MessageKey { key, content: key, message_id: MessageId::from_bytes([0; 16]), seq: 0 });
    conflict(log, head, key).await
}

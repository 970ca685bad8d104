//! What whoever asked for a write is told about it.

use chatbox_proto::ids::MessageId;

use super::write::Op;
use crate::domain::entry::{Entry, EntryKind, Seq};

/// What was done for them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    pub(super) message_id: Option<MessageId>,
    pub(super) seq: Seq,
    pub(super) duplicate: bool,
}

impl Done {
    /// For the entries of an append.
    pub(super) fn of(op: &Op, entries: &[Entry]) -> Self {
        if let Op::Handoff(_) = op {
            // What the product says of it is no message of theirs.
            return Self { seq: entries.first().map_or(0, |entry| entry.seq), ..Self::default() };
        }
        let message = entries.iter().find_map(|entry| {
            if let EntryKind::Message(message) = &entry.fact.kind {
                return Some((message.id, entry.seq));
            }
            // One that replaces another is what was asked for; any other only follows.
            let EntryKind::ReplyStarted(reply) = &entry.fact.kind else { return None };
            reply.supersedes.map(|_| (reply.id, entry.seq))
        });
        match message {
            Some((id, seq)) => Self { message_id: Some(id), seq, duplicate: false },
            None => Self { message_id: None, seq: entries.last().map_or(0, |entry| entry.seq), duplicate: false },
        }
    }
}

//! What must hold of the pieces in which a running reply comes: they continue each other, they are the provider's text, they
//! come while the reply runs, and they add up to what is stored.

use std::collections::HashMap;

use chatbox_proto::v1::{
    Entry, FinishReason,
    chat_request::{Open, ReplyPosition},
    chat_response::Event,
    entry::Kind,
};

use super::{Class, Violation, subscriber::Reading};
use crate::harness::client::Transport;

/// How much of each reply a connection has been sent.
#[derive(Default)]
pub(super) struct Pieces<'a> {
    ends: HashMap<&'a str, usize>,
    /// What the client said it had.
    position: Option<&'a ReplyPosition>,
}

/// A delta or a snapshot.
struct Piece<'a> {
    message_id: &'a str,
    started_seq: u64,
    offset: usize,
    end: usize,
    text: &'a str,
    snapshot: bool,
}

impl<'a> Piece<'a> {
    fn of(event: &'a Event) -> Option<Self> {
        let (message_id, started_seq, offset, end, text, snapshot) = match event {
            Event::ReplyDelta(delta) => {
                (&delta.message_id, delta.started_seq, delta.offset, delta.next_offset, &delta.text, false)
            }
            Event::ReplySnapshot(shot) => {
                (&shot.message_id, shot.started_seq, shot.offset, shot.next_offset, &shot.text, true)
            }
            _ => return None,
        };
        Some(Self { message_id, started_seq, offset: offset as usize, end: end as usize, text, snapshot })
    }
}

impl<'a> Pieces<'a> {
    pub(super) fn of(open: &'a Open) -> Self {
        Self { ends: HashMap::new(), position: open.reply.as_ref() }
    }

    /// How much the client has of a reply.
    fn end_of(&self, message_id: &str) -> Option<usize> {
        let named = self.position.filter(|position| position.message_id == message_id);
        self.ends.get(message_id).copied().or(named.map(|position| position.next_offset as usize))
    }

    pub(super) fn piece(&mut self, reading: &Reading<'a>, step: usize, event: &'a Event, found: &mut Vec<Violation>) {
        let Some(piece) = Piece::of(event) else { return };
        let id = piece.message_id;
        let started = reading.stored.started.get(id).map(|(seq, _)| *seq);
        let finished = reading.stored.finished.get(id).map(|(seq, _)| *seq);
        // A snapshot may go back, to the place that the client named or to the beginning; a delta only goes on.
        let fits = if piece.snapshot {
            piece.offset <= self.end_of(id).unwrap_or(0)
        } else {
            piece.offset == self.ends.get(id).copied().unwrap_or(0)
        };
        let wrong = if started != Some(piece.started_seq) {
            Some(format!("it belongs to a reply that the log has at {started:?}"))
        } else if piece.started_seq >= reading.next {
            Some(format!("it comes before the start of its reply, entry {}", piece.started_seq))
        } else if finished.is_some_and(|finished| finished < reading.next) {
            Some(format!("it comes after the end of its reply, entry {finished:?}"))
        } else if !fits || piece.end != piece.offset + piece.text.len() {
            Some(format!("{}..{} does not follow {:?}", piece.offset, piece.end, self.end_of(id)))
        } else {
            None
        };
        if let Some(what) = wrong {
            found.push(reading.violation(Class::PieceMisplaced, step, what));
        }
        if let Some(plan) = reading.stored.plan(id) {
            let whole = plan.whole();
            if whole.get(piece.offset..piece.end) != Some(piece.text) {
                let what = format!("{:?}, but the provider's text is {whole:?}", piece.text);
                found.push(reading.violation(Class::PieceDiffers, step, what));
            }
        }
        self.ends.insert(id, piece.end);
    }

    /// The end of a reply: what was streamed is its text, or the beginning of it.
    pub(super) fn entry(&mut self, reading: &Reading<'a>, step: usize, entry: &'a Entry, found: &mut Vec<Violation>) {
        let Some(Kind::ReplyFinished(end)) = &entry.kind else { return };
        let streamed = self.end_of(&end.message_id).unwrap_or(0);
        let stored = end.text.len();
        if end.finish_reason() == FinishReason::Interrupted {
            return;
        }
        // Who was attached to the only core while it ran has missed nothing.
        let watched = reading.case.rules.one_core
            && reading.connection.transport == Transport::Grpc
            && reading.connection.opened().is_some_and(|opened| opened.head < entry.seq);
        if streamed > stored || (watched && streamed < stored) {
            let what = format!("{streamed} bytes were streamed, {stored} are stored, {:?}", end.finish_reason());
            found.push(reading.violation(Class::StreamedDiffers, step, what));
        }
    }
}

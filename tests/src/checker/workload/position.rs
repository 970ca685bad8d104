//! Where a client is in its session, as far as it can tell from what it was sent.

use chatbox_proto::v1::{
    chat_request::{Open, ReplyPosition},
    chat_response::{Event, Opened, ResumeVerdict},
    entry::Kind,
};
use tokio::time::Instant;

/// A client's place in one session.
#[derive(Debug, Default)]
pub(super) struct Position {
    pub(super) session_id: String,
    /// The last entry it has.
    pub(super) after: Option<u64>,
    /// How much of a running reply it has.
    pub(super) reply: Option<ReplyPosition>,
    /// The reply that runs, and since when it is known.
    pub(super) running: Option<(String, Instant)>,
    /// The session takes no more messages.
    pub(super) ended: bool,
    /// The head as the last heartbeat told it.
    pub(super) told: Option<u64>,
}

impl Position {
    /// The frame to come back with.
    pub(super) fn open(&self) -> Open {
        Open {
            session_id: self.session_id.clone(),
            after_seq: self.after,
            reply: self.reply.clone(),
            ..Open::default()
        }
    }

    fn opened(&mut self, opened: &Opened) {
        if let Some(session) = &opened.session {
            self.session_id.clone_from(&session.session_id);
        }
        self.told = None;
        if opened.verdict() != ResumeVerdict::Replayed {
            // What lies before the head is not sent: nothing is known of it.
            self.after = Some(opened.head);
            self.running = None;
            self.reply = None;
        }
    }

    fn piece(&mut self, message_id: &str, next_offset: u32) {
        self.reply = Some(ReplyPosition { message_id: message_id.to_owned(), next_offset });
        if self.running.as_ref().is_none_or(|(known, _)| known != message_id) {
            self.running = Some((message_id.to_owned(), Instant::now()));
        }
    }

    /// Takes an event in.
    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Opened(opened) => self.opened(opened),
            Event::Entry(entry) => {
                self.after = Some(entry.seq);
                match &entry.kind {
                    Some(Kind::ReplyStarted(started)) => {
                        self.running = Some((started.message_id.clone(), Instant::now()));
                    }
                    Some(Kind::ReplyFinished(_)) => {
                        self.running = None;
                        self.reply = None;
                    }
                    Some(Kind::Ended(_)) => self.ended = true,
                    _ => {}
                }
            }
            Event::ReplyDelta(delta) => self.piece(&delta.message_id, delta.next_offset),
            Event::ReplySnapshot(shot) => self.piece(&shot.message_id, shot.next_offset),
            Event::Heartbeat(heartbeat) => self.told = Some(heartbeat.head),
            _ => {}
        }
    }

    /// At the head as it was told, with nothing running.
    pub(super) fn is_at_rest(&self) -> bool {
        self.told.is_some() && self.told == self.after && self.running.is_none()
    }
}

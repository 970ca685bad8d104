//! Frames of the client on their way to core, and those that core has not answered: what is sent again when a stream is lost.
//!
//! - A frame with a request id is kept until an `ack` or `error` with that id passes. Core answers every one of them.
//! - A `send` without one gets no ack: it is kept until its entry passes, told by sender and client message id. Nothing tells
//!   that it was refused or a repeat, so it is the first, oldest first, to make room for others.
//! - An `error` without a request id may answer any frame that core has: those keep their place only while nobody needs it.
//! - Everything else (`typing`, `detach`, frames without either id) is forgotten once core's queue has it.
//!
//! After a loss `open`, `send`, `stop` and `read` are sent again in their order: doing them twice is doing them once. A
//! `refresh_token` is done by opening with that token. Of the others nobody knows what became of them, and the client is told
//! so. What core's queue never had is simply sent. When the buffer is full the socket is not read; the frame that crosses the
//! bound in bytes is the last one taken.

use std::collections::VecDeque;

use bytes::Bytes;

use super::frame::{ClientFrame, Kind};

#[derive(Debug)]
pub(super) struct Unanswered {
    held: VecDeque<Held>,
    /// So many of them, from the front, core's queue has had.
    sent: usize,
    bytes: usize,
    max_frames: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Held {
    request_id: String,
    client_message_id: String,
    fate: Fate,
    bytes: Bytes,
    /// Makes room for others.
    yields: bool,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Forgotten once it was handed over.
    Once,
    /// Sent again.
    Again,
    /// Nobody knows whether it was done.
    Unknown,
    /// A new token.
    Refresh,
    /// A new token, on a stream that was lost: done by opening another one with it.
    Refreshed,
}

impl Unanswered {
    pub(super) fn new(max_frames: usize, max_bytes: usize) -> Self {
        Self { held: VecDeque::new(), sent: 0, bytes: 0, max_frames, max_bytes }
    }

    pub(super) fn push(&mut self, frame: ClientFrame) {
        let ClientFrame { request_id, kind, bytes } = frame;
        let asked = !request_id.is_empty();
        let (fate, client_message_id) = match kind {
            Kind::Send(id) if asked || !id.is_empty() => (Fate::Again, id),
            Kind::Open(_) | Kind::Repeatable if asked => (Fate::Again, String::new()),
            Kind::RefreshToken(_) if asked => (Fate::Refresh, String::new()),
            Kind::EndSession | Kind::Other if asked => (Fate::Unknown, String::new()),
            Kind::Send(_)
            | Kind::Open(_)
            | Kind::Repeatable
            | Kind::RefreshToken(_)
            | Kind::EndSession
            | Kind::Other
            | Kind::Typing
            | Kind::Detach => (Fate::Once, String::new()),
        };
        self.bytes += bytes.len();
        self.held.push_back(Held { request_id, client_message_id, fate, bytes, yields: !asked });
    }

    /// Whether another frame may come, when those that yield have made room for it.
    pub(super) fn has_room(&mut self) -> bool {
        while self.is_full() {
            let Some(first) = self.held.iter().take(self.sent).position(|held| held.yields) else { return false };
            self.forget(first);
        }
        true
    }

    fn is_full(&self) -> bool {
        self.held.len() >= self.max_frames || self.bytes >= self.max_bytes
    }

    fn forget(&mut self, index: usize) {
        if let Some(held) = self.held.remove(index) {
            self.bytes -= held.bytes.len();
            if index < self.sent {
                self.sent -= 1;
            }
        }
    }

    /// The next frame for core's queue.
    pub(super) fn next(&self) -> Option<&Bytes> {
        self.held.get(self.sent).map(|held| &held.bytes)
    }

    /// Core's queue has it.
    pub(super) fn handed_over(&mut self) {
        match self.held.get(self.sent).map(|held| held.fate) {
            Some(Fate::Once) => self.forget(self.sent),
            Some(Fate::Again | Fate::Unknown | Fate::Refresh | Fate::Refreshed) => self.sent += 1,
            None => {}
        }
    }

    /// An ack or error with this request id has passed.
    pub(super) fn answered(&mut self, request_id: &str) {
        let found = self.held.iter().take(self.sent).position(|held| held.request_id == request_id);
        if let Some(index) = found {
            self.forget(index);
        }
    }

    /// This frame goes to core by another way.
    pub(super) fn take_out(&mut self, request_id: &str) {
        if let Some(index) = self.held.iter().position(|held| !request_id.is_empty() && held.request_id == request_id) {
            self.forget(index);
        }
    }

    /// Whether an entry can be the answer to one of them.
    pub(super) fn waits_for_entries(&self) -> bool {
        self.held.iter().take(self.sent).any(|held| held.request_id.is_empty() && !held.client_message_id.is_empty())
    }

    /// The client's own message with this client message id has passed.
    pub(super) fn written(&mut self, client_message_id: &str) {
        let mine = |held: &Held| held.request_id.is_empty() && held.client_message_id == client_message_id;
        if let Some(index) = self.held.iter().take(self.sent).position(mine) {
            self.forget(index);
        }
    }

    /// An error that names no frame has passed.
    pub(super) fn answered_some(&mut self) {
        for held in self.held.iter_mut().take(self.sent) {
            held.yields = true;
        }
    }

    /// The stream is lost. Returns the request ids of the frames whose outcome nobody knows; they are forgotten.
    pub(super) fn lost(&mut self) -> Vec<String> {
        let mut unknown = Vec::new();
        for index in (0..self.sent).rev() {
            let Some(held) = self.held.get_mut(index) else { continue };
            match held.fate {
                Fate::Unknown => {
                    unknown.push(std::mem::take(&mut held.request_id));
                    self.forget(index);
                }
                Fate::Refresh => held.fate = Fate::Refreshed,
                Fate::Again | Fate::Refreshed | Fate::Once => {}
            }
        }
        self.sent = 0;
        unknown.reverse();
        unknown
    }

    /// There is a stream again. Returns the request ids of new tokens that it was opened with; they are forgotten.
    pub(super) fn reopened(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        while let Some(index) = self.held.iter().position(|held| held.fate == Fate::Refreshed) {
            done.extend(self.held.get_mut(index).map(|held| std::mem::take(&mut held.request_id)));
            self.forget(index);
        }
        done
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(request_id: &str, kind: Kind, text: &'static str) -> ClientFrame {
        ClientFrame { request_id: request_id.into(), kind, bytes: Bytes::from_static(text.as_bytes()) }
    }

    fn send(request_id: &str, id: &str, text: &'static str) -> ClientFrame {
        frame(request_id, Kind::Send(id.into()), text)
    }

    /// Hands everything over and says what it was.
    fn hand_over(unanswered: &mut Unanswered) -> Vec<Bytes> {
        let mut handed = Vec::new();
        while let Some(next) = unanswered.next() {
            handed.push(next.clone());
            unanswered.handed_over();
        }
        handed
    }

    #[test]
    fn what_is_answered_is_not_sent_again_and_the_rest_is_in_order() {
        let mut unanswered = Unanswered::new(64, 1 << 18);
        for number in ["1", "2", "3", "4"] {
            unanswered.push(send(number, number, number));
        }
        unanswered.push(frame("stop", Kind::Repeatable, "stop"));
        assert_eq!(hand_over(&mut unanswered), ["1", "2", "3", "4", "stop"]);
        unanswered.answered("2");
        unanswered.answered("2");
        unanswered.answered("nobody");
        assert!(unanswered.lost().is_empty());
        unanswered.push(send("5", "5", "5"));
        assert!(unanswered.reopened().is_empty());
        assert_eq!(hand_over(&mut unanswered), ["1", "3", "4", "stop", "5"]);
        for number in ["1", "3", "4", "stop", "5"] {
            unanswered.answered(number);
        }
        assert!(unanswered.is_empty() && unanswered.bytes == 0 && unanswered.sent == 0);
    }

    #[test]
    fn an_answer_does_not_reach_a_frame_that_core_never_had() {
        let mut unanswered = Unanswered::new(64, 1 << 18);
        unanswered.push(send("same", "1", "1"));
        unanswered.answered("same");
        assert_eq!(hand_over(&mut unanswered), ["1"]);
    }

    #[test]
    fn what_cannot_be_repeated_is_named_and_forgotten_unless_core_never_had_it() {
        let mut unanswered = Unanswered::new(64, 1 << 18);
        unanswered.push(frame("a", Kind::Other, "a"));
        unanswered.push(send("b", "b", "b"));
        unanswered.push(frame("c", Kind::EndSession, "c"));
        hand_over(&mut unanswered);
        unanswered.push(frame("d", Kind::Other, "d"));
        assert_eq!(unanswered.lost(), ["a", "c"]);
        assert_eq!(hand_over(&mut unanswered), ["b", "d"]);
    }

    #[test]
    fn what_nobody_asked_about_is_forgotten_when_it_is_handed_over() {
        let mut unanswered = Unanswered::new(64, 1 << 18);
        unanswered.push(frame("r", Kind::Typing, "typing"));
        unanswered.push(frame("r", Kind::Detach, "detach"));
        unanswered.push(frame("", Kind::Repeatable, "read"));
        unanswered.push(frame("", Kind::Other, "select"));
        unanswered.push(send("", "", "bad"));
        assert_eq!(hand_over(&mut unanswered).len(), 5);
        assert!(unanswered.is_empty());
    }

    #[test]
    fn a_new_token_is_answered_by_the_stream_that_was_opened_with_it() {
        let mut unanswered = Unanswered::new(64, 1 << 18);
        unanswered.push(frame("t", Kind::RefreshToken("x".into()), "t"));
        unanswered.push(frame("", Kind::RefreshToken("x".into()), "silent"));
        hand_over(&mut unanswered);
        assert!(unanswered.lost().is_empty());
        // This one came when there was no stream: it is sent on the next.
        unanswered.push(frame("u", Kind::RefreshToken("x".into()), "u"));
        assert_eq!(unanswered.reopened(), ["t"]);
        assert_eq!(hand_over(&mut unanswered), ["u"]);
    }

    #[test]
    fn a_send_without_request_id_waits_for_its_entry_and_yields_its_place() {
        let mut unanswered = Unanswered::new(2, 1 << 18);
        unanswered.push(send("", "x", "x"));
        unanswered.push(send("r", "y", "y"));
        // Core has neither: nothing may be dropped.
        assert!(!unanswered.has_room());
        hand_over(&mut unanswered);
        assert!(unanswered.waits_for_entries());
        unanswered.written("y");
        assert!(unanswered.has_room());
        assert!(!unanswered.waits_for_entries());
        unanswered.push(send("", "z", "z"));
        hand_over(&mut unanswered);
        unanswered.written("z");
        assert!(unanswered.has_room());
        assert_eq!(unanswered.held.len(), 1);
    }

    #[test]
    fn full_is_full_by_frames_or_bytes_until_something_is_answered() {
        let mut unanswered = Unanswered::new(2, 10);
        unanswered.push(send("1", "1", "1"));
        assert!(unanswered.has_room());
        unanswered.push(send("2", "2", "2"));
        hand_over(&mut unanswered);
        assert!(!unanswered.has_room());
        unanswered.answered("1");
        assert!(unanswered.has_room());
        unanswered.push(send("3", "3", "as many bytes"));
        hand_over(&mut unanswered);
        unanswered.answered("2");
        assert!(!unanswered.has_room());
        // Whose answer that was nobody can tell.
        unanswered.answered_some();
        assert!(unanswered.has_room());
    }
}

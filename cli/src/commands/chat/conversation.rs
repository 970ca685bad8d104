//! What the terminal knows of a session: a state machine over its events. It opens nothing, waits for nothing and prints
//! nothing; what is to be shown and what went wrong is returned.

use std::time::Duration;

use chatbox_proto::{
    error_code::{ErrorCode, close},
    v1::{
        ChatRequest, Entry, Error, FinishReason, Message, Responder, Sender, SenderRole, Usage,
        chat_request::{self, Frame},
        chat_response::{Ack, Event, Opened, ReplyDelta, ReplySnapshot, ResumeVerdict},
        entry::{Kind, ReplyFinished},
    },
};

use super::{
    outbox::{Outbox, Outcome, request},
    running_reply::RunningReply,
};

/// A message that a busy server asked to send again is sent this often.
const MAX_TRIES: u32 = 5;

const OPEN: &str = "open";

/// Something to show, in its order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shown {
    /// Somebody else wrote, or we did from elsewhere.
    Message(Box<Message>),
    /// A reply begins; `ours` when it answers what we wrote here.
    ReplyStarted { model: String, ours: bool },
    /// A piece of it, as it came: not harmless yet.
    ReplyText(String),
    /// What was shown of it is not its text; the text follows.
    ReplyRestarted,
    /// It is complete, or as complete as it gets.
    ReplyEnded { finish: FinishReason, usage: Option<Usage> },
    /// One of our messages was not taken.
    Refused(String),
    /// Something else worth a line.
    Notice(String),
}

/// Why the stream has to be left and opened again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resume {
    /// Wait at least this long.
    pub(crate) after: Duration,
}

/// Entries between these positions were not replayed: read the messages, and give them to
/// [`Conversation::fill`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) after_seq: u64,
    pub(crate) head: u64,
}

/// A session as we see it.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    session_id: String,
    model: String,
    /// Seq of the last entry we have; `None` before the first `opened`.
    position: Option<u64>,
    reply: Option<RunningReply>,
    outbox: Outbox,
    gap: Option<Gap>,
    resume: Option<Resume>,
    refusal: Option<String>,
    /// The server closes the stream with this code.
    close_code: u16,
    stops: u32,
    /// A person holds the session: our messages get no reply.
    held: bool,
    ended: bool,
    /// The head that the last heartbeat of this stream named.
    promised: Option<u64>,
    /// Why we open somebody else's session.
    reason: String,
}

impl Conversation {
    /// With a session, or with whichever is active.
    pub(crate) fn new(session_id: &str, model: &str) -> Self {
        Self { session_id: session_id.to_owned(), model: model.to_owned(), ..Self::default() }
    }

    /// With somebody else's session that we hold, of which everything up to `head` is known.
    pub(crate) fn held(session_id: &str, head: u64, reason: &str) -> Self {
        let (reason, position) = (reason.to_owned(), Some(head));
        Self { reason, position, held: true, ..Self::new(session_id, "") }
    }

    pub(crate) fn session_id(&self) -> &str {
        &self.session_id
    }

    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// Whether a stream was ever attached.
    pub(crate) fn is_open(&self) -> bool {
        self.position.is_some()
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn reply_runs(&self) -> bool {
        self.reply.is_some()
    }

    /// Whether every message of ours has come to an end.
    pub(crate) fn is_idle(&self) -> bool {
        self.outbox.is_empty()
    }

    /// What became of our messages since this was last asked.
    pub(crate) fn take_outcomes(&mut self) -> Vec<Outcome> {
        self.outbox.take_outcomes()
    }

    pub(crate) fn take_gap(&mut self) -> Option<Gap> {
        self.gap.take()
    }

    pub(crate) fn take_resume(&mut self) -> Option<Resume> {
        self.resume.take()
    }

    /// Why `open` was refused for good.
    pub(crate) fn take_refusal(&mut self) -> Option<String> {
        self.refusal.take()
    }

    /// The code that the server announced before it closed the stream; 0: none.
    pub(crate) fn take_close_code(&mut self) -> u16 {
        std::mem::take(&mut self.close_code)
    }

    /// The frames that begin a stream: where we are, and what the server may not have yet. What it has already it knows
    /// by its id.
    pub(crate) fn opening(&mut self) -> Vec<ChatRequest> {
        let reply = self.reply.as_ref().filter(|reply| reply.is_sound());
        let open = chat_request::Open {
            session_id: self.session_id.clone(),
            after_seq: self.position,
            reply: reply.map(|reply| chat_request::ReplyPosition {
                message_id: reply.message_id.clone(),
                next_offset: reply.next_offset(),
            }),
            model: if self.is_open() { String::new() } else { self.model.clone() },
            reason: self.reason.clone(),
            ..chat_request::Open::default()
        };
        (self.resume, self.refusal, self.promised, self.close_code) = (None, None, None, 0);
        std::iter::once(request(OPEN, Frame::Open(open))).chain(self.outbox.unknown()).collect()
    }

    /// A message of ours.
    pub(crate) fn send(&mut self, text: String) -> ChatRequest {
        self.outbox.send(text)
    }

    /// Stops the running reply, if there is one.
    pub(crate) fn stop(&mut self) -> Option<ChatRequest> {
        let message_id = self.reply.as_ref()?.message_id.clone();
        self.stops += 1;
        Some(request(&format!("stop-{}", self.stops), Frame::Stop(chat_request::Stop { message_id })))
    }

    /// An event of the stream.
    pub(crate) fn apply(&mut self, event: &Event) -> Vec<Shown> {
        match event {
            Event::Opened(opened) => self.opened(opened),
            Event::Entry(entry) => self.entry(entry),
            Event::ReplyDelta(delta) => self.delta(delta),
            Event::ReplySnapshot(snapshot) => self.snapshot(snapshot),
            Event::Ack(ack) => self.ack(ack),
            Event::Error(error) => self.error(error),
            Event::Heartbeat(heartbeat) => {
                // Deliveries may be on their way when a heartbeat is made; by the next one they are not.
                let position = self.position.unwrap_or_default();
                if self.promised.replace(heartbeat.head).is_some_and(|promised| promised > position) {
                    self.resume = Some(Resume { after: Duration::ZERO });
                }
                Vec::new()
            }
            Event::GoingAway(away) => {
                let after = away.retry_after.and_then(|after| Duration::try_from(after).ok());
                self.resume = Some(Resume { after: after.unwrap_or_default() });
                Vec::new()
            }
            Event::CaughtUp(_) | Event::Typing(_) | Event::Presence(_) | Event::TokenExpiring(_) | Event::Help(_) => {
                Vec::new()
            }
        }
    }

    /// Messages that were read rather than streamed: history before we came, or what a gap left out.
    pub(crate) fn fill(&mut self, messages: &[Message], head: u64) -> Vec<Shown> {
        let mut shown = Vec::new();
        for message in messages.iter().filter(|message| message.seq <= head) {
            let Some(facts) = &message.reply else {
                shown.extend(self.message(message));
                continue;
            };
            // One that ended later is in the stream.
            if facts.finished_seq == 0 || facts.finished_seq > head {
                continue;
            }
            self.outbox.answering(&message.message_id, &facts.answers);
            let finished = ReplyFinished {
                message_id: message.message_id.clone(),
                started_seq: message.seq,
                text: message.text.clone(),
                finish_reason: facts.finish_reason,
                usage: facts.usage,
                model: facts.model.clone(),
                ..ReplyFinished::default()
            };
            shown.extend(self.finished(&finished));
        }
        shown
    }

    fn opened(&mut self, opened: &Opened) -> Vec<Shown> {
        if let Some(session) = &opened.session {
            self.session_id.clone_from(&session.session_id);
            self.model.clone_from(&session.model);
            self.held = session.responder() == Responder::Admin;
        }
        match opened.verdict() {
            ResumeVerdict::Replayed => {}
            ResumeVerdict::Gap => {
                // A reply that ran when we left has its place before what we have.
                let started = self.reply.as_ref().map(|reply| reply.started_seq.saturating_sub(1));
                let after_seq = self.position.into_iter().chain(started).min().unwrap_or_default();
                self.gap = Some(Gap { after_seq, head: opened.head });
                self.position = Some(opened.head);
            }
            ResumeVerdict::Fresh | ResumeVerdict::Unspecified => self.position = Some(opened.head),
        }
        Vec::new()
    }

    fn entry(&mut self, entry: &Entry) -> Vec<Shown> {
        let position = self.position.unwrap_or_default();
        if entry.seq <= position {
            return Vec::new();
        }
        if entry.seq > position + 1 {
            // Nothing may be missing in between: ask again from where we are.
            self.resume = Some(Resume { after: Duration::ZERO });
            return Vec::new();
        }
        self.position = Some(entry.seq);
        match &entry.kind {
            Some(Kind::Message(message)) => self.message(message).into_iter().collect(),
            Some(Kind::ReplyStarted(started)) => {
                let ours = self.outbox.answering(&started.message_id, &started.answers);
                self.begin(&started.message_id, entry.seq, &started.model, ours)
            }
            Some(Kind::ReplyFinished(finished)) => self.finished(finished),
            Some(Kind::ModelSelected(selected)) => {
                self.model.clone_from(&selected.model);
                vec![Shown::Notice(format!("{} answers from here on", selected.model))]
            }
            Some(Kind::HelpRequested(_)) => vec![Shown::Notice("a person was asked for".to_owned())],
            Some(Kind::TakenOver(taken)) => {
                self.held = true;
                // Whoever holds the session answers what nobody has answered yet.
                self.outbox.settle_all(Outcome::Answered);
                vec![Shown::Notice(format!("{} is here; the assistant is silent", name(taken.admin.as_ref())))]
            }
            Some(Kind::Released(_)) => {
                self.held = false;
                vec![Shown::Notice("the assistant answers again".to_owned())]
            }
            Some(Kind::Ended(_)) => {
                self.ended = true;
                self.outbox.settle_all(Outcome::Failed);
                vec![Shown::Notice("the session has ended".to_owned())]
            }
            Some(Kind::Reopened(_)) => {
                self.ended = false;
                self.held = false;
                vec![Shown::Notice("the session goes on".to_owned())]
            }
            Some(Kind::Erased(_)) => {
                self.ended = true;
                self.outbox.settle_all(Outcome::Failed);
                vec![Shown::Notice("the session was erased".to_owned())]
            }
            Some(Kind::Renamed(_) | Kind::Shared(_)) | None => Vec::new(),
        }
    }

    /// Ours are on the screen already, where they were typed.
    fn message(&mut self, message: &Message) -> Option<Shown> {
        let ours = self.outbox.accepted(&message.client_message_id, &message.message_id);
        (!ours).then(|| Shown::Message(Box::new(message.clone())))
    }

    fn begin(&mut self, message_id: &str, started_seq: u64, model: &str, ours: bool) -> Vec<Shown> {
        if self.reply.as_ref().is_some_and(|reply| reply.message_id == message_id) {
            return Vec::new();
        }
        self.reply = Some(RunningReply::new(message_id, started_seq));
        vec![Shown::ReplyStarted { model: model.to_owned(), ours }]
    }

    /// A piece of a reply whose beginning we do not know waits for the terminal entry.
    fn delta(&mut self, delta: &ReplyDelta) -> Vec<Shown> {
        let reply = self.reply.as_mut().filter(|reply| reply.message_id == delta.message_id);
        let new = reply.and_then(|reply| reply.piece(delta.offset, &delta.text));
        new.map(Shown::ReplyText).into_iter().collect()
    }

    fn snapshot(&mut self, snapshot: &ReplySnapshot) -> Vec<Shown> {
        let ours = self.outbox.awaits(&snapshot.message_id);
        let mut shown = self.begin(&snapshot.message_id, snapshot.started_seq, &snapshot.model, ours);
        let new = self.reply.as_mut().and_then(|reply| reply.piece(snapshot.offset, &snapshot.text));
        shown.extend(new.map(Shown::ReplyText));
        shown
    }

    fn finished(&mut self, finished: &ReplyFinished) -> Vec<Shown> {
        let (reply_id, finish) = (&finished.message_id, finished.finish_reason());
        let ours = self.outbox.awaits(reply_id);
        let mut shown = match self.reply.take_if(|reply| reply.message_id == *reply_id) {
            Some(reply) => match reply.rest(&finished.text) {
                Some(rest) => vec![Shown::ReplyText(rest.to_owned())],
                None => vec![Shown::ReplyRestarted, Shown::ReplyText(finished.text.clone())],
            },
            None => {
                let model = finished.model.clone();
                vec![Shown::ReplyStarted { model, ours }, Shown::ReplyText(finished.text.clone())]
            }
        };
        shown.push(Shown::ReplyEnded { finish, usage: finished.usage });
        let complete = matches!(finish, FinishReason::Stop | FinishReason::Length);
        let outcome = if complete { Outcome::Answered } else { Outcome::Failed };
        self.outbox.replied(reply_id, outcome);
        shown
    }

    fn ack(&mut self, ack: &Ack) -> Vec<Shown> {
        if self.outbox.accepted(&ack.request_id, &ack.message_id) && self.held {
            self.outbox.settle(&ack.request_id, Outcome::Answered);
        }
        Vec::new()
    }

    fn error(&mut self, error: &Error) -> Vec<Shown> {
        let code = ErrorCode::from_wire(error.code());
        let after = error.retry_after.and_then(|after| Duration::try_from(after).ok()).unwrap_or_default();
        if error.close_code != 0 {
            self.close_code = u16::try_from(error.close_code).unwrap_or(close::INTERNAL);
        }
        if error.request_id == OPEN {
            // Where we were once, we may come again.
            if code.retryable() && self.is_open() {
                self.resume = Some(Resume { after });
            } else {
                self.refusal = Some(error.message.clone());
            }
            return Vec::new();
        }
        let Some(tries) = self.outbox.tries(&error.request_id) else {
            // What closes the stream is told with its end.
            let told = error.close_code == 0;
            return told.then(|| Shown::Notice(error.message.clone())).into_iter().collect();
        };
        // A limit is for the person to know; everything else that may pass is tried again, under the same id.
        if code.retryable() && code != ErrorCode::ResourceExhausted && tries < MAX_TRIES {
            self.resume = Some(Resume { after });
            return Vec::new();
        }
        self.outbox.settle(&error.request_id, Outcome::Failed);
        vec![Shown::Refused(error.message.clone())]
    }
}

/// How somebody is called.
pub(crate) fn name(sender: Option<&Sender>) -> String {
    let Some(sender) = sender else { return "somebody".to_owned() };
    let or = |text: &str| if sender.display_name.is_empty() { text.to_owned() } else { sender.display_name.clone() };
    match sender.role() {
        SenderRole::Assistant => or("assistant"),
        SenderRole::System => or("system"),
        SenderRole::User | SenderRole::Admin | SenderRole::Unspecified => or(&sender.user_id),
    }
}

#[cfg(test)]
mod tests;

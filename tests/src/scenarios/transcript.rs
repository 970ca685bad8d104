//! What one device has seen over all its connections, and what must hold of it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use chatbox_proto::v1::{
    FinishReason, Message,
    chat_request::{Open, ReplyPosition},
    chat_response::{Event, ResumeVerdict},
    entry,
};

use crate::harness::client::{Client, finished, streamed};

/// The events of one device, over as many connections as it took.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    session_id: String,
    events: Vec<Event>,
}

impl Transcript {
    /// Of a device that comes to a session that is there already.
    pub(super) fn of(session_id: &str) -> Self {
        Self { session_id: session_id.to_owned(), events: Vec::new() }
    }

    /// Attaches: the first time to a new session, or to the beginning of one that is known, later where the last connection
    /// ended. Insists that nothing is left out. Events go to the client until [`Transcript::keep`] takes them.
    pub(super) async fn attach(&mut self, client: &mut Client) -> Result<()> {
        let opened = client.open(self.position()).await?;
        let session = opened.session.as_ref().context("a session")?;
        if self.session_id.is_empty() {
            ensure!(opened.created && opened.head == 0, "not new: {opened:?}");
            self.session_id.clone_from(&session.session_id);
        }
        let expected = if opened.created { ResumeVerdict::Fresh } else { ResumeVerdict::Replayed };
        ensure!(opened.verdict() == expected && self.session_id == session.session_id, "{opened:?}");
        Ok(())
    }

    /// The session, once attached.
    pub(super) fn session_id(&self) -> &str {
        &self.session_id
    }

    /// Where this device is: the last entry it has, and how much of a running reply.
    pub(super) fn position(&self) -> Open {
        if self.session_id.is_empty() {
            return Open::default();
        }
        let last = |event: &Event| match event {
            Event::Entry(entry) => Some(entry.seq),
            _ => None,
        };
        let piece = |event: &Event| match event {
            Event::ReplyDelta(delta) => Some((delta.message_id.clone(), delta.next_offset)),
            Event::ReplySnapshot(shot) => Some((shot.message_id.clone(), shot.next_offset)),
            _ => None,
        };
        let reply = self.events.iter().rev().find_map(piece);
        Open {
            session_id: self.session_id.clone(),
            after_seq: Some(self.events.iter().rev().find_map(last).unwrap_or(0)),
            reply: reply.map(|(message_id, next_offset)| ReplyPosition { message_id, next_offset }),
            ..Open::default()
        }
    }

    /// Takes what a connection has brought.
    pub(super) fn keep(&mut self, client: &mut Client) {
        self.events.append(&mut client.seen);
    }

    /// The events so far.
    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    /// The terminal entries so far.
    pub(super) fn finished(&self) -> Vec<&entry::ReplyFinished> {
        let mut all = Vec::new();
        for event in &self.events {
            if let Event::Entry(entry) = event {
                all.extend(finished(entry));
            }
        }
        all
    }

    /// What a device must have seen: every entry once and in order from the first on; every reply started once and ended
    /// once; pieces without a gap that make up the text, or its beginning if the device was away; and the history tells
    /// the same.
    pub(super) fn check(&self, history: &[Message]) -> Result<()> {
        let mut expected = 1;
        let (mut started, mut ended) = (BTreeMap::new(), BTreeMap::new());
        for event in &self.events {
            let Event::Entry(entry) = event else { continue };
            ensure!(entry.seq == expected, "entry {} where {expected} was expected", entry.seq);
            expected += 1;
            match &entry.kind {
                Some(entry::Kind::ReplyStarted(start)) => {
                    *started.entry(start.message_id.as_str()).or_insert(0) += 1;
                }
                Some(entry::Kind::Message(message)) => {
                    let stored = history.iter().find(|stored| stored.message_id == message.message_id);
                    ensure!(stored == Some(message), "seen {message:?}, stored {stored:?}");
                }
                Some(entry::Kind::ReplyFinished(end)) => *ended.entry(end.message_id.as_str()).or_insert(0) += 1,
                _ => {}
            }
        }
        ensure!(started == ended && ended.values().all(|&count| count == 1), "started {started:?}, ended {ended:?}");
        for reply in self.finished() {
            let seen = streamed(&self.events, &reply.message_id)?;
            let agrees = reply.text.starts_with(&seen) || interrupted(reply) && seen.starts_with(&reply.text);
            ensure!(agrees, "streamed {seen:?}, ended as {:?}", reply.text);
            let stored = history.iter().find(|message| message.message_id == reply.message_id);
            let stored = stored.with_context(|| format!("{} is not in history", reply.message_id))?;
            ensure!(stored.text == reply.text && stored.seq == reply.started_seq, "{stored:?}, but {reply:?}");
            let facts = stored.reply.as_ref().context("facts about a reply")?;
            ensure!(facts.finish_reason == reply.finish_reason, "{facts:?}, but {reply:?}");
            ensure!(facts.usage == reply.usage, "{facts:?}, but {reply:?}");
        }
        let replies = history.iter().filter(|message| message.reply.is_some()).count();
        ensure!(replies == ended.len(), "{replies} replies in history, {} seen", ended.len());
        Ok(())
    }
}

/// Its core died or left: what is stored may be short by a checkpoint.
fn interrupted(reply: &entry::ReplyFinished) -> bool {
    reply.finish_reason() == FinishReason::Interrupted
}

/// Every message of a person is named by exactly one reply.
///
/// # Errors
/// When one is not, or by two.
pub(super) fn all_answered(history: &[Message]) -> Result<()> {
    let mut answered: BTreeMap<&str, usize> = BTreeMap::new();
    for reply in history.iter().filter_map(|message| message.reply.as_ref()) {
        for id in &reply.answers {
            *answered.entry(id).or_default() += 1;
        }
    }
    for message in history.iter().filter(|message| message.reply.is_none()) {
        let times = answered.remove(message.message_id.as_str()).unwrap_or(0);
        ensure!(times == 1, "{} is answered {times} times", message.client_message_id);
    }
    ensure!(answered.is_empty(), "answers to what is not there: {answered:?}");
    Ok(())
}

//! History: messages as a person reads them, out of the entries of the log. A reply stands where it started and carries the
//! text of its terminal entry.

use std::collections::HashMap;

use chatbox_proto::{ids::MessageId, v1};

use super::{error::SessionError, event, log::SessionLog};
use crate::domain::{
    entry::{Entry, EntryKind, Message, ReplyFinished, ReplyStarted, Seq},
    time::Timestamp,
};

/// Tag and length of a message within its page.
const FIELD_OVERHEAD: usize = 5;

/// Messages that are read at first for a page, and later at most at once; in between it goes by how long they are.
const FIRST_READ: usize = 16;
const LARGEST_READ: usize = 64;

/// How much a page holds: what is reached first counts, and one message always fits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) messages: usize,
    /// Of the messages as they are encoded.
    pub(super) bytes: usize,
}

/// A message of the history.
#[derive(Debug, Clone)]
pub(super) struct HistoryMessage {
    /// Its place.
    pub(super) seq: Seq,
    /// When it was accepted or started.
    pub(super) at: Timestamp,
    /// What it is.
    pub(super) content: Content,
}

/// What a message of the history is.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// A person's message.
    Message(Message),
    /// A reply; without an end while it runs.
    Reply(ReplyStarted, Option<End>),
}

/// The terminal entry of a reply.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) seq: Seq,
    pub(super) at: Timestamp,
    pub(super) finished: ReplyFinished,
}

/// Reads messages backwards or forwards, pairing replies with their terminal entries.
pub(super) struct HistoryReader<'a> {
    log: &'a SessionLog,
    /// Terminal entries that were met before the reply they belong to.
    ends: HashMap<MessageId, End>,
}

impl<'a> HistoryReader<'a> {
    pub(super) fn new(log: &'a SessionLog) -> Self {
        Self { log, ends: HashMap::new() }
    }

    /// Up to `limit` messages in `(floor, before)`, newest first; fewer only when there are no more.
    pub(super) async fn before(
        &mut self,
        before: Seq,
        floor: Seq,
        limit: usize,
    ) -> Result<Vec<HistoryMessage>, SessionError> {
        let mut messages = Vec::new();
        let mut cursor = before;
        while messages.len() < limit && cursor > floor + 1 {
            let want = u64::from(entries_for(limit - messages.len())).min(cursor - floor - 1);
            let entries = self.log.read_before(cursor, u32::try_from(want).unwrap_or(u32::MAX)).await?;
            let Some(oldest) = entries.last().map(|entry| entry.seq) else { break };
            cursor = oldest;
            self.remember(&entries);
            for entry in entries {
                // The document that holds the oldest one wanted may begin below the floor.
                if messages.len() < limit && entry.seq > floor {
                    messages.extend(self.message(entry).await?);
                }
            }
        }
        Ok(messages)
    }

    /// Up to `limit` messages above `after`, oldest first; fewer only at the end of the log.
    pub(super) async fn after(&mut self, after: Seq, limit: usize) -> Result<Vec<HistoryMessage>, SessionError> {
        let mut messages = Vec::new();
        let mut cursor = after;
        while messages.len() < limit {
            let entries = self.log.read_after(cursor, entries_for(limit - messages.len())).await?;
            let Some(newest) = entries.last().map(|entry| entry.seq) else { break };
            cursor = newest;
            self.remember(&entries);
            for entry in entries {
                if messages.len() < limit {
                    messages.extend(self.message(entry).await?);
                }
            }
        }
        Ok(messages)
    }

    /// A page of the newest messages in `(floor, before)`, newest first.
    pub(super) async fn page_before(&mut self, before: Seq, floor: Seq, bounds: Bounds) -> Result<Page, SessionError> {
        let mut page = Page::default();
        let mut cursor = before;
        loop {
            let wanted = page.next_read(bounds);
            let messages = self.before(cursor, floor, wanted).await?;
            let all = messages.len() < wanted;
            cursor = messages.last().map_or(cursor, |oldest| oldest.seq);
            if !page.take(messages, bounds) || all {
                self.link(page.messages.iter_mut()).await?;
                return Ok(page);
            }
        }
    }

    /// A page of the oldest messages above `after`, oldest first.
    pub(super) async fn page_after(&mut self, after: Seq, bounds: Bounds) -> Result<Page, SessionError> {
        let mut page = Page::default();
        let mut cursor = after;
        loop {
            let wanted = page.next_read(bounds);
            let messages = self.after(cursor, wanted).await?;
            let all = messages.len() < wanted;
            cursor = messages.last().map_or(cursor, |newest| newest.seq);
            if !page.take(messages, bounds) || all {
                self.link(page.messages.iter_mut().rev()).await?;
                return Ok(page);
            }
        }
    }

    /// Replies of a page, newest first, learn which other replaced them. It is the next one that started, if any: only the
    /// last reply can be replaced.
    async fn link(&self, newest_first: impl Iterator<Item = &mut v1::Message>) -> Result<(), SessionError> {
        let mut newer: Option<(String, String)> = None;
        for message in newest_first {
            let Some(reply) = &mut message.reply else { continue };
            let next = match newer.take() {
                Some(next) => Some(next),
                None => self.next_start(message.seq).await?,
            };
            if let Some((id, supersedes)) = next
                && supersedes == message.message_id
            {
                reply.superseded_by = id;
            }
            newer = Some((message.message_id.clone(), reply.supersedes.clone()));
        }
        Ok(())
    }

    /// The next reply that starts after this entry, and the one it replaces.
    async fn next_start(&self, after: Seq) -> Result<Option<(String, String)>, SessionError> {
        let mut cursor = after;
        loop {
            let entries = self.log.read_after(cursor, 16).await?;
            let Some(newest) = entries.last().map(|entry| entry.seq) else { return Ok(None) };
            cursor = newest;
            for entry in entries {
                if let EntryKind::ReplyStarted(started) = entry.fact.kind {
                    let supersedes = started.supersedes.map(|id| id.to_string()).unwrap_or_default();
                    return Ok(Some((started.id.to_string(), supersedes)));
                }
            }
        }
    }

    fn remember(&mut self, entries: &[Entry]) {
        for entry in entries {
            if let EntryKind::ReplyFinished(finished) = &entry.fact.kind {
                let end = End { seq: entry.seq, at: entry.fact.at, finished: finished.clone() };
                self.ends.insert(finished.id, end);
            }
        }
    }

    async fn message(&mut self, entry: Entry) -> Result<Option<HistoryMessage>, SessionError> {
        let (seq, at) = (entry.seq, entry.fact.at);
        let content = match entry.fact.kind {
            EntryKind::Message(message) => Content::Message(message),
            EntryKind::ReplyStarted(started) => {
                let end = match self.ends.remove(&started.id) {
                    Some(end) => Some(end),
                    None => self.find_end(seq, started.id).await?,
                };
                Content::Reply(started, end)
            }
            EntryKind::ReplyFinished(_)
            | EntryKind::ModelSelected { .. }
            | EntryKind::HelpRequested { .. }
            | EntryKind::TakenOver { .. }
            | EntryKind::Released { .. }
            | EntryKind::Renamed { .. }
            | EntryKind::Shared { .. }
            | EntryKind::Ended { .. }
            | EntryKind::Reopened { .. }
            | EntryKind::Erased { .. } => return Ok(None),
        };
        Ok(Some(HistoryMessage { seq, at, content }))
    }

    /// The terminal entry of a reply that was read without it: it lies a few entries ahead, before the next reply starts,
    /// or the reply runs.
    async fn find_end(&self, started: Seq, id: MessageId) -> Result<Option<End>, SessionError> {
        let mut cursor = started;
        loop {
            let entries = self.log.read_after(cursor, 16).await?;
            let Some(newest) = entries.last().map(|entry| entry.seq) else { return Ok(None) };
            cursor = newest;
            for entry in entries {
                if matches!(entry.fact.kind, EntryKind::ReplyStarted(_)) {
                    // One reply at a time: the next start lies behind the end that is looked for.
                    return Ok(None);
                }
                if let EntryKind::ReplyFinished(finished) = entry.fact.kind
                    && finished.id == id
                {
                    return Ok(Some(End { seq: entry.seq, at: entry.fact.at, finished }));
                }
            }
        }
    }
}

/// Entries to read for so many messages: most come with a second entry, the start or the end of their reply.
fn entries_for(messages: usize) -> u32 {
    u32::try_from(messages * 2 + 1).unwrap_or(u32::MAX)
}

/// Messages of one page, in the order in which they were read.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) messages: Vec<v1::Message>,
    /// There are more in this direction.
    pub(super) more: bool,
    bytes: usize,
}

impl Page {
    /// How many messages to read next: no more than will fit if they are like those before, so that a page of long ones
    /// does not hold many times what it returns. One more than wanted tells whether there is a next page.
    fn next_read(&self, bounds: Bounds) -> usize {
        let taken = self.messages.len();
        let like_before = match self.bytes.checked_div(taken) {
            Some(average) => bounds.bytes.saturating_sub(self.bytes) / average.max(1) + 1,
            None => FIRST_READ,
        };
        (bounds.messages + 1 - taken).min(like_before).min(LARGEST_READ)
    }

    /// Takes what fits, and at least one message; `false` once something did not.
    fn take(&mut self, messages: Vec<HistoryMessage>, bounds: Bounds) -> bool {
        for message in messages {
            let message = message.into_wire();
            let bytes = prost::Message::encoded_len(&message) + FIELD_OVERHEAD;
            let full = self.messages.len() >= bounds.messages || self.bytes + bytes > bounds.bytes;
            if full && !self.messages.is_empty() {
                self.more = true;
                return false;
            }
            self.bytes += bytes;
            self.messages.push(message);
        }
        true
    }
}

impl HistoryMessage {
    /// As the contract shows it.
    pub(super) fn into_wire(self) -> v1::Message {
        match self.content {
            Content::Message(message) => event::wire_message(self.seq, self.at, &message),
            Content::Reply(started, end) => {
                let mut reply = v1::Reply {
                    model: started.model,
                    answers: started.answers.iter().map(ToString::to_string).collect(),
                    supersedes: started.supersedes.map(|id| id.to_string()).unwrap_or_default(),
                    ..v1::Reply::default()
                };
                let mut text = String::new();
                if let Some(End { seq, at, finished }) = end {
                    text = finished.text;
                    reply.finish_reason = event::wire_finish(finished.finish).into();
                    reply.usage = Some(event::wire_usage(finished.usage));
                    reply.finished_seq = seq;
                    reply.finish_time = Some(event::wire_time(at));
                    reply.provider_request_id = finished.provider_request_id.unwrap_or_default();
                    reply.model = finished.model;
                }
                v1::Message {
                    message_id: started.id.to_string(),
                    seq: self.seq,
                    sender: Some(event::wire_assistant()),
                    text,
                    create_time: Some(event::wire_time(self.at)),
                    reply: Some(reply),
                    ..v1::Message::default()
                }
            }
        }
    }
}

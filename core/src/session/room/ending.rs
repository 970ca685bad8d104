//! The end of a session, and its erasure: what runs ends in the same append, and when the session is erased, so does this
//! room.

use std::time::Duration;

use chatbox_proto::{ids::MessageId, status::Failure};
use tokio::time::Instant;

use super::{
    Room,
    flight::{InFlight, Outcome, read_tail},
    remote::{Found, ask_to_stop, checkpoint},
    write::{Op, Write},
};
use crate::{
    domain::{
        decide::Ending,
        entry::{Entry, EntryKind, FinishReason, Usage},
    },
    session::{link::Link, log::SessionLog},
};

/// A core that said that it ends its reply is given so long to do it.
const ENDS: Duration = Duration::from_secs(2);

/// Between two looks for that end.
const LOOK: Duration = Duration::from_millis(50);

/// How often one end of a session asks: in the place of the reply that ended, one to what waited may have begun.
const ASKS: u32 = 2;

/// What came of asking.
pub(super) struct Asked {
    reply: MessageId,
    /// Entries since then, with the end of the reply.
    tail: Vec<Entry>,
    /// Its core did not end it: what is left of the reply.
    left: Option<Found>,
}

/// Asks the core that runs the reply to end it, so that what is kept of it is all that was shown there.
async fn ask_to_end(log: SessionLog, link: Link, reply: MessageId, head: u64) -> Outcome {
    if let Some(left) = ask_to_stop(log.clone(), link, reply).await {
        return Outcome::Asked(Asked { reply, tail: Vec::new(), left: Some(left) });
    }
    let ended = |entry: &Entry| matches!(&entry.fact.kind, EntryKind::ReplyFinished(finished) if finished.id == reply);
    let until = Instant::now() + ENDS;
    loop {
        match read_tail(&log, head).await {
            Ok(tail) if tail.iter().any(ended) => return Outcome::Asked(Asked { reply, tail, left: None }),
            Ok(tail) if Instant::now() >= until => {
                let left = Some(Found::Checkpoint(checkpoint(&log, reply).await));
                return Outcome::Asked(Asked { reply, tail, left });
            }
            Ok(_) => tokio::time::sleep(LOOK).await,
            Err(error) => return Outcome::Failed(error),
        }
    }
}

impl Room {
    /// The write, unless it ends the session and a reply runs in another core: that one is asked first.
    pub(super) fn ask_first(&mut self, mut write: Write) -> Option<Write> {
        let ends = matches!(write.op, Op::End { .. } | Op::Erase { .. });
        let Some(remote) = self.remote.as_ref().filter(|_| ends && write.asked < ASKS) else { return Some(write) };
        write.asked += 1;
        let work = ask_to_end(self.log.clone(), self.link.clone(), remote.id(), self.state.head);
        self.writes.in_flight = Some(InFlight::new(Some(write), Vec::new(), work));
        None
    }

    pub(super) fn asked_first(&mut self, write: Option<Write>, asked: Asked) {
        let Asked { reply, tail, left } = asked;
        self.apply_all(&tail);
        self.follow(false);
        if let Some(mut write) = write {
            if left.is_some() {
                write.asked = ASKS;
            }
            self.writes.pending.push_front(write);
        }
        if let Some(left) = left {
            self.found((reply, left));
        }
        self.retry_opens();
    }

    /// What the end of the session keeps of the reply that runs: all of it when it runs here. Of one that runs elsewhere and
    /// was not ended there, what is known here, which may be less than was shown.
    pub(super) fn cut_short(&self) -> Ending {
        match (&self.reply, &self.remote) {
            (Some(live), _) => live.ending(FinishReason::Cancelled),
            (None, Some(remote)) => remote.ending(FinishReason::Interrupted),
            (None, None) => Ending {
                finish: FinishReason::Interrupted,
                text: String::new(),
                usage: Usage::default(),
                provider_request_id: None,
                model: None,
            },
        }
    }

    /// The session is erased: there is none any more for anybody who is attached, and nothing of it is kept here.
    pub(super) fn forget(&mut self) {
        self.subscribers.end(&Failure::session_not_found());
        self.read_marks.clear();
        self.dirty_marks.clear();
    }
}

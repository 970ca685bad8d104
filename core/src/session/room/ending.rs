//! The end of a session, and its erasure: what runs ends in the same append, and when the session is erased, so does this
//! room.

use std::time::Duration;

use chatbox_proto::{ids::MessageId, status::Failure};
use tokio::time::Instant;

use super::{
    Room,
    flight::{InFlight, Outcome, read_tail},
    handoff::{Act, Handoff},
    remote::{Found, ask_to_stop, checkpoint, look},
    write::{Op, Write},
};
use crate::{
    domain::{
        decide::Ending,
        entry::{Entry, EntryKind, FinishReason},
    },
    session::{event, link::Link, log::SessionLog},
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
    /// The write, unless it cuts a reply that runs in another core: that one is asked first. For an end it is to end the
    /// reply; a takeover ends it by itself, in the same append, and only wants to know how far it is.
    pub(super) fn ask_first(&mut self, mut write: Write) -> Option<Write> {
        let ends = matches!(write.op, Op::End { .. } | Op::Erase { .. });
        let takes_over = matches!(write.op, Op::Handoff(Handoff::Act(Act::TakeOver, _)));
        let asks = (ends || takes_over) && write.asked < ASKS;
        let Some(remote) = self.remote.as_ref().filter(|_| asks) else { return Some(write) };
        let (log, link, reply) = (self.log.clone(), self.link.clone(), remote.id());
        if ends {
            write.asked += 1;
            let work = ask_to_end(log, link, reply, self.state.head);
            self.writes.in_flight = Some(InFlight::new(Some(write), Vec::new(), work));
        } else {
            write.asked = ASKS;
            let (known, boot_id) = (event::length(&remote.text), self.shared.boot_id);
            let work = async move {
                let left = Some(look(log, link, reply, known, boot_id).await);
                Outcome::Asked(Asked { reply, tail: Vec::new(), left })
            };
            self.writes.in_flight = Some(InFlight::new(Some(write), Vec::new(), work));
        }
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
        self.cut(if self.reply.is_some() { FinishReason::Cancelled } else { FinishReason::Interrupted })
    }

    /// The session is erased: there is none any more for anybody who is attached, and nothing of it is kept here.
    pub(super) fn forget(&mut self) {
        self.subscribers.end(&Failure::session_not_found());
        self.naming = None;
        self.read_marks.clear();
        self.dirty_marks.clear();
    }
}

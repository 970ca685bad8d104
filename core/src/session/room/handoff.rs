//! A room's part in handoff: what admins do to the session, the session's row among those that wait or are held, and who is
//! told about the queue.
//!
//! The row is written ahead of a request for help and of a takeover, so that no crash can leave a session that waits or is
//! held without one; it is brought in line with the log after everything else. A row that should not be there is found by
//! whoever watches the rows.

use std::{future::Future, pin::Pin, time::Duration};

use chatbox_proto::{
    error_code::ErrorCode,
    status::Failure,
    v1::{self, chat_response as response},
};
use tokio::time::Instant;

use super::{
    Frame, Room,
    flight::{InFlight, Outcome},
    write::{Op, Origin, Write},
};
use crate::{
    domain::{
        decide::{self, Ending, NextReply, Rejection},
        entry::{EntryKind, FinishReason, Sender, SenderRole, Seq},
        handoff::{self, Reach},
    },
    session::{error::SessionError, event, log::SessionLog, queue::Place},
    store::{HandoffRow, HandoffStore, RequestKey, Stage},
};

/// Between two tries to bring the row in line.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What an admin does to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Holds it.
    TakeOver,
    /// Gives it back to the assistant.
    Release(Reach),
    /// Passes it on.
    Reassign(Sender, Reach),
    /// Ends it.
    End,
}

/// What is to be decided about handoff.
#[derive(Debug, Clone)]
pub(super) enum Handoff {
    RequestHelp(String),
    Act(Act, Sender),
    Lapse(Seq),
}

/// The session's row on its way to the store.
type RowWrite = Pin<Box<dyn Future<Output = Result<(), SessionError>> + Send>>;

/// The care for the session's row.
#[derive(Default)]
pub(super) struct RowCare {
    pub(super) writing: Option<RowWrite>,
    /// It may not say what the log says.
    stale: bool,
    retry_at: Option<Instant>,
    /// When this room wrote a row that says `held` last.
    renewed_at: Option<Instant>,
}

impl RowCare {
    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_none() && !self.stale
    }
}

async fn put(log: SessionLog, handoffs: std::sync::Arc<dyn HandoffStore>, stage: Stage) -> Result<(), SessionError> {
    let row = HandoffRow { session_id: log.id, stage, mark: rand::random::<u64>() >> 1 };
    log.call(handoffs.put_handoff(row)).await
}

async fn clear(log: SessionLog, handoffs: std::sync::Arc<dyn HandoffStore>) -> Result<(), SessionError> {
    if let Some(row) = log.call(handoffs.handoff(log.id)).await? {
        // One that was written meanwhile is somebody's who knows better.
        log.call(handoffs.remove_handoff(log.id, row.mark)).await?;
    }
    Ok(())
}

impl Room {
    /// What the row has to say, by the log.
    fn stage(&self) -> Option<Stage> {
        if self.state.ended.is_some() || self.state.erased {
            return None;
        }
        match (self.state.holder(), self.state.help_requested_at) {
            (Some(_), _) => Some(Stage::Held),
            (None, Some(since)) => Some(Stage::Waiting { since }),
            (None, None) => None,
        }
    }

    /// The stage without its time: what others have to be told when it changes.
    pub(super) fn stage_kind(&self) -> Option<std::mem::Discriminant<Stage>> {
        self.stage().as_ref().map(std::mem::discriminant)
    }

    pub(super) fn mend_row(&mut self) {
        self.row.stale = true;
    }

    /// What went ahead of a write may be more than what came of it.
    pub(super) fn let_row_follow(&mut self, write: &Write) {
        if write.prepared {
            self.mend_row();
        }
    }

    /// Whether the one who holds the session is attached here.
    fn holder_is_here(&self) -> bool {
        self.state.ended.is_none()
            && self.state.holder().is_some_and(|holder| self.subscribers.has_admin(Some(&holder.user_id)))
    }

    /// When the row has to be written again; `None` while nothing is due.
    pub(super) fn next_row(&self) -> Option<Instant> {
        if self.row.writing.is_some() {
            return None;
        }
        let renewal = self.holder_is_here().then(|| match self.row.renewed_at {
            Some(at) => at + self.shared.limits.hold_lapse / 4,
            None => Instant::now(),
        });
        let mending = self.row.stale.then(|| self.row.retry_at.unwrap_or_else(Instant::now));
        match (renewal, mending) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Renews a hold, or brings the row in line with the log.
    pub(super) fn start_row(&mut self) {
        if self.next_row().is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.row.stale = false;
        self.row.retry_at = None;
        let (log, handoffs) = (self.log.clone(), self.shared.handoffs.clone());
        self.row.writing = Some(match self.stage() {
            Some(stage) => {
                self.row.renewed_at = (stage == Stage::Held).then(Instant::now);
                Box::pin(put(log, handoffs, stage))
            }
            None => {
                self.row.renewed_at = None;
                Box::pin(clear(log, handoffs))
            }
        });
    }

    pub(super) fn row_written(&mut self, result: Result<(), SessionError>) {
        match result {
            Ok(()) if self.row.renewed_at.is_some() && self.announced == self.stage_kind() => {}
            Ok(()) => {
                self.announced = self.stage_kind();
                self.shared.queue.announce();
            }
            Err(error) => {
                self.shared.count(&error);
                tracing::warn!(error = &error as &dyn std::error::Error, session.id = %self.log.id, "the row of a handoff was not written");
                self.row.stale = true;
                self.row.retry_at = Some(Instant::now() + TRY_AGAIN);
                self.row.renewed_at = self.row.renewed_at.map(|_| Instant::now());
            }
        }
    }

    /// Nobody has written the row for a while.
    pub(super) fn stands_still(&mut self, row: HandoffRow) {
        let fits = self.stage().as_ref().map(std::mem::discriminant) == Some(std::mem::discriminant(&row.stage));
        if !fits {
            self.mend_row();
        } else if row.stage == Stage::Held && !self.holder_is_here() {
            let lapse = Op::Handoff(Handoff::Lapse(self.state.epoch));
            self.writes.push(Write::new(lapse, Origin::Nobody));
        }
    }

    /// What an admin wants to be done.
    pub(super) fn act(&mut self, act: Act, by: Sender, request: Option<RequestKey>, origin: Origin) {
        if self.is_leaving() {
            return self.answer(origin, Err(crate::session::error::shutting_down()));
        }
        if self.writes.is_full() {
            return self.answer(origin, Err(super::too_many_writes()));
        }
        let op = match act {
            Act::End => Op::End { by, reason: crate::domain::entry::EndReason::Admin },
            act @ (Act::TakeOver | Act::Release(_) | Act::Reassign(..)) => Op::Handoff(Handoff::Act(act, by)),
        };
        self.writes.push(Write::named(op, origin, request));
    }

    /// What an admin may say on somebody else's stream: they write and type while they hold the session, and read always.
    pub(super) fn refuse_admin(&self, sender: &Sender, frame: &Frame) -> Option<Failure> {
        if sender.role != SenderRole::Admin {
            return None;
        }
        match frame {
            Frame::Read(_) => None,
            Frame::Send(_) | Frame::Typing(false) => None,
            Frame::Typing(true) => handoff::may_write(&self.state, sender).err().map(|no| self.refusal(no)),
            Frame::Stop(_)
            | Frame::EndSession
            | Frame::RequestHelp(_)
            | Frame::SelectModel(_)
            | Frame::Regenerate(_) => Some(Failure::new(
                ErrorCode::PermissionDenied,
                "PERMISSION_DENIED",
                "this is for the owner of the session; admins use the calls of ChatAdmin",
            )),
        }
    }

    /// A rejection as whoever asked is told: those who came too late learn who was first.
    pub(super) fn refusal(&self, rejection: Rejection) -> Failure {
        match (rejection, self.state.holder()) {
            (Rejection::Held, Some(holder)) => {
                let name = if holder.display_name.is_empty() { &holder.user_id } else { &holder.display_name };
                Failure::new(ErrorCode::FailedPrecondition, "SESSION_HELD", format!("{name} holds the session"))
            }
            (rejection, _) => rejection.into(),
        }
    }

    pub(super) fn decide_handoff(&self, handoff: &Handoff, next: NextReply) -> Result<Vec<EntryKind>, Rejection> {
        let state = &self.state;
        match handoff {
            Handoff::RequestHelp(reason) => {
                let notice = self.shared.limits.offline_notice.as_str();
                let notice = (!notice.is_empty() && !self.shared.queue.is_team_there()).then_some(notice);
                handoff::request_help(state, reason, notice)
            }
            Handoff::Act(Act::TakeOver, by) => {
                handoff::take_over(state, &self.owner, by, || self.cut(FinishReason::Superseded), next)
            }
            Handoff::Act(Act::Release(reach), by) => handoff::release(state, by, *reach),
            Handoff::Act(Act::Reassign(to, reach), by) => handoff::reassign(state, &self.owner, by, to, *reach),
            Handoff::Act(Act::End, by) => {
                let reason = crate::domain::entry::EndReason::Admin;
                decide::end(state, Some(by.clone()), reason, || self.cut_short(), next)
            }
            Handoff::Lapse(epoch) => Ok(handoff::lapse(state, *epoch)),
        }
    }

    /// The end of the running reply if it is cut here, with what is known of its words.
    pub(super) fn cut(&self, reason: FinishReason) -> Ending {
        match (&self.reply, &self.remote) {
            (Some(live), _) => live.ending(reason),
            (None, Some(remote)) => remote.ending(reason),
            (None, None) => Ending {
                finish: FinishReason::Interrupted,
                text: String::new(),
                usage: crate::domain::entry::Usage::default(),
                provider_request_id: None,
                model: None,
                conversation: None,
            },
        }
    }

    /// The work that writes the row ahead of this, if it needs one and it will be done.
    pub(super) fn write_ahead(&self, write: &Write) -> Option<Stage> {
        let Op::Handoff(handoff) = &write.op else { return None };
        let stage = match handoff {
            Handoff::RequestHelp(_) => Stage::Waiting { since: crate::domain::time::Timestamp::now() },
            Handoff::Act(Act::TakeOver, _) => Stage::Held,
            Handoff::Act(Act::Release(_) | Act::Reassign(..) | Act::End, _) | Handoff::Lapse(_) => return None,
        };
        let something = self.decide(write).is_ok_and(|kinds| !kinds.is_empty());
        (something && !write.prepared).then_some(stage)
    }

    pub(super) fn start_write_ahead(&mut self, write: Write, stage: Stage) {
        let work = put(self.log.clone(), self.shared.handoffs.clone(), stage);
        let work = async move { Outcome::Prepared(work.await) };
        self.writes.in_flight = Some(InFlight::new(Some(write), Vec::new(), work));
    }

    /// The row is there, or the write cannot be made.
    pub(super) fn prepared(&mut self, write: Option<Write>, result: Result<(), SessionError>) {
        let Some(mut write) = write else { return };
        match result {
            Ok(()) => {
                write.prepared = true;
                self.writes.push_front(write);
            }
            Err(error) => {
                self.shared.count(&error);
                self.mend_row();
                self.answer(write.origin, Err(Failure::from(&error)));
            }
        }
    }

    /// The session's place in the queue is another one.
    pub(super) fn placed(&mut self, place: Option<Place>) {
        if place.is_none() || self.state.help_requested_at.is_none() {
            return;
        }
        let help = self.wire_session().help.unwrap_or_default();
        self.subscribers.broadcast(&event::encode(response::Event::Help(help)));
    }

    /// Admins who are attached show that the team is there.
    pub(super) fn note_team(&self) {
        if self.subscribers.has_admin(None) {
            self.shared.queue.team_is_there();
        }
    }

    pub(super) fn wire_session(&self) -> v1::Session {
        let id = self.log.id;
        let mut session = event::wire_session(&id.to_string(), &self.owner, self.created_at, &self.state);
        self.shared.queue.complete(id, &mut session);
        session
    }
}

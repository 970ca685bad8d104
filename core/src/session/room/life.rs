//! What happens to a session as a whole: its model, its name, its last reply once more, its return after an end, its share
//! links, and its end when nothing happens in it.

use chatbox_proto::{ids::MessageId, status::Failure, token::Roles, v1};
use tokio::{sync::oneshot, task::JoinHandle};

use super::{
    Room, too_many_writes,
    write::{Op, Origin, Write},
};
use crate::{
    domain::{
        decide::{self, Ending, NextReply, Rejection},
        entry::{EndReason, Entry, EntryKind, FinishReason, Sender, Seq, Usage},
        life,
        session::{Responder, SessionState},
    },
    session::naming,
};

/// A change of the session that is no message.
#[derive(Debug, Clone)]
pub(in crate::session) enum Change {
    /// Another model answers from the next reply on.
    SelectModel(String),
    /// This reply is generated once more.
    Regenerate(MessageId),
    /// Another name.
    Rename {
        /// The name.
        name: String,
        /// Made from the first exchange.
        automatic: bool,
    },
    /// It takes messages again.
    Reopen(Sender),
    /// A share link was made or revoked.
    Share {
        /// Which.
        id: String,
        /// It no longer works.
        revoked: bool,
    },
    /// It ends, unless anything was written after this entry.
    EndIdle(Seq),
}

impl Change {
    /// What may be appended for it.
    pub(super) fn decide(
        &self,
        state: &SessionState,
        next: impl FnOnce() -> NextReply,
    ) -> Result<Vec<EntryKind>, Rejection> {
        match self {
            Self::SelectModel(model) => life::select_model(state, model),
            Self::Regenerate(id) => life::regenerate(state, *id, next()),
            Self::Rename { name, automatic } => life::rename(state, name, *automatic),
            Self::Reopen(by) => life::reopen(state, by.clone()),
            Self::Share { id, revoked } => life::share(state, id.clone(), *revoked),
            Self::EndIdle(head) if life::is_idle(state, *head) => {
                // Nothing runs, so that there is nothing to end with it.
                let ending = || Ending {
                    finish: FinishReason::Cancelled,
                    text: String::new(),
                    usage: Usage::default(),
                    provider_request_id: None,
                    model: None,
                    conversation: None,
                };
                decide::end(state, None, EndReason::Idle, ending, next())
            }
            Self::EndIdle(_) => Ok(Vec::new()),
        }
    }
}

/// The name that is being made; dropping it ends the work.
pub(super) struct Naming(pub(super) JoinHandle<Option<String>>);

impl Drop for Naming {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Room {
    /// Takes a change of somebody who waits for the session as it is then.
    pub(super) fn change(&mut self, change: Change, done: oneshot::Sender<Result<v1::Session, Failure>>) {
        let origin = Origin::Call(done);
        if self.writes.is_full() {
            return self.answer(origin, Err(too_many_writes()));
        }
        self.writes.push(Write::new(Op::Change(change), origin));
    }

    /// Nothing has happened after this entry for as long as may be.
    pub(super) fn end_idle(&mut self, head: Seq) {
        // A full queue says that something happens.
        if life::is_idle(&self.state, head) && !self.writes.is_full() {
            self.writes.push(Write::new(Op::Change(Change::EndIdle(head)), Origin::Nobody));
        }
    }

    /// Whether somebody with these roles may have the session's model answer. A model that was removed is stood in for by
    /// the default one, which is for everybody.
    pub(super) fn check_model(&self, roles: Option<Roles>) -> Result<(), Rejection> {
        let model = self.shared.models.get(&self.state.model);
        let allowed = match (roles, model) {
            (Some(roles), Some(model)) => model.info.is_for(roles),
            (None, _) | (_, None) => true,
        };
        if allowed || self.state.responder != Responder::Assistant { Ok(()) } else { Err(Rejection::ModelNotAllowed) }
    }

    /// After its first exchange a session gets a name, made beside the conversation: it is tried once, by the core in which
    /// the reply ended.
    pub(super) fn consider_naming(&mut self, entries: &[Entry]) {
        let ended_a_reply = entries.iter().any(|entry| matches!(entry.fact.kind, EntryKind::ReplyFinished(_)));
        let first = self.state.exchanges == 1 && self.state.name.is_empty() && self.state.ended.is_none();
        if ended_a_reply && first && self.naming.is_none() && !self.is_leaving() {
            let model = self.shared.models.get_or_default(&self.state.model).0.clone();
            self.naming = naming::start(&self.shared, self.log.clone(), model, &self.owner).map(Naming);
        }
    }

    /// What became of it. A task that died has no name to give.
    pub(super) fn named(&mut self, name: Result<Option<String>, tokio::task::JoinError>) {
        self.naming = None;
        if let Ok(Some(name)) = name
            && !self.writes.is_full()
        {
            let change = Change::Rename { name, automatic: true };
            self.writes.push(Write::new(Op::Change(change), Origin::Nobody));
        }
    }
}

/// Waits for the name that is being made, or forever.
pub(super) async fn next_name(naming: &mut Option<Naming>) -> Result<Option<String>, tokio::task::JoinError> {
    match naming {
        Some(naming) => (&mut naming.0).await,
        None => std::future::pending().await,
    }
}

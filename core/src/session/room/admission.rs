//! Whether a message may be taken and what a reply counts against: shares, budgets, and the settlement of what was used.
//!
//! A message that no budget has room for is refused before anything is written; whether there is room is found out by a
//! read. The reservation that counts is made when the prompt is known, by the reply itself: who was admitted and comes too
//! late all the same, or waited while the budget was used up, gets a reply that ends as `BUDGET_EXHAUSTED`.

use chatbox_proto::{ids::MessageId, status::Failure};

use super::{
    Room,
    flight::Outcome,
    live::LiveReply,
    write::{Op, Write},
};
use crate::{
    domain::{
        decide::Rejection,
        entry::{Charge, Entry, EntryKind, Message},
        session::Responder,
    },
    llm::estimate_message_tokens,
};

/// Whether a write may be done.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nobody has asked yet.
    Open,
    /// As far as can be told.
    Admitted,
    /// It is not; whoever asked for it is told why, unless it was done before.
    Refused(Failure),
}

impl Room {
    /// What the limits of this core say to a message of this user.
    pub(super) fn share(&self, user_id: &str) -> Verdict {
        let quota = &self.shared.quota;
        let running = self.shared.metrics.replies_running.get();
        // Where a reply runs, what comes waits for its end.
        let place = |()| if self.state.running.is_some() { Ok(()) } else { quota.reply(running) };
        match quota.write(user_id).and_then(place) {
            Ok(()) => Verdict::Open,
            Err(failure) => {
                self.shared.metrics.limited(reason(&failure));
                Verdict::Refused(failure)
            }
        }
    }

    /// The budgets have been asked.
    pub(super) fn admitted(&mut self, write: Option<Write>, room: Result<(), Failure>) {
        if let Some(write) = write {
            let verdict = room.map_or_else(Verdict::Refused, |()| Verdict::Admitted);
            self.writes.push_front(Write { verdict, ..write });
        }
    }

    /// What whoever asked is told of a rejection.
    pub(super) fn refusal_of(&self, rejection: Rejection, verdict: Verdict) -> Failure {
        match (rejection, verdict) {
            (Rejection::NotAdmitted, Verdict::Refused(failure)) => failure,
            (rejection, _) => self.refusal(rejection),
        }
    }

    /// The look for room in the budgets of a message that is going to be answered. `None`: it needs none.
    pub(super) fn ask_budgets(&self, op: &Op) -> Option<impl Future<Output = Outcome> + Send + 'static> {
        let Op::Send(message) = op else { return None };
        if self.state.responder != Responder::Assistant || self.state.ended.is_some() {
            return None;
        }
        let budgets = self.shared.budgets.clone()?;
        let charge = self.charge()?;
        let model = &self.shared.models.get_or_default(&self.state.model).0.info;
        let amount = budgets.most(model, self.least_prompt(message));
        Some(
            async move { Outcome::Admitted(budgets.check(&charge, amount).await.map_err(|error| Failure::from(&error))) },
        )
    }

    /// What the prompt of an answer holds in any case.
    fn least_prompt(&self, message: &Message) -> u64 {
        estimate_message_tokens(&message.text)
    }

    /// What a reply that starts now counts against: the budgets of whoever wrote here last; after a restart those of the
    /// last reply, which was the same user's.
    pub(super) fn charge(&self) -> Option<Charge> {
        let budgets = self.shared.budgets.as_ref()?;
        match self.payer {
            None if !self.state.charged.is_empty() => budgets.charge_to(self.state.charged.iter().cloned()),
            payer => budgets.charge(&self.owner, payer.unwrap_or_default()),
        }
    }

    /// Settles the replies whose end has just been written here. Must come before the entries are applied.
    pub(super) fn settle(&self, entries: &[Entry]) {
        let Some(budgets) = &self.shared.budgets else { return };
        for entry in entries {
            let EntryKind::ReplyFinished(finished) = &entry.fact.kind else { continue };
            let Some(charge) = self.charge_of(finished.id) else { continue };
            let (budgets, settlement) = (budgets.clone(), budgets.settlement(&finished.model, &finished.usage));
            let id = finished.id;
            // Bounded by the tries of each; what it does not bring to its end, the sweep does.
            self.shared.tasks.spawn(async move { budgets.settle(&charge, id, settlement).await });
        }
    }

    /// Counts replies where their end is written: with several cores, in one of them.
    pub(super) fn count_finished(&self, entries: &[Entry]) {
        for entry in entries {
            if let EntryKind::ReplyFinished(finished) = &entry.fact.kind {
                let ran_for = self.reply.as_ref().filter(|reply| reply.id == finished.id).and_then(LiveReply::ran_for);
                self.shared.metrics.reply_finished(finished, ran_for);
            }
        }
    }

    fn charge_of(&self, id: MessageId) -> Option<Charge> {
        self.state.running.as_ref().filter(|running| running.id == id)?.charge.clone()
    }
}

/// One of a few.
fn reason(failure: &Failure) -> &'static str {
    if failure.reason == "TOO_MANY_MESSAGES" { "too_many_messages" } else { "too_many_replies" }
}

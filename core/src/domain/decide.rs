//! Decisions: what may be appended to a session in a given state. Pure: whoever appends the result at the state's head has
//! validated it; a conflict means deciding again.

use chatbox_proto::ids::MessageId;

use super::{
    entry::{
        Charge, EndReason, EntryKind, FinishReason, Message, ReplyFinished, ReplyStarted, Sender, SenderRole, Usage,
    },
    handoff,
    session::{Responder, RunningReply, SessionState},
};

/// Why nothing may be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The session takes no more messages.
    #[error("the session has ended")]
    Ended,
    /// The session's content is being destroyed: nothing follows.
    #[error("the session is erased")]
    Erased,
    /// It may not be sent now; whoever sent it is told why.
    #[error("it may not be sent now")]
    NotAdmitted,
    /// As many messages wait for a reply as may.
    #[error("too many messages wait for a reply")]
    TooManyUnanswered,
    /// The reply is not the one that runs.
    #[error("the reply does not run")]
    NotRunning,
    /// A reply runs, or is about to.
    #[error("a reply runs")]
    ReplyRuns,
    /// The reply is not the last message.
    #[error("the reply is not the last message")]
    NotLastReply,
    /// Whoever asks may not choose the model of the session.
    #[error("the model of the session is not for the caller")]
    ModelNotAllowed,
    /// A person holds the session, and it is not the one who asks.
    #[error("a person holds the session")]
    Held,
    /// Nobody holds the session.
    #[error("nobody holds the session")]
    NotHeld,
    /// Nobody is the other side of a conversation of their own.
    #[error("the session is the admin's own")]
    OwnSession,
}

/// A reply that may be started along with a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextReply {
    /// Its id.
    pub id: MessageId,
    /// The model that answers: the selected one, or what stands in for one that was removed.
    pub model: String,
    /// The budgets that it counts against.
    pub charge: Option<Charge>,
}

/// How a running reply ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// How.
    pub finish: FinishReason,
    /// The whole text that is kept.
    pub text: String,
    /// What it used.
    pub usage: Usage,
    /// The provider's own id of the request.
    pub provider_request_id: Option<String>,
    /// Id of the fallback that answered. `None`: the model it started with.
    pub model: Option<String>,
    /// The name under which the provider keeps the conversation.
    pub conversation: Option<String>,
}

/// A message is written; unless a reply runs or a person holds the session, one reply starts for everything that waits.
/// `next` is `None` while no reply may start (the core is leaving): the message then waits.
///
/// # Errors
/// [`Rejection::Ended`], [`Rejection::Erased`], [`Rejection::TooManyUnanswered`].
pub fn send(
    state: &SessionState,
    message: Message,
    next: Option<NextReply>,
    max_unanswered: usize,
) -> Result<Vec<EntryKind>, Rejection> {
    open_ended(state)?;
    if message.sender.role == SenderRole::Admin {
        handoff::may_write(state, &message.sender)?;
    }
    let wants_reply = message.sender.role == SenderRole::User && state.responder == Responder::Assistant;
    if wants_reply && state.unanswered.len() >= max_unanswered {
        return Err(Rejection::TooManyUnanswered);
    }
    let mut answers = state.unanswered.clone();
    answers.push(message.id);
    let mut entries = vec![EntryKind::Message(message)];
    if let (true, None, Some(next)) = (wants_reply, &state.running, next) {
        entries.push(start(next, answers));
    }
    Ok(entries)
}

/// What waits is answered; empty when nothing does.
#[must_use]
pub fn answer(state: &SessionState, next: NextReply) -> Vec<EntryKind> {
    if state.needs_reply() { vec![start(next, state.unanswered.clone())] } else { Vec::new() }
}

/// The running reply ends; what was sent meanwhile is answered by one reply that starts in the same append.
///
/// # Errors
/// [`Rejection::NotRunning`] when another reply runs, or none.
pub fn finish_reply(
    state: &SessionState,
    id: MessageId,
    ending: Ending,
    next: Option<NextReply>,
) -> Result<Vec<EntryKind>, Rejection> {
    let running = state.running.as_ref().filter(|running| running.id == id).ok_or(Rejection::NotRunning)?;
    let mut entries = vec![finish(running, ending)];
    if let Some(next) = next
        && !state.unanswered.is_empty()
        && state.ended.is_none()
        && state.responder == Responder::Assistant
    {
        entries.push(start(next, state.unanswered.clone()));
    }
    Ok(entries)
}

/// The session ends. A running reply is cancelled with `text`, its words so far; messages that still wait get a reply that
/// is cancelled before its first word, so that each accepted message is named by exactly one reply.
///
/// # Errors
/// [`Rejection::Ended`], [`Rejection::Erased`].
pub fn end(
    state: &SessionState,
    by: Option<Sender>,
    reason: EndReason,
    ending: impl FnOnce() -> Ending,
    next: NextReply,
) -> Result<Vec<EntryKind>, Rejection> {
    open_ended(state)?;
    let mut entries = cut_all(state, FinishReason::Cancelled, ending, next);
    entries.push(EntryKind::Ended { by, reason });
    Ok(entries)
}

/// Ends the running reply as `ending` says, and gives what still waits a reply that is over before its first word.
pub(super) fn cut_all(
    state: &SessionState,
    reason: FinishReason,
    ending: impl FnOnce() -> Ending,
    next: NextReply,
) -> Vec<EntryKind> {
    let mut entries = Vec::new();
    if let Some(running) = &state.running {
        entries.push(finish(running, ending()));
    }
    if !state.unanswered.is_empty() && state.responder == Responder::Assistant {
        let started_seq = state.head + entries.len() as u64 + 1;
        let (id, model) = (next.id, next.model.clone());
        // It asks no provider, and uses nothing.
        entries.push(start(NextReply { charge: None, ..next }, state.unanswered.clone()));
        entries.push(EntryKind::ReplyFinished(ReplyFinished {
            id,
            started_seq,
            text: String::new(),
            finish: reason,
            usage: Usage::default(),
            provider_request_id: None,
            model,
            conversation: None,
        }));
    }
    entries
}

/// The session ends, if it has not, and a fence says that its content is being destroyed: nothing follows it.
///
/// # Errors
/// [`Rejection::Erased`].
pub fn erase(
    state: &SessionState,
    by: Sender,
    ending: impl FnOnce() -> Ending,
    next: NextReply,
) -> Result<Vec<EntryKind>, Rejection> {
    let reason = if by.role == SenderRole::User { EndReason::User } else { EndReason::Admin };
    let mut entries = match end(state, Some(by.clone()), reason, ending, next) {
        Ok(entries) => entries,
        Err(Rejection::Ended) => Vec::new(),
        Err(rejection) => return Err(rejection),
    };
    entries.push(EntryKind::Erased { by });
    Ok(entries)
}

/// Whether anything may follow.
pub(super) fn open_ended(state: &SessionState) -> Result<(), Rejection> {
    if state.erased {
        Err(Rejection::Erased)
    } else if state.ended.is_some() {
        Err(Rejection::Ended)
    } else {
        Ok(())
    }
}

fn start(next: NextReply, answers: Vec<MessageId>) -> EntryKind {
    let NextReply { id, model, charge } = next;
    EntryKind::ReplyStarted(ReplyStarted { id, model, answers, supersedes: None, charge })
}

fn finish(running: &RunningReply, ending: Ending) -> EntryKind {
    EntryKind::ReplyFinished(ReplyFinished {
        id: running.id,
        started_seq: running.started_seq,
        text: ending.text,
        finish: ending.finish,
        usage: ending.usage,
        provider_request_id: ending.provider_request_id,
        model: ending.model.unwrap_or_else(|| running.model.clone()),
        conversation: ending.conversation,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::{
        entry::{Entry, Fact},
        time::Timestamp,
    };

    const MAX: usize = 8;

    fn visitor() -> Sender {
        Sender { role: SenderRole::User, user_id: "alice".into(), display_name: String::new() }
    }

    fn admin() -> Sender {
        Sender { role: SenderRole::Admin, user_id: "bob".into(), display_name: String::new() }
    }

    fn message(text: &str) -> Message {
        Message {
            id: MessageId::generate(),
            sender: visitor(),
            client_message_id: Some(text.into()),
            text: text.into(),
            file_ids: Vec::new(),
        }
    }

    fn new_reply() -> NextReply {
        NextReply { id: MessageId::generate(), model: "demo".into(), charge: None }
    }

    fn next() -> Option<NextReply> {
        Some(new_reply())
    }

    fn ending(finish: FinishReason) -> Ending {
        Ending {
            finish,
            text: "partial".into(),
            usage: Usage::default(),
            provider_request_id: None,
            model: None,
            conversation: None,
        }
    }

    fn append(state: &mut SessionState, log: &mut Vec<Entry>, kinds: Vec<EntryKind>) {
        for kind in kinds {
            let entry = Entry { seq: state.head + 1, fact: Fact { at: Timestamp::from_millis(1), kind } };
            state.apply(&entry).expect("decisions follow the head");
            log.push(entry);
        }
    }

    fn empty() -> SessionState {
        SessionState::new("demo".into(), Timestamp::from_millis(0))
    }

    #[test]
    fn a_first_message_starts_a_reply_in_the_same_append() {
        let state = empty();
        let entries = send(&state, message("hi"), next(), MAX).unwrap();
        assert!(matches!(entries[..], [EntryKind::Message(_), EntryKind::ReplyStarted(_)]));
    }

    #[test]
    fn messages_during_a_reply_are_answered_by_one_reply_when_it_ends() {
        let (mut state, mut log) = (empty(), Vec::new());
        let first = send(&state, message("1"), next(), MAX).unwrap();
        append(&mut state, &mut log, first);
        for text in ["2", "3"] {
            let more = send(&state, message(text), next(), MAX).unwrap();
            assert_eq!(more.len(), 1);
            append(&mut state, &mut log, more);
        }
        let waiting = state.unanswered.clone();
        let id = state.running.as_ref().unwrap().id;
        let entries = finish_reply(&state, id, ending(FinishReason::Stop), next()).unwrap();
        let EntryKind::ReplyStarted(started) = &entries[1] else { panic!("no reply started") };
        assert_eq!(started.answers, waiting);
    }

    #[test]
    fn the_ninth_waiting_message_is_refused() {
        let (mut state, mut log) = (empty(), Vec::new());
        for n in 0..=MAX {
            let entries = send(&state, message(&n.to_string()), next(), MAX).unwrap();
            append(&mut state, &mut log, entries);
        }
        assert_eq!(send(&state, message("x"), next(), MAX), Err(Rejection::TooManyUnanswered));
    }

    #[test]
    fn only_the_running_reply_can_be_finished() {
        let (mut state, mut log) = (empty(), Vec::new());
        let entries = send(&state, message("1"), next(), MAX).unwrap();
        append(&mut state, &mut log, entries);
        let stale = MessageId::generate();
        assert_eq!(finish_reply(&state, stale, ending(FinishReason::Stop), next()), Err(Rejection::NotRunning));
    }

    #[test]
    fn an_entry_out_of_order_changes_nothing() {
        let mut state = empty();
        let before = state.clone();
        let entry = Entry {
            seq: 2,
            fact: Fact { at: Timestamp::from_millis(9), kind: EntryKind::ModelSelected { model: "x".into() } },
        };
        assert_eq!(state.apply(&entry), Err(OutOfOrder { head: 0, found: 2 }));
        assert_eq!(state, before);
    }

    #[test]
    fn an_erasure_ends_what_runs_and_waits_in_the_same_append_and_nothing_follows_it() {
        let (mut state, mut log) = (empty(), Vec::new());
        for text in ["1", "2"] {
            let entries = send(&state, message(text), next(), MAX).unwrap();
            append(&mut state, &mut log, entries);
        }
        let fence = || erase(&state, visitor(), || ending(FinishReason::Cancelled), new_reply());
        let entries = fence().unwrap();
        assert!(matches!(
            entries[..],
            [
                EntryKind::ReplyFinished(_),
                EntryKind::ReplyStarted(_),
                EntryKind::ReplyFinished(_),
                EntryKind::Ended { .. },
                EntryKind::Erased { .. }
            ]
        ));
        append(&mut state, &mut log, entries);
        assert!(state.erased && state.ended.is_some() && state.running.is_none() && state.unanswered.is_empty());
        assert!(state.is_unfinished(), "somebody has to destroy it");
        assert_eq!(send(&state, message("3"), next(), MAX), Err(Rejection::Erased));
        let again = |state: &SessionState| erase(state, visitor(), || ending(FinishReason::Cancelled), new_reply());
        assert_eq!(again(&state), Err(Rejection::Erased));
        let ended = || ending(FinishReason::Cancelled);
        assert_eq!(end(&state, None, EndReason::Idle, ended, new_reply()), Err(Rejection::Erased));
    }

    #[test]
    fn an_ended_session_is_erased_without_ending_twice() {
        let (mut state, mut log) = (empty(), Vec::new());
        let ended = end(&state, None, EndReason::Idle, || ending(FinishReason::Cancelled), new_reply()).unwrap();
        append(&mut state, &mut log, ended);
        let entries = erase(&state, visitor(), || ending(FinishReason::Cancelled), new_reply()).unwrap();
        assert!(matches!(entries[..], [EntryKind::Erased { .. }]));
    }

    use crate::domain::session::OutOfOrder;

    #[derive(Debug, Clone)]
    enum Step {
        Send { leaving: bool },
        Finish(FinishReason),
        Answer,
        TakeOver,
        AdminSend,
        Release,
        Lapse,
        End,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => any::<bool>().prop_map(|leaving| Step::Send { leaving }),
            3 => prop::sample::select(vec![FinishReason::Stop, FinishReason::Cancelled, FinishReason::Interrupted])
                .prop_map(Step::Finish),
            2 => Just(Step::Answer),
            1 => Just(Step::TakeOver),
            1 => Just(Step::AdminSend),
            1 => Just(Step::Release),
            1 => Just(Step::Lapse),
            1 => Just(Step::End),
        ]
    }

    proptest! {
        /// Invariants 4 and 6, whatever happens in whatever order: each accepted message is named by exactly one reply with
        /// exactly one terminal outcome once the session has ended and nothing is left to do, unless it was sent while a
        /// person held the session, and then by none; and nothing is generated while a person holds it.
        #[test]
        fn each_message_is_answered_by_exactly_one_finished_reply(steps in prop::collection::vec(step(), 0..60)) {
            let (mut state, mut log) = (empty(), Vec::new());
            for step in steps.into_iter().chain([Step::End]) {
                let decided = match step {
                    Step::Send { leaving } => send(&state, message("m"), if leaving { None } else { next() }, MAX),
                    Step::Finish(reason) => match state.running.as_ref().map(|r| r.id) {
                        Some(id) => finish_reply(&state, id, ending(reason), next()),
                        None => Err(Rejection::NotRunning),
                    },
                    Step::Answer => Ok(answer(&state, new_reply())),
                    Step::TakeOver => {
                        handoff::take_over(&state, "alice", &admin(), || ending(FinishReason::Superseded), new_reply())
                    }
                    Step::AdminSend => send(&state, Message { sender: admin(), ..message("a") }, next(), MAX),
                    Step::Release => handoff::release(&state, &admin(), handoff::Reach::Own),
                    Step::Lapse => Ok(handoff::lapse(&state, state.epoch)),
                    Step::End => end(&state, None, EndReason::Idle, || ending(FinishReason::Cancelled), new_reply()),
                };
                if let Ok(kinds) = decided {
                    append(&mut state, &mut log, kinds);
                }
                prop_assert!(state.unanswered.len() <= MAX);
            }
            let mut answered: HashMap<MessageId, u32> = HashMap::new();
            let mut finished: HashMap<MessageId, u32> = HashMap::new();
            let mut started = Vec::new();
            let mut messages = Vec::new();
            let mut held = false;
            let mut unanswerable = Vec::new();
            for entry in &log {
                let kind = &entry.fact.kind;
                if let EntryKind::TakenOver { .. } | EntryKind::Released { .. } = kind {
                    held = matches!(kind, EntryKind::TakenOver { .. });
                }
                if let EntryKind::Message(m) = kind {
                    if held { unanswerable.push(m.id) } else { messages.push(m.id) }
                }
                if let EntryKind::ReplyStarted(_) | EntryKind::ReplyFinished(_) = kind {
                    prop_assert!(!held);
                }
                if let EntryKind::ReplyStarted(r) = &entry.fact.kind {
                    started.push((r.id, entry.seq));
                    for id in &r.answers {
                        *answered.entry(*id).or_default() += 1;
                    }
                }
                if let EntryKind::ReplyFinished(r) = &entry.fact.kind {
                    *finished.entry(r.id).or_default() += 1;
                    prop_assert!(started.contains(&(r.id, r.started_seq)));
                }
            }
            for id in unanswerable { prop_assert_eq!(answered.get(&id), None); }
            for id in messages { prop_assert_eq!(answered.get(&id), Some(&1)); }
            for (id, _) in started { prop_assert_eq!(finished.get(&id), Some(&1)); }
            prop_assert!(!state.is_unfinished());
            prop_assert_eq!(state.head, log.len() as u64);
        }
    }
}

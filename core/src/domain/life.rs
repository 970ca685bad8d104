//! Decisions about a session as a whole: its model, its name, its last reply once more, its return after an end, its share
//! links. Pure, as those in [`decide`](super::decide).

use chatbox_proto::ids::MessageId;

use super::{
    decide::{NextReply, Rejection, open_ended},
    entry::{EntryKind, ReplyStarted, Sender, Seq},
    session::{Responder, SessionState},
};

/// Another model answers from the next reply on; empty when it is the one that answers already.
///
/// # Errors
/// [`Rejection::Ended`], [`Rejection::Erased`].
pub fn select_model(state: &SessionState, model: &str) -> Result<Vec<EntryKind>, Rejection> {
    open_ended(state)?;
    if state.model == model {
        return Ok(Vec::new());
    }
    Ok(vec![EntryKind::ModelSelected { model: model.to_owned() }])
}

/// The last reply is generated once more. The new one answers nothing of its own: it stands for the one it replaces, so that
/// each message stays named by exactly one reply.
///
/// # Errors
/// [`Rejection::Ended`], [`Rejection::Erased`], [`Rejection::Held`], [`Rejection::ReplyRuns`], [`Rejection::NotLastReply`].
pub fn regenerate(state: &SessionState, id: MessageId, next: NextReply) -> Result<Vec<EntryKind>, Rejection> {
    open_ended(state)?;
    if state.responder != Responder::Assistant {
        return Err(Rejection::Held);
    }
    // What waits is answered first, by a reply that comes after this one.
    if state.running.is_some() || !state.unanswered.is_empty() {
        return Err(Rejection::ReplyRuns);
    }
    if state.last_reply != Some(id) {
        return Err(Rejection::NotLastReply);
    }
    let started =
        ReplyStarted { id: next.id, model: next.model, answers: Vec::new(), supersedes: Some(id), charge: next.charge };
    Ok(vec![EntryKind::ReplyStarted(started)])
}

/// The session has another name; empty when it has it already, and when an automatic one comes after one that is there.
///
/// # Errors
/// [`Rejection::Erased`] once its content is destroyed; an ended session can be renamed.
pub fn rename(state: &SessionState, name: &str, automatic: bool) -> Result<Vec<EntryKind>, Rejection> {
    if state.erased {
        return Err(Rejection::Erased);
    }
    let too_late = automatic && (!state.name.is_empty() || state.ended.is_some());
    if too_late || state.name == name {
        return Ok(Vec::new());
    }
    Ok(vec![EntryKind::Renamed { name: name.to_owned(), automatic }])
}

/// An ended session takes messages again; empty when it does.
///
/// # Errors
/// [`Rejection::Erased`] once its content is destroyed.
pub fn reopen(state: &SessionState, by: Sender) -> Result<Vec<EntryKind>, Rejection> {
    if state.erased {
        return Err(Rejection::Erased);
    }
    Ok(state.ended.map(|_| EntryKind::Reopened { by }).into_iter().collect())
}

/// Whether a session that stood still at `head` for the configured time may be ended for it: whatever was written since, a
/// reply that runs and a person who holds it speak against it.
#[must_use]
pub fn is_idle(state: &SessionState, head: Seq) -> bool {
    state.head == head && open_ended(state).is_ok() && !state.is_unfinished() && state.responder == Responder::Assistant
}

/// A share link was made or revoked.
///
/// # Errors
/// [`Rejection::Erased`] once its content is destroyed; an ended session can be shared.
pub fn share(state: &SessionState, share_id: String, revoked: bool) -> Result<Vec<EntryKind>, Rejection> {
    if state.erased {
        return Err(Rejection::Erased);
    }
    Ok(vec![EntryKind::Shared { share_id, revoked }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        decide,
        entry::{EndReason, Entry, Fact, FinishReason, Message, SenderRole, Usage},
        time::Timestamp,
    };

    fn person(role: SenderRole) -> Sender {
        Sender { role, user_id: "alice".into(), display_name: String::new() }
    }

    fn next() -> NextReply {
        NextReply { id: MessageId::generate(), model: "demo".into(), charge: None }
    }

    fn append(state: &mut SessionState, kinds: Vec<EntryKind>) {
        for kind in kinds {
            let entry = Entry { seq: state.head + 1, fact: Fact { at: Timestamp::from_millis(1), kind } };
            state.apply(&entry).expect("decisions follow the head");
        }
    }

    fn send(state: &mut SessionState, role: SenderRole) {
        let message = Message {
            id: MessageId::generate(),
            sender: person(role),
            client_message_id: None,
            text: "m".into(),
            file_ids: Vec::new(),
        };
        let kinds = decide::send(state, message, Some(next()), 8).unwrap();
        append(state, kinds);
    }

    fn ending(finish: FinishReason) -> decide::Ending {
        decide::Ending {
            finish,
            text: "a".into(),
            usage: Usage::default(),
            provider_request_id: None,
            model: None,
            conversation: None,
        }
    }

    fn finish(state: &mut SessionState) {
        let id = state.running.as_ref().unwrap().id;
        let kinds = decide::finish_reply(state, id, ending(FinishReason::Stop), Some(next())).unwrap();
        append(state, kinds);
    }

    fn end(state: &mut SessionState) {
        let kinds = decide::end(state, None, EndReason::Idle, || ending(FinishReason::Cancelled), next()).unwrap();
        append(state, kinds);
    }

    /// With one message and its reply.
    fn answered() -> SessionState {
        let mut state = SessionState::new("demo".into(), Timestamp::from_millis(0));
        send(&mut state, SenderRole::User);
        finish(&mut state);
        state
    }

    #[test]
    fn the_last_reply_is_replaced_by_one_that_names_it() {
        let mut state = answered();
        let first = state.last_reply.unwrap();
        let kinds = regenerate(&state, first, next()).unwrap();
        let EntryKind::ReplyStarted(started) = &kinds[0] else { panic!("{kinds:?}") };
        assert_eq!((started.supersedes, started.answers.len(), kinds.len()), (Some(first), 0, 1));
        append(&mut state, kinds);
        assert_eq!(state.running.as_ref().unwrap().supersedes, Some(first));
        finish(&mut state);
        // And that one can be replaced in turn, the first one no longer.
        assert_eq!(regenerate(&state, first, next()), Err(Rejection::NotLastReply));
        assert!(regenerate(&state, state.last_reply.unwrap(), next()).is_ok());
    }

    #[test]
    fn nothing_is_generated_again_while_a_reply_runs_a_person_holds_it_or_after_the_end() {
        let mut state = answered();
        let last = state.last_reply.unwrap();
        assert_eq!(regenerate(&state, MessageId::generate(), next()), Err(Rejection::NotLastReply));
        send(&mut state, SenderRole::User);
        assert_eq!(regenerate(&state, last, next()), Err(Rejection::ReplyRuns));
        finish(&mut state);
        let last = state.last_reply.unwrap();
        append(&mut state, vec![EntryKind::TakenOver { admin: person(SenderRole::Admin), previous: None }]);
        assert_eq!(regenerate(&state, last, next()), Err(Rejection::Held));
        send(&mut state, SenderRole::Admin);
        append(&mut state, vec![EntryKind::Released { admin: Some(person(SenderRole::Admin)) }]);
        assert_eq!(regenerate(&state, last, next()), Err(Rejection::NotLastReply), "a person has written since");
        end(&mut state);
        assert_eq!(regenerate(&state, last, next()), Err(Rejection::Ended));
    }

    #[test]
    fn a_model_is_selected_once_and_not_after_the_end() {
        let mut state = answered();
        assert_eq!(select_model(&state, "demo"), Ok(Vec::new()));
        let kinds = select_model(&state, "other").unwrap();
        append(&mut state, kinds);
        assert_eq!(state.model, "other");
        end(&mut state);
        assert_eq!(select_model(&state, "demo"), Err(Rejection::Ended));
    }

    #[test]
    fn an_automatic_name_never_replaces_one_that_is_there() {
        let mut state = answered();
        let kinds = rename(&state, "by hand", false).unwrap();
        append(&mut state, kinds);
        assert_eq!(rename(&state, "made up", true), Ok(Vec::new()));
        assert_eq!(rename(&state, "by hand", false), Ok(Vec::new()));
        end(&mut state);
        assert_eq!(rename(&state, "afterwards", false).unwrap().len(), 1, "an ended one keeps its owner's name for it");
    }

    #[test]
    fn an_ended_session_is_active_again_with_the_assistant() {
        let mut state = answered();
        assert_eq!(reopen(&state, person(SenderRole::User)), Ok(Vec::new()));
        append(&mut state, vec![EntryKind::TakenOver { admin: person(SenderRole::Admin), previous: None }]);
        end(&mut state);
        let kinds = reopen(&state, person(SenderRole::User)).unwrap();
        append(&mut state, kinds);
        assert_eq!((state.ended, &state.responder), (None, &Responder::Assistant));
        send(&mut state, SenderRole::User);
        assert!(state.running.is_some());
    }

    #[test]
    fn idle_is_what_has_not_moved_and_nobody_cares_for() {
        let mut state = answered();
        let head = state.head;
        assert!(is_idle(&state, head) && !is_idle(&state, head - 1));
        send(&mut state, SenderRole::User);
        assert!(!is_idle(&state, state.head), "a reply runs");
        finish(&mut state);
        let mut held = state.clone();
        append(&mut held, vec![EntryKind::TakenOver { admin: person(SenderRole::Admin), previous: None }]);
        assert!(!is_idle(&held, held.head), "a person holds it");
        end(&mut state);
        assert!(!is_idle(&state, state.head), "it has ended");
    }

    #[test]
    fn nothing_is_decided_about_what_was_destroyed() {
        let mut state = answered();
        append(&mut state, vec![EntryKind::Erased { by: person(SenderRole::User) }]);
        let last = state.last_reply.unwrap();
        assert_eq!(select_model(&state, "other"), Err(Rejection::Erased));
        assert_eq!(regenerate(&state, last, next()), Err(Rejection::Erased));
        assert_eq!(rename(&state, "name", false), Err(Rejection::Erased));
        assert_eq!(reopen(&state, person(SenderRole::User)), Err(Rejection::Erased));
        assert_eq!(share(&state, "id".into(), false), Err(Rejection::Erased));
    }
}

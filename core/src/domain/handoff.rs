//! Handoff: what may be appended when a visitor asks for a person, and when a person takes a session, passes it on or gives
//! it back. Pure, like all decisions. A list without entries says that there is nothing left to do: asking twice is asking
//! once.

use chatbox_proto::ids::MessageId;

use super::{
    decide::{self, Ending, NextReply, Rejection},
    entry::{EntryKind, FinishReason, Message, Sender, SenderRole, Seq},
    session::{Responder, SessionState},
};

/// The visitor asks for a person. `notice` is what the product says when nobody of the team is there.
///
/// # Errors
/// [`Rejection::Ended`].
pub fn request_help(state: &SessionState, reason: &str, notice: Option<&str>) -> Result<Vec<EntryKind>, Rejection> {
    refuse_ended(state)?;
    if state.help_requested_at.is_some() || state.holder().is_some() {
        return Ok(Vec::new());
    }
    let mut entries = vec![EntryKind::HelpRequested { reason: reason.to_owned() }];
    entries.extend(notice.map(|text| {
        EntryKind::Message(Message {
            id: MessageId::generate(),
            sender: Sender { role: SenderRole::System, user_id: String::new(), display_name: String::new() },
            client_message_id: None,
            text: text.to_owned(),
            file_ids: Vec::new(),
        })
    }));
    Ok(entries)
}

/// An admin takes the session: a running reply ends as SUPERSEDED with its words so far, and so does a reply without words
/// to what still waits, so that each accepted message is named by exactly one reply.
///
/// # Errors
/// [`Rejection::Ended`], [`Rejection::OwnSession`], [`Rejection::Held`] by another admin.
pub fn take_over(
    state: &SessionState,
    owner: &str,
    admin: &Sender,
    ending: impl FnOnce() -> Ending,
    next: NextReply,
) -> Result<Vec<EntryKind>, Rejection> {
    refuse_ended(state)?;
    if admin.user_id == owner {
        return Err(Rejection::OwnSession);
    }
    match state.holder() {
        Some(holder) if holder.user_id == admin.user_id => return Ok(Vec::new()),
        Some(_) => return Err(Rejection::Held),
        None => {}
    }
    let mut entries = decide::cut_all(state, FinishReason::Superseded, ending, next);
    entries.push(EntryKind::TakenOver { admin: admin.clone(), previous: None });
    Ok(entries)
}

/// Whose hold an admin may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Their own.
    Own,
    /// Anybody's.
    Any,
}

/// The session goes back to the assistant.
///
/// # Errors
/// [`Rejection::Ended`], [`Rejection::NotHeld`], [`Rejection::Held`] by somebody out of reach.
pub fn release(state: &SessionState, admin: &Sender, reach: Reach) -> Result<Vec<EntryKind>, Rejection> {
    held_within(state, admin, reach)?;
    Ok(vec![EntryKind::Released { admin: Some(admin.clone()) }])
}

/// The session goes to another admin.
///
/// # Errors
/// [`Rejection::Ended`], [`Rejection::NotHeld`], [`Rejection::OwnSession`], [`Rejection::Held`] by somebody out of reach.
pub fn reassign(
    state: &SessionState,
    owner: &str,
    admin: &Sender,
    to: &Sender,
    reach: Reach,
) -> Result<Vec<EntryKind>, Rejection> {
    refuse_ended(state)?;
    if to.user_id == owner {
        return Err(Rejection::OwnSession);
    }
    if state.holder().is_some_and(|holder| holder.user_id == to.user_id) {
        return Ok(Vec::new());
    }
    let holder = held_within(state, admin, reach)?;
    Ok(vec![EntryKind::TakenOver { admin: to.clone(), previous: Some(holder.clone()) }])
}

/// The hold of that epoch goes back to the queue: its admin is gone.
#[must_use]
pub fn lapse(state: &SessionState, epoch: Seq) -> Vec<EntryKind> {
    let lapses = state.holder().is_some() && state.epoch == epoch && state.ended.is_none();
    if lapses { vec![EntryKind::Released { admin: None }] } else { Vec::new() }
}

/// Whether this admin may write: only the one who holds the session.
///
/// # Errors
/// [`Rejection::Held`], [`Rejection::NotHeld`].
pub fn may_write(state: &SessionState, admin: &Sender) -> Result<(), Rejection> {
    held_within(state, admin, Reach::Own).map(|_| ())
}

fn held_within<'a>(state: &'a SessionState, admin: &Sender, reach: Reach) -> Result<&'a Sender, Rejection> {
    refuse_ended(state)?;
    let Responder::Admin(holder) = &state.responder else { return Err(Rejection::NotHeld) };
    if reach == Reach::Own && holder.user_id != admin.user_id {
        return Err(Rejection::Held);
    }
    Ok(holder)
}

fn refuse_ended(state: &SessionState) -> Result<(), Rejection> {
    if state.ended.is_some() { Err(Rejection::Ended) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        entry::{EndReason, Entry, Fact, Usage},
        time::Timestamp,
    };

    fn admin(name: &str) -> Sender {
        Sender { role: SenderRole::Admin, user_id: name.into(), display_name: String::new() }
    }

    fn message(sender: Sender) -> Message {
        let id = MessageId::generate();
        Message { id, sender, client_message_id: Some(id.to_string()), text: "m".into(), file_ids: Vec::new() }
    }

    fn visitor() -> Message {
        message(Sender { role: SenderRole::User, user_id: "alice".into(), display_name: String::new() })
    }

    fn next() -> NextReply {
        NextReply { id: MessageId::generate(), model: "demo".into() }
    }

    fn ending() -> Ending {
        Ending {
            finish: FinishReason::Superseded,
            text: "so far".into(),
            usage: Usage::default(),
            provider_request_id: None,
            model: None,
        }
    }

    struct Log(SessionState, i64);

    impl Log {
        fn new() -> Self {
            Self(SessionState::new("demo".into(), Timestamp::from_millis(0)), 0)
        }

        fn append(&mut self, kinds: Vec<EntryKind>) -> Vec<EntryKind> {
            for kind in kinds.clone() {
                self.1 += 1;
                let fact = Fact { at: Timestamp::from_millis(self.1), kind };
                self.0.apply(&Entry { seq: self.0.head + 1, fact }).unwrap();
            }
            kinds
        }

        fn send(&mut self, message: Message) -> Vec<EntryKind> {
            let entries = decide::send(&self.0, message, Some(next()), 8).unwrap();
            self.append(entries)
        }

        fn take(&mut self, name: &str) -> Result<Vec<EntryKind>, Rejection> {
            let entries = take_over(&self.0, "alice", &admin(name), ending, next())?;
            Ok(self.append(entries))
        }
    }

    #[test]
    fn a_takeover_ends_what_runs_and_names_what_waits() {
        let mut log = Log::new();
        log.send(visitor());
        log.send(visitor());
        let waiting = log.0.unanswered.clone();
        let entries = log.take("bob").unwrap();
        let [EntryKind::ReplyFinished(cut), EntryKind::ReplyStarted(started), EntryKind::ReplyFinished(empty), taken] =
            &entries[..]
        else {
            panic!("{entries:?}")
        };
        assert_eq!((cut.finish, cut.text.as_str()), (FinishReason::Superseded, "so far"));
        assert_eq!((&started.answers, empty.finish, empty.text.as_str()), (&waiting, FinishReason::Superseded, ""));
        assert!(matches!(taken, EntryKind::TakenOver { previous: None, .. }));
        assert!(!log.0.is_unfinished());
        assert_eq!(log.0.epoch, log.0.head);
    }

    #[test]
    fn one_admin_holds_it_and_the_others_are_told_so() {
        let mut log = Log::new();
        log.take("bob").unwrap();
        assert_eq!(log.take("bob"), Ok(Vec::new()));
        assert_eq!(log.take("carol"), Err(Rejection::Held));
        assert_eq!(log.take("alice"), Err(Rejection::OwnSession));
        assert_eq!(may_write(&log.0, &admin("carol")), Err(Rejection::Held));
        assert_eq!(release(&log.0, &admin("carol"), Reach::Own), Err(Rejection::Held));
        assert!(release(&log.0, &admin("carol"), Reach::Any).is_ok());
    }

    #[test]
    fn while_it_is_held_nothing_waits_and_a_release_starts_no_reply() {
        let mut log = Log::new();
        log.take("bob").unwrap();
        assert_eq!(log.send(visitor()).len(), 1);
        assert_eq!(log.send(message(admin("bob"))).len(), 1);
        assert_eq!(decide::send(&log.0, message(admin("carol")), Some(next()), 8), Err(Rejection::Held));
        let entries = release(&log.0, &admin("bob"), Reach::Own).unwrap();
        log.append(entries);
        assert!(!log.0.needs_reply());
        assert_eq!(release(&log.0, &admin("bob"), Reach::Own), Err(Rejection::NotHeld));
        assert_eq!(decide::send(&log.0, message(admin("bob")), Some(next()), 8), Err(Rejection::NotHeld));
        assert_eq!(log.send(visitor()).len(), 2);
    }

    #[test]
    fn a_hold_that_lapses_goes_back_to_its_old_place() {
        let mut log = Log::new();
        let asked = request_help(&log.0, "please", Some("nobody is here")).unwrap();
        log.append(asked);
        let since = log.0.help_requested_at.unwrap();
        assert_eq!(request_help(&log.0, "please", None), Ok(Vec::new()));
        log.take("bob").unwrap();
        assert_eq!(log.0.help_requested_at, None);
        assert_eq!(lapse(&log.0, log.0.epoch - 1), Vec::new());
        let entries = lapse(&log.0, log.0.epoch);
        log.append(entries);
        assert_eq!((log.0.holder(), log.0.help_requested_at), (None, Some(since)));
        assert_eq!(lapse(&log.0, log.0.epoch), Vec::new());
    }

    #[test]
    fn a_hold_without_a_request_lapses_into_the_queue_too() {
        let mut log = Log::new();
        log.take("bob").unwrap();
        let entries = lapse(&log.0, log.0.epoch);
        log.append(entries);
        assert_eq!(log.0.help_requested_at, Some(Timestamp::from_millis(2)));
    }

    #[test]
    fn it_is_passed_on_by_who_holds_it() {
        let mut log = Log::new();
        log.take("bob").unwrap();
        let to = admin("carol");
        assert_eq!(reassign(&log.0, "alice", &admin("dan"), &to, Reach::Own), Err(Rejection::Held));
        assert_eq!(reassign(&log.0, "alice", &admin("bob"), &admin("alice"), Reach::Own), Err(Rejection::OwnSession));
        let entries = reassign(&log.0, "alice", &admin("bob"), &to, Reach::Own).unwrap();
        log.append(entries);
        assert_eq!(log.0.holder(), Some(&to));
        assert_eq!(reassign(&log.0, "alice", &admin("bob"), &to, Reach::Own), Ok(Vec::new()));
    }

    #[test]
    fn an_ended_session_is_neither_held_nor_waiting() {
        let mut log = Log::new();
        log.take("bob").unwrap();
        let entries = decide::end(&log.0, None, EndReason::Idle, ending, next()).unwrap();
        log.append(entries);
        assert_eq!((log.0.holder(), log.0.help_requested_at), (None, None));
        assert_eq!(request_help(&log.0, "", None), Err(Rejection::Ended));
        assert_eq!(log.take("bob"), Err(Rejection::Ended));
        assert_eq!(release(&log.0, &admin("bob"), Reach::Any), Err(Rejection::Ended));
    }
}

//! A person takes over: who wins, what is cut, what is kept, who waits where, and what becomes of it when the person is gone.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chatbox_proto::{
    error_code::ErrorCode,
    ids::SessionId,
    v1::{self, HelpState, chat_response::Event, entry::Kind},
};
use futures_util::future::join_all;

use super::{
    fixture::{Client, Core, limits},
    shared::{Cluster, Seat, held},
};
use crate::{
    domain::{
        entry::{Sender, SenderRole},
        handoff::Reach,
    },
    llm::PromptRole,
    session::{Act, Frame},
    store::{HandoffRow, HandoffStore, Stage, StoreError},
};

/// Rows whose store stands outside of a paused clock.
#[derive(Debug)]
pub(crate) struct Timeless(pub(crate) Arc<dyn HandoffStore>);

#[async_trait]
impl HandoffStore for Timeless {
    async fn put_handoff(&self, row: HandoffRow) -> Result<(), StoreError> {
        held(self.0.put_handoff(row)).await
    }

    async fn remove_handoff(&self, session_id: SessionId, mark: u64) -> Result<bool, StoreError> {
        held(self.0.remove_handoff(session_id, mark)).await
    }

    async fn handoff(&self, session_id: SessionId) -> Result<Option<HandoffRow>, StoreError> {
        held(self.0.handoff(session_id)).await
    }

    async fn handoffs(&self, after: Option<SessionId>, limit: u32) -> Result<Vec<HandoffRow>, StoreError> {
        held(self.0.handoffs(after, limit)).await
    }

    async fn waiting(&self, limit: u32) -> Result<Vec<HandoffRow>, StoreError> {
        held(self.0.waiting(limit)).await
    }
}

fn admin(name: &str) -> Sender {
    Sender { role: SenderRole::Admin, user_id: name.into(), display_name: String::new() }
}

async fn session_of(client: &mut Client) -> SessionId {
    client.opened().await.session.unwrap().session_id.parse().unwrap()
}

async fn join_as_admin(core: &Core, name: &str, id: SessionId) -> Client {
    core.attach_as(admin(name), Some(id), Some(0), None, "").await.unwrap()
}

async fn kind(client: &mut Client) -> Kind {
    client.entry().await.kind.unwrap()
}

async fn taken_over(client: &mut Client) -> v1::entry::TakenOver {
    loop {
        if let Kind::TakenOver(taken) = kind(client).await {
            return taken;
        }
    }
}

async fn released(client: &mut Client) -> v1::entry::Released {
    loop {
        if let Kind::Released(released) = kind(client).await {
            return released;
        }
    }
}

async fn help(client: &mut Client) -> v1::Help {
    client.until(|event| if let Event::Help(help) = event { Some(help) } else { None }).await
}

#[tokio::test]
async fn a_takeover_cuts_the_reply_and_the_admin_speaks_until_the_release() {
    let core = Core::start().await;
    let mut alice = core.open("alice").await;
    let id = session_of(&mut alice).await;
    let mut bob = join_as_admin(&core, "bob", id).await;
    alice.send("1", "hello").await;
    let turn = core.turn().await;
    turn.say("so far").await;
    let is_delta = |event: Event| if let Event::ReplyDelta(delta) = event { Some(delta) } else { None };
    assert_eq!(bob.until(is_delta).await.text, "so far", "an admin sees what is being generated");

    let session = core.sessions.act(&admin("bob"), id, Act::TakeOver, "").await.unwrap();
    assert_eq!(session.responder(), v1::Responder::Admin);
    assert_eq!(session.held_by.unwrap().user_id, "bob");
    let cut = alice.finished().await;
    assert_eq!((cut.text.as_str(), cut.finish_reason()), ("so far", v1::FinishReason::Superseded));
    assert_eq!(taken_over(&mut alice).await.admin.unwrap().user_id, "bob");
    // The request upstream was dropped with the reply.
    turn.chunks.closed().await;

    let message = alice.message("2", "anybody there?");
    alice.post("", message).await;
    assert!(matches!(kind(&mut alice).await, Kind::Message(m) if m.text == "anybody there?"));
    let message = bob.message("b1", "a person is");
    bob.frame(message).await.unwrap();
    assert!(
        matches!(kind(&mut alice).await, Kind::Message(m) if m.sender.as_ref().is_some_and(|sender| sender.user_id == "bob"))
    );
    core.sessions.act(&admin("bob"), id, Act::Release(Reach::Own), "").await.unwrap();
    assert!(!released(&mut alice).await.lapsed);
    let refused = bob.message("b2", "too late");
    assert_eq!(bob.frame(refused).await.unwrap_err().reason, "NOT_HELD");

    alice.send("3", "and now?").await;
    let turn = core.turn().await;
    let said: Vec<(PromptRole, &str)> = turn.prompt.messages.iter().map(|m| (m.role, m.text.as_str())).collect();
    assert!(said.contains(&(PromptRole::Assistant, "a person is")), "{said:?}");
    assert!(said.contains(&(PromptRole::User, "anybody there?")), "{said:?}");
    core.stop().await;
}

#[tokio::test]
async fn admins_who_do_not_hold_the_session_read_and_do_nothing_else() {
    let core = Core::start().await;
    let mut alice = core.open("alice").await;
    let id = session_of(&mut alice).await;
    core.sessions.act(&admin("bob"), id, Act::TakeOver, "").await.unwrap();
    let mut carol = join_as_admin(&core, "carol", id).await;
    assert_eq!(taken_over(&mut carol).await.admin.unwrap().user_id, "bob");
    let message = carol.message("c1", "me too");
    let refused = carol.frame(message).await.unwrap_err();
    assert_eq!((refused.reason.as_str(), refused.message.as_str()), ("SESSION_HELD", "bob holds the session"));
    assert_eq!(carol.frame(Frame::Typing(true)).await.unwrap_err().reason, "SESSION_HELD");
    for frame in
        [Frame::EndSession, Frame::RequestHelp(String::new()), Frame::Stop(chatbox_proto::ids::MessageId::generate())]
    {
        assert_eq!(carol.frame(frame).await.unwrap_err().code(), v1::ErrorCode::PermissionDenied);
    }
    carol.frame(Frame::Read(1)).await.unwrap();
    let late = core.sessions.act(&admin("carol"), id, Act::TakeOver, "").await.unwrap_err();
    assert_eq!((late.code, late.message.as_ref()), (ErrorCode::FailedPrecondition, "bob holds the session"));
    let own = core.sessions.act(&admin("alice"), id, Act::Release(Reach::Own), "").await.unwrap_err();
    assert_eq!(own.reason, "SESSION_HELD");
    core.sessions.act(&admin("bob"), id, Act::Reassign(admin("carol"), Reach::Own), "").await.unwrap();
    assert_eq!(taken_over(&mut carol).await.previous.unwrap().user_id, "bob");
    let message = carol.message("c1", "now me");
    carol.frame(message).await.unwrap();
    core.stop().await;
}

#[tokio::test]
async fn a_call_that_names_itself_is_done_once_however_late_it_is_repeated() {
    let core = Core::start().await;
    let mut alice = core.open("alice").await;
    let id = session_of(&mut alice).await;
    let act = |act: Act, request_id: &'static str| {
        let sessions = core.sessions.clone();
        async move { sessions.act(&admin("bob"), id, act, request_id).await }
    };
    act(Act::TakeOver, "r1").await.unwrap();
    act(Act::Release(Reach::Own), "r2").await.unwrap();
    let head = act(Act::TakeOver, "r1").await.unwrap();
    assert_eq!(head.responder(), v1::Responder::Assistant, "it is not taken over again");
    // Released already, by this very call.
    act(Act::Release(Reach::Own), "r2").await.unwrap();
    assert_eq!(act(Act::Release(Reach::Own), "r1").await.unwrap_err().reason, "REQUEST_ID_REUSED");
    assert_eq!(act(Act::Release(Reach::Own), "r3").await.unwrap_err().reason, "NOT_HELD");
    // The names of another admin are their own.
    core.sessions.act(&admin("carol"), id, Act::TakeOver, "r1").await.unwrap();
    core.stop().await;
}

#[tokio::test]
async fn asking_twice_is_asking_once_and_who_finds_nobody_is_told_so() {
    let core = Core::start().await;
    let mut alice = core.open("alice").await;
    let ask = || Frame::RequestHelp("a refund".into());
    let first = alice.frame(ask()).await.unwrap();
    assert_eq!((first.seq, alice.frame(ask()).await.unwrap().seq), (1, 0));
    let id = core.sessions.list("alice", None, None, 1).await.unwrap().sessions[0].session_id.parse().unwrap();
    let mut alice = core.resume("alice", Some(id), Some(0), None).await.unwrap();
    let opened = alice.opened().await.session.unwrap();
    assert_eq!(opened.help.unwrap().state(), HelpState::Requested);
    assert!(matches!(kind(&mut alice).await, Kind::HelpRequested(help) if help.reason == "a refund"));
    let Kind::Message(notice) = kind(&mut alice).await else { panic!("nothing was said") };
    assert_eq!((notice.text.as_str(), notice.sender.unwrap().role()), ("nobody is online", v1::SenderRole::System));
    // Once somebody of the team has shown up, nothing is said.
    core.sessions.team_is_there();
    let mut carol = core.open("carol").await;
    assert_eq!(carol.frame(ask()).await.unwrap().seq, 1);
    core.stop().await;
}

async fn asking(seat: &Seat, user: &str) -> (Client, SessionId) {
    let mut client = seat.core.open(user).await;
    let id = session_of(&mut client).await;
    client.frame(Frame::RequestHelp(String::new())).await.unwrap();
    (client, id)
}

#[tokio::test(start_paused = true)]
async fn places_in_the_queue_are_told_move_up_and_survive_a_reload_through_another_core() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut alice, first) = asking(&one, "alice").await;
    assert_eq!(help(&mut alice).await.position, 1);
    let (mut carol, second) = asking(&two, "carol").await;
    assert_eq!(help(&mut carol).await.position, 2);
    let (mut dave, third) = asking(&one, "dave").await;
    assert_eq!(help(&mut dave).await.position, 3);

    let mut reloaded = two.core.resume("dave", Some(third), None, None).await.unwrap();
    assert_eq!(reloaded.opened().await.session.unwrap().help.unwrap().position, 3);
    two.core.sessions.act(&admin("bob"), first, Act::TakeOver, "").await.unwrap();
    assert_eq!(help(&mut carol).await.position, 1);
    assert_eq!(help(&mut dave).await.position, 2);
    // Who ends their session leaves the queue.
    carol.frame(Frame::EndSession).await.unwrap();
    assert_eq!(help(&mut dave).await.position, 1);
    // Two steps may be one look of this core.
    while help(&mut reloaded).await.position != 1 {}
    let gone = one.core.sessions.inspect(second).await.unwrap();
    assert_eq!(gone.help, None);
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn of_fifty_takeovers_through_two_cores_one_wins_and_the_others_learn_who() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let mut alice = one.core.open("alice").await;
    let id = session_of(&mut alice).await;
    alice.send("1", "hello").await;
    let turn = one.core.turn().await;
    turn.say("so far").await;
    let names: Vec<String> = (0..50).map(|n| format!("admin-{n}")).collect();
    let calls = names.iter().enumerate().map(|(n, name)| {
        let sessions = if n % 2 == 0 { &one.core.sessions } else { &two.core.sessions };
        async move { (name, sessions.act(&admin(name), id, Act::TakeOver, "").await) }
    });
    let results = join_all(calls).await;
    let winners: Vec<&String> = results.iter().filter(|(_, result)| result.is_ok()).map(|(name, _)| *name).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    for (name, result) in &results {
        let Err(failure) = result else { continue };
        assert_eq!(failure.message, format!("{} holds the session", winners[0]), "{name}");
    }
    assert_eq!(&taken_over(&mut alice).await.admin.unwrap().user_id, winners[0]);
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_takeover_through_another_core_keeps_what_was_streamed_and_silences_the_first() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let mut alice = one.core.open("alice").await;
    let id = session_of(&mut alice).await;
    alice.send("1", "hello").await;
    alice.send("2", "still there?").await;
    let turn = one.core.turn().await;
    turn.say("so far").await;
    let is_delta = |event: Event| if let Event::ReplyDelta(delta) = event { Some(delta) } else { None };
    alice.until(is_delta).await;
    two.core.sessions.act(&admin("bob"), id, Act::TakeOver, "").await.unwrap();
    turn.chunks.closed().await;
    let mut entries = Vec::new();
    loop {
        let event = alice.event().await;
        let generated = matches!(event, Event::ReplyDelta(_) | Event::ReplySnapshot(_));
        assert!(!generated, "something generated came after the cut");
        if let Event::Entry(entry) = event {
            entries.push(entry.kind.unwrap());
        }
        if matches!(entries.last(), Some(Kind::TakenOver(_))) {
            break;
        }
    }
    let ended: Vec<&str> = entries
        .iter()
        .filter_map(|kind| if let Kind::ReplyFinished(end) = kind { Some(end) } else { None })
        .map(|end| {
            assert_eq!(end.finish_reason(), v1::FinishReason::Superseded);
            end.text.as_str()
        })
        .collect();
    assert_eq!(ended, ["so far", ""], "the one that ran, and one for what waited");
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_lasts_as_long_as_its_admin_is_attached_anywhere_and_then_lapses_to_its_old_place() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.core().await, cluster.core().await);
    let (mut alice, id) = asking(&one, "alice").await;
    let asked = help(&mut alice).await.request_time;
    let (_dave, _) = asking(&one, "dave").await;
    two.core.sessions.act(&admin("bob"), id, Act::TakeOver, "").await.unwrap();
    taken_over(&mut alice).await;
    let bob = join_as_admin(&two.core, "bob", id).await;
    let lapse = limits().hold_lapse;
    tokio::time::sleep(lapse * 5).await;
    let session = one.core.sessions.inspect(id).await.unwrap();
    assert_eq!(session.responder(), v1::Responder::Admin, "it was renewed");
    bob.open.room.detach(bob.open.subscriber).await;
    let left = tokio::time::Instant::now();
    assert!(released(&mut alice).await.lapsed);
    let took = left.elapsed();
    assert!(took >= lapse / 2 && took <= lapse * 2, "{took:?}");
    let back = help(&mut alice).await;
    assert_eq!((back.state(), back.position, back.request_time), (HelpState::Requested, 1, asked));
    one.leave().await;
    two.leave().await;
}

#[tokio::test(start_paused = true)]
async fn a_takeover_that_nobody_follows_up_lapses_and_a_stale_row_is_mended() {
    let cluster = Cluster::new();
    let one = cluster.core().await;
    let mut alice = one.core.open("alice").await;
    let id = session_of(&mut alice).await;
    one.core.sessions.act(&admin("bob"), id, Act::TakeOver, "").await.unwrap();
    assert!(released(&mut alice).await.lapsed);
    // As after a crash between the row and its entry: the log says otherwise, and of an unknown session nothing at all.
    let (mut carol, unknown) = (one.core.open("carol").await, SessionId::generate());
    let second = session_of(&mut carol).await;
    let handoffs = one.core.place.handoffs.clone();
    for (session_id, mark) in [(second, 1), (unknown, 2)] {
        handoffs.put_handoff(HandoffRow { session_id, stage: Stage::Held, mark }).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(handoffs.handoff(second).await.unwrap(), None);
    assert_eq!(handoffs.handoff(unknown).await.unwrap(), None);
    let waiting: Vec<SessionId> = handoffs.waiting(10).await.unwrap().iter().map(|row| row.session_id).collect();
    assert_eq!(waiting, [id]);
    one.leave().await;
}

#[tokio::test]
async fn who_waits_or_is_held_is_so_after_a_crash() {
    let core = Core::start().await;
    let mut alice = core.open("alice").await;
    let id = session_of(&mut alice).await;
    alice.frame(Frame::RequestHelp("please".into())).await.unwrap();
    let core = core.crash().await;
    let mut alice = core.resume("alice", Some(id), None, None).await.unwrap();
    assert_eq!(alice.opened().await.session.unwrap().help.unwrap().state(), HelpState::Requested);
    core.sessions.act(&admin("bob"), id, Act::TakeOver, "").await.unwrap();
    let core = core.crash().await;
    let mut alice = core.resume("alice", Some(id), None, None).await.unwrap();
    let session = alice.opened().await.session.unwrap();
    assert_eq!(
        (session.held_by.unwrap().user_id.as_str(), session.help.unwrap().state()),
        ("bob", HelpState::Assigned)
    );
    assert_eq!(core.sessions.act(&admin("carol"), id, Act::TakeOver, "").await.unwrap_err().reason, "SESSION_HELD");
    core.stop().await;
}

//! The session as a whole: its model, its name, its last reply once more, its return after an end, its end by itself.

use std::time::Duration;

use chatbox_proto::{
    ids::{MessageId, SessionId},
    token::Role,
    v1::{self, entry::Kind},
};

use super::fixture::{Client, Core, limits, sender};
use crate::{
    domain::entry::FinishReason,
    llm::{Chunk, PromptRole, ProviderError},
    session::{Frame, NamedBy, NamingLimits, SessionLimits, idle},
};

async fn begin(core: &Core) -> (Client, SessionId) {
    let mut client = core.open("alice").await;
    let id = client.opened().await.session.unwrap().session_id.parse().unwrap();
    (client, id)
}

/// A message and its whole reply; the reply's id.
async fn exchange(core: &Core, client: &mut Client, id: &str, answer: &str) -> MessageId {
    client.post("", client.message(id, "question")).await;
    let turn = core.turn().await;
    turn.say(answer).await;
    turn.finish().await;
    client.finished().await.message_id.parse().unwrap()
}

/// The next entry of this kind.
async fn until<T>(client: &mut Client, pick: impl Fn(Kind) -> Option<T>) -> T {
    loop {
        if let Some(found) = client.entry().await.kind.and_then(&pick) {
            return found;
        }
    }
}

async fn renamed(client: &mut Client) -> v1::entry::Renamed {
    until(client, |kind| if let Kind::Renamed(renamed) = kind { Some(renamed) } else { None }).await
}

fn named_by(by: NamedBy) -> SessionLimits {
    SessionLimits { naming: NamingLimits { by, timeout: Duration::from_secs(5), at_once: 1 }, ..limits() }
}

fn texts(prompt: &crate::llm::Prompt) -> Vec<&str> {
    prompt.messages.iter().map(|message| message.text.as_str()).collect()
}

#[tokio::test]
async fn a_reply_that_is_generated_again_replaces_the_last_one_everywhere() {
    let core = Core::start().await;
    let (mut client, id) = begin(&core).await;
    let first = exchange(&core, &mut client, "m1", "first try").await;
    let ack = client.frame(Frame::Regenerate(first)).await.unwrap();
    let turn = core.turn().await;
    assert_eq!(texts(&turn.prompt), ["question"], "the older one is not shown to the model");
    turn.say("second try").await;
    turn.finish().await;
    let second = client.finished().await;
    assert_eq!((second.message_id.as_str(), second.text.as_str()), (ack.message_id.as_str(), "second try"));
    let history = core.history("alice", id).await;
    let replies: Vec<_> = history.iter().filter_map(|m| m.reply.as_ref().map(|r| (m, r))).collect();
    assert_eq!(replies.len(), 2);
    assert_eq!((replies[0].0.text.as_str(), &replies[0].1.superseded_by), ("first try", &ack.message_id));
    assert_eq!((&replies[1].1.supersedes, replies[1].1.superseded_by.as_str()), (&first.to_string(), ""));
    assert!(replies[1].1.answers.is_empty(), "the message is named by the first one alone");
    // Page by page, forwards and backwards, the link is the same.
    let forwards = core.sessions.messages_after("alice", id, 0, 2).await.unwrap().messages;
    assert_eq!(forwards[1].reply.as_ref().unwrap().superseded_by, ack.message_id);
    let backwards = core.sessions.messages_before("alice", id, Some(history[2].seq), 0, 2).await.unwrap().messages;
    assert_eq!(backwards[1].reply.as_ref().unwrap().superseded_by, ack.message_id);
    // And for good.
    client.post("", client.message("m2", "and now?")).await;
    let turn = core.turn().await;
    assert_eq!(texts(&turn.prompt), ["question", "second try", "and now?"]);
    turn.finish().await;
    client.finished().await;
    core.stop().await;
}

#[tokio::test]
async fn only_the_last_reply_is_generated_again_and_not_while_one_runs() {
    let core = Core::start().await;
    let (mut client, _) = begin(&core).await;
    assert_eq!(client.frame(Frame::Regenerate(MessageId::generate())).await.unwrap_err().reason, "NOT_LAST_REPLY");
    let first = exchange(&core, &mut client, "m1", "first").await;
    let second = exchange(&core, &mut client, "m2", "second").await;
    assert_eq!(client.frame(Frame::Regenerate(first)).await.unwrap_err().reason, "NOT_LAST_REPLY");
    client.frame(Frame::Regenerate(second)).await.unwrap();
    let turn = core.turn().await;
    assert_eq!(client.frame(Frame::Regenerate(second)).await.unwrap_err().reason, "REPLY_RUNNING");
    turn.finish().await;
    client.finished().await;
    client.frame(Frame::EndSession).await.unwrap();
    assert_eq!(client.frame(Frame::Regenerate(second)).await.unwrap_err().reason, "SESSION_ENDED");
    core.stop().await;
}

#[tokio::test]
async fn a_selected_model_answers_from_the_next_reply_on() {
    let core = Core::start().await;
    let (mut client, id) = begin(&core).await;
    client.post("", client.message("m1", "question")).await;
    let turn = core.turn().await;
    let ack = client.frame(Frame::SelectModel("other".into())).await.unwrap();
    assert_eq!(ack.seq, 3);
    assert_eq!(client.frame(Frame::SelectModel("other".into())).await.unwrap().seq, 0, "nothing was written");
    assert_eq!(turn.prompt.upstream_model, "led");
    turn.finish().await;
    assert_eq!(client.finished().await.model, "led");
    client.post("", client.message("m2", "question")).await;
    let turn = core.turn().await;
    assert_eq!(turn.prompt.upstream_model, "other");
    turn.finish().await;
    assert_eq!(client.finished().await.model, "other");
    assert_eq!(core.sessions.get("alice", id).await.unwrap().model, "other");
    core.stop().await;
}

#[tokio::test]
async fn a_model_that_is_not_for_the_caller_any_more_answers_nobody() {
    let core = Core::start().await;
    let mut with_role = core.open_as("alice", &[Role::Admin]).await;
    with_role.frame(Frame::SelectModel("vip".into())).await.unwrap();
    let last = exchange(&core, &mut with_role, "m1", "at your service").await;
    let mut without = core.open("alice").await;
    let head = without.opened().await.head;
    let refused = without.message("m2", "question");
    let refused = without.frame(refused).await.unwrap_err();
    assert_eq!((refused.code(), refused.reason.as_str()), (v1::ErrorCode::PermissionDenied, "MODEL_NOT_ALLOWED"));
    assert_eq!(without.frame(Frame::Regenerate(last)).await.unwrap_err().reason, "MODEL_NOT_ALLOWED");
    // What was accepted before is still acknowledged.
    let repeated = without.message("m1", "question");
    assert!(without.frame(repeated).await.unwrap().duplicate);
    let ack = without.frame(Frame::SelectModel("led".into())).await.unwrap();
    assert_eq!(ack.seq, head + 1, "nothing was written for what was refused");
    exchange(&core, &mut without, "m3", "for everybody").await;
    core.stop().await;
}

#[tokio::test]
async fn a_session_gets_a_name_from_its_first_exchange_once() {
    let core = Core::start_limited(named_by(NamedBy::Model)).await;
    let (mut client, id) = begin(&core).await;
    exchange(&core, &mut client, "m1", "from nine to five").await;
    let asked = core.turn().await;
    assert_eq!(asked.prompt.messages[0].role, PromptRole::System);
    let shown = &asked.prompt.messages[1].text;
    assert!(shown.contains("question") && shown.contains("from nine to five"), "{shown}");
    assert!(asked.prompt.max_output_tokens <= 200);
    asked.say("\"Opening hours\"\n").await;
    asked.finish().await;
    let renamed = renamed(&mut client).await;
    assert_eq!((renamed.name.as_str(), renamed.automatic), ("Opening hours", true));
    // The next turn is that of the next message: nobody was asked for another name.
    client.post("", client.message("m2", "and on Sundays?")).await;
    let turn = core.turn().await;
    assert_eq!(texts(&turn.prompt).last(), Some(&"and on Sundays?"));
    turn.finish().await;
    client.finished().await;
    assert_eq!(core.sessions.get("alice", id).await.unwrap().name, "Opening hours");
    core.stop().await;
}

#[tokio::test]
async fn a_model_without_a_name_to_give_is_stood_in_for_by_the_first_words() {
    let core = Core::start_limited(named_by(NamedBy::Model)).await;
    let (mut client, _) = begin(&core).await;
    exchange(&core, &mut client, "m1", "answer").await;
    let asked = core.turn().await;
    asked.chunks.send(Err(ProviderError::Truncated)).await.unwrap();
    assert_eq!(renamed(&mut client).await.name, "question");
    core.stop().await;
}

#[tokio::test]
async fn a_name_that_takes_too_long_is_made_by_the_rule_and_the_conversation_does_not_wait() {
    let mut limits = named_by(NamedBy::Model);
    limits.naming.timeout = Duration::from_millis(50);
    let core = Core::start_limited(limits).await;
    let (mut client, _) = begin(&core).await;
    exchange(&core, &mut client, "m1", "answer").await;
    let slow = core.turn().await;
    client.post("", client.message("m2", "question")).await;
    let turn = core.turn().await;
    // While neither has ended.
    assert_eq!(renamed(&mut client).await.name, "question");
    turn.finish().await;
    client.finished().await;
    drop(slow);
    core.stop().await;
}

#[tokio::test]
async fn a_name_that_was_given_is_never_replaced_by_one_that_was_made() {
    let core = Core::start_limited(named_by(NamedBy::Model)).await;
    let (mut client, id) = begin(&core).await;
    exchange(&core, &mut client, "m1", "answer").await;
    let asked = core.turn().await;
    core.sessions.rename("alice", id, "mine".into()).await.unwrap();
    assert_eq!(renamed(&mut client).await.name, "mine");
    asked.say("made up").await;
    asked.finish().await;
    exchange(&core, &mut client, "m2", "answer").await;
    assert_eq!(core.sessions.get("alice", id).await.unwrap().name, "mine");
    // Another session, named before its first exchange: nobody is asked.
    let (mut other, id) = {
        client.frame(Frame::EndSession).await.unwrap();
        begin(&core).await
    };
    core.sessions.rename("alice", id, "ahead".into()).await.unwrap();
    exchange(&core, &mut other, "m1", "answer").await;
    exchange(&core, &mut other, "m2", "answer").await;
    assert_eq!(core.sessions.get("alice", id).await.unwrap().name, "ahead");
    core.stop().await;
}

#[tokio::test]
async fn sessions_beyond_the_names_that_are_made_at_once_stay_without_one() {
    let core = Core::start_limited(named_by(NamedBy::Model)).await;
    let (mut client, _) = begin(&core).await;
    exchange(&core, &mut client, "m1", "answer").await;
    let held = core.turn().await;
    let mut bob = core.open("bob").await;
    let id: SessionId = bob.opened().await.session.unwrap().session_id.parse().unwrap();
    exchange(&core, &mut bob, "m1", "answer").await;
    exchange(&core, &mut bob, "m2", "answer").await;
    held.finish().await;
    assert_eq!(renamed(&mut client).await.name, "question");
    assert_eq!(core.sessions.get("bob", id).await.unwrap().name, "");
    core.stop().await;
}

#[tokio::test]
async fn a_failed_first_reply_does_not_use_up_the_try() {
    let core = Core::start_limited(named_by(NamedBy::Rule)).await;
    let (mut client, _) = begin(&core).await;
    client.post("", client.message("m1", "first words, and more")).await;
    core.turn().await.chunks.send(Err(ProviderError::Truncated)).await.unwrap();
    client.finished().await;
    client.post("", client.message("m2", "again")).await;
    let turn = core.turn().await;
    turn.say("answer").await;
    turn.chunks.send(Ok(Chunk::Finished(FinishReason::Length))).await.unwrap();
    assert_eq!(renamed(&mut client).await.name, "first words, and more");
    core.stop().await;
}

#[tokio::test]
async fn an_ended_session_goes_on_where_it_was_unless_another_one_is_active() {
    let core = Core::start().await;
    let (mut client, id) = begin(&core).await;
    exchange(&core, &mut client, "m1", "answer").await;
    client.frame(Frame::EndSession).await.unwrap();
    let alice = sender("alice");
    let session = core.sessions.reopen(&alice, id).await.unwrap();
    assert_eq!(session.status(), v1::SessionStatus::Active);
    assert!(session.end_time.is_none());
    assert_eq!(core.sessions.reopen(&alice, id).await.unwrap().head, session.head, "once is enough");
    until(&mut client, |kind| matches!(kind, Kind::Reopened(_)).then_some(())).await;
    client.post("", client.message("m2", "go on")).await;
    let turn = core.turn().await;
    assert_eq!(texts(&turn.prompt), ["question", "answer", "go on"]);
    turn.finish().await;
    client.finished().await;
    // Its slot is taken again, and by another session once it has ended again.
    assert_eq!(core.sessions.create("alice", "", "").await.unwrap_err().reason, "SESSION_LIMIT");
    client.frame(Frame::EndSession).await.unwrap();
    core.sessions.create("alice", "", "").await.unwrap();
    assert_eq!(core.sessions.reopen(&alice, id).await.unwrap_err().reason, "SESSION_LIMIT");
    assert_eq!(core.sessions.reopen(&sender("mallory"), id).await.unwrap_err().reason, "SESSION_NOT_FOUND");
    core.stop().await;
}

#[tokio::test]
async fn without_a_limit_users_have_as_many_active_sessions_as_they_like() {
    let core = Core::start_limited(SessionLimits { max_active: 0, ..limits() }).await;
    let (alice, mut ids) = (sender("alice"), Vec::new());
    for _ in 0..5 {
        ids.push(core.sessions.create("alice", "", "").await.unwrap().session_id.parse().unwrap());
    }
    core.sessions.end(&alice, ids[0]).await.unwrap();
    core.sessions.reopen(&alice, ids[0]).await.unwrap();
    assert_eq!(core.sessions.list("alice", Some(false), None, 10).await.unwrap().sessions.len(), 5);
    core.stop().await;
}

#[tokio::test]
async fn sessions_are_found_by_their_names_page_by_page_each_once() {
    let core = Core::start_limited(SessionLimits { max_active: 0, ..limits() }).await;
    for n in 0..25 {
        let id = core.sessions.create("alice", "", "").await.unwrap().session_id.parse().unwrap();
        let name = if n % 3 == 0 { format!("Übung {n}") } else { format!("other {n}") };
        core.sessions.rename("alice", id, name).await.unwrap();
    }
    core.sessions.create("bob", "", "").await.unwrap();
    for limit in [1, 2, 4, 9, 50] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = core.sessions.search("alice", "ÜBUNG", None, after, limit).await.unwrap();
            assert!(page.sessions.len() <= limit as usize);
            found.extend(page.sessions.into_iter().map(|session| session.name));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        found.sort();
        found.dedup();
        assert_eq!(found.len(), 9, "{found:?} in pages of {limit}");
    }
    assert!(core.sessions.search("bob", "übung", None, None, 10).await.unwrap().sessions.is_empty());
    core.stop().await;
}

#[tokio::test]
async fn a_session_that_stands_still_ends_and_one_that_does_not_goes_on() {
    let core = Core::start().await;
    let (mut client, id) = begin(&core).await;
    client.post("", client.message("m1", "question")).await;
    let turn = core.turn().await;
    client.started().await;
    idle::walk(&core.directory, Duration::ZERO).await.unwrap();
    turn.say("still here").await;
    turn.finish().await;
    assert_eq!(client.finished().await.text, "still here");
    idle::walk(&core.directory, Duration::from_secs(3_600)).await.unwrap();
    exchange(&core, &mut client, "m2", "not long enough").await;
    idle::walk(&core.directory, Duration::ZERO).await.unwrap();
    let ended = until(&mut client, |kind| if let Kind::Ended(ended) = kind { Some(ended) } else { None }).await;
    assert_eq!((ended.reason(), ended.by), (v1::EndReason::Idle, None));
    let head = core.sessions.get("alice", id).await.unwrap().head;
    idle::walk(&core.directory, Duration::ZERO).await.unwrap();
    assert_eq!(core.sessions.get("alice", id).await.unwrap().head, head, "once is enough");
    core.stop().await;
}

//! Replies: context, deltas, stop, panic, crash, and what is stored in the end.

use chatbox_proto::v1::{self, FinishReason, chat_response::Event};

use super::fixture::{Core, patiently};
use crate::{
    domain::entry::Usage,
    llm::{Chunk, PromptRole, ProviderError},
    session::Frame,
};

fn is_delta(event: Event) -> Option<v1::chat_response::ReplyDelta> {
    if let Event::ReplyDelta(delta) = event { Some(delta) } else { None }
}

fn session_id(opened: &v1::chat_response::Opened) -> chatbox_proto::ids::SessionId {
    opened.session.as_ref().unwrap().session_id.parse().unwrap()
}

#[tokio::test]
async fn what_was_streamed_is_what_is_stored() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    let id = session_id(&client.opened().await);
    let ack = client.send("m1", "question").await;
    let turn = core.turn().await;
    let mut streamed = String::new();
    for text in ["Hel", "lo wö", "rld \u{1F600}"] {
        turn.say(text).await;
        let delta = client.until(is_delta).await;
        assert_eq!(delta.offset as usize, streamed.len());
        streamed.push_str(&delta.text);
        assert_eq!(delta.next_offset as usize, streamed.len());
    }
    let usage = Usage { prompt_tokens: 7, completion_tokens: 3, cached_tokens: 1, estimated: false };
    turn.chunks.send(Ok(Chunk::Usage(usage))).await.unwrap();
    turn.chunks.send(Ok(Chunk::RequestId("up-1".into()))).await.unwrap();
    turn.finish().await;
    let finished = client.finished().await;
    assert_eq!(finished.text, streamed);
    assert_eq!(finished.usage.unwrap().prompt_tokens, 7);

    let history = core.history("alice", id).await;
    assert_eq!(history.len(), 2);
    assert_eq!(history[0].message_id, ack.message_id);
    let reply = history[1].reply.as_ref().unwrap();
    assert_eq!((history[1].text.as_str(), reply.finish_reason()), (streamed.as_str(), FinishReason::Stop));
    assert_eq!(reply.answers, [ack.message_id]);
    assert_eq!(reply.provider_request_id, "up-1");
    core.stop().await;
}

#[tokio::test]
async fn the_model_sees_the_conversation_so_far_byte_for_byte() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    let text = "<b> & \"q\" 'x' ünï";
    client.send("m1", text).await;
    let turn = core.turn().await;
    turn.say("first").await;
    turn.finish().await;
    client.finished().await;
    client.send("m2", "more").await;
    let prompt = core.turn().await.prompt;
    let seen: Vec<_> = prompt.messages.iter().map(|m| (m.role, m.text.as_str())).collect();
    assert_eq!(seen, [(PromptRole::User, text), (PromptRole::Assistant, "first"), (PromptRole::User, "more")]);
    assert!(!prompt.user_hash.contains("alice"));
    core.stop().await;
}

#[tokio::test]
async fn messages_sent_during_a_reply_are_answered_together() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    client.send("m1", "1").await;
    let turn = core.turn().await;
    let second = client.send("m2", "2").await;
    let third = client.send("m3", "3").await;
    turn.finish().await;
    client.finished().await;
    assert_eq!(client.started().await.answers, [second.message_id, third.message_id]);
    core.stop().await;
}

#[tokio::test]
async fn a_stop_from_another_device_cuts_the_reply_and_the_request_upstream() {
    let core = Core::start().await;
    let mut phone = core.open("alice").await;
    let mut laptop = core.open("alice").await;
    phone.send("m1", "1").await;
    let turn = core.turn().await;
    turn.say("so far").await;
    let delta = laptop.until(is_delta).await;
    let message_id = delta.message_id.parse().unwrap();
    let ack = laptop.frame(Frame::Stop(message_id)).await.unwrap();
    assert_eq!(ack.message_id, delta.message_id);
    let finished = phone.finished().await;
    assert_eq!((finished.text.as_str(), finished.finish_reason()), ("so far", FinishReason::Cancelled));
    assert!(finished.usage.unwrap().estimated);
    patiently("the request upstream to be dropped", turn.chunks.closed()).await;
    assert!(laptop.frame(Frame::Stop(message_id)).await.is_ok(), "stopping a finished reply is acknowledged");
    core.stop().await;
}

#[tokio::test]
async fn a_reply_outlives_the_socket() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    let id = session_id(&client.opened().await);
    client.send("m1", "1").await;
    let turn = core.turn().await;
    drop(client);
    turn.say("nobody listens").await;
    turn.finish().await;
    let mut again = core.resume("alice", Some(id), Some(2), None).await.unwrap();
    assert_eq!(again.finished().await.text, "nobody listens");
    core.stop().await;
}

#[tokio::test]
async fn every_failure_of_a_provider_is_one_typed_outcome_with_the_text_so_far() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    let cases = [
        (Some(ProviderError::Malformed("x")), FinishReason::ProviderError),
        (Some(ProviderError::Connection("reset".into())), FinishReason::ProviderError),
        (Some(ProviderError::Timeout("between chunks")), FinishReason::Timeout),
        (None, FinishReason::ProviderError),
    ];
    for (n, (error, expected)) in cases.into_iter().enumerate() {
        client.send(&format!("m{n}"), "q").await;
        let turn = core.turn().await;
        turn.say("part").await;
        if let Some(error) = error {
            turn.chunks.send(Err(error)).await.unwrap();
        }
        drop(turn);
        let finished = client.finished().await;
        assert_eq!((finished.text.as_str(), finished.finish_reason()), ("part", expected));
    }
    core.stop().await;
}

#[tokio::test]
async fn a_panic_in_a_provider_harms_nobody_else() {
    let core = Core::start().await;
    let mut bob = core.open("bob").await;
    bob.send("m1", "q").await;
    let turn = core.turn().await;
    for n in 0..20 {
        let user = format!("alice{n}");
        let mut alice = core.attach(&user, None, None, None, "panics").await.unwrap();
        alice.send("m1", "q").await;
        let finished = alice.finished().await;
        assert_eq!(finished.finish_reason(), FinishReason::ProviderError);
        let frame = alice.message("m2", "still served");
        assert!(alice.frame(frame).await.is_ok());
    }
    turn.say("unharmed").await;
    turn.finish().await;
    assert_eq!(bob.finished().await.text, "unharmed");
    core.stop().await;
}

#[tokio::test]
async fn a_crash_leaves_the_checkpoint_and_answers_what_waits() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    let id = session_id(&client.opened().await);
    client.send("m1", "1").await;
    let turn = core.turn().await;
    turn.say("checkpointed").await;
    client.until(is_delta).await;
    let second = client.send("m2", "2").await;
    let store = core.store.clone();
    patiently("a checkpoint", async {
        while store.reply_row(id).await.unwrap().is_none_or(|row| row.checkpoint.is_empty()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop((client, store));

    let core = core.crash().await;
    let run = core.directory.clone();
    let token = tokio_util::sync::CancellationToken::new();
    // Nobody opens the session: the new core looks after it by itself.
    let recovery = run.run(token.clone());
    tokio::pin!(recovery);
    let turn = tokio::select! {
        () = &mut recovery => panic!("recovery ended"),
        turn = core.turn() => turn,
    };
    assert_eq!(turn.prompt.messages.last().unwrap().text, "2");
    turn.say("answer").await;
    turn.finish().await;
    let mut again = core.resume("alice", Some(id), Some(0), None).await.unwrap();
    let first = again.finished().await;
    assert_eq!((first.text.as_str(), first.finish_reason()), ("checkpointed", FinishReason::Interrupted));
    let next = again.finished().await;
    assert_eq!((next.text.as_str(), next.finish_reason()), ("answer", FinishReason::Stop));
    let history = core.history("alice", id).await;
    assert_eq!(history[2].reply.as_ref().map(|r| r.answers.clone()).unwrap_or_default(), Vec::<String>::new());
    assert_eq!(history.last().unwrap().reply.as_ref().unwrap().answers, [second.message_id]);
    token.cancel();
    core.stop().await;
}

#[tokio::test]
async fn a_drain_lets_replies_finish_and_then_cuts_the_rest() {
    let core = Core::start().await;
    let mut client = core.open("alice").await;
    let id = session_id(&client.opened().await);
    client.send("m1", "1").await;
    let turn = core.turn().await;
    turn.say("half").await;
    client.until(is_delta).await;
    core.directory.start_draining();
    let away = client.until(|event| if let Event::GoingAway(away) = event { Some(away) } else { None }).await;
    assert_eq!((away.close_code, away.reason.as_str()), (1001, "SHUTTING_DOWN"));
    assert!(core.directory.tasks_left() > 0, "the reply may still finish");
    core.directory.cut();
    patiently("the drain", core.directory.drained()).await;
    let history = core.history("alice", id).await;
    let reply = history[1].reply.as_ref().unwrap();
    assert_eq!((history[1].text.as_str(), reply.finish_reason()), ("half", FinishReason::Interrupted));
    core.store.close().await;
}

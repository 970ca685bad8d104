//! What a provider keeps of a conversation under a name of its own: it is named again as long as that is all of it.

use super::fixture::{Client, Core, Turn};
use crate::{llm::Chunk, session::Frame};

async fn named(turn: Turn, name: &str) {
    turn.chunks.send(Ok(Chunk::Conversation(name.to_owned()))).await.unwrap();
    turn.say("an answer").await;
    turn.finish().await;
}

async fn next(core: &Core, client: &mut Client, id: &str) -> Turn {
    client.send(id, "question").await;
    core.turn().await
}

#[tokio::test]
async fn the_name_of_a_conversation_is_given_back_also_after_a_restart() {
    let core = Core::start().await;
    let mut client = core.opened("alice").await;
    let turn = next(&core, &mut client, "m1").await;
    assert_eq!(turn.prompt.conversation, None);
    named(turn, "c-1").await;
    client.finished().await;
    let turn = next(&core, &mut client, "m2").await;
    assert_eq!(turn.prompt.conversation.as_deref(), Some("c-1"));
    assert_eq!(turn.prompt.messages.len(), 3, "a provider that has lost it is told everything");
    named(turn, "c-2").await;
    client.finished().await;
    let session = client.session;
    let core = core.crash().await;
    let mut client = core.resume("alice", session, Some(6), None).await.unwrap();
    let turn = next(&core, &mut client, "m3").await;
    assert_eq!(turn.prompt.conversation.as_deref(), Some("c-2"), "another one is another one");
    // A provider that names none has none.
    turn.finish().await;
    client.finished().await;
    assert_eq!(next(&core, &mut client, "m4").await.prompt.conversation, None);
    core.stop().await;
}

#[tokio::test]
async fn after_a_reply_that_did_not_end_well_the_provider_is_told_everything() {
    let core = Core::start().await;
    let mut client = core.opened("alice").await;
    named(next(&core, &mut client, "m1").await, "c-1").await;
    client.finished().await;
    let turn = next(&core, &mut client, "m2").await;
    turn.chunks.send(Ok(Chunk::Conversation("c-1".to_owned()))).await.unwrap();
    turn.say("half of").await;
    client.frame(Frame::Stop(core.last_reply(&client).await)).await.unwrap();
    let turn = next(&core, &mut client, "m3").await;
    assert_eq!(turn.prompt.conversation, None);
    drop(turn);
    client.finished().await;
    core.stop().await;
}

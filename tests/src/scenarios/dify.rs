//! What is special to applications of Dify: an answer that nobody wants is stopped by a call, and the user is a hash.

use std::time::{Duration, Instant};

use chatbox_proto::v1::{
    FinishReason,
    chat_request::{Frame, Open, Stop},
    chat_response::Event,
};

use super::routing::{add, ask, model, patient, settled};
use crate::harness::{
    client::{Answer, Transport},
    provider::{Dialect, Provider, Script},
    stack::{Setup, Stack},
};

fn delta(event: &Event) -> Option<String> {
    if let Event::ReplyDelta(delta) = event { Some(delta.message_id.clone()) } else { None }
}

async fn start(provider: &Provider) -> Stack {
    let mut setup = Setup::new().unwrap();
    add(&mut setup, patient(Dialect::Dify, provider, "app"), model("app"));
    setup.core.drain.grace = Duration::from_millis(200);
    Stack::start(setup).await.unwrap()
}

#[tokio::test]
async fn a_stopped_reply_is_stopped_at_the_service_within_a_second_as_the_same_user() {
    let provider = Provider::start().await.unwrap();
    let stack = start(&provider).await;
    provider.script("app", Script::stream().thought("hm").delta("pärt ").hang());
    let (mut client, session_id) = ask(&stack, Transport::ALL[0], "alice", "app").await;
    let message_id = client.until("text", delta).await.unwrap();
    let stopped = Instant::now();
    let answer = client.request(Frame::Stop(Stop { message_id: message_id.clone() })).await.unwrap();
    assert!(matches!(answer, Answer::Ack(_)), "{answer:?}");
    let stops = provider.wait_stops(1).await.unwrap();
    provider.wait_left(1).await.unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(1), "{:?}", stopped.elapsed());
    let asked = &provider.requests()[0];
    assert_eq!(stops[0].path, "/app/v1/chat-messages/task-1/stop");
    let user = asked.body["user"].as_str().unwrap();
    assert!(stops[0].body["user"] == user && user.len() >= 16 && !user.contains("alice"), "{user}");
    client.reply_of(&message_id).await.unwrap();
    let stored = settled(&stack, &mut client, "alice", &session_id).await;
    let facts = stored[1].reply.as_ref().unwrap();
    assert_eq!((facts.finish_reason(), stored[1].text.as_str()), (FinishReason::Cancelled, "pärt "));

    // The next reply of the same user is the same user's, with everything that was said; and it is not stopped.
    client.say("second", "and now?").await.unwrap();
    let reply = client.reply().await.unwrap().finished;
    assert_eq!((reply.finish_reason(), reply.provider_request_id.as_str()), (FinishReason::Stop, "message-2"));
    let asked = &provider.requests()[1];
    assert_eq!((asked.body["user"].as_str(), asked.body["conversation_id"].as_str()), (Some(user), Some("")));
    assert_eq!(asked.body["query"], "User: question\n\nAssistant: pärt \n\nUser: and now?");
    assert_eq!(provider.wait_stops(1).await.unwrap().len(), 1);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_core_that_leaves_stops_what_it_cuts() {
    let provider = Provider::start().await.unwrap();
    let mut stack = start(&provider).await;
    provider.script("app", Script::stream().delta("pärt ").hang());
    let (mut client, _) = ask(&stack, Transport::Grpc, "alice", "app").await;
    client.until("text", delta).await.unwrap();
    stack.stop_core().await.unwrap();
    assert_eq!(provider.wait_stops(1).await.unwrap().len(), 1);
    stack.start_core().await.unwrap();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_conversation_goes_on_under_the_name_the_service_gave_it_and_begins_anew_when_it_is_lost_there() {
    let provider = Provider::start().await.unwrap();
    let mut stack = start(&provider).await;
    let (mut client, session_id) = ask(&stack, Transport::ALL[0], "alice", "app").await;
    client.reply().await.unwrap();
    client.say("second", "and now?").await.unwrap();
    client.reply().await.unwrap();
    let asked = &provider.requests()[1];
    assert_eq!((&asked.body["conversation_id"], &asked.body["query"]), (&"conversation-1".into(), &"and now?".into()));
    settled(&stack, &mut client, "alice", &session_id).await;

    // Also through another life of core; and it has been deleted at the service meanwhile.
    stack.restart_core().await.unwrap();
    provider.script("app", Script::status(404, &serde_json::json!({"code": "not_found", "status": 404})));
    provider.script("app", Script::reply(["as new"]));
    let mut client = stack.connect(Transport::Grpc, "alice").await.unwrap();
    client.open(Open { session_id: session_id.clone(), ..Open::default() }).await.unwrap();
    client.say("third", "still there?").await.unwrap();
    assert_eq!(client.reply().await.unwrap().finished.text, "as new");
    let asked = provider.requests();
    assert_eq!(asked[2].body["conversation_id"], "conversation-2");
    assert_eq!(asked[3].body["conversation_id"], "");
    let query = asked[3].body["query"].as_str().unwrap();
    assert!(query.starts_with("User: question\n\nAssistant: ") && query.ends_with("\n\nUser: still there?"), "{query}");
    client.say("fourth", "good").await.unwrap();
    client.reply().await.unwrap();
    assert_eq!(provider.requests()[4].body["conversation_id"], "conversation-4");
    stack.shutdown().await.unwrap();
}

//! `chatbox dev`: one command is the whole product, and what it keeps outlives it.

use chatbox_proto::v1::{FinishReason, ListModelsResponse, chat_request::Open};

use crate::harness::{client::Transport, dev::ChatboxDev, history, http::Http, wait::LIMIT};

#[tokio::test]
async fn one_command_answers_over_every_transport() {
    let chatbox = ChatboxDev::start().await.unwrap();
    for (number, transport) in Transport::ALL.into_iter().enumerate() {
        let user = format!("user-{number}");
        let mut client = chatbox.connect(transport, &user).await.unwrap();
        client.open(Open::default()).await.unwrap();
        client.say("c1", "hello").await.unwrap();
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.finished.finish_reason(), FinishReason::Stop);
        assert_eq!(reply.streamed, reply.finished.text, "{transport:?}");
    }
    chatbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn tokens_and_sessions_outlive_the_process() {
    let mut chatbox = ChatboxDev::start().await.unwrap();
    let token = chatbox.token("alice", "user").unwrap();
    let mut client = chatbox.connect(Transport::Grpc, "alice").await.unwrap();
    let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
    client.say("c1", "remember me").await.unwrap();
    client.reply().await.unwrap();
    drop(client);
    assert!(chatbox.process().terminate(LIMIT * 2).await.unwrap().success());
    chatbox.restart().await.unwrap();
    let http = Http::new(chatbox.addresses().http, Some(&token));
    let models: ListModelsResponse = http.get("/api/v1/models").await.unwrap();
    assert!(models.models.iter().any(|model| model.demo), "{models:?}");
    let messages = history::agreed(&mut chatbox.core("alice").unwrap(), &http, &session_id).await.unwrap();
    assert_eq!((messages.len(), messages[0].text.as_str()), (2, "remember me"));
    chatbox.shutdown().await.unwrap();
}

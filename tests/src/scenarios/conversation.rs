//! One conversation tells the same history over every transport.

use chatbox_proto::v1::{FinishReason, Message, SenderRole, chat_request::Open};

use crate::harness::{
    client::{Answer, Transport},
    history,
    stack::{Setup, Stack},
};

/// What a history says, without what differs from run to run.
fn told(messages: &[Message]) -> Vec<(u64, SenderRole, String, Option<FinishReason>)> {
    let finish = |message: &Message| message.reply.as_ref().map(chatbox_proto::v1::Reply::finish_reason);
    let role = |message: &Message| message.sender.as_ref().map_or(SenderRole::Unspecified, |sender| sender.role());
    messages.iter().map(|message| (message.seq, role(message), message.text.clone(), finish(message))).collect()
}

#[tokio::test]
async fn the_same_conversation_has_the_same_history_over_every_transport() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let mut histories = Vec::new();
    for (number, transport) in Transport::ALL.into_iter().enumerate() {
        let user = format!("user-{number}");
        let mut client = stack.connect(transport, &user).await.unwrap();
        let opened = client.open(Open::default()).await.unwrap();
        assert!(opened.created, "{transport:?}");
        client.caught_up().await.unwrap();
        for text in ["hello", "<b> & \"q\" 'x' ünï"] {
            let ack = client.say(&format!("c-{}", text.len()), text).await.unwrap();
            assert!(!ack.duplicate && ack.seq > 0, "{ack:?}");
            let reply = client.reply().await.unwrap();
            assert_eq!(reply.finished.finish_reason(), FinishReason::Stop);
            assert_eq!(reply.streamed, reply.finished.text, "{transport:?}");
        }
        let session_id = opened.session.unwrap().session_id;
        let (mut core, http) = (stack.core(&user).unwrap(), stack.http(&user).unwrap());
        histories.push(told(&history::agreed(&mut core, &http, &session_id).await.unwrap()));
    }
    assert_eq!(histories[0].len(), 4);
    assert!(histories.windows(2).all(|pair| pair[0] == pair[1]), "{histories:#?}");
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_repeated_message_is_the_same_message_on_every_transport() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let mut first = stack.connect(Transport::ALL[0], "alice").await.unwrap();
    first.open(Open::default()).await.unwrap();
    let ack = first.say("once", "hello").await.unwrap();
    for transport in Transport::ALL {
        let mut again = stack.connect(transport, "alice").await.unwrap();
        let opened = again.open(Open::default()).await.unwrap();
        assert!(!opened.created, "{transport:?}");
        let repeated = again.say("once", "hello").await.unwrap();
        assert!(repeated.duplicate, "{transport:?}");
        assert_eq!((repeated.seq, repeated.message_id), (ack.seq, ack.message_id.clone()));
        let other = chatbox_proto::v1::chat_request::Send {
            client_message_id: "once".to_owned(),
            text: "something else".to_owned(),
            ..Default::default()
        };
        let answer = again.request(chatbox_proto::v1::chat_request::Frame::Send(other)).await.unwrap();
        assert!(
            matches!(&answer, Answer::Error(error) if error.code() == chatbox_proto::v1::ErrorCode::AlreadyExists),
            "{answer:?}"
        );
    }
    stack.shutdown().await.unwrap();
}

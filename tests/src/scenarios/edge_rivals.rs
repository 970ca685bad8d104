//! Two connections of one session: the end of one is not the end of the other.

use chatbox_proto::v1::{
    chat_request::{Frame, Open, Send},
    chat_response::Event,
};

use crate::harness::{
    client::Transport,
    stack::{Setup, Stack},
    wait::{LIMIT, wait_for},
    ws::Encoding,
};

#[tokio::test]
async fn a_connection_that_came_back_first_outlives_the_one_it_replaces() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    for round in 0..20 {
        let user = format!("user-{round}");
        let transport = Transport::Socket(Encoding::ALL[round % 2]);
        let mut first = stack.connect(transport, &user).await.unwrap();
        let opened = first.open(Open::default()).await.unwrap();
        let session_id = opened.session.unwrap().session_id;
        first.say("1", "hello").await.unwrap();
        // The browser is back before the server knows that the old socket is dead.
        let mut second = stack.connect(transport, &user).await.unwrap();
        second.open(Open { session_id, after_seq: Some(0), ..Open::default() }).await.unwrap();
        let send = Send { client_message_id: "2".to_owned(), text: "still there?".to_owned(), ..Send::default() };
        let request_id = second.send(Frame::Send(send)).await.unwrap();
        if round % 3 == 0 {
            first.socket().unwrap().close().await.unwrap();
        } else {
            first.socket().unwrap().tcp().set_zero_linger().unwrap();
        }
        drop(first);
        second
            .until_seen("the ack", |event| matches!(event, Event::Ack(ack) if ack.request_id == request_id))
            .await
            .unwrap();
        second.say("3", "and now?").await.unwrap();
        let ended = |event: &Event| match event {
            Event::Entry(entry) => crate::harness::client::finished(entry).map(|end| end.text.clone()),
            _ => None,
        };
        let answered = |event: &Event| ended(event).is_some_and(|text| text.contains("and now?"));
        second.until_seen("the answer to the last message", answered).await.unwrap();
        let seqs: Vec<_> = second.entries().iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "round {round}");
    }
    let gone = || async {
        let open = stack.edge_metric("chatbox_edge_connections").await.ok()?;
        (open == 0.0).then_some(())
    };
    wait_for("no connection is counted", LIMIT, gone).await.unwrap();
    stack.shutdown().await.unwrap();
}

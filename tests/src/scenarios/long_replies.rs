//! Much text: whatever is asked for comes in portions that a client takes with the limits it has unless told otherwise,
//! 4 MiB of one message for gRPC.

use std::time::Duration;

use chatbox_proto::v1::{
    ListMessagesRequest, Message,
    chat_request::{Frame, Open, Stop},
    chat_response::Event,
};
use prost::Message as _;

use crate::harness::{
    client::{Client, Transport, finished},
    grpc::Core,
    history,
    http::Http,
    provider::{Provider, Script},
    stack::{Setup, Stack},
};

/// Answers in all: 4.5 MB of text, more than one message of a client's limit.
const REPLIES: usize = 42;

/// The text of one answer.
fn text() -> String {
    "0123456789 äöü€ \u{1F600}\n".repeat(100 * 1024 / 25)
}

/// A session with so many answers of 100 KiB.
async fn long_session(stack: &Stack) -> String {
    let mut client = stack.connect(Transport::Grpc, "alice").await.unwrap();
    let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
    for number in 0..REPLIES {
        client.say(&format!("m{number}"), "go on").await.unwrap();
        assert_eq!(client.reply().await.unwrap().finished.text, text(), "reply {number}");
        client.seen.clear();
    }
    session_id
}

/// All messages from the newest page to the oldest, as the page of a browser reads them; and how many pages there were.
async fn newest_first(core: &mut Core, session_id: &str) -> (Vec<Message>, usize) {
    let (mut messages, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let session_id = session_id.to_owned();
        let request =
            ListMessagesRequest { session_id, page_size: 1_000, page_token, ..ListMessagesRequest::default() };
        let page = core.list_messages(request).await.unwrap().into_inner();
        assert!(page.encoded_len() < 4 << 20, "{} bytes", page.encoded_len());
        messages.splice(0..0, page.messages);
        (page_token, pages) = (page.next_page_token, pages + 1);
        if page_token.is_empty() {
            return (messages, pages);
        }
    }
}

async fn agree(core: &mut Core, http: &Http, session_id: &str) {
    let (newest, pages) = newest_first(core, session_id).await;
    assert!((2..=4).contains(&pages), "{pages} pages");
    assert_eq!(newest.len(), 2 * REPLIES);
    assert!(newest.iter().skip(1).step_by(2).all(|message| message.text == text()));
    assert_eq!(history::by_grpc(core, session_id, 1_000).await.unwrap(), newest);
    assert_eq!(history::by_http(http, session_id, 1_000).await.unwrap(), newest);
}

/// Everything from the beginning, entry by entry, and what a reply that runs has said so far.
async fn replayed(client: &mut Client, session_id: &str) -> (usize, Option<(String, String)>) {
    let session_id = session_id.to_owned();
    client.open(Open { session_id, after_seq: Some(0), ..Open::default() }).await.unwrap();
    client.caught_up().await.unwrap();
    let replies = client.entries().into_iter().filter_map(finished);
    let whole = replies.filter(|reply| reply.text == text()).count();
    let shot = client.seen.iter().find_map(|event| match event {
        Event::ReplySnapshot(shot) => Some((shot.message_id.clone(), shot.text.clone())),
        _ => None,
    });
    (whole, shot)
}

#[tokio::test]
async fn heavy_many_long_replies_reach_clients_with_the_limits_that_clients_have_by_default() {
    let provider = Provider::start().await.unwrap();
    provider.always("m", Script::reply([text()]));
    let mut setup = Setup::new().unwrap().with_models(&provider, &["m"]);
    for settings in setup.core.providers.values_mut() {
        (settings.chunk_timeout, settings.total_timeout) = (Duration::from_secs(120), Duration::from_secs(240));
    }
    // Pages of many megabytes, on a machine that does much else.
    setup.edge.core.call_timeout = Duration::from_secs(120);
    let stack = Stack::start(setup).await.unwrap();
    let session_id = long_session(&stack).await;
    agree(&mut stack.core("alice").unwrap(), &stack.http("alice").unwrap(), &session_id).await;

    // One more runs, and is nearly as long as a reply may be.
    let nine = (0..9).fold(Script::stream(), |script, _| script.delta(&text()));
    provider.always("m", nine.hang());
    let mut asking = stack.connect(Transport::Grpc, "alice").await.unwrap();
    asking.open(Open { session_id: session_id.clone(), ..Open::default() }).await.unwrap();
    asking.say("last", "go on").await.unwrap();
    let mut said = 0;
    asking
        .until("all of it", |event| {
            if let Event::ReplyDelta(delta) = event {
                said += delta.text.len();
            }
            (said == 9 * text().len()).then_some(())
        })
        .await
        .unwrap();
    let mut running = String::new();
    for transport in Transport::ALL {
        let mut client = stack.connect(transport, "alice").await.unwrap();
        let (whole, shot) = replayed(&mut client, &session_id).await;
        assert_eq!(whole, REPLIES, "{transport:?}");
        let (message_id, so_far) = shot.unwrap();
        assert!(so_far == text().repeat(9), "{transport:?}: {} bytes", so_far.len());
        running = message_id;
    }
    asking.request(Frame::Stop(Stop { message_id: running })).await.unwrap();
    stack.shutdown().await.unwrap();
}

//! A token's end is enforced on live connections, announced before, and put off by a new token of the same caller.

use std::time::Duration;

use chatbox_proto::v1::{
    ErrorCode, FinishReason,
    chat_request::{Frame, Open, RefreshToken},
    chat_response::Event,
};
use serde_json::json;
use tonic::Code;

use crate::harness::{
    client::{Answer, Client, Transport, finished},
    stack::{Setup, Stack},
    token::{claims, now},
};

/// No leeway, and a warning one second before the end.
fn strict() -> Setup {
    Setup::new().unwrap().with(|setup| {
        (setup.core.token.leeway, setup.edge.token.leeway) = (Duration::ZERO, Duration::ZERO);
        setup.core.session.expiry_warning = Duration::from_secs(1);
        setup.edge.socket.expiry_warning = Duration::from_secs(1);
    })
}

fn token(stack: &Stack, user: &str, role: &str, seconds: u64) -> String {
    let mut claims = claims(user, role);
    claims["exp"] = json!(now() + seconds);
    stack.token_of(&claims).unwrap()
}

async fn opened(stack: &Stack, transport: Transport, token: &str) -> Client {
    let mut client = Client::connect(transport, stack.addresses(), token).await.unwrap();
    client.open(Open::default()).await.unwrap();
    client
}

async fn warned(client: &mut Client) -> i64 {
    let is_warning = |event: &Event| match event {
        Event::TokenExpiring(expiring) => Some(expiring.expire_time.map_or(0, |time| time.seconds)),
        _ => None,
    };
    client.until("the warning", is_warning).await.unwrap()
}

#[tokio::test]
async fn a_connection_ends_with_its_token_and_is_told_before() {
    let stack = Stack::start(strict()).await.unwrap();
    for transport in Transport::ALL {
        let expires = now() + 3;
        let mut client = opened(&stack, transport, &token(&stack, "alice", "user", 3)).await;
        let announced = warned(&mut client).await;
        assert!(u64::try_from(announced).unwrap().abs_diff(expires) <= 1, "{transport:?}: {announced} for {expires}");
        let closed = client.until_closed().await.unwrap();
        let expected = if transport == Transport::Grpc { Code::Unauthenticated as u16 } else { 4012 };
        assert_eq!(closed.code, Some(expected), "{transport:?}: {closed:?}");
        assert!(now() >= expires, "{transport:?} was ended too early");
        let told = client.seen.iter().filter(|event| matches!(event, Event::TokenExpiring(_))).count();
        assert_eq!(told, 1, "{transport:?} was told {told} times");
        let errors: Vec<_> = client.seen.iter().filter(|event| matches!(event, Event::Error(_))).collect();
        let [Event::Error(error)] = errors.as_slice() else { panic!("{transport:?}: {errors:?}") };
        assert_eq!((error.code(), error.reason.as_str()), (ErrorCode::Unauthenticated, "TOKEN_EXPIRED"));
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_new_token_of_the_same_caller_keeps_the_connection() {
    let stack = Stack::start(strict()).await.unwrap();
    for transport in Transport::ALL {
        let mut client = opened(&stack, transport, &token(&stack, "alice", "user", 3)).await;
        warned(&mut client).await;
        for (what, other) in [
            ("another user", token(&stack, "bob", "user", 60)),
            ("other roles", token(&stack, "alice", "admin", 60)),
            ("an expired one", token(&stack, "alice", "user", 0)),
            ("junk", "junk".to_owned()),
        ] {
            let answer = client.request(Frame::RefreshToken(RefreshToken { token: other })).await.unwrap();
            assert!(matches!(answer, Answer::Error(_)), "{transport:?} took {what}: {answer:?}");
        }
        let renewed = RefreshToken { token: token(&stack, "alice", "user", 4) };
        let answer = client.request(Frame::RefreshToken(renewed)).await.unwrap();
        assert!(matches!(answer, Answer::Ack(_)), "{transport:?}: {answer:?}");
        let again = warned(&mut client).await;
        assert!(u64::try_from(again).unwrap() >= now(), "{transport:?}: {again}");
        client.say(&format!("{}", now()), "still here").await.unwrap();
        client.reply().await.unwrap();
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_reply_outlives_the_connection_whose_token_expired() {
    let stack = Stack::start(strict().with_word_delay(Duration::from_millis(60))).await.unwrap();
    let token = token(&stack, "alice", "user", 2);
    let mut client = Client::connect(Transport::ALL[0], stack.addresses(), &token).await.unwrap();
    let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
    client.say("late", "a story, please").await.unwrap();
    client.until_closed().await.unwrap();
    let is_end = |event: &Event| matches!(event, Event::Entry(entry) if finished(entry).is_some());
    assert!(!client.seen.iter().any(is_end), "the reply ended before the token");
    let mut again = stack.connect(Transport::ALL[1], "alice").await.unwrap();
    again.open(Open { session_id, after_seq: Some(0), ..Open::default() }).await.unwrap();
    let reply = again.reply().await.unwrap();
    assert_eq!(reply.finished.finish_reason(), FinishReason::Stop);
    assert_eq!(reply.streamed, reply.finished.text);
    stack.shutdown().await.unwrap();
}

//! Tokens that expire, clients that are gone.

use super::*;

const HOUR: u64 = 3600;

fn user_token(user_id: &str, seconds: u64) -> String {
    token_for(user_id, after(seconds), &[Role::User])
}

fn refresh(token: &str) -> chat_request::Frame {
    chat_request::Frame::RefreshToken(chat_request::RefreshToken { token: token.into() })
}

/// Seconds, give or take the one that wall time is rounded by.
fn about(started: Instant, seconds: u64) -> bool {
    started.elapsed().abs_diff(after(seconds)) <= after(2)
}

/// Answers pings by reading on while time passes.
async fn next_event(client: &mut Client) -> chat_response::Event {
    client.event().await
}

#[tokio::test(start_paused = true)]
async fn an_expiring_token_is_announced_and_an_expired_one_is_the_end() {
    let mut client = Client::connect(Dialect::Json).await;
    let _chat = client.attached(&user_token("alice", 300)).await;
    let started = Instant::now();
    let chat_response::Event::TokenExpiring(expiring) = next_event(&mut client).await else { panic!("not expiring") };
    assert!(expiring.expire_time.is_some());
    assert!(about(started, 240), "{:?}", started.elapsed());
    let error = client.closed_after_error().await;
    assert_eq!((error.close_code, error.reason.as_str()), (4012, "TOKEN_EXPIRED"));
    assert!(about(started, 300), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_refreshed_token_keeps_the_connection_and_reaches_core() {
    let mut client = Client::connect(Dialect::Json).await;
    let mut chat = client.attached(&user_token("alice", 300)).await;
    let started = Instant::now();
    assert!(matches!(next_event(&mut client).await, chat_response::Event::TokenExpiring(_)));
    let new = user_token("alice", HOUR);
    client.send(refresh(&new)).await;
    assert_eq!(chat.frame().await, Some(refresh(&new)));
    // Announced again, for the new one. The token itself was made with wall time, which stands still here.
    assert!(matches!(next_event(&mut client).await, chat_response::Event::TokenExpiring(_)));
    assert!(about(started, 240 + HOUR - 60), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_may_not_take_the_place_is_answered_and_the_old_one_stays() {
    let mut client = Client::connect(Dialect::Json).await;
    let mut chat = client.attached(&user_token("alice", 300)).await;
    let started = Instant::now();
    let admin = token_for("alice", after(HOUR), &[Role::Admin]);
    for (token, class) in [
        (user_token("mallory", HOUR), ErrorCode::InvalidArgument),
        (admin, ErrorCode::InvalidArgument),
        ("junk".to_owned(), ErrorCode::Unauthenticated),
    ] {
        client.send_as("refresh", refresh(&token)).await;
        let error = client.error().await;
        assert_eq!((code(&error), error.request_id.as_str(), error.close_code), (class, "refresh", 0));
    }
    client.send(send("still me")).await;
    assert_eq!(chat.frame().await, Some(send("still me")));
    assert!(matches!(next_event(&mut client).await, chat_response::Event::TokenExpiring(_)));
    assert_eq!(client.closed_after_error().await.close_code, 4012);
    assert!(about(started, 300));
}

#[tokio::test(start_paused = true)]
async fn the_client_is_told_once_whoever_is_first() {
    let expiring = chat_response::Event::TokenExpiring(Default::default());
    // Core first.
    let mut client = Client::connect(Dialect::Json).await;
    let mut chat = client.attached(&user_token("alice", 300)).await;
    chat.send(expiring.clone()).await;
    assert_eq!(client.event().await, expiring);
    tokio::time::advance(after(250)).await;
    chat.send(heartbeat(1)).await;
    assert_eq!(client.event().await, heartbeat(1));
    // Edge first.
    let mut client = Client::connect(Dialect::Json).await;
    let mut chat = client.attached(&user_token("alice", 50)).await;
    assert!(matches!(client.event().await, chat_response::Event::TokenExpiring(_)));
    chat.send(expiring).await;
    chat.send(heartbeat(2)).await;
    assert_eq!(client.event().await, heartbeat(2));
}

#[tokio::test(start_paused = true)]
async fn a_core_that_notices_the_expiry_first_gives_the_same_answer() {
    let mut client = Client::connect(Dialect::Json).await;
    let chat = client.attached(&user_token("alice", 1)).await;
    assert!(matches!(client.event().await, chat_response::Event::TokenExpiring(_)));
    chat.fail(Failure::unauthenticated()).await;
    assert_eq!(client.closed_after_error().await.close_code, 4012);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_client_is_pinged_and_lives_while_it_answers() {
    let mut client = Client::connect(Dialect::Json).await;
    let mut chat = client.attached(&token("alice")).await;
    // Reading answers pings.
    assert!(tokio::time::timeout(after(600), client.next()).await.is_err());
    chat.send(heartbeat(1)).await;
    assert_eq!(client.event().await, heartbeat(1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_gone_without_a_word_is_noticed() {
    let mut client = Client::connect(Dialect::Json).await;
    let _chat = client.attached(&token("alice")).await;
    let started = Instant::now();
    let (code, by) = client.ended.await.unwrap();
    assert_eq!((code, by), (4011, By::Edge));
    // 25 s of silence, 10 s for an answer, and the bounded close.
    assert!(started.elapsed() <= after(38), "{:?}", started.elapsed());
    drop(client.ws);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_cut_within_the_write_timeout() {
    let mut client = Client::connect(Dialect::Json).await;
    let mut chat = client.attached(&token("alice")).await;
    let delta = chat_response::ReplyDelta { text: "x".repeat(4096), ..Default::default() };
    let started = Instant::now();
    client.edge.tasks.spawn("core", async move {
        loop {
            chat.send(chat_response::Event::ReplyDelta(delta.clone())).await;
            if chat.events.is_closed() {
                return;
            }
        }
    });
    let (code, by) = client.ended.await.unwrap();
    assert_eq!((code, by), (4010, By::Edge));
    assert!(started.elapsed() <= after(13), "{:?}", started.elapsed());
    drop(client.ws);
}

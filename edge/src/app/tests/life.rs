//! Start, drain, stop; and that nothing is left behind.

use std::sync::atomic::Ordering;

use chatbox_proto::v1::chat_response;

use super::*;

#[tokio::test]
async fn ready_means_that_core_is_and_that_we_stay() {
    let edge = Running::start().await;
    assert_eq!(edge.get("/readyz").send().await.unwrap().status(), StatusCode::OK);
    edge.core.ready.store(false, Ordering::Relaxed);
    // The answer of a moment ago is still good.
    assert_eq!(edge.get("/readyz").send().await.unwrap().status(), StatusCode::OK);
    edge.stop().await;

    let core_down = Running::start().await;
    core_down.core.ready.store(false, Ordering::Relaxed);
    assert_eq!(core_down.get("/readyz").send().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(core_down.get("/healthz").send().await.unwrap().status(), StatusCode::OK);
    core_down.stop().await;
}

#[tokio::test]
async fn readiness_is_down_before_the_listener_closes() {
    let mut config = config();
    config.drain.notice = Duration::from_millis(500);
    let edge = Running::start_with(config).await;
    assert_eq!(edge.get("/readyz").send().await.unwrap().status(), StatusCode::OK);
    edge.shutdown.cancel();
    until("leaving", || edge.edge.leaving.is_cancelled()).await;
    // A new connection, so that the listener is what answers.
    let fresh = reqwest::Client::builder().no_proxy().build().unwrap();
    assert_eq!(fresh.get(edge.url("/readyz")).send().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    let bearer = format!("Bearer {}", token("alice"));
    assert_eq!(edge.socket(&[("authorization", &bearer)]).await.unwrap_err().0, StatusCode::SERVICE_UNAVAILABLE);
    edge.stop().await;
}

#[tokio::test]
async fn a_drain_closes_every_socket_with_an_event_and_1001() {
    let edge = Running::start().await;
    let mut open = Vec::new();
    for i in 0..20 {
        open.push(edge.open(&format!("user{i}")).await);
    }
    assert_eq!(edge.edge.metrics.connections.get(), 20);
    // One that never reads.
    let (mute, mut chat) = edge.open("mute").await;
    let delta = chat_response::ReplyDelta { text: "x".repeat(60_000), ..Default::default() };
    let flood = async {
        loop {
            chat.send(chat_response::Event::ReplyDelta(delta.clone())).await
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(300), flood).await;
    edge.shutdown.cancel();
    for (mut socket, _chat) in open {
        let event = socket.next().await.unwrap().unwrap().into_text().unwrap();
        assert!(event.contains("goingAway") && event.contains("1001"), "{event}");
        let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("no close frame") };
        assert_eq!(u16::from(frame.code), 1001);
    }
    edge.stop().await;
    drop(mute);
}

#[tokio::test]
async fn sockets_that_come_and_go_in_every_way_leave_nothing() {
    let edge = Running::start().await;
    let bearer = format!("Bearer {}", token("alice"));
    let headers = [("authorization", bearer.as_str())];
    for round in 0..5 {
        let opening = (0..100).map(|_| edge.socket(&headers));
        for (i, socket) in futures_util::future::join_all(opening).await.into_iter().enumerate() {
            let (mut socket, _) = socket.unwrap();
            match i % 4 {
                0 => socket.close(None).await.unwrap(),
                1 => {
                    // A reset instead of a close.
                    socket2::SockRef::from(socket.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
                }
                2 => socket.send(Message::text("{")).await.unwrap(),
                _ => {}
            }
        }
        until(&format!("round {round} is over"), || edge.edge.metrics.connections.get() == 0).await;
    }
    assert_eq!(edge.edge.metrics.panics.get(), 0);
    until("all permits are back", || {
        edge.edge.sockets.available_permits() == edge.edge.config.limits.connections as usize
    })
    .await;
    edge.stop().await;
}

#[tokio::test]
async fn fifty_starts_and_stops_leave_no_task_and_no_file() {
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let once = async || {
        let edge = Running::start().await;
        let (mut socket, chat) = edge.open("alice").await;
        edge.shutdown.cancel();
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
        drop(chat);
        edge.stop().await;
    };
    once().await;
    let (files_before, tasks_before) = (files(), tasks());
    for _ in 0..50 {
        once().await;
    }
    until("no more tasks than before", || tasks() <= tasks_before + 2).await;
    assert!(files() <= files_before + 2, "{} files, {files_before} before", files());
}

#[tokio::test]
async fn two_edges_live_in_one_process_and_a_taken_port_is_said_in_one_line() {
    let first = Running::start().await;
    let second = Running::start().await;
    let taken = Config { listen: first.address, ..config() };
    let error = App::bind_with(taken, FakeCore::new()).await.unwrap_err().to_string();
    assert!(error.contains("listen") && error.contains(&first.address.to_string()) && !error.contains('\n'), "{error}");
    first.stop().await;
    assert_eq!(second.get("/healthz").send().await.unwrap().status(), StatusCode::OK);
    second.stop().await;
}

#[tokio::test]
async fn a_bad_configuration_binds_nothing() {
    let mut bad = config();
    bad.path_prefix = "nope".into();
    bad.limits.connections = 0;
    let error = App::bind_with(bad, FakeCore::new()).await.unwrap_err().to_string();
    assert!(error.contains("path_prefix") && error.contains("limits.connections"), "{error}");
}

//! Who may open a socket.

use super::*;

const ORIGIN: &str = "https://app.test";

fn with_origin() -> Config {
    Config { origins: vec![ORIGIN.to_owned()], ..config() }
}

#[tokio::test]
async fn a_token_may_come_in_a_header_or_as_a_subprotocol() {
    let edge = Running::start().await;
    let token = token("alice");
    let (header, subprotocol) = (format!("Bearer {token}"), format!("chatbox.v1.proto, bearer.{token}"));
    for (headers, chosen) in [
        (vec![("authorization", header.as_str())], None),
        (vec![("authorization", &header), ("sec-websocket-protocol", "chatbox.v1.json")], Some("chatbox.v1.json")),
        (vec![("sec-websocket-protocol", &subprotocol)], Some("chatbox.v1.proto")),
        (vec![("authorization", &header), ("sec-websocket-protocol", &subprotocol)], Some("chatbox.v1.proto")),
    ] {
        let (_, answer) = edge.socket(&headers).await.unwrap();
        // The token is never echoed.
        assert_eq!(answer.get("sec-websocket-protocol").map(|v| v.to_str().unwrap()), chosen, "{headers:?}");
        assert_eq!(answer["x-content-type-options"], "nosniff");
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_token_that_is_not_good_is_401_before_the_upgrade() {
    let edge = Running::start().await;
    let other = format!("chatbox.v1.json, bearer.{}", token("bob"));
    let alice = format!("Bearer {}", token("alice"));
    for headers in [
        vec![],
        vec![("authorization", "Bearer junk")],
        vec![("authorization", "Basic YWxpY2U6cHc=")],
        vec![("sec-websocket-protocol", "chatbox.v1.json, bearer.")],
        vec![("sec-websocket-protocol", "chatbox.v1.json, bearer.a.b.c")],
        // Two different ones: nobody shall have to guess which was meant.
        vec![("authorization", &alice), ("sec-websocket-protocol", &other)],
        vec![("authorization", &alice), ("authorization", "Bearer junk")],
    ] {
        let (status, error) = edge.socket(&headers).await.unwrap_err();
        assert_eq!(
            (status, code(&error.unwrap())),
            (StatusCode::UNAUTHORIZED, ErrorCode::Unauthenticated),
            "{headers:?}"
        );
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_token_in_the_url_is_refused_with_a_clear_reason() {
    let edge = Running::start().await;
    for query in ["token", "access_token", "Token"] {
        let response = edge.get(&format!("/ws?x=1&{query}={}", token("alice"))).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let error = error_of(response).await;
        assert_eq!(error.reason, "TOKEN_IN_QUERY");
        assert!(!error.message.contains("eyJ"));
    }
    // Other parameters may have such names in part.
    let response = edge.get("/api/v1/sessions?pageToken=x").bearer_auth(token("alice")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    edge.stop().await;
}

#[tokio::test]
async fn a_browser_must_come_from_an_allowed_origin_and_then_needs_no_header() {
    let edge = Running::start_with(with_origin()).await;
    edge.socket(&[("origin", ORIGIN)]).await.unwrap();
    let bearer = format!("Bearer {}", token("alice"));
    for origins in
        [vec!["https://evil.test"], vec!["null"], vec![""], vec!["https://app.test.evil.test"], vec![ORIGIN, ORIGIN]]
    {
        let mut headers: Vec<_> = origins.iter().map(|origin| ("origin", *origin)).collect();
        headers.push(("authorization", &bearer));
        let (status, error) = edge.socket(&headers).await.unwrap_err();
        assert_eq!(
            (status, error.unwrap().reason.as_str()),
            (StatusCode::FORBIDDEN, "ORIGIN_NOT_ALLOWED"),
            "{origins:?}"
        );
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_subprotocol_must_be_one_of_ours() {
    let edge = Running::start().await;
    let bearer = format!("Bearer {}", token("alice"));
    let headers = [("authorization", bearer.as_str()), ("sec-websocket-protocol", "graphql-ws")];
    assert_eq!(edge.socket(&headers).await.unwrap_err().0, StatusCode::BAD_REQUEST);
    let headers =
        [("authorization", bearer.as_str()), ("sec-websocket-protocol", "x, chatbox.v1.proto, chatbox.v1.json")];
    assert_eq!(edge.socket(&headers).await.unwrap().1["sec-websocket-protocol"], "chatbox.v1.proto");
    edge.stop().await;
}

#[tokio::test]
async fn a_request_that_is_no_handshake_is_told_so() {
    let edge = Running::start().await;
    let upgrade = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for (left_out, value, status) in [
        ("connection", None, 426),
        ("upgrade", None, 426),
        ("sec-websocket-version", None, 426),
        ("sec-websocket-version", Some("8"), 426),
        ("sec-websocket-key", None, 400),
        ("sec-websocket-key", Some("c2hvcnQ="), 400),
        ("sec-websocket-key", Some("not base64!"), 400),
    ] {
        let mut request = edge.get("/ws").bearer_auth(token("alice"));
        for (name, good) in upgrade {
            match (name == left_out, value) {
                (false, _) => request = request.header(name, good),
                (true, Some(value)) => request = request.header(name, value),
                (true, None) => {}
            }
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{left_out} {value:?}");
        assert_eq!(response.headers().contains_key("sec-websocket-version"), status == 426);
    }
    assert_eq!(edge.post("/ws").send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    edge.stop().await;
}

#[tokio::test]
async fn handshakes_and_sockets_are_limited() {
    let mut config = config();
    config.limits.handshakes_per_ip = 2;
    let edge = Running::start_with(config).await;
    let bearer = format!("Bearer {}", token("alice"));
    let mut sockets = Vec::new();
    for _ in 0..2 {
        sockets.push(edge.socket(&[("authorization", &bearer)]).await.unwrap());
    }
    let (status, error) = edge.socket(&[("authorization", &bearer)]).await.unwrap_err();
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(error.unwrap().retry_after.is_some());
    drop(sockets);
    edge.stop().await;

    let mut config = crate::testing::config();
    config.limits.connections = 1;
    let edge = Running::start_with(config).await;
    let first = edge.socket(&[("authorization", &bearer)]).await.unwrap();
    assert_eq!(edge.socket(&[("authorization", &bearer)]).await.unwrap_err().0, StatusCode::SERVICE_UNAVAILABLE);
    drop(first);
    until("the permit is given back", || edge.edge.sockets.available_permits() == 1).await;
    edge.socket(&[("authorization", &bearer)]).await.unwrap();
    edge.stop().await;
}

#[tokio::test]
async fn a_first_frame_that_came_with_the_handshake_is_not_lost() {
    use tokio::io::AsyncWriteExt as _;
    let edge = Running::start().await;
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    // A masked text frame with an all-zero mask, in the same packet as the request.
    let text = r#"{"open":{}}"#;
    let request = format!(
        "GET /chatbox/ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nauthorization: Bearer {}\r\n\r\n",
        token("alice")
    );
    let mut bytes = request.into_bytes();
    bytes.extend([0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0]);
    bytes.extend(text.as_bytes());
    stream.write_all(&bytes).await.unwrap();
    let mut chat = edge.core.chat().await;
    assert!(chat.frame().await.is_some());
    drop(stream);
    edge.stop().await;
}

#[tokio::test]
async fn core_learns_who_calls_from_where() {
    let mut config = config();
    config.trusted_proxies = vec!["127.0.0.1".into()];
    let edge = Running::start_with(config).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let token = token("alice");
    let bearer = format!("Bearer {token}");
    let headers =
        [("authorization", bearer.as_str()), ("x-forwarded-for", "6.6.6.6, 203.0.113.5"), ("traceparent", trace)];
    let (mut socket, _) = edge.socket(&headers).await.unwrap();
    socket.send(Message::text(r#"{"open":{}}"#)).await.unwrap();
    let chat = edge.core.chat().await;
    assert_eq!((chat.caller.token, chat.caller.client_ip.to_string()), (token, "203.0.113.5".to_owned()));
    assert_eq!(chat.caller.traceparent, trace);
    drop(socket);
    edge.stop().await;
}

//! Security headers on every answer whatever its status, and which origins may open a socket.

use std::time::Duration;

use reqwest::{Method, header::HeaderMap};

use crate::harness::{
    http::{Answer, Http, client},
    stack::{Setup, Stack},
    ws::{Auth, Connect},
};

fn assert_secured(what: &str, headers: &HeaderMap, framable: bool) {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert_eq!(value("x-content-type-options"), "nosniff", "{what}");
    assert_eq!(value("referrer-policy"), "no-referrer", "{what}");
    let policy = value("content-security-policy");
    assert!(policy.contains("default-src 'none'"), "{what}: {policy}");
    assert!(!policy.contains("unsafe-inline") && !policy.contains("unsafe-eval"), "{what}: {policy}");
    if framable {
        assert!(policy.contains("frame-ancestors https://shop.test"), "{what}: {policy}");
        assert_eq!(value("x-frame-options"), "", "{what}");
    } else {
        assert!(policy.contains("frame-ancestors 'none'"), "{what}: {policy}");
        assert_eq!(value("x-frame-options"), "DENY", "{what}");
    }
    for banner in ["server", "x-powered-by", "via"] {
        assert!(!headers.contains_key(banner), "{what}: {banner}");
    }
}

fn assert_says_nothing(what: &str, text: &str) {
    for leak in ["panicked", "/src/", ".rs", "chatbox_edge", "axum", "hyper", "RUST_BACKTRACE"] {
        assert!(!text.contains(leak), "{what} says {leak}: {text}");
    }
}

#[tokio::test]
async fn every_answer_has_the_security_headers_whatever_its_status() {
    let setup = Setup::new().unwrap().with(|setup| {
        setup.edge.frame_ancestors = vec!["https://shop.test".to_owned()];
        setup.edge.limits.handshakes_per_ip = 3;
    });
    let mut stack = Stack::start(setup).await.unwrap();
    let address = stack.addresses().http;
    let (alice, nobody) = (stack.http("alice").unwrap(), Http::new(address, None));
    let big = format!("{{\"model\":\"{}\"}}", "x".repeat(100 << 10));
    let unknown = "/api/v1/sessions/0193e3a8-7c1b-7d3e-8f4a-2b6c9d0e1f23";
    let cases: Vec<(u16, &Http, Method, &str, Option<String>)> = vec![
        (200, &alice, Method::GET, "/api/v1/models", None),
        (200, &nobody, Method::GET, "/healthz", None),
        (200, &nobody, Method::GET, "/readyz", None),
        (400, &alice, Method::POST, "/api/v1/sessions", Some("{".to_owned())),
        (401, &nobody, Method::GET, "/api/v1/models", None),
        (401, &alice, Method::GET, "/api/v1/models?token=x", None),
        (404, &nobody, Method::GET, "/api/v1/nothing-here", None),
        (404, &alice, Method::GET, unknown, None),
        (405, &alice, Method::PUT, "/api/v1/models", None),
        (413, &alice, Method::POST, "/api/v1/sessions", Some(big)),
        (426, &alice, Method::GET, "/ws", None),
        (404, &alice, Method::DELETE, unknown, None),
    ];
    for (status, http, method, path, body) in cases {
        let what = format!("{status} {method} {path}");
        let answer: Answer = http.send(method, path, body).await.unwrap();
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        assert_secured(&what, &answer.headers, false);
        assert_says_nothing(&what, &answer.text());
    }
    let page = nobody.send(Method::GET, "/", None).await.unwrap();
    assert_secured("the page", &page.headers, page.status == 200);
    let outside = client().get(format!("http://{address}/elsewhere")).send().await.unwrap();
    assert_eq!(outside.status(), 404);
    assert_secured("outside of the prefix", outside.headers(), false);

    let token = stack.token("alice", "user").unwrap();
    let connect = || Connect::new(address).auth(Auth::Header(token.clone()));
    let open = connect().connect().await.unwrap();
    assert_secured("101", open.upgrade_headers(), false);
    let forbidden = connect().origin("https://evil.test").refused().await.unwrap();
    assert_eq!(forbidden.status, 403);
    assert_secured("403", &forbidden.headers, false);
    let mut refused = connect().refused().await;
    while refused.is_err() {
        refused = connect().refused().await;
    }
    let refused = refused.unwrap();
    assert_eq!(refused.status, 429);
    assert!(refused.headers.contains_key("retry-after"), "{refused}");
    assert_secured("429", &refused.headers, false);

    stack.stop_core().await.unwrap();
    let down = alice.send(Method::GET, "/api/v1/models", None).await.unwrap();
    assert_eq!(down.status, 503, "{}", down.text());
    assert!(down.headers.contains_key("retry-after"));
    assert_secured("503", &down.headers, false);
    assert_says_nothing("503", &down.text());
    stack.start_core().await.unwrap();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn transport_security_is_demanded_of_those_who_came_over_tls_and_of_nobody_else() {
    for (trusted, expected) in [(vec!["127.0.0.1".to_owned()], true), (Vec::new(), false)] {
        let setup = Setup::new().unwrap().with(|setup| {
            setup.edge.trusted_proxies = trusted;
            setup.edge.hsts.max_age = Duration::from_secs(15_552_000);
        });
        let stack = Stack::start(setup).await.unwrap();
        for (proto, path) in [("https", "healthz"), ("https", "nothing-here"), ("http", "healthz")] {
            let url = format!("http://{}/chatbox/{path}", stack.addresses().http);
            let answer = client().get(url).header("x-forwarded-proto", proto).send().await.unwrap();
            let demanded = answer.headers().get("strict-transport-security").map(|v| v.to_str().unwrap().to_owned());
            let over_tls = expected && proto == "https";
            assert_eq!(demanded.is_some(), over_tls, "{proto} {path}: {demanded:?}");
            assert!(demanded.is_none_or(|value| value.starts_with("max-age=15552000")));
        }
        stack.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn only_listed_origins_open_a_socket_and_only_with_a_token() {
    let setup = Setup::new().unwrap().with(|setup| {
        setup.edge.origins = vec!["https://app.test".to_owned()];
    });
    let stack = Stack::start(setup).await.unwrap();
    let address = stack.addresses().http;
    let token = stack.token("alice", "user").unwrap();
    let with_token = |origin: Option<&str>| {
        let connect = Connect::new(address).auth(Auth::Subprotocol(token.clone()));
        origin.map_or(connect.clone(), |origin| connect.origin(origin))
    };
    assert!(with_token(Some("https://app.test")).connect().await.is_ok());
    assert!(with_token(None).connect().await.is_ok());
    // The token may come in the first frame, from a page that is known.
    assert!(Connect::new(address).origin("https://app.test").connect().await.is_ok());
    for bad in
        ["https://evil.test", "http://app.test", "https://app.test.evil.test", "https://app.test:8443", "null", ""]
    {
        assert_eq!(with_token(Some(bad)).refused().await.unwrap().status, 403, "{bad}");
    }
    let twice = with_token(Some("https://app.test")).origin("https://app.test").refused().await.unwrap();
    assert_eq!(twice.status, 403);
    assert_eq!(Connect::new(address).refused().await.unwrap().status, 401);
    stack.shutdown().await.unwrap();
}

/// Heads that no handler ever sees.
#[tokio::test]
async fn a_head_that_cannot_be_read_is_answered_with_the_security_headers_too() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let setup = Setup::new().unwrap().with(|setup| setup.edge.limits.header_timeout = Duration::from_secs(1));
    let stack = Stack::start(setup).await.unwrap();
    let many: String = (0..100).map(|number| format!("x-{number}: y\r\n")).collect();
    let good = "GET /chatbox/healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    for (what, head, status) in [
        ("not HTTP", "nonsense\r\n\r\n".to_owned(), Some("400")),
        ("a bad header", "GET / HTTP/1.1\r\nbad header\r\n\r\n".to_owned(), Some("400")),
        ("a bad one after a good one", format!("{good}nonsense\r\n\r\n"), Some("400")),
        ("too many headers", format!("GET / HTTP/1.1\r\n{many}\r\n"), Some("431")),
        ("a big head", format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(64 << 10)), Some("431")),
        ("a long path", format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(66 << 10)), None),
        ("a head that does not end", "GET / HTTP/1.1\r\nx: y".to_owned(), None),
    ] {
        let mut stream = tokio::net::TcpStream::connect(stack.addresses().http).await.unwrap();
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = Vec::new();
        // A reset after the answer is the kernel's word for what was not read.
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(10), read).await.expect(what);
        let answer = String::from_utf8(answer).unwrap();
        let last = answer.rsplit("HTTP/1.1 ").next().unwrap_or_default();
        if let Some(status) = status {
            assert!(last.starts_with(status), "{what}: {answer}");
        }
        if !answer.is_empty() {
            for header in
                ["x-content-type-options: nosniff", "content-security-policy: default-src", "x-frame-options: DENY"]
            {
                assert!(last.contains(header), "{what}: {answer}");
            }
        }
    }
    stack.shutdown().await.unwrap();
}

//! HTTP: the routes, the errors, the headers.

use chatbox_proto::{status::Failure, v1};
use prost::Message as _;

use super::*;

/// Headers that no answer is without.
const ALWAYS: [&str; 6] = [
    "x-content-type-options",
    "referrer-policy",
    "content-security-policy",
    "cross-origin-opener-policy",
    "permissions-policy",
    "cache-control",
];

fn bearer() -> String {
    token("alice")
}

#[tokio::test]
async fn every_answer_has_the_security_headers() {
    let mut config = config();
    config.trusted_proxies = vec!["127.0.0.1".into()];
    config.origins = vec!["https://app.test".into()];
    let edge = Running::start_with(config).await;
    let too_large = "x".repeat(65 * 1024);
    let failing = |failure| edge.core.answer(Err::<v1::ListModelsResponse, _>(failure));
    // Every request is made twice.
    for _ in 0..2 {
        failing(Failure::new(ErrorCode::ResourceExhausted, "LIMIT", "x").retry_after(Duration::from_millis(1500)));
    }
    for _ in 0..2 {
        failing(Failure::internal());
    }
    let upgrade = |request: reqwest::RequestBuilder| {
        request
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
    };
    let requests = [
        (429, edge.get("/api/v1/models").bearer_auth(bearer())),
        (500, edge.get("/api/v1/models").bearer_auth(bearer())),
        (200, edge.get("/api/v1/models").bearer_auth(bearer())),
        (200, edge.get("/healthz")),
        (200, edge.get("/")),
        (308, edge.get("")),
        (400, edge.get("/api/v1/sessions?pageSize=x").bearer_auth(bearer())),
        (401, edge.get("/api/v1/models")),
        (401, edge.get("/?token=x")),
        (401, upgrade(edge.get("/ws"))),
        (403, upgrade(edge.get("/ws")).header("origin", "https://evil.test")),
        (404, edge.get("/nothing")),
        (404, edge.get("/api/v1/nothing")),
        (404, edge.client.get(format!("http://{}/elsewhere", edge.address))),
        (405, edge.client.delete(edge.url("/api/v1/models"))),
        (413, edge.post("/api/v1/sessions").header("content-type", "application/json").body(too_large)),
        (415, edge.post("/api/v1/sessions").header("content-type", "text/plain").body("{}")),
        (426, edge.get("/ws")),
        (500, edge.post("/api/v1/sessions/MARKER/reopen")),
    ];
    for (status, request) in requests {
        for https in [false, true] {
            let mut request = request.try_clone().unwrap();
            if https {
                request = request.header("x-forwarded-proto", "https");
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status().as_u16(), status, "{}", response.url());
            let headers = response.headers().clone();
            for name in ALWAYS {
                assert!(headers.contains_key(name), "{status} has no {name}");
            }
            assert_eq!(headers["x-frame-options"], "DENY", "{status}");
            assert!(!headers.contains_key("server"), "{status}");
            let hsts = headers.get("strict-transport-security").map(|v| v.to_str().unwrap());
            assert_eq!(hsts.is_some(), https, "{status}");
            assert!(hsts.is_none_or(|v| v.starts_with("max-age=31536000")), "{status}");
            let body = response.text().await.unwrap();
            for leak in ["MARKER", "panicked", "src/", "Failure", "::"] {
                assert!(!body.contains(leak), "{status} shows {leak}: {body}");
            }
            if status >= 400 {
                assert!(
                    json::from_slice::<v1::ErrorResponse>(body.as_bytes()).unwrap().error.is_some(),
                    "{status}: {body}"
                );
            }
        }
    }
    assert_eq!(edge.edge.metrics.panics.get(), 2);
    edge.stop().await;
}

#[tokio::test]
async fn the_page_may_be_framed_by_whom_the_configuration_names_and_nothing_else_may() {
    let mut config = config();
    config.frame_ancestors = vec!["https://shop.test".into()];
    let edge = Running::start_with(config).await;
    let page = edge.get("/").send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("frame-ancestors https://shop.test") && policy.contains("script-src 'self'"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(!page.headers().contains_key("x-frame-options"));
    let api = edge.get("/api/v1/models").send().await.unwrap();
    assert_eq!(api.headers()["x-frame-options"], "DENY");
    edge.stop().await;
}

#[tokio::test]
async fn a_page_is_kept_by_its_tag() {
    let edge = Running::start().await;
    let page = edge.get("/").send().await.unwrap();
    assert_eq!(page.headers()["cache-control"], "no-cache");
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let tag = page.headers()["etag"].clone();
    let again = edge.get("/").header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    let redirect = edge.get("").send().await.unwrap();
    assert_eq!(redirect.headers()["location"], "/chatbox/");
    edge.stop().await;
}

#[tokio::test]
async fn a_call_carries_its_fields_to_core_and_the_answer_back_as_canonical_json() {
    let edge = Running::start().await;
    let session = v1::Session { session_id: "s".into(), head: 7, ..Default::default() };
    edge.core.answer(Ok(v1::ListSessionsResponse {
        sessions: vec![session],
        next_page_token: "t".into(),
        page_size: 5,
    }));
    let path = "/api/v1/sessions?pageSize=5&page_token=a%26b&status=SESSION_STATUS_ACTIVE&nameContains=h%C3%A9llo";
    let response = edge.get(path).bearer_auth(bearer()).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = response.text().await.unwrap();
    assert_eq!(body, r#"{"sessions":[{"sessionId":"s","head":"7"}],"nextPageToken":"t","pageSize":5}"#);
    let (call, caller, request) = edge.core.calls.lock().unwrap().remove(0);
    assert_eq!((call.method, call.writes, caller.token), ("ListSessions", false, bearer()));
    let expected = v1::ListSessionsRequest {
        page_size: 5,
        page_token: "a&b".into(),
        status: v1::SessionStatus::Active.into(),
        name_contains: "héllo".into(),
    };
    assert_eq!(v1::ListSessionsRequest::decode(request).unwrap(), expected);

    let history =
        edge.get("/api/v1/sessions/abc/messages?after_seq=18446744073709551615&order=PAGE_ORDER_OLDEST_FIRST");
    assert_eq!(history.bearer_auth(bearer()).send().await.unwrap().status(), StatusCode::OK);
    let (call, _, request) = edge.core.calls.lock().unwrap().remove(0);
    let request = v1::ListMessagesRequest::decode(request).unwrap();
    assert_eq!((call.method, request.session_id.as_str(), request.after_seq), ("ListMessages", "abc", u64::MAX));

    let create = edge
        .post("/api/v1/sessions")
        .header("content-type", "application/json")
        .body(r#"{"requestId":"r","model":"m"}"#);
    assert_eq!(create.send().await.unwrap().status(), StatusCode::OK);
    let (call, _, request) = edge.core.calls.lock().unwrap().remove(0);
    let request = v1::CreateSessionRequest::decode(request).unwrap();
    assert_eq!(
        (call.method, call.writes, request.request_id.as_str(), request.model.as_str()),
        ("CreateSession", true, "r", "m")
    );

    assert_eq!(edge.post("/api/v1/sessions/abc/end").send().await.unwrap().status(), StatusCode::OK);
    let (call, _, request) = edge.core.calls.lock().unwrap().remove(0);
    assert_eq!(
        (call.method, v1::EndSessionRequest::decode(request).unwrap().session_id.as_str()),
        ("EndSession", "abc")
    );
    edge.stop().await;
}

#[tokio::test]
async fn a_bad_field_is_400_and_named_and_core_is_not_asked() {
    let edge = Running::start().await;
    for (path, field) in [
        ("/api/v1/sessions?pageSize=ten", "pageSize"),
        ("/api/v1/sessions?page_size=1e99", "page_size"),
        ("/api/v1/sessions?pageSize=99999999999", "pageSize"),
        ("/api/v1/sessions?pageSize=5&page_size=6", "page_size"),
        ("/api/v1/sessions?status=OPEN", "status"),
        ("/api/v1/sessions?pagesize=5", "pagesize"),
        ("/api/v1/sessions/abc/messages?sessionId=other", "sessionId"),
        ("/api/v1/sessions/abc/messages?afterSeq=-1", "afterSeq"),
    ] {
        let response = edge.get(path).bearer_auth(bearer()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{path}");
        let error = error_of(response).await;
        assert_eq!(
            (code(&error), error.field_violations[0].field.as_str()),
            (ErrorCode::InvalidArgument, field),
            "{path}"
        );
    }
    for (body, field) in [("{", "body"), ("[]", "body"), (r#"{"modle":"x"}"#, "modle"), (r#"{"model":5}"#, "model")] {
        let request = edge.post("/api/v1/sessions").header("content-type", "application/json").body(body);
        let error = error_of(request.send().await.unwrap()).await;
        assert_eq!(
            (code(&error), error.field_violations[0].field.as_str()),
            (ErrorCode::InvalidArgument, field),
            "{body}"
        );
    }
    assert!(edge.core.calls.lock().unwrap().is_empty());
    edge.stop().await;
}

#[tokio::test]
async fn failures_of_core_have_the_status_of_the_table_and_say_when_to_come_back() {
    let edge = Running::start().await;
    for class in chatbox_proto::error_code::ALL {
        let failure = Failure::new(*class, "SOME_REASON", "a sentence").retry_after(Duration::from_millis(1200));
        edge.core.answer(Err::<v1::GetSessionResponse, _>(failure));
        let response = edge.get("/api/v1/sessions/s").bearer_auth(bearer()).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (class.http(), &"2".parse().unwrap())
        );
        let error = error_of(response).await;
        assert_eq!((code(&error), error.reason.as_str()), (*class, "SOME_REASON"));
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_huge_header_is_refused() {
    let edge = Running::start().await;
    let response = edge.get("/healthz").header("x-huge", "x".repeat(100 * 1024)).send().await;
    assert!(response.map_or(true, |r| r.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
    assert_eq!(edge.get("/healthz").send().await.unwrap().status(), StatusCode::OK);
    edge.stop().await;
}

#[tokio::test]
async fn metrics_have_a_listener_of_their_own() {
    let config = Config { metrics_listen: "127.0.0.1:0".into(), ..config() };
    let app = App::bind_with(config.clone(), FakeCore::new()).await.unwrap();
    assert!(app.metrics_addr().is_some_and(|address| address != app.http_addr().unwrap()));
    drop(app);
    let edge = Running::start_with(config).await;
    edge.get("/api/v1/models").bearer_auth(bearer()).send().await.unwrap();
    assert_eq!(edge.get("/metrics").send().await.unwrap().status(), StatusCode::NOT_FOUND);
    let text = edge.edge.metrics.encode();
    let line = "chatbox_edge_http_requests_total{route=\"/chatbox/api/v1/models\",method=\"GET\",status=\"200\"} 1";
    assert!(text.contains(line), "{text}");
    edge.stop().await;
}

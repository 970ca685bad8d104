//! The conformance suite over chat completions, and what is special to them.

use std::sync::Arc;
use std::time::Duration;

use super::{OpenAi, OpenAiSettings};
use crate::domain::entry::FinishReason;
use crate::llm::conformance::{Dialect, MAX_EVENT_BYTES, SECRET, prompt, provider_conformance, read};
use crate::llm::http::{Access, KeyHeader};
use crate::llm::scripted::{STREAM, ScriptedServer, Step};
use crate::llm::{Chunk, Provider, ProviderError};

struct ChatCompletions;

fn settings(base_url: &str) -> OpenAiSettings {
    OpenAiSettings::with(Access {
        api_key: Some(SECRET.to_owned()),
        max_event_bytes: MAX_EVENT_BYTES,
        ..Access::new(base_url)
    })
}

fn event(data: impl AsRef<[u8]>) -> Vec<u8> {
    [b"data: ", data.as_ref(), b"\n\n"].concat()
}

const STOP: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;

impl Dialect for ChatCompletions {
    fn provider(base_url: &str) -> Arc<dyn Provider> {
        Arc::new(OpenAi::new(&settings(base_url)).expect("settings"))
    }

    fn text(text: &str) -> Vec<u8> {
        event(format!(
            r#"{{"id":"chatcmpl-1","choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}]}}"#
        ))
    }

    fn keep_alive() -> Vec<u8> {
        b": PROCESSING\r\n\r\n".to_vec()
    }

    fn end() -> Vec<u8> {
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}"#;
        [event(STOP), event(usage), event("[DONE]")].concat()
    }

    fn error() -> Vec<u8> {
        event(format!(r#"{{"error":{{"message":"{SECRET}","type":"server_error","code":null}}}}"#))
    }

    fn broken(broken: &[u8]) -> Vec<u8> {
        event(broken)
    }
}

provider_conformance!(ChatCompletions);

#[tokio::test]
async fn the_request_carries_the_key_and_asks_for_a_stream_with_usage() {
    let server = ScriptedServer::start(vec![vec![STREAM, Step::Data(ChatCompletions::end()), Step::End]]).await;
    let mut settings = settings(&server.base_url());
    settings.access.headers.push(("X-Team".to_owned(), "chat".to_owned()));
    read(&OpenAi::new(&settings).expect("settings")).await;
    let request = &server.received()[0];
    assert!(request.head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{}", request.head);
    for header in [
        "authorization: bearer sk-secret",
        "accept: text/event-stream",
        "content-type: application/json",
        "x-team: chat",
    ] {
        assert!(request.head.lines().any(|line| line == header), "{header} in {}", request.head);
    }
    let body: serde_json::Value = serde_json::from_slice(&request.body).expect("JSON");
    assert_eq!(body["stream"], true);
    assert_eq!(body["stream_options"]["include_usage"], true);
    assert_eq!((&body["model"], &body["max_tokens"], &body["user"]), (&"m-1".into(), &4000.into(), &"u-1".into()));
}

#[tokio::test]
async fn azure_is_asked_by_deployment_and_version_with_the_key_where_it_looks_for_it() {
    let server = ScriptedServer::start(vec![vec![STREAM, Step::Data(ChatCompletions::end()), Step::End]]).await;
    let mut settings = settings(&format!("http://{}/openai/deployments/gpt?api-version=2024-10-21", server.address()));
    settings.key_header = Some(KeyHeader::ApiKey);
    read(&OpenAi::new(&settings).expect("settings")).await;
    let request = &server.received()[0];
    let line = "post /openai/deployments/gpt/chat/completions?api-version=2024-10-21 http/1.1\r\n";
    assert!(request.head.starts_with(line), "{}", request.head);
    assert!(request.head.contains("api-key: sk-secret") && !request.head.contains("authorization"), "{}", request.head);
}

#[tokio::test]
async fn a_question_that_a_filter_refuses_is_filtered_and_another_refusal_is_an_error() {
    let refused = |body: &str| vec![Step::Head("400 Bad Request"), Step::Data(body.as_bytes().to_vec()), Step::End];
    let filter = r#"{"error":{"message":"x","type":null,"param":"prompt","code":"content_filter","status":400}}"#;
    let other = r#"{"error":{"message":"content_filter","type":"content_filter","code":"invalid"}}"#;
    let server = ScriptedServer::start(vec![refused(filter), refused(other), refused("content_filter")]).await;
    let provider = ChatCompletions::provider(&server.base_url());
    assert_eq!(read(&*provider).await, (vec![Chunk::Finished(FinishReason::Filtered)], None));
    for _ in 0..2 {
        assert_eq!(read(&*provider).await.1, Some(ProviderError::Status { status: 400, retry_after: None }));
    }
}

#[tokio::test]
async fn a_complete_text_ends_well_whatever_the_server_does_after_it() {
    let head = || [STREAM, Step::Data(ChatCompletions::text("Hel")), Step::Data(event(STOP))].into_iter();
    let comments = Step::Data(ChatCompletions::keep_alive());
    for rest in [vec![Step::End], vec![Step::Close], vec![Step::Hang], vec![comments, Step::Hang]] {
        let server = ScriptedServer::start(vec![head().chain(rest.clone()).collect()]).await;
        let mut settings = settings(&server.base_url());
        settings.access.tail_wait = Duration::from_millis(50);
        let (chunks, error) = read(&OpenAi::new(&settings).expect("settings")).await;
        assert_eq!((chunks.last(), error), (Some(&Chunk::Finished(FinishReason::Stop)), None), "{rest:?}");
    }
}

#[tokio::test]
async fn done_without_a_finish_reason_is_truncated() {
    let script = vec![STREAM, Step::Data(ChatCompletions::text("Hel")), Step::Data(event("[DONE]")), Step::End];
    let server = ScriptedServer::start(vec![script]).await;
    assert_eq!(read(&*ChatCompletions::provider(&server.base_url())).await.1, Some(ProviderError::Truncated));
}

#[tokio::test]
async fn one_connection_serves_one_answer_after_the_other() {
    let answer = || vec![STREAM, Step::Data(ChatCompletions::end()), Step::End];
    let refusal = vec![Step::Head("503 Service Unavailable"), Step::Data(b"busy".to_vec()), Step::End];
    let server = ScriptedServer::start(vec![answer(), refusal, answer()]).await;
    let provider = ChatCompletions::provider(&server.base_url());
    for _ in 0..3 {
        read(&*provider).await;
    }
    assert_eq!((server.received().len(), server.connections()), (3, 1));
}

#[tokio::test]
async fn a_server_that_does_not_accept_is_a_connect_timeout() {
    // A listener whose backlog is full drops further connections silently.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().expect("address");
    socket.bind(&any.into()).expect("bind");
    socket.listen(0).expect("listen");
    let address = socket.local_addr().expect("address").as_socket().expect("IP");
    let mut fillers = Vec::new();
    while let Ok(Ok(filler)) =
        tokio::time::timeout(Duration::from_millis(100), tokio::net::TcpStream::connect(address)).await
    {
        fillers.push(filler);
    }
    let mut settings = settings(&format!("http://{address}/v1"));
    settings.access.connect_timeout = Duration::from_millis(50);
    let error = OpenAi::new(&settings).expect("settings").generate(prompt()).await.err();
    assert_eq!(error, Some(ProviderError::Timeout("connect")));
}

#[test]
fn settings_that_cannot_work_are_refused_without_their_values() {
    let refused = |change: fn(&mut OpenAiSettings)| {
        let mut settings = settings("https://api.example.com/v1");
        change(&mut settings);
        OpenAi::new(&settings).expect_err("refused").to_string()
    };
    assert!(refused(|s| s.access.base_url = "http://api.example.com".into()).starts_with("base_url: "));
    assert!(refused(|s| s.access.api_key = Some("sk-\nsecret".into())).starts_with("api_key: "));
    for (name, value) in [("no name", "x"), ("x-team", "a\nsk-secret"), ("Host", "x"), ("content-length", "1")] {
        let mut settings = settings("https://api.example.com/v1");
        settings.access.headers = vec![(name.to_owned(), value.to_owned())];
        let error = OpenAi::new(&settings).expect_err(name).to_string();
        assert!(error.starts_with(&format!("headers: {name}: ")) && !error.contains("secret"), "{error}");
    }
}

#[test]
fn no_secret_is_in_debug_output() {
    let mut settings = settings("http://127.0.0.1:1/v1");
    settings.access.headers.push(("api-key".to_owned(), SECRET.to_owned()));
    let shown = format!("{settings:?} {:?}", OpenAi::new(&settings).expect("settings"));
    assert!(!shown.contains(SECRET), "{shown}");
}

#[test]
fn the_name_of_the_output_limit_follows_the_host() {
    let field = |base_url: &str| format!("{:?}", OpenAi::new(&settings(base_url)).expect("settings"));
    assert!(field("https://api.openai.com/v1").contains("MaxCompletionTokens"));
    for host in ["https://team.openai.azure.com/openai/v1", "https://team.services.ai.azure.com/openai/v1"] {
        assert!(field(host).contains("MaxCompletionTokens") && field(host).contains("api-key"), "{host}");
    }
    assert!(field("https://team.openai.azure.com/openai/v1").contains("MaxCompletionTokens"));
    assert!(field("http://127.0.0.1:11434/v1").contains("MaxTokens"));
}

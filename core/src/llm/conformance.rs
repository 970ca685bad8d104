//! What every provider must do, over a real socket. A provider says how its service writes things ([`Dialect`]) and
//! stamps the suite with `provider_conformance!`.

use std::sync::Arc;
use std::time::Duration;

use chatbox_proto::trace::{TRACEPARENT, TraceContext};
use futures_util::StreamExt;

use super::guard::{Guard, GuardLimits};
use super::scripted::{STREAM, ScriptedServer, Step};
use super::{Chunk, Prompt, PromptMessage, PromptRole, Provider, ProviderError};
use crate::domain::entry::{FinishReason, Usage};

/// How one kind of service writes its stream.
pub(crate) trait Dialect {
    /// The head of a stream, for the request `req-7`.
    const HEAD: Step = STREAM;
    /// What [`Dialect::end`] says was used.
    const USAGE: Usage = USAGE;

    /// A provider with a key, for events of at most [`MAX_EVENT_BYTES`].
    fn provider(base_url: &str) -> Arc<dyn Provider>;
    /// An event with text.
    fn text(text: &str) -> Vec<u8>;
    /// What comes while there is nothing to say.
    fn keep_alive() -> Vec<u8>;
    /// Everything after the text of a complete answer.
    fn end() -> Vec<u8>;
    /// An error event that says [`SECRET`].
    fn error() -> Vec<u8>;
    /// An event that is not what the format says, after `broken` was put where JSON is expected.
    fn broken(broken: &[u8]) -> Vec<u8>;
}

pub(crate) const MAX_EVENT_BYTES: usize = 64 * 1024;
pub(crate) const USAGE: Usage = Usage { prompt_tokens: 9, completion_tokens: 2, cached_tokens: 4, estimated: false };
pub(crate) const SECRET: &str = "sk-secret";
const QUESTION: &str = "<b> & \"q\" 'x' ünï 😀";

pub(crate) fn prompt() -> Prompt {
    Prompt {
        upstream_model: "m-1".to_owned(),
        messages: vec![PromptMessage { role: PromptRole::User, text: QUESTION.to_owned() }],
        max_output_tokens: 4000,
        user_hash: "u-1".to_owned(),
        conversation: None,
        ..Prompt::default()
    }
}

fn text(text: &str) -> Chunk {
    Chunk::Text(text.to_owned())
}

/// What a provider gave: its chunks and, perhaps, the error at the end.
pub(crate) type Outcome = (Vec<Chunk>, Option<ProviderError>);

/// Reads a turn to its end and checks the contract of the trait.
pub(crate) async fn read(provider: &dyn Provider) -> Outcome {
    let mut stream = match provider.generate(prompt()).await {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let (mut chunks, mut error) = (Vec::new(), None);
    while let Some(item) = stream.next().await {
        assert!(error.is_none(), "nothing comes after an error");
        assert!(!matches!(chunks.last(), Some(Chunk::Finished(_))), "nothing comes after the end");
        match item {
            Ok(chunk) => {
                assert_ne!(chunk, text(""), "text is never empty");
                // Signs of life, and what only some services have.
                if !matches!(chunk, Chunk::Reasoning | Chunk::Conversation(_)) {
                    chunks.push(chunk);
                }
            }
            Err(failure) => error = Some(failure),
        }
    }
    let ids = chunks.iter().filter(|chunk| matches!(chunk, Chunk::RequestId(_))).count();
    assert!(ids <= 1, "the request has one id");
    let finished = matches!(chunks.last(), Some(Chunk::Finished(_)));
    assert_ne!(finished, error.is_some(), "either an end or an error: {chunks:?} {error:?}");
    (chunks, error)
}

fn text_of(chunks: &[Chunk]) -> String {
    chunks.iter().filter_map(|chunk| if let Chunk::Text(text) = chunk { Some(text.as_str()) } else { None }).collect()
}

async fn outcome_of<D: Dialect>(script: Vec<Step>) -> Outcome {
    let server = ScriptedServer::start(vec![script]).await;
    read(&*D::provider(&server.base_url())).await
}

/// A stream that says "Hel" and then goes on like this.
fn after_text<D: Dialect>(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    [D::HEAD, Step::Data(D::text("Hel"))].into_iter().chain(steps).collect()
}

fn complete<D: Dialect>() -> Vec<Step> {
    after_text::<D>([Step::Data(D::text("lo")), Step::Data(D::end()), Step::End])
}

fn complete_chunks<D: Dialect>() -> Vec<Chunk> {
    vec![
        Chunk::RequestId("req-7".to_owned()),
        text("Hel"),
        text("lo"),
        Chunk::Usage(D::USAGE),
        Chunk::Finished(FinishReason::Stop),
    ]
}

pub(crate) async fn a_complete_answer_arrives_and_the_question_goes_out_as_written<D: Dialect>() {
    let server = ScriptedServer::start(vec![complete::<D>()]).await;
    assert_eq!(read(&*D::provider(&server.base_url())).await, (complete_chunks::<D>(), None));
    let body: serde_json::Value = serde_json::from_slice(&server.received()[0].body).expect("JSON");
    assert!(body.to_string().contains(&serde_json::to_string(QUESTION).expect("JSON")), "{body}");
}

pub(crate) async fn splitting_the_stream_at_every_byte_changes_nothing<D: Dialect>() {
    let stream = [D::keep_alive(), D::text("Hel ü 😀"), D::text("lo"), D::end()].concat();
    let pieces = |parts: &[&[u8]]| {
        let data = parts.iter().map(|part| Step::Data(part.to_vec()));
        [D::HEAD].into_iter().chain(data).chain([Step::End]).collect::<Vec<_>>()
    };
    let mut scripts: Vec<Vec<Step>> = (1..stream.len()).map(|at| pieces(&[&stream[..at], &stream[at..]])).collect();
    scripts.push(pieces(&stream.chunks(1).collect::<Vec<_>>()));
    let count = scripts.len();
    let server = ScriptedServer::start(scripts).await;
    let provider = D::provider(&server.base_url());
    for n in 0..count {
        let (chunks, error) = read(&*provider).await;
        assert_eq!((text_of(&chunks).as_str(), &error), ("Hel ü 😀lo", &None), "script {n}");
        assert_eq!(
            chunks[chunks.len() - 2..],
            [Chunk::Usage(D::USAGE), Chunk::Finished(FinishReason::Stop)],
            "script {n}"
        );
    }
}

pub(crate) async fn line_ends_comments_and_data_on_several_lines_change_nothing<D: Dialect>() {
    let stream = [D::text("Hel"), D::text("lo"), D::end()].concat();
    let stream = String::from_utf8(stream).expect("text");
    // White space between the parts of an object means nothing, and none of these texts holds such a place.
    let split = stream.replace(",\"", ",\ndata: \"").replace("data: {", "data:{");
    let commented = stream.replace("data: ", ": \"comment\"\nretry: 1000\nid: 7\ndata: ");
    for stream in [split, commented.clone(), commented.replace('\n', "\r\n"), stream.replace('\n', "\r")] {
        let script = vec![D::HEAD, Step::Data(stream.clone().into_bytes()), Step::End];
        assert_eq!(outcome_of::<D>(script).await, (complete_chunks::<D>(), None), "{stream:?}");
    }
}

pub(crate) async fn keep_alives_are_not_text<D: Dialect>() {
    let keep_alive = || Step::Data(D::keep_alive().repeat(3));
    let script =
        vec![D::HEAD, keep_alive(), Step::Data(D::text("Hel")), keep_alive(), Step::Data(D::text("lo")), keep_alive()];
    let script = script.into_iter().chain([Step::Data(D::end()), Step::End]).collect();
    assert_eq!(outcome_of::<D>(script).await, (complete_chunks::<D>(), None));
}

pub(crate) async fn an_end_without_marker_is_truncated<D: Dialect>() {
    let (chunks, error) = outcome_of::<D>(after_text::<D>([Step::End])).await;
    assert_eq!((text_of(&chunks).as_str(), error), ("Hel", Some(ProviderError::Truncated)));
    assert_eq!(outcome_of::<D>(vec![D::HEAD, Step::End]).await.1, Some(ProviderError::Truncated));
    // In the middle of an event.
    let event = D::text("lo");
    let (chunks, error) =
        outcome_of::<D>(after_text::<D>([Step::Data(event[..event.len() - 1].to_vec()), Step::End])).await;
    assert_eq!((text_of(&chunks).as_str(), error), ("Hel", Some(ProviderError::Truncated)));
}

pub(crate) async fn a_broken_connection_is_a_connection_error<D: Dialect>() {
    for step in [Step::Close, Step::Reset] {
        let (chunks, error) = outcome_of::<D>(after_text::<D>([step.clone()])).await;
        assert!(matches!(error, Some(ProviderError::Connection(_))), "{step:?}: {error:?}");
        // A reset may overtake what was sent before it.
        assert!(["", "Hel"].contains(&text_of(&chunks).as_str()));
        let (_, error) = outcome_of::<D>(vec![step.clone()]).await;
        assert!(matches!(error, Some(ProviderError::Connection(_))), "{step:?} before the head: {error:?}");
    }
}

pub(crate) async fn a_port_nobody_listens_on_is_a_connection_error<D: Dialect>() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    drop(listener);
    let (_, error) = read(&*D::provider(&format!("http://{address}/v1"))).await;
    let Some(ProviderError::Connection(text)) = error else { panic!("{error:?}") };
    assert!(text.contains("refused") && !text.contains("127.0.0.1"), "{text}");
}

pub(crate) async fn an_error_event_is_an_error_first_and_later<D: Dialect>() {
    let (chunks, first) = outcome_of::<D>(vec![D::HEAD, Step::Data(D::error()), Step::End]).await;
    assert_eq!(text_of(&chunks), "");
    let (chunks, later) = outcome_of::<D>(after_text::<D>([Step::Data(D::error()), Step::Hang])).await;
    assert_eq!(text_of(&chunks), "Hel");
    for error in [first, later] {
        assert!(matches!(error, Some(ProviderError::Event(_))), "{error:?}");
        assert!(!format!("{error:?}").contains(SECRET), "nothing the provider said is kept");
    }
}

pub(crate) async fn garbage_is_malformed_and_the_text_before_it_is_kept<D: Dialect>() {
    for broken in [&b"{"[..], b"nonsense", b"{\"x\":\"\xC3\x28\"}", b"\xFF\xFE"] {
        let script = after_text::<D>([Step::Data(D::broken(broken)), Step::Hang]);
        let (chunks, error) = outcome_of::<D>(script).await;
        assert_eq!(text_of(&chunks), "Hel");
        assert!(matches!(error, Some(ProviderError::Malformed(_))), "{broken:?}: {error:?}");
    }
}

pub(crate) async fn an_endless_line_is_refused_at_the_limit<D: Dialect>() {
    let too_large = Some(ProviderError::Malformed("event too large"));
    let line = D::text(&"x".repeat(MAX_EVENT_BYTES));
    let (chunks, error) = outcome_of::<D>(after_text::<D>([Step::Data(line), Step::Hang])).await;
    assert_eq!((text_of(&chunks).as_str(), &error), ("Hel", &too_large));
    let server = ScriptedServer::start(vec![after_text::<D>([Step::Flood])]).await;
    assert_eq!(read(&*D::provider(&server.base_url())).await.1, too_large);
    server.closed_by_client(1).await;
}

pub(crate) async fn silence_ends_at_its_limits_and_closes_the_request<D: Dialect>() {
    let tiny = Duration::from_millis(50);
    let first = GuardLimits { first_byte: tiny, ..GuardLimits::default() };
    for script in [vec![Step::Hang], vec![D::HEAD, Step::Hang], vec![D::HEAD, Step::Data(D::keep_alive()), Step::Hang]]
    {
        let server = ScriptedServer::start(vec![script]).await;
        let guard = Guard::new(D::provider(&server.base_url()), first.clone());
        assert_eq!(read(&guard).await.1, Some(ProviderError::Timeout("first byte")));
        server.closed_by_client(1).await;
    }
    let between = GuardLimits { between_chunks: tiny, ..GuardLimits::default() };
    let server = ScriptedServer::start(vec![after_text::<D>([Step::Hang])]).await;
    let (chunks, error) = read(&Guard::new(D::provider(&server.base_url()), between)).await;
    assert_eq!((text_of(&chunks).as_str(), error), ("Hel", Some(ProviderError::Timeout("between chunks"))));
    server.closed_by_client(1).await;
}

pub(crate) async fn dropping_the_stream_closes_the_request<D: Dialect>() {
    let server = ScriptedServer::start(vec![after_text::<D>([Step::Hang]), vec![Step::Hang]]).await;
    let provider = D::provider(&server.base_url());
    let mut stream = provider.generate(prompt()).await.expect("accepted");
    while stream.next().await.expect("open").expect("chunk") != text("Hel") {}
    drop(stream);
    server.closed_by_client(1).await;
    // And before the head has come.
    let waiting = tokio::time::timeout(Duration::from_millis(50), provider.generate(prompt())).await;
    assert!(waiting.is_err());
    server.closed_by_client(2).await;
}

pub(crate) async fn a_refusal_is_typed_and_its_body_thrown_away<D: Dialect>() {
    let refused = |head| vec![Step::Head(head), Step::Data(SECRET.as_bytes().to_vec()), Step::End];
    for (head, status, seconds) in [
        ("429 Too Many Requests\r\nretry-after: 7", 429, Some(7)),
        ("503 Service Unavailable", 503, None),
        ("401 Unauthorized", 401, None),
        ("204 No Content", 204, None),
    ] {
        let (_, error) = outcome_of::<D>(refused(head)).await;
        let retry_after = seconds.map(Duration::from_secs);
        assert_eq!(error, Some(ProviderError::Status { status, retry_after }), "{head}");
    }
    let server = ScriptedServer::start(vec![vec![Step::Head("500 Internal Server Error"), Step::Flood]]).await;
    let (_, error) = read(&*D::provider(&server.base_url())).await;
    assert_eq!(error, Some(ProviderError::Status { status: 500, retry_after: None }));
    server.closed_by_client(1).await;
}

pub(crate) async fn another_content_type_is_malformed<D: Dialect>() {
    for head in ["200 OK\r\ncontent-type: application/json", "200 OK\r\ncontent-type: text/html", "200 OK"] {
        let (_, error) = outcome_of::<D>(vec![Step::Head(head), Step::Data(D::text("Hel")), Step::Hang]).await;
        assert!(matches!(error, Some(ProviderError::Malformed(_))), "{head}: {error:?}");
    }
}

pub(crate) async fn a_redirect_is_not_followed<D: Dialect>() {
    let other = ScriptedServer::start(vec![complete::<D>()]).await;
    let head = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{}/v1\r\ncontent-length: 0\r\n\r\n",
        other.address()
    );
    let server = ScriptedServer::start(vec![vec![Step::Raw(head.into_bytes())]]).await;
    let (_, error) = read(&*D::provider(&server.base_url())).await;
    assert_eq!(error, Some(ProviderError::Status { status: 307, retry_after: None }));
    assert_eq!(other.connections(), 0, "the key goes nowhere else");
}

pub(crate) async fn a_trace_is_told_to_the_service_and_none_is_made_up<D: Dialect>() {
    let server = ScriptedServer::start(vec![complete::<D>(), complete::<D>()]).await;
    let provider = D::provider(&server.base_url());
    let trace = TraceContext::random(true);
    for trace in [Some(trace), None] {
        let mut stream = provider.generate(Prompt { trace, ..prompt() }).await.expect("accepted");
        while stream.next().await.is_some() {}
    }
    let told = server.received().iter().map(|request| request.head.contains(TRACEPARENT)).collect::<Vec<_>>();
    assert_eq!(told, [true, false]);
    assert!(
        server.received()[0].head.contains(&format!("{TRACEPARENT}: {trace}\r\n")),
        "{}",
        server.received()[0].head
    );
}

pub(crate) async fn only_what_may_pass_is_tried_again<D: Dialect>() {
    let quick = GuardLimits { backoff: Duration::from_millis(1), ..GuardLimits::default() };
    let busy = || vec![Step::Head("429 Too Many Requests\r\nretry-after: 0"), Step::End];
    let server = ScriptedServer::start(vec![busy(), vec![Step::Reset], complete::<D>()]).await;
    let guard = Guard::new(D::provider(&server.base_url()), quick.clone());
    assert_eq!(read(&guard).await, (complete_chunks::<D>(), None));
    assert_eq!(server.received().len(), 3);

    let bad =
        vec![Step::Head("400 Bad Request"), Step::Data(b"{\"error\":\"timeout, try again\"}".to_vec()), Step::End];
    for script in [bad, after_text::<D>([Step::Close])] {
        let server = ScriptedServer::start(vec![script, complete::<D>()]).await;
        let guard = Guard::new(D::provider(&server.base_url()), quick.clone());
        assert!(read(&guard).await.1.is_some());
        assert_eq!(server.received().len(), 1);
    }
}

/// Stamps the suite for a [`Dialect`].
macro_rules! provider_conformance {
    ($dialect:ty) => {
        $crate::llm::conformance::provider_conformance!($dialect:
            a_complete_answer_arrives_and_the_question_goes_out_as_written,
            splitting_the_stream_at_every_byte_changes_nothing,
            line_ends_comments_and_data_on_several_lines_change_nothing,
            keep_alives_are_not_text,
            an_end_without_marker_is_truncated,
            a_broken_connection_is_a_connection_error,
            a_port_nobody_listens_on_is_a_connection_error,
            an_error_event_is_an_error_first_and_later,
            garbage_is_malformed_and_the_text_before_it_is_kept,
            an_endless_line_is_refused_at_the_limit,
            silence_ends_at_its_limits_and_closes_the_request,
            dropping_the_stream_closes_the_request,
            a_refusal_is_typed_and_its_body_thrown_away,
            another_content_type_is_malformed,
            a_redirect_is_not_followed,
            a_trace_is_told_to_the_service_and_none_is_made_up,
            only_what_may_pass_is_tried_again,
        );
    };
    ($dialect:ty: $($test:ident),* $(,)?) => {
        $(#[tokio::test]
        async fn $test() {
            $crate::llm::conformance::$test::<$dialect>().await;
        })*
    };
}
pub(crate) use provider_conformance;

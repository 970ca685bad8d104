use std::sync::Arc;

use super::*;
use crate::llm::dify::stop::Stops;
use crate::llm::http::{Access, client};
use crate::llm::sse::SseDecoder;

fn decoder(out: &mut VecDeque<Chunk>) -> ReplyDecoder {
    let url = Access::new("http://127.0.0.1:1/v1").endpoint("chat-messages").expect("URL");
    let client = client(&url, std::time::Duration::from_secs(1)).expect("client");
    let stops = Arc::new(Stops::new(client, url, reqwest::header::HeaderMap::new()));
    // Outside of a runtime nothing is called.
    ReplyDecoder::new(None, stops.handle("u"), out)
}

/// What a stream of these bytes gives, and how it ends. Signs of life are left out.
fn decode(stream: &str) -> (Vec<Chunk>, Result<Progress, ProviderError>) {
    let mut input = bytes::Bytes::from(stream.to_owned());
    let (mut sse, mut out) = (SseDecoder::default(), VecDeque::new());
    let mut decoder = decoder(&mut out);
    let ended = loop {
        let Some(event) = sse.decode(&mut input).expect("small") else { break decoder.end(&mut out) };
        match decoder.event(&event, &mut out) {
            Ok(Progress::More) => {}
            ended => break ended,
        }
    };
    out.retain(|chunk| *chunk != Chunk::Reasoning);
    (out.into(), ended)
}

fn events(list: &[&str]) -> (Vec<Chunk>, Result<Progress, ProviderError>) {
    decode(&list.iter().map(|data| format!("data: {data}\n\n")).collect::<String>())
}

fn text(text: &str) -> Chunk {
    Chunk::Text(text.to_owned())
}

/// As the service writes it, for an application with a workflow.
const CHATFLOW: &str = r#"data: {"event": "workflow_started", "conversation_id": "45701982-8118-4bc5-8e9b-64562b4555f2", "message_id": "9da23599-e713-473b-982c-4328d4f5c78a", "created_at": 1705398420, "task_id": "5ad4cb98-f0c7-4085-b384-88c403be6290", "workflow_run_id": "5ad498-f0c7-4085-b384-88cbe6290", "data": {"id": "5ad498-f0c7-4085-b384-88cbe6290", "workflow_id": "dfjasklfjdslag", "inputs": {"sys.query": "text of the user"}, "created_at": 1679586595}}

data: {"event": "node_started", "task_id": "5ad4cb98-f0c7-4085-b384-88c403be6290", "workflow_run_id": "5ad498", "data": {"id": "5ad498", "node_id": "dfjasklfjdslag", "node_type": "start", "title": "Start", "index": 0, "predecessor_node_id": "fdljewklfklgejlglsd", "inputs": {}, "created_at": 1679586595}}

event: ping

data: {"event": "node_finished", "task_id": "5ad4cb98-f0c7-4085-b384-88c403be6290", "workflow_run_id": "5ad498", "data": {"id": "5ad498", "node_type": "llm", "outputs": {"text": "not for the reader"}, "status": "succeeded", "elapsed_time": 0.324}}

data: {"event": "message", "message_id": "9da23599-e713-473b-982c-4328d4f5c78a", "conversation_id": "45701982-8118-4bc5-8e9b-64562b4555f2", "task_id": "5ad4cb98-f0c7-4085-b384-88c403be6290", "answer": "Hi", "created_at": 1679586595, "from_variable_selector": ["llm", "text"]}

data: {"event": "message", "message_id": "9da23599-e713-473b-982c-4328d4f5c78a", "conversation_id": "45701982-8118-4bc5-8e9b-64562b4555f2", "answer": " \u00fc", "created_at": 1679586595}

data: {"event": "message", "answer": ""}

data: {"event": "workflow_finished", "task_id": "5ad4cb98-f0c7-4085-b384-88c403be6290", "workflow_run_id": "5ad498", "data": {"id": "5ad498", "outputs": {"answer": "Hi"}, "status": "succeeded", "elapsed_time": 0.324, "total_tokens": 63127864, "total_steps": "1", "finished_at": 1679976595}}

data: {"event": "message_end", "task_id": "900bbd43-dc0b-4383-a372-aa6e6c414227", "message_id": "663c5084-a254-4040-8ad3-51f2a3c1a77c", "conversation_id": "45701982-8118-4bc5-8e9b-64562b4555f2", "metadata": {"usage": {"prompt_tokens": 1033, "prompt_unit_price": "0.001", "prompt_price_unit": "0.001", "prompt_price": "0.0010330", "completion_tokens": 135, "completion_unit_price": "0.002", "completion_price": "0.0002700", "total_tokens": 1168, "total_price": "0.0013030", "currency": "USD", "latency": 1.381760165997548}, "retriever_resources": [{"position": 1, "content": "text of a document"}]}}

data: {"event": "tts_message_end", "conversation_id": "23dd85f3-1a41-4ea0-b7a9-062734ccfaf9", "audio": ""}

"#;

const HI: &str = r#"{"event":"message","task_id":"t-1","answer":"Hi"}"#;
const END: &str = r#"{"event":"message_end","metadata":{"usage":{"prompt_tokens":9,"completion_tokens":2}}}"#;
const USAGE: Chunk = Chunk::Usage(Usage { prompt_tokens: 9, completion_tokens: 2, cached_tokens: 0, estimated: false });

#[test]
fn a_whole_answer_gives_ids_text_usage_and_end_in_this_order() {
    let usage = Usage { prompt_tokens: 1_033, completion_tokens: 135, cached_tokens: 0, estimated: false };
    let expect = vec![
        Chunk::RequestId("9da23599-e713-473b-982c-4328d4f5c78a".to_owned()),
        Chunk::Conversation("45701982-8118-4bc5-8e9b-64562b4555f2".to_owned()),
        text("Hi"),
        text(" ü"),
        Chunk::Usage(usage),
        Chunk::Finished(FinishReason::Stop),
    ];
    assert_eq!(decode(CHATFLOW), (expect, Ok(Progress::Done)));
}

#[test]
fn an_agent_answers_like_a_chat_and_its_thoughts_are_not_text() {
    let thought = r#"{"event":"agent_thought","id":"8d","task_id":"t-1","position":1,"thought":"secret","observation":"","tool":"dalle2","tool_input":"{}","message_files":[]}"#;
    let file = r#"{"event":"message_file","id":"d7","type":"image","belongs_to":"assistant","url":"https://files.test/x","conversation_id":"c-1"}"#;
    let said = r#"{"event":"agent_message","task_id":"t-1","answer":"Hi"}"#;
    let sound = r#"{"event":"tts_message","task_id":"t-1","audio":"qqqq"}"#;
    let (chunks, ended) = events(&[thought, file, said, sound, END]);
    let expect = [Chunk::Conversation("c-1".to_owned()), text("Hi"), USAGE, Chunk::Finished(FinishReason::Stop)];
    assert_eq!((chunks.as_slice(), ended), (&expect[..], Ok(Progress::Done)));
}

#[test]
fn without_a_message_end_the_answer_is_truncated() {
    for list in [&[HI][..], &[], &[r#"{"event":"workflow_finished","data":{"status":"succeeded"}}"#]] {
        assert_eq!(events(list).1, Err(ProviderError::Truncated), "{list:?}");
    }
}

#[test]
fn a_replacement_withholds_the_rest_and_is_the_text_when_there_was_none() {
    let replace = r#"{"event":"message_replace","answer":"I cannot say that."}"#;
    let filtered = Chunk::Finished(FinishReason::Filtered);
    let after = events(&[HI, replace, HI, END]);
    assert_eq!(after, (vec![text("Hi"), USAGE, filtered.clone()], Ok(Progress::Done)));
    let first = events(&[replace, HI, END]);
    assert_eq!(first, (vec![text("I cannot say that."), USAGE, filtered.clone()], Ok(Progress::Done)));
    let without_end = events(&[HI, replace]);
    assert_eq!(without_end, (vec![text("Hi"), filtered], Ok(Progress::Done)));
}

#[test]
fn errors_are_named_by_a_known_code_or_a_status_and_those_that_pass_are_told_apart() {
    for (data, expect) in [
        (
            r#"{"event":"error","status":400,"code":"provider_quota_exceeded","message":"secret"}"#,
            "provider_quota_exceeded",
        ),
        (r#"{"event":"error","status":502,"code":"sk-1234","message":"secret"}"#, "502"),
        (r#"{"event":"error","status":"x","message":"secret"}"#, "unnamed"),
        (r#"{"event":"error"}"#, "unnamed"),
        (r#"{"event":"workflow_finished","data":{"status":"failed","error":"secret"}}"#, "workflow_failed"),
        (r#"{"event":"workflow_finished","data":{"status":"stopped"}}"#, "workflow_stopped"),
    ] {
        assert_eq!(events(&[HI, data, END]).1, Err(ProviderError::Event(expect.to_owned())), "{data}");
    }
    for (data, expect) in [
        (r#"{"event":"error","status":429,"code":"rate_limit_error"}"#, "rate_limit_error"),
        (r#"{"event":"error","status":429,"code":"x"}"#, "429"),
    ] {
        assert_eq!(events(&[data]).1, Err(ProviderError::Overloaded(expect)), "{data}");
    }
}

#[test]
fn unknown_events_and_other_shapes_of_their_data_are_not_errors() {
    for data in [
        r#"{"event":"later","data":"text","status":"x"}"#,
        r#"{"event":"workflow_finished","data":[]}"#,
        r#"{"event":"workflow_finished"}"#,
        r#"{"event":"node_finished","data":{"status":"failed"}}"#,
        r#"{"event":"message","answer":null,"task_id":null,"conversation_id":""}"#,
        r#"{"event":"message_end_soon","metadata":null}"#,
        r#"{"event":"ping"}"#,
        " ",
    ] {
        assert_eq!(events(&[data, END]).0, [USAGE, Chunk::Finished(FinishReason::Stop)], "{data}");
    }
    for end in [r#"{"event":"message_end"}"#, r#"{"event":"message_end","metadata":{"usage":null}}"#] {
        assert_eq!(events(&[end]).0, [Chunk::Finished(FinishReason::Stop)], "{end}");
    }
}

#[test]
fn garbage_is_malformed_and_never_a_panic() {
    for data in ["{", "null", "17", "[]", "{}", r#"{"event":7}"#, r#"{"event":"message","answer":7}"#] {
        assert!(matches!(events(&[data]).1, Err(ProviderError::Malformed(_))), "{data}");
    }
}

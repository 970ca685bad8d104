use super::*;
use crate::llm::sse::SseDecoder;

/// What a stream of these bytes gives, and how it ends.
fn decode(stream: &str) -> (Vec<Chunk>, Result<Progress, ProviderError>) {
    let mut input = bytes::Bytes::from(stream.to_owned());
    let (mut sse, mut out) = (SseDecoder::default(), VecDeque::new());
    let mut decoder = ReplyDecoder::new(None, &mut out);
    while let Some(event) = sse.decode(&mut input).expect("small") {
        match decoder.event(&event, &mut out) {
            Ok(Progress::More) => {}
            ended => return (out.into(), ended),
        }
    }
    let ended = decoder.end(&mut out);
    (out.into(), ended)
}

fn events(list: &[&str]) -> (Vec<Chunk>, Result<Progress, ProviderError>) {
    decode(&list.iter().map(|data| format!("data: {data}\n\n")).collect::<String>())
}

fn text(text: &str) -> Chunk {
    Chunk::Text(text.to_owned())
}

/// As the service writes it.
const BASIC: &str = r#"event: message_start
data: {"type": "message_start", "message": {"id": "msg_1nZdL29xx5MUA1yADyHTEsnR8uuvGzszyY", "type": "message", "role": "assistant", "content": [], "model": "claude-opus-4-6", "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 25, "output_tokens": 1}}}

event: content_block_start
data: {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}

event: ping
data: {"type": "ping"}

event: content_block_delta
data: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}

event: content_block_delta
data: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "!\n\u00fc"}}

event: content_block_stop
data: {"type": "content_block_stop", "index": 0}

event: message_delta
data: {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence":null}, "usage": {"output_tokens": 15}}

event: message_stop
data: {"type": "message_stop"}

"#;

/// As the service writes it: thoughts, a search of its own with a cached prompt, then the answer.
const THINKING: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_01","type":"message","role":"assistant","model":"claude-opus-4-6","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":2679,"cache_creation_input_tokens":100,"cache_read_input_tokens":2000,"output_tokens":3}}}

event: content_block_start
data: {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}

event: content_block_delta
data: {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "I need to find the GCD"}}

event: content_block_delta
data: {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk"}}

event: content_block_stop
data: {"type": "content_block_stop", "index": 0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"server_tool_use","id":"srvtoolu_01","name":"web_search","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"query\": \"weather\"}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: content_block_start
data: {"type":"content_block_start","index":2,"content_block":{"type":"web_search_tool_result","tool_use_id":"srvtoolu_01","content":[{"type":"web_search_result","title":"Weather","url":"https://weather.test"}]}}

event: content_block_start
data: {"type":"content_block_start","index":3,"content_block":{"citations":[],"type":"text","text":"The"}}

event: content_block_delta
data: {"type":"content_block_delta","index":3,"delta":{"type":"citations_delta","citation":{"type":"web_search_result_location","cited_text":"text of others"}}}

event: content_block_delta
data: {"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":" answer"}}

event: content_block_stop
data: {"type":"content_block_stop","index":3}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"input_tokens":10682,"cache_creation_input_tokens":0,"cache_read_input_tokens":2000,"output_tokens":510,"server_tool_use":{"web_search_requests":1}}}

event: message_stop
data: {"type":"message_stop"}

"#;

const STOP: &str = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null}}"#;
const END: &str = r#"{"type":"message_stop"}"#;
const HEL: &str = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}"#;

#[test]
fn a_whole_answer_gives_id_text_usage_and_end_in_this_order() {
    let usage = Usage { prompt_tokens: 25, completion_tokens: 15, cached_tokens: 0, estimated: false };
    let expect = [
        Chunk::RequestId("msg_1nZdL29xx5MUA1yADyHTEsnR8uuvGzszyY".to_owned()),
        text("Hello"),
        text("!\nü"),
        Chunk::Usage(usage),
        Chunk::Finished(FinishReason::Stop),
    ];
    assert_eq!(decode(BASIC), (expect.to_vec(), Ok(Progress::Done)));
    let without_names: String =
        BASIC.lines().filter(|line| !line.starts_with("event")).flat_map(|l| [l, "\n"]).collect();
    assert_eq!(decode(&without_names).0, expect);
}

#[test]
fn thoughts_tools_and_citations_are_not_text_and_the_whole_prompt_is_counted() {
    let (chunks, ended) = decode(THINKING);
    let texts: Vec<_> = chunks.iter().filter(|chunk| matches!(chunk, Chunk::Text(_))).collect();
    assert_eq!((texts, ended), (vec![&text("The"), &text(" answer")], Ok(Progress::Done)));
    assert_eq!(chunks.iter().filter(|chunk| **chunk == Chunk::Reasoning).count(), 7);
    // 10,682 read anew and 2,000 from the cache; what the first event said of writing there is taken back.
    let usage = Usage { prompt_tokens: 12_682, completion_tokens: 510, cached_tokens: 2_000, estimated: false };
    assert_eq!(chunks[chunks.len() - 2..], [Chunk::Usage(usage), Chunk::Finished(FinishReason::Stop)]);
}

#[test]
fn stop_reasons_are_mapped() {
    for (reason, expect) in [
        ("end_turn", FinishReason::Stop),
        ("stop_sequence", FinishReason::Stop),
        ("tool_use", FinishReason::Stop),
        ("not_known_yet", FinishReason::Stop),
        ("max_tokens", FinishReason::Length),
        ("model_context_window_exceeded", FinishReason::Length),
        ("pause_turn", FinishReason::Length),
        ("refusal", FinishReason::Filtered),
    ] {
        let event = format!(r#"{{"type":"message_delta","delta":{{"stop_reason":"{reason}"}}}}"#);
        assert_eq!(events(&[&event, END]).0, [Chunk::Finished(expect)], "{reason}");
    }
}

#[test]
fn without_a_stop_reason_the_answer_is_truncated_and_with_one_it_is_complete() {
    for list in [&[HEL][..], &[HEL, END], &[], &[r#"{"type":"message_delta","delta":{"stop_reason":null}}"#, END]] {
        assert_eq!(events(list).1, Err(ProviderError::Truncated), "{list:?}");
    }
    assert_eq!(events(&[HEL, STOP]), (vec![text("Hel"), Chunk::Finished(FinishReason::Stop)], Ok(Progress::Done)));
}

#[test]
fn errors_are_named_by_a_known_name_and_those_that_pass_are_told_apart() {
    let error =
        |kind: &str| format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"secret"}},"request_id":"r"}}"#);
    for (kind, expect) in [
        ("overloaded_error", ProviderError::Overloaded("overloaded_error")),
        ("rate_limit_error", ProviderError::Overloaded("rate_limit_error")),
        ("api_error", ProviderError::Event("api_error".to_owned())),
        ("sk-1234", ProviderError::Event("unnamed".to_owned())),
    ] {
        assert_eq!(events(&[HEL, &error(kind), STOP]).1, Err(expect), "{kind}");
    }
    for data in [r#"{"type":"error"}"#, r#"{"type":"error","error":null}"#] {
        assert_eq!(events(&[data]).1, Err(ProviderError::Event("unnamed".to_owned())));
    }
    for data in ["not json", r#"{"type":"later"}"#, "[]"] {
        let ended = decode(&format!("event: error\ndata: {data}\n\n")).1;
        assert_eq!(ended, Err(ProviderError::Event("unnamed".to_owned())), "{data}");
    }
}

#[test]
fn unknown_events_and_absent_fields_are_not_errors() {
    for data in [
        r#"{"type":"later","index":"x"}"#,
        r#"{"type":"message_start"}"#,
        r#"{"type":"message_start","message":{"id":null,"usage":null}}"#,
        r#"{"type":"content_block_start","content_block":{"type":"later"}}"#,
        r#"{"type":"content_block_delta","delta":{"type":"text_delta"}}"#,
        r#"{"type":"content_block_delta"}"#,
        r#"{"type":"message_delta","usage":{"output_tokens":null}}"#,
        " ",
    ] {
        assert_eq!(events(&[data, STOP, END]).0.last(), Some(&Chunk::Finished(FinishReason::Stop)), "{data}");
    }
}

#[test]
fn garbage_is_malformed_and_never_a_panic() {
    for data in [
        "{",
        "null",
        "17",
        "[]",
        "{}",
        r#"{"type":7}"#,
        r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":7}}"#,
        r#"{"type":"message_delta","usage":{"output_tokens":-1}}"#,
    ] {
        assert!(matches!(events(&[data]).1, Err(ProviderError::Malformed(_))), "{data}");
    }
}

#[test]
fn the_request_id_of_the_head_wins() {
    let mut out = VecDeque::new();
    let mut decoder = ReplyDecoder::new(Some("req_011"), &mut out);
    let start = r#"{"type":"message_start","message":{"id":"msg_1"}}"#;
    let event = SseEvent { data: start.into(), ..SseEvent::default() };
    decoder.event(&event, &mut out).expect("event");
    assert_eq!(Vec::from(out), [Chunk::RequestId("req_011".to_owned())]);
}

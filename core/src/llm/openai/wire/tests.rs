use super::*;

fn event(data: &str) -> SseEvent {
    SseEvent { data: data.to_owned().into(), ..SseEvent::default() }
}

/// What a stream of these events gives, and how it ends.
fn decode(events: &[&str]) -> (Vec<Chunk>, Result<Progress, ProviderError>) {
    let mut out = VecDeque::new();
    let mut decoder = ReplyDecoder::new(None, &mut out);
    for data in events {
        match decoder.event(&event(data), &mut out) {
            Ok(Progress::More) => {}
            ended => return (out.into(), ended),
        }
    }
    let ended = decoder.end(&mut out);
    (out.into(), ended)
}

fn text(text: &str) -> Chunk {
    Chunk::Text(text.to_owned())
}

const HELLO: &str =
    r#"{"id":"c-1","choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"},"finish_reason":null}]}"#;
const LO: &str = r#"{"choices":[{"delta":{"content":"lo \u00fc\n"}}]}"#;
const STOP: &str = r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":null}"#;
const USAGE: &str =
    r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}"#;

#[test]
fn a_whole_answer_gives_id_text_usage_and_end_in_this_order() {
    let usage = Usage { prompt_tokens: 9, completion_tokens: 2, cached_tokens: 4, estimated: false };
    let expect = [
        Chunk::RequestId("c-1".to_owned()),
        text("Hel"),
        text("lo ü\n"),
        Chunk::Usage(usage),
        Chunk::Finished(FinishReason::Stop),
    ];
    assert_eq!(decode(&[HELLO, LO, STOP, USAGE, "[DONE]"]), (expect.to_vec(), Ok(Progress::Done)));
    assert_eq!(decode(&[HELLO, LO, STOP, USAGE]), (expect.to_vec(), Ok(Progress::Done)), "without [DONE]");
}

#[test]
fn without_a_finish_reason_the_answer_is_truncated_with_and_without_done() {
    for events in [&[HELLO, LO][..], &[HELLO, LO, "[DONE]"], &[HELLO, USAGE, "[DONE]"], &["[DONE]"], &[]] {
        assert_eq!(decode(events).1, Err(ProviderError::Truncated), "{events:?}");
    }
}

#[test]
fn finish_reasons_are_mapped() {
    for (reason, expect) in [
        ("stop", FinishReason::Stop),
        ("eos", FinishReason::Stop),
        ("tool_calls", FinishReason::Stop),
        ("function_call", FinishReason::Stop),
        ("length", FinishReason::Length),
        ("content_filter", FinishReason::Filtered),
    ] {
        let event = format!(r#"{{"choices":[{{"delta":{{}},"finish_reason":"{reason}"}}]}}"#);
        assert_eq!(decode(&[&event]).0, [Chunk::Finished(expect)], "{reason}");
    }
    assert_eq!(
        decode(&[r#"{"choices":[{"delta":{"content":""},"finish_reason":""}]}"#]).1,
        Err(ProviderError::Truncated)
    );
}

#[test]
fn an_aborted_generation_is_an_error_though_done_follows() {
    let aborted = decode(&[HELLO, r#"{"choices":[{"delta":{"content":"!"},"finish_reason":"abort"}]}"#, "[DONE]"]);
    assert_eq!(aborted.0.last(), Some(&text("!")));
    assert_eq!(aborted.1, Err(ProviderError::Event("aborted".to_owned())));
}

#[test]
fn a_refusal_is_text_and_ends_filtered() {
    let refusal = r#"{"choices":[{"delta":{"content":null,"refusal":"I cannot"},"finish_reason":null}]}"#;
    assert_eq!(decode(&[refusal, STOP]).0, [text("I cannot"), Chunk::Finished(FinishReason::Filtered)]);
}

#[test]
fn content_in_parts_is_text_where_it_is_text() {
    let delta = |content: &str| format!(r#"{{"choices":[{{"delta":{{"content":{content}}},"finish_reason":null}}]}}"#);
    let parts = r#"[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]},{"type":"text","text":"a\n"},{"type":"output_text","text":"b"},{"type":"image_url","image_url":{"url":"x"}},{"text":"c"}]"#;
    let said = [text("a\n"), text("b"), text("c"), Chunk::Finished(FinishReason::Stop)];
    assert_eq!(decode(&[&delta(parts), STOP]).0, said);
    let refusal = delta(r#"[{"type":"refusal","refusal":"I cannot"}]"#);
    assert_eq!(decode(&[&refusal, STOP]).0, [text("I cannot"), Chunk::Finished(FinishReason::Filtered)]);
    for empty in ["[]", "null", r#""""#, r#"[{"type":"text","text":""}]"#, r#"[{"type":"text"}]"#] {
        assert_eq!(decode(&[&delta(empty), STOP]).0, [Chunk::Finished(FinishReason::Stop)], "{empty}");
    }
    for wrong in ["7", "{}", "[7]", r#"[{"type":"text","text":7}]"#] {
        assert!(matches!(decode(&[&delta(wrong)]).1, Err(ProviderError::Malformed(_))), "{wrong}");
    }
}

#[test]
fn reasoning_is_a_sign_of_life_and_not_text() {
    for name in ["reasoning_content", "reasoning"] {
        let thinks = format!(r#"{{"choices":[{{"delta":{{"content":null,"{name}":"hm"}}}}]}}"#);
        let speaks = format!(r#"{{"choices":[{{"delta":{{"content":"a","{name}":""}}}}]}}"#);
        let silent = format!(r#"{{"choices":[{{"delta":{{"content":"b","{name}":null}}}}]}}"#);
        let expect = [Chunk::Reasoning, text("a"), text("b"), Chunk::Finished(FinishReason::Stop)];
        assert_eq!(decode(&[&thinks, &speaks, &silent, STOP]).0, expect, "{name}");
    }
}

#[test]
fn overload_is_told_apart_from_other_errors() {
    for (data, expect) in [
        (r#"{"error":{"type":"x","code":"rate_limit_exceeded"}}"#, "rate_limit_exceeded"),
        (r#"{"error":{"type":"overloaded_error"}}"#, "overloaded_error"),
        (r#"{"error":{"type":"x","code":429}}"#, "429"),
        (r#"{"error":{"type":"x","code":503}}"#, "503"),
    ] {
        assert_eq!(decode(&[HELLO, data]).1, Err(ProviderError::Overloaded(expect)), "{data}");
    }
}

#[test]
fn nulls_and_unknown_fields_are_not_errors() {
    for event in [
        r#"{"choices":null}"#,
        r#"{"choices":[{"delta":null,"finish_reason":null}]}"#,
        r#"{"choices":[{"delta":{"content":null,"reasoning_content":"hm","tool_calls":[{"x":1}]},"logprobs":{}}]}"#,
        r#"{"id":null,"object":null,"error":null,"usage":{"prompt_tokens":null}}"#,
        r#"{"prompt_filter_results":[{}],"choices":[]}"#,
        "{}",
        "",
        " ",
    ] {
        assert_eq!(decode(&[event, STOP]).0.last(), Some(&Chunk::Finished(FinishReason::Stop)), "{event}");
    }
}

#[test]
fn garbage_is_malformed_and_never_a_panic() {
    for data in
        ["{", "null", "17", "[]", "[DONE", "{\"choices\":{}}", "{\"choices\":[{\"delta\":{\"content\":7}}]}", "\u{0}"]
    {
        assert!(matches!(decode(&[data]).1, Err(ProviderError::Malformed(_))), "{data}");
    }
    let mut bytes = event(HELLO);
    bytes.data = [&b"{\"x\":\"\xC3\"}"[..]].concat().into();
    let decoded = ReplyDecoder::default().event(&bytes, &mut VecDeque::new());
    assert_eq!(decoded, Err(ProviderError::Malformed("event is not UTF-8")));
}

#[test]
fn error_events_are_named_by_a_known_name_or_a_number_and_nothing_else() {
    for (data, expect) in [
        (r#"{"error":{"message":"secret","type":"server_error","code":null}}"#, "server_error"),
        (r#"{"error":{"message":"secret","type":"x","code":"insufficient_quota"}}"#, "insufficient_quota"),
        (r#"{"error":{"message":"secret","type":"sk-1234","code":502}}"#, "502"),
        (r#"{"error":{"message":"secret","type":["secret"],"code":{"a":1}}}"#, "unnamed"),
        (r#"{"error":{"message":"secret","code":"sk-1234"}}"#, "unnamed"),
        (r#"{"error":"secret"}"#, "unnamed"),
        (r#"{"object":"error","message":"secret","type":"BadRequestError","code":400}"#, "unnamed"),
    ] {
        assert_eq!(decode(&[HELLO, data, STOP]).1, Err(ProviderError::Event(expect.to_owned())), "{data}");
    }
    let named = SseEvent { name: "error".into(), data: "not json".into(), ..SseEvent::default() };
    let decoded = ReplyDecoder::default().event(&named, &mut VecDeque::new());
    assert_eq!(decoded, Err(ProviderError::Event("unnamed".to_owned())));
}

#[test]
fn a_filter_that_strikes_as_an_error_is_filtered() {
    let data = r#"{"error":{"message":"x","type":null,"code":"content_filter"}}"#;
    assert_eq!(decode(&[HELLO, data]).0.last(), Some(&Chunk::Finished(FinishReason::Filtered)));
}

#[test]
fn running_totals_count_once() {
    let total = |n: u64| {
        format!(
            r#"{{"choices":[{{"delta":{{"content":"x"}}}}],"usage":{{"prompt_tokens":1,"completion_tokens":{n}}}}}"#
        )
    };
    let (chunks, _) = decode(&[&total(1), &total(2), STOP]);
    let usages: Vec<_> = chunks.iter().filter(|chunk| matches!(chunk, Chunk::Usage(_))).collect();
    assert_eq!(usages, [&Chunk::Usage(Usage { prompt_tokens: 1, completion_tokens: 2, ..Usage::default() })]);
}

#[test]
fn the_request_id_of_the_head_wins_and_unusable_ids_are_left_out() {
    let mut out = VecDeque::new();
    let mut decoder = ReplyDecoder::new(Some("req-1"), &mut out);
    decoder.event(&event(HELLO), &mut out).expect("event");
    assert_eq!(Vec::from(out), [Chunk::RequestId("req-1".to_owned()), text("Hel")]);
    for id in ["", "a b", "\u{fc}", &"x".repeat(201)] {
        let mut out = VecDeque::new();
        ReplyDecoder::new(Some(id), &mut out);
        assert!(out.is_empty(), "{id}");
    }
}

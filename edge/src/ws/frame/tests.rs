use chatbox_proto::v1::Entry;
use proptest::prelude::*;

use super::*;

fn open(token: &str) -> ChatRequest {
    let open = chat_request::Open { token: token.into(), after_seq: Some(7), ..Default::default() };
    ChatRequest { request_id: "r1".into(), frame: Some(chat_request::Frame::Open(open)) }
}

fn send(text: &str) -> ChatRequest {
    let send = chat_request::Send { client_message_id: "c".into(), text: text.into(), file_ids: Vec::new() };
    ChatRequest { request_id: "r2".into(), frame: Some(chat_request::Frame::Send(send)) }
}

fn written(dialect: Dialect, request: &ChatRequest) -> Bytes {
    match dialect {
        Dialect::Json => json::to_vec(request).into(),
        Dialect::Proto => request.encode_to_vec().into(),
    }
}

#[test]
fn both_dialects_say_the_same() {
    for request in [send("héllo"), send(""), open("")] {
        let [json, proto] = Dialect::ALL.map(|dialect| decode(dialect, written(dialect, &request)).unwrap());
        assert_eq!(json, proto);
        assert_eq!(ChatRequest::decode(json.bytes).unwrap(), request);
    }
}

#[test]
fn a_binary_frame_passes_as_it_is() {
    let mut bytes = send("text").encode_to_vec();
    // A field that this edge does not know.
    bytes.extend([0xf8, 0x07, 0x01]);
    let bytes = Bytes::from(bytes);
    let frame = decode(Dialect::Proto, bytes.clone()).unwrap();
    assert_eq!((frame.kind, frame.bytes), (Kind::Send("c".into()), bytes));
}

#[test]
fn the_token_of_the_first_frame_does_not_travel_in_it() {
    for dialect in Dialect::ALL {
        let frame = decode(dialect, written(dialect, &open("MARKER"))).unwrap();
        assert_eq!(frame.kind, Kind::Open("MARKER".into()));
        assert_eq!(ChatRequest::decode(frame.bytes.clone()).unwrap(), open(""));
        assert!(!format!("{frame:?}").contains("MARKER"));
    }
}

#[test]
fn a_malformed_frame_is_answered_with_its_request_id_and_the_field() {
    for (text, request_id, field) in [
        (r#"{"requestId":"r","send":{"text":5}}"#, "r", "send.text"),
        (r#"{"request_id":"r","read":{"seq":"x"}}"#, "r", "read.seq"),
        (r#"{"requestId":"r"}"#, "r", "frame"),
        (r#"{"requestId":"r","dance":{}}"#, "r", "frame"),
        (r#"{"requestId":5}"#, "", "requestId"),
        ("nonsense", "", "frame"),
        ("[]", "", "frame"),
        ("", "", "frame"),
    ] {
        let malformed = decode(Dialect::Json, Bytes::from_static(text.as_bytes())).unwrap_err();
        assert_eq!(malformed.request_id, request_id, "{text}");
        assert_eq!(malformed.failure.violations[0].0, field, "{text}");
    }
    for bytes in [&[0xff, 0xff][..], &[0x1a, 0x05, 0x0a], &[]] {
        let malformed = decode(Dialect::Proto, Bytes::copy_from_slice(bytes)).unwrap_err();
        assert_eq!(malformed.failure.violations[0].0, "frame");
    }
}

#[test]
fn a_request_id_is_bounded_and_printable() {
    for (request_id, good) in
        [("", true), (&*"x".repeat(64), true), (&*"x".repeat(65), false), ("a b", false), ("a\nb", false), ("é", false)]
    {
        for dialect in Dialect::ALL {
            let request = ChatRequest { request_id: request_id.into(), ..send("t") };
            assert_eq!(decode(dialect, written(dialect, &request)).is_ok(), good, "{request_id}");
        }
    }
}

#[test]
fn events_are_canonical_json_or_the_same_bytes() {
    let event = ChatResponse { event: Some(chat_response::Event::Entry(Entry { seq: 5, ..Default::default() })) };
    let bytes = Bytes::from(event.encode_to_vec());
    assert_eq!(translate(Dialect::Json, bytes.clone()), Ok(Payload::Text(r#"{"entry":{"seq":"5"}}"#.into())));
    assert_eq!(translate(Dialect::Proto, bytes.clone()), Ok(Payload::Binary(bytes)));
    assert!(translate(Dialect::Json, Bytes::from_static(&[0xff])).is_err());
}

#[test]
fn only_codes_that_a_close_frame_may_carry_are_taken() {
    for (code, taken) in [(0, None), (1000, Some(1000)), (1005, None), (1006, None), (4012, Some(4012)), (99_999, None)]
    {
        assert_eq!(close_code(code), taken, "{code}");
    }
}

#[test]
fn each_frame_has_its_kind_in_both_dialects() {
    use chat_request::Frame;
    for (frame, kind) in [
        (Frame::Stop(Default::default()), Kind::Repeatable),
        (Frame::Read(Default::default()), Kind::Repeatable),
        (Frame::Typing(Default::default()), Kind::Typing),
        (Frame::Regenerate(Default::default()), Kind::Other),
        (Frame::SelectModel(Default::default()), Kind::Other),
        (Frame::RequestHelp(Default::default()), Kind::Other),
        (Frame::Detach(Default::default()), Kind::Detach),
        (Frame::EndSession(Default::default()), Kind::EndSession),
    ] {
        let request = ChatRequest { request_id: "r".into(), frame: Some(frame) };
        for dialect in Dialect::ALL {
            assert_eq!(decode(dialect, written(dialect, &request)).unwrap().kind, kind, "{request:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_of_a_stranger_panic(bytes: Vec<u8>) {
        for dialect in Dialect::ALL {
            let _ = decode(dialect, bytes.clone().into());
            let _ = translate(dialect, bytes.clone().into());
        }
        let _ = chatbox_proto::peek::event(&bytes);
    }

    #[test]
    fn any_text_survives_both_dialects(text: String) {
        for dialect in Dialect::ALL {
            let request = send(&text);
            let frame = decode(dialect, written(dialect, &request)).unwrap();
            prop_assert_eq!(ChatRequest::decode(frame.bytes).unwrap(), request);
        }
    }
}

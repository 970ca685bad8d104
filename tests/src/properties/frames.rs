//! Frames and events: JSON and protobuf say the same, and the edge's short look at a payload agrees with reading all of it.

use bytes::Bytes;
use chatbox_core::grpc::check_frame;
use chatbox_edge::probe;
use chatbox_proto::{
    json,
    peek::{self, FrameKind},
    v1::{ChatRequest, ChatResponse, chat_request::Frame, chat_response::Event, entry},
};
use prost::Message as _;
use serde_json::Value;

const MAX_TEXT: usize = 32 << 10;
const MAX_FIELD: usize = 128;

/// A client's frame in both encodings, at the edge and at core.
pub fn client_frame(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    // Whatever core answers: it does answer.
    let _ = check_frame(data, MAX_TEXT);
    let from_proto = read(false, &bytes);
    let from_json = read(true, &bytes);
    if let Ok(request) = ChatRequest::decode(data) {
        peeked_frame(data, &request);
        both_encodings_agree(&request);
    } else {
        assert!(from_proto.as_ref().is_none_or(|taken| taken.bytes == bytes), "the edge passes on what came");
    }
    if let Some(taken) = from_json {
        let request = json::from_slice::<ChatRequest>(data).expect("the edge has read it");
        let passed = ChatRequest::decode(taken.bytes.clone()).expect("the edge writes what decodes");
        assert_eq!(passed, without_token(request.clone()));
        assert_eq!(taken.kind, kind(&request));
        both_encodings_agree(&request);
    }
}

/// What the edge makes of it; what it answers is bounded and shows no more of the stranger's bytes than a request id.
fn read(as_json: bool, bytes: &Bytes) -> Option<probe::Taken> {
    match probe::decode(as_json, bytes.clone()) {
        Ok(taken) => {
            assert!(is_request_id(&taken.request_id), "{:?}", taken.request_id);
            Some(taken)
        }
        Err(refused) => {
            assert!(is_request_id(&refused.request_id), "{:?}", refused.request_id);
            assert_eq!(refused.failure.violations.len(), 1);
            assert!(refused.failure.violations.iter().all(|(field, _)| field.chars().count() <= MAX_FIELD));
            None
        }
    }
}

fn is_request_id(id: &str) -> bool {
    id.len() <= 64 && id.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

fn peeked_frame(data: &[u8], request: &ChatRequest) {
    let peeked = peek::Frame::decode(data).expect("the short look refuses nothing that decodes");
    assert_eq!(peeked.request_id, request.request_id);
    let peeked = peeked.kind.map(|kind| match kind {
        FrameKind::Open(_) => "open",
        FrameKind::RefreshToken(_) => "refresh_token",
        FrameKind::Detach(_) | FrameKind::EndSession(_) => "leave",
        FrameKind::Send(_)
        | FrameKind::Stop(_)
        | FrameKind::Regenerate(_)
        | FrameKind::SelectModel(_)
        | FrameKind::RequestHelp(_)
        | FrameKind::Typing(_)
        | FrameKind::Read(_) => "other",
    });
    assert_eq!(peeked, request.frame.as_ref().map(|_| kind(request)));
}

fn kind(request: &ChatRequest) -> &'static str {
    match &request.frame {
        Some(Frame::Open(_)) => "open",
        Some(Frame::RefreshToken(_)) => "refresh_token",
        Some(Frame::Detach(_) | Frame::EndSession(_)) => "leave",
        Some(_) => "other",
        None => "none",
    }
}

fn without_token(mut request: ChatRequest) -> ChatRequest {
    if let Some(Frame::Open(open)) = &mut request.frame {
        open.token.clear();
    }
    request
}

/// A frame that means something means it in both encodings, and survives both.
fn both_encodings_agree(request: &ChatRequest) {
    let (as_json, as_proto) = (json::to_vec(request), request.encode_to_vec());
    assert_eq!(&json::from_slice::<ChatRequest>(&as_json).expect("our own JSON"), request);
    assert_eq!(&ChatRequest::decode(as_proto.as_slice()).expect("our own protobuf"), request);
    match (probe::decode(true, as_json.into()), probe::decode(false, as_proto.into())) {
        (Ok(one), Ok(other)) => {
            assert_eq!((&one.request_id, one.kind, &one.token), (&other.request_id, other.kind, &other.token));
            let one = ChatRequest::decode(one.bytes).expect("from JSON");
            assert_eq!(one, ChatRequest::decode(other.bytes).expect("from protobuf"));
            assert_eq!(one, without_token(request.clone()));
        }
        (Err(one), Err(other)) => {
            assert_eq!(one.failure, other.failure);
            assert_eq!(one.request_id, other.request_id);
        }
        (one, other) => assert_eq!(one.is_ok(), other.is_ok(), "{one:?} {other:?}"),
    }
}

/// An event on its way from core to a client.
pub fn server_event(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    assert_eq!(probe::translate(false, bytes.clone()).as_ref(), Ok(&bytes), "binary events pass as they are");
    let _ = probe::closes_with(&bytes);
    let translated = probe::translate(true, bytes);
    let Ok(response) = ChatResponse::decode(data) else {
        assert!(translated.is_err());
        return;
    };
    // The short look is for what core encodes.
    let canonical = Bytes::from(response.encode_to_vec());
    peeked_event(peek::event(&canonical), &response);
    let asked = match &response.event {
        Some(Event::Error(error)) => error.close_code,
        Some(Event::GoingAway(going)) => going.close_code,
        _ => 0,
    };
    if let Some(code) = probe::closes_with(&canonical) {
        assert_eq!(u32::from(code), asked);
        assert!(!matches!(code, 0..=999 | 1004..=1006 | 1015..=2999 | 5000..), "{code} is not for an endpoint to send");
    }
    // JSON has no form for some durations.
    let Ok(text) = translated else { return };
    let value: Value = serde_json::from_slice(&text).expect("JSON");
    if !is_foreign(&value) {
        let back: ChatResponse = json::from_slice(&text).expect("our own JSON");
        assert_eq!(json::to_vec(&back), text, "the JSON form is canonical");
    }
}

fn peeked_event(peeked: peek::Event<'_>, response: &ChatResponse) {
    use peek::Event as Short;
    match (peeked, &response.event) {
        (Short::Entry { seq, message }, Some(Event::Entry(full))) => {
            assert_eq!(seq, full.seq);
            if let Some(entry::Kind::Message(full)) = &full.kind {
                let sender = full.sender.as_ref().map_or("", |sender| &sender.user_id);
                let written = peek::written(message.expect("the message is in it"));
                assert_eq!(written, (sender, full.client_message_id.as_str()));
            }
        }
        (Short::Piece { message_id, next_offset }, Some(Event::ReplyDelta(full))) => {
            assert_eq!((message_id, next_offset), (full.message_id.as_str(), full.next_offset));
        }
        (Short::Piece { message_id, next_offset }, Some(Event::ReplySnapshot(full))) => {
            assert_eq!((message_id, next_offset), (full.message_id.as_str(), full.next_offset));
        }
        (Short::Ack { request_id }, Some(Event::Ack(full))) => assert_eq!(request_id, full.request_id),
        (Short::Error { request_id, close_code }, Some(Event::Error(full))) => {
            assert_eq!((request_id, close_code), (full.request_id.as_str(), full.close_code));
        }
        (Short::GoingAway { close_code }, Some(Event::GoingAway(full))) => assert_eq!(close_code, full.close_code),
        (Short::Opened, Some(Event::Opened(_)))
        | (Short::CaughtUp, Some(Event::CaughtUp(_)))
        | (Short::TokenExpiring, Some(Event::TokenExpiring(_)))
        | (Short::Other, None | Some(Event::Typing(_) | Event::Presence(_) | Event::Heartbeat(_) | Event::Help(_))) => {
        }
        (short, full) => unreachable!("{short:?} is not {full:?}"),
    }
}

/// What a sound core of this version does not send and nobody here reads back: enum values that only a newer peer knows, which
/// are written as numbers, and durations of a second and more in their nanoseconds.
fn is_foreign(value: &Value) -> bool {
    const ENUMS: [&str; 8] = ["verdict", "reason", "finishReason", "code", "role", "state", "status", "responder"];
    const DURATIONS: [&str; 2] = ["retryAfter", "estimatedWait"];
    match value {
        Value::Object(fields) => fields.iter().any(|(name, value)| {
            let nameless = value.is_number() && ENUMS.contains(&name.as_str());
            let overlong = DURATIONS.contains(&name.as_str()) && value.as_str().is_some_and(|text| !is_duration(text));
            nameless || overlong || is_foreign(value)
        }),
        Value::Array(items) => items.iter().any(is_foreign),
        _ => false,
    }
}

/// Seconds with 0, 3, 6 or 9 digits after the point.
fn is_duration(text: &str) -> bool {
    let number = text.strip_suffix('s').unwrap_or_default();
    number.split_once('.').is_none_or(|(_, fraction)| [3, 6, 9].contains(&fraction.len()))
}

//! The little that edge needs to know about a payload it forwards: which frame or event it is, seq, offset, request id.
//!
//! These are the messages of `chat.proto` with most fields left out; protobuf decoders skip fields they do not know, so
//! that text is neither copied nor checked. A test compares the tags with the descriptor set.

use prost::Message;

/// A `ChatRequest` without its content.
#[derive(Clone, PartialEq, Message)]
pub struct Frame {
    /// `ChatRequest.request_id`.
    #[prost(string, tag = "1")]
    pub request_id: String,
    /// Which frame.
    #[prost(oneof = "FrameKind", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub kind: Option<FrameKind>,
}

/// Which frame of `ChatRequest`.
#[derive(Clone, PartialEq, prost::Oneof)]
#[expect(missing_docs, reason = "named after the fields of ChatRequest")]
pub enum FrameKind {
    #[prost(message, tag = "2")]
    Open(Nothing),
    #[prost(message, tag = "3")]
    Send(Nothing),
    #[prost(message, tag = "4")]
    Stop(Nothing),
    #[prost(message, tag = "5")]
    Regenerate(Nothing),
    #[prost(message, tag = "6")]
    SelectModel(Nothing),
    #[prost(message, tag = "7")]
    RequestHelp(Nothing),
    #[prost(message, tag = "8")]
    Typing(Nothing),
    #[prost(message, tag = "9")]
    Read(Nothing),
    #[prost(message, tag = "10")]
    RefreshToken(Nothing),
    #[prost(message, tag = "11")]
    Detach(Nothing),
    #[prost(message, tag = "12")]
    EndSession(Nothing),
}

/// Any message, with all its fields skipped.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Nothing {}

/// A `ChatResponse` without its content.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// Which event.
    #[prost(oneof = "EventKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub kind: Option<EventKind>,
}

/// Which event of `ChatResponse`.
#[derive(Clone, PartialEq, prost::Oneof)]
#[expect(missing_docs, reason = "named after the fields of ChatResponse")]
pub enum EventKind {
    #[prost(message, tag = "1")]
    Opened(Nothing),
    #[prost(message, tag = "2")]
    Entry(Numbered),
    #[prost(message, tag = "3")]
    ReplyDelta(Piece),
    #[prost(message, tag = "4")]
    ReplySnapshot(Piece),
    #[prost(message, tag = "5")]
    CaughtUp(Numbered),
    #[prost(message, tag = "6")]
    Typing(Nothing),
    #[prost(message, tag = "7")]
    Presence(Nothing),
    #[prost(message, tag = "8")]
    Heartbeat(Nothing),
    #[prost(message, tag = "9")]
    TokenExpiring(Nothing),
    #[prost(message, tag = "10")]
    Ack(Answer),
    #[prost(message, tag = "11")]
    Error(Answer),
    #[prost(message, tag = "12")]
    GoingAway(Nothing),
}

/// `Entry` or `CaughtUp`: the number of an entry.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Numbered {
    /// The number.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
}

/// `ReplyDelta` or `ReplySnapshot`: how far the client will have the reply.
#[derive(Clone, PartialEq, Message)]
pub struct Piece {
    /// The reply.
    #[prost(string, tag = "1")]
    pub message_id: String,
    /// Where it ends.
    #[prost(uint32, tag = "4")]
    pub next_offset: u32,
}

/// `Ack` or `Error`: which frame is answered.
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    /// The frame.
    #[prost(string, tag = "1")]
    pub request_id: String,
}

#[cfg(test)]
mod tests {
    use prost_types::{DescriptorProto, FileDescriptorSet};

    use super::*;
    use crate::{FILE_DESCRIPTOR_SET, v1};

    fn message<'a>(set: &'a FileDescriptorSet, path: &[&str]) -> &'a DescriptorProto {
        let (first, rest) = path.split_first().unwrap();
        let mut found = set.file.iter().flat_map(|f| &f.message_type).find(|m| m.name() == *first).unwrap();
        for name in rest {
            found = found.nested_type.iter().find(|m| m.name() == *name).unwrap();
        }
        found
    }

    fn tag(set: &FileDescriptorSet, path: &[&str], field: &str) -> i32 {
        message(set, path).field.iter().find(|f| f.name() == field).unwrap().number()
    }

    #[test]
    fn the_tags_are_those_of_the_contract() {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let frames = [
            "open",
            "send",
            "stop",
            "regenerate",
            "select_model",
            "request_help",
            "typing",
            "read",
            "refresh_token",
            "detach",
            "end_session",
        ];
        for (name, expected) in frames.iter().zip(2..) {
            assert_eq!(tag(&set, &["ChatRequest"], name), expected, "{name}");
        }
        let events = [
            "opened",
            "entry",
            "reply_delta",
            "reply_snapshot",
            "caught_up",
            "typing",
            "presence",
            "heartbeat",
            "token_expiring",
            "ack",
            "error",
            "going_away",
        ];
        for (name, expected) in events.iter().zip(1..) {
            assert_eq!(tag(&set, &["ChatResponse"], name), expected, "{name}");
        }
        assert_eq!(message(&set, &["ChatRequest"]).field.len(), frames.len() + 1, "a new frame must be added here");
        assert_eq!(message(&set, &["ChatResponse"]).field.len(), events.len(), "a new event must be added here");
        for (path, field, expected) in [
            (&["ChatRequest"][..], "request_id", 1),
            (&["Entry"], "seq", 1),
            (&["ChatResponse", "CaughtUp"], "seq", 1),
            (&["ChatResponse", "ReplyDelta"], "message_id", 1),
            (&["ChatResponse", "ReplyDelta"], "next_offset", 4),
            (&["ChatResponse", "ReplySnapshot"], "message_id", 1),
            (&["ChatResponse", "ReplySnapshot"], "next_offset", 4),
            (&["ChatResponse", "Ack"], "request_id", 1),
            (&["Error"], "request_id", 1),
        ] {
            assert_eq!(tag(&set, path, field), expected, "{path:?}.{field}");
        }
    }

    #[test]
    fn content_is_skipped() {
        let delta = v1::chat_response::ReplyDelta {
            message_id: "m".into(),
            started_seq: 2,
            offset: 3,
            next_offset: 8,
            text: "hello".into(),
        };
        let event = v1::ChatResponse { event: Some(v1::chat_response::Event::ReplyDelta(delta)) };
        let peeked = Event::decode(event.encode_to_vec().as_slice()).unwrap();
        assert_eq!(peeked.kind, Some(EventKind::ReplyDelta(Piece { message_id: "m".into(), next_offset: 8 })));
    }
}

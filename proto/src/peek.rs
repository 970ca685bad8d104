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
    Send(Written),
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

/// A `Send` without its text.
#[derive(Clone, PartialEq, Message)]
pub struct Written {
    /// `Send.client_message_id`.
    #[prost(string, tag = "1")]
    pub client_message_id: String,
}

/// Any message, with all its fields skipped.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Nothing {}

/// What passes from core to a client, borrowed from the payload: nothing is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The stream is attached; decode it, there is one per stream.
    Opened,
    /// A durable fact.
    Entry {
        /// Its number.
        seq: u64,
        /// The encoded `Message`, when it is one; see [`written`].
        message: Option<&'a [u8]>,
    },
    /// A delta or a snapshot: how far the client will have the reply.
    Piece {
        /// The reply.
        message_id: &'a str,
        /// Where the piece ends.
        next_offset: u32,
    },
    /// Everything up to the head at the time of `open` was sent.
    CaughtUp,
    /// The token will expire.
    TokenExpiring,
    /// A frame was carried out.
    Ack {
        /// The frame.
        request_id: &'a str,
    },
    /// A frame failed, or the connection ends.
    Error {
        /// The frame; empty: none in particular.
        request_id: &'a str,
        /// Non-zero: the connection ends with it.
        close_code: u32,
    },
    /// The server is leaving.
    GoingAway {
        /// The close code that follows.
        close_code: u32,
    },
    /// A heartbeat, `typing`, `presence`, or an event of a newer contract: it passes as it is.
    Other,
}

/// Looks at an event. `ChatResponse` has one field, so the first one tells which it is.
#[must_use]
pub fn event(payload: &[u8]) -> Event<'_> {
    let Some((tag, Value::Bytes(content))) = Fields(payload).next() else { return Event::Other };
    match tag {
        1 => Event::Opened,
        2 => Event::Entry {
            seq: Fields(content).number(1),
            message: Fields(content).find_map(|(tag, value)| match value {
                Value::Bytes(message) if tag == 3 => Some(message),
                Value::Bytes(_) | Value::Number(_) | Value::Skipped => None,
            }),
        },
        3 | 4 => Event::Piece { message_id: Fields(content).text(1), next_offset: Fields(content).small_number(4) },
        5 => Event::CaughtUp,
        9 => Event::TokenExpiring,
        10 => Event::Ack { request_id: Fields(content).text(1) },
        11 => Event::Error { request_id: Fields(content).text(1), close_code: Fields(content).small_number(8) },
        12 => Event::GoingAway { close_code: Fields(content).small_number(3) },
        _ => Event::Other,
    }
}

/// Who wrote a `Message`, and the id they gave it: user id and client message id.
#[must_use]
pub fn written(message: &[u8]) -> (&str, &str) {
    let sender = Fields(message).find_map(|(tag, value)| match value {
        Value::Bytes(sender) if tag == 3 => Some(sender),
        Value::Bytes(_) | Value::Number(_) | Value::Skipped => None,
    });
    (sender.map_or("", |sender| Fields(sender).text(2)), Fields(message).text(6))
}

/// The fields of an encoded message, one by one. What is not well formed ends it: core encodes, and whoever decodes the
/// whole message notices.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Skipped,
}

impl<'a> Fields<'a> {
    fn text(mut self, wanted: u32) -> &'a str {
        let found = self.find_map(|(tag, value)| match value {
            Value::Bytes(text) if tag == wanted => Some(text),
            Value::Bytes(_) | Value::Number(_) | Value::Skipped => None,
        });
        found.and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
    }

    fn number(mut self, wanted: u32) -> u64 {
        let found = self.find_map(|(tag, value)| match value {
            Value::Number(number) if tag == wanted => Some(number),
            Value::Bytes(_) | Value::Number(_) | Value::Skipped => None,
        });
        found.unwrap_or_default()
    }

    fn small_number(self, wanted: u32) -> u32 {
        u32::try_from(self.number(wanted)).unwrap_or_default()
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Skipped)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Skipped)?,
            _ => return None,
        };
        Some((u32::try_from(key >> 3).ok()?, value))
    }
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
            "help",
        ];
        for (name, expected) in events.iter().zip(1..) {
            assert_eq!(tag(&set, &["ChatResponse"], name), expected, "{name}");
        }
        assert_eq!(message(&set, &["ChatRequest"]).field.len(), frames.len() + 1, "a new frame must be added here");
        assert_eq!(message(&set, &["ChatResponse"]).field.len(), events.len(), "a new event must be added here");
        for (path, field, expected) in [
            (&["ChatRequest"][..], "request_id", 1),
            (&["ChatRequest", "Send"], "client_message_id", 1),
            (&["Entry"], "seq", 1),
            (&["Entry"], "message", 3),
            (&["Message"], "sender", 3),
            (&["Message"], "client_message_id", 6),
            (&["Sender"], "user_id", 2),
            (&["ChatResponse", "ReplyDelta"], "message_id", 1),
            (&["ChatResponse", "ReplyDelta"], "next_offset", 4),
            (&["ChatResponse", "ReplySnapshot"], "message_id", 1),
            (&["ChatResponse", "ReplySnapshot"], "next_offset", 4),
            (&["ChatResponse", "Ack"], "request_id", 1),
            (&["Error"], "request_id", 1),
            (&["Error"], "close_code", 8),
            (&["ChatResponse", "GoingAway"], "close_code", 3),
        ] {
            assert_eq!(tag(&set, path, field), expected, "{path:?}.{field}");
        }
    }

    fn peeked(kind: v1::chat_response::Event, check: impl Fn(Event<'_>)) {
        check(event(&v1::ChatResponse { event: Some(kind) }.encode_to_vec()));
    }

    #[test]
    fn what_matters_is_found_and_content_is_skipped() {
        use v1::chat_response as response;
        let delta = response::ReplyDelta {
            message_id: "m".into(),
            started_seq: 2,
            offset: 3,
            next_offset: 300,
            text: "hello".into(),
        };
        let piece = Event::Piece { message_id: "m", next_offset: 300 };
        peeked(response::Event::ReplyDelta(delta), |event| assert_eq!(event, piece));
        let snapshot = response::ReplySnapshot { message_id: "m".into(), next_offset: 300, ..Default::default() };
        peeked(response::Event::ReplySnapshot(snapshot), |event| assert_eq!(event, piece));
        let ack = response::Ack { request_id: "r".into(), seq: 7, ..Default::default() };
        peeked(response::Event::Ack(ack), |event| assert_eq!(event, Event::Ack { request_id: "r" }));
        let error = v1::Error { request_id: "r".into(), reason: "x".into(), close_code: 4010, ..Default::default() };
        let failed = Event::Error { request_id: "r", close_code: 4010 };
        peeked(response::Event::Error(error), |event| assert_eq!(event, failed));
        let away = response::GoingAway { reason: "x".into(), close_code: 1001, ..Default::default() };
        peeked(response::Event::GoingAway(away), |event| assert_eq!(event, Event::GoingAway { close_code: 1001 }));
        peeked(response::Event::CaughtUp(Default::default()), |event| assert_eq!(event, Event::CaughtUp));
        peeked(response::Event::Opened(Default::default()), |event| assert_eq!(event, Event::Opened));
        peeked(response::Event::TokenExpiring(Default::default()), |event| assert_eq!(event, Event::TokenExpiring));
        peeked(response::Event::Heartbeat(Default::default()), |event| assert_eq!(event, Event::Other));
    }

    #[test]
    fn a_message_tells_who_wrote_it_and_under_which_id() {
        let sender = v1::Sender { role: 1, user_id: "alice".into(), display_name: "A".into() };
        let message = v1::Message {
            message_id: "m".into(),
            seq: 1 << 40,
            sender: Some(sender),
            text: "text".into(),
            client_message_id: "c".into(),
            ..Default::default()
        };
        let entry = |kind| v1::Entry { seq: 1 << 40, create_time: None, kind: Some(kind) };
        let said = v1::chat_response::Event::Entry(entry(v1::entry::Kind::Message(message)));
        peeked(said, |event| {
            let Event::Entry { seq, message: Some(message) } = event else { panic!("{event:?}") };
            assert_eq!((seq, written(message)), (1 << 40, ("alice", "c")));
        });
        let other = v1::chat_response::Event::Entry(entry(v1::entry::Kind::ReplyFinished(Default::default())));
        peeked(other, |event| assert_eq!(event, Event::Entry { seq: 1 << 40, message: None }));
    }

    #[test]
    fn bytes_that_are_no_event_are_none() {
        for bytes in [&[][..], &[0xff; 20], &[0x12, 0x05, 0x08], &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f]] {
            assert_eq!(event(bytes), Event::Other, "{bytes:?}");
        }
        assert_eq!(event(&[0x12, 0x02, 0x08, 0x80]), Event::Entry { seq: 0, message: None });
    }
}

//! What a client saw, without what differs from run to run: ids are numbered in the order in which they appear, times and
//! the pieces in which a reply came are left out.

use chatbox_proto::{
    json,
    v1::{ChatResponse, chat_response::Event},
};
use serde_json::{Map, Value, json};

/// Fields that hold a time.
const TIMES: [&str; 7] =
    ["createTime", "lastActivityTime", "serverTime", "finishTime", "endTime", "requestTime", "expireTime"];

/// The events of one client. Heartbeats and presence come by the clock, and no order is promised between an ack and an
/// entry: the former are left out, the latter follow at the end.
#[must_use]
pub fn of_events(events: &[Event], user: &str) -> Vec<Value> {
    let mut told: Vec<Value> = Vec::new();
    let mut acks = Vec::new();
    for event in events {
        let value = wire(event);
        match event {
            Event::Heartbeat(_) | Event::Presence(_) => {}
            Event::Ack(_) => acks.push(value),
            Event::ReplyDelta(delta) => {
                let last = told.last_mut().and_then(|last| last.pointer_mut("/replyDelta"));
                match last {
                    Some(last) if last["messageId"] == json!(delta.message_id) => {
                        let text = format!("{}{}", last["text"].as_str().unwrap_or_default(), delta.text);
                        last["text"] = json!(text);
                        last["nextOffset"] = json!(delta.next_offset);
                    }
                    _ => told.push(value),
                }
            }
            _ => told.push(value),
        }
    }
    told.extend(acks);
    normal(told, user)
}

/// An event as canonical JSON.
#[must_use]
pub fn wire(event: &Event) -> Value {
    let event = ChatResponse { event: Some(event.clone()) };
    serde_json::from_str(&json::to_string(&event)).unwrap_or_default()
}

/// Any messages of the contract as canonical JSON, made comparable.
#[must_use]
pub fn of_messages<T: serde::Serialize>(messages: &[T], user: &str) -> Vec<Value> {
    let values = messages.iter().map(|message| serde_json::from_str(&json::to_string(message)).unwrap_or_default());
    normal(values.collect(), user)
}

fn normal(values: Vec<Value>, user: &str) -> Vec<Value> {
    let mut ids = Vec::new();
    values.into_iter().map(|value| redact(value, user, &mut ids)).collect()
}

fn redact(value: Value, user: &str, ids: &mut Vec<String>) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(name, _)| !TIMES.contains(&name.as_str()));
            Value::Object(kept.map(|(name, value)| (name, redact(value, user, ids))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| redact(item, user, ids)).collect()),
        Value::String(text) if text == user => json!("USER"),
        Value::String(text) if is_id(&text) => {
            let known = ids.iter().position(|id| *id == text).unwrap_or_else(|| {
                ids.push(text);
                ids.len() - 1
            });
            json!(format!("ID{known}"))
        }
        other => other,
    }
}

/// A UUID, with or without a short prefix in front of it.
fn is_id(text: &str) -> bool {
    let hex = text.bytes().filter(u8::is_ascii_hexdigit).count();
    text.len() >= 32 && text.len() <= 48 && hex >= 30 && !text.contains(' ')
}

#[cfg(test)]
mod tests {
    use chatbox_proto::v1::{
        Entry, Message,
        chat_response::{Ack, Heartbeat, ReplyDelta},
        entry::Kind,
    };

    use super::*;

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn delta(offset: u32, text: &str) -> Event {
        let next_offset = offset + u32::try_from(text.len()).unwrap();
        let text = text.to_owned();
        Event::ReplyDelta(ReplyDelta { message_id: ID.to_owned(), started_seq: 2, offset, next_offset, text })
    }

    #[test]
    fn runs_that_differ_by_ids_times_and_pieces_are_the_same() {
        let message = |text: &str| {
            let message = Message { message_id: ID.to_owned(), text: text.to_owned(), ..Message::default() };
            Event::Entry(Entry { seq: 1, kind: Some(Kind::Message(message)), ..Entry::default() })
        };
        let ack = || Event::Ack(Ack { message_id: ID.to_owned(), ..Ack::default() });
        let one = [ack(), message("x"), delta(0, "ab"), Event::Heartbeat(Heartbeat::default())];
        let two = [message("x"), delta(0, "a"), ack(), delta(1, "b")];
        assert_eq!(
            of_events(&one, "u"),
            of_events(&two[..2].iter().chain([&two[3], &two[2]]).cloned().collect::<Vec<_>>(), "u")
        );
        assert_ne!(of_events(&[message("x")], "u"), of_events(&[message("y")], "u"));
    }
}

//! Ids, values with a unit and times: what is read is written in one way, and that way is read as the same.

use std::time::Duration;

use chatbox_proto::{
    ids::{MessageId, SessionId},
    settings::{ByteSize, duration},
    time::Timestamp,
};

/// The bytes as the text of each kind of value, and as the numbers of a time.
pub fn values(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(id) = text.parse::<SessionId>() {
        assert_eq!(id.to_string(), text, "an id has one spelling");
        assert_eq!(text.parse::<MessageId>().map(|id| *id.as_bytes()), Ok(*id.as_bytes()));
    }
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    if let Ok(time) = duration::parse(&text) {
        assert_eq!(duration::parse(&duration::format(time)), Ok(time));
    }
    if let Ok(time) = serde_json::from_slice::<Timestamp>(data) {
        in_calendar(time);
    }
    if let Ok(time) = serde_json::from_value::<Timestamp>(text.into()) {
        in_calendar(time);
    }
    if let Some((numbers, _)) = data.split_first_chunk::<12>() {
        let (seconds, nanos) = numbers.split_at(8);
        let number = |bytes: &[u8]| bytes.iter().fold(0_i64, |number, byte| (number << 8) | i64::from(*byte));
        let (seconds, nanos) = (number(seconds), number(nanos));
        let shown = serde_json::to_string(&Timestamp { seconds, nanos: nanos as u32 as i32 }).expect("a text");
        in_calendar(serde_json::from_str(&shown).expect("our own JSON"));
        in_calendar_or_nearest(Timestamp::from_millis(seconds));
        let time = Duration::from_millis(seconds.unsigned_abs());
        assert_eq!(duration::parse(&duration::format(time)), Ok(time));
        let size = ByteSize::bytes(seconds.unsigned_abs());
        assert_eq!(size.to_string().parse(), Ok(size));
    }
}

/// What was read is a valid `google.protobuf.Timestamp`, and its JSON form is canonical.
fn in_calendar(time: Timestamp) {
    assert!((0..1_000_000_000).contains(&time.nanos), "{time:?}");
    let shown = serde_json::to_string(&time).expect("a text");
    assert!(shown.ends_with("Z\"") && shown.is_ascii(), "{shown}");
    assert_eq!(serde_json::from_str::<Timestamp>(&shown).expect("our own JSON"), time, "{shown}");
}

fn in_calendar_or_nearest(time: Timestamp) {
    let shown = serde_json::to_string(&time).expect("a text");
    in_calendar(serde_json::from_str(&shown).expect("our own JSON"));
}

//! `google.protobuf.Timestamp` with its canonical JSON: RFC 3339 in UTC with a `Z` and 0, 3, 6 or 9 digits of a second
//! (<https://protobuf.dev/reference/protobuf/google.protobuf/#timestamp>). The generated code maps the well-known type here,
//! since the usual one writes `+00:00`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The beginning of the year 1 and the end of the year 9999, between which RFC 3339 can show a time.
const FIRST_SECOND: i64 = -62_135_596_800;
const LAST_SECOND: i64 = 253_402_300_799;
const MAX_NANOS: u32 = 999_999_999;

/// A point in time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Timestamp {
    /// Seconds since the Unix epoch.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds after that second, 0 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        let nanos = millis.rem_euclid(1000) * 1_000_000;
        Self { seconds: millis.div_euclid(1000), nanos: i32::try_from(nanos).unwrap_or(0) }
    }

    /// What RFC 3339 cannot show becomes the nearest time that it can: a clock that is off must not cost an event.
    fn to_utc(self) -> DateTime<Utc> {
        let seconds = self.seconds.clamp(FIRST_SECOND, LAST_SECOND);
        let nanos = u32::try_from(self.nanos).unwrap_or(0).min(MAX_NANOS);
        DateTime::from_timestamp(seconds, nanos).unwrap_or_default()
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Self { seconds, nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0) }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_utc().to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let time =
            DateTime::parse_from_rfc3339(&text).map_err(|_| D::Error::custom("must be an RFC 3339 timestamp"))?;
        // A leap second is read as nanoseconds beyond the second; Unix time has no place for it but the next second.
        let (over, nanos) =
            (time.timestamp_subsec_nanos() / 1_000_000_000, time.timestamp_subsec_nanos() % 1_000_000_000);
        let seconds = time.timestamp() + i64::from(over);
        if !(FIRST_SECOND..=LAST_SECOND).contains(&seconds) {
            return Err(D::Error::custom("must be from the year 1 to the year 9999"));
        }
        Ok(Self { seconds, nanos: i32::try_from(nanos).unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_form_is_canonical() {
        for (millis, text) in [
            (0, "\"1970-01-01T00:00:00Z\""),
            (1_795_363_335_110, "\"2026-11-22T16:02:15.110Z\""),
            (-1, "\"1969-12-31T23:59:59.999Z\""),
        ] {
            let time = Timestamp::from_millis(millis);
            assert_eq!(serde_json::to_string(&time).unwrap(), text);
            assert_eq!(serde_json::from_str::<Timestamp>(text).unwrap(), time);
        }
    }

    #[test]
    fn other_zones_are_read_and_other_texts_are_not() {
        let utc: Timestamp = serde_json::from_str("\"2026-11-22T16:02:15Z\"").unwrap();
        let zoned: Timestamp = serde_json::from_str("\"2026-11-22T17:02:15+01:00\"").unwrap();
        assert_eq!(utc, zoned);
        assert!(serde_json::from_str::<Timestamp>("\"yesterday\"").is_err());
    }

    #[test]
    fn a_leap_second_is_the_next_second_and_years_outside_the_calendar_are_refused() {
        let read = |text: &str| serde_json::from_value::<Timestamp>(text.into());
        assert_eq!(read("2016-12-31T23:59:60.5Z").unwrap(), read("2017-01-01T00:00:00.5Z").unwrap());
        for outside in ["0000-12-31T23:59:59Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:60Z"] {
            assert!(read(outside).is_err(), "{outside}");
        }
    }

    #[test]
    fn a_time_that_no_calendar_shows_becomes_the_nearest_one() {
        let shown = |seconds| serde_json::to_string(&Timestamp { seconds, nanos: -1 }).unwrap();
        assert_eq!(shown(i64::MAX), "\"9999-12-31T23:59:59Z\"");
        assert_eq!(shown(i64::MIN), "\"0001-01-01T00:00:00Z\"");
    }
}

//! Hours in which nobody is to be woken.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::domain::time::Timestamp;

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60;

/// A span of every day in UTC, like `22:00-07:00`; it may pass midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QuietHours {
    /// Minutes since midnight.
    from: i64,
    until: i64,
}

impl QuietHours {
    /// When something that is due at `time` may be delivered: then, or when the quiet hours around it end.
    #[must_use]
    pub fn after(self, time: Timestamp) -> Timestamp {
        let minute = time.millis().div_euclid(MINUTE);
        let since = (minute.rem_euclid(DAY) - self.from).rem_euclid(DAY);
        let long = (self.until - self.from).rem_euclid(DAY);
        if since < long { Timestamp::from_millis((minute - since + long) * MINUTE) } else { time }
    }
}

impl FromStr for QuietHours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "must be like 22:00-07:00, in UTC, and not empty".to_owned();
        let minutes = |text: &str| {
            let (hours, minutes) = text.split_once(':')?;
            let digits = |text: &str, below: i64| {
                let two = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
                let number = two.then(|| text.parse().ok())??;
                (0..below).contains(&number).then_some(number)
            };
            Some(digits(hours, 24)? * 60 + digits(minutes, 60)?)
        };
        let (from, until) = text.split_once('-').ok_or_else(wrong)?;
        let (from, until) = minutes(from).zip(minutes(until)).ok_or_else(wrong)?;
        if from == until { Err(wrong()) } else { Ok(Self { from, until }) }
    }
}

impl TryFrom<String> for QuietHours {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for QuietHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = |minutes: i64| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        write!(f, "{}-{}", clock(self.from), clock(self.until))
    }
}

impl From<QuietHours> for String {
    fn from(hours: QuietHours) -> Self {
        hours.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: i64, hours: i64, minutes: i64) -> Timestamp {
        Timestamp::from_millis(((day * 24 + hours) * 60 + minutes) * MINUTE)
    }

    #[test]
    fn what_is_due_in_quiet_hours_waits_for_their_end() {
        let night: QuietHours = "22:00-07:00".parse().unwrap();
        for (due, expected) in [
            (at(3, 21, 59), at(3, 21, 59)),
            (at(3, 22, 0), at(4, 7, 0)),
            (at(4, 0, 0), at(4, 7, 0)),
            (at(4, 6, 59), at(4, 7, 0)),
            (at(4, 7, 0), at(4, 7, 0)),
            (at(-1, 23, 0), at(0, 7, 0)),
        ] {
            assert_eq!(night.after(due), expected);
        }
        let lunch: QuietHours = "12:00-13:30".parse().unwrap();
        assert_eq!(lunch.after(at(1, 13, 29)), at(1, 13, 30));
        assert_eq!(lunch.after(at(1, 11, 59)), at(1, 11, 59));
    }

    #[test]
    fn hours_are_written_as_they_are_read_and_junk_is_refused() {
        assert_eq!("22:00-07:05".parse::<QuietHours>().unwrap().to_string(), "22:00-07:05");
        for junk in
            ["", "22-7", "24:00-01:00", "01:60-02:00", "1:00-2:00", "07:00-07:00", "+1:00-02:00", "01:00-02:00-03:00"]
        {
            assert!(junk.parse::<QuietHours>().is_err(), "{junk}");
        }
    }
}

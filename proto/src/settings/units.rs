//! Values with a unit.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

const SIZE_UNITS: [(&str, u64); 5] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1), ("", 1)];

/// A number of bytes, written like `64KiB`. Units are `B`, `KiB`, `MiB` and `GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A number of bytes.
    #[must_use]
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A number of KiB.
    #[must_use]
    pub const fn kib(kib: u64) -> Self {
        Self(kib << 10)
    }

    /// A number of MiB.
    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// In bytes.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// In bytes, at most what memory can address.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str = "must be a size like 512B, 64KiB, 4MiB or 1GiB";
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or(RULE)?;
        let number: u64 = number.parse().map_err(|_| RULE)?;
        number.checked_mul(*factor).map(Self).ok_or(RULE)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |factor: u64| self.0 != 0 && self.0.is_multiple_of(factor);
        let (unit, factor) = SIZE_UNITS.into_iter().find(|(_, factor)| fits(*factor)).unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// For `#[serde(with = "settings::duration")]`: a duration written like `250ms`, `30s`, `5m` or `24h`.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    const RULE: &str = "must be a duration like 250ms, 30s, 5m or 24h";

    /// Reads a duration.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn parse(text: &str) -> Result<Duration, &'static str> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or(RULE)?;
        let (number, unit) = text.split_at(digits);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or(RULE)?;
        let number: u64 = number.parse().map_err(|_| RULE)?;
        number.checked_mul(*factor).map(Duration::from_millis).ok_or(RULE)
    }

    /// Writes a duration in the largest unit that keeps it whole.
    #[must_use]
    pub fn format(duration: Duration) -> String {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return "0s".to_owned();
        }
        let fitting = UNITS.into_iter().rev().find(|(_, factor)| millis.is_multiple_of(*factor));
        let (unit, factor) = fitting.unwrap_or(("ms", 1));
        format!("{}{unit}", millis / factor)
    }

    /// For serde.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(*duration))
    }

    /// For serde.
    ///
    /// # Errors
    /// The rule that the text breaks.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn sizes_are_read_and_written_with_their_unit() {
        for (text, bytes) in [("0B", 0), ("512B", 512), ("64KiB", 65_536), ("1MiB", 1 << 20), ("3GiB", 3 << 30)] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.as_u64(), bytes);
            assert_eq!(size.to_string(), text);
        }
        assert_eq!("100".parse(), Ok(ByteSize::bytes(100)));
        for bad in ["", "KiB", "-1KiB", "1.5MiB", "1KB", "1 Kib", "99999999999GiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_read_and_written_with_their_unit() {
        for (text, millis) in [("0s", 0), ("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("24h", 86_400_000)] {
            let value = duration::parse(text).unwrap();
            assert_eq!(value, Duration::from_millis(millis));
            assert_eq!(duration::format(value), text);
        }
        for bad in ["", "30", "s", "-1s", "1.5s", "1d", "99999999999999999h"] {
            assert!(duration::parse(bad).is_err(), "{bad}");
        }
    }
}

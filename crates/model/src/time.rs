//! Instants, and brackets of instants.
//!
//! An [`Instant`] is a point of wall-clock time in whole microseconds since 1970-01-01T00:00:00Z, UTC. It is written as
//! RFC 3339 with six decimals everywhere. A [`Bracket`] says "not before, not after": what is known of when something happened.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time: microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub i64);

impl Instant {
    /// Earlier than all that happens.
    pub const MIN: Self = Self(i64::MIN);
    /// Later than all that happens.
    pub const MAX: Self = Self(i64::MAX);

    /// What this machine's clock says now.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Microseconds since the Unix epoch.
    pub fn micros(self) -> i64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl From<SystemTime> for Instant {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self(i64::try_from(after.as_micros()).unwrap_or(i64::MAX)),
            Err(before) => Self(i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |us| -us)),
        }
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => write!(f, "{time:.6}"),
            Err(_) if self.0 < 0 => f.write_str("-infinity"),
            Err(_) => f.write_str("infinity"),
        }
    }
}

/// The text is not an RFC 3339 time with an offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time: write RFC 3339 with an offset, as 2026-01-31T03:04:05.678901Z")]
pub struct BadInstant(pub String);

impl FromStr for Instant {
    type Err = BadInstant;
    fn from_str(text: &str) -> Result<Self, BadInstant> {
        match text.trim() {
            "-infinity" => return Ok(Self::MIN),
            "infinity" => return Ok(Self::MAX),
            _ => {}
        }
        let time: jiff::Timestamp = text.trim().parse().map_err(|_| BadInstant(text.to_owned()))?;
        Ok(Self(time.as_microsecond()))
    }
}

impl Serialize for Instant {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Something happened at or after `earliest`, and at or before `latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bracket {
    /// Not before this.
    pub earliest: Instant,
    /// Not after this.
    pub latest: Instant,
}

impl Bracket {
    /// Known to the microsecond.
    pub fn exactly(at: Instant) -> Self {
        Self { earliest: at, latest: at }
    }

    /// `a` and `b` in either order.
    pub fn between(a: Instant, b: Instant) -> Self {
        Self { earliest: a.min(b), latest: a.max(b) }
    }

    /// The smallest bracket that holds both.
    pub fn union(self, other: Self) -> Self {
        Self { earliest: self.earliest.min(other.earliest), latest: self.latest.max(other.latest) }
    }

    /// Widened on both sides, for a clock that may be off by as much.
    pub fn widened(self, by: Duration) -> Self {
        Self { earliest: self.earliest - by, latest: self.latest + by }
    }

    /// How little is known: the time between the two ends.
    pub fn width(self) -> Duration {
        self.latest.since(self.earliest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_written_with_microseconds_and_read_back() {
        let at: Instant = "2026-01-31T03:04:05+01:00".parse().unwrap();
        assert_eq!(at.to_string(), "2026-01-31T02:04:05.000000Z");
        assert_eq!(at.to_string().parse::<Instant>().unwrap(), at);
        assert!("yesterday".parse::<Instant>().is_err());
        assert!("2026-01-31T03:04:05".parse::<Instant>().is_err());
        for end in [Instant::MIN, Instant::MAX] {
            assert_eq!(end.to_string().parse::<Instant>().unwrap(), end);
        }
    }
}

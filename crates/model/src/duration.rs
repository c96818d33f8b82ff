//! Durations as people write them: `20ms`, `15m`, `1h30m`, `30d`.

use std::time::Duration;

/// Largest first, so that a duration is written with as few units as it needs. A year is 365 days.
const UNITS_MS: [(&str, u64); 7] = [
    ("y", 365 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Longest that is read: a hundred years. Sums of a few of these cannot overflow.
const LIMIT_MS: u64 = 100 * 365 * 86_400_000;

/// The text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDuration {
    /// A number without a unit. It is refused, since seconds and minutes are both as likely meant.
    #[error("`{0}` has no unit")]
    NoUnit(String),
    /// There is no such unit.
    #[error("`{unit}` is not a unit of time")]
    Unit {
        /// What stands where the unit should.
        unit: String,
    },
    /// A year is the longest unit and a hundred of them the longest duration.
    #[error("`{0}` is longer than a hundred years")]
    TooLong(String),
    /// Anything else.
    #[error("`{0}` is not a duration")]
    Malformed(String),
}

/// Reads whole numbers with the units `ms s m h d w y`, one after the other (`1h30m`). A bare `0` is zero.
pub fn parse_duration(text: &str) -> Result<Duration, BadDuration> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(BadDuration::Malformed(text.to_owned()));
    }
    let mut rest = text;
    let mut total_ms = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        if number.is_empty() {
            return Err(BadDuration::Malformed(text.to_owned()));
        }
        if unit.is_empty() && tail.is_empty() {
            return Err(BadDuration::NoUnit(text.to_owned()));
        }
        let Some((_, factor_ms)) = UNITS_MS.iter().find(|(name, _)| *name == unit) else {
            return Err(match unit {
                "" => BadDuration::Malformed(text.to_owned()),
                _ => BadDuration::Unit { unit: unit.to_owned() },
            });
        };
        let too_long = || BadDuration::TooLong(text.to_owned());
        let number: u64 = number.parse().map_err(|_| too_long())?;
        let part_ms = number.checked_mul(*factor_ms).ok_or_else(too_long)?;
        total_ms = total_ms.checked_add(part_ms).filter(|sum| *sum <= LIMIT_MS).ok_or_else(too_long)?;
        rest = tail.trim_start();
    }
    Ok(Duration::from_millis(total_ms))
}

/// Writes a duration as [`parse_duration`] reads it; what is below a millisecond is cut.
pub fn format_duration(duration: Duration) -> String {
    let mut rest_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest_ms == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    // Weeks are left out: `30d` says more than `4w2d`.
    for (unit, factor_ms) in UNITS_MS.iter().filter(|(unit, _)| *unit != "w") {
        let count = rest_ms / factor_ms;
        rest_ms %= factor_ms;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect_ms: Option<u64>) {
        assert_eq!(parse_duration(text).ok(), expect_ms.map(Duration::from_millis), "{text}");
    }

    #[test]
    fn durations_are_read() {
        check("0", Some(0));
        check("20ms", Some(20));
        check("15m", Some(900_000));
        check("1h30m", Some(5_400_000));
        check("1h 30m", Some(5_400_000));
        check("2w", Some(14 * 86_400_000));
        check("7y", Some(7 * 365 * 86_400_000));
        for wrong in [
            "",
            "15",
            "m",
            "15 m",
            "15min",
            "-1s",
            "1.5h",
            "101y",
            "99999999999999999999s",
            "1h30",
            "ten minutes",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["20ms", "15m", "1h30m", "30d", "1y1d1s1ms", "0s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
    }
}

//! Sizes: a number of bytes, written for people as `500GiB`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Longest first, so that `GiB` is not read as `B`.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// The text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBytes {
    /// Neither a number nor a number and a unit.
    #[error("`{0}` is not a size")]
    Malformed(String),
    /// There is no such unit.
    #[error("`{unit}` is not a unit of size")]
    Unit {
        /// What stands where the unit should.
        unit: String,
    },
    /// More than 2^64 bytes.
    #[error("`{0}` is more than any machine holds")]
    TooLarge(String),
}

impl FromStr for Bytes {
    type Err = BadBytes;

    /// A whole or decimal number and a unit (`B kB MB GB TB KiB MiB GiB TiB`); without a unit, bytes.
    fn from_str(text: &str) -> Result<Self, BadBytes> {
        let text = text.trim();
        let malformed = || BadBytes::Malformed(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..digits], text[digits..].trim_start());
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
            return Err(malformed());
        }
        let factor = match unit {
            "" => 1,
            _ => {
                UNITS
                    .iter()
                    .find(|(name, _)| *name == unit)
                    .ok_or_else(|| BadBytes::Unit { unit: unit.to_owned() })?
                    .1
            }
        };
        let too_large = || BadBytes::TooLarge(text.to_owned());
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        // Nine digits are enough to say any size that matters to the byte; more are cut, not rounded.
        let fraction = &fraction[..fraction.len().min(9)];
        let numerator: u64 = fraction.parse().map_err(|_| malformed())?;
        let denominator = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(9));
        let part = u128::from(numerator) * u128::from(factor) / denominator;
        let total = u128::from(whole) * u128::from(factor) + part;
        u64::try_from(total).map(Self).map_err(|_| too_large())
    }
}

impl fmt::Display for Bytes {
    /// The largest binary unit that gives at least one, with one decimal where it is not whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS[..4].iter().rev().find(|(_, factor)| self.0 >= *factor);
        match unit {
            None => write!(f, "{}B", self.0),
            Some((name, factor)) if self.0.is_multiple_of(*factor) => write!(f, "{}{name}", self.0 / factor),
            Some((name, factor)) => {
                let tenths = u128::from(self.0) * 10 / u128::from(*factor);
                write!(f, "{}.{}{name}", tenths / 10, tenths % 10)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<u64>) {
        assert_eq!(text.parse::<Bytes>().ok(), expect.map(Bytes), "{text}");
    }

    #[test]
    fn sizes_are_read() {
        check("0", Some(0));
        check("1024", Some(1024));
        check("500GiB", Some(500 << 30));
        check("24 GB", Some(24_000_000_000));
        check("1.5KiB", Some(1536));
        check("0.5TiB", Some(1 << 39));
        for wrong in
            ["", "GiB", "1.", ".5MB", "-1", "1.2.3kB", "12 parsecs", "99999999999TiB", "1Gib", "١KiB"]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn sizes_are_written() {
        for (bytes, expect) in
            [(0, "0B"), (1023, "1023B"), (1 << 20, "1MiB"), (1536, "1.5KiB"), (u64::MAX, "16777215.9TiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), expect);
        }
    }
}

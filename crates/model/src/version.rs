//! Versions of engines: numbers and dots, compared number by number.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version, as `15`, `7.0` or `8.2.1`. A short one names all that begin with it: see [`Version::covers`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(Vec<u32>);

/// The text is not a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a version")]
pub struct BadVersion(pub String);

impl Version {
    /// The first number: what decides whether two servers of an engine can read each other's files, for most engines.
    pub fn major(&self) -> u32 {
        self.0[0]
    }

    /// The second number, 0 if there is none.
    pub fn minor(&self) -> u32 {
        self.0.get(1).copied().unwrap_or(0)
    }

    /// The numbers, at least one.
    pub fn parts(&self) -> &[u32] {
        &self.0
    }

    /// Whether `actual` is this version or a finer one of it: `15` covers `15.18`, and `7.0` covers `7.0.15` but not `7.2`.
    pub fn covers(&self, actual: &Self) -> bool {
        actual.0.starts_with(&self.0)
    }
}

impl FromStr for Version {
    type Err = BadVersion;

    /// One to four numbers with dots between.
    fn from_str(text: &str) -> Result<Self, BadVersion> {
        let bad = || BadVersion(text.to_owned());
        let number = |part: &str| match part.bytes().all(|b| b.is_ascii_digit()) {
            true => part.parse::<u32>().map_err(|_| bad()),
            false => Err(bad()),
        };
        let parts = text.trim().split('.').map(number).collect::<Result<Vec<_>, _>>()?;
        if parts.len() > 4 { Err(bad()) } else { Ok(Self(parts)) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            write!(f, "{}{part}", if i == 0 { "" } else { "." })?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Version {
    type Error = BadVersion;
    fn try_from(text: String) -> Result<Self, BadVersion> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_compared_and_written() {
        let v = |text: &str| text.parse::<Version>().unwrap();
        assert_eq!(v("15").to_string(), "15");
        assert!(v("7.0.15") > v("7.0.9") && v("15") > v("9.6"));
        assert!(v("15").covers(&v("15.18")) && v("15").covers(&v("15")));
        assert!(!v("7.0").covers(&v("7.2")) && !v("7.0.15").covers(&v("7.0")));
        for wrong in ["", "x", "15.", ".5", "15-beta", "1.2.3.4.5", "+1", "99999999999"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
    }
}

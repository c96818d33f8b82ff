//! What a restore would do: a value, made without touching anything.

use std::fmt;

use serde::Serialize;

/// Why something cannot be had, and what can be had instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// A stable code: `no-snapshot`, `out-of-window`, `hole`, `damaged`, `no-identity`, `ambiguous`, `unsupported`.
    pub code: &'static str,
    /// The cluster, or the group.
    pub subject: String,
    /// What cannot be had.
    pub what: String,
    /// What can be had instead.
    pub instead: Vec<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.what)
    }
}

//! One error for all engines, told apart by kind.

use std::fmt;

/// What went wrong in an adapter, in the terms that callers branch on.
#[derive(Debug)]
pub struct Error {
    /// What callers branch on.
    pub kind: Kind,
    /// Verb and object, and what was wrong: `start node orders-1: port 5432 is taken`. Never a secret, never the source's text again.
    pub what: String,
    /// What to do next.
    pub hint: Option<String>,
    /// What lay under it.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of [`Error`]; each has a stable code ([`Kind::code`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No connection, or it broke. Worth trying again.
    Unreachable,
    /// The server refused us: password, grant, setting.
    Refused,
    /// A program, library or file that must be installed first.
    NotInstalled,
    /// The server answered with an error of its own.
    Server,
    /// The log from the asked place on is no longer to be had at the source: a hole.
    LogGone,
    /// The source's history is not a continuation of ours at that place (it branched before it).
    Diverged {
        /// Where the surviving history branched off, if the source says.
        branched: Option<mainstay_model::Place>,
    },
    /// The target stands for more than one place; `candidates` are their times or places, as text.
    Ambiguous {
        /// What can be asked for instead.
        candidates: Vec<String>,
    },
    /// The target lies outside what the log reaches.
    OutOfLog,
    /// Bytes that are not what they must be.
    Damaged,
    /// The spool has no room; the link must be given up.
    SpoolFull,
    /// Somebody asked to stop.
    Cancelled,
    /// A step took longer than it may.
    Deadline,
    /// This machine: files, processes, disks.
    Io,
    /// The engine, or this version of it, cannot do that.
    Unsupported,
    /// What was asked makes no sense.
    Invalid,
}

impl Kind {
    /// The stable code of failures on the command line.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable => "engine-unreachable",
            Self::Refused => "engine-refused",
            Self::NotInstalled => "engine-not-installed",
            Self::Server => "engine-error",
            Self::LogGone => "log-gone",
            Self::Diverged { .. } => "history-diverged",
            Self::Ambiguous { .. } => "target-ambiguous",
            Self::OutOfLog => "target-out-of-log",
            Self::Damaged => "damaged",
            Self::SpoolFull => "spool-full",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
            Self::Io => "io",
            Self::Unsupported => "unsupported",
            Self::Invalid => "invalid",
        }
    }
}

/// A result with the engines' [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of that kind.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), hint: None, source: None }
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With what lay under it.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An input/output error of this machine: `Error::io("read postgresql.conf", e)`.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::new(Kind::Io, what).source(source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

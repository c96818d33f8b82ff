//! What went wrong with a store, by kind.

use std::fmt;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A call on a store that failed.
#[derive(Debug)]
pub struct Error {
    /// What callers branch on.
    pub kind: Kind,
    /// `put`, `get`, `list`, …
    pub verb: &'static str,
    /// The key (or prefix) that was asked for.
    pub key: String,
    /// What lay under it, if anything; never holds a secret.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no such object (or bucket).
    NotFound,
    /// There is such an object already, of other bytes.
    Exists,
    /// Credentials or permissions.
    Denied,
    /// The store did not answer, answered with an error of its own, or broke off: worth another try.
    Unavailable,
    /// No answer within the deadline: worth another try.
    Deadline,
    /// No room left.
    Full,
    /// The key, the URL or the settings make no sense.
    Invalid,
    /// The store cannot keep what we need of it.
    Unfit,
    /// Anything else; trying again would not help.
    Other,
}

impl Kind {
    /// Whether the same call may succeed later.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::Deadline)
    }

    /// The stable code of failures on the command line.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotFound => "object-not-found",
            Self::Exists => "object-exists",
            Self::Denied => "store-denied",
            Self::Unavailable => "store-unavailable",
            Self::Deadline => "store-deadline",
            Self::Full => "store-full",
            Self::Invalid => "store-invalid",
            Self::Unfit => "store-unfit",
            Self::Other => "store-error",
        }
    }
}

impl Error {
    /// An error with nothing under it.
    pub fn new(kind: Kind, verb: &'static str, key: impl Into<String>) -> Self {
        Self { kind, verb, key: key.into(), source: None }
    }

    /// With what lay under it.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Sorts an input/output error into a kind.
    pub(crate) fn io(verb: &'static str, key: &str, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::NotFound => Kind::NotFound,
            Io::AlreadyExists => Kind::Exists,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => Kind::Denied,
            Io::StorageFull | Io::QuotaExceeded => Kind::Full,
            Io::Interrupted | Io::TimedOut => Kind::Unavailable,
            _ => Kind::Other,
        };
        Self::new(kind, verb, key).source(source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::NotFound => "not found",
            Kind::Exists => "exists already",
            Kind::Denied => "not allowed",
            Kind::Unavailable => "the store is unavailable",
            Kind::Deadline => "no answer in time",
            Kind::Full => "no room left",
            Kind::Invalid => "invalid",
            Kind::Unfit => "the store is not fit for a vault",
            Kind::Other => "failed",
        };
        write!(f, "{} `{}`: {what}", self.verb, self.key)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

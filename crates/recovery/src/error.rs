//! What goes wrong in recovery, in the terms that callers branch on.

use mainstay_engine as engine;
use mainstay_vault as vault;

use crate::plan::Refusal;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of recovery. Its source is what lay under it; `Display` never repeats it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked cannot be had; nothing was touched.
    #[error("{}", refused(.0))]
    Refused(Vec<Refusal>),
    /// An engine failed.
    #[error("{what}")]
    Engine {
        /// Verb and object: `restore orders`.
        what: String,
        /// What it said.
        source: Box<engine::Error>,
    },
    /// The vault failed.
    #[error("{what}")]
    Vault {
        /// Verb and object: `read log of orders`.
        what: String,
        /// What it said.
        source: vault::Error,
    },
    /// The control plane's own database failed.
    #[error("{what}")]
    State {
        /// Verb and object: `read operation op-1a2b3c4d`.
        what: String,
        /// What it said.
        source: mainstay_state::Error,
    },
    /// A step took longer than it may.
    #[error("{what} took longer than {seconds} s")]
    Deadline {
        /// Verb and object: `replay log of orders`.
        what: String,
        /// What it may take.
        seconds: u64,
    },
    /// The engine cannot do that, or not yet.
    #[error("{engine} cannot {verb}")]
    Unsupported {
        /// The engine's name.
        engine: &'static str,
        /// `be restored`, `be proven`.
        verb: &'static str,
    },
    /// What was asked makes no sense.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
        /// What to do instead.
        hint: Option<String>,
    },
}

impl Error {
    /// What was asked makes no sense.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), hint: None }
    }

    /// The stable code of failures on the command line.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusals) => refusals.first().map_or("refused", |r| r.code),
            Self::Engine { source, .. } => source.kind.code(),
            Self::Vault { source, .. } => source.code(),
            Self::State { source, .. } => source.code(),
            Self::Deadline { .. } => "deadline",
            Self::Unsupported { .. } => "unsupported",
            Self::Invalid { .. } => "invalid",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(refusals) => {
                let instead: Vec<&str> =
                    refusals.iter().flat_map(|r| r.instead.iter().map(String::as_str)).collect();
                (!instead.is_empty()).then(|| instead.join("; "))
            }
            Self::Engine { source, .. } => source.hint.clone(),
            Self::Vault { source, .. } => source.hint(),
            Self::State { source, .. } => source.hint(),
            Self::Deadline { .. } => Some("see the server's log for what it waits for".to_owned()),
            Self::Invalid { hint, .. } => hint.clone(),
            Self::Unsupported { .. } => None,
        }
    }
}

fn refused(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Says what was being done when something failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for engine::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Engine { what: what(), source: Box::new(source) })
    }
}

impl<T> Doing<T> for vault::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Vault { what: what(), source })
    }
}

impl<T> Doing<T> for mainstay_state::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::State { what: what(), source })
    }
}

impl From<mainstay_state::StepError<Self>> for Error {
    fn from(error: mainstay_state::StepError<Self>) -> Self {
        match error {
            mainstay_state::StepError::Step(error) => error,
            mainstay_state::StepError::Journal(source) => {
                Self::State { what: "keep the journal".to_owned(), source }
            }
        }
    }
}

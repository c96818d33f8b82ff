//! What can go wrong on this machine, in the terms that callers branch on.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files, processes, disks.
    #[error("{what}: {source}")]
    Io {
        /// Verb and object: `create folder /x`.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Another Mainstay works on the same thing, and went on for longer than we wait.
    #[error("{what} is in use by another mainstay (pid {pid}, {doing})")]
    Busy {
        /// What is locked.
        what: String,
        /// Who holds it; 0 if that could not be read.
        pid: u32,
        /// What the holder said that it does.
        doing: String,
    },
    /// What was asked cannot be done with what is here.
    #[error("{what}")]
    Refused {
        /// What, and why.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// A file of ours does not hold what it must.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An adapter failed.
    #[error(transparent)]
    Engine(#[from] mainstay_engine::Error),
}

/// A result with the runtime's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn at(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        Self::io(format!("{verb} {}", path.display()))
    }

    pub(crate) fn refused(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), hint: hint.into() }
    }

    /// The stable code of failures on the command line.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Busy { .. } => "busy",
            Self::Refused { .. } => "refused",
            Self::Damaged { .. } => "state-damaged",
            Self::Engine(error) => error.kind.code(),
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { .. } => None,
            Self::Busy { pid, .. } => Some(format!("wait until it has finished, or end it: kill {pid}")),
            Self::Refused { hint, .. } => Some(hint.clone()),
            Self::Damaged { path, .. } => Some(format!(
                "put a good copy of {} back, or start with another MAINSTAY_HOME",
                path.display()
            )),
            Self::Engine(error) => error.hint.clone(),
        }
    }
}

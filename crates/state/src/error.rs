//! What can go wrong with the database.

use std::path::PathBuf;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not a database of ours, or its content is damaged.
    #[error("the state {} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says, or what does not fit.
        reason: String,
    },
    /// A newer Mainstay made the file.
    #[error("the state {} was made by a newer mainstay (format {found}, this one knows {known})", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest that we know.
        known: i64,
    },
    /// Another process kept it locked for longer than we wait.
    #[error("the state {} is locked by another process", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("use the state {}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// There is no such operation.
    #[error("there is no operation {0}")]
    NoOperation(String),
}

/// A result with the state's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The stable code of failures on the command line.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Damaged { .. } => "state-damaged",
            Self::Newer { .. } => "state-newer",
            Self::Locked { .. } => "busy",
            Self::Io { .. } => "io",
            Self::NoOperation(_) => "no-operation",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Damaged { path, .. } => Some(format!(
                "move {} away: backups do not need it, but unfinished restores into an environment are forgotten",
                path.display()
            )),
            Self::Newer { .. } => Some("use that version, or another MAINSTAY_HOME".to_owned()),
            Self::Locked { .. } => Some("wait until the other mainstay has finished".to_owned()),
            Self::Io { .. } => None,
            Self::NoOperation(_) => Some("see which there are: mainstay recover list".to_owned()),
        }
    }

    pub(crate) fn of(path: &std::path::Path, error: &rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let (path, reason) = (path.to_owned(), error.to_string());
        match error.sqlite_error_code() {
            Some(Code::DatabaseBusy | Code::DatabaseLocked) => Self::Locked { path },
            Some(
                Code::CannotOpen
                | Code::DiskFull
                | Code::ReadOnly
                | Code::PermissionDenied
                | Code::SystemIoFailure,
            ) => Self::Io { path, reason },
            _ => Self::Damaged { path, reason },
        }
    }
}

//! How a command fails: a stable code, what was wrong, what to do next, and the exit code.

use std::error::Error as StdError;
use std::{fmt, io};

/// A command that failed or judged that something is not well.
#[derive(Debug)]
pub struct Failure {
    /// Stable, for scripts.
    pub code: String,
    /// What was wrong, and where; the whole chain in one line.
    pub message: String,
    /// What to do next. A failed command's stderr ends with it.
    pub hint: String,
    /// 1 failed, 2 wrong usage or fleet file, 3 judged and not well.
    pub exit: u8,
    /// stdout has its JSON value already (a verdict, the list of mistakes).
    pub printed: bool,
}

/// A result of a command.
pub type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    /// The command could not do what it was asked to.
    pub fn failed(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), hint: hint.into(), exit: 1, printed: false }
    }

    /// Somebody pressed Ctrl-C.
    pub fn stopped() -> Self {
        Self::failed("cancelled", "stopped on request", "run it again")
    }

    /// The command line, or the fleet file, asks for something that cannot be.
    pub fn usage(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit: 2, ..Self::failed(code, message, hint) }
    }

    /// The command judged, printed its verdict, and the verdict is "not well".
    pub fn verdict(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit: 3, printed: true, ..Self::failed(code, message, hint) }
    }

    /// From an error with a code and perhaps a hint of its own; the chain of its sources is joined here, once.
    pub fn of(code: &str, error: &(dyn StdError + 'static), hint: Option<String>) -> Self {
        let mut message = error.to_string();
        let mut below = error.source();
        while let Some(source) = below {
            let text = source.to_string();
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            below = source.source();
        }
        let hint = hint.unwrap_or_else(|| remedy(error).to_owned());
        Self::failed(code, message, hint)
    }
}

/// What to do about an error that has no hint of its own: what lies under it may say.
fn remedy(error: &(dyn StdError + 'static)) -> &'static str {
    const NOT_WRITABLE: &str = "make that folder writable for this user, or name another (--home, or the vault's `url`), and run it again";
    const FULL: &str = "make room where that is stored, and run it again";
    let mut under = Some(error);
    while let Some(error) = under {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => return NOT_WRITABLE,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => return FULL,
                _ => {}
            }
        }
        if let Some(mainstay_store::Error { kind: mainstay_store::Kind::Full, .. }) = error.downcast_ref() {
            return FULL;
        }
        if let Some(mainstay_state::Error::Io { .. }) = error.downcast_ref() {
            return "make its folder writable for this user, and see that there is room on its disk";
        }
        under = error.source();
    }
    "run it again with -v to see more of what happened"
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<mainstay_engine::Error> for Failure {
    fn from(error: mainstay_engine::Error) -> Self {
        let code = error.kind.code();
        let hint = error.hint.clone();
        Self::of(code, &error, hint)
    }
}

impl From<mainstay_runtime::Error> for Failure {
    fn from(error: mainstay_runtime::Error) -> Self {
        let hint = error.hint();
        Self::of(error.code(), &error, hint)
    }
}

impl From<mainstay_vault::Error> for Failure {
    fn from(error: mainstay_vault::Error) -> Self {
        let hint = error.hint();
        Self::of(error.code(), &error, hint)
    }
}

impl From<mainstay_store::Error> for Failure {
    fn from(error: mainstay_store::Error) -> Self {
        let hint = "see that the store is there, and that its credentials are right";
        let has_room = error.kind != mainstay_store::Kind::Full;
        Self::of(error.kind.code(), &error, has_room.then(|| hint.to_owned()))
    }
}

impl From<mainstay_recovery::Error> for Failure {
    fn from(error: mainstay_recovery::Error) -> Self {
        let hint = error.hint();
        Self::of(error.code(), &error, hint)
    }
}

impl From<mainstay_state::Error> for Failure {
    fn from(error: mainstay_state::Error) -> Self {
        Self::of(error.code(), &error, error.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_cannot_be_written_is_told_as_that() {
        let io = |kind| mainstay_runtime::Error::Io {
            what: "create folder /x".into(),
            source: io::Error::from(kind),
        };
        let full = mainstay_store::Error::new(mainstay_store::Kind::Full, "put", "c/x");
        let state = mainstay_state::Error::Io { path: "/x/state.db".into(), reason: "disk I/O error".into() };
        for (failure, expect) in [
            (Failure::from(io(io::ErrorKind::PermissionDenied)), "writable"),
            (Failure::from(io(io::ErrorKind::ReadOnlyFilesystem)), "writable"),
            (Failure::from(io(io::ErrorKind::StorageFull)), "make room"),
            (Failure::from(io(io::ErrorKind::BrokenPipe)), "-v"),
            (Failure::from(full), "make room"),
            (
                Failure::from(mainstay_vault::Error::from(mainstay_store::Error::new(
                    mainstay_store::Kind::Full,
                    "put",
                    "c/x",
                ))),
                "make room",
            ),
            (Failure::from(state), "writable"),
        ] {
            assert!(failure.hint.contains(expect), "{failure}: {}", failure.hint);
        }
    }
}

//! How a command fails: a stable code, what was wrong, what to do next, and the exit code.

use std::error::Error as StdError;
use std::fmt;

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
        let hint = hint.unwrap_or_else(|| "run it again with -v to see more of what happened".to_owned());
        Self::failed(code, message, hint)
    }
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
        Self::of(
            error.kind.code(),
            &error,
            Some("see that the store is there, and that its credentials are right".to_owned()),
        )
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

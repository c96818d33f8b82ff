//! `check`.

use serde::Serialize;

/// What `check` found: nothing, or every mistake at once.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Every mistake, in the order of the file.
    pub errors: Vec<FleetMistake>,
}

/// A mistake in a fleet file.
#[derive(Clone, Debug, Serialize)]
pub struct FleetMistake {
    /// Stable, for scripts.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// What to write instead.
    pub hint: Option<String>,
}

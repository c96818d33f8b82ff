//! The control plane's own database: the journal of operations, the history of runs, the proofs.
//!
//! One SQLite file in the home (0600, write-ahead log), used by several processes at once. It holds nothing that cannot be lost: what
//! can be restored is computed from the vault alone. What it is for is to go on where a killed process stopped ([`Operation`]),
//! and to say what happened ([`Run`], [`ProofRow`]). Refuses a file that a newer Mainstay made, and one that is damaged.
//!
//! Calls block for a few milliseconds; from async code that is bearable at this size.

mod database;
mod error;
mod history;
mod journal;
mod schema;

pub use database::State;
pub use error::{Error, Result};
pub use history::{NewProof, ProofRow, Run, RunId};
pub use journal::{Operation, OperationRow, Progress, StepError, StepRow, StepState};

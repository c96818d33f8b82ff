//! Every type that leaves Mainstay: what `--output json` prints.
//!
//! Users script these: fields may be added, none is renamed, removed or given another meaning. Times are RFC 3339 with microseconds,
//! sizes are bytes, a position is `{LANE: "place"}` with the place as the engine's own people write it.

mod backup;
mod fleet;
mod local;
mod recover;

pub use backup::{BackupPrune, BackupRun, Damaged, PrunedSnapshot, SnapshotRow, Verified};
pub use fleet::{Checked, FleetMistake};
pub use local::{
    Brought, ClusterHealth, ClusterStatus, ClusterUris, Down, FindingRow, Health, NodeStatus, Status, Taken,
    Up,
};
pub use recover::{
    CheckRow, Difference, Dropped, Hole, OperationRow, PlanRow, PlannedRestore, Point, PointMember, Proof,
    Restored, RestoredCluster, Rpo, Window,
};

use std::collections::BTreeMap;

use serde::Serialize;

/// A place in each lane of a cluster, as the engine writes places.
pub type Position = BTreeMap<String, String>;

/// What a failed command prints: `{"error": {code, message, hint}}`.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// What went wrong.
    pub error: FailureBody,
}

/// The inside of a [`Failure`].
#[derive(Clone, Debug, Serialize)]
pub struct FailureBody {
    /// Stable, for scripts.
    pub code: String,
    /// What was wrong, and where.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

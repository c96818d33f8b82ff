//! `point`, `recover …`, `prove`.

use mainstay_model::Instant;
use serde::Serialize;

use crate::Position;

/// A fleet point.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Its id.
    pub point: String,
    /// The instant that it stands for.
    pub at: Instant,
    /// Whether the logs prove that the cut is exact.
    pub exact: bool,
    /// Why it is not, where it was asked to be.
    pub why_not_exact: Option<String>,
    /// The time between the first and the last mark, with the clocks' uncertainty.
    pub skew_ms: f64,
    /// How long writes were held at the longest.
    pub stall_ms: f64,
    /// Member by member.
    pub clusters: Vec<PointMember>,
}

/// One cluster's part of a fleet point.
#[derive(Clone, Debug, Serialize)]
pub struct PointMember {
    /// The cluster.
    pub cluster: String,
    /// Its position.
    pub position: Position,
    /// When it was marked, by its own clock.
    pub at: Instant,
}

/// What a cluster can be restored to.
#[derive(Clone, Debug, Serialize)]
pub struct Window {
    /// The cluster.
    pub cluster: String,
    /// The earliest instant.
    pub from: Option<Instant>,
    /// The latest instant.
    pub to: Option<Instant>,
    /// What would be lost now.
    pub rpo: Rpo,
    /// Stretches within it that cannot be had.
    pub holes: Vec<Hole>,
}

/// What would be lost now, in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rpo {
    /// If this machine's disk survives.
    pub spool_seconds: Option<f64>,
    /// If only the vault does.
    pub vault_seconds: Option<f64>,
}

/// A stretch of time that cannot be had.
#[derive(Clone, Debug, Serialize)]
pub struct Hole {
    /// From here,
    pub from: Instant,
    /// to here,
    pub to: Instant,
    /// because of this.
    pub reason: String,
}

/// What a restore would do.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedRestore {
    /// What was asked for, in words.
    pub target: String,
    /// The instant that it stands for.
    pub at: Option<Instant>,
    /// By how much the clusters' cuts can be apart.
    pub skew_ms: f64,
    /// Cluster by cluster.
    pub clusters: Vec<PlanRow>,
}

/// One cluster of a planned restore.
#[derive(Clone, Debug, Serialize)]
pub struct PlanRow {
    /// The cluster.
    pub cluster: String,
    /// The snapshot to begin with.
    pub snapshot: String,
    /// When that was taken.
    pub taken_at: Instant,
    /// Where its log will be cut.
    pub position: Position,
    /// Log objects to apply.
    pub segments: usize,
    /// Bytes of the snapshot, uncompressed.
    pub bytes: u64,
}

/// A restore that was run.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// The sandbox that runs now, until `recover drop`; the operation's id for a restore in place.
    pub sandbox: String,
    /// Cluster by cluster.
    pub clusters: Vec<RestoredCluster>,
    /// From the command to the checked, running clusters.
    pub rto_seconds: f64,
    /// The window's end less what was restored.
    pub rpo_seconds: f64,
    /// By how much the clusters' cuts can be apart.
    pub skew_ms: f64,
    /// Whether the tier's targets were missed.
    pub over_target: bool,
}

/// One cluster that was restored.
#[derive(Clone, Debug, Serialize)]
pub struct RestoredCluster {
    /// The cluster.
    pub cluster: String,
    /// Where it can be reached.
    pub uris: Vec<String>,
    /// The instant that it was restored to.
    pub restored_to: Instant,
    /// The position that it was restored to.
    pub position: Position,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// A sandbox, or a restore in place that is not finished.
#[derive(Clone, Debug, Serialize)]
pub struct OperationRow {
    /// Its id.
    pub id: String,
    /// `sandbox` or `in-place`.
    pub kind: String,
    /// When it began.
    pub created_at: Instant,
    /// `running`, `stopped`, `failed`, `restored`, …
    pub state: String,
    /// Its clusters.
    pub clusters: Vec<String>,
    /// What can be done with it next.
    pub next: String,
}

/// A sandbox that is gone.
#[derive(Clone, Debug, Serialize)]
pub struct Dropped {
    /// What was dropped.
    pub dropped: Vec<String>,
}

/// The record of a restore that was run and checked.
#[derive(Clone, Debug, Serialize)]
pub struct Proof {
    /// Its id.
    pub proof: String,
    /// The instant that was restored.
    pub at: Instant,
    /// All that was checked.
    pub checks: Vec<CheckRow>,
    /// What was not as it must be; empty when proven.
    pub differences: Vec<Difference>,
    /// From the command to the checked, running clusters.
    pub rto_seconds: f64,
    /// The window's end less what was restored.
    pub rpo_seconds: f64,
    /// What a person should know (only one snapshot reaches the target, …).
    pub notes: Vec<String>,
}

/// One thing that was checked.
#[derive(Clone, Debug, Serialize)]
pub struct CheckRow {
    /// The cluster.
    pub cluster: String,
    /// `checksums`, `amcheck`, `rdb`, `crossed`, …
    pub kind: String,
    /// What was looked at.
    pub what: String,
    /// What must be found.
    pub expected: String,
    /// What was found.
    pub found: String,
}

/// Something that was not as it must be.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// The cluster.
    pub cluster: String,
    /// As in the check.
    pub kind: String,
    /// As in the check.
    pub what: String,
    /// As in the check.
    pub expected: String,
    /// As in the check.
    pub found: String,
}

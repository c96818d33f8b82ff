//! `backup run|list|verify|prune`.

use mainstay_model::Instant;
use serde::Serialize;

use crate::Position;

/// A snapshot that was taken.
#[derive(Clone, Debug, Serialize)]
pub struct BackupRun {
    /// Its id.
    pub snapshot: String,
    /// The cluster it is of.
    pub cluster: String,
    /// The instant that it is consistent at.
    pub taken_at: Instant,
    /// The position that it is consistent at.
    pub position: Position,
    /// Bytes read from the cluster.
    pub bytes_read: u64,
    /// Of these, what the vault did not have.
    pub bytes_new: u64,
    /// Ciphertext that this run wrote.
    pub bytes_stored: u64,
    /// How long it took.
    pub seconds: f64,
}

/// A snapshot in the vault.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotRow {
    /// Its id.
    pub snapshot: String,
    /// The cluster it is of.
    pub cluster: String,
    /// The instant that it is consistent at.
    pub taken_at: Instant,
    /// `stored`, `intact` or `proven`.
    pub state: String,
    /// When it was last proven.
    pub proven_at: Option<Instant>,
    /// Whether retention must leave it alone.
    pub pinned: bool,
    /// What pruning it would free.
    pub bytes_unique: u64,
}

/// What `backup verify` found.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Every object that is not what it must be; empty when all is well.
    pub damaged: Vec<Damaged>,
    /// How many objects were looked at.
    pub objects: u64,
    /// How many bytes were read again.
    pub bytes_read: u64,
}

/// An object that is not what it must be.
#[derive(Clone, Debug, Serialize)]
pub struct Damaged {
    /// Its key in the vault.
    pub object: String,
    /// What is wrong with it.
    pub reason: String,
    /// The snapshots that need it.
    pub snapshots: Vec<String>,
}

/// What `backup prune` did, or would do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BackupPrune {
    /// Snapshots that were marked for deletion, and why.
    pub marked: Vec<PrunedSnapshot>,
    /// How many objects were deleted (marked by an earlier run).
    pub objects_deleted: u64,
    /// Bytes that were freed.
    pub bytes_freed: u64,
    /// Whether this was a rehearsal.
    pub dry_run: bool,
}

/// A snapshot that retention lets go.
#[derive(Clone, Debug, Serialize)]
pub struct PrunedSnapshot {
    /// Its id.
    pub snapshot: String,
    /// The cluster it is of.
    pub cluster: String,
    /// Why it goes.
    pub reason: String,
}

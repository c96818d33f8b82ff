//! What is known of a finished snapshot.

use mainstay_engine::Taken;
use mainstay_model::Instant;
use serde::{Deserialize, Serialize};

/// A finished snapshot, as the vault lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its name: `20260131t020000-9f3c01ab`, unique in the vault. Says nothing of its order.
    pub id: String,
    /// The life of the cluster's data that it is of.
    pub incarnation: String,
    /// What the adapter says of it.
    pub taken: Taken,
    /// When it was begun, by this machine's clock.
    pub begun_at: Instant,
    /// When it was complete, by this machine's clock.
    pub committed_at: Instant,
    /// Files, directories and links.
    pub files: u64,
    /// Bytes of all its files.
    pub bytes_total: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Of these, bytes that the vault did not have.
    pub bytes_new: u64,
    /// Bytes of ciphertext that were written.
    pub bytes_stored: u64,
    /// How long it took.
    pub seconds: f64,
    /// Whether pruning must leave it.
    pub pinned: bool,
    /// How much is known of its being restorable.
    pub state: SnapshotState,
    /// When every object was last re-read and found right.
    pub intact_at: Option<Instant>,
    /// When it was last restored, started and checked.
    pub proven_at: Option<Instant>,
    /// Whether a prune has marked it, and a later one will delete it.
    pub leaving: bool,
}

/// How much is known of a snapshot's being restorable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// An object that it needs was found damaged or missing, and it was not found whole since.
    Damaged,
    /// Complete.
    Stored,
    /// Every object was re-read, every hash right.
    Intact,
    /// Restored, started, checked.
    Proven,
}

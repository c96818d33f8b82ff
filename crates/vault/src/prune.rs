//! What may go, and its going in two phases.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_model::{Instant, Keep};
use serde::{Deserialize, Serialize};

use crate::{ClusterVault, Error, Result};

/// What a prune will do: a value, made without touching anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrunePlan {
    /// When it was made.
    pub at: Instant,
    /// What stays, and why.
    pub keep: Vec<Kept>,
    /// What is marked now and deleted by a prune after the grace period.
    pub mark: Vec<Going>,
    /// What an earlier prune marked, and is deleted now.
    pub delete: Vec<Going>,
}

/// A snapshot that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Which.
    pub snapshot: String,
    /// Why: `within 30d`, `daily`, `pinned`, …
    pub why: Vec<String>,
}

/// Something that goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Going {
    /// The snapshot's id, or the object's key.
    pub what: String,
    /// What it is.
    pub kind: GoingKind,
    /// Why.
    pub why: String,
    /// Its size; for a snapshot, that of its own index.
    pub bytes: u64,
}

/// What goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GoingKind {
    /// A snapshot, with its manifest and index.
    Snapshot,
    /// A pack that no snapshot needs.
    Pack,
    /// What a snapshot that never became one has left.
    Attempt,
    /// Log that no snapshot needs.
    Log,
}

/// What a prune did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Things newly marked.
    pub marked: u64,
    /// Snapshots deleted.
    pub snapshots: u64,
    /// Objects deleted.
    pub objects: u64,
    /// Bytes freed.
    pub bytes: u64,
}

pub(crate) async fn bytes_unique(_cluster: &ClusterVault) -> Result<BTreeMap<String, u64>> {
    Err(Error::Invalid("pruning is not there yet".into()))
}

pub(crate) async fn plan(_: &ClusterVault, _: &Keep, _: Duration, _: Instant) -> Result<PrunePlan> {
    Err(Error::Invalid("pruning is not there yet".into()))
}

pub(crate) async fn apply(_: &ClusterVault, _: &PrunePlan) -> Result<Pruned> {
    Err(Error::Invalid("pruning is not there yet".into()))
}

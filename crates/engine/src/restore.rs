//! `restore` and `replay`: a cluster made from a snapshot, and brought to a place in its log.

use async_trait::async_trait;
use mainstay_model::{Bracket, Instant, Lane, Place, Position};

use crate::{Host, Layout, LogSource, Progress, Result, SnapshotSource};

/// Engines that can be made from a snapshot.
#[async_trait]
pub trait Restore: Send + Sync {
    /// Puts the snapshot's files into the (empty) data directories of `job.layout`, ready for [`Replay::replay`]. Starts nothing.
    ///
    /// # Errors
    /// `Damaged`, `Io`, `NotInstalled` (a library that the data needs), `Unsupported` (another topology).
    async fn restore(&self, job: &RestoreJob<'_>) -> Result<()>;
}

/// Engines whose log can be applied up to a place.
#[async_trait]
pub trait Replay: Send + Sync {
    /// Finds the place in `lane` that `target` stands for: at or behind `from` (the snapshot's consistent place), within `log`.
    ///
    /// A time takes in what was committed at or before it. Blocking.
    ///
    /// # Errors
    /// `OutOfLog`; `Ambiguous` when the clock stepped and the time came more than once, or ownership was moving.
    fn cut(&self, lane: &Lane, from: &Place, log: &dyn LogSource, target: &Target) -> Result<Cutting>;

    /// Starts the restored nodes, applies log up to `job.cut`, ends recovery, and returns when the cluster answers and is writable, or
    /// fails with the server's own words. Never reaches out: no archiving, no replication to others, no scheduled jobs.
    ///
    /// # Errors
    /// `Damaged`, `Server`, `Deadline`; nothing is left running then.
    async fn replay(&self, job: &RestoreJob<'_>) -> Result<Replayed>;
}

/// What to restore, where, and up to which place.
pub struct RestoreJob<'a> {
    /// Directories, ports, secret of the cluster to make.
    pub layout: &'a Layout,
    /// Where processes run.
    pub host: &'a dyn Host,
    /// The snapshot.
    pub snapshot: &'a dyn SnapshotSource,
    /// The log behind it.
    pub log: &'a dyn LogSource,
    /// Where to stop, in every lane; at or behind the snapshot's position.
    pub cut: &'a Position,
    /// The instant that the cut stands for (for time to live).
    pub at: Instant,
    /// What becomes of times to live.
    pub ttl: Ttl,
    /// Whether the cluster is to be joined by other nodes afterwards ([`crate::Launch::start`] brings those up).
    pub in_place: bool,
    /// Whether [`crate::Prove::content`] will be asked for. Engines whose content changes by itself, as keys die, look at all of it
    /// before they let a restored node go; that takes time, which nobody should wait for who compares nothing.
    pub compared: bool,
    /// How many files at once.
    pub jobs: usize,
    /// How far it is.
    pub progress: std::sync::Arc<dyn Progress>,
}

/// What becomes of times to live at a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// Every key, row or document has the life left that it had at the restored instant.
    Shift,
    /// Ends stay where they were; what is past is gone.
    Absolute,
}

/// What to restore to, within one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All that was committed at or before this.
    Time(Instant),
    /// A name written into the log (PostgreSQL's restore points).
    Name(String),
    /// This place, if it is a clean one.
    Place(Place),
    /// The last clean place.
    End,
}

/// A place found for a [`Target`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cutting {
    /// The cut: what is below is in.
    pub place: Place,
    /// When the last thing below happened and when the first thing behind it did, as far as known: the cut stands for every instant
    /// in between.
    pub at: Bracket,
}

/// A cluster that was brought to a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Where each lane was in fact stopped, in the terms of the log (not of the new epoch).
    pub position: Position,
    /// Things a person should know: prepared transactions that stayed, settings that were overridden.
    pub notes: Vec<String>,
}

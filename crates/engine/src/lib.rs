//! The contract that every engine's adapter fulfils: traits, the plain data that they exchange, one [`Error`] by kind.
//!
//! Capability crates know engines only through this crate; an adapter knows nothing of them. A capability is an accessor of
//! [`Engine`]: absent means absent, and then the planner refuses it and the help does not offer it.
//! `docs/decisions/0001-engine-contract.md` says how each of ten engines fits.
//!
//! Long reads and writes of bulk data ([`SnapshotSink`], [`SnapshotSource`], [`LogSource`]) block and are called from threads; what talks
//! to servers is async. Futures are stopped by dropping them.

mod access;
mod error;
mod follow;
mod launch;
mod mark;
mod observe;
mod progress;
mod prove;
mod restore;
mod snapshot;

pub use access::{Access, NodeAccess, Secret};
pub use error::{Error, Kind, Result};
pub use follow::{Chunk, Follow, LogSink, LogSource, Never, Segment, SegmentData, TimeMark};
pub use launch::{Host, Installation, Launch, Layout, NodeCommand, NodeLayout, RunAs};
pub use mark::{Held, Hold, Mark, Marked, Released};
pub use observe::{Finding, NodeView, Observe, Role, Severity, View};
pub use progress::{Progress, Quiet, Stoppable};
pub use prove::{Check, Content, Prove};
pub use restore::{Cutting, Replay, Replayed, Restore, RestoreJob, Target, Ttl};
pub use snapshot::{
    Cut, FileKind, FileSpec, Snapshot, SnapshotOptions, SnapshotSink, SnapshotSource, Stored, Taken, Way,
};

use mainstay_model::{Cluster, Place};

/// A kind of database, and all that Mainstay knows of it.
pub trait Engine: Send + Sync {
    /// The name in the fleet file: `postgres`.
    fn name(&self) -> &'static str;

    /// Other names that people write, suggested when one is used: `postgresql`, `pg`.
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }

    /// Checks what the fleet file says of one cluster that only the engine can judge: shape, node counts, settings of its `config:`
    /// section against what that version knows.
    fn check(&self, cluster: &Cluster) -> Vec<Mistake>;

    /// A place, as the engine's people write it: `1:0/3000148`.
    fn write_place(&self, place: &Place) -> String;

    /// Reads what [`Self::write_place`] writes.
    ///
    /// # Errors
    /// `Invalid`, with the form that is expected.
    fn read_place(&self, text: &str) -> Result<Place>;

    /// Whether what it holds may have a time to live ([`Ttl`]).
    fn expires(&self) -> bool {
        false
    }

    /// Copies a cluster.
    fn snapshot(&self) -> Option<&dyn Snapshot> {
        None
    }
    /// Streams its log.
    fn follow(&self) -> Option<&dyn Follow> {
        None
    }
    /// Says "here" in its log.
    fn mark(&self) -> Option<&dyn Mark> {
        None
    }
    /// Keeps writes waiting.
    fn hold(&self) -> Option<&dyn Hold> {
        None
    }
    /// Makes it from a snapshot.
    fn restore(&self) -> Option<&dyn Restore> {
        None
    }
    /// Applies log.
    fn replay(&self) -> Option<&dyn Replay> {
        None
    }
    /// Looks at it.
    fn observe(&self) -> Option<&dyn Observe> {
        None
    }
    /// Starts it here.
    fn launch(&self) -> Option<&dyn Launch> {
        None
    }
    /// Checks a restored one.
    fn prove(&self) -> Option<&dyn Prove> {
        None
    }
}

/// Something wrong in what the fleet file says of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key below the cluster that it is about: `config.wal_level`, `nodes`.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

//! `prove`: whether a restored cluster is what it must be.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Access, Host, Layout, Result, SnapshotSource};

/// Engines whose restored clusters can be checked.
#[async_trait]
pub trait Prove: Send + Sync {
    /// Runs the engine's own integrity checks on a running sandbox and on the snapshot that it came from.
    ///
    /// # Errors
    /// When a check could not be run; one that ran and failed is in the list.
    async fn integrity(
        &self,
        layout: &Layout,
        host: &dyn Host,
        snapshot: &dyn SnapshotSource,
    ) -> Result<Vec<Check>>;

    /// Counts and digests of all content, the same for the same content whatever way it came about.
    ///
    /// # Errors
    /// `Unreachable`, `Server`.
    async fn content(&self, access: &Access) -> Result<Vec<Content>>;
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// `amcheck`, `checksums`, `rdb`, …
    pub kind: String,
    /// What was looked at.
    pub what: String,
    /// What must be found.
    pub expected: String,
    /// What was found.
    pub found: String,
}

impl Check {
    /// Whether what was found is what must be.
    pub fn passed(&self) -> bool {
        self.expected == self.found
    }
}

/// The content of one object (a table, a database).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// What it is: `table shop.public.orders`, `db 0`.
    pub what: String,
    /// Rows or keys (or a sequence's value).
    pub count: i64,
    /// Over all content; order does not matter.
    pub digest: String,
    /// By how much `count` may differ between two restores to one instant (sequences: 32 × increment).
    pub tolerance: i64,
}

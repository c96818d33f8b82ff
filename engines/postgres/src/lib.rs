//! Everything that Mainstay knows of PostgreSQL 15 to 18.
//!
//! See the README beside this crate for versions, what is refused, and why.

pub mod config;
pub mod connect;
pub mod control;
pub mod disk;
pub mod fault;
mod follow;
pub mod install;
mod launch;
pub mod lsn;
mod mark;
mod observe;
pub mod pages;
mod prove;
mod replay;
pub mod replication;
mod restore;
pub mod snapshot;
pub mod tar;
pub mod unpack;
pub mod wal;

use mainstay_engine::{Engine, Error, Kind, Mistake, Result};
use mainstay_model::{Cluster, Place};

/// The adapter.
#[derive(Default)]
pub struct Postgres {
    sessions: mark::Sessions,
}

impl Postgres {
    /// The adapter. One is enough for a process; it keeps sessions for marks.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Runs blocking work where the runtime allows it to be told, so that its other tasks go on meanwhile.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

impl Engine for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["postgresql", "pg", "pgsql", "psql"]
    }

    fn check(&self, cluster: &Cluster) -> Vec<Mistake> {
        config::check(cluster)
    }

    fn write_place(&self, place: &Place) -> String {
        lsn::write_place(place)
    }

    fn read_place(&self, text: &str) -> Result<Place> {
        lsn::read_place(text).map_err(|error| {
            Error::new(Kind::Invalid, error.to_string())
                .hint("write TIMELINE:LSN, as 1:0/3000148 or 2x3000148:0/30001C0")
        })
    }

    fn snapshot(&self) -> Option<&dyn mainstay_engine::Snapshot> {
        Some(self)
    }

    fn follow(&self) -> Option<&dyn mainstay_engine::Follow> {
        Some(self)
    }

    fn mark(&self) -> Option<&dyn mainstay_engine::Mark> {
        Some(self)
    }

    fn restore(&self) -> Option<&dyn mainstay_engine::Restore> {
        Some(self)
    }

    fn replay(&self) -> Option<&dyn mainstay_engine::Replay> {
        Some(self)
    }

    fn prove(&self) -> Option<&dyn mainstay_engine::Prove> {
        Some(self)
    }

    fn observe(&self) -> Option<&dyn mainstay_engine::Observe> {
        Some(self)
    }

    fn launch(&self) -> Option<&dyn mainstay_engine::Launch> {
        Some(self)
    }
}

//! Snapshot, window, plan, restore, prove, and restoring into the environment itself.
//!
//! This crate knows engines through `mainstay-engine` alone, the vault through `mainstay-vault`, and processes through the [`Host`] and the
//! [`Layout`]s that its caller hands in. What it refuses, it refuses while planning: before anything is touched, saying what can be had
//! instead ([`Refusal`]). It never falls back to another target, a snapshot that does not reach it, or less log.
//!
//! [`Host`]: mainstay_engine::Host
//! [`Layout`]: mainstay_engine::Layout

use std::path::PathBuf;

use mainstay_engine::{Access, Engine};
use mainstay_model::Cluster;
use mainstay_vault::ClusterVault;

pub mod catalogue;
mod error;
mod exact;
mod fetch;
pub mod follow;
pub mod history;
pub mod inplace;
pub mod log;
pub mod past;
pub mod plan;
pub mod point;
pub mod prove;
pub mod prune;
pub mod restore;
pub mod snapshot;
mod together;
pub mod verify;
pub mod window;

pub use error::{Error, Result};
pub use plan::Refusal;

/// A cluster that is protected, and all that recovery needs to know of it.
#[derive(Clone)]
pub struct Protected {
    /// What the fleet file says of it.
    pub cluster: Cluster,
    /// Its engine.
    pub engine: &'static dyn Engine,
    /// Its backups.
    pub vault: ClusterVault,
    /// How it is reached while it runs.
    pub access: Access,
    /// The folder of its spool on this machine.
    pub spool: PathBuf,
    /// The incarnation that the runtime minted, where the engine has none of its own.
    pub incarnation: Option<String>,
}

impl std::fmt::Debug for Protected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Protected")
            .field("cluster", &self.cluster.name)
            .field("engine", &self.engine.name())
            .finish()
    }
}

//! The backups of one cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_model::{Instant, Keep, Lane};

use crate::{
    Error, Lease, LogContent, LogObject, LogWriter, PrunePlan, Pruned, Result, SnapshotReader,
    SnapshotRecord, SnapshotWriter, Vault, Verified, VerifyOptions,
};

/// The backups of one cluster of one environment of one fleet. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterVault {
    vault: Vault,
    prefix: Arc<str>,
}

fn not_yet<T>() -> Result<T> {
    Err(Error::Invalid("the vault is not there yet".into()))
}

impl ClusterVault {
    pub(crate) fn new(vault: Vault, fleet: &str, environment: &str, cluster: &str) -> Self {
        Self { vault, prefix: format!("c/{fleet}/{environment}/{cluster}").into() }
    }

    /// The vault.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// What all its keys begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The lives of this cluster's data that have backups.
    ///
    /// # Errors
    /// The store's.
    pub async fn incarnations(&self) -> Result<Vec<String>> {
        not_yet()
    }

    /// Begins a snapshot. What was stored before (by the newest finished snapshot of that incarnation, and by attempts that were
    /// broken off since) is not stored again. `holder` is for people.
    ///
    /// # Errors
    /// The store's, `Damaged` where the index of the snapshot before is.
    pub async fn begin(&self, incarnation: &str, holder: &str) -> Result<Arc<SnapshotWriter>> {
        let _ = (incarnation, holder);
        not_yet()
    }

    /// Every finished snapshot, ordered by (incarnation, time at which it is consistent).
    ///
    /// # Errors
    /// `Damaged` when a manifest is, the store's.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotRecord>> {
        not_yet()
    }

    /// As [`Self::snapshots`], with the damaged ones told beside and not instead: (id, what is wrong).
    ///
    /// # Errors
    /// The store's.
    pub async fn snapshots_and_damaged(&self) -> Result<(Vec<SnapshotRecord>, Vec<(String, Error)>)> {
        not_yet()
    }

    /// Opens a snapshot for reading. Needs the identity only when content is read.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`.
    pub async fn open_snapshot(&self, id: &str) -> Result<Arc<SnapshotReader>> {
        let _ = id;
        not_yet()
    }

    /// Pins a snapshot, or takes the pin away.
    ///
    /// # Errors
    /// `NotFound`, the store's.
    pub async fn set_pinned(&self, id: &str, pinned: bool) -> Result<()> {
        let _ = (id, pinned);
        not_yet()
    }

    /// Records that every object of a snapshot was re-read and found right.
    ///
    /// # Errors
    /// The store's.
    pub async fn record_intact(&self, id: &str, at: Instant) -> Result<()> {
        let _ = (id, at);
        not_yet()
    }

    /// Records that a snapshot was restored, started and checked.
    ///
    /// # Errors
    /// The store's.
    pub async fn record_proven(&self, id: &str, at: Instant, proof: &str) -> Result<()> {
        let _ = (id, at, proof);
        not_yet()
    }

    /// What pruning each snapshot alone would free, in bytes, by id.
    ///
    /// # Errors
    /// `Damaged`, the store's.
    pub async fn bytes_unique(&self) -> Result<BTreeMap<String, u64>> {
        not_yet()
    }

    /// The lanes of an incarnation that have log.
    ///
    /// # Errors
    /// The store's.
    pub async fn lanes(&self, incarnation: &str) -> Result<Vec<Lane>> {
        let _ = incarnation;
        not_yet()
    }

    /// The right to write a lane's log. Its generation is larger than any that has log.
    ///
    /// # Errors
    /// As [`Vault::lease`].
    pub async fn lane_lease(
        &self,
        incarnation: &str,
        lane: &Lane,
        holder: &str,
        ttl: Duration,
    ) -> Result<Lease> {
        let _ = (incarnation, lane, holder, ttl);
        not_yet()
    }

    /// Begins to write a lane's log in a generation that was leased.
    ///
    /// # Errors
    /// `LeaseLost` when a later generation has log already.
    pub async fn log_writer(&self, incarnation: &str, lane: &Lane, generation: u64) -> Result<LogWriter> {
        let _ = (incarnation, lane, generation);
        not_yet()
    }

    /// Every object of a lane's log, ordered by (generation, sequence), from their names alone. See [`crate::surviving`].
    ///
    /// # Errors
    /// The store's. Names that are not a log's are left out; verify names them.
    pub async fn log_objects(&self, incarnation: &str, lane: &Lane) -> Result<Vec<LogObject>> {
        let _ = (incarnation, lane);
        not_yet()
    }

    /// Reads an object of the log, checked; what lies behind its `cut_at` is cut off.
    ///
    /// # Errors
    /// `Damaged`, `NoIdentity`, the store's.
    pub async fn read_log(&self, object: &LogObject) -> Result<LogContent> {
        let _ = object;
        not_yet()
    }

    /// As [`Self::read_log`], and blocks.
    ///
    /// # Errors
    /// As [`Self::read_log`].
    pub fn read_log_blocking(&self, object: &LogObject) -> Result<LogContent> {
        let (this, object) = (self.clone(), object.clone());
        mainstay_store::wait(async move { this.read_log(&object).await })
    }

    /// What a prune would do now. Touches nothing. What an earlier prune marked more than `grace` ago is to be deleted.
    ///
    /// # Errors
    /// `Damaged` (nothing is pruned that cannot be read), the store's.
    pub async fn plan_prune(&self, keep: &Keep, grace: Duration, now: Instant) -> Result<PrunePlan> {
        let _ = (keep, grace, now);
        not_yet()
    }

    /// Does what a plan says, having looked again: what has come into use since stays.
    ///
    /// # Errors
    /// As [`Self::plan_prune`].
    pub async fn apply_prune(&self, plan: &PrunePlan) -> Result<Pruned> {
        let _ = plan;
        not_yet()
    }

    /// Verifies this cluster's backups, or one snapshot of them.
    ///
    /// # Errors
    /// As [`Vault::verify`].
    pub async fn verify(&self, options: &VerifyOptions) -> Result<Verified> {
        let _ = options;
        not_yet()
    }
}

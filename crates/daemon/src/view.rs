//! What the keepers know: of the vault's objects, as they were last read, and of what runs.

use std::time::{Duration, Instant as Monotonic};

use mainstay_model::Instant;
use mainstay_recovery::Protected;
use mainstay_recovery::catalogue::Catalogue;
use mainstay_recovery::point::FleetPoint;
use mainstay_recovery::prove::Proof;
use mainstay_recovery::window::{ClusterWindow, describe};

use crate::due::time_of_point;
use crate::{BoxError, Daemon, why};

/// What is known of a cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    /// What the vault holds; `None` when it was never read, or could not be read the last time.
    pub vault: Option<VaultView>,
    /// Whether the cluster has nodes that are known.
    pub is_known: bool,
    /// What went wrong last.
    pub error: Option<String>,
    /// What must not be tried before.
    pub retries: Retries,
    /// When it was last pruned here.
    pub pruned: Option<Monotonic>,
}

/// What the vault holds of a cluster.
#[derive(Clone, Debug)]
pub struct VaultView {
    /// When it was read.
    pub read: Monotonic,
    /// The window.
    pub window: ClusterWindow,
    /// When the finished snapshots were begun.
    pub begun: Vec<Instant>,
    /// When a snapshot was last proven to be restorable, and when a proof was last made at all.
    pub proven_at: Option<Instant>,
    /// When a proof was last made, whatever it found.
    pub proof_at: Option<Instant>,
    /// How long its restore took, in seconds.
    pub proof_rto_seconds: Option<f64>,
}

/// What is known of a recovery group.
#[derive(Clone, Debug, Default)]
pub struct GroupView {
    /// When its points were read.
    pub read: Option<Monotonic>,
    /// The newest one's time.
    pub last: Option<Instant>,
    /// The newest that was to be exact.
    pub last_exact_tried: Option<Instant>,
    /// The newest that this process set, whole.
    pub newest: Option<FleetPoint>,
    /// Points that were to be exact, and those that were, since the start.
    pub exact_tried: u64,
    /// Those that were.
    pub exact_done: u64,
    /// What went wrong last.
    pub error: Option<String>,
    /// What must not be tried before.
    pub retry: Retry,
}

/// When which kind of work may be tried again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retries {
    pub snapshot: Retry,
    pub proof: Retry,
    pub prune: Retry,
}

/// When something may be tried again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retry {
    not_before: Option<Monotonic>,
    failures: u32,
}

impl Retry {
    /// Whether it may be tried.
    pub fn is_open(&self) -> bool {
        self.not_before.is_none_or(|at| Monotonic::now() >= at)
    }

    /// After a failure: twice as long as the time before.
    pub fn failed(&mut self, (first, longest): (Duration, Duration)) {
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures += 1;
        self.not_before = Some(Monotonic::now() + pause);
    }

    /// Not now, though nothing failed.
    pub fn later(&mut self, pause: Duration) {
        self.not_before = Some(Monotonic::now() + pause);
    }

    /// After a success.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }
}

impl Daemon {
    /// What the vault holds, read anew if the last time is older than `at_most`.
    pub(crate) async fn vault_view(&self, of: &Protected, at_most: Duration) -> Result<VaultView, String> {
        let name = &of.cluster.name;
        if let Some(view) = self.view(name).vault.filter(|view| view.read.elapsed() < at_most) {
            return Ok(view);
        }
        let read =
            read(of, self.config.fleet.name.as_str(), self.config.fleet.environment.name.as_str()).await;
        match read {
            Ok(view) => {
                self.change_view(name, |known| known.vault = Some(view.clone()));
                Ok(view)
            }
            Err(e) => {
                // Absent rather than stale: what cannot be read is not known.
                self.change_view(name, |known| known.vault = None);
                Err(why(&*e))
            }
        }
    }
}

async fn read(of: &Protected, fleet: &str, environment: &str) -> Result<VaultView, BoxError> {
    let name = of.cluster.name.as_str();
    // A place that was not seen to hold the vault yet says nothing of what that holds.
    of.vault.vault().confirm().await?;
    let catalogue = Catalogue::load(&of.vault).await?;
    let proofs = of.vault.vault().proofs::<Proof>(fleet, environment, name).await?;
    let newest = proofs.iter().map(|(_, proof)| proof).max_by_key(|proof| proof.made_at);
    let records = catalogue.records.values();
    Ok(VaultView {
        read: Monotonic::now(),
        window: describe(name, &catalogue, None, Instant::now()),
        begun: records.clone().filter(|record| !record.leaving).map(|record| record.begun_at).collect(),
        proven_at: records.filter_map(|record| record.proven_at).max(),
        proof_at: newest.map(|proof| proof.made_at),
        proof_rto_seconds: newest.map(|proof| proof.rto_seconds),
    })
}

impl GroupView {
    /// From the ids of its points.
    pub fn set_ids(&mut self, ids: &[String]) {
        self.read = Some(Monotonic::now());
        self.last = ids.iter().rev().find_map(|id| time_of_point(id)).max(self.last);
    }
}

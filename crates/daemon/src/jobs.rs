//! What is done for a cluster when it is due. Each looks at the vault, takes the lease, looks again, does it, and says how it went.

use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use mainstay_engine::{Progress, Quiet, Way};
use mainstay_model::{ClusterName, Instant};
use mainstay_recovery::Protected;
use mainstay_recovery::follow::{Follower, Until, Wanted};
use mainstay_recovery::plan::Target;
use mainstay_recovery::prove::{ProveOptions, prove};
use mainstay_recovery::prune::{GRACE, prune};
use mainstay_recovery::snapshot::backup;
use mainstay_state::{NewProof, State};
use mainstay_vault::{self as vault, Lease};
use serde_json::{Value, json};

use crate::metrics::Bytes;
use crate::{Daemon, due, lock, why};

/// How long a lease of the daemon's lasts without a beat.
pub(crate) const LEASE_TTL: Duration = Duration::from_secs(20);
/// How long one waits before looking again whether somebody else has done it.
const HELD_PAUSE: Duration = Duration::from_secs(5);
/// How long a follower, here or elsewhere, may take to see that the snapshot is there that it wanted.
const SEEN_PAUSE: Duration = Duration::from_secs(3);
/// How long `serve --once` gives a follower to find out whether its log goes on.
const SETTLE_WITHIN: Duration = Duration::from_secs(20);

/// What became of something that was due.
pub(crate) enum Outcome {
    /// Done.
    Done(Bytes, Value),
    /// Somebody else does it, or will: the daemon ends.
    Held,
}

impl Daemon {
    /// Follows a cluster that is to be followed; anew where its nodes or its data are others than before.
    pub(crate) async fn keep_follower(&self, of: &Protected) {
        let name = &of.cluster.name;
        if !of.cluster.backup.as_ref().is_some_and(|backup| backup.follow) || of.access.nodes.is_empty() {
            return;
        }
        if let Some(follower) = self.follower(name) {
            if is_same(follower.of(), of) {
                return;
            }
            tracing::info!(cluster = %name, "its nodes or its data changed: follow anew");
            lock(&self.followers).remove(name);
            follower.stop().await;
        }
        let follower = Arc::new(Follower::start(of.clone(), self.config.follow.clone()));
        lock(&self.followers).insert(name.clone(), follower);
    }

    /// Takes a snapshot if one is due. `settle`: waits for the follower to say whether it wants one.
    pub(crate) async fn snapshot_if_due(&self, of: &Protected, settle: bool) -> Result<bool, String> {
        let name = &of.cluster.name;
        let follower = self.follower(name);
        if let Some(follower) = follower.as_ref().filter(|_| settle) {
            wait_settled(follower).await;
        }
        if !self.view(name).retries.snapshot.is_open() {
            return Ok(false);
        }
        let wanted = || follower.as_ref().and_then(|follower| follower.status().wants_snapshot().cloned());
        let view = self.vault_view(of, self.config.rhythm.refresh).await?;
        if self.snapshot_due(of, &view.begun, wanted()).is_none() {
            return Ok(false);
        }
        let Some(lease) = self.lease(of, "snapshot").await? else {
            self.change_view(name, |view| view.retries.snapshot.later(HELD_PAUSE));
            return Ok(false);
        };
        let view = self.vault_view(of, Duration::ZERO).await;
        let due = view.map(|view| self.snapshot_due(of, &view.begun, wanted()));
        let done = match due {
            Ok(Some(reason)) => {
                tracing::info!(cluster = %name, reason, "take a snapshot");
                self.run("snapshot", name.as_str(), self.take_snapshot(of)).await
            }
            Ok(None) => Ok(false),
            Err(e) => Err(e),
        };
        let retry = self.config.rhythm.retry;
        self.change_view(name, |view| match &done {
            Ok(true) => {
                view.retries.snapshot.succeeded();
                view.retries.snapshot.later(SEEN_PAUSE);
            }
            Ok(false) => view.retries.snapshot.later(HELD_PAUSE),
            Err(_) => view.retries.snapshot.failed(retry),
        });
        // The next look must see what was made.
        let _ = self.vault_view(of, Duration::ZERO).await;
        release(lease).await;
        done
    }

    fn snapshot_due(&self, of: &Protected, begun: &[Instant], wanted: Option<Wanted>) -> Option<String> {
        let backup = of.cluster.backup.as_ref()?;
        let (schedule, follow) = (backup.snapshot.as_ref(), backup.follow);
        due::snapshot(begun, schedule, follow, wanted.as_ref(), self.is_hurried, Instant::now())
    }

    async fn take_snapshot(&self, of: &Protected) -> Result<Outcome, String> {
        let taken = backup(of, Way::Auto, self.config.jobs, &self.config.holder, Arc::new(Quiet)).await;
        match taken {
            Ok(taken) => {
                let bytes =
                    Bytes { read: taken.bytes_read, new: taken.bytes_new, stored: taken.bytes_stored };
                Ok(Outcome::Done(bytes, json!({ "snapshot": taken.snapshot })))
            }
            Err(e) if is_held(&e) => Ok(Outcome::Held),
            Err(e) => Err(why(&e)),
        }
    }

    /// Proves the newest instant if a proof is due.
    pub(crate) async fn prove_if_due(&self, of: &Protected) -> Result<bool, String> {
        let name = &of.cluster.name;
        let schedule = of.cluster.backup.as_ref().and_then(|backup| backup.prove.as_ref());
        if schedule.is_none() || !self.view(name).retries.proof.is_open() {
            return Ok(false);
        }
        let is_due = |view: &crate::view::VaultView| {
            let since = view.proof_at.or_else(|| view.begun.iter().min().copied());
            since.is_some_and(|since| due::scheduled(schedule, since, Instant::now()))
        };
        if !is_due(&self.vault_view(of, self.config.rhythm.refresh).await?) {
            return Ok(false);
        }
        let Some(lease) = self.lease(of, "proof").await? else {
            self.change_view(name, |view| view.retries.proof.later(HELD_PAUSE));
            return Ok(false);
        };
        let done = match self.vault_view(of, Duration::ZERO).await {
            Ok(view) if is_due(&view) => self.run("proof", name.as_str(), self.make_proof(of)).await,
            Ok(_) => Ok(false),
            Err(e) => Err(e),
        };
        let retry = self.config.rhythm.retry;
        self.change_view(name, |view| match &done {
            Err(_) => view.retries.proof.failed(retry),
            Ok(_) => view.retries.proof.succeeded(),
        });
        let _ = self.vault_view(of, Duration::ZERO).await;
        release(lease).await;
        done
    }

    async fn make_proof(&self, of: &Protected) -> Result<Outcome, String> {
        let time: String =
            Instant::now().to_string().chars().filter(char::is_ascii_alphanumeric).take(18).collect();
        let options = ProveOptions {
            id: format!("proof-{}-{}", of.cluster.name, time.to_ascii_lowercase()),
            fleet: self.config.fleet.name.to_string(),
            environment: self.config.fleet.environment.name.to_string(),
            subject: of.cluster.name.to_string(),
            snapshots: vec![],
            command: None,
            jobs: self.config.jobs,
            began: Monotonic::now(),
            progress: Arc::new(self.ending.clone()),
        };
        lock(&self.proofs).insert(of.cluster.name.clone(), options.id.clone());
        let proof =
            prove(std::slice::from_ref(of), &Target::Latest, self.config.world.sandboxes(), &options).await;
        lock(&self.proofs).remove(&of.cluster.name);
        let proof = match proof {
            // Another day, or another daemon.
            Err(_) if self.ending.cancelled() => return Ok(Outcome::Held),
            proof => proof.map_err(|e| why(&e))?,
        };
        let record = serde_json::to_value(&proof).unwrap_or_default();
        let (proven, rto_ms) = (proof.differences.is_empty(), (proof.rto_seconds * 1000.0) as u64);
        self.with_state(move |state| {
            let proof = NewProof { id: &proof.proof, what: &proof.subject, proven, rto_ms, record: &record };
            state.add_proof(&proof).map_err(|e| tracing::warn!(error = %e, "record proof")).ok();
        })
        .await;
        match proven {
            true => Ok(Outcome::Done(Bytes::default(), json!({ "proof": options.id }))),
            false => Err(format!("proof {} found differences", options.id)),
        }
    }

    /// Removes the sandboxes of a proof that was broken off.
    pub(crate) async fn clear_proof(&self, name: &ClusterName) {
        let Some(id) = lock(&self.proofs).remove(name) else { return };
        // The one that is crossed has a name made from the first one's.
        for sandbox in [id.clone(), format!("{id}-x")] {
            if let Err(e) = self.config.world.sandboxes().remove(&sandbox).await {
                tracing::error!(
                    sandbox,
                    error = why(&e),
                    "remove the sandbox of a proof that was broken off"
                );
            }
        }
    }

    /// Prunes if that is due.
    pub(crate) async fn prune_if_due(&self, of: &Protected) -> Result<bool, String> {
        let (name, every) = (&of.cluster.name, self.config.rhythm.prune);
        let view = self.view(name);
        if view.pruned.is_some_and(|pruned| pruned.elapsed() < every) || !view.retries.prune.is_open() {
            return Ok(false);
        }
        if !self.prune_due(name).await {
            return Ok(false);
        }
        let Some(lease) = self.lease(of, "prune").await? else {
            self.change_view(name, |view| view.retries.prune.later(HELD_PAUSE));
            return Ok(false);
        };
        // Another daemon of this home may have done it since we looked.
        let done = match self.prune_due(name).await {
            true => self.run("prune", name.as_str(), self.prune(of)).await,
            false => Ok(false),
        };
        release(lease).await;
        let retry = self.config.rhythm.retry;
        self.change_view(name, |view| match &done {
            Ok(_) => {
                view.pruned = Some(Monotonic::now());
                view.retries.prune.succeeded();
            }
            Err(_) => view.retries.prune.failed(retry),
        });
        done
    }

    async fn prune_due(&self, name: &ClusterName) -> bool {
        let what = name.to_string();
        let last =
            self.with_state(move |state| state.last_good_run("prune", &what).ok().flatten()).await.flatten();
        due::every(self.config.rhythm.prune, last.and_then(|run| run.ended), Instant::now())
    }

    async fn prune(&self, of: &Protected) -> Result<Outcome, String> {
        match prune(of, GRACE, &self.config.holder).await {
            Ok((_, pruned)) => {
                let detail =
                    json!({ "marked": pruned.marked, "snapshots": pruned.snapshots, "bytes": pruned.bytes });
                Ok(Outcome::Done(Bytes::default(), detail))
            }
            Err(e) if is_held(&e) => Ok(Outcome::Held),
            Err(e) => Err(why(&e)),
        }
    }

    /// Waits until the vault has all log that there is now. `None` for a cluster that is not followed.
    pub(crate) async fn catch_up(&self, of: &Protected) -> Option<Result<(), String>> {
        let follower = self.follower(&of.cluster.name)?;
        let within = self.config.rhythm.catch_up;
        Some(follower.wait_until(&Until::Now, within).await.map_err(|e| why(&e)))
    }

    /// Runs something that is due, counts and records it. `true` if it was done here.
    pub(crate) async fn run(
        &self,
        kind: &'static str,
        what: &str,
        work: impl Future<Output = Result<Outcome, String>>,
    ) -> Result<bool, String> {
        let began = Monotonic::now();
        let about = what.to_owned();
        let run = self.with_state(move |state| state.run_began(kind, &about).ok()).await.flatten();
        let result = work.await;
        let (bytes, detail, error) = match &result {
            Ok(Outcome::Done(bytes, detail)) => (*bytes, detail.clone(), None),
            Ok(Outcome::Held) => (Bytes::default(), json!({ "held": true }), None),
            Err(e) => (Bytes::default(), Value::Null, Some(e.clone())),
        };
        match &result {
            Ok(Outcome::Done(..)) => self.counters.done(kind, what, began.elapsed(), bytes),
            Ok(Outcome::Held) => {}
            Err(e) => {
                tracing::error!(kind, what, error = e, "what was due failed, and will be tried again");
                self.counters.failed(kind, what);
            }
        }
        if let Some(run) = run {
            self.with_state(move |state| {
                let ended = state.run_ended(run, error.as_deref(), bytes.stored, &detail);
                ended.map_err(|e| tracing::warn!(error = %e, "record run")).ok()
            })
            .await;
        }
        result.map(|outcome| matches!(outcome, Outcome::Done(..)))
    }

    /// Takes the lease for one kind of work about a cluster; `None` while somebody else has it.
    async fn lease(&self, of: &Protected, kind: &str) -> Result<Option<Lease>, String> {
        let name = format!("daemon.{kind}.{}", of.vault.prefix().replace('/', "."));
        match of.vault.vault().lease(&name, &self.config.holder, LEASE_TTL).await {
            Ok(lease) => Ok(Some(lease)),
            Err(vault::Error::Held { .. }) => Ok(None),
            Err(e) => Err(why(&e)),
        }
    }

    /// The state's calls wait for the disk: beside the tasks, then.
    pub(crate) async fn with_state<T: Send + 'static>(
        &self,
        act: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Option<T> {
        let state = self.config.state.clone()?;
        tokio::task::spawn_blocking(move || act(&state)).await.ok()
    }
}

pub(crate) async fn release(lease: Lease) {
    if let Err(e) = lease.release().await {
        tracing::debug!(error = %e, "release lease");
    }
}

async fn wait_settled(follower: &Follower) {
    let began = Monotonic::now();
    while began.elapsed() < SETTLE_WITHIN {
        let status = follower.status();
        if status.is_well() || status.wants_snapshot().is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn is_held(error: &mainstay_recovery::Error) -> bool {
    matches!(error, mainstay_recovery::Error::Vault { source: vault::Error::Held { .. }, .. })
}

fn is_same(a: &Protected, b: &Protected) -> bool {
    a.incarnation == b.incarnation
        && a.access.nodes == b.access.nodes
        && a.access.user == b.access.user
        && a.access.password == b.access.password
}

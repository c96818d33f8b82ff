//! Running a plan: clusters made from their snapshots and brought to the cut, in the sites that the caller made for them.
//!
//! Several clusters at a time. Each step has a deadline in proportion to what it moves. When any step fails, everything that was started is
//! stopped again, and the error says which step it was; what lies in the sites' folders is for the caller to
//! remove. The folders must be empty.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use mainstay_engine::{self as engine, Host, Layout, Progress, RestoreJob, Ttl};
use mainstay_model::{Instant, Objective, Position};
use serde::Serialize;

use crate::error::{Doing, Error, Result};
use crate::plan::{Planned, Ready};
use crate::together::{Turn, together};

/// Where one cluster is restored to.
#[derive(Clone)]
pub struct Site {
    /// Its folders, ports, secret.
    pub layout: Layout,
    /// Where its processes run.
    pub host: Arc<dyn Host>,
}

/// How to run a plan.
#[derive(Clone)]
pub struct RunOptions {
    /// The sandbox's name, or the operation's.
    pub sandbox: String,
    /// What becomes of times to live.
    pub ttl: Ttl,
    /// How many files are written at once.
    pub jobs: usize,
    /// Whether other nodes will join.
    pub in_place: bool,
    /// Whether all content will be read afterwards, to be compared with that of another restore.
    pub compared: bool,
    /// When the command began: RTO is counted from there.
    pub began: Monotonic,
    /// What the tiers of the clusters allow.
    pub objectives: Vec<Objective>,
    /// How far it is.
    pub progress: Arc<dyn Progress>,
}

/// What was restored.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// The sandbox, which runs until it is dropped.
    pub sandbox: String,
    /// Cluster by cluster, in the plan's order.
    pub clusters: Vec<RestoredCluster>,
    /// From the command to running clusters.
    pub rto_seconds: f64,
    /// The window's end less what was restored.
    pub rpo_seconds: f64,
    /// By how much the clusters' cuts can be apart.
    pub skew_ms: f64,
    /// Whether RTO or RPO is more than a tier allows.
    pub over_target: bool,
}

/// A cluster that was restored. Its URIs hold passwords.
#[derive(Clone, Serialize)]
pub struct RestoredCluster {
    /// The cluster.
    pub cluster: String,
    /// Where it can be reached.
    pub uris: Vec<String>,
    /// The instant that it was restored to.
    pub restored_to: Instant,
    /// The position that it was restored to.
    pub position: Position,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for RestoredCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (to, position) = (&self.restored_to, &self.position);
        write!(f, "RestoredCluster({} to {to} at {position:?}, notes {:?})", self.cluster, self.notes)
    }
}

/// Runs a plan. `sites` has one for each of its clusters, with empty folders.
///
/// # Errors
/// `Refused` when the plan is; what a step said. Nothing is left running then.
pub async fn restore(
    planned: &Planned,
    sites: &BTreeMap<String, Site>,
    options: &RunOptions,
) -> Result<Restored> {
    if !planned.plan.refusals.is_empty() {
        return Err(Error::Refused(planned.plan.refusals.clone()));
    }
    let mut pairs = Vec::new();
    for ready in &planned.ready {
        pairs.push((ready, site_of(ready, sites)?));
    }
    let runs = together(&pairs, &options.progress, |(ready, site), turn| async move {
        one(ready, site, options, &turn).await
    });
    match runs.await {
        Ok(clusters) => Ok(report(planned, clusters, options)),
        Err(error) => {
            stop_all(planned, sites).await;
            Err(error)
        }
    }
}

/// Where a cluster is restored to.
pub(crate) fn site_of<'a>(ready: &Ready, sites: &'a BTreeMap<String, Site>) -> Result<&'a Site> {
    let cluster = &ready.plan.cluster;
    sites.get(cluster).ok_or_else(|| Error::invalid(format!("there is no place to restore {cluster} to")))
}

/// What a finished restore reports.
pub(crate) fn report(planned: &Planned, clusters: Vec<RestoredCluster>, options: &RunOptions) -> Restored {
    let rto_seconds = options.began.elapsed().as_secs_f64();
    let rpo_seconds = planned.plan.rpo_seconds;
    let over =
        |limit: Option<Duration>, seconds: f64| limit.is_some_and(|limit| seconds > limit.as_secs_f64());
    let over_target = options.objectives.iter().any(|o| over(o.rto, rto_seconds) || over(o.rpo, rpo_seconds));
    let (sandbox, skew_ms) = (options.sandbox.clone(), planned.plan.skew_ms);
    Restored { sandbox, clusters, rto_seconds, rpo_seconds, skew_ms, over_target }
}

/// Restores one cluster and brings it to the cut.
pub(crate) async fn one(
    ready: &Ready,
    site: &Site,
    options: &RunOptions,
    turn: &Turn,
) -> Result<RestoredCluster> {
    let (ready, site) = (ready.clone(), site.clone());
    let options = RunOptions { progress: turn.progress(), ..options.clone() };
    turn.apart(async move { files_and_log(&ready, &site, &options).await }).await
}

async fn files_and_log(ready: &Ready, site: &Site, options: &RunOptions) -> Result<RestoredCluster> {
    let layout = &site.layout;
    let cluster = &ready.plan.cluster;
    let engine = ready.of.engine;
    let (Some(restore), Some(replay)) = (engine.restore(), engine.replay()) else {
        return Err(Error::Unsupported { engine: engine.name(), verb: "be restored" });
    };
    let job = RestoreJob {
        layout,
        host: site.host.as_ref(),
        snapshot: ready.snapshot.as_ref(),
        log: ready.log.as_ref(),
        cut: &ready.plan.position,
        at: ready.plan.restored_to,
        ttl: options.ttl,
        in_place: options.in_place,
        compared: options.compared,
        jobs: options.jobs,
        progress: options.progress.clone(),
    };
    within(
        deadline(300, ready.plan.bytes),
        || format!("restore the files of {cluster}"),
        restore.restore(&job),
    )
    .await?;
    let moved = ready.plan.bytes + ready.plan.log_bytes;
    let replayed =
        within(deadline(900, moved), || format!("replay the log of {cluster}"), replay.replay(&job)).await?;
    let access = layout.access();
    let uris = match engine.observe() {
        Some(observe) => access.nodes.iter().map(|node| observe.uri(&access, node)).collect(),
        None => vec![],
    };
    let mut notes = ready.plan.warnings.clone();
    notes.extend(replayed.notes);
    Ok(RestoredCluster {
        cluster: cluster.clone(),
        uris,
        restored_to: ready.plan.restored_to,
        position: replayed.position,
        notes,
    })
}

/// Stops what runs of the clusters of a restore that failed, if anything does.
pub(crate) async fn stop_all(planned: &Planned, sites: &BTreeMap<String, Site>) {
    for ready in &planned.ready {
        let cluster = &ready.plan.cluster;
        let (Some(launch), Some(site)) = (ready.of.engine.launch(), sites.get(cluster)) else { continue };
        if let Err(error) = launch.stop(&site.layout, site.host.as_ref()).await {
            tracing::error!(cluster, %error, "servers of a failed restore may still run");
        }
    }
}

/// A base, and time in proportion: no disk that is worth having writes less than 4 MiB/s.
fn deadline(base_seconds: u64, bytes: u64) -> Duration {
    Duration::from_secs(base_seconds + bytes / (4 << 20))
}

/// Waits for a step, but not for ever.
pub(crate) async fn within<T>(
    limit: Duration,
    what: impl Fn() -> String,
    step: impl Future<Output = engine::Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit, step).await {
        Ok(done) => done.doing(what),
        Err(_) => Err(Error::Deadline { what: what(), seconds: limit.as_secs() }),
    }
}

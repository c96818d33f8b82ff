//! Restoring into the environment itself: steps that are journaled, so that a kill at any of them is survivable.
//!
//! Per cluster: `stop`, `set-aside` (the old data, under the operation's name), `incarnation` (another life begins, so that whoever follows does
//! not take the new log for the old one's), `restore` (files and replay), `start` (the other nodes join), `verify`. Every step can be run
//! again. [`resume`] goes on behind the last step that is done, with the same snapshots and places. [`undo`], at any step until [`finish`],
//! brings the old data back; `finish` deletes it, and has no undo.
//!
//! Refused: a plan with refusals. What the vault holds of the old life stays. Afterwards a snapshot of each cluster is due at once, since what
//! is written from now on may have none below it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use async_trait::async_trait;
use mainstay_engine::{self as engine, Progress, Role, Severity, Ttl};
use mainstay_model::{Instant, Objective, Position};
use mainstay_state::{Operation, Progress as Stage, State, StepState};
use serde::{Deserialize, Serialize};

use crate::Protected;
use crate::error::{Doing, Error, Result};
use crate::plan::{PlanOptions, Planned, PointTarget, Ready, Target, plan};
use crate::restore::{self, Restored, RestoredCluster, RunOptions, Site, within};
use crate::together::{Turn, together};

/// The kind of these operations in the journal.
pub const KIND: &str = "in-place";

/// How long starting or stopping a cluster may take.
const SERVERS: Duration = Duration::from_secs(600);

/// What happens to a cluster's data and name on this machine; the caller does it. Each may be called again after a kill at any moment.
#[async_trait]
pub trait Swap: Send + Sync {
    /// The environment's own layout of a cluster, and where its processes run.
    ///
    /// # Errors
    /// `Invalid` for a cluster that was never brought up here.
    async fn site(&self, cluster: &str) -> engine::Result<Site>;

    /// Moves the data of every node out of the way, under the operation's name.
    ///
    /// # Errors
    /// `Io`; `Refused` while a node runs.
    async fn set_aside(&self, cluster: &str, operation: &str) -> engine::Result<()>;

    /// Puts it back in place of what the operation has put there, which goes.
    ///
    /// # Errors
    /// As [`Self::set_aside`].
    async fn bring_back(&self, cluster: &str, operation: &str) -> engine::Result<()>;

    /// Deletes what was set aside.
    ///
    /// # Errors
    /// `Io`.
    async fn discard(&self, cluster: &str, operation: &str) -> engine::Result<()>;

    /// Begins another incarnation of the cluster's data; the same one again for the same operation.
    ///
    /// # Errors
    /// `Io`.
    async fn renew_incarnation(&self, cluster: &str, operation: &str) -> engine::Result<()>;

    /// Takes that back.
    ///
    /// # Errors
    /// `Io`.
    async fn restore_incarnation(&self, cluster: &str, operation: &str) -> engine::Result<()>;
}

/// What an operation does: kept in its journal, so that it can be gone on with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// What was asked for, in words.
    pub target: String,
    /// The instant that it stands for.
    pub target_at: Instant,
    /// By how much the cuts can be apart.
    pub skew_ms: f64,
    /// Whether times to live are shifted, or stay.
    pub shift_ttl: bool,
    /// Cluster by cluster.
    pub clusters: Vec<BegunCluster>,
}

/// What an operation does with one cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BegunCluster {
    /// The cluster.
    pub cluster: String,
    /// The snapshot that it begins with.
    pub snapshot: String,
    /// Where its log is cut.
    pub position: Position,
    /// The instant that is restored.
    pub restored_to: Instant,
}

/// A step of an operation, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The servers are stopped. Undo: they are started again.
    Stop,
    /// The data is set aside. Undo: it is brought back.
    SetAside,
    /// Another incarnation begins. Undo: the old one's name is restored.
    Incarnation,
    /// Files and log. Undo: its servers are stopped; the files go when the old data comes back.
    Restore,
    /// All nodes. Undo: they are stopped.
    Start,
    /// Every node answers. No undo: it changes nothing.
    Verify,
}

const STEPS: [Step; 6] =
    [Step::Stop, Step::SetAside, Step::Incarnation, Step::Restore, Step::Start, Step::Verify];

impl Step {
    fn name(self, cluster: &str) -> String {
        let step = match self {
            Self::Stop => "stop",
            Self::SetAside => "set-aside",
            Self::Incarnation => "incarnation",
            Self::Restore => "restore",
            Self::Start => "start",
            Self::Verify => "verify",
        };
        format!("{step} {cluster}")
    }
}

/// Steps that stand for a decision: behind `undo` there is no going on, behind `finish` no going back.
const UNDO: &str = "undo";
const FINISH: &str = "finish";

/// How to run an operation.
#[derive(Clone)]
pub struct InPlaceOptions {
    /// What becomes of times to live.
    pub ttl: Ttl,
    /// How many files are written at once.
    pub jobs: usize,
    /// When the command began.
    pub began: Monotonic,
    /// What the tiers of the clusters allow.
    pub objectives: Vec<Objective>,
    /// How far it is.
    pub progress: Arc<dyn Progress>,
}

/// Begins an operation: what it does is on record, and nothing is touched yet. Plan it with [`PlanOptions::check`]. `what` is for people:
/// `shop into local`.
///
/// # Errors
/// `Refused` when the plan is; the journal's.
pub fn begin(state: &State, what: &str, planned: &Planned, ttl: Ttl) -> Result<Operation> {
    if !planned.plan.refusals.is_empty() {
        return Err(Error::Refused(planned.plan.refusals.clone()));
    }
    let cluster = |ready: &Ready| BegunCluster {
        cluster: ready.plan.cluster.clone(),
        snapshot: ready.plan.snapshot.clone(),
        position: ready.plan.position.clone(),
        restored_to: ready.plan.restored_to,
    };
    let begun = Begun {
        target: planned.plan.target.clone(),
        target_at: planned.plan.at.unwrap_or(Instant::MIN),
        skew_ms: planned.plan.skew_ms,
        shift_ttl: ttl == Ttl::Shift,
        clusters: planned.ready.iter().map(cluster).collect(),
    };
    state.begin(KIND, what, &begun).doing(|| "begin the operation".to_owned())
}

/// Runs an operation that was begun just now.
///
/// # Errors
/// What a step said: then `resume` or `undo` it.
pub async fn run(
    operation: &Operation,
    planned: &Planned,
    swap: &dyn Swap,
    options: &InPlaceOptions,
) -> Result<Restored> {
    drive(operation, planned, swap, options).await
}

/// Goes on with an operation that was broken off, to the same places from the same snapshots.
///
/// # Errors
/// `Invalid` for one that is being undone, undone or finished; as [`run`].
pub async fn resume(
    operation: &Operation,
    members: &[Protected],
    swap: &dyn Swap,
    options: &InPlaceOptions,
) -> Result<Restored> {
    let begun = begun(operation)?;
    if let Some(reason) = closed(operation, false)? {
        return Err(impossible(operation, &reason, "resumed"));
    }
    let planned = plan_again(&begun, members).await?;
    let ttl = if begun.shift_ttl { Ttl::Shift } else { Ttl::Absolute };
    drive(operation, &planned, swap, &InPlaceOptions { ttl, ..options.clone() }).await
}

/// Brings back what ran before, at whatever step the operation is.
///
/// # Errors
/// `Invalid` when the old data is deleted already; what a step said: then undo it again.
pub async fn undo(operation: &Operation, members: &[Protected], swap: &dyn Swap) -> Result<()> {
    let begun = begun(operation)?;
    if stage(operation)? == Stage::Undone {
        return Ok(());
    }
    if is_begun(operation, FINISH)? {
        return Err(impossible(operation, "is finished, and its old data deleted", "undone"));
    }
    mark(operation, UNDO).await?;
    for step in STEPS.iter().rev() {
        for of in ordered(&begun, members)?.into_iter().rev() {
            let cluster = of.cluster.name.as_str();
            let site = swap.site(cluster).await.doing(|| format!("find {cluster}"))?;
            let name = step.name(cluster);
            // A cluster that did not run before is not started: where there was no data, that would make some.
            let ran =
                operation.given::<bool>(&Step::Stop.name(cluster)).doing(|| format!("read step {name}"))?;
            let undone = operation.undo(&name, async || match step {
                Step::Verify => Ok(()),
                Step::Start | Step::Restore => stop(of, &site).await,
                Step::Incarnation => {
                    let restored = swap.restore_incarnation(cluster, operation.id()).await;
                    restored.doing(|| format!("restore the incarnation of {cluster}"))
                }
                Step::SetAside => {
                    stop(of, &site).await?;
                    swap.bring_back(cluster, operation.id())
                        .await
                        .doing(|| format!("bring back the data of {cluster}"))
                }
                Step::Stop if ran == Some(false) => Ok(()),
                Step::Stop => start(of, &site).await,
            });
            undone.await?;
        }
    }
    operation.set_progress(Stage::Undone).doing(|| "record that it is undone".to_owned())
}

/// Deletes the old data of an operation that is done. No undo after this.
///
/// # Errors
/// `Invalid` unless it is done; `Io`: then finish it again.
pub async fn finish(operation: &Operation, swap: &dyn Swap) -> Result<()> {
    let begun = begun(operation)?;
    let stage = stage(operation)?;
    if stage == Stage::Finished {
        return Ok(());
    }
    if let Some(reason) = closed(operation, true)? {
        return Err(impossible(operation, &reason, "finished"));
    }
    if stage != Stage::Done && !is_begun(operation, FINISH)? {
        return Err(impossible(operation, "is not done yet", "finished"));
    }
    mark(operation, FINISH).await?;
    for BegunCluster { cluster, .. } in &begun.clusters {
        swap.discard(cluster, operation.id()).await.doing(|| format!("delete the old data of {cluster}"))?;
    }
    operation.set_progress(Stage::Finished).doing(|| "record that it is finished".to_owned())
}

/// What the journal keeps of a restored cluster: no URI, since that holds a password.
#[derive(Serialize, Deserialize)]
struct Told {
    position: Position,
    notes: Vec<String>,
}

/// Does the steps that are not done yet.
async fn drive(
    operation: &Operation,
    planned: &Planned,
    swap: &dyn Swap,
    options: &InPlaceOptions,
) -> Result<Restored> {
    let mut sites = BTreeMap::new();
    for ready in &planned.ready {
        let cluster = &ready.plan.cluster;
        sites.insert(cluster.clone(), swap.site(cluster).await.doing(|| format!("find {cluster}"))?);
    }
    let run = RunOptions {
        sandbox: operation.id().to_owned(),
        ttl: options.ttl,
        jobs: options.jobs,
        in_place: true,
        compared: false,
        began: options.began,
        objectives: options.objectives.clone(),
        progress: options.progress.clone(),
    };
    let work = Work { operation, swap, run: &run };
    // All stand still before the first is touched: nobody may write to one what another no longer has.
    for step in [Step::Stop, Step::SetAside, Step::Incarnation] {
        for ready in &planned.ready {
            work.step(step, ready, &sites[&ready.plan.cluster]).await?;
        }
    }
    let (sites, work) = (&sites, &work);
    let told = together(&planned.ready, &options.progress, |ready, turn| async move {
        work.restore(ready, &sites[&ready.plan.cluster], &turn).await
    });
    let told: Vec<Told> = match told.await {
        Ok(told) => told,
        Err(error) => {
            // Nobody may write to what will be restored again, or undone.
            restore::stop_all(planned, sites).await;
            return Err(error);
        }
    };
    for step in [Step::Start, Step::Verify] {
        for ready in &planned.ready {
            work.step(step, ready, &sites[&ready.plan.cluster]).await?;
        }
    }
    operation.set_progress(Stage::Done).doing(|| "record that it is done".to_owned())?;
    let mut clusters = Vec::new();
    for (ready, Told { position, notes }) in planned.ready.iter().zip(told) {
        let access = sites[&ready.plan.cluster].layout.access();
        let observe = ready.of.engine.observe();
        let uris = observe.map(|o| access.nodes.iter().map(|node| o.uri(&access, node)).collect());
        clusters.push(RestoredCluster {
            cluster: ready.plan.cluster.clone(),
            uris: uris.unwrap_or_default(),
            restored_to: ready.plan.restored_to,
            position,
            notes,
        });
    }
    Ok(restore::report(planned, clusters, &run))
}

struct Work<'a> {
    operation: &'a Operation,
    swap: &'a dyn Swap,
    run: &'a RunOptions,
}

impl Work<'_> {
    async fn step(&self, step: Step, ready: &Ready, site: &Site) -> Result<()> {
        let cluster = &ready.plan.cluster;
        let name = step.name(cluster);
        let done = self.operation.step(&name, async || {
            let ran = site.layout.nodes.iter().any(|node| site.host.running(&node.name).is_some());
            self.act(step, ready, site).await.map(|()| ran)
        });
        done.await?;
        Ok(())
    }

    async fn act(&self, step: Step, ready: &Ready, site: &Site) -> Result<()> {
        let (cluster, id) = (&ready.plan.cluster, self.operation.id());
        match step {
            Step::Stop => stop(&ready.of, site).await,
            Step::SetAside => {
                self.swap.set_aside(cluster, id).await.doing(|| format!("set aside the data of {cluster}"))
            }
            Step::Incarnation => {
                let renewed = self.swap.renew_incarnation(cluster, id).await;
                renewed.doing(|| format!("begin another incarnation of {cluster}"))
            }
            Step::Start => {
                // What replayed the log ran with settings of its own; nodes that join would have to match those.
                stop(&ready.of, site).await?;
                start(&ready.of, site).await
            }
            Step::Verify => verify(&ready.of, site).await,
            Step::Restore => Ok(()),
        }
    }

    async fn restore(&self, ready: &Ready, site: &Site, turn: &Turn) -> Result<Told> {
        let (cluster, id) = (&ready.plan.cluster, self.operation.id());
        let name = Step::Restore.name(cluster);
        let done = self.operation.step(&name, async || {
            // What an attempt before this one left is neither whole nor wanted.
            stop(&ready.of, site).await?;
            self.swap.bring_back(cluster, id).await.doing(|| format!("clear the data of {cluster}"))?;
            self.swap.set_aside(cluster, id).await.doing(|| format!("set aside the data of {cluster}"))?;
            let restored = restore::one(ready, site, self.run, turn).await?;
            Ok::<_, Error>(Told { position: restored.position, notes: restored.notes })
        });
        Ok(done.await?)
    }
}

/// The same plan again: the same snapshots, the same places.
async fn plan_again(begun: &Begun, members: &[Protected]) -> Result<Planned> {
    let members: Vec<Protected> = ordered(begun, members)?.into_iter().cloned().collect();
    let positions = begun.clusters.iter().map(|c| (c.cluster.clone(), c.position.clone())).collect();
    let skew = Duration::from_secs_f64(begun.skew_ms.max(0.0) / 1000.0);
    let target =
        Target::Point(PointTarget { id: begun.target.clone(), at: begun.target_at, skew, positions });
    let snapshots = begun.clusters.iter().map(|c| c.snapshot.clone()).collect();
    let mut planned =
        plan(&members, &target, &PlanOptions { snapshots, ..PlanOptions::default() }).await?.accepted()?;
    planned.plan.target.clone_from(&begun.target);
    for (ready, cluster) in planned.ready.iter_mut().zip(&begun.clusters) {
        ready.plan.restored_to = cluster.restored_to;
    }
    planned.plan.clusters = planned.ready.iter().map(|r| r.plan.clone()).collect();
    Ok(planned)
}

/// The operation's clusters among those of the fleet, in its order.
fn ordered<'a>(begun: &Begun, members: &'a [Protected]) -> Result<Vec<&'a Protected>> {
    let find = |of: &BegunCluster| {
        let found = members.iter().find(|m| m.cluster.name.as_str() == of.cluster);
        found.ok_or_else(|| Error::invalid(format!("the fleet has no cluster {}", of.cluster)))
    };
    begun.clusters.iter().map(find).collect()
}

async fn stop(of: &Protected, site: &Site) -> Result<()> {
    let launch = launch(of)?;
    within(SERVERS, || format!("stop {}", of.cluster.name), launch.stop(&site.layout, site.host.as_ref()))
        .await
}

async fn start(of: &Protected, site: &Site) -> Result<()> {
    let launch = launch(of)?;
    within(SERVERS, || format!("start {}", of.cluster.name), launch.start(&site.layout, site.host.as_ref()))
        .await
}

fn launch(of: &Protected) -> Result<&'static dyn engine::Launch> {
    of.engine.launch().ok_or(Error::Unsupported { engine: of.engine.name(), verb: "be started here" })
}

/// Every node answers, one of them takes writes, and nothing is critical.
async fn verify(of: &Protected, site: &Site) -> Result<()> {
    let cluster = &of.cluster.name;
    let Some(observe) = of.engine.observe() else { return Ok(()) };
    let view =
        within(SERVERS, || format!("look at {cluster}"), observe.observe(&site.layout.access())).await?;
    let down =
        view.nodes.iter().find(|n| n.role == Role::Down).map(|n| format!("node {} does not answer", n.name));
    let headless =
        (!view.nodes.iter().any(|n| n.role == Role::Primary)).then(|| "no node takes writes".to_owned());
    let critical = view.findings.into_iter().find(|f| f.severity == Severity::Critical).map(|f| f.message);
    match down.or(headless).or(critical) {
        None => Ok(()),
        Some(what) => Err(Error::Invalid {
            what: format!("{cluster} was restored, and is not well: {what}"),
            hint: Some("resume the operation when that is mended, or undo it".to_owned()),
        }),
    }
}

fn begun(operation: &Operation) -> Result<Begun> {
    let row = operation.row().doing(|| format!("read operation {}", operation.id()))?;
    if row.kind != KIND {
        return Err(Error::invalid(format!("operation {} is no restore in place", operation.id())));
    }
    serde_json::from_value(row.detail)
        .map_err(|e| Error::invalid(format!("read operation {}: {e}", operation.id())))
}

fn stage(operation: &Operation) -> Result<Stage> {
    Ok(operation.row().doing(|| format!("read operation {}", operation.id()))?.progress)
}

fn is_begun(operation: &Operation, step: &str) -> Result<bool> {
    let steps = operation.steps().doing(|| format!("read operation {}", operation.id()))?;
    Ok(steps.iter().any(|s| s.name == step && s.state == StepState::Done))
}

/// Puts a decision on record before anything of it is done.
async fn mark(operation: &Operation, step: &str) -> Result<()> {
    Ok(operation.step(step, async || Ok::<_, Error>(())).await?)
}

/// Why an operation cannot be gone on with.
fn closed(operation: &Operation, finishing: bool) -> Result<Option<String>> {
    Ok(match stage(operation)? {
        Stage::Undone => Some("was undone".to_owned()),
        Stage::Finished => Some("is finished".to_owned()),
        _ if is_begun(operation, UNDO)? => Some("is being undone".to_owned()),
        _ if !finishing && is_begun(operation, FINISH)? => Some("is being finished".to_owned()),
        _ => None,
    })
}

fn impossible(operation: &Operation, is: &str, verb: &str) -> Error {
    let hint = match is {
        "is being undone" => "undo it again, until that is done",
        "is being finished" => "finish it again, until that is done",
        "is not done yet" => "resume or undo it",
        _ => "plan another restore",
    };
    let what = format!("operation {} {is}: it cannot be {verb}", operation.id());
    Error::Invalid { what, hint: Some(hint.to_owned()) }
}

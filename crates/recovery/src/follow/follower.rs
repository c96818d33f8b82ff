//! Following a cluster: its incarnation, its lanes as they come and go, and how all of it stands.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant as Monotonic};

use mainstay_model::{Instant, Lane, Place, Position};
use tokio::sync::{Semaphore, watch};

use super::lane::{LaneFollower, sleep_or};
use super::spool::Limits;
use super::stale;
use super::upload::Pace;
use super::why;
use crate::Protected;
use crate::error::{Doing, Error, Result};
use crate::snapshot::incarnation;

/// How a cluster is followed.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// Who follows, for people.
    pub holder: String,
    /// How long a lane's lease lasts without a beat.
    pub lease_ttl: Duration,
    /// What a lane's spool may use.
    pub limits: Limits,
    /// How soon what is where.
    pub pace: Pace,
    /// How long a spool may be full before the log is given up, so that what the source keeps for us does not fill its disk.
    pub give_up_full: Duration,
    /// How often is looked whether lanes came or went.
    pub look_every: Duration,
    /// How often is looked for spools that nobody follows any more.
    pub clear_every: Duration,
    /// How many long stretches of log are in memory at once, over all lanes.
    pub long_reads: usize,
}

impl FollowOptions {
    /// With what suits most.
    pub fn new(holder: impl Into<String>) -> Self {
        Self {
            holder: holder.into(),
            lease_ttl: Duration::from_secs(20),
            limits: Limits::default(),
            pace: Pace::default(),
            give_up_full: Duration::from_secs(900),
            look_every: Duration::from_secs(10),
            clear_every: Duration::from_secs(600),
            long_reads: 1,
        }
    }
}

/// A cluster that is being followed, by a task of its own. Dropping it breaks off, which loses nothing that is in the spool;
/// [`Self::stop`] ends in order.
pub struct Follower {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

struct Shared {
    of: Protected,
    options: FollowOptions,
    long_reads: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    incarnation: Option<String>,
    error: Option<String>,
    lanes: BTreeMap<Lane, Running>,
}

struct Running {
    lane: Arc<LaneFollower>,
    stop: watch::Sender<bool>,
    task: Option<tokio::task::JoinHandle<()>>,
    absent: u32,
}

/// How following a cluster stands.
#[derive(Clone, Debug, Default)]
pub struct FollowStatus {
    /// Whose log it is; `None` before the cluster was reached.
    pub incarnation: Option<String>,
    /// Lane by lane.
    pub lanes: BTreeMap<Lane, LaneStatus>,
    /// Why the cluster could not be looked at the last time.
    pub error: Option<String>,
}

/// How following a lane stands.
#[derive(Clone, Debug, Default)]
pub struct LaneStatus {
    /// What it does now.
    pub phase: Phase,
    /// Its lease's generation, while it is held here.
    pub generation: Option<u64>,
    /// The place behind the log that is durable here.
    pub spool_end: Option<Place>,
    /// Up to when the log here is complete.
    pub spool_complete_to: Option<Instant>,
    /// What the spool holds.
    pub spool_bytes: u64,
    /// The place behind the log that is durable in the vault.
    pub vault_end: Option<Place>,
    /// Up to when the log there is complete.
    pub vault_complete_to: Option<Instant>,
    /// Bytes of log that went to the vault since the lease was taken.
    pub vaulted_bytes: u64,
    /// Holes that were declared since the lease was taken.
    pub holes: u64,
    /// Failures of links and uploads.
    pub failures: u64,
    /// Whether the vault cannot be asked, and the log goes to the spool alone.
    pub is_alone: bool,
    /// What is wrong now.
    pub error: Option<String>,
    /// Set while the log is worth nothing without a new snapshot.
    pub wants_snapshot: Option<Wanted>,
}

/// What following a lane does now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Finds out where to go on.
    #[default]
    Starting,
    /// Somebody else follows.
    Standby {
        /// Who.
        holder: String,
    },
    /// Needs a snapshot first.
    Waiting,
    /// Has a link.
    Following,
    /// The link broke, or something else is wrong; it will be tried again.
    Retrying,
    /// The spool has no room.
    Full,
    /// No more.
    Stopped,
}

/// A snapshot that must be begun after `since`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Why, in a few words.
    pub reason: String,
    /// Since when.
    pub since: Instant,
}

impl FollowStatus {
    /// Why a snapshot is wanted, if one is.
    pub fn wants_snapshot(&self) -> Option<&Wanted> {
        self.lanes.values().filter_map(|lane| lane.wants_snapshot.as_ref()).max_by_key(|wanted| wanted.since)
    }

    /// Up to when all lanes are durable here.
    pub fn spool_complete_to(&self) -> Option<Instant> {
        self.lanes.values().map(|lane| lane.spool_complete_to).min().flatten()
    }

    /// Up to when all lanes are durable in the vault.
    pub fn vault_complete_to(&self) -> Option<Instant> {
        self.lanes.values().map(|lane| lane.vault_complete_to).min().flatten()
    }

    /// What is wrong, if anything.
    pub fn error(&self) -> Option<String> {
        let lanes = self
            .lanes
            .iter()
            .filter_map(|(lane, status)| Some(format!("{lane}: {}", status.error.as_ref()?)));
        self.error.clone().or_else(|| lanes.reduce(|all, next| format!("{all}; {next}")))
    }

    /// Whether every lane has a link, or somebody else follows it.
    pub fn is_well(&self) -> bool {
        let is_well = |lane: &LaneStatus| {
            matches!(lane.phase, Phase::Following | Phase::Standby { .. }) && !lane.is_alone
        };
        !self.lanes.is_empty() && self.lanes.values().all(is_well)
    }
}

impl Follower {
    /// Follows a cluster from now on; waits for one that is not up. Must be called within a runtime.
    pub fn start(of: Protected, options: FollowOptions) -> Self {
        let long_reads = Arc::new(Semaphore::new(options.long_reads));
        let shared = Arc::new(Shared { of, options, long_reads, state: Mutex::default() });
        let (stop, stopped) = watch::channel(false);
        let task = Mutex::new(Some(tokio::spawn(shared.clone().supervise(stopped))));
        Self { shared, stop, task }
    }

    /// How it stands.
    pub fn status(&self) -> FollowStatus {
        self.shared.with(|state| FollowStatus {
            incarnation: state.incarnation.clone(),
            error: state.error.clone(),
            lanes: state.lanes.iter().map(|(name, running)| (name.clone(), running.lane.status())).collect(),
        })
    }

    /// Uploads what the spool has, at once.
    pub fn urge(&self) {
        self.shared.with(|state| state.lanes.values().for_each(|running| running.lane.urgent.notify_one()));
    }

    /// Whether this process knows that `position` is durable in the vault, on the history as it is now. `false` may be for want of knowing.
    pub fn has_vaulted(&self, position: &Position) -> bool {
        let status = self.status();
        position.0.iter().all(|(lane, place)| {
            let end = status.lanes.get(lane).and_then(|lane| lane.vault_end.as_ref());
            end.is_some_and(|end| end.epoch == place.epoch && end.offset >= place.offset)
        })
    }

    /// Whom it follows.
    pub fn of(&self) -> &Protected {
        &self.shared.of
    }

    /// The lanes that this process follows itself, or would.
    pub(super) fn lanes(&self) -> Vec<Arc<LaneFollower>> {
        self.shared.with(|state| state.lanes.values().map(|running| running.lane.clone()).collect())
    }

    /// Ends: what was received goes to the spool and to the vault, the leases are given up.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
        self.shared.with(|state| {
            for running in state.lanes.values_mut() {
                if let Some(task) = &running.task {
                    task.abort();
                }
            }
        });
    }
}

impl Shared {
    async fn supervise(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut pause = Duration::from_millis(200);
        let mut cleared: Option<Monotonic> = None;
        let mut clearing = tokio::task::JoinSet::new();
        while !*stop.borrow() {
            let wait = match self.look().await {
                Ok((incarnation, lanes)) => {
                    self.with(|state| state.error = None);
                    self.run_lanes(incarnation, lanes).await;
                    pause = Duration::from_millis(200);
                    let is_due = cleared.is_none_or(|cleared| cleared.elapsed() >= self.options.clear_every);
                    while clearing.try_join_next().is_some() {}
                    if is_due && clearing.is_empty() {
                        cleared = Some(Monotonic::now());
                        clearing.spawn(self.clone().clear());
                    }
                    self.options.look_every
                }
                Err(e) => {
                    let error = why(&e);
                    tracing::debug!(cluster = %self.of.cluster.name, error, "look at lanes");
                    self.with(|state| state.error = Some(error));
                    pause = (pause * 2).min(self.options.look_every);
                    pause
                }
            };
            sleep_or(wait, &mut stop).await;
        }
        // What it was about is looked at again by the next one.
        clearing.shutdown().await;
        self.end_lanes(|_| true).await;
    }

    /// Removes the spools of lanes that are not followed any more, once the vault has what is in them.
    async fn clear(self: Arc<Self>) {
        let is_followed = |incarnation: &str, lane: &Lane| {
            self.with(|state| {
                let life = state.incarnation.as_ref().map(|own| Lane::new(own).0);
                life.as_deref() == Some(incarnation) && state.lanes.contains_key(lane)
            })
        };
        stale::clear(&self.of, &self.options, &self.long_reads, is_followed).await;
    }

    async fn look(&self) -> Result<(String, Vec<Lane>)> {
        let of = &self.of;
        let Some(follow) = of.engine.follow() else {
            return Err(Error::Unsupported { engine: of.engine.name(), verb: "be followed" });
        };
        let incarnation = incarnation(of).await?;
        let lanes =
            follow.lanes(&of.access).await.doing(|| format!("look at the lanes of {}", of.cluster.name))?;
        Ok((incarnation, lanes))
    }

    async fn run_lanes(&self, incarnation: String, lanes: Vec<Lane>) {
        let is_another =
            self.with(|state| state.incarnation.as_ref().is_some_and(|known| *known != incarnation));
        if is_another {
            tracing::warn!(cluster = %self.of.cluster.name, incarnation, "another incarnation of the data began");
            self.end_lanes(|_| true).await;
        }
        // One that is missing once may be so because a node did not answer.
        let gone = self.with(|state| {
            let mut gone = Vec::new();
            for (lane, running) in &mut state.lanes {
                running.absent = if lanes.contains(lane) { 0 } else { running.absent + 1 };
                if running.absent >= 3 {
                    gone.push(lane.clone());
                }
            }
            gone
        });
        self.end_lanes(|lane| gone.contains(lane)).await;
        self.with(|state| {
            state.incarnation = Some(incarnation.clone());
            for name in lanes {
                state.lanes.entry(name.clone()).or_insert_with(|| {
                    let lane = Arc::new(LaneFollower::new(
                        self.of.clone(),
                        incarnation.clone(),
                        name,
                        self.options.clone(),
                        self.long_reads.clone(),
                    ));
                    let (stop, stopped) = watch::channel(false);
                    let task = Some(tokio::spawn(lane.clone().run(stopped)));
                    Running { lane, stop, task, absent: 0 }
                });
            }
        });
    }

    async fn end_lanes(&self, which: impl Fn(&Lane) -> bool) {
        let tasks: Vec<_> = self.with(|state| {
            let ending = state.lanes.iter_mut().filter(|(lane, _)| which(lane));
            ending
                .filter_map(|(_, running)| {
                    running.stop.send_replace(true);
                    running.task.take()
                })
                .collect()
        });
        futures::future::join_all(tasks).await;
        self.with(|state| state.lanes.retain(|lane, _| !which(lane)));
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

//! `mainstay serve`: everything that is due, done when it is due.
//!
//! A keeper per cluster follows its log, takes snapshots (by schedule, at once where a followed cluster has none, and whenever its log
//! asks for one), proves and prunes; a keeper per recovery group sets fleet points. What is due is told by what the vault holds, never by what a
//! run said of itself; whoever holds the lease does it, so that two daemons do each thing once. Failures are tried again with growing pauses,
//! are counted, and stop nothing else.
//!
//! The daemon takes no input but the fleet; it listens only where it is told to, and serves nothing there but metrics and its own
//! health.

mod cluster;
mod due;
mod group;
mod http;
mod jobs;
mod metrics;
mod view;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Monotonic};

use async_trait::async_trait;
use mainstay_engine::{Quiet, Stoppable};
use mainstay_model::{Cluster, ClusterName, Fleet};
use mainstay_recovery::Protected;
use mainstay_recovery::follow::{FollowOptions, Follower};
use mainstay_recovery::prove::Sandboxes;
use mainstay_state::State;
use tokio::sync::watch;

use metrics::Counters;
use view::{ClusterView, GroupView};

/// What went wrong, as text with all that lay under it: the daemon only reports.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where the fleet's clusters are, now.
#[async_trait]
pub trait World: Send + Sync + 'static {
    /// A cluster as it is now: how its nodes are reached, which incarnation its data is. One that was never brought up has no nodes. Asked
    /// every few seconds, so opened vaults are to be kept.
    ///
    /// # Errors
    /// Whatever keeps it from being known.
    async fn protected(&self, cluster: &Cluster) -> Result<Protected, BoxError>;

    /// Where proofs are made.
    fn sandboxes(&self) -> &dyn Sandboxes;
}

/// What a daemon works with.
pub struct Config {
    /// What is to be kept.
    pub fleet: Fleet,
    /// Where it is.
    pub world: Arc<dyn World>,
    /// Where runs are recorded; for people alone.
    pub state: Option<State>,
    /// Who does it, for people.
    pub holder: String,
    /// How logs are followed.
    pub follow: FollowOptions,
    /// How many files are read or written at once.
    pub jobs: usize,
    /// Where metrics are served.
    pub listen: Option<SocketAddr>,
    /// How often what is looked at.
    pub rhythm: Rhythm,
}

/// How often what is looked at.
#[derive(Clone, Debug)]
pub struct Rhythm {
    /// Whether something is due.
    pub tick: Duration,
    /// The vault's objects.
    pub refresh: Duration,
    /// Retention.
    pub prune: Duration,
    /// The first pause after a failure, and the longest.
    pub retry: (Duration, Duration),
    /// How long `serve --once` waits for the logs.
    pub catch_up: Duration,
    /// How long a fleet point waits for the logs.
    pub cover: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            tick: Duration::from_secs(1),
            refresh: Duration::from_secs(10),
            prune: Duration::from_secs(3600),
            retry: (Duration::from_secs(10), Duration::from_secs(900)),
            catch_up: Duration::from_secs(120),
            cover: Duration::from_secs(60),
        }
    }
}

/// What `serve --once` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Once {
    /// What was done, in words: `snapshot of orders`.
    pub done: Vec<String>,
    /// What failed, with why.
    pub failed: Vec<String>,
    /// Clusters that are not up.
    pub skipped: Vec<String>,
}

/// Why a daemon does not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// What all keepers share.
struct Daemon {
    config: Config,
    clusters: Mutex<BTreeMap<ClusterName, ClusterView>>,
    groups: Mutex<BTreeMap<String, GroupView>>,
    followers: Mutex<BTreeMap<ClusterName, Arc<Follower>>>,
    /// The proofs that run, whose sandboxes must go if they are broken off.
    proofs: Mutex<BTreeMap<ClusterName, String>>,
    counters: Counters,
    started: Monotonic,
    /// The progress of what hears by it that the daemon ends.
    ending: Stoppable,
    /// It does what is due, and ends.
    is_hurried: bool,
}

/// Serves until `stop` resolves, then ends in order: the logs' last bytes go to the vault and the leases are given up.
///
/// # Errors
/// `Listen`. Nothing else ends it.
pub async fn serve(config: Config, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let daemon = Daemon::new(config, false);
    let listener = match daemon.config.listen {
        Some(address) => Some(http::listen(address).await?),
        None => None,
    };
    let (end, ended) = watch::channel(false);
    let mut tasks = tokio::task::JoinSet::new();
    for cluster in daemon.kept() {
        tasks.spawn(cluster::keep(daemon.clone(), cluster, ended.clone()));
    }
    for group in daemon.config.fleet.recovery_groups.values().cloned() {
        tasks.spawn(group::keep(daemon.clone(), group, ended.clone()));
    }
    if let Some(listener) = listener {
        tasks.spawn(http::serve(daemon.clone(), listener, ended.clone()));
    }
    stop.await;
    tracing::info!("ending: the last of the logs goes to the vault");
    daemon.ending.stop();
    end.send_replace(true);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Does what is due, catches the logs up to now, and returns.
pub async fn serve_once(config: Config) -> Once {
    let daemon = Daemon::new(config, true);
    let mut once = Once::default();
    let mut kept = Vec::new();
    for cluster in daemon.kept() {
        match daemon.config.world.protected(&cluster).await {
            Ok(of) if of.access.nodes.is_empty() => once.skipped.push(cluster.name.to_string()),
            Ok(of) => kept.push(of),
            Err(e) => once.failed.push(format!("look at {}: {}", cluster.name, why(&*e))),
        }
    }
    for of in &kept {
        daemon.keep_follower(of).await;
    }
    for of in &kept {
        once.note(&format!("snapshot of {}", of.cluster.name), daemon.snapshot_if_due(of, true).await);
    }
    for group in daemon.config.fleet.recovery_groups.values() {
        once.note(&format!("point of {}", group.name), daemon.point_if_due(group).await);
    }
    for of in &kept {
        let name = &of.cluster.name;
        once.note(&format!("proof of {name}"), daemon.prove_if_due(of).await);
        once.note(&format!("prune of {name}"), daemon.prune_if_due(of).await);
    }
    for of in &kept {
        if let Some(caught_up) = daemon.catch_up(of).await {
            once.note(&format!("log of {}", of.cluster.name), caught_up.map(|()| true));
        }
        // Whether its log goes on is known for certain only now.
        daemon.change_view(&of.cluster.name, |view| view.retries.snapshot.succeeded());
        once.note(
            &format!("another snapshot of {}", of.cluster.name),
            daemon.snapshot_if_due(of, false).await,
        );
    }
    // Once more: the latest instant of a group is one that every log reaches, and those that were first have to reach what the last brought.
    for of in &kept {
        if let Some(Err(e)) = daemon.catch_up(of).await {
            once.failed.push(format!("log of {}: {e}", of.cluster.name));
        }
    }
    daemon.stop_followers().await;
    once
}

impl Once {
    fn note(&mut self, what: &str, result: Result<bool, String>) {
        match result {
            Ok(true) => self.done.push(what.to_owned()),
            Ok(false) => {}
            Err(e) => self.failed.push(format!("{what}: {e}")),
        }
    }
}

impl Daemon {
    fn new(config: Config, is_hurried: bool) -> Arc<Self> {
        Arc::new(Self {
            config,
            clusters: Mutex::default(),
            groups: Mutex::default(),
            followers: Mutex::default(),
            proofs: Mutex::default(),
            counters: Counters::default(),
            started: Monotonic::now(),
            ending: Stoppable::new(Arc::new(Quiet)),
            is_hurried,
        })
    }

    /// The clusters that are backed up.
    fn kept(&self) -> Vec<Cluster> {
        self.config.fleet.clusters.values().filter(|cluster| cluster.backup.is_some()).cloned().collect()
    }

    fn follower(&self, name: &ClusterName) -> Option<Arc<Follower>> {
        lock(&self.followers).get(name).cloned()
    }

    async fn stop_followers(&self) {
        let followers: Vec<_> = std::mem::take(&mut *lock(&self.followers)).into_values().collect();
        for follower in &followers {
            follower.stop().await;
        }
    }

    fn view(&self, name: &ClusterName) -> ClusterView {
        lock(&self.clusters).get(name).cloned().unwrap_or_default()
    }

    fn change_view(&self, name: &ClusterName, change: impl FnOnce(&mut ClusterView)) {
        change(lock(&self.clusters).entry(name.clone()).or_default());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error and all that lay under it, on one line.
fn why(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;

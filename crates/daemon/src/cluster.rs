//! The keeper of one cluster: looks every second whether something is due, and lets nothing that takes long hold up the rest.

use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use mainstay_model::Cluster;
use mainstay_recovery::Protected;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::{Daemon, why};

/// How often is looked where the cluster's nodes are.
const LOOK: Duration = Duration::from_secs(5);
/// How long a proof may take to end when it is asked to.
const PROOF_ENDS: Duration = Duration::from_secs(20);

/// Keeps a cluster until `stop` says so.
pub(crate) async fn keep(daemon: Arc<Daemon>, cluster: Cluster, mut stop: watch::Receiver<bool>) {
    let name = cluster.name.clone();
    let mut of: Option<Protected> = None;
    let mut looked: Option<Monotonic> = None;
    let mut running = Running::default();
    while !*stop.borrow() {
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            looked = Some(Monotonic::now());
            of = daemon.look(&cluster).await;
        }
        if let Some(of) = &of {
            daemon.keep_follower(of).await;
            running.start_what_is_due(&daemon, of);
        }
        let _ = tokio::time::timeout(daemon.config.rhythm.tick, stop.wait_for(|stop| *stop)).await;
    }
    running.abort().await;
    daemon.clear_proof(&name).await;
    if let Some(follower) = daemon.follower(&name) {
        follower.stop().await;
    }
}

/// One task per kind of work, so that a long snapshot keeps no proof and no look at the vault waiting.
#[derive(Default)]
struct Running {
    snapshot: Option<JoinHandle<()>>,
    proof: Option<JoinHandle<()>>,
    prune: Option<JoinHandle<()>>,
    refresh: Option<JoinHandle<()>>,
}

impl Running {
    fn start_what_is_due(&mut self, daemon: &Arc<Daemon>, of: &Protected) {
        fn is_free(task: &Option<JoinHandle<()>>) -> bool {
            task.as_ref().is_none_or(JoinHandle::is_finished)
        }
        if is_free(&self.refresh) {
            let (daemon, of) = (daemon.clone(), of.clone());
            self.refresh = Some(tokio::spawn(async move {
                let result = daemon.vault_view(&of, daemon.config.rhythm.refresh).await.map(|_| true);
                daemon.note(&of, result);
            }));
        }
        // What is due is judged by what the vault holds; and nothing can be taken from a cluster that is not up.
        if daemon.view(&of.cluster.name).vault.is_none() {
            return;
        }
        if is_free(&self.snapshot) && !of.access.nodes.is_empty() {
            let (daemon, of) = (daemon.clone(), of.clone());
            self.snapshot = Some(tokio::spawn(async move {
                let result = daemon.snapshot_if_due(&of, false).await;
                daemon.note(&of, result);
            }));
        }
        if is_free(&self.proof) {
            let (daemon, of) = (daemon.clone(), of.clone());
            self.proof = Some(tokio::spawn(async move {
                let result = daemon.prove_if_due(&of).await;
                daemon.note(&of, result);
            }));
        }
        if is_free(&self.prune) {
            let (daemon, of) = (daemon.clone(), of.clone());
            self.prune = Some(tokio::spawn(async move {
                let result = daemon.prune_if_due(&of).await;
                daemon.note(&of, result);
            }));
        }
    }

    /// A snapshot that is broken off is no snapshot, and what it stored is taken up by the next one. A proof has heard that it is to end, and
    /// stops its servers.
    async fn abort(mut self) {
        let mut proof = self.proof.take();
        if let Some(running) = &mut proof
            && tokio::time::timeout(PROOF_ENDS, running).await.is_ok()
        {
            proof = None;
        }
        for task in [self.snapshot, proof, self.prune, self.refresh].into_iter().flatten() {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Daemon {
    async fn look(&self, cluster: &Cluster) -> Option<Protected> {
        match self.config.world.protected(cluster).await {
            Ok(of) => {
                let is_known = !of.access.nodes.is_empty();
                self.change_view(&cluster.name, |view| view.is_known = is_known);
                Some(of)
            }
            Err(e) => {
                let error = why(&*e);
                tracing::warn!(cluster = %cluster.name, error, "look at cluster");
                self.change_view(&cluster.name, |view| {
                    view.vault = None;
                    view.is_known = false;
                    view.error = Some(error);
                });
                None
            }
        }
    }

    fn note(&self, of: &Protected, result: Result<bool, String>) {
        self.change_view(&of.cluster.name, |view| match result {
            Err(e) => view.error = Some(e),
            Ok(true) => view.error = None,
            Ok(false) => {}
        });
    }
}

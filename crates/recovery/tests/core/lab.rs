//! A cluster of the fake engine, a vault in memory, and what tests do with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use async_trait::async_trait;
use mainstay_engine as engine;
use mainstay_engine::{Access, Installation, Layout, NodeAccess, NodeLayout, Quiet, Secret, Ttl, Way};
use mainstay_model::{Backup, Cluster, ClusterName, Instant, Keep, Nodes, VaultName};
use mainstay_recovery::follow::{FollowOptions, Pace, Until, catch_up};
use mainstay_recovery::inplace::Swap;
use mainstay_recovery::plan::{PlanOptions, Planned, Target, plan};
use mainstay_recovery::prove::{ProveOptions, Sandboxes};
use mainstay_recovery::restore::{Restored, RunOptions, Site, restore};
use mainstay_recovery::{Protected, Result, snapshot};
use mainstay_store::{Limits, Store};
use mainstay_vault::Vault;

use crate::fake::{Fake, NoProcesses, Values, read_node};

pub struct Lab {
    pub dir: tempfile::TempDir,
    pub vault: Vault,
    pub fake: &'static Fake,
    pub of: Protected,
}

pub const KEEP: Keep = Keep {
    within: Duration::from_secs(3600),
    daily: 0,
    weekly: 0,
    monthly: 0,
    yearly: 0,
    least: 1,
    log: Duration::from_secs(3600),
};

impl Lab {
    /// One cluster, `orders`, on a vault in memory.
    pub async fn new() -> Self {
        Self::on(Store::with(mainstay_store::Memory::default(), Limits::hasty())).await
    }

    pub async fn on(store: Store) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open_or_create(store, &[], &dir.path().join("keys")).await.unwrap().vault;
        let fake = Fake::new("life1");
        let of = protected(dir.path(), &vault, fake, "orders");
        Self { dir, vault, fake, of }
    }

    /// The same, seen by another process: the vault opened again over another store.
    pub async fn reopened(&self, store: Store) -> mainstay_vault::Result<Protected> {
        let vault = Vault::open(store, &self.dir.path().join("keys")).await?;
        Ok(protected(self.dir.path(), &vault, self.fake, "orders"))
    }

    pub fn write(&self, from: u32, count: u32) -> Instant {
        let mut last = Instant::MIN;
        for n in from..from + count {
            last = self.fake.world().write(n % 50, n);
        }
        last
    }

    pub async fn snapshot(&self) -> String {
        backup(&self.of).await.unwrap()
    }

    pub async fn follow(&self) {
        follow(&self.of).await.unwrap();
    }

    pub async fn restored(&self, target: Target) -> Result<Values> {
        restored(&self.of, &target).await
    }
}

pub async fn backup(of: &Protected) -> Result<String> {
    let taken = snapshot::backup(of, Way::Auto, 2, "test", Arc::new(Quiet)).await?;
    Ok(taken.snapshot)
}

pub fn follow_options() -> FollowOptions {
    let mut options = FollowOptions::new("test");
    options.pace = Pace {
        tail_every: Duration::from_millis(10),
        beat_every: Duration::from_millis(20),
        retry_max: Duration::from_millis(50),
        ..Pace::default()
    };
    options.lease_ttl = Duration::from_secs(2);
    options.look_every = Duration::from_millis(100);
    options
}

pub async fn follow(of: &Protected) -> Result<()> {
    catch_up(of, follow_options(), &Until::Now, Duration::from_secs(60)).await.map(|_| ())
}

/// Restores one cluster into a folder of its own, and reads what is in it.
pub async fn restored(of: &Protected, target: &Target) -> Result<Values> {
    let planned = plan(std::slice::from_ref(of), target, &PlanOptions::default()).await?.accepted()?;
    let dir = tempfile::tempdir().unwrap();
    let (restored, sites) = run(&planned, dir.path()).await?;
    assert_eq!(restored.clusters.len(), 1);
    assert_eq!(restored.clusters[0].position, planned.plan.clusters[0].position);
    Ok(read_node(&sites["orders"].layout).unwrap())
}

pub async fn run(planned: &Planned, dir: &Path) -> Result<(Restored, BTreeMap<String, Site>)> {
    let sites: BTreeMap<String, Site> =
        planned.ready.iter().map(|r| (r.plan.cluster.clone(), site(&r.of.cluster, dir))).collect();
    let restored = restore(planned, &sites, &run_options()).await?;
    Ok((restored, sites))
}

pub fn run_options() -> RunOptions {
    RunOptions {
        sandbox: "box".into(),
        ttl: Ttl::Shift,
        jobs: 2,
        in_place: false,
        compared: true,
        began: Monotonic::now(),
        objectives: vec![],
        progress: Arc::new(Quiet),
    }
}

pub fn site(cluster: &Cluster, dir: &Path) -> Site {
    Site { layout: layout(cluster, dir), host: Arc::new(NoProcesses { dir: dir.to_owned() }) }
}

pub fn layout(cluster: &Cluster, dir: &Path) -> Layout {
    let name = format!("{}-1", cluster.name);
    let node = NodeLayout { dir: dir.join(&name), name, ports: vec![1] };
    std::fs::create_dir_all(&node.dir).unwrap();
    Layout {
        cluster: cluster.clone(),
        scope: "test".into(),
        installation: Installation { version: "1".into(), bin: "/".into() },
        nodes: vec![node],
        user: "u".into(),
        password: Secret::new("p"),
        owner: None,
        sandbox: true,
    }
}

pub fn protected(dir: &Path, vault: &Vault, fake: &'static Fake, name: &str) -> Protected {
    let keep = KEEP;
    let vault_name = VaultName::new("main").unwrap();
    let backup = Backup { snapshot: None, follow: true, prove: None, keep, vault: vault_name };
    let cluster = Cluster {
        name: ClusterName::new(name).unwrap(),
        engine: "fake".into(),
        version: None,
        nodes: Nodes::Count(1),
        cluster: None,
        tier: None,
        memory: None,
        config: BTreeMap::new(),
        backup: Some(backup),
        access: None,
        control: None,
    };
    let node = NodeAccess { name: format!("{name}-1"), host: "127.0.0.1".into(), port: 1, data_dir: None };
    let access = Access {
        cluster: name.into(),
        scope: "test".into(),
        nodes: vec![node],
        user: "u".into(),
        password: None,
    };
    Protected {
        cluster,
        engine: fake,
        vault: vault.cluster("shop", "local", name),
        access,
        spool: dir.join("spool").join(name),
        incarnation: None,
    }
}

/// Sandboxes in folders of a temporary one.
pub struct Folders(pub tempfile::TempDir);

impl Folders {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn left(&self) -> usize {
        std::fs::read_dir(self.0.path()).unwrap().count()
    }
}

#[async_trait]
impl Sandboxes for Folders {
    async fn make(&self, id: &str, clusters: &[&Cluster]) -> engine::Result<BTreeMap<String, Site>> {
        let dir = self.0.path().join(id);
        Ok(clusters.iter().map(|c| (c.name.to_string(), site(c, &dir))).collect())
    }
    async fn remove(&self, id: &str) -> engine::Result<()> {
        match std::fs::remove_dir_all(self.0.path().join(id)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(engine::Error::io("remove sandbox", e)),
            _ => Ok(()),
        }
    }
}

pub fn prove_options(id: &str) -> ProveOptions {
    ProveOptions {
        id: id.into(),
        fleet: "shop".into(),
        environment: "local".into(),
        subject: "orders".into(),
        snapshots: vec![],
        command: None,
        jobs: 2,
        began: Monotonic::now(),
        progress: Arc::new(Quiet),
    }
}

/// The environment's own folders, with data that can be set aside.
pub struct Local {
    pub dir: PathBuf,
    pub clusters: Vec<Cluster>,
}

impl Local {
    pub fn layout(&self, cluster: &str) -> Layout {
        let cluster = self.clusters.iter().find(|c| c.name.as_str() == cluster).unwrap();
        layout(cluster, &self.dir)
    }

    fn paths(&self, cluster: &str, operation: &str) -> (PathBuf, PathBuf) {
        let node = self.layout(cluster).nodes[0].clone();
        (node.data(), node.dir.join(format!("data.before-{operation}")))
    }
}

#[async_trait]
impl Swap for Local {
    async fn site(&self, cluster: &str) -> engine::Result<Site> {
        Ok(Site { layout: self.layout(cluster), host: Arc::new(NoProcesses { dir: self.dir.clone() }) })
    }
    async fn set_aside(&self, cluster: &str, operation: &str) -> engine::Result<()> {
        tokio::task::yield_now().await;
        let (data, before) = self.paths(cluster, operation);
        if !before.exists() {
            std::fs::rename(data, before).map_err(|e| engine::Error::io("set aside", e))?;
        }
        Ok(())
    }
    async fn bring_back(&self, cluster: &str, operation: &str) -> engine::Result<()> {
        tokio::task::yield_now().await;
        let (data, before) = self.paths(cluster, operation);
        if before.exists() {
            if data.exists() {
                std::fs::remove_dir_all(&data).map_err(|e| engine::Error::io("remove", e))?;
                tokio::task::yield_now().await;
            }
            std::fs::rename(before, data).map_err(|e| engine::Error::io("bring back", e))?;
        }
        Ok(())
    }
    async fn discard(&self, cluster: &str, operation: &str) -> engine::Result<()> {
        tokio::task::yield_now().await;
        let (_, before) = self.paths(cluster, operation);
        match before.exists() {
            true => std::fs::remove_dir_all(before).map_err(|e| engine::Error::io("discard", e)),
            false => Ok(()),
        }
    }
    async fn renew_incarnation(&self, cluster: &str, operation: &str) -> engine::Result<()> {
        tokio::task::yield_now().await;
        std::fs::write(self.dir.join(format!("{cluster}.life")), operation)
            .map_err(|e| engine::Error::io("renew", e))
    }
    async fn restore_incarnation(&self, cluster: &str, _: &str) -> engine::Result<()> {
        tokio::task::yield_now().await;
        std::fs::write(self.dir.join(format!("{cluster}.life")), "old")
            .map_err(|e| engine::Error::io("restore", e))
    }
}

/// Polls a future at most so many times, and drops it: what a kill leaves.
pub async fn killed_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return std::task::Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

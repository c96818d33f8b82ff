//! An engine whose servers sleep, and a home for its tests that leaves nothing behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use mainstay_engine::{
    Engine, Error, Host, Installation, Kind, Launch, Layout, Mistake, NodeCommand, Quiet, Result,
};
use mainstay_model::{
    Cluster, ClusterName, ClusterShape, Environment as Named, EnvironmentName, Fleet, FleetName, Hosts,
    Nodes, Place,
};
use mainstay_runtime::{Environment, Home, Sandbox};
use tempfile::TempDir;

/// Its servers put a line into `data/up` and sleep.
pub struct Sleeper {
    /// The versions that are installed.
    pub versions: &'static [&'static str],
    /// Whom servers run as, where we are root.
    pub run_as: Option<&'static str>,
}

pub const SLEEPER: Sleeper = Sleeper { versions: &["1.0", "1.2", "2.0"], run_as: None };
pub const NOBODY: Sleeper = Sleeper { versions: &["1.0"], run_as: Some("nobody") };

impl Engine for Sleeper {
    fn name(&self) -> &'static str {
        "sleeper"
    }
    fn check(&self, _: &Cluster) -> Vec<Mistake> {
        Vec::new()
    }
    fn write_place(&self, place: &Place) -> String {
        format!("{place:?}")
    }
    fn read_place(&self, text: &str) -> Result<Place> {
        Err(Error::new(Kind::Unsupported, text))
    }
    fn launch(&self) -> Option<&dyn Launch> {
        Some(self)
    }
}

#[async_trait]
impl Launch for Sleeper {
    fn find(&self, version: Option<&str>) -> Result<Installation> {
        let fits =
            |have: &&&str| version.is_none_or(|want| **have == want || have.starts_with(&format!("{want}.")));
        match self.versions.iter().rfind(fits) {
            Some(have) => Ok(Installation { version: (*have).to_owned(), bin: "/bin".into() }),
            None => Err(Error::new(Kind::NotInstalled, "no such sleeper")),
        }
    }
    fn ports_per_node(&self, _: &Cluster) -> usize {
        2
    }
    fn sandbox_nodes(&self, _: &Cluster) -> usize {
        1
    }
    fn run_as(&self) -> Option<&'static str> {
        self.run_as
    }
    async fn start(&self, layout: &Layout, host: &dyn Host) -> Result<()> {
        for node in &layout.nodes {
            if host.running(&node.name).is_some() {
                continue;
            }
            let color = layout.cluster.config.get("color").cloned().unwrap_or_default();
            let script = format!("mkdir -p data && echo '{color}' >> data/up && exec sleep 3600");
            let up = node.data().join("up");
            let lives = || std::fs::read_to_string(&up).unwrap_or_default().lines().count();
            let before = lives();
            let command = sh(&node.name, node.dir.clone(), &script, layout);
            host.start(&command).await?;
            for _ in 0..6000 {
                if lives() > before {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if lives() <= before {
                let log = std::fs::read_to_string(node.log()).unwrap_or_default();
                return Err(Error::new(Kind::Server, format!("{} did not come up: {log}", node.name)));
            }
        }
        Ok(())
    }
    async fn stop(&self, layout: &Layout, host: &dyn Host) -> Result<()> {
        for node in &layout.nodes {
            host.stop(&node.name, "TERM", Duration::from_secs(30)).await?;
        }
        Ok(())
    }
}

fn sh(node: &str, dir: PathBuf, script: &str, layout: &Layout) -> NodeCommand {
    NodeCommand {
        node: node.to_owned(),
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Vec::new(),
        log: dir.join("server.log"),
        cwd: dir,
        owner: layout.owner,
    }
}

/// A fleet with one cluster of sleepers.
pub fn fleet(dir: &TempDir, nodes: u32) -> Fleet {
    fleet_in(dir.path(), nodes)
}

/// As [`fleet`], in any folder.
pub fn fleet_in(base: &Path, nodes: u32) -> Fleet {
    let cluster = Cluster {
        name: name("orders"),
        engine: "sleeper".into(),
        version: None,
        nodes: Nodes::Count(nodes),
        cluster: None,
        tier: None,
        memory: None,
        config: [("color".to_owned(), "red".to_owned())].into(),
        backup: None,
        access: None,
        control: None,
    };
    Fleet {
        name: FleetName::new("shop").unwrap(),
        environment: Named { name: EnvironmentName::new("local").unwrap(), hosts: Hosts::Local },
        vaults: [].into(),
        tiers: [].into(),
        clusters: [(cluster.name.clone(), cluster)].into(),
        recovery_groups: [].into(),
        base_dir: base.to_owned(),
    }
}

pub fn name(text: &str) -> ClusterName {
    ClusterName::new(text).unwrap()
}

/// Makes the fleet's cluster a sharded one.
pub fn shard(fleet: &mut Fleet) {
    fleet.clusters.get_mut("orders").unwrap().cluster = Some(ClusterShape { replicas: 1 });
}

/// A home in a folder of its own; at the end all that runs from it is stopped and all is erased, also after a panic.
pub struct TestHome {
    pub dir: TempDir,
    pub home: Home,
}

impl TestHome {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        Self { dir, home }
    }
}

impl Drop for TestHome {
    fn drop(&mut self) {
        let (home, fleet) = (self.home.clone(), fleet(&self.dir, 1));
        let clean = async move {
            for sandbox in Sandbox::list(&home).unwrap() {
                sandbox.drop_all().await.unwrap();
            }
            let environment = Environment::open(&home, &fleet).unwrap();
            environment.down(&[], true, &Quiet).await.unwrap();
        };
        // The test's own runtime may be in this very call.
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || runtime().block_on(clean)).join().unwrap();
    }
}

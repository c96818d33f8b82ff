//! A cluster, a vault, and what the vault's log must be.

use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use mainstay_engine::{Quiet, Way};
use mainstay_engine_kit::fake::{Count, FAKE, FakeCluster};
use mainstay_model::{Cluster, ClusterName, Lane, Nodes, Place, Position};
use mainstay_store::{Backend, Faults, Faulty, Limits as StoreLimits, Memory, Store};
use mainstay_vault::{LogContent, LogKind, LogObject, Vault};

use crate::Protected;
use crate::follow::resume::{InVault, history_of};
use crate::follow::{FollowOptions, FollowStatus, Follower, Limits, Pace, Until};
use crate::history::Line;
use crate::snapshot::backup;

/// No wait in a test is longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Bench {
    pub dir: tempfile::TempDir,
    pub server: FakeCluster,
    pub faulty: Faulty<Memory>,
    pub vault: Vault,
    pub nodes: usize,
}

pub fn no_faults() -> Faults {
    Faults::choose(|_, _, _| None)
}

impl Bench {
    pub async fn new(nodes: usize, lanes: usize, count: Count) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = FakeCluster::create(&dir.path().join("servers"), "orders", nodes, lanes, count).unwrap();
        let faulty = Faulty::new(Memory::default(), no_faults());
        let vault = open(&dir, faulty.clone()).await;
        Self { dir, server, faulty, vault, nodes }
    }

    /// As seen from `home`: each has spools of its own.
    pub fn of(&self, home: &str) -> Protected {
        let cluster = Cluster {
            name: ClusterName::new("orders").unwrap(),
            engine: "fake".into(),
            version: None,
            nodes: Nodes::Count(u32::try_from(self.nodes).unwrap()),
            cluster: None,
            tier: None,
            memory: None,
            config: std::collections::BTreeMap::new(),
            backup: None,
            access: None,
            control: None,
        };
        Protected {
            cluster,
            engine: &FAKE,
            vault: self.vault.cluster("shop", "local", "orders"),
            access: self.server.access(),
            spool: self.dir.path().join(home),
            incarnation: None,
        }
    }

    pub fn follow(&self, home: &str) -> Follower {
        Follower::start(self.of(home), options(home))
    }

    pub async fn write(&self, from: usize, count: usize) {
        for n in from..from + count {
            self.server
                .set(&format!("key-{}", n % 100), &format!("{n}-{}", "x".repeat(n * 7 % 300)))
                .await
                .unwrap();
        }
    }

    pub async fn snapshot(&self) -> Position {
        backup(&self.of("home"), Way::Auto, 1, "a test", Arc::new(Quiet)).await.unwrap().position
    }

    pub fn lanes(&self) -> Vec<Lane> {
        (0..)
            .map(|n| Lane::new(&format!("lane-{n}")))
            .take_while(|lane| self.server_log_path(lane, 0).exists())
            .collect()
    }

    fn server_log_path(&self, lane: &Lane, node: usize) -> std::path::PathBuf {
        let node = self.server.access().nodes[node].data_dir.clone().unwrap();
        node.join(format!("{lane}.log"))
    }

    /// The log that a node has of a lane.
    pub fn server_log(&self, lane: &Lane, node: usize) -> Vec<u8> {
        std::fs::read(self.server_log_path(lane, node)).unwrap()
    }

    pub async fn objects(&self, lane: &Lane) -> Vec<LogObject> {
        self.of("home").vault.log_objects("life-of-orders", lane).await.unwrap()
    }

    pub async fn in_vault(&self, lane: &Lane) -> InVault {
        InVault::of(&self.objects(lane).await)
    }

    /// The surviving log of a lane: where each of its runs begins and ends, and their bytes.
    pub async fn surviving(&self, lane: &Lane) -> Vec<(Place, Place, Vec<u8>)> {
        let objects = self.objects(lane).await;
        let line = history_of(&objects).lines().pop().unwrap();
        self.read(&objects, &line).await
    }

    pub async fn read(&self, objects: &[LogObject], line: &Line) -> Vec<(Place, Place, Vec<u8>)> {
        let vault = self.of("home").vault;
        let pieces: Vec<&LogObject> =
            objects.iter().filter(|o| matches!(o.kind, LogKind::Tail | LogKind::Sealed)).collect();
        let mut runs = Vec::new();
        for run in &line.runs {
            let mut bytes = Vec::new();
            for part in &run.parts {
                let LogContent::Segment(data) = vault.read_log(pieces[part.piece]).await.unwrap() else {
                    panic!()
                };
                assert_eq!(data.carry, "record");
                let length = part.to.low() - data.segment.first.offset.low();
                let counts_bytes = data.bytes.len() as u64
                    == data.segment.last.offset.low() - data.segment.first.offset.low();
                let used = if counts_bytes { length as usize } else { data.bytes.len() };
                bytes.extend_from_slice(&data.bytes[..used]);
            }
            runs.push((run.first.clone(), run.last.clone(), bytes));
        }
        runs
    }

    /// The vault has the whole log of the node, from its beginning, bit for bit.
    pub async fn assert_whole(&self, node: usize) {
        for lane in self.lanes() {
            let server = self.server_log(&lane, node);
            let runs = self.surviving(&lane).await;
            assert_eq!(runs.len(), 1, "{lane}: {:?}", runs.iter().map(|r| (&r.0, &r.1)).collect::<Vec<_>>());
            let (first, _, bytes) = &runs[0];
            assert_eq!(first.offset.low(), 0, "{lane}");
            assert!(server == *bytes, "{lane}: {} bytes there, {} here", server.len(), bytes.len());
        }
    }
}

pub async fn open<B: Backend>(dir: &tempfile::TempDir, backend: B) -> Vault {
    let store = Store::with(backend, StoreLimits { attempts: 2, ..StoreLimits::hasty() });
    Vault::open_or_create(store, &[], &dir.path().join("keys")).await.unwrap().vault
}

pub fn options(home: &str) -> FollowOptions {
    FollowOptions {
        lease_ttl: Duration::from_secs(5),
        limits: Limits {
            disk_bytes_free_min: 0,
            file_bytes: 20_000,
            wait: Duration::from_millis(300),
            ..Limits::default()
        },
        pace: Pace {
            tail_every: Duration::from_millis(40),
            beat_every: Duration::from_millis(100),
            retry_max: Duration::from_millis(500),
            ..Pace::default()
        },
        look_every: Duration::from_millis(300),
        ..FollowOptions::new(home)
    }
}

/// Waits until it holds.
pub async fn until(follower: &Follower, what: &str, holds: impl Fn(&FollowStatus) -> bool) {
    let began = Monotonic::now();
    while !holds(&follower.status()) {
        assert!(began.elapsed() < PATIENCE, "waited in vain for: {what}: {:#?}", follower.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn caught_up(follower: &Follower) {
    if let Err(e) = follower.wait_until(&Until::Now, PATIENCE).await {
        panic!("{e}: {:#?}", follower.status());
    }
}

//! The Fake, tried by the suite that every adapter passes, and by what only it can be made to do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use mainstay_engine::{
    Engine, Error, Follow, Host, Installation, Kind, Launch, Layout, LogSource, Mark, NodeCommand,
    NodeLayout, Replay, Result, Secret, Target,
};
use mainstay_model::{Cluster, ClusterName, Instant, Lane, Nodes, Place};
use tempfile::TempDir;

use crate::conformance::{self, Content, Fixture, LIMIT};
use crate::fake::{FAKE, FakeCluster, lane, lane_number};
use crate::memory::MemoryLog;

/// Servers that are this very process.
#[derive(Clone, Debug, Default)]
struct Ourselves(Arc<Mutex<BTreeMap<String, u32>>>);

#[async_trait]
impl Host for Ourselves {
    async fn start(&self, command: &NodeCommand) -> Result<u32> {
        self.0.lock().unwrap().insert(command.node.clone(), std::process::id());
        Ok(std::process::id())
    }
    fn running(&self, node: &str) -> Option<u32> {
        self.0.lock().unwrap().get(node).copied()
    }
    async fn stop(&self, node: &str, _: &str, _: Duration) -> Result<()> {
        self.0.lock().unwrap().remove(node);
        Ok(())
    }
    async fn run(&self, command: &NodeCommand, _: Duration) -> Result<String> {
        Err(Error::new(Kind::Unsupported, format!("run {}", command.program.display())))
    }
}

struct FakeFixture {
    dir: TempDir,
    config: BTreeMap<String, String>,
    made: AtomicU32,
    hosts: Mutex<BTreeMap<PathBuf, Ourselves>>,
}

impl FakeFixture {
    fn new(lanes: usize, count: &str) -> Self {
        let config = [("lanes".to_owned(), lanes.to_string()), ("count".to_owned(), count.to_owned())];
        Self {
            dir: TempDir::new().unwrap(),
            config: config.into(),
            made: AtomicU32::new(0),
            hosts: Mutex::default(),
        }
    }

    fn layout(&self, nodes: u32, sandbox: bool) -> Layout {
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        let node = |index: u32| {
            let dir = self.dir.path().join(format!("{number}/orders-{index}"));
            std::fs::create_dir_all(&dir).unwrap();
            NodeLayout { name: format!("orders-{index}"), dir, ports: vec![1] }
        };
        let cluster = Cluster {
            name: ClusterName::new("orders").unwrap(),
            engine: "fake".into(),
            version: None,
            nodes: Nodes::Count(nodes),
            cluster: None,
            tier: None,
            memory: None,
            config: self.config.clone(),
            backup: None,
            access: None,
            control: None,
        };
        assert_eq!(FAKE.check(&cluster), []);
        Layout {
            cluster,
            scope: format!("shop_orders_{number}"),
            installation: Installation { version: "1.0".into(), bin: "/bin".into() },
            nodes: (1..=nodes).map(node).collect(),
            user: "mainstay".into(),
            password: Secret::new("secret"),
            owner: None,
            sandbox,
        }
    }

    fn ourselves(&self, layout: &Layout) -> Ourselves {
        self.hosts.lock().unwrap().entry(layout.nodes[0].dir.clone()).or_default().clone()
    }
}

#[async_trait]
impl Fixture for FakeFixture {
    fn engine(&self) -> &dyn Engine {
        &FAKE
    }
    async fn start(&self) -> Layout {
        let layout = self.layout(2, false);
        FAKE.start(&layout, &self.ourselves(&layout)).await.unwrap();
        layout
    }
    async fn sandbox(&self, _: &Layout) -> Layout {
        self.layout(1, true)
    }
    fn host(&self, layout: &Layout) -> Box<dyn Host> {
        Box::new(self.ourselves(layout))
    }
    async fn set(&self, layout: &Layout, key: &str, value: &str) {
        FakeCluster::of(layout).set(key, value).await.unwrap();
    }
    async fn delete(&self, layout: &Layout, key: &str) {
        FakeCluster::of(layout).delete(key).await.unwrap();
    }
    async fn content(&self, layout: &Layout) -> Content {
        FakeCluster::of(layout).content().unwrap()
    }
    async fn fail_over(&self, layout: &Layout) -> bool {
        let cluster = FakeCluster::of(layout);
        cluster.replicate().unwrap();
        // The follower may have this already; the copy never learns of it.
        cluster.set("never-replicated", "1").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.kill(0).unwrap();
        cluster.promote(1).unwrap();
        true
    }
    async fn instant_between(&self) -> Instant {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let between = Instant::now();
        tokio::time::sleep(Duration::from_millis(2)).await;
        between
    }
}

#[tokio::test]
async fn one_lane_counted_in_bytes_conforms() {
    conformance::run(&FakeFixture::new(1, "bytes")).await;
}

#[tokio::test]
async fn many_lanes_counted_in_records_conform() {
    conformance::run(&FakeFixture::new(5, "records")).await;
}

/// A cluster of one lane and two nodes, and its log from the start.
fn cluster() -> (TempDir, FakeCluster, MemoryLog, Lane, Place) {
    let dir = TempDir::new().unwrap();
    let cluster = FakeCluster::create(dir.path(), "orders", 2, 1, crate::fake::Count::Bytes).unwrap();
    let (log, start) = (MemoryLog::new(), Place::new("1", 0));
    log.begin(&lane(0), &start);
    (dir, cluster, log, lane(0), start)
}

/// Follows from where `log` is durable, until the log is at the cluster's end or following fails.
async fn follow(cluster: &FakeCluster, log: &MemoryLog, lane: &Lane) -> Option<Error> {
    let access = cluster.access();
    let from = log.durable(lane).unwrap();
    let sink = log.sink(lane, &from);
    let end = FAKE.tip(&access, lane).await;
    let reached = async {
        match end {
            Ok(end) => log.wait_for(lane, &end, LIMIT).await.unwrap(),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        error = Follow::follow(&FAKE, &access, lane, &from, &sink) => error.err(),
        () = reached => None,
    }
}

#[tokio::test]
async fn a_follower_that_is_ahead_is_told_where_the_history_branched() {
    let (_dir, cluster, log, lane, _) = cluster();
    cluster.set("a", "1").await.unwrap();
    cluster.replicate().unwrap();
    let branched = FAKE.tip(&cluster.access(), &lane).await.unwrap();
    cluster.set("b", "lost").await.unwrap();
    assert!(follow(&cluster, &log, &lane).await.is_none());
    cluster.kill(0).unwrap();
    assert_eq!(follow(&cluster, &log, &lane).await.unwrap().kind, Kind::Unreachable);
    cluster.promote(1).unwrap();
    cluster.set("c", "2").await.unwrap();
    let diverged = follow(&cluster, &log, &lane).await.unwrap();
    assert_eq!(diverged.kind, Kind::Diverged { branched: Some(branched.clone()) });
    log.end_branch(&lane, &branched);
    assert!(follow(&cluster, &log, &lane).await.is_none());
    assert!(log.ended_bytes(&lane) > 0, "what was lost is kept");
    let source = log.source(0);
    assert_eq!(source.segments(&lane).last().unwrap().last.epoch.0, "2");
    assert!(source.branches(&lane).iter().any(|(branch, _)| branch.parent.as_ref() == Some(&branched)));
    // The old primary comes back, and still thinks that it takes writes: the newer epoch is followed.
    cluster.revive(0).unwrap();
    assert!(follow(&cluster, &log, &lane).await.is_none());
    // Somebody else's history.
    assert_eq!(lane_number(&Lane::new("lane-7")).unwrap(), 7);
    let stranger = MemoryLog::new();
    stranger.begin(&lane, &Place::new("77", 0));
    assert_eq!(follow(&cluster, &stranger, &lane).await.unwrap().kind, Kind::Diverged { branched: None });
}

#[tokio::test]
async fn a_log_that_is_gone_is_a_hole_unless_somebody_keeps_it() {
    let (_dir, cluster, log, lane, _) = cluster();
    cluster.set("a", "1").await.unwrap();
    cluster.trim().unwrap();
    assert_eq!(follow(&cluster, &log, &lane).await.unwrap().kind, Kind::LogGone);
    // Having asked once, what comes is kept for us.
    let kept = MemoryLog::new();
    kept.begin(&lane, &FAKE.tip(&cluster.access(), &lane).await.unwrap());
    cluster.set("b", "2").await.unwrap();
    cluster.trim().unwrap();
    assert!(follow(&cluster, &kept, &lane).await.is_none());
    FAKE.release(&cluster.access()).await.unwrap();
    cluster.set("c", "3").await.unwrap();
    cluster.trim().unwrap();
    assert_eq!(follow(&cluster, &kept, &lane).await.unwrap().kind, Kind::LogGone);
    assert_eq!(cluster.content().unwrap().len(), 3);
}

#[tokio::test]
async fn a_clock_that_was_set_back_makes_a_time_ambiguous() {
    let (_dir, cluster, log, lane, start) = cluster();
    for (key, at) in [("a", 10), ("b", 20), ("c", 30), ("d", 15), ("e", 25), ("f", 40)] {
        cluster.set_clock(Instant(at)).unwrap();
        cluster.set(key, "1").await.unwrap();
    }
    Mark::mark(&FAKE, &cluster.access(), "point").await.unwrap();
    assert!(follow(&cluster, &log, &lane).await.is_none());
    let source = log.source(0);
    let cut = |at| FAKE.cut(&lane, &start, &source, &Target::Time(Instant(at)));
    assert_eq!(cut(12).unwrap().at.earliest, Instant(10));
    assert_eq!(cut(35).unwrap().at.latest, Instant(40));
    let Kind::Ambiguous { candidates } = cut(22).unwrap_err().kind else { panic!("both are candidates") };
    assert_eq!(candidates.len(), 2);
    // Each of them can be asked for.
    for candidate in &candidates {
        let place = FAKE.read_place(candidate).unwrap();
        assert_eq!(FAKE.cut(&lane, &start, &source, &Target::Place(place.clone())).unwrap().place, place);
    }
    assert_eq!(cut(41).unwrap_err().kind, Kind::OutOfLog);
    let named = FAKE.cut(&lane, &start, &source, &Target::Name("point".into())).unwrap();
    assert_eq!(named.place, FAKE.cut(&lane, &start, &source, &Target::End).unwrap().place);
    let between = Place::new("1", named.place.offset.low() - 1);
    assert_eq!(FAKE.cut(&lane, &start, &source, &Target::Place(between)).unwrap_err().kind, Kind::OutOfLog);
}

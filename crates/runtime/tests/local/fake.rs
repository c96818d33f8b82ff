//! The Fake engine on the runtime: an environment, a server that is killed, a restore into a sandbox.

use std::sync::Arc;

use mainstay_engine::{Engine, Host, Launch, Quiet, RestoreJob, Role, SnapshotOptions, Ttl, Way};
use mainstay_engine_kit::fake::{FAKE, FakeCluster};
use mainstay_engine_kit::memory::{MemoryLog, MemorySnapshot};
use mainstay_runtime::{Environment, Sandbox, SandboxCluster};

use crate::sleeper::{TestHome, fleet, name};

#[tokio::test]
async fn a_fake_cluster_lives_dies_and_is_restored() {
    let at = TestHome::new();
    let mut fleet = fleet(&at.dir, 2);
    let cluster = fleet.clusters.get_mut("orders").unwrap();
    cluster.engine = "fake".into();
    cluster.config = [("lanes".to_owned(), "3".to_owned())].into();
    let engines = [&FAKE as &dyn Engine];
    let environment = Environment::open(&at.home, &fleet).unwrap();
    let layout = environment.up(&engines, None, &Quiet).await.unwrap().remove(0).layout;
    let servers = FakeCluster::of(&layout);
    for number in 0..10 {
        servers.set(&format!("key-{number}"), "1").await.unwrap();
    }
    servers.replicate().unwrap();
    let content = servers.content().unwrap();

    let host = environment.host(&name("orders"));
    let observe = FAKE.observe().unwrap();
    let roles = async || -> Vec<Role> {
        observe.observe(&layout.access()).await.unwrap().nodes.iter().map(|node| node.role).collect()
    };
    assert_eq!(roles().await, [Role::Primary, Role::Replica]);
    host.stop("orders-1", "KILL", std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(roles().await, [Role::Down, Role::Replica]);
    environment.up(&engines, None, &Quiet).await.unwrap();
    assert_eq!(roles().await, [Role::Primary, Role::Replica]);
    environment.down(&engines, false, &Quiet).await.unwrap();
    assert_eq!(roles().await, [Role::Down, Role::Down]);
    environment.up(&engines, None, &Quiet).await.unwrap();
    assert_eq!(servers.content().unwrap(), content);

    let sink = MemorySnapshot::new();
    let options = SnapshotOptions { way: Way::Auto, jobs: 1, label: "test".into() };
    let access = layout.access();
    let copy = FAKE.snapshot().unwrap().snapshot(&access, &options, Arc::clone(&sink) as _, Arc::new(Quiet));
    let snapshot = sink.finish(copy.await.unwrap());
    let wanted = SandboxCluster { cluster: &fleet.clusters["orders"], version: Some("1.0") };
    let sandbox = Sandbox::create(&at.home, "shop", "local", "recover", &[wanted], &engines).await.unwrap();
    let inside = sandbox.layouts().unwrap().remove(0);
    let host = sandbox.host(&name("orders"));
    let nothing = MemoryLog::new().source(0);
    let taken = mainstay_engine::SnapshotSource::taken(&snapshot);
    let job = RestoreJob {
        layout: &inside,
        host: &host,
        snapshot: &snapshot,
        log: &nothing,
        cut: &taken.position,
        at: taken.at.latest,
        ttl: Ttl::Shift,
        in_place: false,
        compared: false,
        jobs: 1,
        progress: Arc::new(Quiet),
    };
    FAKE.restore().unwrap().restore(&job).await.unwrap();
    FAKE.replay().unwrap().replay(&job).await.unwrap();
    assert_eq!(FakeCluster::of(&inside).content().unwrap(), content);
    assert!(sandbox.running().unwrap());
    FAKE.stop(&inside, &host).await.unwrap();
    FAKE.start(&inside, &host).await.unwrap();
    assert_eq!(FakeCluster::of(&inside).content().unwrap(), content);
    sandbox.drop_all().await.unwrap();
    assert!(!inside.nodes[0].dir.exists());
}

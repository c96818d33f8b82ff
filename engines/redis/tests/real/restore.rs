//! Snapshot, log and restore, whole.

use std::sync::Arc;

use mainstay_engine::{
    Kind, Launch, LogSource, Mark, Observe, Quiet, Replay, Restore, RestoreJob, Role, SnapshotSource, Ttl,
};
use mainstay_engine_kit::memory::MemoryLog;

use crate::kit::{
    ClusterClient, Fixture, Following, Leaked, Reply, Shape, VERSIONS, at_once, write_all_kinds,
};

async fn round_trip(version: &str, shape: Shape) {
    let fixture = Leaked::new(Fixture::start_with(version, shape, &[]).await);
    let mut client = fixture.client(0);
    write_all_kinds(&mut client, "before");
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    write_all_kinds(&mut client, "after");
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    client.run(&["SET", "text", "too late"]);
    client.run(&["FLUSHALL"]);
    following.wait_for(&marked.position).await;
    let log = following.log.source(1000);
    let (sandbox, replayed) =
        fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
    assert_eq!(replayed.position, marked.position);
    let mut restored = sandbox.client(0);
    assert_eq!(restored.run(&["GET", "text"]).text(), "after");
    assert_eq!(restored.run(&["GET", "number"]).text(), "42");
    assert_eq!(restored.run(&["LRANGE", "list", "0", "-1"]).texts(), ["a", "before", "c", "a", "after", "c"]);
    assert_eq!(
        restored.run(&["XPENDING", "stream", "group"]),
        restored.run(&["XPENDING", "stream", "group"])
    );
    assert_eq!(restored.run(&["XLEN", "stream"]).int(), 2);
    assert_eq!(restored.run(&["FCALL", "f", "0"]).int(), 1);
    assert_eq!(restored.run(&["GET", "scripted-n"]).text(), "2");
    restored.run(&["SELECT", "7"]);
    assert_eq!(restored.run(&["GET", "seven"]).text(), "after");
    restored.run(&["SET", "writable", "1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_server_comes_back_whole() {
    for version in VERSIONS {
        round_trip(version, Shape::Standalone).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_with_replicas_comes_back_whole() {
    for version in VERSIONS {
        round_trip(version, Shape::Replicated(1)).await;
    }
}

async fn cluster_round_trip(version: &'static str) {
    let fixture = Leaked::new(Fixture::start(version, Shape::Cluster(3, 1)).await);
    let ports: Vec<u16> = fixture.layout.nodes.iter().map(|node| node.ports[0]).collect();
    let mut cluster = ClusterClient::new(&ports[..3]);
    for number in 0..300 {
        cluster.run(&["SET", &format!("key-{number}"), "before"]);
    }
    let snapshot = fixture.snapshot().await;
    assert_eq!(snapshot.taken().position.0.len(), 3);
    let following = Following::start(fixture.0, &snapshot.taken().position);
    for number in 100..200 {
        cluster.run(&["SET", &format!("key-{number}"), "after"]);
        cluster.run(&["DEL", &format!("key-{}", number + 100)]);
    }
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    for number in 0..300 {
        cluster.run(&["SET", &format!("key-{number}"), "too late"]);
    }
    following.wait_for(&marked.position).await;
    let log = following.log.source(1000);
    let (sandbox, _) =
        fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
    let ports: Vec<u16> = sandbox.layout.nodes.iter().map(|node| node.ports[0]).collect();
    assert_eq!(ports.len(), 3);
    let mut restored = ClusterClient::new(&ports);
    for number in 0..300 {
        let found = restored.run(&["GET", &format!("key-{number}")]);
        match number {
            0..100 => assert_eq!(found.text(), "before"),
            100..200 => assert_eq!(found.text(), "after"),
            _ => assert_eq!(found, Reply::Nil),
        }
    }
    restored.run(&["SET", "writable", "1"]);
    // It knows nobody but itself.
    assert_eq!(sandbox.client(0).run(&["CLUSTER", "NODES"]).text().lines().count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_comes_back_whole() {
    at_once(VERSIONS, cluster_round_trip).await;
}

/// A restore of the snapshot alone, where the cluster was.
fn in_its_place<'a>(
    fixture: &'a Fixture,
    snapshot: &'a dyn SnapshotSource,
    log: &'a dyn LogSource,
    ttl: Ttl,
) -> RestoreJob<'a> {
    RestoreJob {
        layout: &fixture.layout,
        host: &*fixture.host,
        snapshot,
        log,
        cut: &snapshot.taken().position,
        at: snapshot.taken().at.latest,
        ttl,
        in_place: true,
        compared: false,
        jobs: 2,
        progress: Arc::new(Quiet),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_restored_in_its_own_place() {
    at_once([Shape::Replicated(1), Shape::Cluster(3, 1)], in_place).await;
}

async fn in_place(shape: Shape) {
    let fixture = Leaked::new(Fixture::start_with(VERSIONS[0], shape, &[("maxmemory", "100mb")]).await);
    let ports: Vec<u16> = fixture.layout.nodes.iter().map(|node| node.ports[0]).collect();
    let mut client = ClusterClient::new(&ports);
    for number in 0..50 {
        client.run(&["SET", &format!("key-{number}"), "before"]);
    }
    let snapshot = fixture.snapshot().await;
    for number in 0..50 {
        client.run(&["DEL", &format!("key-{number}")]);
    }
    Launch::stop(&fixture.redis, &fixture.layout, &*fixture.host).await.unwrap();
    for node in &fixture.layout.nodes {
        std::fs::rename(node.data(), node.dir.join("old")).unwrap();
    }
    let log = MemoryLog::new().source(1);
    let job = in_its_place(&fixture, &snapshot, &log, Ttl::Absolute);
    Restore::restore(&fixture.redis, &job).await.unwrap();
    Replay::replay(&fixture.redis, &job).await.unwrap();
    Launch::start(&fixture.redis, &fixture.layout, &*fixture.host).await.unwrap();
    let view = Observe::observe(&fixture.redis, &fixture.access()).await.unwrap();
    assert!(view.findings.is_empty(), "{:?}", view.findings);
    let mut client = ClusterClient::new(&ports);
    for number in 0..50 {
        assert_eq!(client.run(&["GET", &format!("key-{number}")]).text(), "before");
    }
    let replicas = view.nodes.iter().filter(|node| node.role == Role::Replica).count();
    assert_eq!(replicas, fixture.layout.nodes.len() - snapshot.taken().position.0.len());
    assert_eq!(fixture.client(0).run(&["CONFIG", "GET", "maxmemory"]).texts()[1], "104857600");
    // It survives a stop and a start.
    Launch::stop(&fixture.redis, &fixture.layout, &*fixture.host).await.unwrap();
    Launch::start(&fixture.redis, &fixture.layout, &*fixture.host).await.unwrap();
    assert_eq!(ClusterClient::new(&ports).run(&["GET", "key-1"]).text(), "before");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_only_server_is_restored_as_one() {
    let fixture =
        Leaked::new(Fixture::start_with(VERSIONS[0], Shape::Standalone, &[("appendonly", "yes")]).await);
    fixture.client(0).run(&["SET", "a", "1"]);
    let snapshot = fixture.snapshot().await;
    Launch::stop(&fixture.redis, &fixture.layout, &*fixture.host).await.unwrap();
    std::fs::rename(fixture.layout.nodes[0].data(), fixture.folder.path().join("old")).unwrap();
    let log = MemoryLog::new().source(1);
    let job = in_its_place(&fixture, &snapshot, &log, Ttl::Shift);
    Restore::restore(&fixture.redis, &job).await.unwrap();
    Replay::replay(&fixture.redis, &job).await.unwrap();
    let mut client = fixture.client(0);
    assert_eq!(client.run(&["GET", "a"]).text(), "1");
    assert_eq!(client.run(&["CONFIG", "GET", "appendonly"]).texts()[1], "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_before_anything_starts() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[1], Shape::Standalone).await);
    let snapshot = fixture.snapshot().await;
    let older = Fixture::prepare(VERSIONS[0], Shape::Standalone, &[]);
    let clustered = Fixture::prepare(VERSIONS[1], Shape::Cluster(3, 0), &[]);
    for into in [&older, &clustered] {
        let log = MemoryLog::new().source(1);
        let taken = snapshot.taken();
        let failed = into.restore(&snapshot, &log, &taken.position, taken.at.latest, Ttl::Shift).await;
        assert_eq!(failed.err().unwrap().kind, Kind::Unsupported);
    }
}

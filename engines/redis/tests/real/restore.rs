//! Snapshot, log and restore, whole.

use mainstay_engine::{Mark, SnapshotSource, Ttl};

use crate::kit::{ClusterClient, Fixture, Following, Leaked, Reply, Shape, VERSIONS, write_all_kinds};

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

async fn cluster_round_trip(version: &str) {
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
    for version in VERSIONS {
        cluster_round_trip(version).await;
    }
}

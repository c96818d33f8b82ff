//! Proofs.

use mainstay_engine::{Content, Kind, Mark, Prove, SnapshotSource, Ttl};

use crate::kit::{Fixture, Following, Leaked, Sandbox, Shape, VERSIONS, at_once, until, write_all_kinds};

async fn content(fixture: &Fixture, sandbox: &Sandbox) -> Vec<Content> {
    fixture.redis.content(&sandbox.layout.access()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_instant_from_two_snapshots_has_one_content() {
    let shapes = [
        (VERSIONS[0], Shape::Standalone),
        (VERSIONS[1], Shape::Standalone),
        (VERSIONS[0], Shape::Cluster(3, 0)),
    ];
    at_once(shapes, crossed).await;
}

async fn crossed((version, shape): (&'static str, Shape)) {
    let fixture = Leaked::new(Fixture::start(version, shape).await);
    let ports: Vec<u16> = fixture.layout.nodes.iter().map(|node| node.ports[0]).collect();
    let mut client = crate::kit::ClusterClient::new(&ports);
    if shape == Shape::Standalone {
        write_all_kinds(&mut fixture.client(0), "first");
    }
    for number in 0..200 {
        client.run(&["SET", &format!("mortal-{number}"), "x", "PX", "1500"]);
    }
    let first = fixture.snapshot().await;
    let following = Following::start(fixture.0, &first.taken().position);
    for number in 50..100 {
        client.run(&["PERSIST", &format!("mortal-{number}")]);
    }
    let second = fixture.snapshot().await;
    client.run(&["SET", "late", "x"]);
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    client.run(&["SET", "later", "x"]);
    let later = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    until("keys to die", || client.run(&["EXISTS", "mortal-1"]).int() == 0).await;
    following.wait_for(&later.position).await;
    let log = following.log.source(1000);
    let mut contents = Vec::new();
    for (snapshot, marked) in [(&first, &marked), (&second, &marked), (&second, &later)] {
        let (sandbox, _) =
            fixture.restore(snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
        // Also when keys have died meanwhile.
        tokio::time::sleep(std::time::Duration::from_millis(1600)).await;
        contents.push(content(&fixture, &sandbox).await);
        let checks = fixture.redis.integrity(&sandbox.layout, &*sandbox.host, snapshot).await.unwrap();
        assert!(
            checks.len() >= sandbox.layout.nodes.len() && checks.iter().all(|check| check.passed()),
            "{checks:?}"
        );
        // A write is seen.
        let ports: Vec<u16> = sandbox.layout.nodes.iter().map(|node| node.ports[0]).collect();
        crate::kit::ClusterClient::new(&ports).run(&["SET", "more", "x"]);
        assert_ne!(content(&fixture, &sandbox).await, *contents.last().unwrap());
    }
    assert_eq!(contents[0], contents[1]);
    assert_ne!(contents[1], contents[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_never_reaches_a_database() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Standalone).await);
    write_all_kinds(&mut fixture.client(0), "x");
    let snapshot = fixture.snapshot().await;
    let position = snapshot.taken().position.clone();
    let at = snapshot.taken().at.latest;
    let log = mainstay_engine_kit::memory::MemoryLog::new().source(1);
    let (sandbox, _) = fixture.restore(&snapshot, &log, &position, at, Ttl::Shift).await.unwrap();
    assert_eq!(sandbox.client(0).run(&["GET", "text"]).text(), "x");
    let damaged = snapshot.with_damage("shard-main.rdb");
    let error = fixture.restore(&damaged, &log, &position, at, Ttl::Shift).await.err().unwrap();
    assert_eq!(error.kind, Kind::Damaged, "{error}");
    let checks = fixture.redis.integrity(&sandbox.layout, &*sandbox.host, &damaged).await;
    assert_eq!(checks.err().unwrap().kind, Kind::Damaged);
}

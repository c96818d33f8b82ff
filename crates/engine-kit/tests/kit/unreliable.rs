//! Engines that fail where they are asked to.

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::{Engine, Kind, Quiet, SnapshotOptions, Taken, Way};
use mainstay_engine_kit::fake::{Count, FAKE, Fake, FakeCluster};
use mainstay_engine_kit::memory::{MemoryLog, MemorySnapshot};
use mainstay_engine_kit::unreliable::{Faults, Unreliable, When, kinds};
use mainstay_model::Lane;
use tempfile::TempDir;

async fn snapshot(engine: &dyn Engine, cluster: &FakeCluster) -> mainstay_engine::Result<Taken> {
    let options = SnapshotOptions { way: Way::Auto, jobs: 1, label: "test".into() };
    let (sink, progress) = (MemorySnapshot::new(), Arc::new(Quiet));
    engine.snapshot().unwrap().snapshot(&cluster.access(), &options, sink, progress).await
}

fn cluster(dir: &TempDir) -> FakeCluster {
    FakeCluster::create(dir.path(), "orders", 1, 1, Count::Bytes).unwrap()
}

#[tokio::test]
async fn each_call_fails_in_turn_with_each_kind() {
    let dir = TempDir::new().unwrap();
    let cluster = cluster(&dir);
    cluster.set("a", "1").await.unwrap();
    let counted = Faults::new(When::Never, Kind::Io);
    snapshot(&Unreliable::new(Fake, Arc::clone(&counted)), &cluster).await.unwrap();
    assert!(counted.calls() >= 4 && counted.failed() == 0);
    for kind in kinds() {
        for call in 1..=counted.calls() {
            let faults = Faults::new(When::At(call), kind.clone());
            let engine = Unreliable::new(Fake, Arc::clone(&faults));
            let error = snapshot(&engine, &cluster).await.unwrap_err();
            assert_eq!(error.kind, kind);
            assert_eq!(faults.failed(), 1);
            // Once only: done again, it works.
            snapshot(&engine, &cluster).await.unwrap();
        }
    }
    assert_eq!(snapshot(&FAKE, &cluster).await.unwrap().position.0.len(), 1);
}

#[tokio::test]
async fn followed_over_links_that_break_at_random_nothing_is_lost() {
    let dir = TempDir::new().unwrap();
    let cluster = cluster(&dir);
    let (lane, log) = (Lane::new("lane-0"), MemoryLog::new());
    let access = cluster.access();
    log.begin(&lane, &FAKE.follow().unwrap().tip(&access, &lane).await.unwrap());
    let faults = Faults::new(When::OneIn { calls: 3, seed: 42 }, Kind::Unreachable);
    let engine = Unreliable::new(Fake, Arc::clone(&faults));
    let follow = async {
        loop {
            let from = log.durable(&lane).unwrap();
            let sink = log.sink(&lane, &from);
            let error = engine.follow().unwrap().follow(&access, &lane, &from, &sink).await.unwrap_err();
            assert_eq!(error.kind, Kind::Unreachable, "{error}");
            tokio::task::yield_now().await;
        }
    };
    let write = async {
        for number in 0..50 {
            cluster.set("key", &number.to_string().repeat(200)).await.unwrap();
            let end = FAKE.follow().unwrap().tip(&access, &lane).await.unwrap();
            log.wait_for(&lane, &end, Duration::from_secs(60)).await.unwrap();
        }
    };
    tokio::select! {
        () = follow => {}
        () = write => {}
    }
    assert!(faults.failed() > 10, "{} of {} calls failed", faults.failed(), faults.calls());
    let written = std::fs::read(dir.path().join("orders-1/data/lane-0.log")).unwrap();
    assert_eq!(log.bytes(&lane), written);
}

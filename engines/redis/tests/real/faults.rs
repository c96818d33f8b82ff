//! Things that go wrong in the midst of others.

use std::io::Read;
use std::sync::Arc;

use mainstay_engine::{
    FileSpec, Follow, Kind, Launch, Quiet, Snapshot, SnapshotOptions, SnapshotSink, SnapshotSource, Stored,
    Ttl, Way,
};
use mainstay_engine_kit::memory::MemoryLog;

use crate::kit::{Fixture, Leaked, Shape, TestHost, VERSIONS};

/// A vault that sees a server die when it has read a little.
struct Deadly {
    host: Arc<TestHost>,
}

impl SnapshotSink for Deadly {
    fn put(&self, file: &FileSpec, content: &mut dyn Read) -> mainstay_engine::Result<Stored> {
        let io = |error| mainstay_engine::Error::io(format!("store {}", file.path), error);
        content.read_exact(&mut [0; 100]).map_err(io)?;
        self.host.crash("stock-1");
        let mut rest = Vec::new();
        content.read_to_end(&mut rest).map_err(io)?;
        Ok(Stored { bytes_read: rest.len() as u64, bytes_new: 0 })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_in_a_snapshot_is_unreachable() {
    let fixture = Fixture::start(VERSIONS[0], Shape::Standalone).await;
    let mut client = fixture.client(0);
    // More than fits between the server and the vault, and nothing that could be compressed.
    let noise: Vec<u8> =
        (0..1_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11 ^ n >> 3) as u8).collect();
    let noise = noise.repeat(64);
    client.run_bytes(&[b"SET", b"noise", &noise]);
    let options = SnapshotOptions { way: Way::Auto, jobs: 1, label: "test".into() };
    let sink = Arc::new(Deadly { host: Arc::clone(&fixture.host) });
    let taken = Snapshot::snapshot(&fixture.redis, &fixture.access(), &options, sink, Arc::new(Quiet)).await;
    let error = taken.unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable, "{error}");
    // Nothing stands in the next one's way.
    Launch::start(&fixture.redis, &fixture.layout, &*fixture.host).await.unwrap();
    let mut client = fixture.client(0);
    client.run(&["SET", "after", "x"]);
    let snapshot = fixture.snapshot().await;
    crate::kit::until("the link to be gone", || client.info("connected_slaves") == "0").await;
    let position = snapshot.taken().position.clone();
    let (at, log) = (snapshot.taken().at.latest, MemoryLog::new().source(1));
    let (sandbox, _) = fixture.restore(&snapshot, &log, &position, at, Ttl::Shift).await.unwrap();
    assert_eq!(sandbox.client(0).run(&["GET", "after"]).text(), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_end_the_log() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Cluster(3, 0)).await);
    let snapshot = fixture.snapshot().await;
    let (lane, from) =
        snapshot.taken().position.0.iter().next().map(|(l, p)| (l.clone(), p.clone())).unwrap();
    assert_eq!(lane.0, "slots-0-5460");
    let redis = fixture.0;
    let sink = MemoryLog::new().sink(&lane, &from);
    let following = tokio::spawn(async move {
        Follow::follow(&redis.redis, &redis.access(), &lane, &from, &sink).await.err().unwrap()
    });
    let mut first = fixture.client(0);
    crate::kit::until("a link", || first.info("connected_slaves") == "1").await;
    let other = fixture.client(1).run(&["CLUSTER", "MYID"]).text();
    first.run(&["CLUSTER", "SETSLOT", "100", "MIGRATING", &other]);
    let error = tokio::time::timeout(crate::kit::LIMIT, following).await.unwrap().unwrap();
    assert_eq!(error.kind, Kind::LogGone, "{error}");
    let options = SnapshotOptions { way: Way::Auto, jobs: 1, label: "test".into() };
    let sink = mainstay_engine_kit::memory::MemorySnapshot::new();
    let taken = Snapshot::snapshot(&fixture.redis, &fixture.access(), &options, sink, Arc::new(Quiet)).await;
    assert_eq!(taken.unwrap_err().kind, Kind::Refused);
    first.run(&["CLUSTER", "SETSLOT", "100", "STABLE"]);
    fixture.snapshot().await;
}

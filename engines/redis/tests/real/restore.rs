//! Snapshot, log and restore, whole.

use mainstay_engine::{Mark, SnapshotSource, Ttl};

use crate::kit::{Fixture, Following, Leaked, Shape, VERSIONS, write_all_kinds};

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

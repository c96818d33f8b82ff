//! Times to live over a restore.

use std::time::Duration;

use mainstay_engine::{Mark, SnapshotSource, Ttl};

use crate::kit::{Fixture, Following, Leaked, Reply, Shape, VERSIONS, until};

/// Restores to a mark that was set while these keys lived, after their time has passed.
async fn run(version: &str, ttl: Ttl, check: impl AsyncFn(&mut crate::kit::Client)) {
    let fixture = Leaked::new(Fixture::start(version, Shape::Standalone).await);
    let mut client = fixture.client(0);
    // In the snapshot's file, with an end that will have passed.
    for key in ["kept", "made-permanent", "counted", "renewed"] {
        client.run(&["SET", key, "5", "PX", "2500"]);
    }
    client.run(&["SELECT", "3"]);
    client.run(&["SET", "in-three", "x", "PX", "2500"]);
    client.run(&["SELECT", "0"]);
    client.run(&["SET", "long", "x", "PX", "600000"]);
    client.run(&["SET", "gone", "x", "PX", "1"]);
    until("a key to die", || client.run(&["EXISTS", "gone"]).int() == 0).await;
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    client.run(&["PERSIST", "made-permanent"]);
    client.run(&["INCR", "counted"]);
    client.run(&["PEXPIRE", "renewed", "2600"]);
    client.run(&["SET", "young", "x", "PX", "2500"]);
    let left = client.run(&["PTTL", "kept"]).int();
    assert!(left > 0, "the machine was too slow for this test");
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    until("the keys to die", || client.run(&["EXISTS", "kept", "counted", "renewed", "young"]).int() == 0)
        .await;
    following.wait_for(&marked.position).await;
    let log = following.log.source(1000);
    let (sandbox, _) =
        fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, ttl).await.unwrap();
    check(&mut sandbox.client(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_have_the_life_that_they_had() {
    for version in VERSIONS {
        run(version, Ttl::Shift, async |restored| {
            // They may die from here on, as they did in the source: the answers tell how long they had.
            let lives = restored.run(&["MGET", "kept", "counted", "renewed", "young"]);
            let left = restored.run(&["PTTL", "kept"]).int();
            let alive = restored.run(&["MGET", "kept", "counted", "renewed", "young"]);
            if left > 0 {
                assert!(left <= 2500);
                let text = |text: &str| Reply::Text(text.as_bytes().to_vec());
                assert_eq!(lives, Reply::List(vec![text("5"), text("6"), text("5"), text("x")]));
            } else {
                panic!("restored with {left} ms to live: {lives:?} {alive:?}");
            }
            assert_eq!(restored.run(&["GET", "made-permanent"]).text(), "5");
            assert_eq!(restored.run(&["PTTL", "made-permanent"]).int(), -1);
            let long = restored.run(&["PTTL", "long"]).int();
            assert!((500_000..=600_000).contains(&long), "{long}");
            assert_eq!(restored.run(&["EXISTS", "gone"]).int(), 0);
            restored.run(&["SELECT", "3"]);
            let three = restored.run(&["PTTL", "in-three"]).int();
            assert!(three > 0, "{three}");
            restored.run(&["SELECT", "0"]);
            until("restored keys to die in their time", || {
                restored.run(&["EXISTS", "kept", "counted", "renewed", "young"]).int() == 0
            })
            .await;
            assert_eq!(restored.run(&["EXISTS", "made-permanent", "long"]).int(), 2);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn absolute_ends_stay_where_they_were() {
    run(VERSIONS[0], Ttl::Absolute, async |restored| {
        assert_eq!(restored.run(&["EXISTS", "kept", "counted", "renewed", "young"]).int(), 0);
        assert_eq!(restored.run(&["EXISTS", "made-permanent", "long"]).int(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_are_shifted_once_each() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Standalone).await);
    let mut client = fixture.client(0);
    let script = "for i = 1, 50000 do redis.call('SET', 'key-' .. i, i, 'PX', 1000000 + i * 1000) end";
    client.run(&["EVAL", script, "0"]);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    client.run(&["EVAL", &script.replace("key-", "more-"), "0"]);
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    let ends: Vec<i64> = [1, 777, 50000]
        .iter()
        .flat_map(|number| ["key", "more"].map(|kind| format!("{kind}-{number}")))
        .map(|key| client.run(&["PEXPIRETIME", &key]).int())
        .collect();
    following.wait_for(&marked.position).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let log = following.log.source(100_000);
    let (sandbox, replayed) =
        fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
    assert!(replayed.notes.iter().any(|note| note.contains("100000 keys")), "{:?}", replayed.notes);
    let mut restored = sandbox.client(0);
    let shifted: Vec<i64> = [1, 777, 50000]
        .iter()
        .flat_map(|number| ["key", "more"].map(|kind| format!("{kind}-{number}")))
        .map(|key| restored.run(&["PEXPIRETIME", &key]).int())
        .collect();
    let by = shifted[0] - ends[0];
    assert!(by >= 300, "{by}");
    let moved: Vec<i64> = ends.iter().map(|end| end + by).collect();
    assert_eq!(shifted, moved);
    assert_eq!(restored.run(&["DBSIZE"]).int(), 100_000);
}

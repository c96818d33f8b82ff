//! Times to live over a restore.

use std::io::Read;
use std::time::Duration;

use mainstay_engine::{Mark, SnapshotSource, Ttl};

use mainstay_redis::walk::Walk;

use crate::kit::{Fixture, Following, Leaked, Reply, Shape, VERSIONS, until, write_all_kinds};

/// Restores to a mark that was set while these keys lived, after their time has passed.
async fn run(version: &str, ttl: Ttl, check: impl AsyncFn(&mut crate::kit::Client)) {
    let fixture = Leaked::new(Fixture::start(version, Shape::Standalone).await);
    let mut client = fixture.client(0);
    // In the snapshot's file, with an end that will have passed.
    for key in ["kept", "made-permanent", "counted", "renewed"] {
        client.run(&["SET", key, "5", "PX", "5000"]);
    }
    client.run(&["SELECT", "3"]);
    client.run(&["SET", "in-three", "x", "PX", "5000"]);
    client.run(&["SELECT", "0"]);
    client.run(&["SET", "long", "x", "PX", "600000"]);
    client.run(&["SET", "gone", "x", "PX", "1"]);
    until("a key to die", || client.run(&["EXISTS", "gone"]).int() == 0).await;
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    client.run(&["PERSIST", "made-permanent"]);
    client.run(&["INCR", "counted"]);
    client.run(&["PEXPIRE", "renewed", "5100"]);
    client.run(&["SET", "young", "x", "PX", "5000"]);
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
                assert!(left <= 5000);
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
    let script = "for i = 1, 20000 do redis.call('SET', 'key-' .. i, i, 'PX', 1000000 + i * 1000) end";
    client.run(&["EVAL", script, "0"]);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    client.run(&["EVAL", &script.replace("key-", "more-"), "0"]);
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    let ends: Vec<i64> = [1, 777, 20000]
        .iter()
        .flat_map(|number| ["key", "more"].map(|kind| format!("{kind}-{number}")))
        .map(|key| client.run(&["PEXPIRETIME", &key]).int())
        .collect();
    following.wait_for(&marked.position).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let log = following.log.source(100_000);
    let (sandbox, replayed) =
        fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
    assert!(replayed.notes.iter().any(|note| note.contains("40000 keys")), "{:?}", replayed.notes);
    let mut restored = sandbox.client(0);
    let shifted: Vec<i64> = [1, 777, 20000]
        .iter()
        .flat_map(|number| ["key", "more"].map(|kind| format!("{kind}-{number}")))
        .map(|key| restored.run(&["PEXPIRETIME", &key]).int())
        .collect();
    let by = shifted[0] - ends[0];
    assert!(by >= 300, "{by}");
    let moved: Vec<i64> = ends.iter().map(|end| end + by).collect();
    assert_eq!(shifted, moved);
    assert_eq!(restored.run(&["DBSIZE"]).int(), 40_000);
}

/// A kind that is not understood costs a restore a look at every key: none of those that these servers write is.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_are_seen_in_a_copy() {
    for version in VERSIONS {
        let fixture = Leaked::new(Fixture::start(version, Shape::Standalone).await);
        let mut client = fixture.client(0);
        write_all_kinds(&mut client, "mark");
        client.run(&["SET", "100000", "a number for a key"]);
        client.run(&["SET", &"compressed".repeat(40), "x"]);
        // Its name is no text, and is compared as one here.
        client.run_bytes(&[b"DEL", b"bin\x00\r\n\xff"]);
        client.run(&["XREADGROUP", "GROUP", "group", "reader", "COUNT", "1", "STREAMS", "stream", ">"]);
        let mut mortal = client.run(&["KEYS", "*"]).texts();
        mortal.sort_unstable();
        for key in &mortal {
            client.run(&["PEXPIRE", key, "600000"]);
        }
        client.run(&["SET", "immortal", "x"]);
        let snapshot = fixture.snapshot().await;
        let mut copy = Vec::new();
        snapshot.open("shard-main.rdb").unwrap().read_to_end(&mut copy).unwrap();
        let (mut walk, mut told) = (Walk::default(), Vec::new());
        walk.feed(&copy, |db, key| told.push((db, String::from_utf8_lossy(key).into_owned())));
        told.sort_unstable();
        assert!(walk.ended(), "{version}: not understood after {told:?}");
        assert_eq!(told, mortal.into_iter().map(|key| (0, key)).collect::<Vec<_>>(), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_hashes_have_the_life_that_they_had() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[1], Shape::Standalone).await);
    let mut client = fixture.client(0);
    // A listpack and a table, with fields that will have ended, and numbers among them.
    client.run(&["HSET", "small", "mortal", "1", "permanent", "2", "12345", "3", "-7", "4"]);
    client.run(&["HPEXPIRE", "small", "5000", "FIELDS", "3", "mortal", "12345", "-7"]);
    let mut words = vec!["HSET".to_owned(), "large".to_owned()];
    for number in 0..2000 {
        words.extend([format!("field-{number}"), "x".repeat(number % 100)]);
    }
    client.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    client.run(&["HPEXPIRE", "large", "5000", "FIELDS", "2", "field-3", "field-999"]);
    client.run(&["HPEXPIRE", "large", "900000", "FIELDS", "1", "field-4"]);
    client.run(&["HSET", "plain", "a", "b"]);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    client.run(&["HPERSIST", "large", "FIELDS", "1", "field-999"]);
    client.run(&["HSET", "young", "mortal", "5"]);
    client.run(&["HPEXPIRE", "young", "5000", "FIELDS", "1", "mortal"]);
    let left = client.run(&["HPTTL", "small", "FIELDS", "1", "mortal"]).ints()[0];
    assert!(left > 0, "the machine was too slow for this test");
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    until("fields to die", || client.run(&["EXISTS", "young"]).int() == 0).await;
    following.wait_for(&marked.position).await;
    let log = following.log.source(1000);
    let mut contents = Vec::new();
    for _ in 0..2 {
        let (sandbox, _) =
            fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
        let mut restored = sandbox.client(0);
        let small =
            restored.run(&["HPTTL", "small", "FIELDS", "4", "mortal", "12345", "-7", "permanent"]).ints();
        assert!(small[..3].iter().all(|left| (1..=5000).contains(left)) && small[3] == -1, "{small:?}");
        let large = restored
            .run(&["HPTTL", "large", "FIELDS", "4", "field-3", "field-4", "field-999", "field-5"])
            .ints();
        assert!((1..=5000).contains(&large[0]) && (800_000..=900_000).contains(&large[1]), "{large:?}");
        assert_eq!(large[2..], [-1, -1]);
        assert!((1..=5000).contains(&restored.run(&["HPTTL", "young", "FIELDS", "1", "mortal"]).ints()[0]));
        until("restored fields to die in their time", || restored.run(&["EXISTS", "young"]).int() == 0).await;
        assert_eq!(restored.run(&["HGET", "small", "permanent"]).text(), "2");
        contents
            .push(mainstay_engine::Prove::content(&fixture.redis, &sandbox.layout.access()).await.unwrap());
    }
    assert_eq!(contents[0], contents[1]);
}

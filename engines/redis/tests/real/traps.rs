//! Sources that are set up oddly, links that are cut off, clocks that are stepped.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::{
    FileSpec, Hold, Kind, Launch, Mark, Observe, Quiet, Severity, Snapshot, SnapshotOptions, SnapshotSink,
    SnapshotSource, Stored, Target, Ttl, Way,
};
use mainstay_engine_kit::memory::MemorySnapshot;
use mainstay_model::Instant;

use crate::hold::{between, timed_write};
use crate::kit::{Client, Fixture, Following, Leaked, Reply, Shape, VERSIONS, until};

/// All keys with what they hold.
fn everything(client: &mut Client) -> Vec<(String, String)> {
    let mut keys = client.run(&["KEYS", "*"]).texts();
    keys.sort();
    let value = |key: String| {
        let value = client.run(&["GET", &key]).text();
        (key, value)
    };
    keys.into_iter().map(value).collect()
}

/// No saves, eviction at work, copies by disk, a tiny backlog, users of its own, a transaction larger than what is gathered.
#[tokio::test(flavor = "multi_thread")]
async fn an_odd_source_comes_back_as_it_was() {
    let config = [
        ("save", ""),
        ("maxmemory", "10mb"),
        ("maxmemory-policy", "allkeys-random"),
        ("maxmemory-clients", "8mb"),
        ("repl-diskless-sync", "no"),
        ("repl-backlog-size", "16kb"),
    ];
    let fixture = Leaked::new(Fixture::start_with(VERSIONS[0], Shape::Standalone, &config).await);
    let mut client = fixture.client(0);
    client.run(&["ACL", "SETUSER", "alice", "on", ">wonder", "~*", "+@all"]);
    let value = |number: u32| format!("{number:05}").repeat(6000);
    for number in 0..100 {
        client.run(&["SET", &format!("early-{number}"), &value(number)]);
    }
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    until("a link", || client.info("connected_slaves") == "1").await;
    client.run(&["MULTI"]);
    for number in 0..100 {
        client.run(&["SET", &format!("together-{number}"), &value(number)]);
    }
    client.run(&["EXEC"]);
    for number in 0..600 {
        client.run(&["SET", &format!("late-{number}"), &value(number)]);
    }
    assert!(client.info("evicted_keys").parse::<u64>().unwrap() > 100);
    // From here on nothing is evicted.
    client.run(&["CONFIG", "SET", "maxmemory", "0"]);
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    let expected = everything(&mut client);
    following.wait_for(&marked.position).await;
    assert!(following.alive());
    let log = following.log.source(1000);
    let (sandbox, replayed) =
        fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
    let mut restored = sandbox.client(0);
    assert!(everything(&mut restored) == expected);
    // More than the source would have held: a sandbox keeps all.
    for number in 0..600 {
        restored.run(&["SET", &format!("more-{number}"), &value(number)]);
    }
    assert_eq!(restored.run(&["DBSIZE"]).int(), expected.len() as i64 + 600);
    assert!(replayed.notes.iter().any(|note| note.contains("not made: alice")), "{:?}", replayed.notes);
}

/// What a replica took by itself is not in the master's history, and so in no snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_takes_writes_of_its_own_is_not_copied() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Replicated(1)).await);
    let (mut master, mut replica) = (fixture.client(0), fixture.client(1));
    master.run(&["SET", "shared", "right"]);
    replica.run(&["CONFIG", "SET", "replica-read-only", "no"]);
    replica.run(&["SET", "own", "x"]);
    replica.run(&["SET", "shared", "wrong"]);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    master.run(&["SET", "more", "x"]);
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    following.wait_for(&marked.position).await;
    let log = following.log.source(1);
    let (sandbox, _) =
        fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
    let mut restored = sandbox.client(0);
    assert_eq!(restored.run(&["GET", "shared"]).text(), "right");
    assert_eq!(restored.run(&["EXISTS", "own", "more"]).int(), 1);
    let view = Observe::observe(&fixture.redis, &fixture.access()).await.unwrap();
    let said = |word: &str| {
        view.findings
            .iter()
            .any(|finding| finding.severity == Severity::Warning && finding.message.contains(word))
    };
    assert!(said("replica-read-only"), "{:?}", view.findings);
}

/// A vault that is slow, while writes go on.
struct Slow {
    port: u16,
    sink: Arc<MemorySnapshot>,
}

impl SnapshotSink for Slow {
    fn put(&self, file: &FileSpec, content: &mut dyn Read) -> mainstay_engine::Result<Stored> {
        if !file.path.ends_with(".rdb") {
            return self.sink.put(file, content);
        }
        let mut head = [0; 100];
        content.read_exact(&mut head).map_err(|error| mainstay_engine::Error::io("read", error))?;
        let mut client = Client::connect(self.port);
        for number in 0..64 {
            client.run_bytes(&[b"SET", format!("meanwhile-{number}").as_bytes(), &noise(number)]);
        }
        self.sink.put(file, &mut head.chain(content))
    }
}

/// 256 KiB that cannot be compressed.
fn noise(salt: u32) -> Vec<u8> {
    let mut at = salt.wrapping_add(1);
    let next = || {
        at ^= at << 13;
        at ^= at >> 17;
        at ^= at << 5;
        (at >> 9) as u8
    };
    std::iter::repeat_with(next).take(256 << 10).collect()
}

/// A server whose limit for replicas is small cuts us off: a copy is not touched by that, and a stream is resumed or declared lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_output_buffer_costs_no_copy_and_no_silence() {
    for version in VERSIONS {
        let config = [("client-output-buffer-limit", "replica 1mb 1mb 1"), ("repl-backlog-size", "64kb")];
        let fixture = Leaked::new(Fixture::start_with(version, Shape::Standalone, &config).await);
        let mut client = fixture.client(0);
        for number in 0..100 {
            client.run_bytes(&[b"SET", format!("before-{number}").as_bytes(), &noise(number)]);
        }
        let sink = MemorySnapshot::new();
        let slow = Arc::new(Slow { port: fixture.layout.nodes[0].ports[0], sink: sink.clone() });
        let options = SnapshotOptions { way: Way::Auto, jobs: 1, label: "test".into() };
        let taken = Snapshot::snapshot(&fixture.redis, &fixture.access(), &options, slow, Arc::new(Quiet))
            .await
            .unwrap();
        let snapshot = sink.finish(taken);
        // Its place lies further back than the backlog reaches: that is said, and not passed over.
        let lane = fixture.lane();
        let from = snapshot.taken().position.get(&lane).unwrap();
        let log = mainstay_engine_kit::memory::MemoryLog::new();
        let sink = log.sink(&lane, from);
        let access = fixture.access();
        let error =
            mainstay_engine::Follow::follow(&fixture.redis, &access, &lane, from, &sink).await.unwrap_err();
        assert_eq!(error.kind, Kind::LogGone, "{error}");
        let at = snapshot.taken().at.latest;
        let position = snapshot.taken().position.clone();
        let (sandbox, _) =
            fixture.restore(&snapshot, &log.source(1), &position, at, Ttl::Shift).await.unwrap();
        assert_eq!(sandbox.client(0).run(&["DBSIZE"]).int(), 100);
        // The next one leads on.
        let snapshot = fixture.snapshot().await;
        let following = Following::start(fixture.0, &snapshot.taken().position);
        until("a link", || client.info("connected_slaves") == "1").await;
        client.run(&["CLIENT", "KILL", "TYPE", "replica"]);
        client.run(&["SET", "after", "x"]);
        let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
        following.wait_for(&marked.position).await;
        assert!(following.alive());
    }
}

/// A server whose wall clock is as far from ours as a file says.
async fn with_clock(version: &str) -> (Leaked, PathBuf) {
    let fixture = Fixture::prepare(version, Shape::Standalone, &[]);
    let clock = fixture.folder.path().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    *fixture.host.env.lock().unwrap() = vec![
        ("LD_PRELOAD".into(), "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1".into()),
        ("FAKETIME_TIMESTAMP_FILE".into(), clock.to_string_lossy().into_owned()),
        ("FAKETIME_NO_CACHE".into(), "1".into()),
        ("DONT_FAKE_MONOTONIC".into(), "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
    ];
    fixture.redis.start(&fixture.layout, &*fixture.host).await.unwrap();
    (Leaked::new(fixture), clock)
}

/// The source's clock goes ahead by ten minutes and comes back: a time that came twice is not guessed at, all else is found.
#[tokio::test(flavor = "multi_thread")]
async fn a_stepped_clock_makes_no_wrong_times() {
    const AHEAD: Duration = Duration::from_secs(600);
    let (fixture, clock) = with_clock(VERSIONS[1]).await;
    let mut client = fixture.client(0);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    until("a link", || client.info("connected_slaves") == "1").await;
    // Each write lies between two looks at the clock.
    let write = async |client: &mut Client, number: u32| -> Instant {
        client.run(&["SET", "number", &number.to_string()]);
        tokio::time::sleep(Duration::from_millis(250)).await;
        let at = client.time();
        tokio::time::sleep(Duration::from_millis(250)).await;
        at
    };
    let first = write(&mut client, 1).await;
    std::fs::write(&clock, "+600").unwrap();
    until("the clock to be ahead", || client.time() > first + AHEAD).await;
    let ahead = write(&mut client, 2).await;
    std::fs::write(&clock, "+0").unwrap();
    until("the clock to be back", || client.time() < ahead).await;
    let back = write(&mut client, 3).await;
    let last = write(&mut client, 4).await;
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    assert!(first < back && back < last && last < ahead);
    following.wait_for(&marked.position).await;
    assert!(following.alive());
    let log = following.log.source(1);
    let cut = |at: Instant| fixture.cuts(&snapshot, &log, &Target::Time(at));
    for twice in [back, last] {
        let error = cut(twice).unwrap_err();
        assert!(matches!(error.kind, Kind::Ambiguous { .. }), "{error}");
    }
    let check = async |position: &mainstay_model::Position, at: Instant, expected: &str| {
        let (sandbox, _) = fixture.restore(&snapshot, &log, position, at, Ttl::Shift).await.unwrap();
        assert_eq!(sandbox.client(0).run(&["GET", "number"]), Reply::Text(expected.into()));
    };
    // Before the step a time is what it was, and so is a place behind it.
    check(&cut(first).unwrap(), first, "1").await;
    check(&marked.position, marked.at.latest, "4").await;
}

/// A pause ends by the server's wall clock: who steps it lets writers through long before the limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_a_stepped_clock_ends_is_not_called_quiet() {
    let (fixture, clock) = with_clock(VERSIONS[1]).await;
    let mut client = fixture.client(0);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    until("a link", || client.info("connected_slaves") == "1").await;
    let held = fixture.redis.hold(&fixture.access(), Duration::from_secs(20)).await.unwrap();
    std::fs::write(&clock, "+600").unwrap();
    let waited = tokio::task::spawn_blocking(move || timed_write(&mut client)).await.unwrap();
    assert!(waited < Duration::from_secs(15), "{waited:?}");
    let (lane, marked) = (fixture.lane(), held.marked().clone());
    let released = held.release().await.unwrap();
    following.wait_for(&released.position).await;
    let offset = |position: &mainstay_model::Position| position.get(&lane).unwrap().offset.low();
    let log = following.log.source(1);
    let bytes = between(&log, &lane, offset(&marked.position), offset(&released.position));
    assert!(released.broken.is_some() || !fixture.redis.is_quiet(&lane, "?", &bytes));
}

//! Holding writes.

use std::time::{Duration, Instant};

use mainstay_engine::{Hold, Kind, Launch, LogSource, Mark, SnapshotSource};

use crate::kit::{Client, ClusterClient, Fixture, Following, Leaked, Reply, Shape, VERSIONS, at_once, until};

#[tokio::test(flavor = "multi_thread")]
async fn writes_wait_and_the_log_proves_it() {
    let shapes = [
        (VERSIONS[0], Shape::Standalone),
        (VERSIONS[1], Shape::Standalone),
        (VERSIONS[0], Shape::Cluster(3, 0)),
    ];
    at_once(shapes, writes_wait).await;
}

async fn writes_wait((version, shape): (&'static str, Shape)) {
    let fixture = Leaked::new(Fixture::start(version, shape).await);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    let ports: Vec<u16> = fixture.layout.nodes.iter().map(|node| node.ports[0]).collect();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let (ports, stop) = (ports.clone(), std::sync::Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut client = ClusterClient::new(&ports);
                let mut number = 0_u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    client.run(&["SET", &format!("{writer}-{}", number % 100), "x"]);
                    number += 1;
                }
                number
            })
        })
        .collect();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let held = fixture.redis.hold(&fixture.access(), Duration::from_secs(20)).await.unwrap();
        let marked = held.marked().clone();
        // Long enough for pings to come.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let released = held.release().await.unwrap();
        assert_eq!(released.broken, None);
        assert!(released.stall >= Duration::from_millis(1500));
        following.wait_for(&released.position).await;
        let log = following.log.source(1);
        let mut pinged = false;
        for (lane, from) in &marked.position.0 {
            let to = released.position.get(lane).unwrap();
            let bytes = between(&log, lane, from.offset.low(), to.offset.low());
            pinged |= !bytes.is_empty();
            assert!(fixture.redis.is_quiet(lane, "?", &bytes), "{}", String::from_utf8_lossy(&bytes));
        }
        // From 7.2 on a master sends none while its writes are held.
        assert!(pinged || version != VERSIONS[0], "no ping came in a second and a half");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        assert!(writer.join().unwrap() > 10);
    }
    // Without a hold there is no quiet.
    let lane = following.log.source(1).lanes()[0].clone();
    let from = snapshot.taken().position.get(&lane).unwrap().offset.low();
    let log = following.log.source(1);
    let to = log.segments(&lane).last().unwrap().last.offset.low();
    assert!(!fixture.redis.is_quiet(&lane, "?", &between(&log, &lane, from, to)));
}

/// The bytes of a lane's log between two offsets.
pub fn between(log: &dyn LogSource, lane: &mainstay_model::Lane, from: u64, to: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, segment) in log.segments(lane).iter().enumerate() {
        let (first, last) = (segment.first.offset.low(), segment.last.offset.low());
        if last > from && first < to {
            let data = log.read(lane, index).unwrap();
            let start = from.saturating_sub(first) as usize;
            let end = (last.min(to) - first) as usize;
            bytes.extend_from_slice(&data.bytes[start..end]);
        }
    }
    assert_eq!(bytes.len() as u64, to - from);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_time_comes_in_a_hold_goes_after_it() {
    at_once(VERSIONS, expiry_waits).await;
}

async fn expiry_waits(version: &'static str) {
    let fixture = Leaked::new(Fixture::start(version, Shape::Standalone).await);
    let mut client = fixture.client(0);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    until("a link", || client.info("connected_slaves") == "1").await;
    client.run(&["SET", "mortal", "x", "PX", "1000"]);
    let held = fixture.redis.hold(&fixture.access(), Duration::from_secs(20)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // Nobody sees it any more, and it is still there.
    assert_eq!(client.run(&["GET", "mortal"]), Reply::Nil);
    assert_eq!(client.run(&["DBSIZE"]), Reply::Int(1));
    let marked = held.marked().clone();
    let released = held.release().await.unwrap();
    assert_eq!(released.broken, None);
    until("its end", || client.run(&["DBSIZE"]) == Reply::Int(0)).await;
    let later = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    following.wait_for(&later.position).await;
    let (log, lane) = (following.log.source(1), fixture.lane());
    for (to, quiet) in [(&released.position, true), (&later.position, false)] {
        let offset = |position: &mainstay_model::Position| position.get(&lane).unwrap().offset.low();
        let bytes = between(&log, &lane, offset(&marked.position), offset(to));
        assert_eq!(fixture.redis.is_quiet(&lane, "?", &bytes), quiet, "{}", String::from_utf8_lossy(&bytes));
    }
}

/// Sends a write and says after how long it was answered.
pub fn timed_write(client: &mut Client) -> Duration {
    let begun = Instant::now();
    client.run(&["SET", "a", "1"]);
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_pause_is_not_ended() {
    for version in VERSIONS {
        let fixture = Fixture::start(version, Shape::Standalone).await;
        let mut client = fixture.client(0);
        client.run(&["CLIENT", "PAUSE", "30000", "WRITE"]);
        let error = fixture.redis.hold(&fixture.access(), Duration::from_secs(5)).await.err().unwrap();
        assert_eq!(error.kind, Kind::Refused);
        let mut writer = fixture.client(0);
        let waiting = std::thread::spawn(move || timed_write(&mut writer));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waiting.is_finished());
        client.run(&["CLIENT", "UNPAUSE"]);
        waiting.join().unwrap();
        let held = fixture.redis.hold(&fixture.access(), Duration::from_secs(5)).await.unwrap();
        assert_eq!(held.release().await.unwrap().broken, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_hold_lets_go_and_a_long_one_is_no_longer_trusted() {
    let fixture = Fixture::start(VERSIONS[0], Shape::Standalone).await;
    let held = fixture.redis.hold(&fixture.access(), Duration::from_secs(600)).await.unwrap();
    drop(held);
    let mut client = fixture.client(0);
    let waited = tokio::task::spawn_blocking(move || timed_write(&mut client)).await.unwrap();
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    let held = fixture.redis.hold(&fixture.access(), Duration::from_secs(3)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(3100)).await;
    assert!(held.release().await.unwrap().broken.unwrap().contains("ended by itself"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_script_is_no_hold_and_leaves_none_behind() {
    let config = [("busy-reply-threshold", "100")];
    let fixture = Fixture::start_with(VERSIONS[0], Shape::Standalone, &config).await;
    let mut busy = fixture.client(0);
    let script = std::thread::spawn(move || busy.try_run(&["EVAL", "while true do end", "0"]));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let error = fixture.redis.hold(&fixture.access(), Duration::from_secs(30)).await.err().unwrap();
    assert_eq!(error.kind, Kind::Unreachable, "{error}");
    let mut client = fixture.client(0);
    client.run(&["SCRIPT", "KILL"]);
    script.join().unwrap();
    let waited = tokio::task::spawn_blocking(move || timed_write(&mut client)).await.unwrap();
    assert!(waited < Duration::from_secs(20), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_changed_breaks_the_hold() {
    let fixture = Fixture::start(VERSIONS[0], Shape::Replicated(1)).await;
    let held = fixture.redis.hold(&fixture.access(), Duration::from_secs(60)).await.unwrap();
    fixture.client(0).run(&["REPLICAOF", "127.0.0.1", &fixture.layout.nodes[1].ports[0].to_string()]);
    assert!(held.release().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_begin_to_move_break_the_hold() {
    at_once(VERSIONS, slots_move).await;
}

async fn slots_move(version: &'static str) {
    let fixture = Fixture::start(version, Shape::Cluster(3, 0)).await;
    let other = fixture.client(1).run(&["CLUSTER", "MYID"]).text();
    let held = fixture.redis.hold(&fixture.access(), Duration::from_secs(60)).await.unwrap();
    fixture.client(0).run(&["CLUSTER", "SETSLOT", "100", "MIGRATING", &other]);
    assert!(held.release().await.unwrap().broken.unwrap().contains("slots-0-5460"));
    fixture.client(0).run(&["CLUSTER", "SETSLOT", "100", "STABLE"]);
    let held = fixture.redis.hold(&fixture.access(), Duration::from_secs(60)).await.unwrap();
    // A slot that has moved, as far as its old owner knows.
    fixture.client(0).run(&["CLUSTER", "SETSLOT", "100", "NODE", &other]);
    assert!(held.release().await.unwrap().broken.unwrap().contains("slots-0-5460"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_started_anew_breaks_the_hold() {
    let fixture = Fixture::start(VERSIONS[0], Shape::Standalone).await;
    let held = fixture.redis.hold(&fixture.access(), Duration::from_secs(60)).await.unwrap();
    fixture.host.crash("stock-1");
    fixture.redis.start(&fixture.layout, &*fixture.host).await.unwrap();
    let released = held.release().await;
    assert!(released.as_ref().map_or(true, |released| released.broken.is_some()), "{released:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_changed_breaks_the_hold() {
    let config = [("enable-debug-command", "yes")];
    let fixture = Fixture::start_with(VERSIONS[0], Shape::Standalone, &config).await;
    let held = fixture.redis.hold(&fixture.access(), Duration::from_secs(60)).await.unwrap();
    fixture.client(0).run(&["DEBUG", "CHANGE-REPL-ID"]);
    assert!(held.release().await.unwrap().broken.unwrap().contains("changed its history"));
}

//! What it is to be followed by us.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mainstay_engine::{Chunk, Follow, Kind, LogSink, LogSource, Mark, Snapshot, SnapshotSource, Target, Ttl};
use mainstay_engine_kit::memory::{MemoryLog, MemoryLogSink};
use mainstay_model::{Bracket, Branch, Place, Position};

use crate::kit::{Fixture, Following, Leaked, Reply, Shape, VERSIONS, until, write_all_kinds};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_stream_has_no_tip() {
    let fixture = Fixture::start(VERSIONS[0], Shape::Standalone).await;
    let error = fixture.redis.tip(&fixture.access(), &fixture.lane()).await.unwrap_err();
    assert_eq!(error.kind, Kind::LogGone);
    let snapshot = fixture.snapshot().await;
    let tip = fixture.redis.tip(&fixture.access(), &fixture.lane()).await.unwrap();
    assert_eq!(&tip.epoch, &snapshot.taken().position.get(&fixture.lane()).unwrap().epoch);
    let unknown = Place::new("f".repeat(40), 5);
    let log = MemoryLog::new();
    let sink = log.sink(&fixture.lane(), &unknown);
    let error = Follow::follow(&fixture.redis, &fixture.access(), &fixture.lane(), &unknown, &sink)
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::LogGone);
    // Nobody was made to copy anything for it.
    assert_eq!(fixture.client(0).info("sync_full"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_are_cut_leave_no_gap() {
    let fixture = Leaked::new(Fixture::start_with(VERSIONS[0], Shape::Standalone, &[]).await);
    let mut client = fixture.client(0);
    write_all_kinds(&mut client, "before");
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    for round in 0..10 {
        write_all_kinds(&mut client, &format!("round {round}"));
        until("the link to come about", || client.info("connected_slaves") == "1").await;
        client.run(&["CLIENT", "KILL", "TYPE", "replica"]);
        client.run(&["SET", "behind", &round.to_string()]);
    }
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    following.wait_for(&marked.position).await;
    assert!(following.alive());
    assert_eq!(client.info("sync_full"), "1");
    let log = following.log.source(1);
    let (sandbox, _) =
        fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
    assert_eq!(sandbox.client(0).run(&["GET", "behind"]).text(), "9");
    assert_eq!(sandbox.client(0).run(&["GET", "text"]).text(), "round 9");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_between_two_writes_is_found() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Standalone).await);
    let mut client = fixture.client(0);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    let mut times = Vec::new();
    for number in 0..5 {
        client.run(&["SET", "number", &number.to_string()]);
        // Later than the next look at the clock.
        let written = client.time();
        following.wait(written + Duration::from_millis(150)).await;
        times.push(client.time());
        following.wait(*times.last().unwrap()).await;
    }
    let log = following.log.source(50);
    for (number, at) in times.iter().enumerate() {
        let cut = fixture.cuts(&snapshot, &log, &Target::Time(*at)).unwrap();
        let (sandbox, _) = fixture.restore(&snapshot, &log, &cut, *at, Ttl::Shift).await.unwrap();
        assert_eq!(sandbox.client(0).run(&["GET", "number"]).text(), number.to_string());
    }
    let late = *times.last().unwrap() + Duration::from_secs(3600);
    assert_eq!(fixture.cuts(&snapshot, &log, &Target::Time(late)).unwrap_err().kind, Kind::OutOfLog);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_a_hundred_megabytes_passes_through() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Standalone).await);
    let mut client = fixture.client(0);
    let block = |salt: u32| -> Vec<u8> {
        (0..1_000_000_u32).map(|n| ((n ^ salt).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    };
    let big = block(1).repeat(100);
    client.run_bytes(&[b"SET", b"in the file", &big]);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    let other = block(2).repeat(100);
    client.run_bytes(&[b"SET", b"in the log", &other]);
    client.run(&["SET", "behind", "it"]);
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    following.wait_for(&marked.position).await;
    let log = following.log.source(1 << 20);
    // A segment can begin in its midst: whoever stores or reads the log holds a part of the value, never all of it.
    let length = |segment: &mainstay_engine::Segment| segment.last.offset.low() - segment.first.offset.low();
    let longest = log.segments(&fixture.lane()).iter().map(length).max();
    assert!(longest.is_some_and(|longest| longest < 8 << 20), "{longest:?}");
    let (sandbox, _) =
        fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
    let mut restored = sandbox.client(0);
    let found = restored.run(&["GET", "in the log"]);
    assert!(found == Reply::Text(other));
    assert!(restored.run(&["GET", "in the file"]) == Reply::Text(big));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_in_the_midst_of_a_transaction_is_refused() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Standalone).await);
    let mut client = fixture.client(0);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    for words in [&["MULTI"][..], &["SET", "a", "1"], &["SET", "b", "1"], &["EXEC"]] {
        client.run(words);
    }
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    following.wait_for(&marked.position).await;
    let log = following.log.source(1000);
    let mut cut = marked.position.clone();
    cut.0.get_mut(&fixture.lane()).unwrap().offset.0 -= 20;
    let place = cut.get(&fixture.lane()).unwrap().clone();
    assert_eq!(fixture.cuts(&snapshot, &log, &Target::Place(place)).unwrap_err().kind, Kind::Invalid);
    let sandbox = fixture.restore(&snapshot, &log, &cut, marked.at.latest, Ttl::Shift).await;
    assert_eq!(sandbox.err().unwrap().kind, Kind::Invalid);
}

/// A disk that can be made to stand still.
#[derive(Default)]
struct Disk {
    stuck: AtomicBool,
    /// Somebody has waited for it.
    waited_for: AtomicBool,
}

/// A spool on such a disk.
struct Stuck {
    sink: MemoryLogSink,
    disk: Arc<Disk>,
}

#[async_trait]
impl LogSink for Stuck {
    async fn append(&self, chunk: Chunk) -> mainstay_engine::Result<()> {
        self.sink.append(chunk).await
    }
    async fn sync(&self) -> mainstay_engine::Result<Place> {
        while self.disk.stuck.load(Ordering::Relaxed) {
            self.disk.waited_for.store(true, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.sink.sync().await
    }
    async fn branch(&self, branch: Branch, history: Option<Bytes>) -> mainstay_engine::Result<()> {
        self.sink.branch(branch, history).await
    }
    async fn beat(&self, at: &Place, time: Bracket) -> mainstay_engine::Result<()> {
        self.sink.beat(at, time).await
    }
    fn vaulted(&self) -> Option<Place> {
        None
    }
}

/// Follows the only lane onto a disk that can be made to stand still, until dropped.
fn follow_onto(
    fixture: &'static Fixture,
    position: &Position,
    log: &MemoryLog,
    disk: &Arc<Disk>,
) -> tokio::task::JoinSet<mainstay_engine::Error> {
    let (lane, disk) = (fixture.lane(), Arc::clone(disk));
    let from = position.get(&lane).unwrap().clone();
    let sink = Stuck { sink: log.sink(&lane, &from), disk };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        Follow::follow(&fixture.redis, &fixture.access(), &lane, &from, &sink).await.err().unwrap()
    });
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_durable_is_acknowledged() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Standalone).await);
    let mut client = fixture.client(0);
    let snapshot = fixture.snapshot().await;
    let disk = Arc::<Disk>::default();
    let _following = follow_onto(fixture.0, &snapshot.taken().position, &MemoryLog::new(), &disk);
    client.run(&["SET", "a", "1"]);
    assert_eq!(client.run(&["WAIT", "1", "0"]).int(), 1);
    disk.stuck.store(true, Ordering::Relaxed);
    client.run(&["SET", "a", "2"]);
    assert_eq!(client.run(&["WAIT", "1", "1500"]).int(), 0);
    disk.stuck.store(false, Ordering::Relaxed);
    assert_eq!(client.run(&["WAIT", "1", "0"]).int(), 1);
}

/// Nobody looks at the clock while the disk stands still: what came meanwhile is known less well, and never wrongly.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_the_disk_stands_still_is_given_no_wrong_time() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Standalone).await);
    let mut client = fixture.client(0);
    let snapshot = fixture.snapshot().await;
    let (lane, log, disk) = (fixture.lane(), MemoryLog::new(), Arc::<Disk>::default());
    let _following = follow_onto(fixture.0, &snapshot.taken().position, &log, &disk);
    until("a link", || client.info("connected_slaves") == "1").await;
    disk.stuck.store(true, Ordering::Relaxed);
    client.run(&["SET", "letter", "a"]);
    until("the disk to be waited for", || disk.waited_for.load(Ordering::Relaxed)).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let before = client.time();
    client.run(&["SET", "letter", "b"]);
    let behind = client.time();
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    disk.stuck.store(false, Ordering::Relaxed);
    let place = marked.position.get(&lane).unwrap();
    log.wait_for(&lane, place, crate::kit::LIMIT).await.unwrap();
    let last = client.time();
    log.wait_for_time(&lane, last, crate::kit::LIMIT).await.unwrap();
    let log = log.source(1000);
    for (at, expected) in [(before, "a"), (last, "b")] {
        let cut = fixture.cuts(&snapshot, &log, &Target::Time(at)).unwrap();
        let (sandbox, _) = fixture.restore(&snapshot, &log, &cut, at, Ttl::Shift).await.unwrap();
        assert_eq!(sandbox.client(0).run(&["GET", "letter"]).text(), expected);
    }
    let mut times = (0..log.segments(&lane).len()).flat_map(|index| log.read(&lane, index).unwrap().times);
    let bracket = times.find(|mark| mark.offset >= place.offset).unwrap().at;
    assert!(bracket.earliest <= behind && before <= bracket.latest, "{bracket:?}: {before} to {behind}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_link_outlives_the_time_that_a_silent_replica_is_given() {
    let fixture =
        Leaked::new(Fixture::start_with(VERSIONS[0], Shape::Standalone, &[("repl-timeout", "3")]).await);
    let mut client = fixture.client(0);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    until("a link", || client.info("connected_slaves") == "1").await;
    let mut id = || {
        let list = client.run(&["CLIENT", "LIST", "TYPE", "replica"]).text();
        list.split_whitespace().find_map(|field| field.strip_prefix("id=")).map(str::to_owned)
    };
    let first = id();
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(first.is_some() && first == id());
    assert!(following.alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_wants_a_replica_to_write_has_one_in_us() {
    for version in VERSIONS {
        let fixture = Leaked::new(Fixture::start(version, Shape::Standalone).await);
        let mut client = fixture.client(0);
        let snapshot = fixture.snapshot().await;
        until("the copy's link to be gone", || client.info("connected_slaves") == "0").await;
        client.run(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
        let mut is_refused =
            || matches!(client.try_run(&["SET", "a", "1"]), Reply::Error(e) if e.starts_with("NOREPLICAS"));
        assert!(is_refused());
        let following = Following::start(fixture.0, &snapshot.taken().position);
        until("writes to be taken", || !is_refused()).await;
        drop(following);
        until("writes to be refused", is_refused).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_followed_where_there_is_one() {
    for version in VERSIONS {
        let fixture = Leaked::new(Fixture::start(version, Shape::Replicated(1)).await);
        let (mut master, mut replica) = (fixture.client(0), fixture.client(1));
        // The stream says which database is selected before we hear it, and not again: only the file does.
        master.run(&["SELECT", "5"]);
        master.run(&["SET", "before", "1"]);
        let snapshot = fixture.snapshot().await;
        // The copy came from the replica as well.
        assert_eq!(master.info("sync_full"), "1");
        let following = Following::start(fixture.0, &snapshot.taken().position);
        until("a link to the replica", || replica.info("connected_slaves") == "1").await;
        assert_eq!(master.info("connected_slaves"), "1");
        master.run(&["SET", "a", "1"]);
        let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
        following.wait_for(&marked.position).await;
        // It has no port that anybody could be sent to.
        assert!(replica.info("slave0").contains("port=0"));
        let log = following.log.source(1);
        let (sandbox, _) =
            fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
        let mut restored = sandbox.client(0);
        restored.run(&["SELECT", "5"]);
        assert_eq!(restored.run(&["GET", "a"]).text(), "1");
    }
}

/// A master that is followed because its replica could not serve us, which is well again by now.
async fn beside_a_replica() -> (Leaked, Following) {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Replicated(1)).await);
    let snapshot = fixture.snapshot().await;
    fixture.host.freeze("stock-2", true);
    let following = Following::start(fixture.0, &snapshot.taken().position);
    let mut master = fixture.client(0);
    until("a link to the master", || master.info("connected_slaves") == "2").await;
    fixture.host.freeze("stock-2", false);
    let mut replica = fixture.client(1);
    until("the replica to be there again", || replica.info("master_link_status") == "up").await;
    (fixture, following)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_is_left_for_a_replica_that_is_well_again() {
    let (fixture, following) = beside_a_replica().await;
    let (mut master, mut replica) = (fixture.client(0), fixture.client(1));
    until("a link to the replica", || replica.info("connected_slaves") == "1").await;
    until("no link to the master", || master.info("connected_slaves") == "1").await;
    master.run(&["SET", "after", "1"]);
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    following.wait_for(&marked.position).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_fails_over_to_us() {
    let (fixture, following) = beside_a_replica().await;
    let (mut master, mut replica) = (fixture.client(0), fixture.client(1));
    for _ in 0..3 {
        master.run(&["SET", "a", "1"]);
        tokio::time::sleep(Duration::from_millis(400)).await;
        let ours: u64 = offset_of(&mut master, "port=0").unwrap();
        assert!(ours < master.info("master_repl_offset").parse().unwrap());
    }
    master.run(&["FAILOVER"]);
    until("the replica to be promoted", || replica.info("role") == "master").await;
    until("the master to be a replica", || master.info("role") == "slave").await;
    assert_eq!(master.info("master_port"), fixture.layout.nodes[1].ports[0].to_string());
    replica.run(&["SET", "after", "1"]);
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    following.wait_for(&marked.position).await;
}

fn offset_of(master: &mut crate::kit::Client, which: &str) -> Option<u64> {
    let info = master.run(&["INFO", "replication"]).text();
    let line = info.lines().find(|line| line.starts_with("slave") && line.contains(which))?;
    line.split(',').find_map(|field| field.strip_prefix("offset="))?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_us_and_loses_nothing() {
    let fixture = Leaked::new(
        Fixture::start_with(VERSIONS[0], Shape::Standalone, &[("shutdown-timeout", "3600")]).await,
    );
    let mut client = fixture.client(0);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    write_all_kinds(&mut client, "last");
    mainstay_engine::Launch::stop(&fixture.redis, &fixture.layout, &*fixture.host).await.unwrap();
    mainstay_engine::Launch::start(&fixture.redis, &fixture.layout, &*fixture.host).await.unwrap();
    // The window goes on under the id that the server has now.
    let mut client = fixture.client(0);
    client.run(&["SET", "after", "the restart"]);
    let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    following.wait_for(&marked.position).await;
    assert!(following.alive());
    let before = &snapshot.taken().position.get(&fixture.lane()).unwrap().epoch;
    assert_ne!(before, &marked.position.get(&fixture.lane()).unwrap().epoch);
    let log = following.log.source(100);
    let (sandbox, _) =
        fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
    assert_eq!(sandbox.client(0).run(&["GET", "text"]).text(), "last");
    assert_eq!(sandbox.client(0).run(&["GET", "after"]).text(), "the restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_its_master_is_found_to_be_silent() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Replicated(1)).await);
    let snapshot = fixture.snapshot().await;
    let from = snapshot.taken().position.get(&fixture.lane()).unwrap().clone();
    let sink = MemoryLog::new().sink(&fixture.lane(), &from);
    let redis = fixture.0;
    let lane = fixture.lane();
    let following = tokio::spawn(async move {
        Follow::follow(&redis.redis, &redis.access(), &lane, &from, &sink).await.err().unwrap()
    });
    let mut replica = fixture.client(1);
    until("a link to the replica", || replica.info("connected_slaves") == "1").await;
    fixture.host.freeze("stock-1", true);
    let error = tokio::time::timeout(crate::kit::LIMIT, following).await.unwrap().unwrap();
    assert_eq!(error.kind, Kind::Unreachable, "{error}");
    fixture.host.freeze("stock-1", false);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_a_stream_is_found_again_by_another_process() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Standalone).await);
    let mut client = fixture.client(0);
    let snapshot = fixture.snapshot().await;
    let lane = fixture.lane();
    let log = MemoryLog::new();
    let mut from = snapshot.taken().position.get(&lane).unwrap().clone();
    for round in 0..3 {
        client.run(&["SELECT", "9"]);
        client.run(&["SET", "nine", &round.to_string()]);
        let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
        // An adapter that has seen nothing yet.
        let other = mainstay_redis::Redis::new();
        let sink = log.sink(&lane, &from);
        let access = fixture.access();
        let follow = Follow::follow(&other, &access, &lane, &from, &sink);
        tokio::select! {
            ended = follow => panic!("{:?}", ended.err()),
            waited = log.wait_for(&lane, marked.position.get(&lane).unwrap(), crate::kit::LIMIT) => waited.unwrap(),
        }
        from = log.durable(&lane).unwrap();
    }
    let source = log.source(1);
    let carries: Vec<String> =
        (0..source.segments(&lane).len()).map(|index| source.read(&lane, index).unwrap().carry).collect();
    assert!(carries.len() >= 3 && carries[1..].iter().all(|carry| carry == "db=9 multi=0"), "{carries:?}");
}

/// As README.md names them.
const RIGHTS: &str = "+psync +replconf +ping +info +time +role +multi +exec +cluster +config|get +acl|list +client|pause \
                      +client|unpause +publish &mainstay:*";

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_few_rights_is_enough() {
    assert!(
        include_str!("../../README.md").replace('\n', " ").contains(RIGHTS),
        "README.md names other rights"
    );
    for version in VERSIONS {
        let fixture = Leaked::new(Fixture::start(version, Shape::Standalone).await);
        let mut client = fixture.client(0);
        let mut words = vec!["ACL", "SETUSER", "keeper", "on", ">secret"];
        words.extend(RIGHTS.split_whitespace());
        client.run(&words);
        client.run(&["SET", "a", "1"]);
        let mut access = fixture.access();
        access.user = "keeper".into();
        access.password = Some(mainstay_engine::Secret::new("secret"));
        let options =
            mainstay_engine::SnapshotOptions { way: mainstay_engine::Way::Auto, jobs: 1, label: "x".into() };
        let sink = mainstay_engine_kit::memory::MemorySnapshot::new();
        let quiet = Arc::new(mainstay_engine::Quiet);
        let taken = Snapshot::snapshot(&fixture.redis, &access, &options, sink.clone(), quiet).await.unwrap();
        assert!(String::from_utf8_lossy(&sink.content("users.acl").unwrap()).contains("user keeper on"));
        let settings = sink.content("settings.json").unwrap();
        assert!(!String::from_utf8_lossy(&settings).contains(crate::kit::PASSWORD));
        let from = taken.position.get(&fixture.lane()).unwrap().clone();
        let log = MemoryLog::new();
        let log_sink = log.sink(&fixture.lane(), &from);
        let held =
            mainstay_engine::Hold::hold(&fixture.redis, &access, Duration::from_secs(5)).await.unwrap();
        assert_eq!(held.release().await.unwrap().broken, None);
        client.run(&["SET", "a", "2"]);
        let marked = Mark::mark(&fixture.redis, &access, "m").await.unwrap();
        let lane = fixture.lane();
        tokio::select! {
            ended = Follow::follow(&fixture.redis, &access, &lane, &from, &log_sink) => panic!("{:?}", ended.err()),
            waited = log.wait_for(&lane, marked.position.get(&lane).unwrap(), crate::kit::LIMIT) => waited.unwrap(),
        }
        access.password = Some(mainstay_engine::Secret::new("wrong"));
        let error = Mark::mark(&fixture.redis, &access, "m").await.unwrap_err();
        assert_eq!(error.kind, Kind::Refused, "{error}");
        assert!(!format!("{error:?}").contains("wrong"));
    }
}

//! What other tools fell into, each tried on a real server.

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::*;
use mainstay_engine_kit::memory::{MemoryLog, MemorySnapshot};
use mainstay_model::{Epoch, Place};
use mainstay_postgres::lsn::Lsn;

use crate::world::*;

/// A sandbox never reaches out, and no replayed record touches a file of the source.
#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_stays_inside() {
    let world = World::new("15");
    let config = [
        ("max_prepared_transactions", "7"),
        ("max_connections", "150"),
        ("archive_mode", "on"),
        ("archive_command", "false"),
    ];
    let layout = world.up("orders", 1, &config).await;
    let client = sql(&layout, 0).await;
    let (first, second) = (world.owned("space one"), world.owned("space-two"));
    client.batch_execute(&format!("CREATE TABLESPACE one LOCATION '{}'", first.display())).await.unwrap();
    client.batch_execute("CREATE TABLE a (n int) TABLESPACE one; INSERT INTO a VALUES (1)").await.unwrap();
    for setting in [
        "archive_command = 'touch /nowhere'",
        "recovery_target_time = '2001-01-01'",
        "primary_conninfo = 'host=nowhere'",
        "synchronous_standby_names = ''",
        "restore_command = 'false'",
    ] {
        client.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
    }
    let snapshots = [world.snapshot(&layout, Way::Files).await, world.snapshot(&layout, Way::Protocol).await];
    let tip = position(&snapshots[0].taken().started);
    let follower = Follower::begin(&world, layout.access(), tip);
    // This one is made in the log: replayed as it is, it would link to the live directory.
    client.batch_execute(&format!("CREATE TABLESPACE two LOCATION '{}'", second.display())).await.unwrap();
    client
        .batch_execute("CREATE TABLE b (n int) TABLESPACE two; INSERT INTO b SELECT generate_series(1, 1000)")
        .await
        .unwrap();
    client.batch_execute("BEGIN; INSERT INTO a VALUES (2); PREPARE TRANSACTION 'left over'").await.unwrap();
    let marked = Mark::mark(&*world.engine, &layout.access(), "here").await.unwrap();
    let here = position(&marked.position);
    follower.caught_up(&here).await;
    client.batch_execute("DELETE FROM b").await.unwrap();
    client.batch_execute("CHECKPOINT").await.unwrap();
    let before = (listing(&first), listing(&second));
    let log = follower.log.source(1 << 20);
    for (name, snapshot) in ["files", "protocol"].into_iter().zip(&snapshots) {
        assert_eq!(snapshot.taken().meta["tablespaces"].as_array().unwrap().len(), 1);
        let (sandbox, replayed) = world.try_restore(name, snapshot, &log, &here).await.unwrap();
        let restored = sql(&sandbox, 0).await;
        assert_eq!(one(&restored, "SELECT count(*) FROM a").await, "1");
        assert_eq!(one(&restored, "SELECT count(*) FROM b").await, "1000");
        restored.batch_execute("INSERT INTO b VALUES (1); CHECKPOINT").await.unwrap();
        let links = listing(&sandbox.nodes[0].data().join("pg_tblspc"));
        assert!(links.iter().all(|line| !line.contains("is_symlink: true")), "{links:?}");
        for (name, value) in [
            ("archive_mode", "off"),
            ("synchronous_standby_names", ""),
            ("primary_conninfo", ""),
            ("max_logical_replication_workers", "0"),
            ("recovery_target_time", ""),
        ] {
            assert_eq!(one(&restored, &format!("SHOW {name}")).await, value, "{name}");
        }
        assert!(!sandbox.nodes[0].dir.join("wal").exists());
        assert!(replayed.notes.iter().any(|note| note.contains("left over")), "{:?}", replayed.notes);
        restored.batch_execute("COMMIT PREPARED 'left over'").await.unwrap();
        assert_eq!(one(&restored, "SELECT count(*) FROM a").await, "2");
        world.drop_sandbox(&sandbox).await;
    }
    assert_eq!((listing(&first), listing(&second)), before, "the source's tablespaces are as they were");
    assert_eq!(one(&client, "SELECT count(*) FROM b").await, "0");

    // A flipped bit in the log never reaches a server that answers, and nothing is left running.
    let damaged = Damaged { log: &log, at: here.offset.low() - 2000 };
    let error = world.try_restore("damaged", &snapshots[0], &damaged, &here).await.unwrap_err();
    assert_eq!(error.kind, Kind::Damaged, "{error}");
    assert_eq!(world.host.running("damaged-1"), None);
    // Nor is a hole jumped over, and a place before the snapshot is refused.
    let error =
        world.try_restore("hole", &snapshots[0], &MemoryLog::new().source(0), &here).await.unwrap_err();
    assert_eq!(error.kind, Kind::OutOfLog, "{error}");
    let early = Place::new("1", position(&snapshots[0].taken().position).offset.low() - 8);
    assert_eq!(
        world.try_restore("early", &snapshots[0], &log, &early).await.unwrap_err().kind,
        Kind::OutOfLog
    );
    world.engine.stop(&layout, &world.host).await.unwrap();
}

/// The log with one byte changed.
struct Damaged<'a> {
    log: &'a dyn LogSource,
    at: u64,
}

impl LogSource for Damaged<'_> {
    fn lanes(&self) -> Vec<mainstay_model::Lane> {
        self.log.lanes()
    }
    fn segments(&self, lane: &mainstay_model::Lane) -> Vec<Segment> {
        self.log.segments(lane)
    }
    fn read(&self, lane: &mainstay_model::Lane, index: usize) -> Result<SegmentData> {
        let mut data = self.log.read(lane, index)?;
        let first = data.segment.first.offset.low();
        if (first..data.segment.last.offset.low()).contains(&self.at) {
            let mut bytes = data.bytes.to_vec();
            bytes[(self.at - first) as usize] ^= 4;
            data.bytes = bytes.into();
        }
        Ok(data)
    }
    fn branches(&self, lane: &mainstay_model::Lane) -> Vec<(mainstay_model::Branch, Option<bytes::Bytes>)> {
        self.log.branches(lane)
    }
    fn complete_to(&self, lane: &mainstay_model::Lane) -> Option<mainstay_model::Instant> {
        self.log.complete_to(lane)
    }
}

/// Every file below a folder, with its kind, length and time.
fn listing(folder: &std::path::Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let data = entry.metadata().unwrap();
        all.push(format!(
            "{:?} {:?} {} {:?}",
            entry.path(),
            data.file_type(),
            data.len(),
            data.modified().unwrap()
        ));
        if data.is_dir() {
            all.extend(listing(&entry.path()));
        }
    }
    all.sort();
    all
}

/// Following does the source no harm: it counts for no commit, holds up no shutdown, fills no disk.
#[tokio::test(flavor = "multi_thread")]
async fn following_does_no_harm() {
    let world = World::new("15");
    let config = [("max_slot_wal_keep_size", "32MB"), ("max_wal_size", "64MB"), ("min_wal_size", "32MB")];
    let layout = world.up("orders", 1, &config).await;
    let access = layout.access();
    let client = sql(&layout, 0).await;
    client.batch_execute("CREATE TABLE t (n int, text text)").await.unwrap();
    let tip = world.engine.tip(&access, &lane()).await.unwrap();
    let follower = Follower::begin(&world, access.clone(), tip.clone());
    let ours = "SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE 'mainstay_%' AND state = 'streaming'";
    until_is(&client, ours, "1").await;

    // Whoever answers may be a synchronous standby; we never are one.
    client.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    until_is(&client, "SHOW synchronous_standby_names", "*").await;
    client.batch_execute("SET synchronous_commit = local; INSERT INTO t VALUES (1)").await.unwrap();
    let marked = Mark::mark(&*world.engine, &access, "one").await.unwrap();
    follower.caught_up(&position(&marked.position)).await;
    let standing =
        "SELECT string_agg(sync_state || coalesce(flush_lsn::text, '-'), ',') FROM pg_stat_replication";
    assert_eq!(one(&client, standing).await, "async-");
    client.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();

    // What is durable is acknowledged: our slot moves on.
    let at = Lsn(position(&marked.position).offset.low());
    let moved = format!(
        "SELECT bool_and(restart_lsn >= '{at}') FROM pg_replication_slots WHERE slot_name LIKE 'mainstay_%'"
    );
    until_is(&client, &moved, "t").await;

    // Somebody drops it: the link goes on, and what comes behind the next interruption is kept again.
    client
        .batch_execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        .await
        .unwrap();
    until_is(&client, "SELECT count(*) FROM pg_replication_slots WHERE restart_lsn IS NOT NULL", "1").await;
    assert!(follower.errors.lock().unwrap().is_empty());

    // A spool that takes nothing ends the link, and the server stops as fast as without us.
    follower.log.set_full(&lane(), true);
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    until_is(&client, ours, "0").await;
    // The server sees the link's end before our side has said why.
    let is_full = || follower.errors.lock().unwrap().iter().any(|error| error.kind == Kind::SpoolFull);
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while !is_full() {
        assert!(std::time::Instant::now() < until, "nobody called the spool full");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    follower.log.set_full(&lane(), false);
    until_is(&client, ours, "1").await;
    drop(client);
    let begun = std::time::Instant::now();
    world.engine.stop(&layout, &world.host).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(55), "stopped by force");
    world.engine.start(&layout, &world.host).await.unwrap();
    let client = sql(&layout, 0).await;
    let marked = Mark::mark(&*world.engine, &access, "two").await.unwrap();
    follower.caught_up(&position(&marked.position)).await;

    // We are away: the server gives up what it may not keep, and coming back says that the log is gone.
    let (log, place) = (follower.log.clone(), follower.log.durable(&lane()).unwrap());
    drop(follower);
    until_is(&client, ours, "0").await;
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name LIKE 'mainstay_%'";
    let mut status_now = String::new();
    for _ in 0..12 {
        client
            .batch_execute("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 10000) n")
            .await
            .unwrap();
        client.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        client.batch_execute("CHECKPOINT").await.unwrap();
        status_now = one(&client, status).await;
        if status_now == "lost" {
            break;
        }
    }
    assert_eq!(status_now, "lost");
    let sink = log.sink(&lane(), &place);
    let error = Follow::follow(&*world.engine, &access, &lane(), &place, &sink).await.unwrap_err();
    assert_eq!(error.kind, Kind::LogGone, "{error}");
    // The slot was made anew, for the snapshot that follows.
    until_is(&client, status, "reserved").await;
    // A place of another node's timeline is no place of this server's.
    let other = Place { epoch: Epoch("2x3000000".into()), offset: place.offset };
    let error = Follow::follow(&*world.engine, &access, &lane(), &other, &sink).await.unwrap_err();
    assert_eq!(error.kind, Kind::Diverged { branched: None }, "{error}");
    world.engine.release(&access).await.unwrap();
    assert_eq!(one(&client, "SELECT count(*) FROM pg_replication_slots").await, "0");
    world.engine.stop(&layout, &world.host).await.unwrap();
}

/// Snapshots while everything changes, crossed; then what must not go unseen.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_under_load() {
    let world = World::new("15");
    let layout = world.up("orders", 1, &[("max_wal_size", "64MB"), ("autovacuum_naptime", "1s")]).await;
    let access = layout.access();
    let client = sql(&layout, 0).await;
    client
        .batch_execute(
            "CREATE TABLE t (n bigint PRIMARY KEY, text text); CREATE SEQUENCE s; CREATE INDEX ON t (text); \
             INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 20000) n; \
             CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no changes here'; END $$; \
             CREATE EVENT TRIGGER refusing ON ddl_command_start EXECUTE FUNCTION refuse()",
        )
        .await
        .unwrap();
    let tip = world.engine.tip(&access, &lane()).await.unwrap();
    let follower = Follower::begin(&world, access.clone(), tip);
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let layout = layout.clone();
            tokio::spawn(async move {
                let client = sql(&layout, 0).await;
                for round in 0u64.. {
                    let n = 100_000 * (writer + 1) + round;
                    let work = format!(
                        "INSERT INTO t VALUES ({n}, md5(random()::text)); UPDATE t SET text = md5(random()::text) \
                         WHERE n = {}; DELETE FROM t WHERE n = {}; SELECT nextval('s')",
                        (round * 37 + writer * 7) % 20_000,
                        (round * 91) % 20_000
                    );
                    if client.batch_execute(&work).await.is_err() {
                        return;
                    }
                    if round % 500 == 0 {
                        let _ = client.batch_execute("CHECKPOINT").await;
                    }
                }
            })
        })
        .collect();
    let first = world.snapshot(&layout, Way::Files).await;
    let second = world.snapshot(&layout, Way::Protocol).await;
    let marked = Mark::mark(&*world.engine, &access, "crossed").await.unwrap();
    follower.caught_up(&position(&marked.position)).await;

    // Given up in the midst: nothing is left at the source.
    let options = SnapshotOptions { way: Way::Files, jobs: 1, label: "given up".into() };
    let sink: Arc<dyn SnapshotSink> = Arc::new(Slow);
    let copying = Snapshot::snapshot(&*world.engine, &access, &options, sink, Arc::new(Quiet));
    assert!(tokio::time::timeout(Duration::from_millis(500), copying).await.is_err());
    until_is(&client, "SELECT count(*) FROM pg_replication_slots WHERE temporary", "0").await;
    until_is(&client, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_backup_start%' AND pid <> pg_backend_pid()", "0").await;
    for writer in writers {
        writer.abort();
    }

    let log = follower.log.source(1 << 20);
    let mut contents = Vec::new();
    for (name, snapshot) in [("first", &first), ("second", &second)] {
        let sandbox = world.restore(name, snapshot, &log, &position(&marked.position)).await;
        let checks = world.engine.integrity(&sandbox, &world.host, snapshot).await.unwrap();
        assert!(checks.iter().all(Check::passed), "{checks:?}");
        let kinds: std::collections::BTreeSet<_> = checks.iter().map(|check| check.kind.as_str()).collect();
        assert!(
            kinds.contains("checksums") && kinds.contains("amcheck") && kinds.contains("visibility"),
            "{kinds:?}"
        );
        contents.push(world.engine.content(&sandbox.access()).await.unwrap());
        if name == "second" {
            integrity_sees(&world, &sandbox, snapshot).await;
        }
        world.drop_sandbox(&sandbox).await;
    }
    let [one_way, other_way] = &contents[..] else { panic!() };
    assert!(
        one_way.iter().any(|content| content.what == "table postgres.public.t" && content.count > 0),
        "{one_way:?}"
    );
    for (one, other) in one_way.iter().zip(other_way) {
        assert_eq!((&one.what, &one.digest), (&other.what, &other.digest));
        assert!((one.count - other.count).abs() <= one.tolerance, "{one:?} {other:?}");
    }
    assert_eq!(one_way.len(), other_way.len());

    // A page of the source that is damaged and stays so is found either way, and named.
    let file = one(&client, "SELECT pg_relation_filepath('t')").await;
    client.batch_execute("CHECKPOINT").await.unwrap();
    flip(&layout.nodes[0].data().join(&file), 8192 * 2 + 4000);
    for way in [Way::Files, Way::Protocol] {
        let sink: Arc<dyn SnapshotSink> = MemorySnapshot::new();
        let options = SnapshotOptions { way, jobs: 2, label: "damaged".into() };
        let error =
            Snapshot::snapshot(&*world.engine, &access, &options, sink, Arc::new(Quiet)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Damaged, "{way:?}: {error}");
        if way == Way::Files {
            assert!(error.what.contains(&file) && error.what.contains("block 2"), "{error}");
        }
    }
    world.host.kill("orders-1");
}

/// What is wrong in a restored cluster is seen: a flipped bit, and a visibility map that says too much.
async fn integrity_sees(world: &World, sandbox: &Layout, snapshot: &dyn SnapshotSource) {
    let restored = sql(sandbox, 0).await;
    restored
        .batch_execute(
            "SET session_replication_role = replica; \
             CREATE TABLE v AS SELECT n FROM generate_series(1, 3000) n; CREATE TABLE w AS TABLE v",
        )
        .await
        .unwrap();
    for table in ["v", "w"] {
        restored.batch_execute(&format!("VACUUM {table}")).await.unwrap();
    }
    let path = one(&restored, "SELECT pg_relation_filepath('w')").await;
    // The map of the table as it was goes under the table as it is: its rows were deleted since.
    let map = sandbox.nodes[0]
        .data()
        .join(format!("{}_vm", one(&restored, "SELECT pg_relation_filepath('v')").await));
    restored.batch_execute("CHECKPOINT").await.unwrap();
    let old = std::fs::read(&map).unwrap();
    restored.batch_execute("DELETE FROM v").await.unwrap();
    restored.batch_execute("CHECKPOINT").await.unwrap();
    drop(restored);
    world.engine.stop(sandbox, &world.host).await.unwrap();
    std::fs::write(&map, old).unwrap();
    flip(&sandbox.nodes[0].data().join(&path), 8192 + 5000);
    world.engine.start(sandbox, &world.host).await.unwrap();
    let checks = world.engine.integrity(sandbox, &world.host, snapshot).await.unwrap();
    let failed = |kind: &str| checks.iter().find(|check| check.kind == kind && !check.passed());
    assert!(failed("checksums").is_some_and(|check| check.found.contains(&path)), "{checks:?}");
    assert!(failed("visibility").is_some_and(|check| check.found.contains('v')), "{checks:?}");
}

fn flip(path: &std::path::Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// A vault that takes its time.
struct Slow;

impl SnapshotSink for Slow {
    fn put(&self, _: &FileSpec, content: &mut dyn std::io::Read) -> Result<Stored> {
        std::thread::sleep(Duration::from_millis(20));
        std::io::copy(content, &mut std::io::sink()).map_err(|error| Error::io("read", error))?;
        Ok(Stored::default())
    }
}

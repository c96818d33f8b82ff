//! Sources that are set up oddly, that die in a snapshot, whose clock is stepped.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::*;
use mainstay_engine_kit::memory::{MemoryLog, MemorySnapshot};
use mainstay_model::Instant;

use crate::world::*;

/// A vault that sees the server die when the first table comes.
struct Deadly(TestHost);

impl SnapshotSink for Deadly {
    fn put(&self, file: &FileSpec, content: &mut dyn Read) -> Result<Stored> {
        if file.path.starts_with("base/") && file.kind == FileKind::Regular {
            self.0.kill("orders-1");
        }
        std::io::copy(content, &mut std::io::sink()).map_err(|error| Error::io("read", error))?;
        Ok(Stored::default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_a_snapshot_holds_nothing() {
    let world = World::new("15");
    let layout = world.up("orders", 1, &[("fsync", "off")]).await;
    let access = layout.access();
    let client = sql(&layout, 0).await;
    client.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 1000) n").await.unwrap();
    drop(client);
    for way in [Way::Files, Way::Protocol] {
        let options = SnapshotOptions { way, jobs: 2, label: "killed".into() };
        let sink: Arc<dyn SnapshotSink> = Arc::new(Deadly(world.host.clone()));
        let error =
            Snapshot::snapshot(&*world.engine, &access, &options, sink, Arc::new(Quiet)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unreachable, "{way:?}: {error}");
        world.engine.start(&layout, &world.host).await.unwrap();
        let client = sql(&layout, 0).await;
        assert_eq!(one(&client, "SELECT count(*) FROM pg_replication_slots").await, "0");
        assert_eq!(one(&client, "SELECT count(*) FROM pg_stat_replication").await, "0");
        assert!(!layout.nodes[0].data().join("backup_label").exists());
        let snapshot = world.snapshot(&layout, way).await;
        let place = position(&snapshot.taken().position);
        let log = MemoryLog::new().source(1);
        let sandbox = world.restore(&format!("{way:?}").to_lowercase(), &snapshot, &log, &place).await;
        assert_eq!(one(&sql(&sandbox, 0).await, "SELECT count(*) FROM t").await, "1000");
        world.drop_sandbox(&sandbox).await;
    }
    world.host.kill("orders-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_log_to_give_is_refused() {
    let world = World::new("15");
    let config = [("wal_level", "minimal"), ("max_wal_senders", "0"), ("fsync", "off")];
    let layout = world.up("orders", 1, &config).await;
    let access = layout.access();
    let check = |error: Error| {
        assert_eq!(error.kind, Kind::Refused, "{error}");
        let hint = error.hint.unwrap();
        assert!(hint.contains("wal_level = replica") && hint.contains("max_wal_senders"), "{hint}");
    };
    for way in [Way::Files, Way::Protocol] {
        let options = SnapshotOptions { way, jobs: 1, label: "refused".into() };
        let sink: Arc<dyn SnapshotSink> = MemorySnapshot::new();
        let taken = Snapshot::snapshot(&*world.engine, &access, &options, sink, Arc::new(Quiet)).await;
        check(taken.unwrap_err());
    }
    check(world.engine.tip(&access, &lane()).await.unwrap_err());
    check(Mark::mark(&*world.engine, &access, "m").await.unwrap_err());
    let view = Observe::observe(&*world.engine, &access).await.unwrap();
    let said = view.findings.iter().any(|finding| finding.message.contains("wal_level"));
    assert!(said, "{:?}", view.findings);
    world.host.kill("orders-1");
}

/// No checksums, a standby that is waited for and is not there, an archive, a library of its own, tablespaces, unlogged tables: into a
/// sandbox, into its own place, and from there once more.
#[tokio::test(flavor = "multi_thread")]
async fn an_odd_source_is_restored() {
    let world = World::new("15");
    let (archive, space) = (world.owned("archive"), world.owned("space"));
    let library = world.path("ours.so");
    let layout = {
        let shelf = world.layout("shelf", 1, &[], true).installation.bin.join("../lib/auto_explain.so");
        std::fs::copy(shelf, &library).unwrap();
        let config = [
            ("fsync", "off"),
            ("idle_session_timeout", "200"),
            ("synchronous_standby_names", "*"),
            ("archive_mode", "on"),
            ("archive_command", &format!("cp %p {}/%f", archive.display())),
            ("shared_preload_libraries", &library.to_string_lossy()),
        ];
        world.up("orders", 1, &config).await
    };
    world.engine.stop(&layout, &world.host).await.unwrap();
    let disable = NodeCommand {
        node: "orders-1".into(),
        program: layout.installation.bin.join("pg_checksums"),
        args: vec!["--disable".into(), "-D".into(), layout.nodes[0].data().to_string_lossy().into_owned()],
        env: Vec::new(),
        cwd: layout.nodes[0].dir.clone(),
        log: layout.nodes[0].log(),
        owner: layout.owner,
    };
    world.host.run(&disable, PATIENCE).await.unwrap();
    world.engine.start(&layout, &world.host).await.unwrap();
    let client = sql(&layout, 0).await;
    assert_eq!(one(&client, "SHOW data_checksums").await, "off");
    client.batch_execute("SET synchronous_commit = local").await.unwrap();
    client.batch_execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display())).await.unwrap();
    client
        .batch_execute(
            "CREATE TABLE t (n int PRIMARY KEY) TABLESPACE space; INSERT INTO t SELECT generate_series(1, 10000); \
             CREATE UNLOGGED TABLE u TABLESPACE space AS TABLE t",
        )
        .await
        .unwrap();
    // As a restore by the shell script leaves it: an older snapshot's copy of the configuration.
    let old = layout.nodes[0].data().join("mainstay");
    std::fs::create_dir(&old).unwrap();
    std::fs::write(old.join("pg_hba.conf"), "old").unwrap();
    let tip = world.engine.tip(&layout.access(), &lane()).await.unwrap();
    let follower = Follower::begin(&world, layout.access(), tip);
    let snapshots = [world.snapshot(&layout, Way::Files).await, world.snapshot(&layout, Way::Protocol).await];
    // A visibility map that changes where no page's LSN does, checksums being off.
    for statement in ["VACUUM t", "DELETE FROM t WHERE n > 9000"] {
        client.batch_execute(statement).await.unwrap();
    }
    let marked = Mark::mark(&*world.engine, &layout.access(), "m").await.unwrap();
    let here = position(&marked.position);
    follower.caught_up(&here).await;
    let log = follower.log.source(1 << 20);
    let config: Vec<(String, String)> =
        layout.cluster.config.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let config: Vec<(&str, &str)> =
        config.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();

    for (name, snapshot) in ["files", "protocol"].into_iter().zip(&snapshots) {
        assert!(!snapshot.taken().meta["checksums"].as_bool().unwrap());
        // The server's own configuration lies outside its data directory, and is in the snapshot all the same.
        for (from, to) in [
            ("mainstay.conf", "postgresql.conf"),
            ("pg_hba.conf", "pg_hba.conf"),
            ("pg_ident.conf", "pg_ident.conf"),
        ] {
            let source = std::fs::read_to_string(layout.nodes[0].dir.join(from)).unwrap();
            assert_eq!(stored(snapshot, &format!("mainstay/{to}")), source, "{name}");
        }
        let sandbox = world.layout(name, 1, &config, true);
        world.restore_into(&sandbox, snapshot, &log, &here).await.unwrap();
        let restored = sql(&sandbox, 0).await;
        assert_eq!(one(&restored, "SELECT count(*) FROM t").await, "9000");
        assert_eq!(one(&restored, "SELECT count(*) FROM u").await, "0");
        assert!(!sandbox.nodes[0].data().join("mainstay").exists());
        // Would wait for ever, or reach the archive.
        for statement in ["INSERT INTO t VALUES (0), (-1)", "SELECT pg_switch_wal()", "CHECKPOINT"] {
            tokio::time::timeout(PATIENCE, restored.batch_execute(statement)).await.unwrap().unwrap();
        }
        assert_eq!(one(&restored, "SHOW archive_mode").await, "off");
        let checks = world.engine.integrity(&sandbox, &world.host, snapshot).await.unwrap();
        assert!(checks.iter().all(Check::passed), "{checks:?}");
        world.drop_sandbox(&sandbox).await;
    }
    let archived = || {
        let names = std::fs::read_dir(&archive).unwrap().flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("00000002")).count()
    };
    assert_eq!(archived(), 0, "a sandbox archives nothing");

    // The library is not here: said before anything is started.
    let hidden = world.path("hidden.so");
    std::fs::rename(&library, &hidden).unwrap();
    let error = world.try_restore("bare", &snapshots[0], &log, &here).await.unwrap_err();
    assert!(error.kind == Kind::NotInstalled && error.what.contains("ours.so"), "{error}");
    std::fs::rename(&hidden, &library).unwrap();

    // In its own place it is what it was, and is backed up again: its tablespace lies inside now.
    drop((client, follower));
    world.engine.stop(&layout, &world.host).await.unwrap();
    std::fs::rename(layout.nodes[0].data(), layout.nodes[0].dir.join("old")).unwrap();
    let replayed = world.restore_into(&layout, &snapshots[1], &log, &here).await.unwrap();
    assert!(replayed.notes.iter().any(|note| note.contains("tablespace space")), "{:?}", replayed.notes);
    world.engine.stop(&layout, &world.host).await.unwrap();
    world.engine.start(&layout, &world.host).await.unwrap();
    let client = sql(&layout, 0).await;
    for (name, value) in [("archive_mode", "on"), ("synchronous_standby_names", "*")] {
        assert_eq!(one(&client, &format!("SHOW {name}")).await, value, "{name}");
    }
    for statement in ["SET synchronous_commit = local", "INSERT INTO t VALUES (0)"] {
        client.batch_execute(statement).await.unwrap();
    }
    let snapshot = world.snapshot(&layout, Way::Files).await;
    let place = position(&snapshot.taken().position);
    let sandbox = world.restore("again", &snapshot, &MemoryLog::new().source(1), &place).await;
    assert_eq!(one(&sql(&sandbox, 0).await, "SELECT count(*) FROM t").await, "9001");
    world.drop_sandbox(&sandbox).await;
    // Over the protocol this version would leave the tablespace out, and say nothing.
    let options = SnapshotOptions { way: Way::Protocol, jobs: 1, label: "again".into() };
    let sink: Arc<dyn SnapshotSink> = MemorySnapshot::new();
    let taken = Snapshot::snapshot(&*world.engine, &layout.access(), &options, sink, Arc::new(Quiet)).await;
    let error = taken.unwrap_err();
    assert!(error.kind == Kind::Unsupported && error.what.contains("tablespace space"), "{error}");

    // A standby that is made of it has the tablespace too.
    let mut pair = layout.clone();
    pair.nodes.extend(world.layout("second", 1, &[], false).nodes);
    pair.cluster.nodes = mainstay_model::Nodes::Count(2);
    world.engine.start(&pair, &world.host).await.unwrap();
    let standby = sql(&pair, 1).await;
    until_is(&standby, "SELECT count(*) FROM t", "9001").await;
    world.host.kill("second-1");
    world.host.kill("orders-1");
}

/// The source's clock goes ahead by ten minutes and comes back: a time that came twice is not guessed at, all else is found.
#[tokio::test(flavor = "multi_thread")]
async fn a_stepped_clock_makes_no_wrong_times() {
    let world = World::new("15");
    let clock = world.path("clock");
    let step = |by: &str| std::fs::write(&clock, by).unwrap();
    step("+0");
    let layout = world.up("orders", 1, &[("fsync", "off")]).await;
    world.engine.stop(&layout, &world.host).await.unwrap();
    world.host.set_env(vec![
        ("LD_PRELOAD".into(), "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1".into()),
        ("FAKETIME_TIMESTAMP_FILE".into(), clock.to_string_lossy().into_owned()),
        ("FAKETIME_NO_CACHE".into(), "1".into()),
        ("DONT_FAKE_MONOTONIC".into(), "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
    ]);
    world.engine.start(&layout, &world.host).await.unwrap();
    let access = layout.access();
    let client = sql(&layout, 0).await;
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    let tip = world.engine.tip(&access, &lane()).await.unwrap();
    let follower = Follower::begin(&world, access.clone(), tip);
    let snapshot = world.snapshot(&layout, Way::Auto).await;
    let now = async || -> Instant {
        let micros = one(&client, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await;
        Instant(micros.parse().unwrap())
    };
    let write = async |number: u32| -> Instant {
        client.batch_execute(&format!("INSERT INTO t VALUES ({number})")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let at = now().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        at
    };
    let first = write(1).await;
    step("+600");
    let ahead = write(2).await;
    step("+0");
    let back = write(3).await;
    let last = write(4).await;
    assert!(first < back && back < last && last < ahead, "{first} {ahead} {back} {last}");
    step("+600");
    let again = write(5).await;
    let marked = Mark::mark(&*world.engine, &access, "here").await.unwrap();
    follower.caught_up(&position(&marked.position)).await;
    follower.log.wait_for_time(&lane(), again, PATIENCE).await.unwrap();
    let log = follower.log.source(1 << 20);
    let cut = |at: Instant| {
        world.engine.cut(&lane(), &position(&snapshot.taken().position), &log, &Target::Time(at))
    };
    for twice in [back, last] {
        let error = cut(twice).unwrap_err();
        assert!(matches!(error.kind, Kind::Ambiguous { .. }), "{error}");
    }
    for (at, expected) in [(first, "1"), (again, "5")] {
        let cutting = cut(at).unwrap();
        let sandbox = world.restore(&format!("at-{expected}"), &snapshot, &log, &cutting.place).await;
        assert_eq!(one(&sql(&sandbox, 0).await, "SELECT count(*) FROM t").await, expected);
        world.drop_sandbox(&sandbox).await;
    }
    world.host.kill("orders-1");
}

//! What is copied, in which order, from whom, and what the source sees of it.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};

use mainstay_engine::*;
use mainstay_engine_kit::memory::{MemoryLog, MemorySnapshot, MemorySnapshotSource};

use crate::world::*;

/// Notes when each file was stored, and when storing `pg_control` began.
struct Ordered {
    sink: Arc<MemorySnapshot>,
    order: Mutex<Vec<String>>,
}

impl SnapshotSink for Ordered {
    fn put(&self, file: &FileSpec, content: &mut dyn Read) -> Result<Stored> {
        let note = || self.order.lock().unwrap().push(file.path.clone());
        if file.path == "global/pg_control" {
            note();
            return self.sink.put(file, content);
        }
        self.sink.put(file, content).inspect(|_| note())
    }
}

/// A snapshot in which `pg_control` was read after every relation: what it says of them is not older than they are.
async fn snapshot_in_order(world: &World, layout: &Layout, way: Way) -> MemorySnapshotSource {
    let ordered = Arc::new(Ordered { sink: MemorySnapshot::new(), order: Mutex::default() });
    // Over the protocol the server's order is ours, and one thread alone keeps to it.
    let jobs = if way == Way::Files { 3 } else { 1 };
    let taken = world.snapshot_into(layout, way, jobs, ordered.clone()).await.unwrap();
    let order = ordered.order.lock().unwrap();
    let last = |wanted: &dyn Fn(&str) -> bool| order.iter().rposition(|path| wanted(path)).unwrap();
    let control = last(&|path| path == "global/pg_control");
    assert!(last(&|path| path.starts_with("base/")) < control, "{way:?}: {order:?}");
    ordered.sink.finish(taken)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_says_where_redo_begins_is_copied_last() {
    let world = World::new("15");
    let layout = world.up("orders", 1, &[("fsync", "off")]).await;
    for way in [Way::Files, Way::Protocol] {
        snapshot_in_order(&world, &layout, way).await;
    }
    world.host.kill("orders-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_alone_is_copied_and_not_marked() {
    let world = World::new("15");
    let layout = world.up("orders", 2, &[("fsync", "off")]).await;
    let client = sql(&layout, 0).await;
    client.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 1000) n").await.unwrap();
    let end = one(&client, "SELECT pg_current_wal_flush_lsn()").await;
    let standby = sql(&layout, 1).await;
    until_is(&standby, &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "t").await;
    drop(client);
    world.host.kill("orders-1");

    let error = Mark::mark(&*world.engine, &layout.access(), "m").await.unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable, "{error}");
    for way in [Way::Files, Way::Protocol] {
        let snapshot = snapshot_in_order(&world, &layout, way).await;
        let place = position(&snapshot.taken().position);
        let name = format!("{way:?}").to_lowercase();
        let sandbox = world.restore(&name, &snapshot, &MemoryLog::new().source(1), &place).await;
        assert_eq!(one(&sql(&sandbox, 0).await, "SELECT count(*) FROM t").await, "1000", "{way:?}");
        assert!(!sandbox.nodes[0].data().join("standby.signal").exists());
        world.drop_sandbox(&sandbox).await;
    }
    world.host.kill("orders-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tablespace_map_is_kept_as_the_server_wrote_it() {
    let world = World::new("15");
    let layout = world.up("orders", 1, &[("fsync", "off")]).await;
    let client = sql(&layout, 0).await;
    let space = world.owned(r"a space\and more");
    client.batch_execute(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display())).await.unwrap();
    let oid: u32 = one(&client, "SELECT oid FROM pg_tablespace WHERE spcname = 's'").await.parse().unwrap();
    let path = space.to_string_lossy();
    for way in [Way::Files, Way::Protocol] {
        let snapshot = world.snapshot(&layout, way).await;
        let map = stored(&snapshot, "mainstay/tablespace_map");
        assert_eq!(map, format!("{oid} {}\n", path.replace('\\', r"\\")), "{way:?}");
        assert_eq!(snapshot.taken().meta["tablespaces"], serde_json::json!([[oid, path]]), "{way:?}");
    }
    world.host.kill("orders-1");
}

/// A vault that takes no relation before it is told to.
struct Gate {
    sink: Arc<MemorySnapshot>,
    open: (Mutex<bool>, Condvar),
}

impl SnapshotSink for Gate {
    fn put(&self, file: &FileSpec, content: &mut dyn Read) -> Result<Stored> {
        if file.path.starts_with("base/") && file.kind == FileKind::Regular {
            let open = self.open.0.lock().unwrap();
            drop(self.open.1.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap());
        }
        self.sink.put(file, content)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshots_own_link_is_no_synchronous_standby() {
    let world = World::new("15");
    let config = [("fsync", "off"), ("synchronous_standby_names", "*"), ("wal_sender_timeout", "1s")];
    let layout = world.up("orders", 1, &config).await;
    let client = sql(&layout, 0).await;
    let gate = Arc::new(Gate { sink: MemorySnapshot::new(), open: Default::default() });
    let copying = world.snapshot_into(&layout, Way::Files, 2, gate.clone());
    let looking = async {
        // It has answered the server at least once.
        let links = "FROM pg_stat_replication WHERE state = 'streaming' AND write_lsn IS NOT NULL";
        until_is(&client, &format!("SELECT count(*) {links}"), "1").await;
        let standing = format!("SELECT sync_state || coalesce(flush_lsn::text, '-') {links}");
        let found = one(&client, &standing).await;
        *gate.open.0.lock().unwrap() = true;
        gate.open.1.notify_all();
        assert_eq!(found, "async-");
    };
    let (taken, ()) = tokio::join!(copying, looking);
    taken.unwrap();
    world.host.kill("orders-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_read_the_configuration_takes_snapshots_all_the_same() {
    let world = World::new("15");
    let mut layout = world.up("orders", 1, &[("fsync", "off")]).await;
    sql(&layout, 0)
        .await
        .batch_execute(
            r"CREATE ROLE backup LOGIN REPLICATION PASSWORD 'it''s a secret: \o/'; GRANT pg_monitor TO backup;
              GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop TO backup",
        )
        .await
        .unwrap();
    layout.user = "backup".into();
    // Beside the server the files are read by whoever runs this.
    for (way, is_there) in [(Way::Protocol, false), (Way::Files, true)] {
        let snapshot = world.snapshot(&layout, way).await;
        assert_eq!(snapshot.open("mainstay/pg_hba.conf").is_ok(), is_there, "{way:?}");
    }
    world.host.kill("orders-1");
}

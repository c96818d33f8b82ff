//! Restores up to places and through log that other tools stumble over, and what their content says.

use mainstay_engine::*;
use mainstay_model::Place;
use mainstay_postgres::lsn::Lsn;

use crate::world::*;

/// A source that is followed, with one table.
async fn followed(world: &World) -> (Layout, tokio_postgres::Client, Follower) {
    let layout = world.up("orders", 1, &[("fsync", "off"), ("autovacuum", "off")]).await;
    let client = sql(&layout, 0).await;
    client.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 100) n").await.unwrap();
    let tip = world.engine.tip(&layout.access(), &lane()).await.unwrap();
    let follower = Follower::begin(world, layout.access(), tip);
    (layout, client, follower)
}

/// A mark, and all log up to it.
async fn marked(world: &World, layout: &Layout, follower: &Follower) -> Place {
    let marked = Mark::mark(&*world.engine, &layout.access(), "here").await.unwrap();
    let here = position(&marked.position);
    follower.caught_up(&here).await;
    here
}

/// PostgreSQL's own target at that place would apply the commit right behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_right_behind_a_restore_point_is_not_restored() {
    let world = World::new("15");
    let (layout, client, follower) = followed(&world).await;
    let snapshot = world.snapshot(&layout, Way::Auto).await;
    let other = sql(&layout, 0).await;
    other.batch_execute("BEGIN; INSERT INTO t VALUES (101)").await.unwrap();
    let bare: Lsn = one(&client, "SELECT pg_create_restore_point('bare')").await.parse().unwrap();
    other.batch_execute("COMMIT").await.unwrap();
    let here = marked(&world, &layout, &follower).await;
    let log = follower.log.source(1 << 20);
    let place = Place { epoch: here.epoch.clone(), offset: bare.0.into() };
    for (name, cut, expected) in [("bare", &place, "100"), ("behind", &here, "101")] {
        let sandbox = world.restore(name, &snapshot, &log, cut).await;
        assert_eq!(one(&sql(&sandbox, 0).await, "SELECT count(*) FROM t").await, expected, "{name}");
        world.drop_sandbox(&sandbox).await;
    }
    world.host.kill("orders-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_in_recovery_leaves_nothing_running() {
    let world = World::new("15");
    let (layout, client, follower) = followed(&world).await;
    let snapshot = world.snapshot(&layout, Way::Auto).await;
    client.batch_execute("INSERT INTO t VALUES (101)").await.unwrap();
    let here = marked(&world, &layout, &follower).await;
    let file = one(&client, "SELECT pg_relation_filepath('t')").await;
    let sandbox = world.layout("broken", 1, &[], true);
    let folder = sandbox.nodes[0].dir.clone();
    let breaking = || {
        let table = sandbox.nodes[0].data().join(&file);
        std::fs::remove_file(&table).unwrap();
        std::fs::create_dir(&table).unwrap();
    };
    let log = follower.log.source(1 << 20);
    let error = world.restore_around(&sandbox, &snapshot, &log, &here, breaking).await.unwrap_err();
    assert!(error.kind == Kind::Server && error.what.contains(&file), "{error}");
    assert_eq!(world.host.running("broken-1"), None);
    until("nothing works in its folder", async || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut folders = processes.filter_map(|entry| std::fs::read_link(entry.path().join("cwd")).ok());
        !folders.any(|cwd| cwd.starts_with(&folder))
    })
    .await;
    world.host.kill("orders-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_raised_in_the_log_are_no_obstacle() {
    let world = World::new("15");
    let (layout, client, follower) = followed(&world).await;
    let snapshot = world.snapshot(&layout, Way::Auto).await;
    for (name, value) in
        [("max_connections", "300"), ("max_worker_processes", "30"), ("max_locks_per_transaction", "128")]
    {
        client.batch_execute(&format!("ALTER SYSTEM SET {name} = {value}")).await.unwrap();
    }
    drop(client);
    world.engine.stop(&layout, &world.host).await.unwrap();
    world.engine.start(&layout, &world.host).await.unwrap();
    let client = sql(&layout, 0).await;
    assert_eq!(one(&client, "SHOW max_connections").await, "300");
    client.batch_execute("INSERT INTO t VALUES (101)").await.unwrap();
    let here = marked(&world, &layout, &follower).await;
    let sandbox = world.restore("raised", &snapshot, &follower.log.source(1 << 20), &here).await;
    assert_eq!(one(&sql(&sandbox, 0).await, "SELECT count(*) FROM t").await, "101");
    world.drop_sandbox(&sandbox).await;
    world.host.kill("orders-1");
}

/// A sequence's log runs ahead of it, and how far depends on the snapshot that a restore begins with.
#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_counts_down_differs_within_its_tolerance() {
    let world = World::new("15");
    let (layout, client, follower) = followed(&world).await;
    client.batch_execute("CREATE SEQUENCE s INCREMENT -7").await.unwrap();
    let count = "SELECT nextval('s') FROM generate_series(1, 3)";
    client.batch_execute(count).await.unwrap();
    let first = world.snapshot(&layout, Way::Auto).await;
    client.batch_execute(count).await.unwrap();
    let second = world.snapshot(&layout, Way::Auto).await;
    let here = marked(&world, &layout, &follower).await;
    let log = follower.log.source(1 << 20);
    let mut found = Vec::new();
    for (name, snapshot) in [("first", &first), ("second", &second)] {
        let sandbox = world.restore(name, snapshot, &log, &here).await;
        let content = world.engine.content(&sandbox.access()).await.unwrap();
        found.extend(content.into_iter().filter(|content| content.what == "sequence postgres.public.s"));
        world.drop_sandbox(&sandbox).await;
    }
    let [one, other] = &found[..] else { panic!("{found:?}") };
    let apart = (one.count - other.count).abs();
    assert!(0 < apart && apart <= one.tolerance && one.tolerance == other.tolerance, "{found:?}");
    world.host.kill("orders-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_elsewhere_or_is_not_kept_is_no_content() {
    let world = World::new("15");
    let layout = world.up("orders", 1, &[("fsync", "off")]).await;
    sql(&layout, 0)
        .await
        .batch_execute(
            "CREATE TABLE kept (n int); CREATE UNLOGGED TABLE lost (n int); CREATE EXTENSION file_fdw; \
             CREATE SERVER files FOREIGN DATA WRAPPER file_fdw; \
             CREATE FOREIGN TABLE elsewhere (n int) SERVER files OPTIONS (filename '/nowhere/at/all')",
        )
        .await
        .unwrap();
    let content = world.engine.content(&layout.access()).await.unwrap();
    let named: Vec<_> = content.iter().map(|content| content.what.as_str()).collect();
    assert_eq!(named, ["table postgres.public.kept"]);
    world.host.kill("orders-1");
}

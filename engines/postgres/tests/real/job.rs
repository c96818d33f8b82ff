//! The main job: snapshot, follow, mark, restore.

use mainstay_engine::*;
use mainstay_model::Instant;

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_on_15() {
    main_job("15", &["point", "name", "time", "idle", "end"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_on_17() {
    main_job("17", &["point", "time"]).await;
}

async fn main_job(version: &'static str, targets: &[&str]) {
    let world = World::new(version);
    let layout = world.up("orders", 1, &[("track_commit_timestamp", "on")]).await;
    let access = layout.access();
    let client = sql(&layout, 0).await;
    client
        .batch_execute("CREATE TABLE t (n int primary key, text text); CREATE UNLOGGED TABLE u (n int); CREATE TABLE void (n int)")
        .await
        .unwrap();
    client.batch_execute("INSERT INTO t SELECT n, repeat('x', 500) FROM generate_series(1, 5000) n; INSERT INTO u VALUES (1)").await.unwrap();
    if version == "17" {
        // Fires at each login, ours among them.
        client
            .batch_execute(
                "CREATE TABLE logins (at timestamptz); CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS \
                 $$ BEGIN INSERT INTO logins VALUES (clock_timestamp()); END $$; \
                 CREATE EVENT TRIGGER noting ON login EXECUTE FUNCTION note(); ALTER EVENT TRIGGER noting ENABLE ALWAYS",
            )
            .await
            .unwrap();
    }
    // Open over both snapshots, and committed behind all that is restored here but the end.
    let open = sql(&layout, 0).await;
    open.batch_execute("BEGIN; INSERT INTO t SELECT -n, repeat('y', 500) FROM generate_series(1, 20000) n")
        .await
        .unwrap();
    let tip = world.engine.tip(&access, &lane()).await.unwrap();
    let follower = Follower::begin(&world, access.clone(), tip);

    let by_files = world.snapshot(&layout, Way::Files).await;
    client.batch_execute("INSERT INTO t VALUES (10001)").await.unwrap();
    let by_protocol = world.snapshot(&layout, Way::Protocol).await;
    assert_eq!(by_files.taken().meta["way"], "files");
    assert_eq!(by_protocol.taken().meta["way"], "protocol");

    client.batch_execute("INSERT INTO t VALUES (10002)").await.unwrap();
    let marked = Mark::mark(&*world.engine, &access, "point-1").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (10003)").await.unwrap();
    let then: i64 = one(&client, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        .await
        .parse()
        .unwrap();
    client.batch_execute("DELETE FROM t WHERE n > 10000").await.unwrap();
    open.batch_execute("COMMIT").await.unwrap();
    let last = Mark::mark(&*world.engine, &access, "point-2").await.unwrap();
    follower.caught_up(&position(&last.position)).await;
    let now: i64 = one(&client, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        .await
        .parse()
        .unwrap();
    follower.log.wait_for_time(&lane(), Instant(now), PATIENCE).await.unwrap();
    let log = follower.log.source(1 << 20);

    let all = [
        ("point", Target::Place(position(&marked.position)), "5002"),
        ("time", Target::Time(Instant(then)), "5003"),
        ("name", Target::Name("point-1".into()), "5002"),
        ("idle", Target::Time(Instant(now)), "25000"),
        ("end", Target::End, "25000"),
    ];
    let chosen = all.into_iter().filter(|(name, ..)| targets.contains(name));
    for ((name, target, expected), snapshot) in chosen.zip([&by_files, &by_protocol].into_iter().cycle()) {
        let from = position(&snapshot.taken().position);
        let cutting = world.engine.cut(&lane(), &from, &log, &target).unwrap();
        if name == "point" {
            assert_eq!(cutting.place, position(&marked.position));
        }
        let sandbox = world.restore(name, snapshot, &log, &cutting.place).await;
        let restored = sql(&sandbox, 0).await;
        assert_eq!(one(&restored, "SELECT count(*) FROM t").await, expected, "{name}");
        for empty in ["u", "void"] {
            assert_eq!(one(&restored, &format!("SELECT count(*) FROM {empty}")).await, "0");
        }
        restored.batch_execute("INSERT INTO t VALUES (99999)").await.unwrap();
        if version == "17" {
            let content = async || world.engine.content(&sandbox.access()).await.unwrap();
            assert_eq!(content().await, content().await, "a look changes nothing");
        }
        world.drop_sandbox(&sandbox).await;
    }
    let view = Observe::observe(&*world.engine, &access).await.unwrap();
    assert_eq!((view.nodes[0].role, view.findings.len()), (Role::Primary, 0), "{:?}", view.findings);
    world.engine.stop(&layout, &world.host).await.unwrap();
    let errors = follower.errors.lock().unwrap();
    assert!(errors.iter().all(|error| error.kind == Kind::Unreachable), "{errors:?}");
}

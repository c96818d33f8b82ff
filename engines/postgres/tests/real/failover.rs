//! A primary killed and a standby promoted while we follow.

use mainstay_engine::*;
use mainstay_model::{Epoch, Instant};
use mainstay_postgres::lsn::Lsn;

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_window_goes_on_across_a_failover() {
    let world = World::new("15");
    let layout = world.up("orders", 2, &[]).await;
    let access = layout.access();
    let client = sql(&layout, 0).await;
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    let tip = world.engine.tip(&access, &lane()).await.unwrap();
    let follower = Follower::begin(&world, access.clone(), tip);
    let snapshot = world.snapshot(&layout, Way::Auto).await;
    client.batch_execute("INSERT INTO t SELECT generate_series(1, 100)").await.unwrap();
    let before = Mark::mark(&*world.engine, &access, "before").await.unwrap();
    follower.caught_up(&position(&before.position)).await;

    // Both nodes keep log for us before the primary is lost.
    until("a slot of ours on the standby", async || {
        let standby = sql(&layout, 1).await;
        let query = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'mainstay_%' AND restart_lsn IS NOT NULL";
        one(&standby, query).await == "1"
    })
    .await;
    let standby = sql(&layout, 1).await;
    let caught = Lsn(position(&before.position).offset.low());
    until("the standby has all", async || {
        one(&standby, "SELECT pg_last_wal_replay_lsn()").await.parse::<Lsn>().unwrap() >= caught
    })
    .await;
    // What is durable with us is not kept for us there either.
    let moved = format!(
        "SELECT bool_and(restart_lsn >= '{caught}') FROM pg_replication_slots WHERE slot_name LIKE 'mainstay_%'"
    );
    until_is(&standby, &moved, "t").await;
    // What is written from here on reaches us and not the standby: we are ahead of it when it is promoted.
    standby.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
    standby.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    until("the standby's link is gone", async || {
        one(&client, "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'orders-2'").await
            == "0"
    })
    .await;
    client.batch_execute("INSERT INTO t SELECT generate_series(1001, 1500)").await.unwrap();
    let lost = Mark::mark(&*world.engine, &access, "lost").await.unwrap();
    follower.caught_up(&position(&lost.position)).await;
    world.host.kill("orders-1");
    standby.batch_execute("SELECT pg_promote(true, 60)").await.unwrap();
    standby.batch_execute("ALTER SYSTEM RESET primary_conninfo").await.unwrap();
    standby.batch_execute("INSERT INTO t SELECT generate_series(2001, 2010)").await.unwrap();
    let after = Mark::mark(&*world.engine, &access, "after").await.unwrap();
    assert!(position(&after.position).epoch.0.starts_with("2x"));
    follower.caught_up(&position(&after.position)).await;
    let diverged = |error: &Error| matches!(&error.kind, Kind::Diverged { branched: Some(place) } if place.epoch == Epoch("1".into()));
    assert!(follower.errors.lock().unwrap().iter().any(diverged), "{:?}", follower.errors.lock().unwrap());
    assert!(follower.log.ended_bytes(&lane()) > 0);
    let then: i64 = one(&standby, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        .await
        .parse()
        .unwrap();
    follower.log.wait_for_time(&lane(), Instant(then), PATIENCE).await.unwrap();

    // Before and behind the switch, from one snapshot.
    let log = follower.log.source(1 << 20);
    for (name, target, expected) in
        [("old", Target::Name("before".into()), "100"), ("time", Target::Time(Instant(then)), "110")]
    {
        let cutting =
            world.engine.cut(&lane(), &position(&snapshot.taken().position), &log, &target).unwrap();
        let sandbox = world.restore(name, &snapshot, &log, &cutting.place).await;
        assert_eq!(one(&sql(&sandbox, 0).await, "SELECT count(*) FROM t").await, expected, "{name}");
        world.drop_sandbox(&sandbox).await;
    }
    let gone =
        world.engine.cut(&lane(), &position(&snapshot.taken().position), &log, &Target::Name("lost".into()));
    assert_eq!(gone.unwrap_err().kind, Kind::OutOfLog);

    // A snapshot of the new primary knows its history.
    let second = world.snapshot(&layout, Way::Auto).await;
    assert_eq!(second.taken().branches.len(), 2);
    assert_eq!(position(&second.taken().position).epoch, position(&after.position).epoch);
    let log = follower.log.source(1 << 20);
    let sandbox = world.restore("second", &second, &log, &position(&second.taken().position)).await;
    assert_eq!(one(&sql(&sandbox, 0).await, "SELECT count(*) FROM t").await, "110");
    world.drop_sandbox(&sandbox).await;

    // Roles survive `down` and `up`: the promoted node is the primary, the old one is made its standby, its data set aside.
    drop((client, standby));
    world.engine.stop(&layout, &world.host).await.unwrap();
    world.engine.start(&layout, &world.host).await.unwrap();
    let view = Observe::observe(&*world.engine, &access).await.unwrap();
    assert_eq!((view.nodes[0].role, view.nodes[1].role), (Role::Replica, Role::Primary));
    assert!(layout.nodes[0].dir.join("data.aside-1").is_dir());
    let old = sql(&layout, 0).await;
    until("the old primary has the new one's rows", async || {
        one(&old, "SELECT count(*) FROM t").await == "110"
    })
    .await;
    world.engine.stop(&layout, &world.host).await.unwrap();
}

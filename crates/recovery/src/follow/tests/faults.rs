//! Stores that fail, processes that are killed, disks that fill.

use std::time::Duration;

use mainstay_engine::{Chunk, LogSink};
use mainstay_engine_kit::fake::Count;
use mainstay_model::Place;
use mainstay_store::{Fault, Faults, Faulty};

use super::bench::*;
use crate::follow::sink::Sink;
use crate::follow::spool::Spool;
use crate::follow::upload::Vaulted;
use crate::follow::{Follower, Phase};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_now_and_then_gets_everything_in_the_end() {
    let b = Bench::new(1, 2, Count::Bytes).await;
    b.faulty.set(Faults::choose(|call, _, _| match call % 10 {
        3 => Some(Fault::Before),
        7 if call % 20 == 7 => Some(Fault::After),
        _ => None,
    }));
    let follower = b.follow("home");
    until(&follower, "links", |s| s.is_well()).await;
    for n in 0..20 {
        b.write(n * 50, 50).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    caught_up(&follower).await;
    b.faulty.set(no_faults());
    follower.stop().await;
    b.assert_whole(0).await;
}

#[tokio::test]
async fn while_the_store_is_away_the_spool_goes_on() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let follower = b.follow("home");
    until(&follower, "a link", |s| s.is_well()).await;
    b.write(0, 10).await;
    caught_up(&follower).await;
    let vaulted = follower.status().vault_complete_to();
    b.faulty.set(Faults::choose(|_, verb, key| {
        (verb != "get" && !key.contains("lease")).then_some(Fault::Before)
    }));
    b.write(10, 500).await;
    let end = b.server_log(&b.lanes()[0], 0).len() as u64;
    let spooled = |s: &crate::follow::FollowStatus| {
        s.lanes.values().all(|l| l.spool_end.as_ref().is_some_and(|e| e.offset.low() == end))
    };
    until(&follower, "all in the spool", spooled).await;
    until(&follower, "an error", |s| s.error().is_some()).await;
    assert!(follower.status().vault_complete_to() <= vaulted.max(follower.status().vault_complete_to()));
    b.faulty.set(no_faults());
    caught_up(&follower).await;
    follower.stop().await;
    b.assert_whole(0).await;
}

#[tokio::test]
async fn a_lease_that_ran_out_with_the_vault_does_not_end_the_link() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let mut options = options("home");
    options.lease_ttl = Duration::from_millis(600);
    let follower = Follower::start(b.of("home"), options);
    until(&follower, "a link", |s| s.is_well()).await;
    b.faulty.set(Faults::choose(|_, _, _| Some(Fault::Before)));
    let failures = follower.status().lanes.values().map(|l| l.failures).sum::<u64>();
    until(&follower, "failures", |s| s.lanes.values().map(|l| l.failures).sum::<u64>() > failures + 3).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    b.write(0, 50).await;
    let end = b.server_log(&b.lanes()[0], 0).len() as u64;
    let spooled = |s: &crate::follow::FollowStatus| {
        s.lanes.values().all(|l| l.spool_end.as_ref().is_some_and(|e| e.offset.low() == end))
    };
    until(&follower, "all in the spool", spooled).await;
    b.faulty.set(no_faults());
    caught_up(&follower).await;
    b.assert_whole(0).await;
    follower.stop().await;
}

#[tokio::test]
async fn killed_at_any_moment_it_goes_on_by_itself() {
    let b = Bench::new(1, 2, Count::Bytes).await;
    let mut follower: Option<Follower> = None;
    for n in 0..40_usize {
        if n % 3 == 0 {
            // Dropped, not stopped: as good as a kill to all but the lease, which is seen to be let go.
            follower = None;
            follower.replace(b.follow("home"));
            if let Some(follower) = follower.as_ref().filter(|_| n == 0) {
                until(follower, "links", |s| s.is_well()).await;
            }
        }
        b.write(n * 20, 20).await;
        tokio::time::sleep(Duration::from_millis((n as u64 * 13) % 60)).await;
    }
    let follower = follower.unwrap();
    caught_up(&follower).await;
    follower.stop().await;
    b.assert_whole(0).await;
}

#[tokio::test]
async fn a_full_spool_waits_and_then_gives_up_with_a_hole_rather_than_fill_the_sources_disk() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let mut options = options("home");
    options.limits.lane_bytes_max = 60_000;
    options.limits.wait = Duration::from_millis(50);
    options.give_up_full = Duration::from_millis(500);
    let follower = Follower::start(b.of("home"), options);
    until(&follower, "a link", |s| s.is_well()).await;
    b.write(0, 10).await;
    caught_up(&follower).await;
    b.faulty.set(Faults::choose(|_, verb, key| {
        (verb != "get" && !key.contains("lease")).then_some(Fault::Before)
    }));
    b.write(10, 1000).await;
    until(&follower, "a full spool", |s| s.lanes.values().all(|l| l.phase == Phase::Full)).await;
    assert!(follower.status().lanes.values().all(|l| l.spool_bytes < 100_000));
    until(&follower, "a wish", |s| s.wants_snapshot().is_some_and(|w| w.reason == "spool-full")).await;
    // Nothing keeps the source's log any more.
    let node = b.server.access().nodes[0].data_dir.clone().unwrap();
    let slot = || {
        std::fs::read_dir(&node)
            .unwrap()
            .flatten()
            .any(|e| e.file_name().to_string_lossy().starts_with("slot-"))
    };
    let began = std::time::Instant::now();
    while slot() {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    b.server.trim().unwrap();
    b.faulty.set(no_faults());
    until(&follower, "another beginning", |s| s.is_well()).await;
    b.snapshot().await;
    until(&follower, "no wish", |s| s.wants_snapshot().is_none()).await;
    b.write(2000, 20).await;
    caught_up(&follower).await;
    let runs = b.surviving(&b.lanes()[0]).await;
    assert_eq!(runs.len(), 2, "{:?}", runs.iter().map(|r| (&r.0, &r.1)).collect::<Vec<_>>());
    follower.stop().await;
}

#[tokio::test]
async fn started_while_the_vault_is_away_it_goes_on_in_the_spool_and_the_vault_decides() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let follower = b.follow("home");
    until(&follower, "a link", |s| s.is_well()).await;
    b.write(0, 20).await;
    caught_up(&follower).await;
    follower.stop().await;
    b.write(20, 20).await;
    b.faulty.set(Faults::choose(|_, _, _| Some(Fault::Before)));
    // Another home has never followed, and does not begin now.
    let stranger = b.follow("elsewhere");
    let follower = b.follow("home");
    let end = || b.server_log(&b.lanes()[0], 0).len() as u64;
    let is_spooled = |s: &crate::follow::FollowStatus| {
        !s.lanes.is_empty()
            && s.lanes
                .values()
                .all(|l| l.is_alone && l.spool_end.as_ref().is_some_and(|e| e.offset.low() == end()))
    };
    until(&follower, "all in the spool", is_spooled).await;
    b.write(40, 20).await;
    until(&follower, "more in the spool", is_spooled).await;
    let status = follower.status();
    assert!(
        !status.is_well() && status.error().unwrap().contains("spool of this machine alone"),
        "{status:?}"
    );
    assert!(stranger.status().lanes.values().all(|l| !l.is_alone && l.spool_end.is_none()));
    stranger.stop().await;
    b.faulty.set(no_faults());
    caught_up(&follower).await;
    until(&follower, "a lease", |s| s.is_well()).await;
    follower.stop().await;
    b.assert_whole(0).await;
}

#[tokio::test]
async fn who_was_overtaken_meanwhile_stands_by_and_mixes_nothing_in() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let follower = b.follow("home");
    until(&follower, "a link", |s| s.is_well()).await;
    b.write(0, 20).await;
    caught_up(&follower).await;
    follower.stop().await;
    // The vault is away for this home alone; another one follows.
    let other = b.follow("other");
    b.write(20, 20).await;
    caught_up(&other).await;
    let cut_off = Faulty::new(b.faulty.clone(), Faults::choose(|_, _, _| None));
    let mut of = b.of("home");
    of.vault = open(&b.dir, cut_off.clone()).await.cluster("shop", "local", "orders");
    cut_off.set(Faults::choose(|_, _, _| Some(Fault::Before)));
    let follower = Follower::start(of, options("home"));
    until(&follower, "the spool alone", |s| !s.lanes.is_empty() && s.lanes.values().all(|l| l.is_alone))
        .await;
    b.write(40, 20).await;
    caught_up(&other).await;
    cut_off.set(no_faults());
    until(&follower, "standing by", |s| s.lanes.values().all(|l| matches!(l.phase, Phase::Standby { .. })))
        .await;
    // It knows now that the lane is another's, and would leave it alone the next time.
    assert!(!b.dir.path().join("home/life-of-orders/lane-0/holder").exists());
    b.write(60, 20).await;
    caught_up(&other).await;
    other.stop().await;
    b.write(80, 20).await;
    caught_up(&follower).await;
    follower.stop().await;
    b.assert_whole(0).await;
}

#[tokio::test]
async fn without_a_lease_nothing_is_acknowledged() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let of = b.of("home");
    let (spool, _) = Spool::open(&of.spool, options("home").limits).unwrap();
    let (from, spool) = (Place::new("1", 100), std::sync::Arc::new(spool));
    spool.begin(from.clone()).unwrap();
    let mut sink = Sink {
        vault: of.vault.clone(),
        incarnation: "life-of-orders".into(),
        lane: b.lanes()[0].clone(),
        spool: spool.clone(),
        vaulted: tokio::sync::watch::channel(Vaulted::default()).1,
        rewound: std::sync::Mutex::default(),
        unleased_from: Some(from.clone()),
        linked: std::sync::Arc::default(),
    };
    let chunk = |at: u64| Chunk {
        at: Place::new("1", at),
        bytes: vec![7; 10].into(),
        times: vec![],
        carry: Some("record".into()),
    };
    sink.append(chunk(100)).await.unwrap();
    assert_eq!(sink.sync().await.unwrap(), from);
    // It is durable all the same.
    assert_eq!(spool.durable().borrow().clone(), Some(Place::new("1", 110)));
    sink.unleased_from = None;
    sink.append(chunk(110)).await.unwrap();
    assert_eq!(sink.sync().await.unwrap(), Place::new("1", 120));
}

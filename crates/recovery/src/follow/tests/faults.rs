//! Stores that fail, processes that are killed, disks that fill.

use std::time::Duration;

use mainstay_engine_kit::fake::Count;
use mainstay_store::{Fault, Faults};

use super::bench::*;
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

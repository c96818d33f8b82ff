//! What happens to clusters and followers in the course of their lives.

use std::time::Duration;

use mainstay_engine::Follow;
use mainstay_engine_kit::fake::{Count, FAKE};
use mainstay_model::{Place, Position};
use mainstay_store::{Fault, Faults};
use mainstay_vault::LogKind;

use super::bench::*;
use crate::catalogue::Catalogue;
use crate::follow::resume::history_of;
use crate::follow::{Phase, Until, catch_up, spooled_to, stale, vault_covers};
use crate::window::describe;

#[tokio::test]
async fn a_cluster_is_followed_from_its_end_and_on_after_restarts() {
    for count in [Count::Bytes, Count::Records] {
        let b = Bench::new(1, 2, count).await;
        let follower = b.follow("home");
        until(&follower, "two lanes", |s| s.lanes.len() == 2 && s.is_well()).await;
        until(&follower, "a wish for a snapshot", |s| s.wants_snapshot().is_some()).await;
        b.write(0, 100).await;
        b.snapshot().await;
        until(&follower, "no wish", |s| s.wants_snapshot().is_none()).await;
        caught_up(&follower).await;
        b.write(100, 50).await;
        // What was received goes to the vault at the end.
        until(&follower, "a spool", |s| {
            s.lanes.values().all(|l| l.spool_end.as_ref().is_some_and(|e| e.offset.low() > 60))
        })
        .await;
        follower.stop().await;
        b.write(150, 600).await;
        let follower = b.follow("home");
        caught_up(&follower).await;
        assert!(follower.status().wants_snapshot().is_none(), "the snapshot leads into the log");
        b.assert_whole(0).await;
        let objects = b.objects(&b.lanes()[0]).await;
        assert!(objects.iter().any(|o| o.kind == LogKind::Sealed), "{objects:#?}");
        let incarnation = follower.status().incarnation.unwrap();
        assert!(spooled_to(&b.of("home"), &incarnation, &b.lanes()).is_some());
        follower.stop().await;
    }
}

#[tokio::test]
async fn beats_move_the_end_on_and_stay_few() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let follower = b.follow("home");
    until(&follower, "a link", |s| s.is_well()).await;
    b.write(0, 5).await;
    caught_up(&follower).await;
    let before = follower.status().vault_complete_to();
    until(&follower, "a later end", |s| s.vault_complete_to() > before).await;
    let later = follower.status().vault_complete_to();
    until(&follower, "a yet later end", |s| s.vault_complete_to() > later).await;
    let lane = &b.lanes()[0];
    let complete_to = b.in_vault(lane).await.complete_to;
    assert!(complete_to > before);
    let beats = b.objects(lane).await.iter().filter(|o| o.kind == LogKind::Beat).count();
    assert!(beats <= 3, "{beats} beats");
    follower.stop().await;
}

#[tokio::test]
async fn a_standby_is_promoted_while_we_are_ahead_of_it() {
    let b = Bench::new(2, 2, Count::Bytes).await;
    let follower = b.follow("home");
    until(&follower, "links", |s| s.is_well()).await;
    b.write(0, 200).await;
    b.server.replicate().unwrap();
    b.write(200, 200).await;
    caught_up(&follower).await;
    let dead: Vec<Place> =
        b.lanes().iter().map(|l| Place::new("1", b.server_log(l, 0).len() as u64)).collect();
    let ahead: Position = b.lanes().into_iter().zip(dead.clone()).collect();
    let of = b.of("home");
    assert!(vault_covers(&of.vault, "life-of-orders", &ahead).await.unwrap());
    b.server.kill(0).unwrap();
    b.server.promote(1).unwrap();
    b.write(500, 300).await;
    caught_up(&follower).await;
    // It is all there, and not on the history that survived.
    assert!(!vault_covers(&of.vault, "life-of-orders", &ahead).await.unwrap());
    follower.stop().await;
    // And once more, with nobody watching, back to the first node.
    b.server.revive(0).unwrap();
    b.server.kill(1).unwrap();
    b.server.revive(1).unwrap();
    b.assert_whole(1).await;
    for (lane, dead) in b.lanes().iter().zip(&dead) {
        let objects = b.objects(lane).await;
        let line = history_of(&objects).line_to(dead);
        let runs = b.read(&objects, &line).await;
        assert_eq!(runs[0].2, b.server_log(lane, 0), "the branch that ended is kept");
        let own = history_of(&objects).lines();
        assert_eq!(own.len(), 1);
        assert_eq!(own[0].legs.len(), 2);
    }
}

#[tokio::test]
async fn a_lost_log_is_declared_and_a_snapshot_begins_another_window() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let follower = b.follow("home");
    until(&follower, "a link", |s| s.is_well()).await;
    b.snapshot().await;
    b.write(0, 20).await;
    caught_up(&follower).await;
    follower.stop().await;
    FAKE.release(&b.server.access()).await.unwrap();
    b.write(20, 20).await;
    b.server.trim().unwrap();
    b.write(40, 20).await;
    let follower = b.follow("home");
    until(&follower, "a wish", |s| s.wants_snapshot().is_some_and(|w| w.reason == "log-gone")).await;
    until(&follower, "a hole in the vault", |s| s.lanes.values().any(|l| l.holes == 1)).await;
    until(&follower, "another beginning", |s| s.is_well()).await;
    b.snapshot().await;
    until(&follower, "no wish", |s| s.wants_snapshot().is_none()).await;
    b.write(60, 20).await;
    caught_up(&follower).await;
    let catalogue = Catalogue::load(&b.of("home").vault).await.unwrap();
    let window = describe("orders", &catalogue, None, mainstay_model::Instant::now());
    assert_eq!(window.holes.len(), 1, "{window:?}");
    assert_eq!(window.holes[0].reason, "log gone");
    follower.stop().await;
}

#[tokio::test]
async fn of_two_followers_one_writes_and_the_other_takes_over() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let first = b.follow("first");
    until(&first, "a link", |s| s.is_well()).await;
    let second = b.follow("second");
    until(&second, "standing by", |s| s.lanes.values().any(|l| matches!(l.phase, Phase::Standby { .. })))
        .await;
    b.write(0, 200).await;
    caught_up(&first).await;
    // Somebody else follows, and his log counts.
    caught_up(&second).await;
    // Killed: its spool may be ahead of the vault, and the second one knows nothing of that.
    b.write(200, 100).await;
    drop(first);
    b.write(300, 300).await;
    until(&second, "a link", |s| s.lanes.values().any(|l| l.phase == Phase::Following)).await;
    caught_up(&second).await;
    b.assert_whole(0).await;
    // The first comes back with its old spool, and is behind.
    let first = b.follow("first");
    b.write(600, 50).await;
    second.stop().await;
    until(&first, "a link", |s| s.lanes.values().any(|l| l.phase == Phase::Following)).await;
    b.write(650, 50).await;
    caught_up(&first).await;
    b.assert_whole(0).await;
    assert!(b.objects(&b.lanes()[0]).await.iter().any(|o| o.generation >= 3));
    first.stop().await;
}

#[tokio::test]
async fn catching_up_follows_to_a_position_and_ends() {
    let b = Bench::new(1, 2, Count::Bytes).await;
    let of = b.of("home");
    catch_up(&of, options("home"), &Until::Now, PATIENCE).await.unwrap();
    b.write(0, 100).await;
    let position = b.snapshot().await;
    assert!(!vault_covers(&of.vault, "life-of-orders", &position).await.unwrap());
    catch_up(&of, options("home"), &Until::Position(position.clone()), PATIENCE).await.unwrap();
    assert!(vault_covers(&of.vault, "life-of-orders", &position).await.unwrap());
    b.assert_whole(0).await;
    let far = position.0.keys().map(|lane| (lane.clone(), Place::new("1", 1 << 40))).collect();
    let late = catch_up(&of, options("home"), &Until::Position(far), Duration::from_millis(500)).await;
    assert_eq!(late.unwrap_err().code(), "deadline");
}

#[tokio::test]
async fn spools_of_lives_that_ended_are_brought_to_the_vault_and_go() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let follower = b.follow("home");
    until(&follower, "a link", |s| s.is_well()).await;
    b.write(0, 30).await;
    caught_up(&follower).await;
    // What comes now does not get to the vault.
    b.faulty.set(Faults::choose(|_, verb, _| (verb != "get").then_some(Fault::Before)));
    b.write(30, 30).await;
    let end = b.server_log(&b.lanes()[0], 0).len() as u64;
    let is_spooled = |s: &crate::follow::FollowStatus| {
        s.lanes.values().all(|l| l.spool_end.as_ref().is_some_and(|e| e.offset.low() == end))
    };
    until(&follower, "all in the spool", is_spooled).await;
    drop(follower);
    b.faulty.set(no_faults());
    let spool = b.dir.path().join("home");
    let whole = spool.join("life-of-orders");
    assert!(whole.join("lane-0").exists());
    // The same name stands for a life that nobody has any more, and for a lane that went.
    let other = spool.join("life-of-orders").join("lane-9");
    std::fs::create_dir_all(&other).unwrap();
    let long_reads = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
    let (of, options) = (b.of("home"), options("home"));
    // One that is followed stays.
    assert_eq!(stale::clear(&of, &options, &long_reads, |_, _| true).await, 0);
    assert_eq!(stale::clear(&of, &options, &long_reads, |_, lane| lane.0 == "lane-0").await, 1);
    assert!(!other.exists());
    // While the vault is away nothing goes.
    b.faulty.set(Faults::choose(|_, _, _| Some(Fault::Before)));
    assert_eq!(stale::clear(&of, &options, &long_reads, |_, _| false).await, 0);
    b.faulty.set(no_faults());
    assert_eq!(stale::clear(&of, &options, &long_reads, |_, _| false).await, 1);
    assert!(!whole.exists());
    b.assert_whole(0).await;
    // Whoever follows it again goes on from the vault.
    let follower = b.follow("home");
    b.write(60, 10).await;
    caught_up(&follower).await;
    follower.stop().await;
    b.assert_whole(0).await;
}

//! Fleet points, over followers and without.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_engine::Marked;
use mainstay_engine_kit::fake::Count;
use mainstay_model::{Bracket, Instant, Lane, Place, Position};
use mainstay_store::{Fault, Faults};

use super::bench::*;
use crate::exact::{Attempt, prove_quiet};
use crate::point::{Member, PointOptions, points, set_point};

fn point_options(stall: Option<Duration>) -> PointOptions {
    PointOptions {
        fleet: "shop".to_owned(),
        environment: "local".to_owned(),
        group: "all".to_owned(),
        stall,
        attempts: 50,
        cover_within: PATIENCE,
        follow: options("home"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exact_point_is_proven_from_the_log_while_writes_run() {
    let b = Arc::new(Bench::new(1, 2, Count::Bytes).await);
    let of = b.of("home");
    let follower = b.follow("home");
    until(&follower, "links", |s| s.is_well()).await;
    let ended = Arc::new(AtomicBool::new(false));
    let writer = {
        let (b, ended) = (b.clone(), ended.clone());
        tokio::spawn(async move {
            let mut n = 0;
            while !ended.load(Ordering::SeqCst) {
                b.write(n, 5).await;
                let _ = b.server.ping();
                n += 5;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    };
    let members = [Member { of: &of, follower: Some(&follower) }];
    let plain = set_point(&members, &point_options(None)).await.unwrap();
    assert!(!plain.exact && plain.why_not_exact.is_none());
    // A loaded machine may hold for longer than is allowed; it then says so, and the next attempt is another chance.
    let exact = set_point(&members, &point_options(Some(Duration::from_millis(500)))).await.unwrap();
    assert!(exact.exact, "{exact:?}");
    assert!(exact.stall_us > 0 && exact.stall_us <= 500_000);
    ended.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    let stored = points(&b.vault, "shop", "local", "all").await.unwrap();
    assert_eq!(stored, [plain, exact]);
    for point in &stored {
        let member = &point.members[0];
        assert!(crate::follow::vault_covers(&of.vault, &member.incarnation, &member.position).await.unwrap());
    }
    follower.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_on_a_primary_that_died_ahead_of_its_standby_is_not_stored() {
    let b = Bench::new(2, 1, Count::Bytes).await;
    let of = b.of("home");
    let follower = b.follow("home");
    until(&follower, "a link", |s| s.is_well()).await;
    b.write(0, 10).await;
    b.server.replicate().unwrap();
    b.write(10, 10).await;
    caught_up(&follower).await;
    // The mark stays on this side, and is lost with its primary.
    b.faulty.set(Faults::choose(|_, verb, _| (verb != "get").then_some(Fault::Before)));
    let within = PointOptions { cover_within: Duration::from_secs(4), ..point_options(None) };
    let members = [Member { of: &of, follower: Some(&follower) }];
    let failover = async {
        let spooled = follower.status().lanes[&b.lanes()[0]].spool_end.clone();
        until(&follower, "the mark", |s| s.lanes.values().all(|lane| lane.spool_end > spooled)).await;
        b.server.kill(0).unwrap();
        b.server.promote(1).unwrap();
        let is_there = |place: &Option<Place>| place.as_ref().is_some_and(|place| place.epoch.0 == "2");
        until(&follower, "the new primary", |s| s.lanes.values().all(|lane| is_there(&lane.spool_end))).await;
        // All gets to the vault but word of what happened.
        b.faulty.set(Faults::choose(|_, verb, key| {
            (verb != "get" && key.contains("_e_")).then_some(Fault::Before)
        }));
    };
    let (set, ()) = tokio::join!(set_point(&members, &within), failover);
    assert_eq!(set.unwrap_err().code(), "deadline");
    b.faulty.set(no_faults());
    assert_eq!(points(&b.vault, "shop", "local", "all").await.unwrap(), []);
    caught_up(&follower).await;
    // One on the new primary is.
    let point = set_point(&members, &point_options(None)).await.unwrap();
    assert_eq!(points(&b.vault, "shop", "local", "all").await.unwrap(), [point]);
    follower.stop().await;
}

#[tokio::test]
async fn without_a_follower_the_logs_are_brought_to_the_vault_by_the_point_itself() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let of = b.of("home");
    b.write(0, 10).await;
    let members = [Member { of: &of, follower: None }];
    // Nothing was followed up to now: the first point's own follower begins before the mark is set, or the next one covers it.
    crate::follow::catch_up(&of, options("home"), &crate::follow::Until::Now, PATIENCE).await.unwrap();
    let point = set_point(&members, &point_options(Some(Duration::from_secs(2)))).await.unwrap();
    assert!(point.exact, "{point:?}");
    assert_eq!(points(&b.vault, "shop", "local", "all").await.unwrap(), [point]);
}

#[tokio::test]
async fn what_was_written_during_a_hold_is_found_in_the_spool_and_in_the_vault() {
    let b = Bench::new(1, 1, Count::Bytes).await;
    let of = b.of("home");
    let follower = b.follow("home");
    until(&follower, "a link", |s| s.is_well()).await;
    b.write(0, 3).await;
    let lane = b.lanes()[0].clone();
    let end = || b.server_log(&lane, 0).len() as u64;
    let quiet_from = end();
    for _ in 0..3 {
        b.server.ping().unwrap();
    }
    let quiet_to = end();
    b.write(3, 2).await;
    let loud_to = end();
    caught_up(&follower).await;
    follower.stop().await;
    let attempt = |from, to| held(&lane, from, to);
    let incarnations = BTreeMap::from([("orders".to_owned(), "life-of-orders".to_owned())]);
    for home in ["home", "elsewhere"] {
        let of = b.of(home);
        let members = [Member { of: &of, follower: None }];
        let found = prove_quiet(&members, &incarnations, &attempt(quiet_from, quiet_to)).await.unwrap();
        assert_eq!(found, None, "{home}");
        let found = prove_quiet(&members, &incarnations, &attempt(quiet_from, loud_to)).await.unwrap();
        assert!(found.unwrap().contains("was written to"), "{home}");
        let found = prove_quiet(&members, &incarnations, &attempt(quiet_to, loud_to + 1)).await.unwrap();
        assert!(found.unwrap().contains("cannot be read"), "{home}");
    }
    drop(of);
}

fn held(lane: &Lane, from: u64, to: u64) -> Attempt {
    let position = |offset| Position::single(lane.clone(), Place::new("1", offset));
    Attempt {
        clusters: vec!["orders".to_owned()],
        marked: vec![Marked { position: position(from), at: Bracket::exactly(Instant(0)) }],
        released: BTreeMap::from([(0, position(to))]),
        ..Attempt::default()
    }
}

//! The way from a snapshot to a restored cluster, with and without trouble at the source.

use mainstay_model::{Instant, Position};
use mainstay_recovery::Error;
use mainstay_recovery::plan::{PlanOptions, PointTarget, Target, plan};
use mainstay_recovery::prove::prove;
use mainstay_recovery::window::window;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::fake::{Fake, lane};
use crate::lab::*;

fn codes<T: std::fmt::Debug>(result: Result<T, Error>) -> Vec<&'static str> {
    match result {
        Err(Error::Refused(refusals)) => {
            assert!(refusals.iter().all(|r| !r.instead.is_empty()), "{refusals:?}");
            refusals.iter().map(|r| r.code).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_instant_of_the_window_is_restored() {
    let lab = Lab::new().await;
    lab.write(0, 20);
    lab.snapshot().await;
    let mut times = vec![];
    for round in 0..6 {
        times.push(lab.write(round * 100, 7));
        lab.follow().await;
        if round == 3 {
            lab.snapshot().await;
        }
    }
    for at in times {
        for at in [at, Instant(at.0 - 1)] {
            let values = lab.fake.world().values_at(at);
            assert_eq!(lab.restored(Target::At(at)).await.unwrap(), values);
        }
    }
    let now = lab.fake.world().now();
    let all = lab.fake.world().values_at(now);
    assert_eq!(lab.restored(Target::Latest).await.unwrap(), all);
    let window = window(&lab.of).await.unwrap();
    assert!(window.holes.is_empty() && window.snapshots == 2);
    let (from, to) = (window.from.unwrap(), window.to.unwrap());
    assert_eq!(codes(lab.restored(Target::At(Instant(from.0 - 1))).await), ["out-of-window"]);
    assert_eq!(codes(lab.restored(Target::At(Instant(to.0 + 1))).await), ["out-of-window"]);
    lab.restored(Target::At(from)).await.unwrap();
    lab.restored(Target::At(to)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_window_goes_on_over_failovers_and_ended_branches_are_had_by_position() {
    let lab = Lab::new().await;
    lab.write(0, 10);
    lab.snapshot().await;
    lab.write(100, 10);
    lab.follow().await;
    let ahead = lab.fake.world().end();
    let lost = {
        let mut world = lab.fake.world();
        let now = world.now();
        let values = world.values_at(now);
        world.fail_over(4);
        values
    };
    let at = lab.write(200, 5);
    lab.follow().await;
    let values = lab.fake.world().values_at(at);
    assert_ne!(values, lost);
    assert_eq!(lab.restored(Target::At(at)).await.unwrap(), values);
    assert!(window(&lab.of).await.unwrap().holes.is_empty());
    let position = Position::single(lane(), ahead);
    assert_eq!(lab.restored(Target::Position(position)).await.unwrap(), lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_is_told_and_refused_and_the_next_snapshot_goes_on() {
    let lab = Lab::new().await;
    lab.snapshot().await;
    let before = lab.write(0, 5);
    lab.follow().await;
    let within = lab.write(100, 5);
    lab.fake.world().lose_log();
    lab.snapshot().await;
    let after = lab.write(200, 5);
    lab.follow().await;
    let window = window(&lab.of).await.unwrap();
    assert_eq!(window.holes.len(), 1, "{window:?}");
    assert_eq!(codes(lab.restored(Target::At(within)).await), ["hole"]);
    for at in [before, after] {
        let values = lab.fake.world().values_at(at);
        assert_eq!(lab.restored(Target::At(at)).await.unwrap(), values);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_to_one_instant_and_to_one_point() {
    let lab = Lab::new().await;
    let other = Fake::new("life2");
    let stock = protected(lab.dir.path(), &lab.vault, other, "stock");
    let members = [lab.of.clone(), stock.clone()];
    for of in &members {
        backup(of).await.unwrap();
    }
    let last = lab.write(0, 5);
    let mut at = other.world().write(1, 1);
    while at <= last {
        at = other.world().write(1, 1);
    }
    let positions: BTreeMap<String, Position> = [("orders", lab.fake), ("stock", other)]
        .map(|(name, fake)| (name.to_owned(), Position::single(lane(), fake.world().end())))
        .into();
    let expected = [lab.fake.world().values_at(at), other.world().values_at(at)];
    lab.write(100, 5);
    other.world().write(2, 2);
    for of in &members {
        follow(of).await.unwrap();
    }
    let point = PointTarget { id: "p".into(), at, skew: Duration::from_millis(3), positions };
    for (target, skew) in [(Target::At(at), 0.0), (Target::Point(point), 3.0)] {
        let planned = plan(&members, &target, &PlanOptions::default()).await.unwrap().accepted().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (restored, sites) = run(&planned, dir.path()).await.unwrap();
        assert_eq!(restored.skew_ms, skew);
        let found = ["orders", "stock"].map(|c| crate::fake::read_node(&sites[c].layout).unwrap());
        assert_eq!(found, expected);
    }
    // The latest instant is the one that both logs reach.
    let latest = plan(&members, &Target::Latest, &PlanOptions::default()).await.unwrap().accepted().unwrap();
    let to = [window(&members[0]).await.unwrap().to.unwrap(), window(&members[1]).await.unwrap().to.unwrap()];
    assert_eq!(latest.plan.at, to.into_iter().min());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_snapshots_or_keys_nothing_is_promised() {
    let lab = Lab::new().await;
    let refused = codes(lab.restored(Target::Latest).await);
    assert_eq!(refused, ["no-snapshot"]);
    lab.snapshot().await;
    std::fs::rename(lab.dir.path().join("keys/identity.txt"), lab.dir.path().join("elsewhere")).unwrap();
    let of = lab.reopened(lab.vault.store().clone()).await.unwrap();
    backup(&of).await.unwrap();
    assert_eq!(codes(restored(&of, &Target::Latest).await), ["vault-no-identity"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_crosses_two_snapshots_and_finds_what_one_dropped_in_silence() {
    let lab = Lab::new().await;
    let sandboxes = Folders::new();
    let members = [lab.of.clone()];
    lab.write(0, 10);
    let first = lab.snapshot().await;
    lab.write(100, 10);
    lab.follow().await;
    let alone = prove(&members, &Target::Latest, &sandboxes, &prove_options("proof1")).await.unwrap();
    assert!(
        alone.differences.is_empty() && alone.notes.iter().any(|n| n.contains("not crossed")),
        "{alone:?}"
    );

    let second = lab.snapshot().await;
    lab.write(200, 10);
    lab.follow().await;
    let proof = prove(&members, &Target::Latest, &sandboxes, &prove_options("proof2")).await.unwrap();
    assert!(proof.differences.is_empty(), "{proof:?}");
    assert!(
        proof.checks.iter().any(|c| c.kind == "crossed") && proof.checks.iter().any(|c| c.kind == "fake")
    );
    assert_eq!(
        (&proof.clusters[0].snapshot, proof.clusters[0].crossed_with.as_ref()),
        (&second, Some(&first))
    );
    let records = lab.of.vault.snapshots().await.unwrap();
    assert!(records.iter().all(|r| r.proven_at.is_some()), "{records:?}");

    lab.fake.world().forget = Some(7);
    let third = lab.snapshot().await;
    lab.write(310, 10);
    lab.follow().await;
    let proof = prove(&members, &Target::Latest, &sandboxes, &prove_options("proof3")).await.unwrap();
    assert_eq!(proof.differences.len(), 1, "{proof:?}");
    assert_eq!(proof.differences[0].kind, "crossed");
    let records = lab.of.vault.snapshots().await.unwrap();
    assert!(records.iter().find(|r| r.id == third).unwrap().proven_at.is_none());
    let filed: Vec<(String, serde_json::Value)> = lab.vault.proofs("shop", "local", "orders").await.unwrap();
    assert_eq!(filed.len(), 3);
    assert_eq!(sandboxes.left(), 0);
}

//! Kills, failing and lying stores, flipped bits: what was durable is restored, and nothing wrong ever is.

use std::time::Duration;

use mainstay_model::Instant;
use mainstay_recovery::catalogue::Catalogue;
use mainstay_recovery::plan::Target;
use mainstay_recovery::window::window;
use mainstay_recovery::{Protected, Result};
use mainstay_store::{Fault, Faults, Faulty, Limits, Memory, Store};
use mainstay_vault::VerifyOptions;

use crate::lab::*;

struct Faulted {
    lab: Lab,
    memory: Memory,
    faulty: Faulty<Memory>,
}

fn none() -> Faults {
    Faults::choose(|_, _, _| None)
}

impl Faulted {
    async fn new() -> Self {
        let memory = Memory::default();
        let faulty = Faulty::new(memory.clone(), none());
        let lab = Lab::on(Store::with(faulty.clone(), Limits::hasty())).await;
        Self { lab, memory, faulty }
    }

    /// A process of its own: the vault opened anew.
    async fn process(&self) -> mainstay_vault::Result<Protected> {
        self.lab.reopened(Store::with(self.faulty.clone(), Limits::hasty())).await
    }

    /// What was there at `at` is restored.
    async fn check(&self, at: Instant, after: &str) {
        let values = self.lab.fake.world().values_at(at);
        let of = self.process().await.unwrap();
        let found = restored(&of, &Target::At(at)).await.unwrap_or_else(|e| panic!("{after}: {e:?}"));
        assert_eq!(found, values, "{after}");
    }

    async fn verify(&self, after: &str) {
        let verified = self.lab.of.vault.verify(&VerifyOptions::default()).await.unwrap();
        assert!(verified.damaged.is_empty(), "{after}: {:?}", verified.damaged);
    }
}

#[derive(Clone, Copy, Debug)]
enum Work {
    Snapshot,
    Follow,
    Restore,
    Prune,
}

async fn work(of: &Protected, what: Work) -> Result<()> {
    match what {
        Work::Snapshot => backup(of).await.map(|_| ()),
        Work::Follow => {
            let options = follow_options();
            let until = mainstay_recovery::follow::Until::Now;
            mainstay_recovery::follow::catch_up(of, options, &until, Duration::from_secs(3)).await.map(|_| ())
        }
        Work::Restore => restored(of, &Target::Latest).await.map(|_| ()),
        Work::Prune => mainstay_recovery::prune::prune(of, Duration::ZERO, "test").await.map(|_| ()),
    }
}

async fn dies_at_each_call(what: Work) {
    let scene = Faulted::new().await;
    scene.lab.write(0, 20);
    scene.lab.snapshot().await;
    let at = scene.lab.write(100, 20);
    scene.lab.follow().await;
    let mut call = 0;
    loop {
        let more = scene.lab.write(call, 1);
        scene.faulty.set(Faults::die_at(u64::from(call)));
        let ended = match scene.process().await {
            Ok(of) => work(&of, what).await.is_ok(),
            Err(_) => false,
        };
        let called = scene.faulty.calls();
        scene.faulty.set(none());
        let after = format!("{what:?} died at call {call}");
        scene.check(at, &after).await;
        let of = scene.process().await.unwrap();
        work(&of, what).await.unwrap_or_else(|e| panic!("{after}, and again: {e:?}"));
        if matches!(what, Work::Follow) {
            scene.check(more, &after).await;
        }
        if ended && called <= u64::from(call) {
            break;
        }
        // Every call of the first dozen, then fewer: each is a whole run.
        call += if call < 12 { 1 } else { 3 };
        assert!(call < 400, "{what:?} never ends");
    }
    scene.verify(&format!("{what:?}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_dies_at_each_call() {
    dies_at_each_call(Work::Snapshot).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_dies_at_each_call() {
    dies_at_each_call(Work::Restore).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prune_dies_at_each_call() {
    dies_at_each_call(Work::Prune).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn following_goes_on_over_a_store_that_dies_and_lives_again() {
    let scene = Faulted::new().await;
    scene.lab.snapshot().await;
    for call in [0, 1, 2, 3, 5, 8, 13, 21] {
        let before = scene.lab.write(call, 3);
        scene.faulty.set(Faults::die_at(u64::from(call)));
        if let Ok(of) = scene.process().await {
            let options = follow_options();
            let until = mainstay_recovery::follow::Until::Now;
            let within = Duration::from_millis(200);
            let _ = mainstay_recovery::follow::catch_up(&of, options, &until, within).await;
        }
        scene.faulty.set(none());
        let of = scene.process().await.unwrap();
        follow(&of).await.unwrap();
        scene.check(before, &format!("died at call {call}")).await;
    }
    scene.verify("following").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_one_call_in_ten_is_borne() {
    let scene = Faulted::new().await;
    for fault in [Fault::Before, Fault::After] {
        scene.faulty.set(Faults::every(10, fault));
        let of = scene.process().await.unwrap();
        scene.lab.write(0, 10);
        backup(&of).await.unwrap();
        let at = scene.lab.write(100, 10);
        follow(&of).await.unwrap();
        work(&of, Work::Prune).await.unwrap();
        scene.check(at, &format!("{fault:?}")).await;
        scene.faulty.set(none());
    }
    scene.verify("one in ten").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lies_is_found_out_and_gives_nothing_wrong() {
    for fault in [Fault::Truncate, Fault::Forget] {
        for call in (0..30).step_by(3) {
            let scene = Faulted::new().await;
            scene.lab.write(0, 20);
            let of = scene.process().await.unwrap();
            scene.faulty.set(Faults::choose(move |n, verb, _| {
                (n == call && ["put", "create"].contains(&verb)).then_some(fault)
            }));
            let _ = backup(&of).await;
            scene.faulty.set(none());
            let now = scene.lab.fake.world().now();
            let values = scene.lab.fake.world().values_at(now);
            if let Ok(found) = restored(&of, &Target::Latest).await {
                assert_eq!(found, values, "{fault:?} at call {call}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_named_and_nothing_wrong_is_restored() {
    let scene = Faulted::new().await;
    scene.lab.write(0, 30);
    scene.lab.snapshot().await;
    let at = scene.lab.write(100, 30);
    scene.lab.follow().await;
    let values = scene.lab.fake.world().values_at(at);
    let mut bits = 12_345_u64;
    for key in scene.memory.keys() {
        // Leases say who is at work, and hold no backup.
        if key.starts_with("leases/") {
            continue;
        }
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let flip = |bytes: &mut Vec<u8>| {
            if !bytes.is_empty() {
                let bit = usize::try_from(bits >> 20).unwrap() % (bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        };
        let mut changed = false;
        scene.memory.damage(&key, |bytes| {
            changed = !bytes.is_empty();
            flip(bytes);
        });
        if !changed {
            continue;
        }
        match scene.process().await {
            // The vault's own keys and format: nothing can be opened.
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(of) => {
                match restored(&of, &Target::At(at)).await {
                    Ok(found) => assert_eq!(found, values, "{key}"),
                    Err(error) => {
                        let said = format!("{error} {error:?}");
                        assert!(said.contains(&key) || said.contains("damaged"), "{key}: {said}");
                    }
                }
                let verified = of.vault.vault().verify(&VerifyOptions::default()).await.unwrap();
                assert!(verified.damaged.iter().any(|d| d.object == key), "{key}: {:?}", verified.damaged);
            }
        }
        scene.memory.damage(&key, flip);
    }
    scene.check(at, "all bits flipped back").await;
    scene.verify("all bits flipped back").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_random_moments_lose_nothing() {
    let scene = Faulted::new().await;
    scene.lab.write(0, 20);
    scene.lab.snapshot().await;
    scene.lab.follow().await;
    let mut seed = 0x5eed_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    // Every instant that was once known to be in the window, and must stay in it.
    let mut known: Vec<Instant> = vec![];
    for moment in 0..200_u32 {
        let at = scene.lab.write(moment * 10, 1 + u32::try_from(random(5)).unwrap());
        if random(20) == 0 {
            scene.lab.fake.world().fail_over(random(4));
        }
        let what = [Work::Snapshot, Work::Follow, Work::Follow, Work::Restore, Work::Prune]
            [usize::try_from(random(5)).unwrap()];
        let of = scene.process().await.unwrap();
        killed_after(1 + random(40) as usize, work(&of, what)).await;
        drop(of);

        let of = scene.process().await.unwrap();
        let now = window(&of).await.unwrap();
        let (from, to) = (now.from.unwrap(), now.to.unwrap());
        let after = format!("moment {moment}, {what:?}");
        let past = Catalogue::load(&of.vault).await.unwrap().past;
        // Log that is only late, however slow this machine is, is none.
        assert!(past.holes(Instant::MIN).is_empty() && now.damaged.is_empty(), "{after}: {now:?}");
        for one in &known {
            assert!(from <= *one && *one <= to, "{after}: {one} is no longer in {now:?}");
            assert!(!past.for_time(*one).is_empty(), "{after}: {one} is no longer had");
        }
        if !past.for_time(at).is_empty() {
            known.push(at);
        }
        if moment % 10 == 9 {
            follow(&of).await.unwrap_or_else(|e| panic!("{after}: {e:?}"));
            known.push(at);
            let one = known[usize::try_from(random(known.len() as u64)).unwrap()];
            scene.check(one, &after).await;
            scene.check(at, &after).await;
            scene.verify(&after).await;
        }
    }
}

//! Killed at every call, failing one call in n, truncating, timing out, lying: what was acknowledged is there, the next run goes on, verify is clean,
//! and no orphan survives the second prune.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_model::Instant;
use mainstay_store::{Backend, Fault, Faults, Faulty, Limits, Memory, Store};
use mainstay_vault::{ClusterVault, LogEntry, Vault, VerifyOptions};

use crate::kit::{Files, Kit, compare, compare_reads, keep_one, now, snapshot, tiny};
use crate::logs::{entry, lane};

fn prune(cluster: &ClusterVault) -> Result<(), String> {
    let plan =
        now(cluster.plan_prune(&keep_one(), Duration::ZERO, Instant::now())).map_err(|e| e.to_string())?;
    now(cluster.apply_prune(&plan)).map(drop).map_err(|e| e.to_string())
}

/// Everything that writes, in turn.
fn work(cluster: &ClusterVault, files: &Files) -> Result<String, String> {
    let record = snapshot(cluster, files)?;
    let generation = now(cluster.lane_lease("7001", &lane(), "test", Duration::from_secs(60)));
    let lease = generation.map_err(|e| e.to_string())?;
    let mut writer =
        now(cluster.log_writer("7001", &lane(), lease.generation())).map_err(|e| e.to_string())?;
    for log in [LogEntry::Tail(entry("1", 0, 100)), LogEntry::Sealed(entry("1", 0, 200))] {
        now(writer.put(&log)).map_err(|e| e.to_string())?;
    }
    now(writer.retire()).map_err(|e| e.to_string())?;
    now(lease.release()).map_err(|e| e.to_string())?;
    prune(cluster)?;
    prune(cluster)?;
    Ok(record.id)
}

/// What must hold after anything: snapshots that are listed can be restored, the next run goes on, verify is clean, nothing is left over.
fn all_is_well(kit: &Kit, memory: &Memory, versions: &[&Files], context: &str) {
    let cluster = kit.through(memory.clone());
    for record in now(cluster.snapshots()).unwrap() {
        assert!(versions.iter().any(|files| compare_quietly(&cluster, &record.id, files)), "{context}");
    }
    let newest = versions[versions.len() - 1];
    let id = work(&cluster, newest).unwrap_or_else(|e| panic!("{context}: {e}"));
    compare_reads(&cluster, &id, newest).unwrap();
    for _ in 0..2 {
        prune(&cluster).unwrap_or_else(|e| panic!("{context}: {e}"));
    }
    let verified = now(cluster.vault().verify(&VerifyOptions::default())).unwrap();
    assert_eq!((verified.damaged, verified.leftovers), (vec![], 0), "{context}");
    assert_eq!(now(cluster.snapshots()).unwrap().len(), 1, "{context}");
    // Nothing but what one snapshot and one log need: no object is left of whatever was broken off.
    let keys: Vec<_> = memory.keys().into_iter().filter(|key| !key.starts_with("leases/")).collect();
    let orphans: Vec<_> =
        keys.iter().filter(|key| key.starts_with("tombs/") || key.ends_with("/started")).collect();
    assert!(orphans.is_empty(), "{context}: {orphans:?}");
    assert!(!memory.keys().iter().any(|key| key.starts_with("leases/attempt.")), "{context}");
}

fn compare_quietly(cluster: &ClusterVault, id: &str, files: &Files) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| compare_reads(cluster, id, files).is_ok()))
        .unwrap_or(false)
}

#[test]
fn killed_at_every_call() {
    let old = tiny();
    let mut new = tiny();
    new.get_mut("base/1/1000").unwrap().1[3] ^= 1;
    new.get_mut("label").unwrap().1.push(b'!');
    // How many calls an undisturbed run makes.
    let before = Memory::default();
    let kit = Kit::on(before.clone());
    snapshot(&kit.cluster(), &old).unwrap();
    let run = |faults: Faults, context: &str| {
        let memory = before.fork();
        let faulty = Faulty::new(memory.clone(), Faults::every(u64::MAX, Fault::Before));
        let cluster = kit.through(faulty.clone());
        faulty.set(faults);
        let outcome = work(&cluster, &new);
        let calls = faulty.calls();
        // The process is gone: what it held, it holds no longer.
        drop(cluster);
        all_is_well(&kit, &memory, &[&old, &new], context);
        (outcome, calls)
    };
    let (outcome, calls) = run(Faults::every(u64::MAX, Fault::Before), "undisturbed");
    outcome.unwrap();
    assert!(calls > 40, "{calls}");
    for call in 0..calls {
        let (outcome, _) = run(Faults::die_at(call), &format!("killed at call {call} of {calls}"));
        assert!(outcome.is_err() || call > 20, "call {call} was never made");
    }
}

#[test]
fn a_store_that_fails_one_call_in_ten_is_used_all_the_same() {
    for (n, fault) in [(10, Fault::Before), (10, Fault::After), (7, Fault::Before), (7, Fault::After)] {
        let memory = Memory::default();
        let kit = Kit::on(memory.clone());
        let cluster = kit.through(Faulty::new(memory.clone(), Faults::every(n, fault)));
        let files = tiny();
        let id = work(&cluster, &files).unwrap();
        compare(&cluster, &id, &files).unwrap();
        all_is_well(&kit, &memory, &[&files], &format!("{fault:?} every {n}"));
    }
}

#[test]
fn a_store_that_hangs_is_not_waited_for() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let limits =
        Limits { deadline: Duration::from_millis(200), deadline_per_mib: Duration::ZERO, ..Limits::hasty() };
    let store = Store::with(Faulty::new(memory.clone(), Faults::every(9, Fault::Hang)), limits);
    let cluster = now(Vault::open(store, &kit.keys())).unwrap().cluster("shop", "local", "orders");
    let files = tiny();
    let id = snapshot(&cluster, &files).unwrap().id;
    compare(&cluster, &id, &files).unwrap();
    all_is_well(&kit, &memory, &[&files], "hanging");
}

/// Whatever a lying store does to one written object, it is no snapshot, or verify names it.
#[test]
fn a_store_that_lies_is_found_out() {
    for fault in [Fault::Truncate, Fault::Forget] {
        let memory = Memory::default();
        let kit = Kit::on(memory.clone());
        let files = tiny();
        let kinds = ["/packs/", "/index-", "/packs-", "/manifest", "/log/"];
        for kind in kinds {
            let seen = Arc::new(AtomicU64::new(0));
            let faults = Faults::choose(move |_, verb, key| {
                let hit = (verb == "put" || verb == "create")
                    && key.contains(kind)
                    && seen.fetch_add(1, Ordering::SeqCst) == 0;
                hit.then_some(fault)
            });
            let cluster = kit.through(Faulty::new(memory.clone(), faults));
            let mut files = files.clone();
            files.get_mut("label").unwrap().1.extend_from_slice(kind.as_bytes());
            let outcome = snapshot(&cluster, &files);
            let mut writer = now(cluster.log_writer("7001", &lane(), kind.len() as u64)).unwrap();
            now(writer.put(&LogEntry::Sealed(entry("1", 0, 100)))).unwrap();
            now(writer.put(&LogEntry::Sealed(entry("1", 100, 200)))).unwrap();
            let through = kit.through(memory.clone());
            let verified = now(through.vault().verify(&VerifyOptions::default())).unwrap();
            let log_lost = kind == "/log/" && fault == Fault::Forget;
            let never_was = kind == "/manifest" && fault == Fault::Forget;
            assert!(
                outcome.is_err() || !verified.damaged.is_empty() || log_lost || never_was,
                "{fault:?} of {kind} went unnoticed"
            );
            if kind == "/packs/" {
                assert!(outcome.is_err(), "a snapshot without its pack was believed");
            }
            for key in memory.keys().iter().filter(|key| key.starts_with("c/")) {
                now(through.vault().store().delete(key)).unwrap();
            }
        }
    }
}

#[test]
fn creating_is_known_when_the_answer_is_lost() {
    let memory = Memory::default();
    let store = Store::with(Faulty::new(memory.clone(), Faults::every(2, Fault::After)), Limits::hasty());
    for n in 0..20 {
        now(store.create(&format!("x/{n}"), format!("mine {n}"))).unwrap();
    }
    now(memory.put("x/other", "theirs".into())).unwrap();
    let error = now(store.create("x/other", "mine")).unwrap_err();
    assert_eq!(error.kind, mainstay_store::Kind::Exists);
    // Two writers at once, and answers that are lost: one of them has it.
    for n in 0..50 {
        let key = format!("y/{n}");
        let both: Vec<_> = ["a", "b"]
            .map(|who| {
                let (store, key) = (store.clone(), key.clone());
                std::thread::spawn(move || now(store.create(&key, who)).is_ok())
            })
            .into_iter()
            .map(|t| t.join().unwrap())
            .collect();
        assert_eq!(both.iter().filter(|won| **won).count(), 1);
    }
}

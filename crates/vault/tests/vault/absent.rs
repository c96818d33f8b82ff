//! What is deleted by anybody but a prune is missed, where anything that is left tells of it; and what prunes do is not.

use std::time::Duration;

use mainstay_model::{Bracket, Instant, Place};
use mainstay_store::{Faults, Faulty, Limits, Memory, Store};
use mainstay_vault::{Damage, Error, LogEntry, Vault, VerifyOptions};

use crate::kit::{Kit, bytes, keep_one, now, put_all, snapshot, taken, tiny};
use crate::logs::{entry, lane};
use crate::prunes::prune;

fn damaged(kit: &Kit) -> Vec<Damage> {
    now(kit.vault.verify(&VerifyOptions::default())).unwrap().damaged
}

/// Deletes every object with such a key, and gives what verify says of it.
fn without(kit: &Kit, memory: &Memory, is_gone: impl Fn(&str) -> bool) -> Vec<Damage> {
    let gone: Vec<_> = memory.keys().into_iter().filter(|key| is_gone(key)).collect();
    assert!(!gone.is_empty());
    let store = kit.vault.store();
    let bodies: Vec<_> = gone.iter().map(|key| now(store.get(key)).unwrap()).collect();
    gone.iter().for_each(|key| now(store.delete(key)).unwrap());
    let found = damaged(kit);
    for (key, body) in gone.iter().zip(bodies) {
        now(store.put(key, body)).unwrap();
    }
    assert_eq!(damaged(kit), []);
    found
}

#[test]
fn a_vault_without_its_format_is_damaged_and_no_other_is_made_over_it() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let record = snapshot(&kit.cluster(), &tiny()).unwrap();
    let store = Store::with(memory.clone(), Limits::hasty());
    now(store.delete("format.json")).unwrap();
    let before = memory.keys();
    let is_told = |error: Error| match error {
        Error::Damaged { object, .. } => assert_eq!(object, "format.json"),
        other => panic!("{other}"),
    };
    is_told(now(Vault::open(store.clone(), &kit.keys())).unwrap_err());
    is_told(now(Vault::open_or_create(store.clone(), &[], &kit.keys())).unwrap_err());
    is_told(now(Vault::create(store.clone(), &[], &kit.keys())).unwrap_err());
    assert_eq!(memory.keys(), before);
    assert!(damaged(&kit).iter().any(|damage| damage.object == "format.json"));
    // Who has no keys of it can write none.
    let stranger = tempfile::tempdir().unwrap();
    assert!(now(Vault::put_format_back(&store, stranger.path())).is_err());
    assert!(now(Vault::put_format_back(&store, &kit.keys())).unwrap());
    assert!(!now(Vault::put_format_back(&store, &kit.keys())).unwrap());
    let vault = now(Vault::open(store, &kit.keys())).unwrap();
    now(vault.cluster("shop", "local", "orders").open_snapshot(&record.id)).unwrap();
    assert_eq!(damaged(&kit), []);
    // Keys alone are of a vault that is being made.
    let store = Store::with(Memory::default(), Limits::hasty());
    now(store.put("keys/0123456789abcdef.age", &b"x"[..])).unwrap();
    assert!(matches!(now(Vault::open(store.clone(), &kit.keys())), Err(Error::NoVault { .. })));
    now(Vault::create(store, &[], &tempfile::tempdir().unwrap().path().join("keys"))).unwrap();
}

#[test]
fn a_lost_manifest_proof_or_first_log_is_missed() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let cluster = kit.cluster();
    let mut files = tiny();
    let first = snapshot(&cluster, &files).unwrap().id;
    files.get_mut("base/1/1000").unwrap().1 = bytes(55, 300_000);
    let second = snapshot(&cluster, &files).unwrap().id;
    let mut writer = now(cluster.log_writer("7001", &lane(), 1)).unwrap();
    for from in [0, 100, 200] {
        now(writer.put(&LogEntry::Sealed(entry("1", from, from + 100)))).unwrap();
    }
    assert_eq!(damaged(&kit), []);
    // Alone, with all of its folder, and with what tells of it.
    let manifest = format!("c/shop/local/orders/7001/snap/{first}/manifest");
    let found = without(&kit, &memory, |key| key == manifest);
    assert_eq!((found.len(), &found[0].object, &found[0].snapshots), (1, &manifest, &vec![first.clone()]));
    let folder = format!("/snap/{second}/");
    let found = without(&kit, &memory, |key| key.contains(&folder));
    let attempt = second.rsplit('-').next().unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].object.ends_with(&format!("-{attempt}/manifest")), "{found:?}");
    now(cluster.set_pinned(&first, true)).unwrap();
    let folder = format!("/snap/{first}/");
    let found = without(&kit, &memory, |key| key.contains(&folder));
    assert!(found.iter().any(|d| d.reason.contains(&format!("pins/{first}"))), "{found:?}");
    now(kit.vault.put_proof("shop", "local", "orders", "proof-1", &1)).unwrap();
    now(cluster.record_proven(&first, Instant::now(), "proof-1")).unwrap();
    let found = without(&kit, &memory, |key| key.ends_with("/proof-1"));
    assert_eq!(found.len(), 1);
    assert!(found[0].object.contains("proof-1"), "{found:?}");
    // The first of the log: the snapshots begin to read below it.
    let objects = now(cluster.log_objects("7001", &lane())).unwrap();
    for object in &objects[..2] {
        let found = without(&kit, &memory, |key| key == object.key);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].object.ends_with(&object.tag), "{found:?}");
    }
    let found = without(&kit, &memory, |key| key == objects[0].key);
    assert_eq!(found[0].snapshots.len(), 2);
    // A snapshot that is gone is not spoken of.
    now(cluster.record_intact("20200101t000000-00000000", Instant::now())).unwrap();
    assert_eq!(damaged(&kit), []);
}

#[test]
fn what_a_prune_does_is_explained_wherever_it_dies() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let cluster = kit.cluster();
    let faulty = Faulty::new(memory.clone(), Faults::choose(|_, _, _| None));
    let mut files = tiny();
    let take = |offset: u64, files: &crate::kit::Files| {
        let writer = now(cluster.begin("7001", "test")).unwrap();
        put_all(&writer, files).unwrap();
        now(writer.commit(taken(offset))).unwrap()
    };
    take(50, &files);
    let mut writer = now(cluster.log_writer("7001", &lane(), 1)).unwrap();
    let mut call = 0;
    for round in 0..200_u64 {
        files.get_mut("base/1/1000").unwrap().1[usize::try_from(round).unwrap() * 8192 % 90_000] ^= 1;
        let from = round * 10;
        now(writer.put(&LogEntry::Sealed(entry("1", from, from + 10)))).unwrap();
        if round % 7 == 3 {
            let hole = LogEntry::Hole {
                from: Place::new("1", from + 10),
                time: Bracket::exactly(Instant(1)),
                reason: "log-gone".into(),
            };
            now(writer.put(&hole)).unwrap();
        }
        let record = take(from + 5, &files);
        if round % 3 == 0 {
            now(cluster.record_intact(&record.id, Instant::now())).unwrap();
        }
        // An attempt that is broken off.
        if round % 5 == 0 {
            let broken = now(cluster.begin("7001", "test")).unwrap();
            put_all(&broken, &files).unwrap();
            drop(broken);
        }
        faulty.set(Faults::die_at(call));
        let ended = now(async {
            let store = Store::with(faulty.clone(), Limits::hasty());
            let of = Vault::open(store, &kit.keys()).await.ok()?.cluster("shop", "local", "orders");
            let plan = of.plan_prune(&keep_one(), Duration::ZERO, Instant::now()).await.ok()?;
            of.apply_prune(&plan).await.ok()
        });
        faulty.set(Faults::choose(|_, _, _| None));
        assert_eq!(damaged(&kit), [], "died at call {call}");
        call = if ended.is_some() { 0 } else { call + 1 + call / 8 };
        if round > 60 && ended.is_some() {
            break;
        }
    }
    prune(&cluster);
    prune(&cluster);
    assert_eq!(damaged(&kit), []);
}

#[test]
fn a_snapshot_whose_manifest_is_lost_is_not_tidied_away() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let cluster = kit.cluster();
    let mut files = tiny();
    let first = snapshot(&cluster, &files).unwrap().id;
    files.get_mut("base/1/1000").unwrap().1 = bytes(56, 300_000);
    snapshot(&cluster, &files).unwrap();
    let manifest = format!("c/shop/local/orders/7001/snap/{first}/manifest");
    now(kit.vault.store().delete(&manifest)).unwrap();
    let keys = memory.keys();
    for _ in 0..3 {
        prune(&cluster);
    }
    assert_eq!(
        memory.keys().iter().filter(|k| k.starts_with("c/")).count(),
        keys.iter().filter(|k| k.starts_with("c/")).count()
    );
    assert_eq!(damaged(&kit)[0].object, manifest);
}

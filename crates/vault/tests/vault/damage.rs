//! A flipped bit anywhere is found by verify and by restore, named, and reaches nobody.

use std::collections::BTreeSet;
use std::time::Duration;

use mainstay_engine::Kind;
use mainstay_model::Instant;
use mainstay_store::Memory;
use mainstay_vault::{LogContent, LogEntry, Vault, VerifyOptions};

use crate::kit::{Files, Kit, compare, now, snapshot, tiny};
use crate::logs::{entry, lane};

/// A vault with something of everything in it.
fn full() -> (Memory, Kit, Vec<(String, Files)>) {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let cluster = kit.cluster();
    let mut files = tiny();
    let mut snapshots = Vec::new();
    for n in 0..2 {
        files.get_mut("base/1/1000").unwrap().1[n * 8192] ^= 1;
        snapshots.push((snapshot(&cluster, &files).unwrap().id, files.clone()));
    }
    let mut writer = now(cluster.log_writer("7001", &lane(), 1)).unwrap();
    now(writer.put(&LogEntry::Sealed(entry("1", 0, 100)))).unwrap();
    now(writer.put(&LogEntry::Tail(entry("1", 100, 200)))).unwrap();
    now(cluster.set_pinned(&snapshots[0].0, true)).unwrap();
    now(cluster.record_intact(&snapshots[0].0, Instant::now())).unwrap();
    now(kit.vault.put_point("shop", "local", "all", "p", &1)).unwrap();
    now(kit.vault.put_proof("shop", "local", "all", "q", &1)).unwrap();
    // A broken-off attempt, and what a prune has marked.
    let lease = now(kit.vault.lease("l", "test", Duration::from_secs(600))).unwrap();
    now(lease.release()).unwrap();
    (memory, kit, snapshots)
}

#[test]
fn a_clean_vault_is_clean_with_and_without_the_identity() {
    let (memory, kit, snapshots) = full();
    let all = now(kit.vault.verify(&VerifyOptions::default())).unwrap();
    assert_eq!(all.damaged, []);
    assert_eq!(all.snapshots, 2);
    let (_host, vault) = kit.without_identity(memory);
    assert_eq!(now(vault.verify(&VerifyOptions::default())).unwrap().damaged, []);
    let one = VerifyOptions { snapshot: Some(snapshots[1].0.clone()), ..VerifyOptions::default() };
    assert_eq!(now(vault.verify(&one)).unwrap().snapshots, 1);
    let none = VerifyOptions { snapshot: Some("nothing".into()), ..VerifyOptions::default() };
    assert!(now(vault.verify(&none)).is_err());
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let (memory, kit, snapshots) = full();
    let host_only = VerifyOptions { contents: false, ..VerifyOptions::default() };
    for key in memory.keys() {
        let size = now(kit.vault.store().head(&key)).unwrap().bytes as usize;
        let places: BTreeSet<_> =
            [0, size / 2, size.saturating_sub(1)].into_iter().filter(|n| *n < size).collect();
        for at in places {
            memory.damage(&key, |bytes| bytes[at] ^= 4);
            let found = now(kit.vault.verify(&host_only)).unwrap().damaged;
            assert!(found.iter().any(|damage| damage.object == key), "{key} byte {at} of {size}: {found:?}");
            assert_eq!(found.len(), 1, "{found:?}");
            if key.contains("/packs/") {
                assert!(!found[0].snapshots.is_empty(), "{key}");
            }
            restore_or_name(&kit, &snapshots, &key);
            memory.damage(&key, |bytes| bytes[at] ^= 4);
        }
        memory.damage(&key, |bytes| bytes.push(0));
        let found = now(kit.vault.verify(&host_only)).unwrap().damaged;
        assert!(found.iter().any(|damage| damage.object == key), "{key} grew: {found:?}");
        memory.damage(&key, |bytes| bytes.truncate(size));
    }
    assert_eq!(now(kit.vault.verify(&VerifyOptions::default())).unwrap().damaged, []);
}

/// Restores everything, by a home that has to open the vault first; whatever fails must name the object.
fn restore_or_name(kit: &Kit, snapshots: &[(String, Files)], key: &str) {
    let named = |error: mainstay_engine::Error| {
        assert_eq!(error.kind, Kind::Damaged, "{error}");
        assert!(error.what.contains(key), "{key}: {error}");
    };
    let vault = match now(Vault::open(kit.vault.store().clone(), &kit.keys())) {
        Ok(vault) => vault,
        Err(error) => return named(error.into()),
    };
    let cluster = vault.cluster("shop", "local", "orders");
    let mut failed = 0;
    for (id, files) in snapshots {
        if let Err(error) = compare(&cluster, id, files) {
            named(error);
            failed += 1;
        }
    }
    for object in now(cluster.log_objects("7001", &lane())).unwrap() {
        match now(cluster.read_log(&object)) {
            Ok(LogContent::Segment(data)) => assert_eq!(
                data.bytes,
                entry("1", data.segment.first.offset.low(), data.segment.last.offset.low()).bytes
            ),
            Ok(_) => {}
            Err(error) => {
                named(error.into());
                failed += 1;
            }
        }
    }
    let content = key.contains("/packs/") || key.contains("/log/");
    assert!(!content || failed > 0, "{key} is damaged, and everything was restored");
}

#[test]
fn missing_truncated_and_foreign_objects_are_named() {
    let (memory, kit, snapshots) = full();
    let options = VerifyOptions::default();
    for key in memory.keys() {
        // Nobody can miss these: they come and go.
        if ["leases", "pins", "states", "points", "proofs"].iter().any(|p| key.starts_with(p))
            || key.contains("/log/")
        {
            continue;
        }
        let body = now(kit.vault.store().get(&key)).unwrap();
        now(kit.vault.store().delete(&key)).unwrap();
        let outcome = now(kit.vault.verify(&options)).unwrap();
        assert!(outcome.damaged.iter().any(|damage| damage.object == key), "{key}: {outcome:?}");
        now(kit.vault.store().put(&key, body.slice(..body.len() / 2))).unwrap();
        let outcome = now(kit.vault.verify(&options)).unwrap();
        assert!(outcome.damaged.iter().any(|damage| damage.object == key), "{key}: {outcome:?}");
        now(kit.vault.store().put(&key, body)).unwrap();
    }
    now(kit.vault.store().put("c/shop/local/orders/7001/strange", &b"x"[..])).unwrap();
    let damaged = now(kit.vault.verify(&options)).unwrap().damaged;
    assert_eq!(damaged.len(), 1);
    // A sample reads some of the packs, and all that is small.
    now(kit.vault.store().delete("c/shop/local/orders/7001/strange")).unwrap();
    let some = VerifyOptions { sample: 0.0, ..options };
    let few = now(kit.vault.verify(&some)).unwrap();
    assert!(few.damaged.is_empty() && few.objects < memory.keys().len() as u64);
    drop(snapshots);
}

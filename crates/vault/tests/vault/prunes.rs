//! Pruning: in two phases, by rules, and never what is in use.

use std::time::Duration;

use mainstay_engine::{SnapshotSink, Taken};
use mainstay_model::{Bracket, Instant, Keep};
use mainstay_store::Memory;
use mainstay_vault::{ClusterVault, Error, GoingKind, LogEntry, Pruned, VerifyOptions};

use crate::kit::{Kit, bytes, compare, keep_one, now, sample, snapshot, spec, taken};
use crate::logs::{entry, lane};

pub fn prune(cluster: &ClusterVault) -> Pruned {
    let plan = now(cluster.plan_prune(&keep_one(), Duration::ZERO, Instant::now())).unwrap();
    now(cluster.apply_prune(&plan)).unwrap()
}

#[test]
fn what_is_not_kept_goes_in_the_second_prune() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let cluster = kit.cluster();
    let mut files = sample();
    let first = snapshot(&cluster, &files).unwrap();
    files.get_mut("base/1/1000").unwrap().1 = bytes(77, 3 << 20);
    let second = snapshot(&cluster, &files).unwrap();
    let unique = now(cluster.bytes_unique()).unwrap();
    assert!(unique[&second.id] > 1 << 20, "{unique:?}");

    let one = prune(&cluster);
    assert!(one.marked > 0 && one.objects == 0);
    assert!(now(cluster.snapshots()).unwrap()[0].leaving);
    compare(&cluster, &first.id, &sample()).unwrap();
    let two = prune(&cluster);
    assert_eq!(two.snapshots, 1);
    let left = now(cluster.snapshots()).unwrap();
    assert_eq!(left.iter().map(|r| &r.id).collect::<Vec<_>>(), [&second.id]);
    compare(&cluster, &second.id, &files).unwrap();
    assert!(matches!(now(cluster.open_snapshot(&first.id)), Err(Error::NotFound(_))));
    let verified = now(kit.vault.verify(&VerifyOptions::default())).unwrap();
    assert_eq!((verified.damaged.len(), verified.leftovers), (0, 0));
    assert_eq!(prune(&cluster), Pruned::default());
    assert!(!memory.keys().iter().any(|key| key.starts_with("tombs/")));
}

#[test]
fn pins_grace_and_what_came_into_use_hold_a_snapshot() {
    let kit = Kit::on(Memory::default());
    let cluster = kit.cluster();
    let files = sample();
    let first = snapshot(&cluster, &files).unwrap();
    let second = snapshot(&cluster, &files).unwrap();
    now(cluster.set_pinned(&first.id, true)).unwrap();
    prune(&cluster);
    prune(&cluster);
    assert_eq!(now(cluster.snapshots()).unwrap().len(), 2);
    now(cluster.set_pinned(&first.id, false)).unwrap();
    // Marked, and the grace period is not over.
    prune(&cluster);
    let hour = Duration::from_secs(3600);
    let plan = now(cluster.plan_prune(&keep_one(), hour, Instant::now())).unwrap();
    assert!(plan.mark.is_empty() && plan.delete.is_empty());
    assert_eq!(plan.keep.len(), 1);
    // Planned for deletion, and then pinned.
    let plan = now(cluster.plan_prune(&keep_one(), Duration::ZERO, Instant::now())).unwrap();
    assert_eq!(
        plan.delete.iter().map(|g| (g.kind, &g.what)).collect::<Vec<_>>(),
        [(GoingKind::Snapshot, &first.id)]
    );
    now(cluster.set_pinned(&first.id, true)).unwrap();
    assert_eq!(now(cluster.apply_prune(&plan)).unwrap().objects, 0);
    for record in [first, second] {
        compare(&cluster, &record.id, &files).unwrap();
    }
}

#[test]
fn packs_that_an_attempt_takes_over_stay() {
    let kit = Kit::on(Memory::default());
    let cluster = kit.cluster();
    let files = sample();
    let first = snapshot(&cluster, &files).unwrap();
    let writer = now(cluster.begin("7001", "slow")).unwrap();
    for (spec, content) in files.values() {
        writer.put(spec, &mut &content[..]).unwrap();
    }
    // Another snapshot is the only one to stay, and shares nothing.
    let mut other = crate::kit::Files::new();
    other.insert("x".into(), (spec("x", mainstay_engine::Cut::Whole), bytes(999, 100_000)));
    snapshot(&cluster, &other).unwrap();
    for _ in 0..3 {
        prune(&cluster);
    }
    let record = now(writer.commit(taken(9))).unwrap();
    assert_eq!(record.bytes_new, 0);
    compare(&cluster, &record.id, &files).unwrap();
    // Now it may go.
    for _ in 0..2 {
        prune(&cluster);
    }
    assert!(matches!(now(cluster.open_snapshot(&first.id)), Err(Error::NotFound(_))));
    compare(&cluster, &record.id, &files).unwrap();
    assert_eq!(now(kit.vault.verify(&VerifyOptions::default())).unwrap().damaged, []);
}

/// Plans and applies two prunes, and lets an attempt that takes over what they delete begin and commit behind these of the four steps.
fn prune_around_an_attempt(begun: usize, committed: usize) {
    let kit = Kit::on(Memory::default());
    let cluster = kit.cluster();
    let files = crate::kit::tiny();
    let mut other = crate::kit::Files::new();
    other.insert("x".into(), (spec("x", mainstay_engine::Cut::Whole), bytes(999, 100_000)));
    snapshot(&cluster, &other).unwrap();
    // Finished last, and the older one by its times: it is taken over from, and not kept.
    let writer = now(cluster.begin("7001", "test")).unwrap();
    crate::kit::put_all(&writer, &files).unwrap();
    let older = Taken { at: Bracket::exactly(Instant(0)), ..taken(1) };
    let older = now(writer.commit(older)).unwrap();
    let (mut plan, mut writer, mut record) = (None, None, None);
    for step in 0..=4 {
        match step {
            0 => {}
            1 | 3 => {
                plan = Some(now(cluster.plan_prune(&keep_one(), Duration::ZERO, Instant::now())).unwrap());
            }
            _ => drop(now(cluster.apply_prune(&plan.take().unwrap())).unwrap()),
        }
        if step == begun {
            let begun = now(cluster.begin("7001", "test")).unwrap();
            crate::kit::put_all(&begun, &files).unwrap();
            writer = Some(begun);
        }
        if step == committed {
            record = Some(now(writer.take().unwrap().commit(taken(9))).unwrap());
        }
    }
    let record = record.unwrap();
    // What is marked is not taken over.
    assert_eq!(record.bytes_new == 0, begun < 2, "{begun} to {committed}");
    assert_eq!(
        now(kit.vault.verify(&VerifyOptions::default())).unwrap().damaged,
        [],
        "{begun} to {committed}"
    );
    compare(&cluster, &record.id, &files).unwrap();
    // A prune that was planned while somebody takes over from it leaves it alone.
    let left = now(cluster.snapshots()).unwrap();
    let in_use = begun < 2 && [1, 3].iter().any(|plan| begun < *plan && *plan <= committed);
    assert_eq!(left.iter().any(|r| r.id == older.id), in_use, "{begun} to {committed}");
    for record in left {
        let files = if record.files == 1 { &other } else { &files };
        compare(&cluster, &record.id, files).unwrap();
    }
}

#[test]
fn what_an_attempt_takes_over_stays_whenever_it_begins_and_commits() {
    for begun in 0..4 {
        for committed in begun..=4 {
            prune_around_an_attempt(begun, committed);
        }
    }
}

#[test]
fn a_host_without_the_identity_prunes_as_one_with_it() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let mut files = sample();
    for n in 0..3 {
        files.get_mut("base/1/1000").unwrap().1 = bytes(n, 3 << 20);
        snapshot(&kit.cluster(), &files).unwrap();
    }
    let mut writer = now(kit.cluster().log_writer("7001", &lane(), 1)).unwrap();
    for entry in [LogEntry::Tail(entry("1", 0, 100)), LogEntry::Sealed(entry("1", 0, 100))] {
        now(writer.put(&entry)).unwrap();
    }
    let before = memory.keys().len();
    let left = |memory: &Memory, cluster: &ClusterVault| {
        prune(cluster);
        prune(cluster);
        let mut keys = memory.keys();
        // Of the prune itself.
        keys.retain(|key| !key.starts_with("leases/"));
        keys
    };
    let fork = memory.fork();
    let by_identity = left(&fork, &kit.through(fork.clone()));
    let (_host, vault) = kit.without_identity(memory.clone());
    let by_host = left(&memory, &vault.cluster("shop", "local", "orders"));
    assert_eq!(by_host, by_identity);
    assert!(by_host.len() < before);
    compare(&kit.cluster(), &now(kit.cluster().snapshots()).unwrap()[0].id, &files).unwrap();
}

#[test]
fn log_goes_with_the_snapshots_that_need_it() {
    let kit = Kit::on(Memory::default());
    let cluster = kit.cluster();
    let files = sample();
    let take = |offset| {
        let writer = now(cluster.begin("7001", "test")).unwrap();
        crate::kit::put_all(&writer, &files).unwrap();
        now(writer.commit(taken(offset))).unwrap()
    };
    take(50);
    let mut writer = now(cluster.log_writer("7001", &lane(), 1)).unwrap();
    for first in [0, 100, 200] {
        now(writer.put(&LogEntry::Sealed(entry("1", first, first + 100)))).unwrap();
    }
    let objects = || now(cluster.log_objects("7001", &lane())).unwrap().len();
    prune(&cluster);
    prune(&cluster);
    // The log's times are long past, but the snapshot needs what lies behind its start, and nothing of what lies before.
    assert_eq!(objects(), 3);
    take(150);
    // The log of the last while stays, whatever needs it.
    let long = Keep { log: Duration::from_secs(86_400 * 365 * 90), ..keep_one() };
    for _ in 0..2 {
        let plan = now(cluster.plan_prune(&long, Duration::ZERO, Instant::now())).unwrap();
        now(cluster.apply_prune(&plan)).unwrap();
    }
    assert_eq!(objects(), 3);
    prune(&cluster);
    prune(&cluster);
    assert_eq!(objects(), 2);
    assert_eq!(now(kit.vault.verify(&VerifyOptions::default())).unwrap().damaged, []);
}

#[test]
fn a_damaged_manifest_stops_a_prune() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let record = snapshot(&kit.cluster(), &sample()).unwrap();
    let key = memory.keys().into_iter().find(|key| key.ends_with("/manifest")).unwrap();
    memory.damage(&key, |bytes| bytes[30] ^= 1);
    let cluster = kit.through(memory);
    let plan = now(cluster.plan_prune(&keep_one(), Duration::ZERO, Instant::now()));
    assert!(matches!(plan, Err(Error::Damaged { object, .. }) if object == key));
    let (records, damaged) = now(cluster.snapshots_and_damaged()).unwrap();
    assert_eq!((records.len(), &damaged[0].0), (0, &record.id));
    // A new snapshot is taken all the same, from the start.
    let whole = snapshot(&cluster, &sample()).unwrap();
    assert!(whole.bytes_new > 0);
}

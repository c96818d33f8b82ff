//! What a verification found is known afterwards: a new snapshot takes nothing over from it, and is whole.

use mainstay_model::Instant;
use mainstay_store::{Fault, Faults, Faulty, Memory};
use mainstay_vault::{ClusterVault, SnapshotRecord, SnapshotState, Verified, VerifyOptions};

use crate::kit::{Files, Kit, bytes, compare, now, put_all, snapshot, tiny};

/// Verifies, and leaves word.
fn verify(cluster: &ClusterVault, snapshot: Option<&str>) -> Verified {
    let options = VerifyOptions { snapshot: snapshot.map(ToOwned::to_owned), ..VerifyOptions::default() };
    let began_at = Instant::now();
    let verified = now(cluster.verify(&options)).unwrap();
    now(cluster.record_verified(&options, &verified, began_at)).unwrap();
    verified
}

fn record(cluster: &ClusterVault, id: &str) -> SnapshotRecord {
    now(cluster.snapshots()).unwrap().into_iter().find(|record| record.id == id).unwrap()
}

/// Two snapshots, of which the second has taken over from the first, and a pack of the first that both need.
fn two(kit: &Kit) -> (Files, [String; 2], String) {
    let cluster = kit.cluster();
    let mut files = tiny();
    let first = snapshot(&cluster, &files).unwrap().id;
    let pack = now(cluster.packs_needed(&first)).unwrap().into_keys().next().unwrap();
    files.get_mut("base/1/1000").unwrap().1[0] ^= 1;
    let second = snapshot(&cluster, &files).unwrap().id;
    assert!(now(cluster.packs_needed(&second)).unwrap().contains_key(&pack));
    (files, [first, second], pack)
}

#[test]
fn a_snapshot_after_a_verification_that_found_a_flipped_bit_is_whole() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let cluster = kit.cluster();
    let (files, [first, second], pack) = two(&kit);
    now(cluster.record_proven(&first, Instant::now(), "proof-1")).unwrap();
    assert_eq!(verify(&cluster, None).damaged, []);
    assert_eq!(record(&cluster, &first).state, SnapshotState::Proven);
    assert_eq!(record(&cluster, &second).state, SnapshotState::Intact);
    memory.damage(&pack, |bytes| bytes[100] ^= 1);
    // Whoever looked at one of them only leaves word with all that need the pack.
    let found = verify(&cluster, Some(&second)).damaged;
    assert_eq!((found.len(), &found[0].object), (1, &pack));
    for id in [&first, &second] {
        assert_eq!(record(&cluster, id).state, SnapshotState::Damaged);
    }
    // Said once, however often it is found.
    let keys = memory.keys();
    verify(&cluster, None);
    assert_eq!(memory.keys(), keys);
    let third = snapshot(&cluster, &files).unwrap();
    assert!(!now(cluster.packs_needed(&third.id)).unwrap().contains_key(&pack));
    assert_eq!(verify(&cluster, Some(&third.id)).damaged, []);
    assert_eq!(record(&cluster, &third.id).state, SnapshotState::Intact);
    compare(&cluster, &third.id, &files).unwrap();
    // The next one takes over from that one again.
    let fourth = snapshot(&cluster, &files).unwrap();
    assert_eq!(fourth.bytes_new, 0);
    assert_eq!(verify(&cluster, Some(&fourth.id)).damaged, []);
    // A part of everything takes nothing back, and everything does.
    memory.damage(&pack, |bytes| bytes[100] ^= 1);
    let some = VerifyOptions { sample: 0.0, ..VerifyOptions::default() };
    let verified = now(cluster.verify(&some)).unwrap();
    now(cluster.record_verified(&some, &verified, Instant::now())).unwrap();
    assert_eq!(record(&cluster, &first).state, SnapshotState::Damaged);
    assert_eq!(verify(&cluster, None).damaged, []);
    assert_eq!(record(&cluster, &first).state, SnapshotState::Proven);
    assert_eq!(record(&cluster, &second).state, SnapshotState::Intact);
    assert!(!memory.keys().iter().any(|key| key.contains("/damaged-")));
}

#[test]
fn a_snapshot_after_a_pack_was_lost_or_cut_short_is_whole() {
    for is_gone in [true, false] {
        let memory = Memory::default();
        let kit = Kit::on(memory.clone());
        let cluster = kit.cluster();
        let (files, _, pack) = two(&kit);
        match is_gone {
            true => now(kit.vault.store().delete(&pack)).unwrap(),
            false => memory.damage(&pack, |bytes| bytes.truncate(100)),
        }
        // Nobody has looked yet.
        let third = snapshot(&cluster, &files).unwrap();
        assert_eq!(verify(&cluster, Some(&third.id)).damaged, []);
        compare(&cluster, &third.id, &files).unwrap();
    }
}

#[test]
fn an_attempt_that_took_over_what_is_damaged_does_not_hand_it_on() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let cluster = kit.cluster();
    let (mut files, [first, _], pack) = two(&kit);
    files.get_mut("base/1/1001").unwrap().1 = bytes(77, 5000);
    // Broken off when all of its index was written.
    let faults = Faults::choose(|_, call, key| {
        (call == "create" && key.ends_with("/manifest")).then_some(Fault::Before)
    });
    let broken = kit.through(Faulty::new(memory.clone(), faults));
    let writer = now(broken.begin("7001", "test")).unwrap();
    put_all(&writer, &files).unwrap();
    now(writer.commit(crate::kit::taken(1))).unwrap_err();
    memory.damage(&pack, |bytes| bytes[100] ^= 1);
    assert!(!verify(&cluster, None).damaged.is_empty());
    assert_eq!(record(&cluster, &first).state, SnapshotState::Damaged);
    let last = snapshot(&cluster, &files).unwrap();
    assert!(last.bytes_new > 0);
    assert_eq!(verify(&cluster, Some(&last.id)).damaged, []);
    compare(&cluster, &last.id, &files).unwrap();
}

#[test]
fn a_flipped_bit_of_a_tomb_or_a_state_is_listed() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let cluster = kit.cluster();
    let (files, [first, second], _) = two(&kit);
    now(cluster.record_proven(&first, Instant::now(), "proof-1")).unwrap();
    now(kit.vault.put_proof("shop", "local", "orders", "proof-1", &1)).unwrap();
    verify(&cluster, None);
    crate::prunes::prune(&cluster);
    let places =
        |prefix: &str| memory.keys().into_iter().filter(|key| key.starts_with(prefix)).collect::<Vec<_>>();
    let (tombs, states) = (places("tombs/"), places("states/"));
    assert_eq!((tombs.len(), states.len()), (1, 3));
    for key in tombs.iter().chain(&states) {
        let fork = memory.fork();
        fork.damage(key, |bytes| bytes[60] ^= 1);
        let cluster = kit.through(fork);
        let found = verify(&cluster, None).damaged;
        assert_eq!(found.iter().map(|d| &d.object).collect::<Vec<_>>(), [key]);
        // No snapshot needs them.
        assert_ne!(record(&cluster, &second).state, SnapshotState::Damaged);
        let last = snapshot(&cluster, &files).unwrap().id;
        compare(&cluster, &last, &files).unwrap();
    }
}

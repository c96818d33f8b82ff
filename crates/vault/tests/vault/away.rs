//! A vault whose store cannot be asked: known by this home, and not written to before it was seen to be there.

use std::time::Duration;

use mainstay_store::{Fault, Faults, Faulty, Folder, Limits, Memory, Store};
use mainstay_vault::{Error, Vault};

use crate::kit::{Kit, now, snapshot, tiny};

const TTL: Duration = Duration::from_millis(300);

#[test]
fn a_known_vault_is_gone_on_with_and_seen_before_it_is_written_to() {
    let memory = Memory::default();
    let faulty = Faulty::new(memory.clone(), Faults::choose(|_, _, _| None));
    let store = || Store::with(faulty.clone(), Limits::hasty());
    let home = tempfile::tempdir().unwrap();
    let keys = home.path().join("keys");
    let away = || faulty.set(Faults::choose(|_, _, _| Some(Fault::Before)));
    let back = || faulty.set(Faults::choose(|_, _, _| None));
    // Of one that was never opened nothing is known.
    away();
    assert!(matches!(now(Vault::open_or_known(store(), &[], &keys)), Err(Error::Store(_))));
    back();
    let made = now(Vault::open_or_known(store(), &[], &keys)).unwrap();
    assert!(made.created && made.away.is_none());
    away();
    let known = now(Vault::open_or_known(store(), &[], &keys)).unwrap();
    assert!(matches!(known.away, Some(Error::Store(_))) && !known.created);
    assert_eq!(known.vault.id(), made.vault.id());
    assert!(matches!(now(known.vault.lease("l", "test", TTL)), Err(Error::Store(_))));
    back();
    now(now(known.vault.lease("l", "test", TTL)).unwrap().release()).unwrap();
    snapshot(&known.vault.cluster("shop", "local", "orders"), &tiny()).unwrap();
    assert!(now(Vault::open_or_known(store(), &[], &keys)).unwrap().away.is_none());
}

#[test]
fn nothing_is_made_or_written_where_a_known_vault_is_not() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    // Another vault, and none, where the known one was: all memory stores have one name.
    let other = Memory::default();
    Kit::on(other.clone());
    let empty = Memory::default();
    let known = |memory: &Memory| {
        now(Vault::open_or_known(Store::with(memory.clone(), Limits::hasty()), &[], &kit.keys()))
    };
    assert!(
        matches!(known(&other), Err(Error::WrongKey { .. } | Error::NoKeys { .. })),
        "{:?}",
        known(&other)
    );
    let opened = known(&empty).unwrap();
    assert!(matches!(opened.away, Some(Error::NoVault { .. })));
    assert!(matches!(now(opened.vault.lease("l", "test", TTL)), Err(Error::NoVault { .. })));
    assert!(empty.keys().is_empty());
    assert!(known(&memory).unwrap().away.is_none());
}

#[test]
fn another_is_made_where_a_known_one_is_gone_only_when_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let (root, keys) = (home.path().join("vault"), home.path().join("keys"));
    let store = || Store::with(Folder::open(root.clone()).unwrap(), Limits::hasty());
    let first = now(Vault::open_or_create(store(), &[], &keys)).unwrap();
    assert!(first.created);
    // Unmounted, with and without an empty mountpoint.
    std::fs::rename(&root, home.path().join("aside")).unwrap();
    for is_mountpoint_there in [false, true] {
        if is_mountpoint_there {
            std::fs::create_dir(&root).unwrap();
        }
        let refused = now(Vault::open_or_create(store(), &[], &keys));
        assert!(matches!(refused, Err(Error::NoVault { .. })), "{refused:?}");
        assert!(matches!(now(Vault::open(store(), &keys)), Err(Error::NoVault { .. })));
        assert!(matches!(now(first.vault.lease("l", "test", TTL)), Err(Error::Store(_))));
        assert_eq!(root.exists(), is_mountpoint_there);
    }
    // A process that began meanwhile goes on by itself when the disk is mounted.
    let spooling = now(Vault::open_or_known(store(), &[], &keys)).unwrap();
    assert!(matches!(spooling.away, Some(Error::NoVault { .. })));
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(home.path().join("aside"), &root).unwrap();
    for vault in [&first.vault, &spooling.vault] {
        now(now(vault.lease("l", "test", TTL)).unwrap().release()).unwrap();
    }
    assert!(!now(Vault::open_or_create(store(), &[], &keys)).unwrap().created);

    std::fs::rename(&root, home.path().join("aside")).unwrap();
    let second = now(Vault::open_or_init(store(), &[], &keys)).unwrap();
    assert!(second.created && second.vault.id() != first.vault.id());
    // To whom the first is, the second is a stranger in its place.
    assert!(matches!(now(first.vault.lease("l", "test", TTL)), Err(Error::Store(_))));
}

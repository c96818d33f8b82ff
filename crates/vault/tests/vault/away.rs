//! A vault whose store cannot be asked: known by this home, and not written to before it was seen to be there.

use std::time::Duration;

use mainstay_store::{Fault, Faults, Faulty, Limits, Memory, Store};
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

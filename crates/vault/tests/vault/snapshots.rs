//! Snapshots: written, found, read, compared.

use std::os::unix::fs::MetadataExt;

use mainstay_engine::{Cut, Quiet, SnapshotSink, SnapshotSource};
use mainstay_store::{Counting, Folder, Memory};
use mainstay_vault::{Error, SnapshotState, Vault};

use crate::kit::{Kit, PAGE, bytes, compare, now, sample, snapshot, spec, taken};

#[test]
fn a_snapshot_is_restored_bit_for_bit_from_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::on(Folder::open(folder.path().to_owned()).unwrap());
    let files = sample();
    let record = snapshot(&kit.cluster(), &files).unwrap();
    assert_eq!(record.files, files.len() as u64);
    assert_eq!(record.bytes_total, files.values().map(|(_, c)| c.len() as u64).sum::<u64>());
    assert_eq!(record.state, SnapshotState::Stored);
    compare(&kit.cluster(), &record.id, &files).unwrap();
    let listed = now(kit.cluster().snapshots()).unwrap();
    assert_eq!(listed, [record]);
}

#[test]
fn a_second_snapshot_stores_only_what_changed() {
    let kit = Kit::on(Memory::default());
    let mut files = sample();
    let first = snapshot(&kit.cluster(), &files).unwrap();
    let again = snapshot(&kit.cluster(), &files).unwrap();
    assert_eq!((again.bytes_new, again.bytes_read), (0, first.bytes_read));
    // One page here whose LSN (its first eight bytes) stays as it was, one that became zeros, and bytes that shift all that follow.
    let page = PAGE as usize;
    files.get_mut("base/1/1000").unwrap().1[page * 10 + 10] ^= 1;
    files.get_mut("base/1/1000").unwrap().1[page * 20..page * 21].fill(0);
    files.get_mut("dump.rdb").unwrap().1.splice(500_000..500_000, bytes(9, 1000));
    let third = snapshot(&kit.cluster(), &files).unwrap();
    assert!(third.bytes_new >= 8192 && third.bytes_new < 8192 + 600_000, "{}", third.bytes_new);
    for (record, files) in [(first, sample()), (again, sample()), (third, files)] {
        compare(&kit.cluster(), &record.id, &files).unwrap();
    }
}

#[test]
fn clusters_share_nothing() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let files = sample();
    let orders = snapshot(&kit.cluster(), &files).unwrap();
    let cluster = kit.vault.cluster("shop", "local", "stock");
    let stock = snapshot(&cluster, &files).unwrap();
    assert_eq!(stock.bytes_new, orders.bytes_new);
    for key in memory.keys().iter().filter(|key| key.starts_with("c/shop/local/orders/")) {
        now(kit.vault.store().delete(key)).unwrap();
    }
    compare(&cluster, &stock.id, &files).unwrap();
}

#[test]
fn restored_holes_are_holes() {
    let kit = Kit::on(Memory::default());
    let mut files = sample();
    let mut content = vec![0; 8 << 20];
    content[4 << 20..(4 << 20) + 8192].copy_from_slice(&bytes(5, 8192));
    files.insert("sparse".into(), (spec("sparse", Cut::Pages(PAGE)), content));
    let record = snapshot(&kit.cluster(), &files).unwrap();
    let reader = now(kit.cluster().open_snapshot(&record.id)).unwrap();
    let disk = kit.home.path().join("sparse");
    reader.place(&[("sparse".into(), disk.clone())], None, 2, &Quiet).unwrap();
    let metadata = std::fs::metadata(&disk).unwrap();
    assert_eq!(metadata.len(), 8 << 20);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    // Nothing that exists is written over.
    assert!(reader.place(&[("sparse".into(), disk)], None, 2, &Quiet).is_err());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let kit = Kit::on(Memory::default());
    let writer = now(kit.cluster().begin("7001", "test")).unwrap();
    for path in ["", "/etc/passwd", "../x", "a//b", "a\nb"] {
        assert!(writer.put(&spec(path, Cut::Whole), &mut &b"x"[..]).is_err(), "{path:?}");
    }
    // A file that could not be stored makes the snapshot none.
    assert!(matches!(now(writer.commit(taken(1))), Err(Error::Invalid(_))));
    let writer = now(kit.cluster().begin("7001", "test")).unwrap();
    writer.put(&spec("a", Cut::Whole), &mut &b"x"[..]).unwrap();
    assert!(writer.put(&spec("a", Cut::Whole), &mut &b"x"[..]).is_err());
    let writer = now(kit.cluster().begin("7002", "test")).unwrap();
    assert!(matches!(now(writer.commit(taken(1))), Err(Error::Invalid(_))));
    assert!(now(kit.cluster().snapshots()).unwrap().is_empty());
    assert!(matches!(now(kit.cluster().open_snapshot("nothing")), Err(Error::NotFound(_))));
}

#[test]
fn an_attempt_that_was_broken_off_is_taken_up() {
    let memory = Memory::default();
    let (counting, counts) = Counting::new(memory.clone());
    let kit = Kit::on(memory);
    let cluster = kit.through(counting);
    let mut files = sample();
    for n in 0..4 {
        files
            .insert(format!("big{n}"), (spec(&format!("big{n}"), Cut::Pages(PAGE)), bytes(50 + n, 30 << 20)));
    }
    let writer = now(cluster.begin("7001", "test")).unwrap();
    crate::kit::put_all(&writer, &files).unwrap();
    // Whatever was durable by then, and enough for a part of an index.
    let started = std::time::Instant::now();
    while counts.bytes_written.load(std::sync::atomic::Ordering::SeqCst) < 32 << 20 {
        assert!(started.elapsed().as_secs() < 60, "no pack was written");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    now(writer.abort());
    let whole: u64 = files.values().map(|(_, content)| content.len() as u64).sum();
    let record = snapshot(&cluster, &files).unwrap();
    assert!(record.bytes_new < whole, "nothing was taken up");
    compare(&cluster, &record.id, &files).unwrap();
}

#[test]
fn homes_without_keys_are_refused_and_hosts_cannot_read() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let files = sample();
    let record = snapshot(&kit.cluster(), &files).unwrap();
    let store = || mainstay_store::Store::with(memory.clone(), mainstay_store::Limits::hasty());

    // Neither identity nor bundle.
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(now(Vault::open(store(), empty.path())), Err(Error::NoKeys { .. })));

    // The identity alone makes a host.
    let second = tempfile::tempdir().unwrap();
    std::fs::copy(kit.keys().join("identity.txt"), second.path().join("identity.txt")).unwrap();
    let vault = now(Vault::open(store(), second.path())).unwrap();
    assert!(vault.can_restore());
    compare(&vault.cluster("shop", "local", "orders"), &record.id, &files).unwrap();

    // The bundle alone backs up and lists, and does not read.
    let (_host, vault) = kit.without_identity(memory.clone());
    let cluster = vault.cluster("shop", "local", "orders");
    assert_eq!(now(cluster.snapshots()).unwrap().len(), 1);
    let second = snapshot(&cluster, &files).unwrap();
    assert_eq!(second.bytes_new, 0);
    let reader = now(cluster.open_snapshot(&record.id)).unwrap();
    assert_eq!(reader.files().unwrap().len(), files.len());
    let error = reader.open("backup_label").map(drop).unwrap_err();
    assert_eq!(error.kind, mainstay_engine::Kind::Refused);
    assert!(error.hint.is_some());

    // Another identity; another vault's bundle.
    let other = Kit::on(Memory::default());
    assert!(matches!(now(Vault::open(store(), &other.keys())), Err(Error::WrongKey { .. })));
    let wrong = tempfile::tempdir().unwrap();
    let place = wrong.path().join(kit.vault.id());
    std::fs::create_dir(&place).unwrap();
    let strange = std::fs::read_to_string(other.keys().join(other.vault.id()).join("host.key")).unwrap();
    std::fs::write(place.join("host.key"), strange.replace(other.vault.id(), kit.vault.id())).unwrap();
    assert!(matches!(now(Vault::open(store(), wrong.path())), Err(Error::WrongKey { .. })));

    // Other recipients than the vault's.
    let asked = vec![other.vault.recipients()[0].clone()];
    assert!(matches!(now(Vault::open_or_create(store(), &asked, &kit.keys())), Err(Error::Invalid(_))));
    assert!(matches!(now(Vault::create(store(), &[], &kit.keys())), Err(Error::VaultExists { .. })));
    let again = now(Vault::open_or_create(store(), &[], &kit.keys())).unwrap();
    assert!(!again.created && again.made_identity.is_none());
}

//! Logs: written, told by names alone, read again, cut where a successor began.

use std::time::Duration;

use bytes::Bytes;
use mainstay_engine::{Segment, TimeMark};
use mainstay_model::{Bracket, Branch, Epoch, Instant, Lane, Place};
use mainstay_store::{Fault, Faults, Faulty, Memory};
use mainstay_vault::{
    ClusterVault, Error, LogBytes, LogContent, LogEntry, LogKind, LogObject, LogWriter, VerifyOptions,
    surviving,
};

use crate::kit::{Kit, bytes, now};

const TTL: Duration = Duration::from_millis(300);

pub fn lane() -> Lane {
    Lane::new("wal")
}

pub fn entry(epoch: &str, first: u64, last: u64) -> LogBytes {
    let time = |offset: u64| Bracket::exactly(Instant(offset as i64 * 1_000_000));
    let place = |offset| Place::new(epoch, offset);
    LogBytes {
        segment: Segment { first: place(first), last: place(last), bracket: time(first).union(time(last)) },
        times: (first + 1..=last).map(|n| TimeMark { offset: n.into(), at: time(n) }).collect(),
        carry: format!("at {first}"),
        bytes: bytes(7, 10_000)[first as usize..last as usize].to_vec().into(),
    }
}

fn put(writer: &mut LogWriter, entry: LogEntry) -> LogObject {
    now(writer.put(&entry)).unwrap()
}

/// All that is read of what survives: (kind, first, last, bytes are right).
fn read(cluster: &ClusterVault) -> Vec<(LogKind, u64, u64)> {
    let mut found = Vec::new();
    for object in surviving(&now(cluster.log_objects("7001", &lane())).unwrap()) {
        match now(cluster.read_log(&object)).unwrap() {
            LogContent::Segment(data) => {
                let (first, last) = (data.segment.first.offset.low(), data.segment.last.offset.low());
                assert_eq!(data.bytes, bytes(7, 10_000)[first as usize..last as usize]);
                assert_eq!(data.carry, format!("at {first}"));
                assert_eq!(data.times.last().unwrap().offset.low(), last);
                found.push((object.kind, first, last));
            }
            _ => {
                found.push((object.kind, object.segment.first.offset.low(), object.segment.last.offset.low()))
            }
        }
    }
    found
}

#[test]
fn a_log_is_told_by_its_names_and_read_again() {
    let kit = Kit::on(Memory::default());
    let cluster = kit.cluster();
    let lease = now(cluster.lane_lease("7001", &lane(), "test", TTL)).unwrap();
    let mut writer = now(cluster.log_writer("7001", &lane(), lease.generation())).unwrap();
    put(&mut writer, LogEntry::Sealed(entry("1", 50, 100)));
    put(&mut writer, LogEntry::Tail(entry("1", 100, 200)));
    put(&mut writer, LogEntry::Tail(entry("1", 200, 250)));
    put(&mut writer, LogEntry::Sealed(entry("1", 100, 240)));
    let at = Place::new("1", 250);
    put(&mut writer, LogEntry::Beat { at: at.clone(), time: Bracket::exactly(Instant(5)) });
    put(&mut writer, LogEntry::Beat { at: at.clone(), time: Bracket::exactly(Instant(6)) });
    let branch = Branch { epoch: Epoch("2".into()), parent: Some(at), first: 250_u64.into() };
    let history = Some(Bytes::from_static(b"1\t0/FA\tno recovery target specified\n"));
    put(
        &mut writer,
        LogEntry::Branch {
            branch: branch.clone(),
            time: Bracket::exactly(Instant(7)),
            history: history.clone(),
        },
    );
    put(&mut writer, LogEntry::Tail(entry("2", 250, 300)));
    use LogKind::{Branch as B, Sealed, Tail};
    let expect = [(Sealed, 50, 100), (Tail, 200, 250), (Sealed, 100, 240), (B, 250, 250), (Tail, 250, 300)];
    assert_eq!(read(&cluster), expect);
    // What others stand for goes, and nothing of it is missed.
    assert_eq!(now(writer.retire()).unwrap(), 3);
    assert_eq!(read(&cluster), expect);
    assert_eq!(now(cluster.lanes("7001")).unwrap(), [lane()]);
    let objects = now(cluster.log_objects("7001", &lane())).unwrap();
    match now(cluster.read_log(&objects[3])).unwrap() {
        LogContent::Branch { branch: b, history: h } => assert_eq!((b, h), (branch, history)),
        other => panic!("{other:?}"),
    }
    let verified = now(cluster.verify(&VerifyOptions::default())).unwrap();
    assert_eq!((verified.damaged.len(), verified.objects), (0, 5));
    // One that lasts is missed when it is not there, by what names it.
    let gone = &objects[2];
    assert_eq!(gone.kind, Sealed);
    now(cluster.vault().store().delete(&gone.key)).unwrap();
    let damaged = now(cluster.verify(&VerifyOptions::default())).unwrap().damaged;
    assert!(damaged.iter().any(|d| d.object.ends_with(&gone.tag)), "{damaged:?}");
}

#[test]
fn a_beat_stays_until_something_says_more_of_time() {
    let kit = Kit::on(Memory::default());
    let cluster = kit.cluster();
    let lease = now(cluster.lane_lease("7001", &lane(), "test", TTL)).unwrap();
    let mut writer = now(cluster.log_writer("7001", &lane(), lease.generation())).unwrap();
    let timeless = |first, last| {
        let mut log = entry("1", first, last);
        log.segment.bracket = Bracket { earliest: Instant::MIN, latest: Instant::MAX };
        log
    };
    put(&mut writer, LogEntry::Tail(entry("1", 0, 10)));
    let beat_s = 50;
    let time = Bracket::exactly(Instant(beat_s * 1_000_000));
    put(&mut writer, LogEntry::Beat { at: Place::new("1", 10), time });
    put(&mut writer, LogEntry::Tail(timeless(10, 20)));
    // Its times are all of what came before the beat.
    put(&mut writer, LogEntry::Sealed(entry("1", 0, 20)));
    assert_eq!(now(writer.retire()).unwrap(), 2, "the tails");
    put(&mut writer, LogEntry::Tail(entry("1", 20, 60)));
    assert_eq!(now(writer.retire()).unwrap(), 1, "the beat");
    assert_eq!(read(&cluster), [(LogKind::Sealed, 0, 20), (LogKind::Tail, 20, 60)]);
}

#[test]
fn a_zombie_is_cut_where_its_successor_began() {
    let kit = Kit::on(Memory::default());
    let cluster = kit.cluster();
    let lease = now(cluster.lane_lease("7001", &lane(), "first", TTL)).unwrap();
    let mut zombie = now(cluster.log_writer("7001", &lane(), lease.generation())).unwrap();
    put(&mut zombie, LogEntry::Tail(entry("1", 0, 100)));
    // It was taken for dead, and does not know yet.
    drop(lease);
    let second = now(cluster.lane_lease("7001", &lane(), "second", TTL)).unwrap();
    assert!(second.generation() > zombie.generation());
    let mut writer = now(cluster.log_writer("7001", &lane(), second.generation())).unwrap();
    put(&mut writer, LogEntry::Tail(entry("1", 100, 150)));
    put(&mut zombie, LogEntry::Tail(entry("1", 100, 120)));
    put(&mut zombie, LogEntry::Sealed(entry("1", 0, 120)));
    now(zombie.retire()).unwrap();
    assert_eq!(read(&cluster), [(LogKind::Sealed, 0, 100), (LogKind::Tail, 100, 150)]);
    // Once it looks, it cannot begin again.
    let again = now(cluster.log_writer("7001", &lane(), zombie.generation()));
    assert!(matches!(again, Err(Error::LeaseLost { .. })));
}

#[test]
fn an_entry_of_unknown_outcome_is_there_once() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let faulty = Faulty::new(memory, Faults::every(u64::MAX, Fault::Before));
    let cluster = kit.through(faulty.clone());
    let mut writer = now(cluster.log_writer("7001", &lane(), 1)).unwrap();
    put(&mut writer, LogEntry::Tail(entry("1", 0, 100)));
    // Every attempt of this one arrives, and says that it did not.
    faulty.set(Faults::every(1, Fault::After));
    let tail = LogEntry::Tail(entry("1", 100, 200));
    assert!(now(writer.put(&tail)).is_err());
    faulty.set(Faults::every(3, Fault::After));
    put(&mut writer, tail);
    put(&mut writer, LogEntry::Tail(entry("1", 200, 300)));
    faulty.set(Faults::every(u64::MAX, Fault::Before));
    assert_eq!(
        read(&cluster),
        [(LogKind::Tail, 0, 100), (LogKind::Tail, 100, 200), (LogKind::Tail, 200, 300)]
    );
    assert!(now(cluster.verify(&VerifyOptions::default())).unwrap().damaged.is_empty());
}

#[test]
fn one_at_a_time_holds_a_lease() {
    let kit = Kit::on(Memory::default());
    let vault = &kit.vault;
    let lease = now(vault.lease("snapshots.orders", "me", TTL)).unwrap();
    assert!(
        matches!(now(vault.lease("snapshots.orders", "you", TTL)), Err(Error::Held { holder, .. }) if holder == "me")
    );
    for _ in 0..3 {
        now(lease.beat()).unwrap();
    }
    assert!(!lease.lost());
    let generation = lease.generation();
    now(lease.release()).unwrap();
    let next = now(vault.lease("snapshots.orders", "you", TTL)).unwrap();
    assert_eq!(next.generation(), generation + 1);
    // Old beats do not pile up.
    assert!(now(vault.store().list("leases/snapshots.orders")).unwrap().len() <= 3);

    // Sixteen at once: one wins.
    drop(next);
    let tries: Vec<_> = (0..16)
        .map(|n| {
            let vault = vault.clone();
            std::thread::spawn(move || {
                now(vault.lease("race", &format!("racer {n}"), Duration::from_secs(30)))
            })
        })
        .collect();
    let outcomes: Vec<_> = tries.into_iter().map(|racer| racer.join().unwrap()).collect();
    let winners: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(winners.len(), 1);
    assert!(outcomes.iter().all(|o| o.is_ok() || matches!(o, Err(Error::Held { .. }))));
}

#[test]
fn a_holder_that_was_taken_for_dead_is_told() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let long = Duration::from_secs(600);
    let lease = now(kit.vault.lease("one", "first", long)).unwrap();
    // Somebody elsewhere, who saw no beat, took over.
    let key = format!("leases/one/{:08x}/{:08x}", lease.generation() + 1, 0);
    now(kit.vault.store().put(&key, Bytes::from_static(b"{}"))).unwrap();
    assert!(matches!(now(lease.beat()), Err(Error::LeaseLost { .. })));
    assert!(lease.lost());
    // What it says cannot be read, and it does not beat: after its time it is over.
    let next = now(kit.vault.lease("one", "third", TTL)).unwrap();
    assert_eq!(next.generation(), lease.generation() + 2);
}

#[test]
fn points_and_proofs_are_signed_and_found() {
    let memory = Memory::default();
    let kit = Kit::on(memory.clone());
    let vault = &kit.vault;
    for n in 0..3 {
        now(vault.put_point("shop", "local", "all", &format!("p{n}"), &serde_json::json!({"n": n}))).unwrap();
    }
    let twice = now(vault.put_point("shop", "local", "all", "p1", &serde_json::json!({"n": 9})));
    assert!(matches!(twice, Err(Error::Store(e)) if e.kind == mainstay_store::Kind::Exists));
    let points: Vec<(String, serde_json::Value)> = now(vault.points("shop", "local", "all")).unwrap();
    assert_eq!(points.len(), 3);
    assert_eq!(points[2].1["n"], 2);
    assert_eq!(now(vault.point_ids("shop", "local", "all")).unwrap(), ["p0", "p1", "p2"]);
    let missing = now(vault.point::<serde_json::Value>("shop", "local", "all", "p9"));
    assert!(matches!(missing, Err(Error::NotFound(_))));
    now(vault.delete_point("shop", "local", "all", "p0")).unwrap();
    now(vault.put_proof("shop", "local", "orders", "x", &"fine")).unwrap();
    assert_eq!(
        now(vault.proofs::<String>("shop", "local", "orders")).unwrap(),
        [("x".into(), "fine".into())]
    );
    // One point under another's name is no point.
    let body = now(vault.store().get("points/shop/local/all/p1")).unwrap();
    now(vault.store().put("points/shop/local/all/p2", body)).unwrap();
    let moved = now(vault.point::<serde_json::Value>("shop", "local", "all", "p2"));
    assert!(matches!(moved, Err(Error::Damaged { .. })));
}

//! Restores that take longer than what they read stays: tails are sealed and deleted under them.

use std::time::Duration;

use mainstay_engine::{Kind, LogSource, Segment, SegmentData};
use mainstay_model::{Bracket, Place};
use mainstay_recovery::catalogue::Catalogue;
use mainstay_recovery::follow::{Follower, Until};
use mainstay_recovery::log::StoredLog;
use mainstay_vault::{LogBytes, LogEntry, LogKind, LogObject};

use crate::fake::{RECORD, lane};
use crate::lab::*;

/// The log behind the first snapshot, as a restore would read it: planned, and nothing of it read yet.
async fn planned(lab: &Lab) -> StoredLog {
    let catalogue = Catalogue::load(&lab.of.vault).await.unwrap();
    let life = &catalogue.past.lives[0];
    let stretch = life.stretch(&lane(), &life.snapshots[0]).unwrap();
    catalogue.log(0, [(lane(), stretch)].into()).await.unwrap()
}

fn read(log: &StoredLog, index: usize) -> mainstay_engine::Result<SegmentData> {
    log.read(&lane(), index)
}

async fn objects(lab: &Lab) -> Vec<LogObject> {
    lab.of.vault.log_objects("life1", &lane()).await.unwrap()
}

/// Many tails, and what is in them.
async fn tails() -> (Lab, Vec<SegmentData>) {
    let lab = Lab::new().await;
    lab.write(0, 3);
    lab.snapshot().await;
    // One follower, so that all of it is of one generation, and of one file of the spool, so that nothing is sealed yet.
    let follower = Follower::start(lab.of.clone(), follow_options());
    for round in 0..10 {
        lab.write(round * 10, 5);
        follower.wait_until(&Until::Now, Duration::from_secs(60)).await.unwrap();
    }
    follower.stop().await;
    let log = planned(&lab).await;
    let data: Vec<_> = (0..log.segments(&lane()).len()).map(|n| read(&log, n).unwrap()).collect();
    assert!(data.len() >= 4, "only {} tails", data.len());
    (lab, data)
}

/// Seals the stretch between two places, and deletes the tails within what is sealed.
async fn seal(lab: &Lab, data: &[SegmentData], from: u64, to: u64) {
    let all: Vec<u8> = data.iter().flat_map(|data| data.bytes.to_vec()).collect();
    let begin = data[0].segment.first.offset.low();
    let within = |n: u64| usize::try_from(n - begin).unwrap();
    let place = |offset| Place::new(data[0].segment.first.epoch.0.clone(), offset);
    let times: Vec<_> = data.iter().flat_map(|data| data.times.clone()).collect();
    let bracket = data.iter().map(|d| d.segment.bracket).reduce(Bracket::union).unwrap();
    let entry = LogBytes {
        segment: Segment { first: place(from), last: place(to), bracket },
        times: times.into_iter().filter(|m| m.offset.low() > from && m.offset.low() <= to).collect(),
        carry: String::new(),
        bytes: all[within(from)..within(to)].to_vec().into(),
    };
    let generation = objects(lab).await.last().unwrap().generation;
    let mut writer = lab.of.vault.log_writer("life1", &lane(), generation).await.unwrap();
    writer.put(&LogEntry::Sealed(entry)).await.unwrap();
    // The follower's own way goes tail by tail; one that straddles two sealed ones it keeps. Here that goes as well.
    let objects = objects(lab).await;
    let sealed: Vec<_> = objects.iter().filter(|o| o.kind == LogKind::Sealed).collect();
    let covers =
        |n: u64| sealed.iter().any(|s| s.segment.first.offset.low() <= n && n < s.segment.last.offset.low());
    for tail in objects.iter().filter(|o| o.kind == LogKind::Tail) {
        let (first, last) = (tail.segment.first.offset.low(), tail.segment.last.offset.low());
        if (first..last).all(covers) {
            lab.vault.store().delete(&tail.key).await.unwrap();
        }
    }
}

fn assert_same(found: &SegmentData, expected: &SegmentData) {
    assert_eq!((&found.segment, &found.times), (&expected.segment, &expected.times));
    assert_eq!(found.bytes, expected.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tails_that_were_sealed_and_deleted_are_read_from_what_stands_for_them() {
    let (lab, data) = tails().await;
    let log = planned(&lab).await;
    let (begin, end) = (data[0].segment.first.offset.low(), data.last().unwrap().segment.last.offset.low());
    // The first half ends in the midst of a tail, at the end of a record.
    let straddled = &data[data.len() / 2].segment;
    let middle = straddled.first.offset.low() + RECORD;
    assert!(middle < straddled.last.offset.low());
    seal(&lab, &data, begin, middle).await;
    assert_same(&read(&log, 0).unwrap(), &data[0]);
    // What was listed for the first one does not tell of this.
    seal(&lab, &data, middle, end).await;
    assert!(objects(&lab).await.iter().all(|object| object.kind != LogKind::Tail));
    for (index, expected) in data.iter().enumerate() {
        assert_same(&read(&log, index).unwrap(), expected);
    }
    // Whoever plans now reads what stays.
    let now = planned(&lab).await;
    let segments = now.segments(&lane());
    assert_eq!(segments.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_takes_what_stays_where_it_can_choose() {
    let (lab, data) = tails().await;
    let (begin, end) = (data[0].segment.first.offset.low(), data.last().unwrap().segment.last.offset.low());
    let tails: Vec<_> = objects(&lab).await;
    let bodies: Vec<_> = futures::future::join_all(tails.iter().map(|o| lab.vault.store().get(&o.key))).await;
    seal(&lab, &data, begin, end).await;
    // All tails are there still.
    for (object, body) in tails.iter().zip(bodies) {
        lab.vault.store().put(&object.key, body.unwrap()).await.unwrap();
    }
    let log = planned(&lab).await;
    assert_eq!(log.segments(&lane()).len(), 1);
    // While both are there, either may be damaged.
    let objects = objects(&lab).await;
    let sealed = objects.iter().find(|object| object.kind == LogKind::Sealed).unwrap();
    lab.vault.store().put(&sealed.key, &b"not what was written"[..]).await.unwrap();
    let all: Vec<u8> = data.iter().flat_map(|data| data.bytes.to_vec()).collect();
    assert_eq!(read(&log, 0).unwrap().bytes, all);
    lab.vault
        .store()
        .delete(&objects.iter().find(|o| o.segment == data[2].segment).unwrap().key)
        .await
        .unwrap();
    let error = read(&planned(&lab).await, 0).unwrap_err();
    assert!(error.what.contains(&sealed.key) && error.what.contains("not those"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_that_nothing_stands_for_is_named() {
    let (lab, data) = tails().await;
    let log = planned(&lab).await;
    let gone = objects(&lab).await.into_iter().find(|o| o.segment == data[1].segment).unwrap();
    lab.vault.store().delete(&gone.key).await.unwrap();
    let error = read(&log, 1).unwrap_err();
    assert_eq!(error.kind, Kind::Damaged);
    assert!(error.what.contains(&gone.key), "{error}");
    assert_same(&read(&log, 2).unwrap(), &data[2]);
}

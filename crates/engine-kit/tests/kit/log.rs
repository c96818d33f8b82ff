//! The log in memory.

use bytes::Bytes;
use mainstay_engine::{Chunk, Kind, LogSink, LogSource, TimeMark};
use mainstay_engine_kit::memory::MemoryLog;
use mainstay_model::{Bracket, Branch, Epoch, Instant, Lane, Offset, Place};

fn lane() -> Lane {
    Lane::new("main")
}

fn chunk(epoch: &str, at: u64, bytes: &'static str, carry: bool) -> Chunk {
    let time = Bracket::exactly(Instant(i64::try_from(at).unwrap()));
    Chunk {
        at: Place::new(epoch, at),
        bytes: Bytes::from_static(bytes.as_bytes()),
        times: vec![TimeMark { offset: (at + bytes.len() as u64).into(), at: time }],
        carry: carry.then(|| format!("state at {at}")),
    }
}

fn branch(epoch: &str, parent: (&str, u64), first: u64) -> Branch {
    Branch { epoch: Epoch(epoch.into()), parent: Some(Place::new(parent.0, parent.1)), first: first.into() }
}

#[tokio::test]
async fn gaps_overlaps_and_unknown_parents_are_refused() {
    let log = MemoryLog::new();
    let sink = log.sink(&lane(), &Place::new("1", 10));
    let invalid =
        async |result: mainstay_engine::Result<()>| assert_eq!(result.unwrap_err().kind, Kind::Invalid);
    invalid(sink.append(chunk("1", 11, "gap", true)).await).await;
    invalid(sink.append(chunk("1", 10, "no carry", false)).await).await;
    sink.append(chunk("1", 10, "abcde", true)).await.unwrap();
    invalid(sink.append(chunk("1", 12, "overlap", true)).await).await;
    invalid(sink.append(chunk("2", 15, "another epoch", true)).await).await;
    let mut late = chunk("1", 15, "late", true);
    late.times[0].offset = Offset(99);
    invalid(sink.append(late).await).await;
    invalid(sink.branch(branch("2", ("1", 16), 16), None).await).await;
    invalid(sink.branch(branch("2", ("7", 12), 12), None).await).await;
    invalid(sink.branch(branch("2", ("1", 9), 9), None).await).await;
    log.set_full(&lane(), true);
    assert_eq!(sink.append(chunk("1", 15, "full", true)).await.unwrap_err().kind, Kind::SpoolFull);
}

#[tokio::test]
async fn what_was_not_synced_is_lost_with_its_link() {
    let log = MemoryLog::new();
    let sink = log.sink(&lane(), &Place::new("1", 0));
    sink.append(chunk("1", 0, "abc", true)).await.unwrap();
    assert_eq!(sink.sync().await.unwrap(), Place::new("1", 3));
    sink.append(chunk("1", 3, "def", true)).await.unwrap();
    assert_eq!(log.source(0).segments(&lane()).last().unwrap().last, Place::new("1", 3));
    assert_eq!(log.durable(&lane()), Some(Place::new("1", 3)));
    let sink = log.sink(&lane(), &Place::new("1", 3));
    sink.append(chunk("1", 3, "xyz!", false)).await.unwrap();
    sink.sync().await.unwrap();
    assert_eq!(log.bytes(&lane()), b"abcxyz!");
    let before = sink.before(&Place::new("1", 5)).await.unwrap().unwrap();
    assert_eq!((before.at, &before.bytes[..]), (Place::new("1", 0), &b"abcxy"[..]));
    assert!(sink.before(&Place::new("1", 0)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_branch_ends_what_is_past_its_parent() {
    let log = MemoryLog::new();
    let sink = log.sink(&lane(), &Place::new("1", 0));
    for at in [0, 4, 8] {
        sink.append(chunk("1", at, "abcd", true)).await.unwrap();
    }
    sink.branch(branch("2", ("1", 6), 6), Some(Bytes::from_static(b"history"))).await.unwrap();
    sink.append(chunk("2", 6, "new", true)).await.unwrap();
    sink.sync().await.unwrap();
    assert_eq!(log.bytes(&lane()), b"abcdabnew");
    assert_eq!(log.ended_bytes(&lane()), 6);
    let source = log.source(0);
    let places: Vec<_> = source.segments(&lane()).into_iter().map(|s| (s.first, s.last)).collect();
    let at = Place::new;
    assert_eq!(places, [(at("1", 0), at("1", 4)), (at("1", 4), at("1", 6)), (at("2", 6), at("2", 9))]);
    let read = source.read(&lane(), 1).unwrap();
    assert_eq!((read.carry.as_str(), &read.bytes[..]), ("state at 4", &b"ab"[..]));
    assert_eq!(source.branches(&lane())[0].1.as_deref(), Some(&b"history"[..]));
    // The same epoch told again, with where it came from: no harm.
    sink.branch(branch("2", ("1", 6), 6), None).await.unwrap();
    assert_eq!(log.bytes(&lane()).len(), 9);
    // An idle source moves the end on; only at the end.
    sink.beat(&at("2", 9), Bracket::exactly(Instant(500))).await.unwrap();
    sink.beat(&at("2", 8), Bracket::exactly(Instant(900))).await.unwrap();
    assert_eq!(log.source(0).complete_to(&lane()), Some(Instant(500)));
    // Told that it had diverged further back, the caller goes back over the branch.
    log.end_branch(&lane(), &at("1", 2));
    assert_eq!(log.bytes(&lane()), b"ab");
    log.sink(&lane(), &at("1", 2)).append(chunk("1", 2, "z", true)).await.unwrap();
}

#[tokio::test]
async fn segments_begin_where_the_state_is_known() {
    let log = MemoryLog::new();
    let sink = log.sink(&lane(), &Place::new("1", 0));
    for (at, carry) in [(0, true), (4, false), (8, true), (12, false), (16, true)] {
        sink.append(chunk("1", at, "abcd", carry)).await.unwrap();
    }
    sink.sync().await.unwrap();
    let firsts = |bytes| -> Vec<u64> {
        log.source(bytes).segments(&lane()).iter().map(|segment| segment.first.offset.low()).collect()
    };
    assert_eq!(firsts(0), [0, 8, 16]);
    assert_eq!(firsts(9), [0, 16]);
    assert_eq!(firsts(1000), [0]);
    let whole = log.source(9).segments(&lane())[0].bracket;
    assert_eq!((whole.earliest, whole.latest), (Instant(0), Instant(12)));
    let (state, bytes) = log.slice(&lane(), &Place::new("1", 9), &Place::new("1", 14)).unwrap();
    assert_eq!((state.as_str(), &bytes[..]), ("state at 8", &b"bcdab"[..]));
    assert!(log.slice(&lane(), &Place::new("1", 9), &Place::new("1", 99)).is_none());
}

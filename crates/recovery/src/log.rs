//! The log behind a snapshot, as engines read it: the parts of a run, in order, each fetched, checked and cut when it is asked for.
//!
//! Blocking, from any thread. One segment is fetched ahead of the reader. What was read stays for a second reader (the cut is looked
//! for before the log is replayed) within [`CACHE_BYTES`]; beyond that it is fetched again. Damaged log is an error that names the
//! object; nothing of it is ever given out.
//!
//! What is read may be superseded while it is: a tail goes a while after a sealed object covers it. Then its stretch is cut out of what stands
//! for it now, byte for byte; only the adapter's state at its first place may be lost with it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mainstay_engine::{Error, Kind, LogSource, Result, Segment, SegmentData, TimeMark};
use mainstay_model::{Branch, Instant, Lane, Offset, Place};

use crate::past::Stretch;

/// How much log stays in memory for a second reader.
pub const CACHE_BYTES: usize = 48 << 20;

/// Where stored log comes from: the vault, and the spool of this machine.
pub trait Fetch: Send + Sync {
    /// Reads a piece, by its index in the lane's [`crate::history::History::pieces`], whole and checked; `None` if it is not there any more.
    /// Blocking.
    ///
    /// # Errors
    /// `Damaged` with the object's name, `Io`.
    fn fetch(&self, lane: &Lane, piece: usize) -> Result<Option<SegmentData>>;

    /// What else holds now the stretch `wanted` of a piece that is not there any more, or damaged: whole pieces, each with what is used of it,
    /// in order and without a gap. The first may begin before `wanted`. Blocking.
    ///
    /// # Errors
    /// `Damaged` with the name of the piece, where nothing does; `Io`.
    fn instead(&self, lane: &Lane, piece: usize, wanted: &Segment) -> Result<Vec<(SegmentData, Segment)>>;
}

/// One lane's log behind a snapshot.
#[derive(Clone, Debug, Default)]
pub struct LaneLog {
    /// The pieces, by index, each as far as it is used.
    pub parts: Vec<(usize, Segment)>,
    /// How the epochs came to be.
    pub branches: Vec<(Branch, Option<Bytes>)>,
    /// Up to when it is complete.
    pub complete_to: Option<Instant>,
}

impl LaneLog {
    /// From a stretch of a lane's history; `records` are the engine's own of the epochs.
    pub fn new(
        stretch: &Stretch,
        pieces: &[crate::history::Piece],
        branches: Vec<(Branch, Option<Bytes>)>,
    ) -> Self {
        let part = |part: &crate::history::Part| {
            let piece = &pieces[part.piece];
            let last = Place { epoch: piece.first.epoch.clone(), offset: part.to };
            (part.piece, Segment { first: piece.first.clone(), last, bracket: piece.bracket })
        };
        Self {
            parts: stretch.parts.iter().map(part).collect(),
            branches,
            complete_to: stretch.run.complete_to,
        }
    }

    /// Where the log ends.
    pub fn end(&self) -> Option<&Place> {
        self.parts.last().map(|(_, segment)| &segment.last)
    }
}

/// The log of a cluster behind one snapshot.
pub struct StoredLog {
    inner: Arc<Inner>,
}

struct Inner {
    lanes: BTreeMap<Lane, LaneLog>,
    fetch: Arc<dyn Fetch>,
    cache: Mutex<Cache>,
    arrived: Condvar,
}

#[derive(Default)]
struct Cache {
    ready: BTreeMap<(Lane, usize), SegmentData>,
    /// What is being fetched now, so that nobody fetches it twice.
    loading: Vec<(Lane, usize)>,
    /// The order in which what is ready came, for letting go of the oldest.
    order: VecDeque<(Lane, usize)>,
    bytes: usize,
}

impl StoredLog {
    /// Log that `fetch` reads.
    pub fn new(lanes: BTreeMap<Lane, LaneLog>, fetch: Arc<dyn Fetch>) -> Self {
        let inner = Inner { lanes, fetch, cache: Mutex::default(), arrived: Condvar::new() };
        Self { inner: Arc::new(inner) }
    }

    /// No log at all.
    pub fn empty() -> Self {
        struct Nothing;
        impl Fetch for Nothing {
            fn fetch(&self, lane: &Lane, _: usize) -> Result<Option<SegmentData>> {
                Err(Error::new(Kind::OutOfLog, format!("read log of {lane}: there is none")))
            }
            fn instead(&self, _: &Lane, _: usize, _: &Segment) -> Result<Vec<(SegmentData, Segment)>> {
                Ok(vec![])
            }
        }
        Self::new(BTreeMap::new(), Arc::new(Nothing))
    }

    /// How many bytes of log lie between the snapshot and `to`, where offsets count bytes.
    pub fn bytes_to(&self, to: &mainstay_model::Position) -> u64 {
        let lane = |(lane, log): (&Lane, &LaneLog)| {
            let end = to.get(lane);
            let mut sum = 0_u128;
            for (_, segment) in &log.parts {
                let within = |p: &&Place| p.epoch == segment.first.epoch && p.offset <= segment.last.offset;
                let last = end.filter(within).map_or(segment.last.offset, |p| p.offset);
                sum += last.0.saturating_sub(segment.first.offset.0);
                if end.filter(within).is_some() {
                    break;
                }
            }
            u64::try_from(sum).unwrap_or(u64::MAX)
        };
        self.inner.lanes.iter().map(lane).sum()
    }
}

impl LogSource for StoredLog {
    fn lanes(&self) -> Vec<Lane> {
        self.inner.lanes.keys().cloned().collect()
    }

    fn segments(&self, lane: &Lane) -> Vec<Segment> {
        self.inner.lanes.get(lane).map_or_else(Vec::new, |l| l.parts.iter().map(|(_, s)| s.clone()).collect())
    }

    fn read(&self, lane: &Lane, index: usize) -> Result<SegmentData> {
        let data = self.inner.read(lane, index)?;
        self.inner.clone().prefetch(lane, index + 1);
        Ok(data)
    }

    fn branches(&self, lane: &Lane) -> Vec<(Branch, Option<Bytes>)> {
        self.inner.lanes.get(lane).map_or_else(Vec::new, |l| l.branches.clone())
    }

    fn complete_to(&self, lane: &Lane) -> Option<Instant> {
        self.inner.lanes.get(lane)?.complete_to
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, lane: &Lane, index: usize) -> Result<SegmentData> {
        let key = (lane.clone(), index);
        let mut cache = self.lock();
        loop {
            if let Some(data) = cache.ready.get(&key) {
                return Ok(data.clone());
            }
            if !cache.loading.contains(&key) {
                break;
            }
            cache = self.arrived.wait(cache).unwrap_or_else(PoisonError::into_inner);
        }
        cache.loading.push(key.clone());
        drop(cache);
        self.load(key)
    }

    /// Fetches one, into the cache. Its key is among those loading, and is taken out again whatever happens.
    fn load(&self, key: (Lane, usize)) -> Result<SegmentData> {
        struct Loading<'a>(&'a Inner, &'a (Lane, usize));
        impl Drop for Loading<'_> {
            fn drop(&mut self) {
                self.0.lock().loading.retain(|key| key != self.1);
                self.0.arrived.notify_all();
            }
        }
        let _loading = Loading(self, &key);
        let Some((piece, segment)) = self.lanes.get(&key.0).and_then(|l| l.parts.get(key.1)) else {
            return Err(Error::new(
                Kind::Invalid,
                format!("read segment {} of {}: there is none", key.1, key.0),
            ));
        };
        let data = match self.fetch.fetch(&key.0, *piece) {
            Ok(Some(data)) => cut(data, segment)?,
            Ok(None) => join(self.fetch.instead(&key.0, *piece, segment)?, segment)?,
            // The tails of one that is damaged may still be there, and it may stand for one of them.
            Err(error) if error.kind == Kind::Damaged => {
                let instead = self.fetch.instead(&key.0, *piece, segment);
                let Ok(data) = instead.and_then(|pieces| join(pieces, segment)) else { return Err(error) };
                tracing::warn!(%error, "log is read from what else holds it");
                data
            }
            Err(error) => return Err(error),
        };
        let mut cache = self.lock();
        cache.bytes += data.bytes.len();
        cache.ready.insert(key.clone(), data.clone());
        cache.order.push_back(key.clone());
        while cache.bytes > CACHE_BYTES && cache.order.len() > 1 {
            let Some(oldest) = cache.order.pop_front() else { break };
            if let Some(gone) = cache.ready.remove(&oldest) {
                cache.bytes -= gone.bytes.len();
            }
        }
        Ok(data)
    }

    /// Begins to fetch a segment on a thread of its own, unless one is being fetched already.
    fn prefetch(self: Arc<Self>, lane: &Lane, index: usize) {
        let key = (lane.clone(), index);
        let mut cache = self.lock();
        let there = self.lanes.get(lane).is_some_and(|l| index < l.parts.len());
        if !there || !cache.loading.is_empty() || cache.ready.contains_key(&key) {
            return;
        }
        cache.loading.push(key.clone());
        drop(cache);
        // What goes wrong here goes wrong again, and is reported, when the segment is asked for.
        std::thread::spawn(move || self.load(key).is_ok());
    }
}

/// Cuts what was read to what is used of it.
fn cut(data: SegmentData, segment: &Segment) -> Result<SegmentData> {
    let whole = &data.segment;
    let damaged = |what: &str| {
        let (epoch, offset) = (&segment.first.epoch, segment.first.offset);
        Err(Error::new(Kind::Damaged, format!("read the log segment at {epoch}:{offset}: {what}")))
    };
    if whole.first != segment.first || whole.last.epoch != segment.last.epoch {
        return damaged("it holds another stretch than its name says");
    }
    if whole.last.offset == segment.last.offset {
        return Ok(data);
    }
    let length = |last: Offset| usize::try_from(last.0.saturating_sub(segment.first.offset.0)).ok();
    let (Some(all), Some(used)) = (length(whole.last.offset), length(segment.last.offset)) else {
        return damaged("its places make no sense");
    };
    if used > all || data.bytes.len() != all {
        return damaged("a part of it was superseded, and its offsets do not count bytes");
    }
    let mut times: Vec<TimeMark> =
        data.times.iter().copied().filter(|m| m.offset <= segment.last.offset).collect();
    if times.last().is_none_or(|m| m.offset < segment.last.offset)
        && let Some(over) = data.times.iter().find(|m| m.offset > segment.last.offset)
    {
        times.push(TimeMark { offset: segment.last.offset, at: over.at });
    }
    let segment = Segment { bracket: whole.bracket, ..segment.clone() };
    Ok(SegmentData { segment, times, carry: data.carry, bytes: data.bytes.slice(..used) })
}

/// Makes the stretch `wanted` out of what stands for it.
fn join(pieces: Vec<(SegmentData, Segment)>, wanted: &Segment) -> Result<SegmentData> {
    let (first, epoch) = (wanted.first.offset, &wanted.first.epoch);
    let mut joined =
        SegmentData { segment: wanted.clone(), times: Vec::new(), carry: String::new(), bytes: Bytes::new() };
    let mut bytes = Vec::new();
    let mut end = first;
    for (piece, used) in pieces {
        let mut piece = cut(piece, &used)?;
        let Segment { first: begin, last, .. } = piece.segment.clone();
        let skip = end.0.checked_sub(begin.offset.0).and_then(|skip| usize::try_from(skip).ok());
        let Some(skip) = skip.filter(|_| begin.epoch == *epoch && last.epoch == *epoch) else {
            break;
        };
        if begin.offset == first {
            joined.carry = std::mem::take(&mut piece.carry);
        } else if end == first && piece.bytes.len() as u128 != last.offset.0 - begin.offset.0 {
            let what = format!(
                "read the log at {epoch}:{first}: it was superseded, and its offsets do not count bytes"
            );
            return Err(Error::new(Kind::Damaged, what).hint("plan the restore anew"));
        }
        bytes.extend_from_slice(piece.bytes.get(skip..).unwrap_or_default());
        joined.times.extend(piece.times.into_iter().filter(|mark| mark.offset > end));
        end = last.offset;
    }
    if end != wanted.last.offset {
        let what =
            format!("read the log at {epoch}:{:x}: what stands for it now ends at {:x}", first.0, end.0);
        return Err(Error::new(Kind::Damaged, what));
    }
    joined.bytes = bytes.into();
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use mainstay_model::Bracket;

    use super::*;

    struct Counted(AtomicUsize);

    impl Fetch for Counted {
        fn fetch(&self, _: &Lane, piece: usize) -> Result<Option<SegmentData>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            if piece == 9 {
                return Err(Error::new(Kind::Damaged, "read object nine: its hash is wrong"));
            }
            let first = u64::try_from(piece).unwrap() * 10;
            let bracket = Bracket::exactly(Instant(0));
            let mark = |offset: u64| TimeMark { offset: offset.into(), at: bracket };
            Ok(Some(SegmentData {
                segment: Segment {
                    first: Place::new("a", first),
                    last: Place::new("a", first + 10),
                    bracket,
                },
                times: vec![mark(first + 4), mark(first + 10)],
                carry: String::new(),
                bytes: Bytes::from(vec![u8::try_from(piece).unwrap(); 10]),
            }))
        }
        fn instead(&self, _: &Lane, _: usize, _: &Segment) -> Result<Vec<(SegmentData, Segment)>> {
            Err(Error::new(Kind::Damaged, "nothing else holds it"))
        }
    }

    fn part(piece: usize, first: u64, last: u64) -> (usize, Segment) {
        let bracket = Bracket::exactly(Instant(0));
        (piece, Segment { first: Place::new("a", first), last: Place::new("a", last), bracket })
    }

    fn log(parts: Vec<(usize, Segment)>) -> (StoredLog, Arc<Counted>, Lane) {
        let lane = Lane::new("l");
        let fetch = Arc::new(Counted(AtomicUsize::new(0)));
        let lanes = BTreeMap::from([(lane.clone(), LaneLog { parts, ..LaneLog::default() })]);
        (StoredLog::new(lanes, fetch.clone()), fetch, lane)
    }

    #[test]
    fn segments_are_cut_where_another_takes_over() {
        let (log, _, lane) = log(vec![part(0, 0, 7), part(2, 20, 30)]);
        let data = log.read(&lane, 0).unwrap();
        assert_eq!((data.bytes.len(), data.segment.last), (7, Place::new("a", 7)));
        assert_eq!(data.times.iter().map(|m| m.offset.low()).collect::<Vec<_>>(), [4, 7]);
        assert_eq!(log.read(&lane, 1).unwrap().bytes.len(), 10);
        assert_eq!(log.bytes_to(&mainstay_model::Position::single(lane, Place::new("a", 22))), 9);
    }

    #[test]
    fn each_is_fetched_once_however_many_read() {
        let (log, fetch, lane) = log((0..8).map(|n| part(n, n as u64 * 10, n as u64 * 10 + 10)).collect());
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    (0..8).for_each(|n| assert_eq!(log.read(&lane, n).unwrap().bytes[0] as usize, n))
                });
            }
        });
        assert_eq!(fetch.0.load(Ordering::SeqCst), 8);
    }

    /// Log whose byte at each offset is that offset, with a mark every five bytes.
    fn stored(first: u64, last: u64) -> SegmentData {
        let segment = part(0, first, last).1;
        let mark = |offset: u64| TimeMark {
            offset: offset.into(),
            at: Bracket::exactly(Instant(i64::try_from(offset).unwrap())),
        };
        SegmentData {
            segment,
            times: (first + 1..=last).filter(|n| n % 5 == 0 || *n == last).map(mark).collect(),
            carry: format!("at {first}"),
            bytes: (first..last).map(|n| u8::try_from(n).unwrap()).collect(),
        }
    }

    #[test]
    fn a_stretch_is_cut_out_of_what_stands_for_it() {
        let check = |wanted: (u64, u64), pieces: &[((u64, u64), u64)], carry: Result<&str, &str>| {
            let wanted = part(0, wanted.0, wanted.1).1;
            let piece =
                |((first, last), used): &((u64, u64), u64)| (stored(*first, *last), part(0, *first, *used).1);
            match (join(pieces.iter().map(piece).collect(), &wanted), carry) {
                (Ok(data), Ok(carry)) => {
                    let expect = stored(wanted.first.offset.low(), wanted.last.offset.low());
                    assert_eq!(data.bytes, expect.bytes);
                    let ends = |data: &SegmentData| data.times.iter().map(|m| m.offset).collect::<Vec<_>>();
                    assert_eq!((data.segment.clone(), data.carry.as_str()), (wanted, carry));
                    assert_eq!(ends(&data), ends(&expect));
                }
                (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{error}"),
                (found, _) => panic!("{found:?}"),
            }
        };
        check((12, 18), &[((12, 18), 18)], Ok("at 12"));
        check((12, 18), &[((0, 30), 18)], Ok(""));
        // Over two of them, and three.
        check((12, 28), &[((0, 20), 20), ((20, 40), 28)], Ok(""));
        check((12, 28), &[((12, 20), 20), ((20, 25), 25), ((25, 40), 28)], Ok("at 12"));
        // One is cut where the next begins.
        check((12, 28), &[((0, 20), 15), ((15, 40), 28)], Ok(""));
        check((12, 28), &[((0, 20), 20)], Err("ends at 14"));
        check((12, 28), &[((0, 20), 20), ((22, 40), 28)], Err("ends at 14"));
        check((12, 28), &[], Err("ends at c"));
        let mut counted = stored(0, 30);
        counted.bytes = Bytes::from_static(b"few");
        let wanted = part(0, 12, 30).1;
        let error = join(vec![(counted.clone(), counted.segment.clone())], &wanted).unwrap_err();
        assert!(error.to_string().contains("do not count bytes"), "{error}");
        assert_eq!(
            join(vec![(counted.clone(), counted.segment.clone())], &counted.segment).unwrap().bytes,
            "few"
        );
    }

    #[test]
    fn damage_is_named_each_time() {
        let (log, _, lane) = log(vec![part(0, 0, 10), part(9, 90, 100)]);
        log.read(&lane, 0).unwrap();
        for _ in 0..2 {
            assert_eq!(log.read(&lane, 1).unwrap_err().kind, Kind::Damaged);
        }
        assert_eq!(log.read(&lane, 2).unwrap_err().kind, Kind::Invalid);
        let (log, ..) = self::log(vec![part(1, 0, 10)]);
        assert_eq!(log.read(&lane, 0).unwrap_err().kind, Kind::Damaged);
    }
}

//! A log in memory: what an adapter follows into, and reads again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Clock};

use async_trait::async_trait;
use bytes::Bytes;
use mainstay_engine::{Chunk, Error, Kind, LogSink, LogSource, Result, Segment, SegmentData, TimeMark};
use mainstay_model::{Bracket, Branch, Instant, Lane, Offset, Place};

/// The log of a cluster, lane by lane.
#[derive(Clone, Debug, Default)]
pub struct MemoryLog {
    lanes: Arc<Mutex<BTreeMap<Lane, LaneLog>>>,
}

/// One lane: the surviving history, and what ended.
#[derive(Clone, Debug)]
struct LaneLog {
    /// Where the lane began.
    first: Place,
    /// Where the next chunk must be.
    next: Place,
    /// Up to where all is durable.
    durable: Place,
    pieces: Vec<Piece>,
    ended: Vec<Piece>,
    branches: Vec<(Branch, Option<Bytes>)>,
    beat: Option<Bracket>,
    vaulted: Option<Place>,
    full: bool,
}

/// A segment, and the pieces that it is made of.
type Cut = (Segment, Vec<usize>);

#[derive(Clone, Debug)]
struct Piece {
    at: Place,
    end: Offset,
    bytes: Bytes,
    times: Vec<TimeMark>,
    carry: Option<String>,
}

impl MemoryLog {
    /// One without lanes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A sink to follow `lane` into, from `from` on. As a new link does: what an earlier sink took and did not sync is lost, and
    /// `from` must be where that lane is durable.
    ///
    /// # Panics
    /// When it is not: the caller is wrong then.
    pub fn sink(&self, lane: &Lane, from: &Place) -> MemoryLogSink {
        let mut lanes = self.lock();
        let log = lanes.entry(lane.clone()).or_insert_with(|| LaneLog::new(from));
        let durable = log.durable.clone();
        log.drop_behind(&durable, false);
        assert_eq!(log.next, *from, "lane {lane} goes on elsewhere");
        MemoryLogSink { lane: lane.clone(), log: self.clone() }
    }

    /// Begins a lane at `from`, without a link.
    pub fn begin(&self, lane: &Lane, from: &Place) {
        self.lock().entry(lane.clone()).or_insert_with(|| LaneLog::new(from));
    }

    /// The lanes that were begun.
    pub fn lanes(&self) -> Vec<Lane> {
        self.lock().keys().cloned().collect()
    }

    /// The log of one epoch from `from` up to `to`, and the adapter's state where that log begins; the log begins earlier where no
    /// state is known at `from`. `None` if it is not all there.
    pub fn slice(&self, lane: &Lane, from: &Place, to: &Place) -> Option<(String, Bytes)> {
        let mut log = self.lock().get(lane)?.clone();
        if from == to {
            return Some((String::new(), Bytes::new()));
        }
        log.drop_behind(to, false);
        let begin = log
            .pieces
            .iter()
            .rposition(|p| p.carry.is_some() && p.at.epoch == from.epoch && p.at.offset <= from.offset)?;
        let pieces = &log.pieces[begin..];
        let whole = pieces.last().is_some_and(|p| p.end == to.offset && p.at.epoch == to.epoch);
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes.iter().copied()).collect();
        let skip = match pieces[0].at.offset == from.offset {
            true => 0,
            false => usize::try_from(from.offset.0 - pieces[0].at.offset.0).ok()?,
        };
        whole.then(|| (pieces[0].carry.clone().unwrap_or_default(), Bytes::from(bytes).slice(skip..)))
    }

    /// Where the lane is durable: where the next link begins. `None` if it was never followed.
    pub fn durable(&self, lane: &Lane) -> Option<Place> {
        self.lock().get(lane).map(|log| log.durable.clone())
    }

    /// Ends the present branch at `place`, as a caller does that was told `Diverged { branched: place }`. The next link begins there.
    pub fn end_branch(&self, lane: &Lane, place: &Place) {
        if let Some(log) = self.lock().get_mut(lane) {
            log.drop_behind(place, true);
            log.durable = place.clone();
        }
    }

    /// Says that the lane is in the vault up to there.
    pub fn set_vaulted(&self, lane: &Lane, place: Place) {
        if let Some(log) = self.lock().get_mut(lane) {
            log.vaulted = Some(place);
        }
    }

    /// From now on the lane takes nothing more (`SpoolFull`), or does again.
    pub fn set_full(&self, lane: &Lane, full: bool) {
        if let Some(log) = self.lock().get_mut(lane) {
            log.full = full;
        }
    }

    /// All bytes of the surviving history.
    pub fn bytes(&self, lane: &Lane) -> Vec<u8> {
        let lanes = self.lock();
        let pieces = lanes.get(lane).map_or(&[][..], |log| &log.pieces);
        pieces.iter().flat_map(|piece| piece.bytes.iter().copied()).collect()
    }

    /// How many bytes ended with a branch that did not survive.
    pub fn ended_bytes(&self, lane: &Lane) -> usize {
        self.lock().get(lane).map_or(0, |log| log.ended.iter().map(|piece| piece.bytes.len()).sum())
    }

    /// Waits until the lane is durable at or behind `place`, in its epoch or in one that grew out of it.
    ///
    /// # Errors
    /// `Deadline`, saying how far it came.
    pub async fn wait_for(&self, lane: &Lane, place: &Place, limit: Duration) -> Result<()> {
        self.wait(lane, limit, &format!("{place:?}"), |log| log.covers(place)).await
    }

    /// Waits until the lane is known to be complete up to `time`.
    ///
    /// # Errors
    /// `Deadline`, saying how far it came.
    pub async fn wait_for_time(&self, lane: &Lane, time: Instant, limit: Duration) -> Result<()> {
        self.wait(lane, limit, &time.to_string(), |log| log.complete_to().is_some_and(|to| to >= time)).await
    }

    async fn wait(
        &self,
        lane: &Lane,
        limit: Duration,
        what: &str,
        reached: impl Fn(&LaneLog) -> bool,
    ) -> Result<()> {
        let since = Clock::now();
        while !self.lock().get(lane).is_some_and(&reached) {
            if since.elapsed() > limit {
                let now = self.lock().get(lane).map(|log| (log.durable.clone(), log.complete_to()));
                let what = format!("lane {lane} did not come to {what} within {limit:?}; it is at {now:?}");
                return Err(Error::new(Kind::Deadline, what));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// All that is durable now, to be read. A segment begins at each chunk that has a carry, once the one before has as many bytes.
    pub fn source(&self, segment_bytes: usize) -> MemoryLogSource {
        let lanes = self.lock();
        let read = |log: &LaneLog| {
            let mut log = log.clone();
            let durable = log.durable.clone();
            log.drop_behind(&durable, false);
            let segments = log.segments(segment_bytes);
            (log, segments)
        };
        MemoryLogSource { lanes: lanes.iter().map(|(lane, log)| (lane.clone(), read(log))).collect() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Lane, LaneLog>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LaneLog {
    fn new(from: &Place) -> Self {
        Self {
            first: from.clone(),
            next: from.clone(),
            durable: from.clone(),
            pieces: Vec::new(),
            ended: Vec::new(),
            branches: Vec::new(),
            beat: None,
            vaulted: None,
            full: false,
        }
    }

    /// Takes away what is behind `place`, which is in the epoch of some piece, or where the lane is.
    fn drop_behind(&mut self, place: &Place, keep_as_ended: bool) {
        let in_epoch = |piece: &Piece| piece.at.epoch == place.epoch;
        let from = self.pieces.iter().position(|piece| in_epoch(piece) && piece.end > place.offset);
        // Nothing of its epoch is behind the place: whatever is of later epochs is.
        let after = self.pieces.iter().rposition(in_epoch).map_or_else(
            || if self.first.epoch == place.epoch { 0 } else { self.pieces.len() },
            |last| last + 1,
        );
        let mut gone = self.pieces.split_off(from.unwrap_or(after));
        if let Some(piece) = gone.first_mut()
            && piece.at.epoch == place.epoch
            && piece.at.offset < place.offset
        {
            let kept = usize::try_from(place.offset.0 - piece.at.offset.0).unwrap_or(usize::MAX);
            let mut head = piece.clone();
            head.bytes = piece.bytes.slice(..kept.min(piece.bytes.len()));
            head.end = place.offset;
            head.times.retain(|mark| mark.offset <= place.offset);
            piece.bytes = piece.bytes.slice(kept.min(piece.bytes.len())..);
            piece.at = place.clone();
            self.pieces.push(head);
        }
        if keep_as_ended {
            self.ended.append(&mut gone);
        }
        self.next = place.clone();
    }

    fn append(&mut self, chunk: Chunk, end: Offset) -> Result<()> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
        if self.full {
            return Err(Error::new(Kind::SpoolFull, "the log takes nothing more"));
        }
        if chunk.at != self.next {
            return invalid(format!("log at {:?} was given, {:?} comes next", chunk.at, self.next));
        }
        let mut before = chunk.at.offset;
        for mark in &chunk.times {
            if mark.offset < before || mark.offset > end {
                return invalid(format!(
                    "a time at {} is out of order, or not within its chunk",
                    mark.offset
                ));
            }
            before = mark.offset;
        }
        if self.pieces.is_empty() && chunk.carry.is_none() {
            return invalid("the first chunk must have a carry: a segment begins there".to_owned());
        }
        self.next.offset = end;
        self.pieces.push(Piece {
            at: chunk.at,
            end,
            bytes: chunk.bytes,
            times: chunk.times,
            carry: chunk.carry,
        });
        Ok(())
    }

    fn branch(&mut self, branch: Branch, history: Option<Bytes>) -> Result<()> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
        let known = self.branches.iter().any(|(have, _)| have.epoch == branch.epoch);
        // How the epoch came to be that the lane is in already.
        if branch.epoch == self.next.epoch {
            if !known {
                self.branches.push((branch, history));
            }
            return Ok(());
        }
        let Some(parent) = &branch.parent else {
            return invalid(format!("epoch {} has no parent, and the lane is in another", branch.epoch));
        };
        let reached = parent.epoch == self.next.epoch && parent.offset <= self.next.offset;
        let earlier = self.pieces.iter().any(|p| p.at.epoch == parent.epoch && p.end >= parent.offset);
        let began = self.first.epoch != parent.epoch || self.first.offset <= parent.offset;
        if !(began && (reached || earlier)) {
            return invalid(format!("a branch from {parent:?}, but the lane is at {:?}", self.next));
        }
        let parent = parent.clone();
        self.drop_behind(&parent, true);
        self.next = Place { epoch: branch.epoch.clone(), offset: branch.first };
        // A branch is durable when it is taken, and all before it: what it ended could not be had again.
        self.durable = self.next.clone();
        self.branches.push((branch, history));
        Ok(())
    }

    fn covers(&self, place: &Place) -> bool {
        if self.durable.epoch == place.epoch {
            return self.durable.offset >= place.offset;
        }
        self.pieces.iter().any(|piece| piece.at.epoch == place.epoch && piece.end >= place.offset)
    }

    /// The log before `from`, from the last piece with a carry on.
    fn before(&self, from: &Place) -> Option<Chunk> {
        let mut before = self.clone();
        before.drop_behind(from, false);
        let end = before.pieces.last()?;
        if end.at.epoch != from.epoch || end.end != from.offset {
            return None;
        }
        let begin = before.pieces.iter().rposition(|p| p.carry.is_some() && p.at.epoch == from.epoch)?;
        let pieces = &before.pieces[begin..];
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes.iter().copied()).collect();
        let (at, carry) = (pieces[0].at.clone(), pieces[0].carry.clone());
        Some(Chunk { at, bytes: bytes.into(), times: Vec::new(), carry })
    }

    fn complete_to(&self) -> Option<Instant> {
        let last = self.pieces.iter().rev().find_map(|piece| piece.times.last());
        last.map(|mark| mark.at.latest).max(self.beat.map(|beat| beat.earliest))
    }

    /// Which pieces make up which segment.
    fn segments(&self, segment_bytes: usize) -> Vec<Cut> {
        let mut segments: Vec<Cut> = Vec::new();
        let mut bytes = 0;
        let mut known = Bracket { earliest: Instant::MIN, latest: Instant::MIN };
        for (index, piece) in self.pieces.iter().enumerate() {
            let times = piece.times.iter().map(|mark| mark.at).reduce(Bracket::union);
            let begins = segments.last().is_none_or(|(segment, _)| {
                segment.last.epoch != piece.at.epoch || (piece.carry.is_some() && bytes >= segment_bytes)
            });
            // Where nothing is known of a piece, it is not before what came before it.
            let bracket = times.unwrap_or(Bracket { earliest: known.earliest, latest: known.latest });
            known = bracket;
            let last = Place { epoch: piece.at.epoch.clone(), offset: piece.end };
            match segments.last_mut() {
                Some((segment, pieces)) if !begins => {
                    segment.last = last;
                    segment.bracket = segment.bracket.union(bracket);
                    pieces.push(index);
                    bytes += piece.bytes.len();
                }
                _ => {
                    let segment = Segment { first: piece.at.clone(), last, bracket };
                    segments.push((segment, vec![index]));
                    bytes = piece.bytes.len();
                }
            }
        }
        segments
    }
}

/// The end of a [`MemoryLog`] that a follower writes to.
#[derive(Clone, Debug)]
pub struct MemoryLogSink {
    lane: Lane,
    log: MemoryLog,
}

impl MemoryLogSink {
    fn with<T>(&self, act: impl FnOnce(&mut LaneLog) -> Result<T>) -> Result<T> {
        match self.log.lock().get_mut(&self.lane) {
            Some(log) => act(log),
            None => Err(Error::new(Kind::Invalid, format!("there is no lane {}", self.lane))),
        }
    }
}

#[async_trait]
impl LogSink for MemoryLogSink {
    async fn append(&self, chunk: Chunk) -> Result<()> {
        let end = Offset(chunk.at.offset.0 + chunk.bytes.len() as u128);
        self.with(|log| log.append(chunk, end))
    }

    async fn append_counted(&self, chunk: Chunk, end: Offset) -> Result<()> {
        self.with(|log| log.append(chunk, end))
    }

    async fn sync(&self) -> Result<Place> {
        self.with(|log| {
            log.durable = log.next.clone();
            Ok(log.durable.clone())
        })
    }

    async fn branch(&self, branch: Branch, history: Option<Bytes>) -> Result<()> {
        self.with(|log| log.branch(branch, history))
    }

    async fn beat(&self, at: &Place, time: Bracket) -> Result<()> {
        self.with(|log| {
            if *at == log.next {
                log.beat = Some(time);
            }
            Ok(())
        })
    }

    async fn before(&self, from: &Place) -> Result<Option<Chunk>> {
        self.with(|log| Ok(log.before(from)))
    }

    fn vaulted(&self) -> Option<Place> {
        self.log.lock().get(&self.lane).and_then(|log| log.vaulted.clone())
    }
}

/// A [`MemoryLog`] as it was at one moment, to be read.
#[derive(Clone, Debug)]
pub struct MemoryLogSource {
    lanes: BTreeMap<Lane, (LaneLog, Vec<Cut>)>,
}

impl LogSource for MemoryLogSource {
    fn lanes(&self) -> Vec<Lane> {
        self.lanes.keys().cloned().collect()
    }

    fn segments(&self, lane: &Lane) -> Vec<Segment> {
        let segments = self.lanes.get(lane).map_or(&[][..], |(_, segments)| segments);
        segments.iter().map(|(segment, _)| segment.clone()).collect()
    }

    fn read(&self, lane: &Lane, index: usize) -> Result<SegmentData> {
        let found = self.lanes.get(lane).and_then(|(log, segments)| Some((log, segments.get(index)?)));
        let Some((log, (segment, pieces))) = found else {
            return Err(Error::new(Kind::Invalid, format!("lane {lane} has no segment {index}")));
        };
        let pieces: Vec<&Piece> = pieces.iter().filter_map(|index| log.pieces.get(*index)).collect();
        let carry = pieces.first().and_then(|piece| piece.carry.clone()).unwrap_or_default();
        let times = pieces.iter().flat_map(|piece| piece.times.iter().copied()).collect();
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes.iter().copied()).collect();
        Ok(SegmentData { segment: segment.clone(), times, carry, bytes: bytes.into() })
    }

    fn branches(&self, lane: &Lane) -> Vec<(Branch, Option<Bytes>)> {
        self.lanes.get(lane).map_or_else(Vec::new, |(log, _)| log.branches.clone())
    }

    fn complete_to(&self, lane: &Lane) -> Option<Instant> {
        self.lanes.get(lane).and_then(|(log, _)| log.complete_to())
    }
}

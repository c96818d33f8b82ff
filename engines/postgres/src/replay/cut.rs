//! The place in the log that a target stands for.

use mainstay_engine::{Cutting, Error, Kind, LogSource, Result, Segment, Target};
use mainstay_model::{Bracket, Instant, Lane, Place};

use crate::lsn::{self, Lsn};
use crate::wal::{CutError, Finder, Found, PAGE_BYTES, Scanner, WalError, Wanted, decode};

/// Segments whose times lie so far off the target need not be read: more than commits are out of order by.
const SLACK_US: i64 = 2_000_000;

pub(super) fn find(lane: &Lane, from: &Place, log: &dyn LogSource, target: &Target) -> Result<Cutting> {
    let segments = log.segments(lane);
    // What is looked for is near the end, or near the place, unless all before it is one record or padding behind one.
    let tails: &[usize] = match target {
        Target::End | Target::Place(_) => &[2, 64, usize::MAX],
        Target::Time(_) | Target::Name(_) => &[usize::MAX],
    };
    for tail in tails {
        let found = find_in(lane, from, log, target, &segments, *tail);
        let is_far = match (target, &found) {
            (Target::Place(_), Err(error)) => error.kind == Kind::OutOfLog,
            (Target::End, found) => !found.as_ref().is_ok_and(|cutting| cutting.place != *from),
            _ => false,
        };
        if *tail >= segments.len() || !is_far {
            return found;
        }
    }
    Err(Error::new(Kind::OutOfLog, "the log has no clean place"))
}

fn find_in(
    lane: &Lane,
    from: &Place,
    log: &dyn LogSource,
    target: &Target,
    segments: &[Segment],
    tail: usize,
) -> Result<Cutting> {
    let begin = Lsn(from.offset.low());
    let log_end = segments.last().map_or(begin, |segment| Lsn(segment.last.offset.low()));
    let wanted = wanted(target, segments, from)?;
    let mut finder = Finder::new(wanted.clone(), begin);
    let mut scanner: Option<Scanner> = None;
    let mut epochs = vec![(begin, from.epoch.clone())];
    let first =
        segments.iter().position(|segment| Lsn(segment.last.offset.low()) > begin).unwrap_or(segments.len());
    let mut within: Option<Bracket> = None;
    for (index, segment) in segments.iter().enumerate().skip(first) {
        let start = Lsn(segment.first.offset.low());
        if epochs.last().is_some_and(|(_, epoch)| *epoch != segment.first.epoch) {
            epochs.push((start.max(begin), segment.first.epoch.clone()));
        }
        let later =
            matches!(wanted, Wanted::Time(at) if finder.is_beyond() && segment.bracket.earliest.0 > at);
        if later || is_skipped(&wanted, segments, index, tail) {
            scanner = None;
            continue;
        }
        let data = log.read(lane, index)?;
        let scan = match &mut scanner {
            Some(scan) if scan.at() == start => scan,
            other => {
                let size = segment_size(&data.bytes, start);
                // A snapshot's place is the beginning of a record.
                let known = if start == begin { "0" } else { &data.carry };
                other.insert(Scanner::resume(start, size, known))
            }
        };
        let read = scan.push(&data.bytes, |record| {
            // The one that ends a segment early ends with that, and of its padding the log may not have all yet.
            if record.end <= log_end {
                finder.record(record.start, record.end, decode(record).as_ref());
            }
        });
        match read {
            Ok(()) => {}
            // The server's own padding; what follows, if anything does, begins anew.
            Err(WalError::Zeros(_)) => scanner = None,
            Err(error) => {
                let what = format!("read the log from {} on", lsn::write_place(&segment.first));
                return Err(Error::new(Kind::Damaged, what).source(error));
            }
        }
        within = Some(segment.bracket);
        if finder.is_done() {
            break;
        }
    }
    let outcome = finder.finish();
    let place_of = |at: Lsn| {
        let epoch =
            epochs.iter().rev().find(|(start, _)| *start < at).or(epochs.first()).map(|(_, epoch)| epoch);
        lsn::place(epoch.unwrap_or(&from.epoch), at)
    };
    conclude(lane, log, target, outcome, within, &place_of)
}

fn conclude(
    lane: &Lane,
    log: &dyn LogSource,
    target: &Target,
    outcome: Result<Found, CutError>,
    within: Option<Bracket>,
    place_of: &dyn Fn(Lsn) -> Place,
) -> Result<Cutting> {
    let complete_to = log.complete_to(lane);
    let cutting = |found: Found, behind: Option<Instant>| {
        let before = found.before_us.map(Instant).or(match target {
            Target::Time(at) => Some(*at),
            _ => within.map(|bracket| bracket.earliest),
        });
        let before = before.or(behind).unwrap_or(Instant::MIN);
        let after = found.after_us.map(Instant).or(behind).unwrap_or(before);
        Cutting { place: place_of(found.lsn), at: Bracket { earliest: before.min(after), latest: after } }
    };
    match outcome {
        Ok(found) => {
            if found.late > 0 {
                tracing::warn!(late = found.late, "commits just behind the cut carry a time before it");
            }
            Ok(cutting(found, complete_to))
        }
        Err(CutError::AtEnd(found)) => match (target, complete_to) {
            // Nothing later than the target is in the log, and the log is known to reach it.
            (Target::Time(at), Some(to)) if to >= *at => Ok(cutting(found, complete_to)),
            (_, to) => {
                let end = to.or(found.before_us.map(Instant));
                let error = Error::new(Kind::OutOfLog, "the log does not reach that time");
                Err(match end {
                    Some(end) => error.hint(format!("it is complete up to {end}")),
                    None => error,
                })
            }
        },
        Err(CutError::Missing) => Err(Error::new(
            Kind::OutOfLog,
            match target {
                Target::Name(name) => format!("no restore point of the name {name:?} is in the log"),
                _ => "the place lies behind the log's end".to_owned(),
            },
        )),
        Err(CutError::Unclean(before, after)) => {
            let (before, after) = (lsn::write_place(&place_of(before)), lsn::write_place(&place_of(after)));
            Err(Error::new(Kind::Invalid, "the place lies within a record")
                .hint(format!("the clean ones beside it are {before} and {after}")))
        }
        Err(CutError::Ambiguous(list)) => {
            let what = match target {
                Target::Name(name) => format!("the name {name:?} is in the log more than once"),
                _ => "the source's clock was stepped back: that time came more than once".to_owned(),
            };
            let candidates: Vec<_> = list
                .iter()
                .map(|(at, before)| match before {
                    Some(before) => {
                        format!("{} (last commit {})", lsn::write_place(&place_of(*at)), Instant(*before))
                    }
                    None => lsn::write_place(&place_of(*at)),
                })
                .collect();
            Err(Error::new(Kind::Ambiguous { candidates }, what).hint("choose one of the places"))
        }
    }
}

fn wanted(target: &Target, segments: &[Segment], from: &Place) -> Result<Wanted> {
    Ok(match target {
        Target::Time(at) => Wanted::Time(at.0),
        Target::Name(name) => Wanted::Name(name.clone()),
        Target::End => Wanted::End,
        Target::Place(place) => {
            let known = |place: &Place| {
                let same = |epoch: &mainstay_model::Epoch| {
                    // A bare timeline number stands for the timeline of that number in this history.
                    *epoch == place.epoch || epoch.0.split('x').next() == Some(place.epoch.0.as_str())
                };
                let inside = |segment: &Segment| {
                    same(&segment.first.epoch)
                        && segment.first.offset <= place.offset
                        && place.offset <= segment.last.offset
                };
                segments.iter().any(inside) || (same(&from.epoch) && from.offset == place.offset)
            };
            if !known(place) || place.offset < from.offset {
                let what = format!("{} is not in the log behind the snapshot", lsn::write_place(place));
                return Err(Error::new(Kind::OutOfLog, what));
            }
            Wanted::Lsn(Lsn(place.offset.low()))
        }
    })
}

/// Whether a segment cannot hold the answer. The one before the first that can is read too: a record may begin in it. Towards a place or
/// the end, `tail` segments are read at most.
fn is_skipped(wanted: &Wanted, segments: &[Segment], index: usize, tail: usize) -> bool {
    match wanted {
        Wanted::Time(at) => {
            let below = |segment: &Segment| segment.bracket.latest.0 < at.saturating_sub(SLACK_US);
            below(&segments[index]) && segments.get(index + 1).is_some_and(below)
        }
        Wanted::Lsn(at) => {
            let holds = |segment: &Segment| *at <= Lsn(segment.last.offset.low());
            let holder = segments.iter().position(holds).unwrap_or(segments.len());
            index.saturating_add(tail) <= holder
        }
        Wanted::End => segments.len() - index > tail,
        Wanted::Name(_) => false,
    }
}

/// The segment size that a segment's first page names, where the log begins with one; else the usual.
fn segment_size(bytes: &[u8], start: Lsn) -> u64 {
    let long = start.0.is_multiple_of(PAGE_BYTES) && bytes.get(2..4).is_some_and(|info| info[0] & 2 != 0);
    let named =
        bytes.get(32..36).and_then(<[u8]>::first_chunk).map(|size| u64::from(u32::from_le_bytes(*size)));
    named
        .filter(|size| long && size.is_power_of_two() && (1 << 20..=1 << 30).contains(size))
        .unwrap_or(16 << 20)
}

#[cfg(test)]
mod tests {
    use mainstay_engine::SegmentData;
    use mainstay_model::Branch;

    use super::*;
    use crate::wal::testing::Log;

    const SEGMENT: u64 = 16 << 20;

    /// Log of one timeline in pieces.
    struct Pieces(Vec<SegmentData>);

    impl Pieces {
        /// Of `log` from `begin` on, cut at these places.
        fn of(log: &Log, begin: Lsn, ends: &[Lsn]) -> Self {
            let mut scanner = Scanner::resume(begin, SEGMENT, "0");
            let mut at = begin;
            let mut pieces = Vec::new();
            for end in ends {
                let carry = scanner.carry();
                let bytes = log.bytes[(at.0 - log.first.0) as usize..(end.0 - log.first.0) as usize].to_vec();
                scanner.push(&bytes, |_| {}).unwrap();
                let bracket = Bracket { earliest: Instant::MIN, latest: Instant::MAX };
                let segment = Segment { first: Place::new("1", at.0), last: Place::new("1", end.0), bracket };
                pieces.push(SegmentData { segment, times: Vec::new(), carry, bytes: bytes.into() });
                at = *end;
            }
            Self(pieces)
        }
    }

    impl LogSource for Pieces {
        fn lanes(&self) -> Vec<Lane> {
            vec![Lane::new("wal")]
        }
        fn segments(&self, _: &Lane) -> Vec<Segment> {
            self.0.iter().map(|piece| piece.segment.clone()).collect()
        }
        fn read(&self, _: &Lane, index: usize) -> Result<SegmentData> {
            Ok(self.0[index].clone())
        }
        fn branches(&self, _: &Lane) -> Vec<(Branch, Option<bytes::Bytes>)> {
            Vec::new()
        }
        fn complete_to(&self, _: &Lane) -> Option<Instant> {
            Some(Instant::MAX)
        }
    }

    #[test]
    fn a_segment_that_ended_early_is_cut_where_the_log_is() {
        let mut log = Log::new(Lsn(SEGMENT), SEGMENT);
        let (begin, _) = log.commit(1_000_000);
        log.commit(2_000_000);
        let (switch, end) = log.switch();
        let lane = Lane::new("wal");
        let from = Place::new("1", begin.0);
        let cut = |ends: &[Lsn], target: &Target| {
            let log = Pieces::of(&log, begin, ends);
            find(&lane, &from, &log, target).map(|found| found.place.offset.low())
        };
        let quarters = [1, 2, 3].map(|n| Lsn(SEGMENT + n * SEGMENT / 4));
        // Its padding is still on its way: nothing behind what is there can be had.
        for count in 1..=3 {
            let ends = &quarters[..count];
            assert_eq!(cut(ends, &Target::End).unwrap(), switch.0);
            assert_eq!(cut(ends, &Target::Time(Instant(9_000_000))).unwrap(), switch.0);
            assert!(cut(ends, &Target::Place(Place::new("1", end.0))).is_err());
        }
        // All of it is there, in pieces that hold no record.
        let all = [quarters.as_slice(), &[end]].concat();
        assert_eq!(cut(&all, &Target::End).unwrap(), end.0);
        assert_eq!(cut(&all, &Target::Place(Place::new("1", end.0))).unwrap(), end.0);
        assert_eq!(cut(&all, &Target::Place(Place::new("1", switch.0))).unwrap(), switch.0);
        let within = cut(&all, &Target::Place(Place::new("1", SEGMENT + SEGMENT / 2)));
        assert_eq!(within.unwrap_err().kind, Kind::Invalid);
    }
}

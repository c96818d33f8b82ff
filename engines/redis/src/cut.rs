//! Which place in a lane a target stands for.
//!
//! A stream's times are brackets: what lies below a mark was written between two looks at the clock. A time takes in what was certainly
//! written by then, and of that no command and no transaction in part. If the clock went past the time and came back, the time stands for
//! more than one place, and none is guessed.

use std::time::Duration;

use mainstay_engine::{Cutting, Error, Kind, LogSource, Result, Segment, SegmentData, Target};
use mainstay_model::{Bracket, Instant, Lane, Place};

use crate::carry;
use crate::place;
use crate::stream::{Boundary, Splitter};

/// Finds the place. See [`mainstay_engine::Replay::cut`].
///
/// # Errors
/// `OutOfLog`, `Ambiguous`, `Invalid`, and those of reading.
pub fn cut(lane: &Lane, from: &Place, log: &dyn LogSource, target: &Target) -> Result<Cutting> {
    let segments = log.segments(lane);
    let lane_log = LaneLog { lane, from, log, segments };
    match target {
        Target::Time(at) => lane_log.at_time(*at),
        Target::End => {
            let end = lane_log.segments.last().map_or(from.offset.low(), |segment| segment.last.offset.low());
            let place = lane_log.clean_at(end)?;
            lane_log.cutting(place, None)
        }
        Target::Place(place) => lane_log.at_place(place),
        Target::Name(name) => Err(Error::new(
            Kind::Unsupported,
            format!("find `{name}` in the stream of {lane}: Redis has no names in it"),
        )
        .hint("give a time, a fleet point or a place")),
    }
}

/// Where a look at the clock failed, its time is an estimate that may be too late by less than this.
const STEP_MIN: Duration = Duration::from_secs(10);

struct LaneLog<'a> {
    lane: &'a Lane,
    from: &'a Place,
    log: &'a dyn LogSource,
    segments: Vec<Segment>,
}

impl LaneLog<'_> {
    /// The segments that hold anything behind `from`.
    fn behind(&self) -> impl Iterator<Item = (usize, &Segment)> {
        self.segments.iter().enumerate().filter(|(_, segment)| segment.last.offset > self.from.offset)
    }

    fn at_time(&self, at: Instant) -> Result<Cutting> {
        if let Some(end) = self.log.complete_to(self.lane).filter(|end| *end < at) {
            let what = format!("find {at} in the stream of {}: the log is complete up to {end}", self.lane);
            return Err(Error::new(Kind::OutOfLog, what).hint(format!("ask for {end} or earlier")));
        }
        // What was certainly written by then ends here.
        let from_offset = self.from.offset.low();
        let mut sure = from_offset;
        // The place at which the clock was first certainly past the time.
        let mut past: Option<(u64, Instant)> = None;
        // Where it was perhaps past the time, and what it showed.
        let mut shown = (from_offset, Instant::MIN);
        for (index, segment) in self.behind() {
            if segment.bracket.latest <= at && past.is_none() && shown.1 <= at {
                sure = segment.last.offset.low();
                continue;
            }
            if segment.bracket.earliest > at {
                past = past.or(Some((segment.first.offset.low(), segment.bracket.earliest)));
                continue;
            }
            let data = self.read(index)?;
            let marks = data.times.iter().map(|mark| (mark.offset.low(), mark.at));
            // What no mark speaks of is known as well as the whole segment is.
            let last = std::iter::once((segment.last.offset.low(), segment.bracket));
            let marked = data.times.last().map_or(0, |mark| mark.offset.low());
            let mut reached = segment.first.offset.low();
            for (offset, bracket) in marks.chain(last).filter(|(offset, _)| *offset > self.from.offset.low())
            {
                if offset <= reached {
                    continue;
                }
                let set_back = || shown.1.since(bracket.earliest) > STEP_MIN;
                if bracket.earliest > at {
                    past = past.or(Some((reached, bracket.earliest)));
                } else if let Some((first, when)) = past.or((shown.1 > at && set_back()).then_some(shown)) {
                    // Perhaps it was not yet past the time again when this was written.
                    if offset <= marked {
                        return Err(self.ambiguous(at, first, when, offset));
                    }
                } else if bracket.latest <= at {
                    sure = offset;
                }
                shown = (if shown.1 > at { shown.0 } else { reached }, shown.1.max(bracket.latest));
                reached = offset;
            }
        }
        self.cutting(self.clean_at(sure)?, Some(at))
    }

    fn ambiguous(&self, at: Instant, first: u64, when: Instant, again: u64) -> Error {
        let candidate = |offset: u64| {
            let epoch = self.epoch_at(offset).unwrap_or_else(|| self.from.epoch.0.clone());
            place::write(&Place::new(epoch, offset))
        };
        let candidates = vec![candidate(first), candidate(again)];
        let what = format!("find {at} in the stream of {}: its clock was at {when} and came back", self.lane);
        Error::new(Kind::Ambiguous { candidates }, what)
    }

    fn at_place(&self, wanted: &Place) -> Result<Cutting> {
        let offset = wanted.offset.low();
        let same_history = *wanted == *self.from
            || self.segments.iter().any(|segment| {
                segment.first.epoch == wanted.epoch
                    && segment.first.offset <= wanted.offset
                    && wanted.offset <= segment.last.offset
            });
        if !same_history || offset < self.from.offset.low() {
            return Err(Error::new(
                Kind::OutOfLog,
                format!(
                    "find {} in the stream of {}: the log does not reach it",
                    place::write(wanted),
                    self.lane
                ),
            ));
        }
        let clean = self.clean_at(offset)?;
        if clean.offset != wanted.offset {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "cut the stream of {} at {}: a command or transaction would be cut with it",
                    self.lane,
                    place::write(wanted)
                ),
            )
            .hint(format!("the last clean place before it is {}", place::write(&clean))));
        }
        // The end of one epoch and the beginning of the next are the same place.
        self.cutting(wanted.clone(), None)
    }

    /// The last place at or before `offset` (but not before `from`) at which no command and no transaction is cut.
    fn clean_at(&self, offset: u64) -> Result<Place> {
        let from = self.from.offset.low();
        if offset <= from {
            return Ok(self.from.clone());
        }
        let Some(mut index) = self.segments.iter().rposition(|segment| segment.first.offset.low() < offset)
        else {
            return Ok(self.from.clone());
        };
        let mut upto = offset;
        loop {
            let data = self.read(index)?;
            let start = data.segment.first.offset.low();
            let reading = match carry::enter(start, &data.carry) {
                Some(reading) => Some(reading),
                // Nothing is known before the first one; a snapshot's place is a clean one.
                None if start == from || index == 0 => {
                    Some(Splitter::new(Boundary { offset: start, db: None, in_multi: false }))
                }
                None => None,
            };
            if let Some(reading) = reading {
                if let Some(clean) = self.clean_from(reading, data, index, upto)? {
                    let clean = clean.max(from);
                    let epoch = self.epoch_at(clean).unwrap_or_else(|| self.from.epoch.0.clone());
                    return Ok(Place::new(epoch, clean));
                }
                // What is behind need not be read again.
                upto = start;
            }
            // Its state is not known, or a command or transaction is open over all of it.
            match index.checked_sub(1) {
                Some(before) if start > from => index = before,
                _ => return Ok(self.from.clone()),
            }
        }
    }

    /// Reads on from a known state to `offset`.
    fn clean_from(
        &self,
        mut splitter: Splitter,
        data: SegmentData,
        index: usize,
        offset: u64,
    ) -> Result<Option<u64>> {
        let mut data = Some(data);
        for index in index..self.segments.len() {
            if splitter.offset() >= offset {
                break;
            }
            let data = match data.take() {
                Some(data) => data,
                None => self.read(index)?,
            };
            if data.segment.first.offset.low() != splitter.offset() {
                return Err(self.damaged("there is a gap in it"));
            }
            let room =
                usize::try_from(offset - splitter.offset()).unwrap_or(usize::MAX).min(data.bytes.len());
            splitter
                .feed(&data.bytes[..room], |_| {})
                .map_err(|error| self.damaged("it is no stream of commands").source(error))?;
        }
        Ok(splitter.clean().map(|clean| clean.offset))
    }

    /// What is known of when the last thing below a place and the first behind it were written. A time that was asked for is within.
    fn cutting(&self, place: Place, asked: Option<Instant>) -> Result<Cutting> {
        let offset = place.offset.low();
        let mut below = Instant::MIN;
        let mut behind = Instant::MAX;
        if let Some(index) = self.segments.iter().position(|segment| segment.last.offset.low() >= offset) {
            // The mark that covers the last byte below, and the one that covers the first byte behind.
            for index in index..self.segments.len().min(index + 2) {
                let data = self.read(index)?;
                let first = data.segment.first.offset.low();
                let mut start = first;
                for mark in &data.times {
                    let end = mark.offset.low();
                    if start < offset && offset <= end {
                        below = mark.at.latest;
                    }
                    if start <= offset && offset < end && behind == Instant::MAX {
                        behind = mark.at.earliest;
                    }
                    start = end;
                }
            }
        }
        if let Some(asked) = asked {
            (below, behind) = (below.min(asked), behind.max(asked));
        }
        // One look at the clock covers both sides.
        let at = if below <= behind {
            Bracket { earliest: below, latest: behind }
        } else {
            Bracket::exactly(below)
        };
        Ok(Cutting { place, at })
    }

    fn epoch_at(&self, offset: u64) -> Option<String> {
        let holds =
            |segment: &&Segment| segment.first.offset.low() < offset && offset <= segment.last.offset.low();
        self.segments.iter().find(holds).map(|segment| segment.first.epoch.0.clone())
    }

    fn read(&self, index: usize) -> Result<SegmentData> {
        self.log.read(self.lane, index)
    }

    fn damaged(&self, why: &str) -> Error {
        Error::new(Kind::Damaged, format!("read the log of {}: {why}", self.lane))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::encode;
    use bytes::Bytes;
    use mainstay_engine::TimeMark;
    use mainstay_model::Branch;

    /// Segments, and up to when they are complete.
    struct Log(Vec<SegmentData>, i64);

    impl LogSource for Log {
        fn lanes(&self) -> Vec<Lane> {
            vec![Lane::new("main")]
        }
        fn segments(&self, _: &Lane) -> Vec<Segment> {
            self.0.iter().map(|data| data.segment.clone()).collect()
        }
        fn read(&self, _: &Lane, index: usize) -> Result<SegmentData> {
            Ok(self.0[index].clone())
        }
        fn branches(&self, _: &Lane) -> Vec<(Branch, Option<Bytes>)> {
            Vec::new()
        }
        fn complete_to(&self, _: &Lane) -> Option<Instant> {
            Some(Instant(self.1))
        }
    }

    /// Commands with the time of the look behind each.
    type Commands<'a> = &'a [(&'a [&'a str], i64)];

    /// Segments of (carry, commands).
    fn log(from: u64, segments: &[(&str, Commands<'_>)]) -> (Log, Vec<u64>) {
        let mut offset = from;
        let mut data = Vec::new();
        let mut ends = vec![from];
        let mut before = Instant(0);
        for (carry, commands) in segments {
            let first = offset;
            let mut bytes = Vec::new();
            let mut times = Vec::new();
            for (words, at) in *commands {
                let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
                bytes.extend(encode(&words));
                offset = first + bytes.len() as u64;
                ends.push(offset);
                times.push(TimeMark { offset: offset.into(), at: Bracket::between(before, Instant(*at)) });
                before = Instant(*at);
            }
            let bracket = times.iter().map(|mark| mark.at).reduce(Bracket::union).unwrap();
            let segment = Segment { first: Place::new("a", first), last: Place::new("a", offset), bracket };
            data.push(SegmentData { segment, times, carry: (*carry).into(), bytes: Bytes::from(bytes) });
        }
        (Log(data, 1000), ends)
    }

    fn run(log: &Log, from: u64, target: &Target) -> Result<u64> {
        let cutting = cut(&Lane::new("main"), &Place::new("a", from), log, target)?;
        Ok(cutting.place.offset.low())
    }

    const SET: &[&str] = &["SET", "a", "1"];

    #[test]
    fn a_time_takes_in_what_was_certainly_written_by_then() {
        let (log, ends) = log(
            100,
            &[
                ("db=0 multi=0", &[(SET, 10), (SET, 20)]),
                ("?", &[(&["MULTI"], 30), (SET, 40), (&["EXEC"], 50)]),
                ("db=0 multi=0", &[(SET, 60)]),
            ],
        );
        let check = |at: i64, expected: usize| {
            assert_eq!(run(&log, 100, &Target::Time(Instant(at))).unwrap(), ends[expected], "at {at}");
        };
        check(5, 0);
        check(10, 1);
        check(19, 1);
        check(20, 2);
        // Inside the transaction the cut is before it.
        check(30, 2);
        check(49, 2);
        check(50, 5);
        check(60, 6);
        check(1000, 6);
        assert_eq!(run(&log, 100, &Target::Time(Instant(1001))).unwrap_err().kind, Kind::OutOfLog);
        assert_eq!(run(&log, 100, &Target::End).unwrap(), ends[6]);
    }

    #[test]
    fn a_cut_says_for_which_times_it_stands() {
        let (log, ends) = log(100, &[("db=0 multi=0", &[(SET, 10), (SET, 20)]), ("?", &[(SET, 30)])]);
        let at = |at: i64| {
            cut(&Lane::new("main"), &Place::new("a", 100), &log, &Target::Time(Instant(at))).unwrap()
        };
        assert_eq!(at(15).place.offset.low(), ends[1]);
        assert_eq!(at(15).at, Bracket { earliest: Instant(10), latest: Instant(15) });
        assert_eq!(at(25).at, Bracket { earliest: Instant(20), latest: Instant(25) });
        assert_eq!(at(35).at, Bracket { earliest: Instant(30), latest: Instant::MAX });
    }

    #[test]
    fn a_place_must_be_clean_and_within() {
        let (log, ends) =
            log(100, &[("db=0 multi=0", &[(SET, 10), (&["MULTI"], 20), (SET, 30), (&["EXEC"], 40)])]);
        let place = |offset: u64| run(&log, 100, &Target::Place(Place::new("a", offset)));
        for clean in [0, 1, 4] {
            assert_eq!(place(ends[clean]).unwrap(), ends[clean]);
        }
        for cut in [ends[1] - 1, ends[2], ends[3]] {
            assert_eq!(place(cut).unwrap_err().kind, Kind::Invalid);
        }
        for outside in [99, ends[4] + 1] {
            assert_eq!(place(outside).unwrap_err().kind, Kind::OutOfLog);
        }
        let other = Target::Place(Place::new("b", ends[1]));
        assert_eq!(run(&log, 100, &other).unwrap_err().kind, Kind::OutOfLog);
    }

    #[test]
    fn a_clock_that_came_back_is_not_guessed_at() {
        let (log, ends) = log(
            100,
            &[
                ("db=0 multi=0", &[(SET, 10), (SET, 50), (SET, 60)]),
                ("?", &[(SET, 20), (SET, 21), (SET, 70)]),
            ],
        );
        let error = run(&log, 100, &Target::Time(Instant(25))).unwrap_err();
        assert!(matches!(error.kind, Kind::Ambiguous { .. }), "{error}");
        assert_eq!(run(&log, 100, &Target::Time(Instant(15))).unwrap(), ends[1]);
        assert_eq!(run(&log, 100, &Target::Time(Instant(70))).unwrap(), ends[6]);
        // Also where nothing was written between the clock's return and the time.
        let (log, ends) = log_of_a_step();
        for at in [20, 25, 29] {
            let error = run(&log, 100, &Target::Time(Instant(at))).unwrap_err();
            assert!(matches!(error.kind, Kind::Ambiguous { .. }), "{at}: {error}");
        }
        for at in [10, 19] {
            assert_eq!(run(&log, 100, &Target::Time(Instant(at))).unwrap(), ends[1], "at {at}");
        }
    }

    #[test]
    fn what_was_written_while_the_clock_was_set_is_not_left_out_in_silence() {
        const S: i64 = 1_000_000;
        let (mut log, ends) =
            log(100, &[("db=0 multi=0", &[(SET, S), (SET, 600 * S), (SET, 600 * S), (SET, 5 * S)])]);
        let times = &mut log.0[0].times;
        // Ahead by ten minutes and back, with each step between two looks.
        times[1].at = Bracket::between(Instant(S), Instant(600 * S));
        times[2].at = Bracket::between(Instant(2 * S), Instant(600 * S));
        times[3].at = Bracket::between(Instant(4 * S), Instant(5 * S));
        log.0[0].segment.bracket = Bracket::between(Instant(0), Instant(600 * S));
        let at = |log: &Log, at: i64| run(log, 100, &Target::Time(Instant(at))).unwrap();
        log.1 = 600 * S;
        assert_eq!(at(&log, S), ends[1]);
        for unsure in [2 * S, 3 * S, 4 * S + 1, 6 * S] {
            let error = run(&log, 100, &Target::Time(Instant(unsure))).unwrap_err();
            assert!(matches!(error.kind, Kind::Ambiguous { .. }), "{unsure}: {error}");
        }
    }

    /// The clock jumped from 10 to 50, and back to 20; the next write was seen at 30.
    fn log_of_a_step() -> (Log, Vec<u64>) {
        let (mut log, ends) = log(100, &[("db=0 multi=0", &[(SET, 10), (SET, 60), (SET, 30)])]);
        let times = &mut log.0[0].times;
        times[1].at = Bracket::between(Instant(50), Instant(60));
        times[2].at = Bracket::between(Instant(20), Instant(30));
        (log, ends)
    }

    #[test]
    fn a_value_over_several_segments_is_never_cut() {
        let big = "x".repeat(1000);
        let (mut log, ends) = log(
            100,
            &[("db=0 multi=0", &[(SET, 10), (&["SET", "a", &big], 20)]), ("db=0 multi=0", &[(SET, 30)])],
        );
        // Its middle is a segment of its own.
        let first = log.0.remove(0);
        let mut at = 100;
        for (n, end) in [200_u64, 500, first.segment.last.offset.low()].into_iter().enumerate() {
            let mut splitter = Splitter::new(Boundary { offset: 100, db: Some(0), in_multi: false });
            splitter.feed(&first.bytes[..(at - 100) as usize], |_| {}).unwrap();
            let carry =
                splitter.inside().map_or("db=0 multi=0".into(), |inside| carry::write_inside(&inside));
            assert_eq!(carry.contains("bulk"), n > 0);
            let mut piece = first.clone();
            (piece.carry, piece.bytes) =
                (carry, first.bytes.slice((at - 100) as usize..(end - 100) as usize));
            (piece.segment.first, piece.segment.last) = (Place::new("a", at), Place::new("a", end));
            piece.times.retain(|mark| at < mark.offset.low() && mark.offset.low() <= end);
            log.0.insert(n, piece);
            at = end;
        }
        for (at, expected) in [(15, 1), (20, 2), (29, 2), (30, 3)] {
            assert_eq!(run(&log, 100, &Target::Time(Instant(at))).unwrap(), ends[expected], "at {at}");
        }
        for inside in [200, 300, 500, 700] {
            let place = Target::Place(Place::new("a", inside));
            assert_eq!(run(&log, 100, &place).unwrap_err().kind, Kind::Invalid);
        }
    }

    #[test]
    fn an_unknown_state_is_found_by_reading_from_a_known_one() {
        let big = "x".repeat(1000);
        let (mut log, ends) = log(
            100,
            &[
                ("db=0 multi=0", &[(&["MULTI"], 10), (&["SET", "a", &big], 20)]),
                ("?", &[(SET, 30), (&["EXEC"], 40), (SET, 50)]),
            ],
        );
        assert_eq!(run(&log, 100, &Target::Time(Instant(35))).unwrap(), 100);
        assert_eq!(run(&log, 100, &Target::Time(Instant(45))).unwrap(), ends[4]);
        // A segment may begin in the middle of a command.
        let moved = log.0[0].bytes.split_off(300);
        log.0[1].bytes = [moved, log.0[1].bytes.clone()].concat().into();
        log.0[0].segment.last = Place::new("a", 400);
        log.0[1].segment.first = Place::new("a", 400);
        assert_eq!(run(&log, 100, &Target::Time(Instant(45))).unwrap(), ends[4]);
    }
}

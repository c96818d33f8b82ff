//! From what somebody wants to the byte at which the log is cut.
//!
//! A time takes in what was committed at or before it: the cut is where the first commit later than it begins. Commit
//! times are not in log order; by less than a second that is the race between taking the time and writing the record,
//! and commits that fall behind the cut by it are reported in [`Found::late`]. By more, a clock was stepped back and the time
//! came more than once: then every crossing is a candidate and none is chosen.

use super::event::Event;
use crate::lsn::Lsn;

/// How far commit times may be out of order before a clock was stepped.
const RACE_US_MAX: i64 = 1_000_000;
const CANDIDATES_MAX: usize = 20;

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All that was committed at or before this, microseconds since the Unix epoch.
    Time(i64),
    /// A restore point's name.
    Name(String),
    /// This place, which must be a clean one.
    Lsn(Lsn),
    /// The last clean place.
    End,
}

/// A cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What is below is in.
    pub lsn: Lsn,
    /// The latest commit below.
    pub before_us: Option<i64>,
    /// The first commit behind.
    pub after_us: Option<i64>,
    /// Commits behind the cut whose time is not after the target's: out of order by less than a second.
    pub late: u32,
}

/// Why there is no cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutError {
    /// More than one place: each with the time up to which it reaches.
    Ambiguous(Vec<(Lsn, Option<i64>)>),
    /// Nothing later than the wanted time was found: the end of the log is the cut if the log is known to be complete up
    /// to there.
    AtEnd(Found),
    /// No such name, or the place lies behind the end.
    Missing,
    /// The place lies within a record; these are the clean ones beside it.
    Unclean(Lsn, Lsn),
}

/// Looks at a log's records, in order, and finds the cut.
pub struct Finder {
    wanted: Wanted,
    from: Lsn,
    end: Lsn,
    newest_us: Option<i64>,
    crossings: Vec<(Lsn, Option<i64>, i64)>,
    above: bool,
    late: u32,
    names: Vec<(Lsn, Option<i64>)>,
    place: Option<Result<Found, CutError>>,
    first_after_us: Option<i64>,
}

impl Finder {
    /// Looks from `from` on: nothing below it is cut off.
    pub fn new(wanted: Wanted, from: Lsn) -> Self {
        Self {
            wanted,
            from,
            end: from,
            newest_us: None,
            crossings: Vec::new(),
            above: false,
            late: 0,
            names: Vec::new(),
            place: None,
            first_after_us: None,
        }
    }

    /// Takes the next record. Those that begin below `from` only tell the time.
    pub fn record(&mut self, start: Lsn, end: Lsn, event: Option<&Event>) {
        let time_us = match event {
            Some(Event::Commit { time_us }) => Some(*time_us),
            _ => None,
        };
        if start < self.from {
            self.newest_us = self.newest_us.max(time_us);
            return;
        }
        match &self.wanted {
            Wanted::Time(at_us) => self.cross(*at_us, start, time_us),
            Wanted::Name(wanted) => {
                if let Some(Event::RestorePoint { name, .. }) = event
                    && name == wanted
                    && self.names.len() < CANDIDATES_MAX
                {
                    self.names.push((end, self.newest_us));
                }
            }
            Wanted::Lsn(at) => self.pass(*at, start, end, time_us),
            Wanted::End => {}
        }
        self.newest_us = self.newest_us.max(time_us);
        self.end = end;
    }

    /// Whether nothing that comes can change the answer. A time is never done: what follows is skipped by its bracket.
    pub fn is_done(&self) -> bool {
        match self.wanted {
            Wanted::Lsn(_) => self.place.is_some() && self.first_after_us.is_some(),
            _ => false,
        }
    }

    /// Whether the log is beyond the wanted time here: a stretch of it that is all later changes nothing.
    pub fn is_beyond(&self) -> bool {
        self.above
    }

    fn cross(&mut self, at_us: i64, start: Lsn, time_us: Option<i64>) {
        let Some(time_us) = time_us else { return };
        if time_us > at_us && !self.above {
            self.above = true;
            if self.crossings.len() < CANDIDATES_MAX {
                self.crossings.push((start, self.newest_us, time_us));
            }
        } else if time_us <= at_us && self.above {
            if self.newest_us.is_some_and(|newest| newest - time_us < RACE_US_MAX) {
                self.late += 1;
            } else {
                self.above = false;
            }
        }
    }

    fn pass(&mut self, at: Lsn, start: Lsn, end: Lsn, time_us: Option<i64>) {
        if self.place.is_some() {
            self.first_after_us = self.first_after_us.or(time_us);
        } else if at <= start {
            self.place = Some(Ok(Found { lsn: at, before_us: self.newest_us, after_us: None, late: 0 }));
            self.first_after_us = time_us;
        } else if at < end {
            self.place = Some(Err(CutError::Unclean(start, end)));
            self.first_after_us = Some(0);
        }
    }

    /// The answer, after the last record.
    ///
    /// # Errors
    /// See [`CutError`].
    pub fn finish(self) -> Result<Found, CutError> {
        let found = |lsn, before_us| Found { lsn, before_us, after_us: None, late: 0 };
        match self.wanted {
            Wanted::Time(_) => match self.crossings.as_slice() {
                [] => Err(CutError::AtEnd(found(self.end, self.newest_us))),
                // It crossed, came back by more than a race, and never crossed again: the end is the second candidate.
                [(lsn, before, _)] if !self.above => {
                    Err(CutError::Ambiguous(vec![(*lsn, *before), (self.end, self.newest_us)]))
                }
                [(lsn, before, after)] => {
                    Ok(Found { lsn: *lsn, before_us: *before, after_us: Some(*after), late: self.late })
                }
                many => {
                    Err(CutError::Ambiguous(many.iter().map(|(lsn, before, _)| (*lsn, *before)).collect()))
                }
            },
            Wanted::Name(_) => match self.names.as_slice() {
                [] => Err(CutError::Missing),
                [(lsn, before)] => Ok(found(*lsn, *before)),
                many => Err(CutError::Ambiguous(many.to_vec())),
            },
            Wanted::Lsn(at) => match self.place {
                Some(Ok(place)) => Ok(Found { after_us: self.first_after_us, ..place }),
                Some(Err(error)) => Err(error),
                None if at == self.end => Ok(found(at, self.newest_us)),
                None => Err(CutError::Missing),
            },
            Wanted::End => Ok(found(self.end, self.newest_us)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000;

    fn find(wanted: Wanted, times: &[i64]) -> Result<Found, CutError> {
        let mut finder = Finder::new(wanted, Lsn(100));
        for (n, time_us) in times.iter().enumerate() {
            let start = Lsn(100 + 10 * n as u64);
            finder.record(start, start.plus(8), Some(&Event::Commit { time_us: *time_us }));
        }
        finder.finish()
    }

    #[test]
    fn a_time_takes_in_what_was_committed_at_it() {
        let found = find(Wanted::Time(2 * S), &[S, 2 * S, 3 * S]).unwrap();
        assert_eq!((found.lsn, found.before_us, found.after_us), (Lsn(120), Some(2 * S), Some(3 * S)));
        assert_eq!(find(Wanted::Time(0), &[S]).unwrap().lsn, Lsn(100));
        assert!(
            matches!(find(Wanted::Time(5 * S), &[S, 2 * S]), Err(CutError::AtEnd(found)) if found.lsn == Lsn(118))
        );
    }

    #[test]
    fn a_race_is_no_step_of_the_clock() {
        let found = find(Wanted::Time(2 * S), &[S, 2 * S + 180, 2 * S - 100, 3 * S]).unwrap();
        assert_eq!((found.lsn, found.late), (Lsn(110), 1));
    }

    #[test]
    fn a_time_that_came_twice_is_ambiguous() {
        let twice = find(Wanted::Time(10 * S), &[9 * S, 11 * S, 5 * S, 8 * S, 12 * S]);
        assert_eq!(twice, Err(CutError::Ambiguous(vec![(Lsn(110), Some(9 * S)), (Lsn(140), Some(11 * S))])));
        let open = find(Wanted::Time(10 * S), &[11 * S, 5 * S]);
        assert!(matches!(open, Err(CutError::Ambiguous(list)) if list.len() == 2));
        // Before the step and before what was run again, a time is what it was.
        assert_eq!(find(Wanted::Time(3 * S), &[2 * S, 11 * S, 5 * S]).unwrap().lsn, Lsn(110));
    }

    #[test]
    fn names_and_places_are_exact() {
        let mut finder = Finder::new(Wanted::Name("a".into()), Lsn(100));
        finder.record(Lsn(100), Lsn(108), Some(&Event::RestorePoint { name: "b".into(), time_us: 0 }));
        finder.record(Lsn(110), Lsn(118), Some(&Event::RestorePoint { name: "a".into(), time_us: 0 }));
        assert_eq!(finder.finish().unwrap().lsn, Lsn(118));
        let mut twice = Finder::new(Wanted::Name("a".into()), Lsn(100));
        for start in [100, 110] {
            let point = Event::RestorePoint { name: "a".into(), time_us: 0 };
            twice.record(Lsn(start), Lsn(start + 8), Some(&point));
        }
        assert_eq!(twice.finish(), Err(CutError::Ambiguous(vec![(Lsn(108), None), (Lsn(118), None)])));
        assert_eq!(find(Wanted::Lsn(Lsn(110)), &[S, 2 * S]).unwrap().lsn, Lsn(110));
        assert_eq!(find(Wanted::Lsn(Lsn(108)), &[S, 2 * S]).unwrap().lsn, Lsn(108));
        assert_eq!(find(Wanted::Lsn(Lsn(118)), &[S, 2 * S]).unwrap().lsn, Lsn(118));
        assert_eq!(find(Wanted::Lsn(Lsn(113)), &[S, 2 * S]), Err(CutError::Unclean(Lsn(110), Lsn(118))));
        assert_eq!(find(Wanted::Lsn(Lsn(119)), &[S, 2 * S]), Err(CutError::Missing));
        assert_eq!(find(Wanted::End, &[S, 2 * S]).unwrap().lsn, Lsn(118));
    }
}

//! A cluster's past: its lives, their snapshots and logs, and what of it can be had again.
//!
//! Pure. A snapshot's *reach* is how far its log goes on from it without a gap, in every lane; a *window* is what the reaches of a life's
//! snapshots cover together; what lies between windows is a *hole*. Age and reach come from what is stored, never from what a run
//! reported. A snapshot whose place lies on a branch that ended is no part of any window: it is had by its position alone.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_model::{Bracket, Instant, Lane, Place, Position};

use crate::history::{History, Line, Part, Run};

/// All that is stored of a cluster, put together.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Its incarnations, the oldest first.
    pub lives: Vec<Life>,
}

/// One incarnation.
#[derive(Clone, Debug)]
pub struct Life {
    /// Its name.
    pub incarnation: String,
    /// Its snapshots, the oldest first.
    pub snapshots: Vec<SnapshotAt>,
    /// Its lanes.
    pub lanes: BTreeMap<Lane, Stream>,
}

/// A snapshot, as far as its whereabouts matter.
#[derive(Clone, Debug)]
pub struct SnapshotAt {
    /// Its name.
    pub id: String,
    /// Where it is consistent.
    pub position: Position,
    /// Where the copy began.
    pub started: Position,
    /// When it was consistent.
    pub at: Bracket,
}

/// A lane and its lines.
#[derive(Clone, Debug)]
pub struct Stream {
    /// What is stored.
    pub history: History,
    /// The lines that times follow, the oldest first.
    pub lines: Vec<Line>,
}

impl From<History> for Stream {
    fn from(history: History) -> Self {
        let lines = history.lines();
        Self { history, lines }
    }
}

/// A stretch of time that can be restored to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// From the oldest of its snapshots on.
    pub from: Instant,
    /// Up to here.
    pub to: Instant,
    /// The life that it lies in, by index.
    pub life: usize,
    /// Its snapshots, by index in the life, the oldest first.
    pub snapshots: Vec<usize>,
    /// Why it ends, where that is known.
    pub ended: Option<String>,
    /// Whether the log may go on: nothing is stored behind its end, and nobody said that it was lost.
    pub is_open: bool,
}

/// Time that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The end of the window before.
    pub from: Instant,
    /// The beginning of the next one.
    pub to: Instant,
    /// Why.
    pub reason: String,
}

/// How far the log goes on from a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Every lane is complete up to here; the snapshot's own time where there is no log.
    pub to: Instant,
    /// Why it goes no further, where that is known.
    pub ended: Option<String>,
    /// Whether it may go further: nothing is stored behind its end, and nobody said that it was lost.
    pub is_open: bool,
}

impl Reach {
    fn alone(at: Bracket) -> Self {
        Self { to: at.latest, ended: Some(UNFOLLOWED.to_owned()), is_open: false }
    }
}

/// The log behind a snapshot in one lane.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// The line that it lies on.
    pub line: Line,
    /// The run.
    pub run: Run,
    /// Its parts from the snapshot's start on.
    pub parts: Vec<Part>,
}

/// Why a snapshot reaches no further than its own instant.
const UNFOLLOWED: &str = "the log was not followed behind the snapshot before it";

/// How long log may take to arrive before its absence is called a hole.
pub const LATE: Duration = Duration::from_secs(60);

impl Past {
    /// The windows, the oldest first; they do not overlap within a life.
    pub fn windows(&self) -> Vec<Window> {
        let mut all: Vec<Window> = Vec::new();
        for (index, life) in self.lives.iter().enumerate() {
            let mut windows: Vec<Window> = Vec::new();
            for (number, copy) in life.snapshots.iter().enumerate() {
                let Some(reach) = life.reach(copy) else { continue };
                let from = copy.at.latest;
                match windows.last_mut().filter(|w| from <= w.to) {
                    Some(window) => {
                        if reach.to >= window.to {
                            window.to = reach.to;
                            window.ended = reach.ended;
                            window.is_open = reach.is_open;
                        }
                        window.snapshots.push(number);
                    }
                    None => windows.push(Window {
                        from,
                        to: reach.to,
                        life: index,
                        snapshots: vec![number],
                        ended: reach.ended,
                        is_open: reach.is_open,
                    }),
                }
            }
            all.append(&mut windows);
        }
        all.sort_by_key(|w| (w.from, w.to));
        all
    }

    /// What lies between the windows. A snapshot may be stored before the log up to it is: what is late by less than [`LATE`] is no hole.
    pub fn holes(&self, now: Instant) -> Vec<Hole> {
        let windows = self.windows();
        let mut holes = Vec::new();
        let mut before: Option<&Window> = None;
        for window in &windows {
            if let Some(last) = before
                && last.to < window.from
                && !(last.is_open && last.life == window.life && now.since(window.from) < LATE)
            {
                let reason = match (&last.ended, last.life == window.life) {
                    (Some(reason), _) => reason.clone(),
                    (None, true) if last.is_open => {
                        "the log before the snapshot behind it has not arrived".to_owned()
                    }
                    (None, true) => "the log behind the last snapshot before it breaks off".to_owned(),
                    (None, false) => "another incarnation of the data began".to_owned(),
                };
                holes.push(Hole { from: last.to, to: window.from, reason });
            }
            if before.is_none_or(|last| last.to <= window.to) {
                before = Some(window);
            }
        }
        holes
    }

    /// The snapshots that a restore to `at` can start from: (life, snapshot), the best first: of the newest life, the newest snapshot.
    pub fn for_time(&self, at: Instant) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for (index, life) in self.lives.iter().enumerate().rev() {
            for (number, copy) in life.snapshots.iter().enumerate().rev() {
                if copy.at.latest <= at && life.reach(copy).is_some_and(|reach| at <= reach.to) {
                    found.push((index, number));
                }
            }
        }
        found
    }

    /// The snapshots that a restore to `position` can start from, the best first; on ended branches too.
    pub fn for_position(&self, position: &Position) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for (index, life) in self.lives.iter().enumerate().rev() {
            for (number, copy) in life.snapshots.iter().enumerate().rev() {
                if life.reaches(copy, position) {
                    found.push((index, number));
                }
            }
        }
        found
    }
}

impl Life {
    /// How far the log goes on from `copy`; `None` if that lies on a branch that ended.
    pub fn reach(&self, copy: &SnapshotAt) -> Option<Reach> {
        let mut reach: Option<Reach> = None;
        for (lane, place) in &copy.position.0 {
            let here = match self.lanes.get(lane) {
                None => Reach::alone(copy.at),
                Some(stream) => stream.reach(place, copy.at)?,
            };
            if reach.as_ref().is_none_or(|r| here.to < r.to) {
                reach = Some(here);
            }
        }
        Some(reach.unwrap_or(Reach::alone(copy.at)))
    }

    /// Whether the log leads from `copy` to `position`: every lane of the copy is in it, at or behind the copy's place.
    pub fn reaches(&self, copy: &SnapshotAt, position: &Position) -> bool {
        !position.0.is_empty()
            && position.0.keys().all(|lane| copy.position.0.contains_key(lane))
            && copy.position.0.iter().all(|(lane, from)| {
                let Some(to) = position.get(lane) else { return false };
                from == to || self.stretch_to(lane, copy, to).is_some()
            })
    }

    /// The log of `lane` on the line that times follow, from `copy` on. `None`: there is none.
    pub fn stretch(&self, lane: &Lane, copy: &SnapshotAt) -> Option<Stretch> {
        let stream = self.lanes.get(lane)?;
        let place = copy.position.get(lane)?;
        let line = stream.lines.iter().rfind(|line| line.holds(place))?;
        stream.cut(line, place, copy.started.get(lane).unwrap_or(place))
    }

    /// The log of `lane` from `copy` to `to`, whether that branch survived or not. `None`: there is none, or it does not reach.
    pub fn stretch_to(&self, lane: &Lane, copy: &SnapshotAt, to: &Place) -> Option<Stretch> {
        let stream = self.lanes.get(lane)?;
        let from = copy.position.get(lane)?;
        let line = stream.history.line_to(to);
        line.is_at_or_below(from, to).filter(|below| *below)?;
        let stretch = stream.cut(&line, from, copy.started.get(lane).unwrap_or(from))?;
        line.is_at_or_below(to, &stretch.run.last).filter(|reached| *reached)?;
        Some(stretch)
    }
}

impl Stream {
    fn reach(&self, place: &Place, at: Bracket) -> Option<Reach> {
        let alone = Reach::alone(at);
        let Some(line) = self.lines.iter().rfind(|line| line.holds(place)) else {
            // The source may have moved on to an epoch that its follower has not seen yet; one that is older than the log was left behind.
            let newest = self.lines.iter().flat_map(|l| &l.runs).filter_map(|r| r.complete_to).max();
            return newest.is_none_or(|newest| newest < at.latest).then_some(alone);
        };
        let newest = self.lines.last().is_some_and(|last| std::ptr::eq(last, line));
        let Some(run) = line.run_from(place) else {
            // The log up to the snapshot may still be on its way.
            let last = line.runs.last().map(|run| &run.last);
            let is_open = newest && last.is_some_and(|last| line.is_at_or_below(last, place) == Some(true));
            return Some(Reach { is_open, ended: alone.ended.filter(|_| !is_open), ..alone });
        };
        let is_last = line.runs.last().is_some_and(|last| std::ptr::eq(last, run));
        let is_open = newest && is_last && run.ended.is_none();
        let to = run.complete_to.map_or(at.latest, |to| to.max(at.latest));
        Some(Reach { to, ended: run.ended.clone(), is_open })
    }

    fn cut(&self, line: &Line, place: &Place, started: &Place) -> Option<Stretch> {
        let run = line.run_from(place)?;
        let begin = match line.is_at_or_below(started, place) {
            Some(true) => started,
            _ => place,
        };
        let parts = line.parts_from(run, begin, self.history.pieces()).to_vec();
        Some(Stretch { line: line.clone(), run: run.clone(), parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Beat, Gap, Piece};

    fn copy(id: &str, offset: u64, at: i64) -> SnapshotAt {
        let position = Position::single(Lane::new("l"), Place::new("a", offset));
        SnapshotAt { id: id.into(), started: position.clone(), position, at: Bracket::exactly(Instant(at)) }
    }

    /// Log of one unit a microsecond from `first` to `last`.
    fn piece(seq: u64, first: u64, last: u64) -> Piece {
        let at = |offset: u64| Instant(i64::try_from(offset).unwrap());
        Piece {
            generation: 1,
            seq,
            is_sealed: false,
            first: Place::new("a", first),
            last: Place::new("a", last),
            bracket: Bracket { earliest: at(first), latest: at(last) },
        }
    }

    fn past(snapshots: Vec<SnapshotAt>, pieces: Vec<Piece>, beats: Vec<Beat>, gaps: Vec<Gap>) -> Past {
        let lanes = BTreeMap::from([(Lane::new("l"), History::new(pieces, vec![], beats, gaps).into())]);
        Past { lives: vec![Life { incarnation: "i".into(), snapshots, lanes }] }
    }

    fn written(past: &Past) -> String {
        written_at(past, Instant::MAX)
    }

    fn written_at(past: &Past, now: Instant) -> String {
        let windows =
            past.windows().into_iter().map(|w| format!("{}-{} of {:?}", w.from.0, w.to.0, w.snapshots));
        let holes =
            past.holes(now).into_iter().map(|h| format!("hole {}-{}: {}", h.from.0, h.to.0, h.reason));
        windows.chain(holes).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_window_is_a_snapshot_and_unbroken_log() {
        let past = past(
            vec![copy("x", 10, 10), copy("y", 30, 30)],
            vec![piece(1, 10, 40), piece(2, 40, 50)],
            vec![],
            vec![],
        );
        assert_eq!(written(&past), "10-50 of [0, 1]");
        assert_eq!(past.for_time(Instant(35)), [(0, 1), (0, 0)]);
        assert_eq!(past.for_time(Instant(29)), [(0, 0)]);
        assert!(past.for_time(Instant(51)).is_empty());
        assert!(past.for_time(Instant(9)).is_empty());
    }

    #[test]
    fn a_hole_ends_it_and_the_next_snapshot_begins_another() {
        let gap = Gap { from: Place::new("a", 20), reason: "the slot was lost".into() };
        let past = past(
            vec![copy("x", 10, 10), copy("y", 30, 30)],
            vec![piece(1, 10, 20), piece(2, 28, 50)],
            vec![],
            vec![gap],
        );
        assert_eq!(written(&past), "10-20 of [0]; 30-50 of [1]; hole 20-30: the slot was lost");
        assert!(past.for_time(Instant(25)).is_empty());
        assert_eq!(past.for_time(Instant(40)), [(0, 1)]);
    }

    #[test]
    fn log_that_is_late_is_no_hole_before_its_time() {
        let past = past(vec![copy("x", 10, 10), copy("y", 30, 30)], vec![piece(1, 10, 20)], vec![], vec![]);
        assert_eq!(written_at(&past, Instant(31)), "10-20 of [0]; 30-30 of [1]");
        let late =
            "10-20 of [0]; 30-30 of [1]; hole 20-30: the log before the snapshot behind it has not arrived";
        assert_eq!(written_at(&past, Instant(61_000_000)), late);
        assert!(past.for_time(Instant(25)).is_empty());
    }

    #[test]
    fn without_log_a_snapshot_is_an_instant_and_beats_stretch_it() {
        let one = past(vec![copy("x", 10, 10)], vec![], vec![], vec![]);
        assert_eq!(written(&one), "10-10 of [0]");
        let beat = Beat { generation: 1, at: Place::new("a", 10), time: Bracket::exactly(Instant(70)) };
        let idle = past(vec![copy("x", 10, 10)], vec![], vec![beat], vec![]);
        assert_eq!(written(&idle), "10-70 of [0]");
    }

    #[test]
    fn a_position_is_had_from_a_snapshot_below_it_on_its_own_branch() {
        let past = past(vec![copy("x", 10, 10), copy("y", 30, 30)], vec![piece(1, 10, 50)], vec![], vec![]);
        let to = |offset| Position::single(Lane::new("l"), Place::new("a", offset));
        assert_eq!(past.for_position(&to(30)), [(0, 1), (0, 0)]);
        assert_eq!(past.for_position(&to(29)), [(0, 0)]);
        assert!(past.for_position(&to(51)).is_empty());
        assert!(past.for_position(&Position::default()).is_empty());
    }
}

//! The history of one lane, from what is stored of its log: epochs, branches, generations, and what holds together.
//!
//! Pure: it takes what the names of the vault's objects say ([`Piece`], [`Branched`], [`Beat`], [`Gap`]) and gives [`Line`]s of [`Run`]s.
//! - A *line* is a path through the tree of epochs, from a root to a tip, each epoch cut where the next one branched off. The newest
//!   line is the surviving history; a line of another root (after a hole) is older history that times may still fall into. A branch
//!   that ended at a switch is on no surviving line and is reached by [`History::line_to`] alone.
//! - What a generation wrote past its successor's first place is dropped: a lease cannot fence, so readers must.
//! - A *run* is log without a gap. Tails give way to sealed segments, which are never superseded, wherever those reach; a piece may be cut
//!   at its end, never at its start, because the adapter's state is known only where a piece begins.
//! - A beat counts only where its run ends, or where what follows says nothing of time, so that the end of what is known never moves back; and
//!   only from the newest generation there: one left behind on an old primary proves nothing.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_model::{Bracket, Branch, Epoch, Instant, Offset, Place};

/// A stored stretch of log, as its object's name tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Who wrote it: [`History`] drops what an older writer wrote past a newer one's first place.
    pub generation: u64,
    /// The order in which its generation wrote.
    pub seq: u64,
    /// Whether it is never superseded, so that who has planned with it finds it later.
    pub is_sealed: bool,
    /// The place of its first byte.
    pub first: Place,
    /// The place after its last byte, in the same epoch.
    pub last: Place,
    /// When what is in it happened.
    pub bracket: Bracket,
}

/// An epoch that was seen to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branched {
    /// Who saw it.
    pub generation: u64,
    /// The order in which its generation wrote.
    pub seq: u64,
    /// What began, and where.
    pub branch: Branch,
}

/// "At this time the source had nothing behind this place."
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Who heard it.
    pub generation: u64,
    /// The place.
    pub at: Place,
    /// The time, by the source's clock.
    pub time: Bracket,
}

/// A hole that its writer declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last place that is there.
    pub from: Place,
    /// Why nothing follows.
    pub reason: String,
}

/// All that is known of one lane.
#[derive(Clone, Debug, Default)]
pub struct History {
    pieces: Vec<Piece>,
    branches: Vec<Branched>,
    beats: Vec<Beat>,
    gaps: Vec<Gap>,
    /// How each epoch came to be: the newest record of it.
    parents: BTreeMap<Epoch, Branch>,
    /// Pieces that cannot be read. They still say where their writers began.
    lost: BTreeSet<usize>,
}

/// A path through the tree of epochs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The epochs, the oldest first.
    pub legs: Vec<Leg>,
    /// The log on it, in order; between two runs something is missing.
    pub runs: Vec<Run>,
}

/// One epoch's part of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The epoch.
    pub epoch: Epoch,
    /// Its first offset.
    pub from: Offset,
    /// Where the next epoch of the line branched off; `None` at the tip.
    pub to: Option<Offset>,
}

/// Log without a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The place of its first byte.
    pub first: Place,
    /// The place after its last byte.
    pub last: Place,
    /// What it is made of, in order.
    pub parts: Vec<Part>,
    /// Up to when it is known to be complete; `None` when it says nothing of time.
    pub complete_to: Option<Instant>,
    /// Why it ends, where its writer said so.
    pub ended: Option<String>,
    span: (Mark, Mark),
}

/// A piece, or its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The index of the [`Piece`] given to [`History::new`].
    pub piece: usize,
    /// Where it is cut; at most the piece's own end.
    pub to: Offset,
}

/// A place's rank on a line: the leg, then the offset. Where one leg ends the next begins: that place has the later leg's rank.
type Mark = (usize, Offset);

impl History {
    /// Puts together what is stored of a lane. The order of the pieces is kept for [`Part::piece`].
    pub fn new(pieces: Vec<Piece>, branches: Vec<Branched>, beats: Vec<Beat>, gaps: Vec<Gap>) -> Self {
        let mut ordered: Vec<&Branched> = branches.iter().collect();
        ordered.sort_by_key(|b| (b.generation, b.seq));
        let mut parents: BTreeMap<Epoch, Branch> = BTreeMap::new();
        for seen in ordered {
            // One that does not know where the epoch came from takes nothing away from one that did.
            let known = parents.get(&seen.branch.epoch).is_some_and(|b| b.parent.is_some());
            if seen.branch.parent.is_some() || !known {
                parents.insert(seen.branch.epoch.clone(), seen.branch.clone());
            }
        }
        Self { pieces, branches, beats, gaps, parents, lost: BTreeSet::new() }
    }

    /// As though a piece held no log.
    #[must_use]
    pub fn without(mut self, piece: usize) -> Self {
        self.lost.insert(piece);
        self
    }

    /// The pieces, as they were given.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How `epoch` came to be, if that was recorded.
    pub fn branch(&self, epoch: &Epoch) -> Option<&Branch> {
        self.parents.get(epoch)
    }

    /// The lines that times follow, the oldest first; the last one is the surviving history.
    pub fn lines(&self) -> Vec<Line> {
        let mut records: Vec<(u64, u64, &Epoch)> = self
            .pieces
            .iter()
            .map(|p| (p.generation, p.seq, &p.first.epoch))
            .chain(self.branches.iter().map(|b| (b.generation, b.seq, &b.branch.epoch)))
            // A beat says least of where its generation went: what the same one wrote says more.
            .chain(self.beats.iter().map(|b| (b.generation, 0, &b.at.epoch)))
            .collect();
        records.sort_unstable_by(|a, b| b.cmp(a));
        let mut roots: BTreeSet<Epoch> = BTreeSet::new();
        let mut lines = Vec::new();
        for (_, _, epoch) in records {
            let legs = self.legs(epoch, None);
            if roots.insert(legs[0].epoch.clone()) {
                lines.push(self.line(legs));
            }
        }
        lines.reverse();
        lines
    }

    /// The line that leads to `place` and ends there, whether it survived or not.
    pub fn line_to(&self, place: &Place) -> Line {
        self.line(self.legs(&place.epoch, Some(place.offset)))
    }

    /// The way from a root to `tip`. A circle, which no engine writes, is broken where it closes.
    fn legs(&self, tip: &Epoch, to: Option<Offset>) -> Vec<Leg> {
        let mut legs: Vec<Leg> = Vec::new();
        let mut next = Some((tip.clone(), to));
        while let Some((epoch, to)) = next.take() {
            if legs.iter().any(|leg| leg.epoch == epoch) {
                break;
            }
            let branch = self.parents.get(&epoch);
            let parent = branch.and_then(|b| b.parent.clone());
            let from = match parent {
                Some(_) => branch.map_or(Offset(0), |b| b.first),
                None => Offset(0),
            };
            legs.push(Leg { epoch, from, to });
            next = parent.map(|place| (place.epoch, Some(place.offset)));
        }
        legs.reverse();
        legs
    }

    fn line(&self, legs: Vec<Leg>) -> Line {
        let mut line = Line { legs, runs: Vec::new() };
        let spans = self.spans(&line, &self.bounds(&line));
        line.runs = runs(&self.pieces, &line, spans);
        // Where nothing was ever written, beats alone say how far one has come.
        for beat in &self.beats {
            let Some(mark) = line.rank(&beat.at) else { continue };
            if line.runs.iter().any(|run| run.span.0 <= mark && mark <= run.span.1) {
                continue;
            }
            let at = line.runs.partition_point(|run| run.span.0 < mark);
            line.runs.insert(at, run(&self.pieces, &line, mark, mark, &[]));
        }
        for run in &mut line.runs {
            let beaten = self.beats.iter().filter(|b| self.counts(b, run)).map(|b| b.time.earliest).max();
            run.complete_to = run.complete_to.max(beaten);
            run.ended = self.gaps.iter().rfind(|g| g.from == run.last).map(|g| g.reason.clone());
        }
        line
    }

    /// Whether a beat says up to when `run` is complete.
    fn counts(&self, beat: &Beat, run: &Run) -> bool {
        let Place { epoch, offset } = &beat.at;
        let begins_below = run.first.epoch != *epoch || run.first.offset <= *offset;
        if *epoch != run.last.epoch || *offset > run.last.offset || !begins_below {
            return false;
        }
        let is_older = |part: &Part| beat.generation < self.pieces[part.piece].generation;
        // What follows and has times says itself how far it goes: a clock may have been set back. A sealed piece's may be of what is below.
        let says_nothing = |part: &Part| {
            let piece = &self.pieces[part.piece];
            piece.first.epoch != *epoch
                || part.to <= *offset
                || known(piece.bracket).is_none()
                || (piece.is_sealed && piece.first.offset < *offset)
        };
        !run.parts.iter().any(is_older) && run.parts.iter().all(says_nothing)
    }

    /// The first mark on the line of every generation that wrote on it, by generation.
    fn bounds(&self, line: &Line) -> Vec<(u64, Mark)> {
        let mut firsts: BTreeMap<u64, Mark> = BTreeMap::new();
        let pieces = self.pieces.iter().map(|p| (p.generation, line.rank(&p.first)));
        let branches = self.branches.iter().map(|b| {
            (b.generation, line.rank(&Place { epoch: b.branch.epoch.clone(), offset: b.branch.first }))
        });
        for (generation, rank) in pieces.chain(branches) {
            let Some(rank) = rank else { continue };
            firsts.entry(generation).and_modify(|first| *first = rank.min(*first)).or_insert(rank);
        }
        firsts.into_iter().collect()
    }

    /// What of each piece lies on the line: (first, last, piece), by first.
    fn spans(&self, line: &Line, bounds: &[(u64, Mark)]) -> Vec<(Mark, Mark, usize)> {
        let mut spans = Vec::with_capacity(self.pieces.len());
        for (index, piece) in self.pieces.iter().enumerate() {
            let leg = line.legs.iter().position(|leg| leg.epoch == piece.first.epoch);
            let Some(leg) = leg.filter(|_| !self.lost.contains(&index)) else { continue };
            let (from, to) = (line.legs[leg].from, line.legs[leg].to);
            let end = to.map_or(piece.last.offset, |to| piece.last.offset.min(to));
            if piece.first.offset < from || piece.first.offset >= end {
                continue;
            }
            let first = (leg, piece.first.offset);
            let bound = bounds.iter().filter(|(g, _)| *g > piece.generation).map(|(_, mark)| *mark).min();
            let mut last = line.normal((leg, end));
            if let Some(bound) = bound {
                if bound <= first {
                    continue;
                }
                last = last.min(bound);
            }
            spans.push((first, last, index));
        }
        spans.sort_unstable();
        spans
    }
}

impl Line {
    /// The rank of a place on this line; `None` if it is not on it.
    fn rank(&self, place: &Place) -> Option<Mark> {
        let leg = self.legs.iter().position(|leg| leg.epoch == place.epoch)?;
        let within =
            place.offset >= self.legs[leg].from && self.legs[leg].to.is_none_or(|to| place.offset <= to);
        within.then(|| self.normal((leg, place.offset)))
    }

    fn normal(&self, mut mark: Mark) -> Mark {
        while self.legs[mark.0].to == Some(mark.1) && mark.0 + 1 < self.legs.len() {
            mark = (mark.0 + 1, self.legs[mark.0 + 1].from);
        }
        mark
    }

    /// Whether the line goes through `place`.
    pub fn holds(&self, place: &Place) -> bool {
        self.rank(place).is_some()
    }

    /// Whether `a` is at or below `b`; `None` unless both are on the line.
    pub fn is_at_or_below(&self, a: &Place, b: &Place) -> Option<bool> {
        Some(self.rank(a)? <= self.rank(b)?)
    }

    /// The run that goes on from `place` (or ends at it).
    pub fn run_from(&self, place: &Place) -> Option<&Run> {
        let mark = self.rank(place)?;
        // A run that begins here says more than one that ends here.
        self.runs.iter().rfind(|run| run.span.0 <= mark && mark <= run.span.1)
    }

    /// The parts of `run` from the one that holds `place` on; all of them if `place` lies below.
    pub fn parts_from<'a>(&self, run: &'a Run, place: &Place, pieces: &[Piece]) -> &'a [Part] {
        let Some(mark) = self.rank(place) else { return &run.parts };
        let past = |part: &Part| {
            let piece = &pieces[part.piece];
            let end = Place { epoch: piece.first.epoch.clone(), offset: part.to };
            self.rank(&end).is_some_and(|end| end <= mark)
        };
        let skip = run.parts.iter().take_while(|part| past(part)).count();
        &run.parts[skip..]
    }
}

/// Joins spans (sorted by first) into runs: from each start, again and again a span that begins within what is covered and reaches beyond it;
/// a sealed one where there is one, then the one that reaches furthest.
fn runs(pieces: &[Piece], line: &Line, spans: Vec<(Mark, Mark, usize)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut spans = spans.into_iter().peekable();
    while let Some((start, ..)) = spans.peek().copied() {
        let mut chain: Vec<(Mark, Mark, usize)> = Vec::new();
        let mut open: Vec<(Mark, Mark, usize)> = Vec::new();
        let mut covered = start;
        loop {
            while let Some(span) = spans.next_if(|span| span.0 <= covered) {
                open.push(span);
            }
            open.retain(|span| span.1 > covered);
            // Of two that reach as far, the one that begins where the last ended needs no cutting; then the longer.
            let key = |s: &(Mark, Mark, usize)| {
                let piece = &pieces[s.2];
                (piece.is_sealed, s.1, s.0 == covered, std::cmp::Reverse(s.0), piece.generation)
            };
            let Some(best) = open.iter().copied().max_by_key(key) else { break };
            // A tail that reaches beyond several sealed ones may begin before the last of them does.
            while chain.pop_if(|before| before.0 >= best.0).is_some() {}
            if let Some(before) = chain.last_mut() {
                before.1 = before.1.min(best.0);
            }
            chain.push(best);
            covered = best.1;
        }
        if chain.is_empty() {
            continue;
        }
        runs.push(run(pieces, line, start, covered, &chain));
    }
    runs
}

fn run(pieces: &[Piece], line: &Line, start: Mark, end: Mark, chain: &[(Mark, Mark, usize)]) -> Run {
    let place = |mark: Mark| Place { epoch: line.legs[mark.0].epoch.clone(), offset: mark.1 };
    let part = |&(first, last, piece): &(Mark, Mark, usize)| {
        // A span that ends where the next leg begins ends, in its own epoch, where that branched off.
        let to = match last.0 == first.0 {
            true => last.1,
            false => line.legs[first.0].to.unwrap_or(pieces[piece].last.offset),
        };
        Part { piece, to }
    };
    let parts: Vec<Part> = chain.iter().map(part).collect();
    let complete_to = parts.iter().rev().find_map(|p| known(pieces[p.piece].bracket));
    Run { first: place(start), last: place(end), parts, complete_to, ended: None, span: (start, end) }
}

/// Up to when what is in a bracket happened, if that is known.
fn known(bracket: Bracket) -> Option<Instant> {
    (bracket.latest != Instant::MAX && bracket.latest != Instant::MIN).then_some(bracket.latest)
}

#[cfg(test)]
mod tests;

//! Finding the place in every lane that a target stands for, and how sure that is.

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::{self as engine, Cutting, Kind, LogSource};
use mainstay_model::{Bracket, Instant, Lane, Place, Position};

use super::{Answer, Refusal, Wanted, blocking};
use crate::Protected;
use crate::catalogue::Catalogue;
use crate::error::{Error, Result};
use crate::log::StoredLog;
use crate::past::SnapshotAt;

/// A cut in every lane.
pub(super) struct Found {
    pub position: Position,
    /// The instants that it stands for in every lane, as far as known.
    pub at: Bracket,
    pub skew: Skew,
    pub warnings: Vec<String>,
}

/// How far a cut may be from the instant that was asked for: later (it takes in what happened behind it) or earlier.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Skew {
    pub late: Duration,
    pub early: Duration,
}

impl Skew {
    /// By how much cuts can be apart, at the worst.
    pub(super) fn apart(all: &[Self]) -> Duration {
        let late = all.iter().map(|s| s.late).max().unwrap_or_default();
        let early = all.iter().map(|s| s.early).max().unwrap_or_default();
        late + early
    }
}

/// A cut inside a bracket wider than this is warned about.
const WIDE: Duration = Duration::from_secs(1);
/// One that has no beginning at all looks like this.
const UNKNOWN: Duration = Duration::from_secs(100 * 365 * 86400);

/// Finds the cut for what is wanted, in every lane of the snapshot.
pub(super) async fn position(
    of: &Protected,
    copy: &SnapshotAt,
    log: &Arc<StoredLog>,
    wanted: &Wanted<'_>,
    reach: Instant,
) -> Result<Answer<Found>> {
    let cluster = of.cluster.name.as_str();
    let Some(replay) = of.engine.replay() else {
        let at_snapshot = match wanted {
            Wanted::Time(at) | Wanted::End(at) => *at == copy.at.latest,
            Wanted::Position(position) => **position == copy.position,
        };
        return Ok(match at_snapshot {
            true => Ok(Found {
                position: copy.position.clone(),
                at: copy.at,
                skew: Skew::default(),
                warnings: vec![],
            }),
            false => {
                Err(Refusal::new("unsupported", cluster, format!("{} cannot replay log", of.engine.name()))
                    .instead(format!("the snapshot's own instant: --at {}", copy.at.latest)))
            }
        });
    };
    let mut found = Found {
        position: Position::default(),
        at: Bracket { earliest: Instant::MIN, latest: Instant::MAX },
        skew: Skew::default(),
        warnings: vec![],
    };
    for (lane, from) in &copy.position.0 {
        let target = match wanted {
            Wanted::Time(at) => engine::Target::Time(*at),
            Wanted::End(_) => engine::Target::End,
            Wanted::Position(position) => match position.get(lane) {
                Some(place) => engine::Target::Place(place.clone()),
                None => {
                    return Ok(Err(Refusal::new(
                        "invalid",
                        cluster,
                        format!("the position says nothing of lane {lane}"),
                    )));
                }
            },
        };
        let here = matches!(&target, engine::Target::Place(place) if place == from);
        let cutting = if here || log.segments(lane).is_empty() {
            // Nothing to look into: the snapshot itself stands for all up to where nothing more is known.
            Cutting { place: from.clone(), at: Bracket { earliest: copy.at.latest, latest: reach } }
        } else {
            let (lane, from, log) = (lane.clone(), from.clone(), log.clone());
            match blocking(move || replay.cut(&lane, &from, log.as_ref(), &target)).await? {
                Ok(cutting) => cutting,
                Err(error) => return refused(cluster, error, "find the cut"),
            }
        };
        if let Wanted::Time(at) = wanted {
            let (lane, place, log, at) = (lane.clone(), cutting.place.clone(), log.clone(), *at);
            match blocking(move || skew(&lane, &place, log.as_ref(), at)).await? {
                Ok(skew) => {
                    found.skew.late = found.skew.late.max(skew.late);
                    found.skew.early = found.skew.early.max(skew.early);
                }
                Err(error) => return refused(cluster, error, "read log at the cut"),
            }
        }
        found.at.earliest = found.at.earliest.max(cutting.at.earliest);
        found.at.latest = found.at.latest.min(cutting.at.latest);
        found.position.0.insert(lane.clone(), cutting.place);
    }
    let off = found.skew.late.max(found.skew.early);
    if off > UNKNOWN {
        found
            .warnings
            .push("around the target the log does not know when what is in it was written".to_owned());
    } else if off > WIDE {
        let seconds = off.as_secs_f64();
        found.warnings.push(format!("around the target the log knows times only to {seconds:.1} s"));
    }
    Ok(Ok(found))
}

/// Finds a name in the log of a cluster of one lane: the position that it stands for, of the newest life that has it.
pub(super) async fn find_name(of: &Protected, catalogue: &Catalogue, name: &str) -> Result<Answer<Position>> {
    let cluster = of.cluster.name.as_str();
    let unknown = || {
        let what = format!("no log of it holds the name `{name}`");
        Refusal::new("not-found", cluster, what).instead_each(super::refusal::windows(catalogue))
    };
    let Some(replay) = of.engine.replay() else { return Ok(Err(unknown())) };
    let windows = catalogue.past.windows();
    if windows.is_empty() {
        return Ok(Err(Refusal::no_snapshot(cluster, catalogue)));
    }
    for window in windows.iter().rev() {
        let life = &catalogue.past.lives[window.life];
        let Some(copy) = window.snapshots.first().map(|index| &life.snapshots[*index]) else { continue };
        let mut lanes = copy.position.0.iter();
        let (Some((lane, from)), None) = (lanes.next(), lanes.next()) else {
            let what = "it has several lanes, and a name is in one";
            return Ok(Err(
                Refusal::new("unsupported", cluster, what).instead("give --at, --point or --position")
            ));
        };
        let Some(stretch) = life.stretch(lane, copy) else { continue };
        let log = catalogue.log(window.life, [(lane.clone(), stretch)].into()).await?;
        let (target, lane, from) = (engine::Target::Name(name.to_owned()), lane.clone(), from.clone());
        let found =
            blocking(move || replay.cut(&lane, &from, &log, &target).map(|cutting| (lane, cutting.place)))
                .await?;
        match found {
            Ok((lane, place)) => return Ok(Ok(Position::single(lane, place))),
            Err(error) if error.kind == Kind::OutOfLog => {}
            Err(error) => return refused(cluster, error, "look for the name"),
        }
    }
    Ok(Err(unknown()))
}

/// Reads all log up to the cut, and every object of the snapshot.
pub(super) async fn check(
    of: &Protected,
    snapshot: &str,
    log: &Arc<StoredLog>,
    to: &Position,
) -> Result<Answer<()>> {
    let cluster = of.cluster.name.as_str();
    let (log, to) = (log.clone(), to.clone());
    let read = move || {
        for lane in log.lanes() {
            for (index, segment) in log.segments(&lane).iter().enumerate() {
                log.read(&lane, index)?;
                if to
                    .get(&lane)
                    .is_some_and(|p| p.epoch == segment.last.epoch && p.offset <= segment.last.offset)
                {
                    break;
                }
            }
        }
        Ok(())
    };
    if let Err(error) = blocking(read).await? {
        return refused(cluster, error, "check log");
    }
    let options =
        mainstay_vault::VerifyOptions { snapshot: Some(snapshot.to_owned()), sample: 1.0, contents: true };
    let verified = of.vault.verify(&options).await;
    let verified =
        verified.map_err(|source| Error::Vault { what: format!("verify snapshot {snapshot}"), source })?;
    Ok(match verified.damaged.first() {
        None => Ok(()),
        Some(damage) => {
            let what = format!("`{}` is damaged: {}", damage.object, damage.reason);
            Err(Refusal { object: Some(damage.object.clone()), ..Refusal::new("damaged", cluster, what) })
        }
    })
}

fn refused<T>(cluster: &str, error: engine::Error, doing: &str) -> Result<Answer<T>> {
    let code = match &error.kind {
        Kind::OutOfLog => "out-of-window",
        Kind::Ambiguous { .. } | Kind::Unsupported => error.kind.code(),
        Kind::Damaged => "damaged",
        Kind::Invalid => "invalid",
        _ => return Err(Error::Engine { what: format!("{doing} of {cluster}"), source: Box::new(error) }),
    };
    let mut refusal = Refusal::new(code, cluster, error.what.clone()).instead_each(error.hint.clone());
    if error.kind == Kind::Damaged {
        refusal.object = super::damage::object_in(&error);
        // What can be had instead is known better here.
        refusal.instead.clear();
    }
    if let Kind::Ambiguous { candidates } = error.kind {
        refusal = refusal.instead_each(candidates);
    }
    Ok(Err(refusal))
}

/// How far a cut at `place` may be from `at`: the times known of what lies right behind it, and right below.
///
/// Only where the place is the end of a time mark. An adapter that cuts within one knows more than the marks say (the times of single
/// commits), and is believed.
fn skew(lane: &Lane, place: &Place, log: &dyn LogSource, at: Instant) -> engine::Result<Skew> {
    let mut skew = Skew::default();
    let segments = log.segments(lane);
    for (index, segment) in segments.iter().enumerate() {
        let (first, last) = (segment.first.offset, segment.last.offset);
        if segment.first.epoch != place.epoch || place.offset < first || place.offset > last {
            continue;
        }
        let times = log.read(lane, index)?.times;
        let below = times.iter().position(|m| m.offset == place.offset);
        let behind = match below {
            Some(index) => times.get(index + 1),
            None if place.offset == first => times.first(),
            None => None,
        };
        if let Some(mark) = below.and_then(|index| times.get(index)) {
            skew.late = skew.late.max(mark.at.latest.since(at));
        }
        if let Some(mark) = behind {
            skew.early = skew.early.max(at.since(mark.at.earliest));
        }
        // What lies behind a segment's end may lie in another epoch: then its places do not tell that it does.
        let next = segments.get(index + 1).filter(|next| next.first.epoch != place.epoch);
        if next.is_some() && place.offset == last {
            let times = log.read(lane, index + 1)?.times;
            if let Some(mark) = times.first() {
                skew.early = skew.early.max(at.since(mark.at.earliest));
            }
        }
    }
    Ok(skew)
}

#[cfg(test)]
mod tests {
    use mainstay_engine::{LogSource, Segment, SegmentData, TimeMark};
    use mainstay_model::{Branch, Offset};

    use super::*;

    /// One segment of ten bytes, with marks at 4 (from 100 to 200) and at 10 (from 190 to 300).
    struct OneSegment;

    impl LogSource for OneSegment {
        fn lanes(&self) -> Vec<Lane> {
            vec![Lane::new("l")]
        }
        fn segments(&self, _: &Lane) -> Vec<Segment> {
            let bracket = Bracket { earliest: Instant(100), latest: Instant(300) };
            vec![Segment { first: Place::new("a", 0), last: Place::new("a", 10), bracket }]
        }
        fn read(&self, lane: &Lane, index: usize) -> engine::Result<SegmentData> {
            let mark = |offset: u64, from, to| TimeMark {
                offset: Offset::from(offset),
                at: Bracket { earliest: Instant(from), latest: Instant(to) },
            };
            Ok(SegmentData {
                segment: self.segments(lane)[index].clone(),
                times: vec![mark(4, 100, 200), mark(10, 190, 300)],
                carry: String::new(),
                bytes: bytes::Bytes::from_static(&[0; 10]),
            })
        }
        fn branches(&self, _: &Lane) -> Vec<(Branch, Option<bytes::Bytes>)> {
            vec![]
        }
        fn complete_to(&self, _: &Lane) -> Option<Instant> {
            None
        }
    }

    /// The same, and behind it ten bytes of another epoch, from 260 to 900.
    struct Branched;

    impl LogSource for Branched {
        fn lanes(&self) -> Vec<Lane> {
            OneSegment.lanes()
        }
        fn segments(&self, lane: &Lane) -> Vec<Segment> {
            let bracket = Bracket { earliest: Instant(260), latest: Instant(900) };
            let behind = Segment { first: Place::new("b", 10), last: Place::new("b", 20), bracket };
            [OneSegment.segments(lane), vec![behind]].concat()
        }
        fn read(&self, lane: &Lane, index: usize) -> engine::Result<SegmentData> {
            if index == 0 {
                return OneSegment.read(lane, 0);
            }
            let segment = self.segments(lane)[index].clone();
            let times = vec![TimeMark { offset: Offset::from(20), at: segment.bracket }];
            Ok(SegmentData {
                segment,
                times,
                carry: String::new(),
                bytes: bytes::Bytes::from_static(&[0; 10]),
            })
        }
        fn branches(&self, _: &Lane) -> Vec<(Branch, Option<bytes::Bytes>)> {
            vec![]
        }
        fn complete_to(&self, _: &Lane) -> Option<Instant> {
            None
        }
    }

    #[test]
    fn a_cut_where_a_history_ended_is_as_sure_as_the_times_behind_it() {
        let found =
            |offset| skew(&Lane::new("l"), &Place::new("a", offset), &Branched, Instant(700)).unwrap();
        assert_eq!(found(10).early, Duration::from_micros(440));
        assert_eq!(found(7).early, Duration::ZERO);
    }

    fn check(offset: u64, at: i64, late_us: u64, early_us: u64) {
        let found = skew(&Lane::new("l"), &Place::new("a", offset), &OneSegment, Instant(at)).unwrap();
        let us = Duration::from_micros;
        assert_eq!((found.late, found.early), (us(late_us), us(early_us)), "{offset} at {at}");
    }

    #[test]
    fn a_cut_is_as_sure_as_the_times_around_it() {
        check(4, 250, 0, 60);
        check(4, 195, 5, 5);
        check(4, 185, 15, 0);
        check(7, 250, 0, 0);
        check(0, 150, 0, 50);
        check(10, 350, 0, 0);
        let one =
            |late, early| Skew { late: Duration::from_micros(late), early: Duration::from_micros(early) };
        assert_eq!(Skew::apart(&[one(5, 0), one(0, 60)]), Duration::from_micros(65));
    }
}

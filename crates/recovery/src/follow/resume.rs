//! Where following goes on: what the vault has of a lane, what the spool has, and which of them leads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay_engine::{Chunk, Error, Kind, Result};
use mainstay_model::{Branch, Instant, Lane, Place};
use mainstay_vault::{ClusterVault, LogContent, LogKind, LogObject, SnapshotRecord};

use super::sink::blocking;
use super::spool::{Limits, Spool, peek, range, show};
use crate::Protected;
use crate::history::{Beat, Branched, Gap, History, Line, Piece};

/// What the vault has of a lane.
pub(super) struct InVault {
    /// The surviving history.
    pub line: Option<Line>,
    /// Where it ends.
    pub end: Option<Place>,
    /// Up to when it is complete.
    pub complete_to: Option<Instant>,
    /// Whether its end is a declared hole.
    pub is_broken_off: bool,
}

impl InVault {
    /// From the names of a lane's objects.
    pub fn of(objects: &[LogObject]) -> Self {
        let line = history_of(objects).lines().pop();
        let run = line.as_ref().and_then(|line| line.runs.last());
        Self {
            end: run.map(|run| run.last.clone()),
            complete_to: run.and_then(|run| run.complete_to),
            is_broken_off: run.is_some_and(|run| run.ended.is_some()),
            line,
        }
    }

    /// Whether all log up to `place` is there, from some place below it on, on the surviving history.
    pub fn covers(&self, place: &Place) -> bool {
        let Some(line) = &self.line else { return false };
        line.run_from(place).is_some_and(|run| line.is_at_or_below(place, &run.last) == Some(true))
    }

    /// Whether one of these snapshots leads into the last run, or lies behind it, where log is still to come.
    pub fn has_snapshot(&self, lane: &Lane, snapshots: &[SnapshotRecord]) -> bool {
        let Some(line) = &self.line else { return false };
        let Some(run) = line.runs.last() else { return false };
        snapshots
            .iter()
            .filter_map(|snapshot| snapshot.taken.position.get(lane))
            .any(|place| line.is_at_or_below(&run.first, place) == Some(true))
    }
}

/// A lane's history, from its objects' names.
pub(super) fn history_of(objects: &[LogObject]) -> History {
    let (mut pieces, mut branches, mut beats, mut gaps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for object in objects {
        let (generation, seq, segment) = (object.generation, object.sequence, object.segment.clone());
        match object.kind {
            LogKind::Tail | LogKind::Sealed => {
                let (first, last, bracket) = (segment.first, segment.last, segment.bracket);
                let is_sealed = object.kind == LogKind::Sealed;
                pieces.push(Piece { generation, seq, is_sealed, first, last, bracket });
            }
            LogKind::Beat => beats.push(Beat { generation, at: segment.first, time: segment.bracket }),
            LogKind::Hole => {
                gaps.push(Gap { from: segment.first, reason: object.reason.clone().unwrap_or_default() });
            }
            LogKind::Branch => {
                let Place { epoch, offset: first } = segment.first;
                let branch = Branch { epoch, parent: object.parent.clone(), first };
                branches.push(Branched { generation, seq, branch });
            }
        }
    }
    History::new(pieces, branches, beats, gaps)
}

/// The spool folder of a lane.
pub(super) fn spool_dir(of: &Protected, incarnation: &str, lane: &Lane) -> PathBuf {
    of.spool.join(Lane::new(incarnation).0).join(&lane.0)
}

/// Opens a lane's spool and brings it in line with the vault. Blocks.
pub(super) fn open_spool(dir: &Path, limits: Limits, vault: &InVault) -> Result<(Spool, Vec<String>)> {
    let (spool, damage) = Spool::open(dir, limits.clone())?;
    let Some(end) = &vault.end else { return Ok((spool, damage)) };
    spool.know(end);
    if spool.file_behind(end).is_some() {
        return Ok((spool, damage));
    }
    let is_old = match (spool.last_place(), &vault.line) {
        (None, _) => true,
        // Somebody else went on from there, or from a branch that ours left.
        (Some(last), Some(line)) => {
            line.is_at_or_below(&last, end) == Some(true)
                || line
                    .legs
                    .iter()
                    .any(|leg| leg.epoch == last.epoch && leg.to.is_some_and(|to| last.offset > to))
        }
        (Some(_), None) => false,
    };
    if !is_old {
        // It begins behind the vault's end: what is between was lost when it began.
        return Ok((spool, damage));
    }
    for file in spool.files() {
        spool.remove(file.seq)?;
    }
    drop(spool);
    let (spool, more) = Spool::open(dir, limits)?;
    spool.know(end);
    if !vault.is_broken_off {
        spool.begin(end.clone())?;
    }
    Ok((spool, [damage, more].concat()))
}

/// The log right before `from` in the vault, for an adapter on a machine whose spool does not reach back.
pub(super) async fn before_in_vault(
    vault: &ClusterVault,
    incarnation: &str,
    lane: &Lane,
    from: &Place,
) -> Result<Option<Chunk>> {
    let objects = vault.log_objects(incarnation, lane).await?;
    let holds = |object: &&LogObject| {
        matches!(object.kind, LogKind::Tail | LogKind::Sealed)
            && object.segment.last.epoch == from.epoch
            && object.segment.first.offset < from.offset
            && from.offset <= object.segment.last.offset
    };
    // The shortest will do: only the state at its end is wanted.
    let length = |object: &&LogObject| object.segment.last.offset.0 - object.segment.first.offset.0;
    let Some(object) = objects.iter().filter(holds).min_by_key(length) else { return Ok(None) };
    let content = vault.read_log(object).await.map_err(|e| {
        // Without the state no honest log can be written from here on: a snapshot must begin another.
        let what = format!("read the state of {lane} at {}", show(from));
        Error::new(Kind::LogGone, what).source(e)
    })?;
    let LogContent::Segment(data) = content else { return Ok(None) };
    let used = usize::try_from(from.offset.0 - data.segment.first.offset.0).unwrap_or(usize::MAX);
    let bytes = match (data.segment.last.offset.0 - data.segment.first.offset.0) == data.bytes.len() as u128 {
        true => data.bytes.slice(..used.min(data.bytes.len())),
        false => data.bytes,
    };
    Ok(Some(Chunk { at: data.segment.first, bytes, times: Vec::new(), carry: Some(data.carry) }))
}

/// As [`mainstay_engine::LogSink::before`]: from the spool, or else from the vault.
pub(super) async fn before(
    spool: &Arc<Spool>,
    vault: &ClusterVault,
    incarnation: &str,
    lane: &Lane,
    from: &Place,
) -> Result<Option<Chunk>> {
    let (asked, place) = (spool.clone(), from.clone());
    match blocking(move || asked.before(&place)).await? {
        Some(chunk) => Ok(Some(chunk)),
        None => before_in_vault(vault, incarnation, lane, from).await,
    }
}

/// Up to when the log of a cluster is durable on this machine: the earliest of its lanes. `None` if it is not followed here. Reads beside
/// whoever follows; blocks.
pub fn spooled_to(of: &Protected, incarnation: &str, lanes: &[Lane]) -> Option<Instant> {
    let of_lane = |lane: &Lane| peek(&spool_dir(of, incarnation, lane)).ok().flatten().and_then(|(_, to)| to);
    lanes.iter().map(of_lane).min().flatten()
}

/// The log of a lane between two places of one epoch, and the adapter's state at the start of the chunk that holds the first, from this
/// machine's spool. `None` when that has not (or no longer) all of it.
///
/// # Errors
/// The disk's.
pub(crate) async fn spooled_range(
    of: &Protected,
    incarnation: &str,
    lane: &Lane,
    from: &Place,
    to: &Place,
) -> Result<Option<(String, Vec<u8>)>> {
    let dir = spool_dir(of, incarnation, lane);
    let (from, to) = (from.clone(), to.clone());
    let found = blocking(move || range(&dir, &from, &to)).await?;
    Ok(found.map(|range| (range.carry, range.bytes.to_vec())))
}

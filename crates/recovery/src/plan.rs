//! What a restore would do: a value, made without touching anything.
//!
//! Per cluster: the snapshot to begin with, and the place in every lane where its log is cut. Everything that can be known beforehand is:
//! keys that are missing, targets outside the window or in a hole, packs that are missing or of another size, damaged manifests and indexes, and
//! the log that the cut is looked for in (with [`PlanOptions::check`]: everything). Then the plan is refused, and each [`Refusal`] says what
//! can be had instead. A target is never changed: another snapshot may be taken for the same target (with a
//! warning that says why), another target never.

mod cut;
mod damage;
mod refusal;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::LogSource;
use mainstay_model::{Bracket, Instant, Lane, Position};
use mainstay_vault::{SnapshotReader, SnapshotRecord};
use serde::Serialize;

pub use damage::{Command, say_instead};
pub use refusal::Refusal;

use crate::Protected;
use crate::catalogue::Catalogue;
use crate::error::{Doing, Error, Result};
use crate::log::StoredLog;
use crate::past::{Life, Past, Stretch, Window};
use cut::Skew;

/// What to restore to.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// All that was committed at or before this.
    At(Instant),
    /// A fleet point.
    Point(PointTarget),
    /// A position, on whichever branch it lies. One cluster only.
    Position(Position),
    /// A name in the log. One cluster only.
    Name(String),
    /// The latest instant that every log reaches.
    Latest,
}

/// A fleet point, as far as a restore needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct PointTarget {
    /// Its id.
    pub id: String,
    /// The instant that it stands for.
    pub at: Instant,
    /// By how much its marks can be apart.
    pub skew: Duration,
    /// Each cluster's position in it.
    pub positions: BTreeMap<String, Position>,
}

impl Target {
    /// In words: `2026-01-31T03:04:05.678901Z`, `point p1`, `the latest instant`.
    pub fn describe(&self) -> String {
        match self {
            Self::At(at) => at.to_string(),
            Self::Point(point) => format!("point {}", point.id),
            Self::Position(_) => "the given position".to_owned(),
            Self::Name(name) => format!("the name `{name}`"),
            Self::Latest => "the latest instant".to_owned(),
        }
    }
}

/// How to plan.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// Of a cluster that one of these is of: begin with that, instead of the newest that reaches the target. Refused where it does not reach it,
    /// and where it is of none of the clusters.
    pub snapshots: Vec<String>,
    /// Snapshots not to begin with: of each cluster the next best one is taken. For proofs.
    pub avoid: Vec<String>,
    /// Read and check all log up to the cut, and every object of the snapshot, before anything is touched.
    pub check: bool,
}

/// What a restore would do, and what cannot be had.
#[derive(Clone, Debug, Serialize)]
pub struct RecoverPlan {
    /// What was asked for, in words.
    pub target: String,
    /// The instant that it stands for; of a refused plan perhaps none.
    pub at: Option<Instant>,
    /// By how much the clusters' cuts can be apart.
    pub skew_ms: f64,
    /// The windows' end less what would be restored, of the cluster that loses most.
    pub rpo_seconds: f64,
    /// Cluster by cluster.
    pub clusters: Vec<ClusterPlan>,
    /// Why it cannot be had; a plan with refusals is not run.
    pub refusals: Vec<Refusal>,
}

/// What would be done with one cluster.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterPlan {
    /// The cluster.
    pub cluster: String,
    /// Which life of its data.
    pub incarnation: String,
    /// The snapshot to begin with.
    pub snapshot: String,
    /// When that was consistent.
    pub taken_at: Instant,
    /// Bytes of its files.
    pub bytes: u64,
    /// How many segments of log are applied.
    pub segments: usize,
    /// How many bytes of it.
    pub log_bytes: u64,
    /// Where each lane is cut.
    pub position: Position,
    /// The instant that is restored.
    pub restored_to: Instant,
    /// The instants that the cut stands for, as far as known.
    pub cut: Bracket,
    /// The end of its window.
    pub window_to: Instant,
    /// Other snapshots that reach the same target, the best first.
    pub others: Vec<String>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// A plan, and what is needed to run it.
pub struct Planned {
    /// The plan.
    pub plan: RecoverPlan,
    /// Cluster by cluster, in the plan's order.
    pub ready: Vec<Ready>,
}

/// One cluster, ready to be restored.
#[derive(Clone)]
pub struct Ready {
    /// The cluster.
    pub of: Protected,
    /// What the plan says of it.
    pub plan: ClusterPlan,
    /// The snapshot's record.
    pub record: SnapshotRecord,
    /// The snapshot, opened.
    pub snapshot: Arc<SnapshotReader>,
    /// The log behind it.
    pub log: Arc<StoredLog>,
}

impl Planned {
    /// The plan, if it can be run.
    ///
    /// # Errors
    /// `Refused`.
    pub fn accepted(self) -> Result<Self> {
        if self.plan.refusals.is_empty() { Ok(self) } else { Err(Error::Refused(self.plan.refusals)) }
    }
}

/// Plans the restore of `members` (one cluster, or a group's) to one target.
///
/// # Errors
/// What the vault and the engines say, when nothing can be said of the target at all. What cannot be had is in the plan.
pub async fn plan(members: &[Protected], target: &Target, options: &PlanOptions) -> Result<Planned> {
    let mut plan = RecoverPlan {
        target: target.describe(),
        at: None,
        skew_ms: 0.0,
        rpo_seconds: 0.0,
        clusters: vec![],
        refusals: vec![],
    };
    let mut catalogues = Vec::new();
    for of in members {
        if let Err(error) = of.vault.vault().require_identity() {
            plan.refusals.push(Refusal::of_vault(of.cluster.name.as_str(), &error));
        }
        catalogues.push(Catalogue::load(&of.vault).await?);
    }
    if members.len() > 1 && matches!(target, Target::Position(_) | Target::Name(_)) {
        let what = format!("{} is of one cluster, not of a group", target.describe());
        plan.refusals.push(
            Refusal::new("invalid", "target", what).instead("name the cluster, or give --at or --point"),
        );
    }
    for id in &options.snapshots {
        let is_known = |c: &Catalogue| c.records.contains_key(id) || c.damaged.iter().any(|(of, _)| of == id);
        if !catalogues.iter().any(is_known) {
            let subject = members.first().map_or("target", |of| of.cluster.name.as_str());
            plan.refusals.push(
                Refusal::new("no-snapshot", subject, format!("there is no snapshot {id} of it"))
                    .instead("name one of `mainstay backup list`"),
            );
        }
    }
    if !plan.refusals.is_empty() {
        return Ok(Planned { plan, ready: vec![] });
    }
    let asked = match latest(members, &catalogues, target) {
        Ok(asked) => asked,
        Err(refusals) => {
            plan.refusals = refusals;
            return Ok(Planned { plan, ready: vec![] });
        }
    };
    let mut ready = Vec::new();
    let mut skews = Vec::new();
    for (of, catalogue) in members.iter().zip(&catalogues) {
        match one(of, catalogue, &asked, options).await? {
            Ok((mut one, skew)) => {
                if let Asked::Positions(_, at) = &asked {
                    // What its position stands for is known better than its log can say.
                    one.plan.restored_to = *at;
                }
                ready.push(one);
                skews.push(skew);
            }
            Err(refusal) => plan.refusals.push(refusal),
        }
    }
    plan.clusters = ready.iter().map(|r| r.plan.clone()).collect();
    plan.at = match (&asked, target) {
        (Asked::Time(at), _) => Some(*at),
        (_, Target::Point(point)) => Some(point.at),
        _ => plan.clusters.iter().map(|c| c.restored_to).max(),
    };
    plan.skew_ms = match target {
        Target::Point(point) => point.skew.as_micros() as f64 / 1000.0,
        _ => Skew::apart(&skews).as_micros() as f64 / 1000.0,
    };
    let lost = |c: &ClusterPlan| c.window_to.since(c.restored_to).as_secs_f64();
    plan.rpo_seconds = plan.clusters.iter().map(lost).fold(0.0, f64::max);
    Ok(Planned { plan, ready })
}

/// A target, once `latest` is known.
enum Asked<'a> {
    Time(Instant),
    Positions(&'a BTreeMap<String, Position>, Instant),
    Position(&'a Position),
    Name(&'a str),
    /// The last clean place of the only lane of the only cluster.
    End,
}

fn latest<'a>(
    members: &[Protected],
    catalogues: &[Catalogue],
    target: &'a Target,
) -> std::result::Result<Asked<'a>, Vec<Refusal>> {
    Ok(match target {
        Target::At(at) => Asked::Time(*at),
        Target::Point(point) => Asked::Positions(&point.positions, point.at),
        Target::Position(position) => Asked::Position(position),
        Target::Name(name) => Asked::Name(name),
        Target::Latest => {
            let mut refusals = Vec::new();
            let mut all = Vec::new();
            let mut lanes = 0;
            for (of, catalogue) in members.iter().zip(catalogues) {
                let windows = catalogue.past.windows();
                let Some(window) = windows.iter().max_by_key(|w| w.to) else {
                    refusals.push(Refusal::no_snapshot(of.cluster.name.as_str(), catalogue));
                    continue;
                };
                let life = &catalogue.past.lives[window.life];
                lanes += window.snapshots.last().map_or(0, |s| life.snapshots[*s].position.0.len());
                all.push(windows);
            }
            match refusals.is_empty() {
                true if lanes == 1 => Asked::End,
                true => Asked::Time(latest_of(&all)),
                false => return Err(refusals),
            }
        }
    })
}

/// The latest instant that lies in a window of each. Where there is none, the earliest of the ends: the refusal then says why not.
fn latest_of(all: &[Vec<Window>]) -> Instant {
    let holds = |at: Instant| move |windows: &Vec<Window>| windows.iter().any(|w| w.from <= at && at <= w.to);
    let ends = all.iter().flatten().map(|window| window.to);
    let common = ends.filter(|at| all.iter().all(holds(*at))).max();
    let earliest = all.iter().filter_map(|windows| windows.iter().map(|w| w.to).max()).min();
    common.or(earliest).unwrap_or(Instant::MAX)
}

/// How many damaged objects a plan of one cluster goes round.
const DAMAGED_MAX: usize = 32;

type Answer<T> = std::result::Result<T, Refusal>;

/// Plans one cluster.
async fn one(
    of: &Protected,
    catalogue: &Catalogue,
    asked: &Asked<'_>,
    options: &PlanOptions,
) -> Result<Answer<(Ready, Skew)>> {
    let cluster = of.cluster.name.as_str();
    let found_name;
    let wanted = match asked {
        Asked::Time(at) => Wanted::Time(*at),
        Asked::End => {
            Wanted::End(catalogue.past.windows().iter().map(|w| w.to).max().unwrap_or(Instant::MIN))
        }
        Asked::Position(position) => Wanted::Position(position),
        Asked::Positions(positions, _) => match positions.get(cluster) {
            Some(position) => Wanted::Position(position),
            None => {
                let what = "the point holds no position of it";
                return Ok(Err(
                    Refusal::new("out-of-window", cluster, what).instead("choose a point that was set since")
                ));
            }
        },
        Asked::Name(name) => match cut::find_name(of, catalogue, name).await? {
            Ok(position) => {
                found_name = position;
                Wanted::Position(&found_name)
            }
            Err(refusal) => return Ok(Err(refusal)),
        },
    };
    let only = options.snapshots.iter().find(|id| {
        catalogue.records.contains_key(*id) || catalogue.damaged.iter().any(|(damaged, _)| damaged == *id)
    });
    // As though what is found damaged were not there: what is wrong with one object is no reason to refuse what others give.
    let mut left = Cow::Borrowed(catalogue);
    let (mut warnings, mut last) = (Vec::new(), None);
    for _ in 0..DAMAGED_MAX {
        let mut candidates = left.whole_first(wanted.candidates(&left.past));
        let id_of = |&(life, copy): &(usize, usize)| left.past.lives[life].snapshots[copy].id.clone();
        candidates.retain(|c| !options.avoid.contains(&id_of(c)));
        let (chosen, others): (Vec<_>, Vec<_>) =
            candidates.iter().partition(|c| only.is_none_or(|only| id_of(c) == *only));
        let Some((best, next)) = chosen.split_first() else {
            let others = others.into_iter().map(|c| format!("begin with another: --snapshot {}", id_of(c)));
            let what = only.map(|id| match catalogue.damaged.iter().find(|(damaged, _)| damaged == id) {
                Some((_, reason)) => format!("the manifest of snapshot {id} is damaged ({reason})"),
                None => format!("snapshot {id} does not reach the target"),
            });
            let refusal = match (last, what) {
                (Some(damaged), _) => damage::left(damaged, others.collect(), &left),
                (None, Some(what)) => Refusal::new("no-snapshot", cluster, what)
                    .instead_each(others)
                    .instead_each(refusal::windows(&left)),
                (None, None) => wanted.unreached(cluster, &left),
            };
            return Ok(Err(refusal));
        };
        match begin(of, &left, **best, &wanted, options).await? {
            Ok((mut ready, skew)) => {
                if left.is_damaged(&ready.plan.snapshot) {
                    let what = match only {
                        Some(_) => "it was asked for",
                        None => "no whole one of its life reaches the target",
                    };
                    ready.plan.warnings.push(format!(
                        "a verification found snapshot {} damaged; {what}",
                        ready.plan.snapshot
                    ));
                }
                ready.plan.others = next.iter().chain(&others).map(|c| id_of(c)).collect();
                ready.plan.warnings.append(&mut warnings);
                return Ok(Ok((ready, skew)));
            }
            Err(refusal) if refusal.code == "damaged" => {
                warnings.push(format!("{}; the target is had without it", refusal.what));
                let (less, id) = (left.without(of, refusal.object.as_deref()).await?, id_of(best));
                let is_less = less.iter().any(|less| less.is_without_log || !less.has_snapshot(&id));
                let less = less.filter(|_| is_less).unwrap_or_else(|| left.without_snapshots(&[id]));
                last = Some(refusal);
                left = Cow::Owned(less);
            }
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    Ok(Err(last.unwrap_or_else(|| wanted.unreached(cluster, catalogue))))
}

/// What is wanted of one cluster.
enum Wanted<'a> {
    Time(Instant),
    /// The last clean place; the instant is the window's end.
    End(Instant),
    Position(&'a Position),
}

impl Wanted<'_> {
    /// The snapshots that lead there, the best first.
    fn candidates(&self, past: &Past) -> Vec<(usize, usize)> {
        match self {
            Self::Time(at) | Self::End(at) => past.for_time(*at),
            Self::Position(position) => past.for_position(position),
        }
    }

    fn unreached(&self, cluster: &str, catalogue: &Catalogue) -> Refusal {
        match self {
            Self::Time(at) | Self::End(at) => Refusal::time(cluster, *at, catalogue),
            Self::Position(_) => {
                let what = "no snapshot and unbroken log lead to that position";
                Refusal::new("out-of-window", cluster, what).instead_each(refusal::windows(catalogue))
            }
        }
    }
}

/// Opens a snapshot and finds the cut in its log.
async fn begin(
    of: &Protected,
    catalogue: &Catalogue,
    (life_index, copy_index): (usize, usize),
    wanted: &Wanted<'_>,
    options: &PlanOptions,
) -> Result<Answer<(Ready, Skew)>> {
    let cluster = of.cluster.name.as_str();
    let life = &catalogue.past.lives[life_index];
    let copy = &life.snapshots[copy_index];
    let record = catalogue.records[&copy.id].clone();
    let snapshot = match of.vault.open_snapshot(&copy.id).await {
        Ok(snapshot) => snapshot,
        Err(error @ mainstay_vault::Error::Damaged { .. }) => {
            return Ok(Err(Refusal::of_vault(cluster, &error)));
        }
        Err(source) => {
            return Err(Error::Vault { what: format!("open snapshot {} of {cluster}", copy.id), source });
        }
    };
    if let Some(refusal) = damage::missing(of, &record).await? {
        return Ok(Err(refusal));
    }
    let stretches = stretches(life, copy_index, wanted);
    let log = match catalogue.log(life_index, stretches).await {
        Ok(log) => Arc::new(log),
        Err(Error::Vault { source: error @ mainstay_vault::Error::Damaged { .. }, .. }) => {
            return Ok(Err(Refusal::of_vault(cluster, &error)));
        }
        Err(error) => return Err(error),
    };
    let reach = life.reach(copy).map_or(copy.at.latest, |reach| reach.to);
    let found = match cut::position(of, copy, &log, wanted, reach).await? {
        Ok(found) => found,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if options.check
        && let Err(refusal) = cut::check(of, &copy.id, &log, &found.position).await?
    {
        return Ok(Err(refusal));
    }
    let window_to = catalogue.past.windows().iter().map(|w| w.to).max().unwrap_or(reach);
    let restored_to = match wanted {
        Wanted::Time(at) | Wanted::End(at) => *at,
        Wanted::Position(_) => found.at.earliest.max(copy.at.latest).min(window_to.max(copy.at.latest)),
    };
    let segments = log.lanes().iter().map(|lane| log.segments(lane).len()).sum();
    let plan = ClusterPlan {
        cluster: cluster.to_owned(),
        incarnation: life.incarnation.clone(),
        snapshot: copy.id.clone(),
        taken_at: copy.at.latest,
        bytes: record.bytes_total,
        segments,
        log_bytes: log.bytes_to(&found.position),
        position: found.position,
        restored_to,
        cut: found.at,
        window_to,
        others: vec![],
        warnings: found.warnings,
    };
    Ok(Ok((Ready { of: of.clone(), plan, record, snapshot, log }, found.skew)))
}

/// The log of each lane behind a snapshot: towards a position on the branch that leads there, otherwise on the line that times follow.
fn stretches(life: &Life, copy: usize, wanted: &Wanted<'_>) -> BTreeMap<Lane, Stretch> {
    let copy = &life.snapshots[copy];
    let lane = |lane: &Lane| match wanted {
        Wanted::Position(to) => life.stretch_to(lane, copy, to.get(lane)?),
        Wanted::Time(_) | Wanted::End(_) => life.stretch(lane, copy),
    };
    copy.position.0.keys().filter_map(|name| Some((name.clone(), lane(name)?))).collect()
}

/// As [`Doing`], for what [`Doing`] cannot say: a blocking task that did not end.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended
        .map_err(|e| mainstay_engine::Error::new(mainstay_engine::Kind::Io, "a thread ended early").source(e))
        .doing(|| "wait for a thread".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(of: &[(i64, i64)]) -> Vec<Window> {
        let window = |&(from, to): &(i64, i64)| Window {
            from: Instant(from),
            to: Instant(to),
            life: 0,
            snapshots: vec![0],
            ended: None,
            is_open: false,
        };
        of.iter().map(window).collect()
    }

    #[test]
    fn the_latest_instant_is_one_that_all_have() {
        let check = |all: &[&[(i64, i64)]], expect| {
            let all: Vec<_> = all.iter().map(|of| windows(of)).collect();
            assert_eq!(latest_of(&all), Instant(expect), "{all:?}");
        };
        check(&[&[(0, 50)], &[(10, 40)]], 40);
        // The end of the one lies in a hole of the other.
        check(&[&[(0, 30), (45, 45)], &[(0, 40)]], 30);
        check(&[&[(0, 30), (45, 60)], &[(0, 50)]], 50);
        // Nothing in common: refused at the earliest end.
        check(&[&[(45, 60)], &[(0, 40)]], 40);
    }
}

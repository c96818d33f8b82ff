//! Fleet points: one instant marked in every log of a recovery group.
//!
//! Every member is marked as close together as can be; how far apart the marks were is measured and stored with them. A point counts, and
//! is stored, only once the vault has every member's log up to its mark on the history that survived. An exact point holds
//! all members but one meanwhile (`crate::exact`); whether it was exact is proven from the logs, never from timers, and a point that is not
//! says so.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mainstay_engine::Marked;
use mainstay_model::{Bracket, Instant, Position};
use mainstay_vault::Vault;
use serde::{Deserialize, Serialize};

use crate::Protected;
use crate::error::{Doing, Error, Result};
use crate::exact::{self, Attempt};
use crate::follow::{FollowOptions, Follower, Until, catch_up};
use crate::plan::PointTarget;
use crate::snapshot::incarnation;

/// A fleet point, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetPoint {
    /// Its id; ids sort by time.
    pub id: String,
    /// The recovery group.
    pub group: String,
    /// The instant that it stands for.
    pub at: Instant,
    /// Whether the logs prove that no write which follows another is on the wrong side of the cut.
    pub exact: bool,
    /// Why it is not, where it was asked to be.
    pub why_not_exact: Option<String>,
    /// The time between the first and the last mark, with what is not known of the clocks.
    pub skew_us: u64,
    /// How long writes waited at the longest.
    pub stall_us: u64,
    /// Member by member, in the group's order.
    pub members: Vec<PointMember>,
}

/// One cluster's part of a fleet point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PointMember {
    /// The cluster.
    pub cluster: String,
    /// Whose log the position is in.
    pub incarnation: String,
    /// What is below is in.
    pub position: Position,
    /// When it was marked, by the source's clock.
    pub at: Bracket,
}

/// A cluster that is to be marked.
pub struct Member<'a> {
    /// It.
    pub of: &'a Protected,
    /// Set if this process follows it.
    pub follower: Option<&'a Follower>,
}

/// How a point is set.
#[derive(Clone, Debug)]
pub struct PointOptions {
    /// The fleet.
    pub fleet: String,
    /// The environment.
    pub environment: String,
    /// The recovery group.
    pub group: String,
    /// For an exact point: the longest that writes may be held.
    pub stall: Option<Duration>,
    /// How often an exact point is tried.
    pub attempts: u32,
    /// How long the logs may take to cover it.
    pub cover_within: Duration,
    /// How members are followed that nobody follows.
    pub follow: FollowOptions,
}

/// How long between two attempts at an exact point.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(300);
/// How long marking may take.
const MARK_WITHIN: Duration = Duration::from_secs(20);

impl FleetPoint {
    /// As what a restore goes to.
    pub fn target(&self) -> PointTarget {
        let position = |member: &PointMember| (member.cluster.clone(), member.position.clone());
        PointTarget {
            id: self.id.clone(),
            at: self.at,
            // Nothing that follows another can be on the wrong side of an exact cut, however far apart the marks are.
            skew: if self.exact { Duration::ZERO } else { Duration::from_micros(self.skew_us) },
            positions: self.members.iter().map(position).collect(),
        }
    }

    /// The time between the first and the last mark, in milliseconds.
    pub fn skew_ms(&self) -> f64 {
        self.skew_us as f64 / 1000.0
    }

    /// How long writes waited at the longest, in milliseconds.
    pub fn stall_ms(&self) -> f64 {
        self.stall_us as f64 / 1000.0
    }
}

/// Sets a fleet point, waits until the vault's logs cover it, and stores it.
///
/// # Errors
/// `Unsupported` for an engine that cannot be marked; `Deadline` when the logs do not get there (nothing is stored then); what engines and
/// the vault say.
pub async fn set_point(members: &[Member<'_>], options: &PointOptions) -> Result<FleetPoint> {
    if members.is_empty() {
        return Err(Error::invalid(format!("recovery group {} has no members", options.group)));
    }
    for member in members {
        if member.of.engine.mark().is_none() {
            return Err(Error::Unsupported { engine: member.of.engine.name(), verb: "be marked" });
        }
    }
    let mut incarnations = BTreeMap::new();
    for member in members {
        let cluster = member.of.cluster.name.to_string();
        incarnations.insert(cluster, incarnation(member.of).await?);
    }
    let mut attempts = 0;
    loop {
        let id = new_id();
        let mut attempt = match options.stall {
            Some(stall) => exact::attempt(members, &id, stall).await?,
            None => marked_only(members, &id).await?,
        };
        attempts += 1;
        let may_try_again = options.stall.is_some() && attempts < options.attempts;
        if attempt.why_not.is_some() && may_try_again {
            tracing::debug!(group = options.group, why = attempt.why_not, "point is not exact");
            tokio::time::sleep(BETWEEN_ATTEMPTS).await;
            continue;
        }
        cover(members, &attempt, options).await?;
        if options.stall.is_some() && attempt.why_not.is_none() {
            attempt.why_not = exact::prove_quiet(members, &incarnations, &attempt).await?;
            if attempt.why_not.is_some() && may_try_again {
                tokio::time::sleep(BETWEEN_ATTEMPTS).await;
                continue;
            }
        }
        let point = point_of(id, &attempt, &incarnations, options);
        store(members, options, &point).await?;
        return Ok(point);
    }
}

/// All points of a group in a vault, the oldest first.
///
/// # Errors
/// `Damaged`, the store's.
pub async fn points(vault: &Vault, fleet: &str, environment: &str, group: &str) -> Result<Vec<FleetPoint>> {
    let points = vault.points::<FleetPoint>(fleet, environment, group).await;
    let points = points.doing(|| format!("read the points of {group}"))?;
    Ok(points.into_iter().map(|(_, point)| point).collect())
}

/// Marks every member once, all at the same time.
pub(crate) async fn marked_only(members: &[Member<'_>], id: &str) -> Result<Attempt> {
    let marks = members.iter().map(|member| mark(member.of, id));
    let marked = futures::future::try_join_all(marks).await?;
    Ok(Attempt { clusters: exact::names(members), marked, ..Attempt::default() })
}

/// Marks one cluster.
pub(crate) async fn mark(of: &Protected, id: &str) -> Result<Marked> {
    let name = &of.cluster.name;
    let Some(mark) = of.engine.mark() else {
        return Err(Error::Unsupported { engine: of.engine.name(), verb: "be marked" });
    };
    match tokio::time::timeout(MARK_WITHIN, mark.mark(&of.access, id)).await {
        Ok(marked) => marked.doing(|| format!("mark {name}")),
        Err(_) => Err(Error::Deadline { what: format!("mark {name}"), seconds: MARK_WITHIN.as_secs() }),
    }
}

/// Waits until the vault has every log up to its mark, and up to the end of its hold.
async fn cover(members: &[Member<'_>], attempt: &Attempt, options: &PointOptions) -> Result<()> {
    let waits = members.iter().enumerate().map(|(index, member)| async move {
        let position = attempt.last_position(index).clone();
        let until = Until::Position(position);
        match member.follower {
            Some(follower) => follower.wait_until(&until, options.cover_within).await,
            None => {
                catch_up(member.of, options.follow.clone(), &until, options.cover_within).await.map(|_| ())
            }
        }
    });
    futures::future::try_join_all(waits).await.map(|_| ())
}

fn point_of(
    id: String,
    attempt: &Attempt,
    incarnations: &BTreeMap<String, String>,
    options: &PointOptions,
) -> FleetPoint {
    let all = attempt.marked.iter().map(|marked| marked.at).reduce(Bracket::union);
    let all = all.unwrap_or_else(|| Bracket::exactly(Instant::now()));
    let members = attempt.marked.iter().zip(&attempt.clusters).map(|(marked, cluster)| PointMember {
        cluster: cluster.clone(),
        incarnation: incarnations.get(cluster).cloned().unwrap_or_default(),
        position: marked.position.clone(),
        at: marked.at,
    });
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    FleetPoint {
        id,
        group: options.group.clone(),
        at: all.latest,
        exact: options.stall.is_some() && attempt.why_not.is_none(),
        why_not_exact: attempt.why_not.clone(),
        skew_us: micros(all.width()),
        stall_us: micros(attempt.stall),
        members: members.collect(),
    }
}

/// Into the vault of every member, each once.
async fn store(members: &[Member<'_>], options: &PointOptions, point: &FleetPoint) -> Result<()> {
    let mut stored: Vec<&str> = Vec::new();
    for member in members {
        let vault = member.of.vault.vault();
        if stored.contains(&vault.id()) {
            continue;
        }
        let (fleet, environment) = (&options.fleet, &options.environment);
        let put = vault.put_point(fleet, environment, &options.group, &point.id, point).await;
        put.doing(|| format!("store point {}", point.id))?;
        stored.push(vault.id());
    }
    Ok(())
}

/// `20260131t030405678-9f3c01`: sorts by time, and is as good as unique.
fn new_id() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time: String =
        Instant::now().to_string().chars().filter(char::is_ascii_alphanumeric).take(18).collect();
    let salt = since.subsec_nanos() ^ std::process::id().rotate_left(12);
    format!("{}-{:06x}", time.to_ascii_lowercase(), salt & 0xff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_and_sort_by_time() {
        let id = new_id();
        assert!(
            id.len() <= 60 && id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
            "{id}"
        );
        assert_eq!(id.len(), "20260131t030405678-9f3c01".len(), "{id}");
    }
}

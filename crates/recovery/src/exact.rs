//! Exact points: all members but one stand still while the last is marked.
//!
//! Why that is exact: the held ones stand still over [a, b] and the last is cut at p inside it. Whatever is in a held one's cut was
//! written before a, and what had to be there before it in another engine was there before a too, so below p; a write of the last one
//! that follows a write of a held one, and is below p, follows one from before a. So no effect is in without its cause.
//!
//! Whether they stood still is read in their logs: between the place read when the hold began and the place read before it ended there
//! must be nothing but what engines write by themselves. A server whose clock let go early, a script that wrote all the same, a
//! failover: all of it shows there, or in the roles that the adapter compares.

use std::collections::BTreeMap;
use std::time::{Duration, Instant as Monotonic};

use bytes::BytesMut;
use mainstay_engine::{Held, Marked, Released};
use mainstay_model::{Lane, Place, Position};
use mainstay_vault::{ClusterVault, LogContent, LogKind, LogObject};

use crate::Protected;
use crate::error::{Doing, Result};
use crate::follow::spooled_range;
use crate::point::{Member, mark, marked_only};

/// One attempt at a point.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    /// The members' names, in their order.
    pub clusters: Vec<String>,
    /// Where each was marked.
    pub marked: Vec<Marked>,
    /// Where each held one was let go, by index.
    pub released: BTreeMap<usize, Position>,
    /// How long writes waited at the longest.
    pub stall: Duration,
    /// Why the point is not exact.
    pub why_not: Option<String>,
}

impl Attempt {
    /// The last place of a member that the proof looks at.
    pub fn last_position(&self, index: usize) -> &Position {
        self.released.get(&index).unwrap_or(&self.marked[index].position)
    }
}

/// Tries to set an exact point; one that is not says why, and is an ordinary point.
pub(crate) async fn attempt(members: &[Member<'_>], id: &str, stall: Duration) -> Result<Attempt> {
    let bare: Vec<usize> = (0..members.len()).filter(|n| members[*n].of.engine.hold().is_none()).collect();
    if bare.len() > 1 {
        let names: Vec<String> = bare.iter().map(|n| members[*n].of.cluster.name.to_string()).collect();
        let why = format!("{} cannot be held, and at most one member may be such", names.join(" and "));
        return ordinary(members, id, why, Duration::ZERO).await;
    }
    let last = bare.first().copied();
    // Opens what the mark needs, so that nothing is left to do while writes wait.
    if let Some(last) = last {
        mark(members[last].of, &format!("{id}-ready")).await?;
    }
    let clusters = names(members);
    let began = Monotonic::now();
    let holds = (0..members.len()).filter(|n| Some(*n) != last).map(|n| async move {
        let of = members[n].of;
        let held = match of.engine.hold() {
            Some(hold) => hold.hold(&of.access, stall).await,
            None => return None,
        };
        Some((n, held))
    });
    let mut held: Vec<(usize, Box<dyn Held>)> = Vec::with_capacity(members.len());
    let mut why_not = None;
    for (n, result) in futures::future::join_all(holds).await.into_iter().flatten() {
        match result {
            Ok(one) => held.push((n, one)),
            Err(e) => {
                why_not.get_or_insert_with(|| {
                    format!("{} could not be held: {}", clusters[n], crate::follow::why(&e))
                });
            }
        }
    }
    let mut inside = None;
    if let Some(last) = last.filter(|_| why_not.is_none()) {
        let left = stall.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
        match tokio::time::timeout(left, mark(members[last].of, id)).await {
            Ok(Ok(marked)) => inside = Some((last, marked)),
            Ok(Err(e)) => why_not = Some(crate::follow::why(&e)),
            Err(_) => {
                let limit_ms = stall.as_millis();
                why_not = Some(format!(
                    "{} was not marked within the {limit_ms} ms that writes may wait",
                    clusters[last]
                ));
            }
        }
    }
    let marks: BTreeMap<usize, Marked> = held.iter().map(|(n, held)| (*n, held.marked().clone())).collect();
    let releases = held.into_iter().map(|(n, held)| async move { (n, held.release().await) });
    let mut released = BTreeMap::new();
    let mut stalled = Duration::ZERO;
    for (n, result) in futures::future::join_all(releases).await {
        match result {
            Ok(Released { position, stall, broken }) => {
                stalled = stalled.max(stall);
                released.insert(n, position);
                if let Some(broken) = broken {
                    why_not.get_or_insert(format!("{} did not stand still: {broken}", clusters[n]));
                }
            }
            Err(e) => {
                why_not.get_or_insert(format!(
                    "{} was not let go in order: {}",
                    clusters[n],
                    crate::follow::why(&e)
                ));
            }
        }
    }
    let mut marks = marks;
    marks.extend(inside);
    if marks.len() < members.len() {
        let why = why_not.unwrap_or_else(|| "not every member was marked".to_owned());
        return ordinary(members, id, why, stalled).await;
    }
    Ok(Attempt { clusters, marked: marks.into_values().collect(), released, stall: stalled, why_not })
}

/// What could not be exact is still a point.
async fn ordinary(members: &[Member<'_>], id: &str, why: String, stall: Duration) -> Result<Attempt> {
    let attempt = marked_only(members, &format!("{id}-b")).await?;
    Ok(Attempt { why_not: Some(why), stall, ..attempt })
}

pub(crate) fn names(members: &[Member<'_>]) -> Vec<String> {
    members.iter().map(|member| member.of.cluster.name.to_string()).collect()
}

/// Reads in the logs whether every held member stood still. `None` if so; else why that cannot be said.
pub(crate) async fn prove_quiet(
    members: &[Member<'_>],
    incarnations: &BTreeMap<String, String>,
    attempt: &Attempt,
) -> Result<Option<String>> {
    for (n, to) in &attempt.released {
        let (of, cluster) = (members[*n].of, &attempt.clusters[*n]);
        let Some(hold) = of.engine.hold() else { continue };
        let Some(incarnation) = incarnations.get(cluster) else { continue };
        let from = &attempt.marked[*n].position;
        if from.0.keys().ne(to.0.keys()) {
            return Ok(Some(format!("{cluster} had other lanes before the hold than after it")));
        }
        for (lane, from) in &from.0 {
            let Some(to) = to.get(lane) else { continue };
            if from.epoch != to.epoch {
                return Ok(Some(format!("{cluster} changed its history in {lane} during the hold")));
            }
            if from.offset >= to.offset {
                continue;
            }
            match log_between(of, incarnation, lane, from, to).await? {
                Some((carry, log)) if hold.is_quiet(lane, &carry, &log) => {}
                Some(_) => return Ok(Some(format!("{cluster} was written to during the hold"))),
                None => return Ok(Some(format!("the log of {cluster} during the hold cannot be read here"))),
            }
        }
    }
    Ok(None)
}

/// The log between two places of one epoch: from the spool of this machine, or else from the vault.
async fn log_between(
    of: &Protected,
    incarnation: &str,
    lane: &Lane,
    from: &Place,
    to: &Place,
) -> Result<Option<(String, Vec<u8>)>> {
    let spooled = spooled_range(of, incarnation, lane, from, to).await;
    if let Some(found) = spooled.doing(|| format!("read the spool of {}", of.cluster.name))? {
        return Ok(Some(found));
    }
    if !of.vault.vault().can_restore() {
        return Ok(None);
    }
    vaulted_range(&of.vault, incarnation, lane, from, to).await
}

async fn vaulted_range(
    vault: &ClusterVault,
    incarnation: &str,
    lane: &Lane,
    from: &Place,
    to: &Place,
) -> Result<Option<(String, Vec<u8>)>> {
    let objects = vault.log_objects(incarnation, lane).await.doing(|| format!("list the log of {lane}"))?;
    let mut at = from.offset;
    let mut carry = None;
    let mut log = BytesMut::new();
    while at < to.offset {
        let holds = |object: &&LogObject| {
            matches!(object.kind, LogKind::Tail | LogKind::Sealed)
                && object.segment.first.epoch == from.epoch
                && object.segment.first.offset <= at
                && at < object.segment.last.offset
        };
        // The newest writer is the one that counts.
        let Some(object) = objects.iter().rfind(holds) else { return Ok(None) };
        let content = vault.read_log(object).await.doing(|| format!("read {}", object.key))?;
        let LogContent::Segment(data) = content else { return Ok(None) };
        let (first, last) = (data.segment.first.offset, data.segment.last.offset);
        if last.0 - first.0 != data.bytes.len() as u128 {
            return Ok(None);
        }
        carry.get_or_insert(data.carry);
        let within =
            |offset: u128| usize::try_from(offset - first.0).unwrap_or(usize::MAX).min(data.bytes.len());
        let end = last.min(to.offset);
        log.extend_from_slice(&data.bytes[within(at.0)..within(end.0)]);
        at = end;
    }
    Ok(Some((carry.unwrap_or_default(), log.to_vec())))
}

//! What to restore to, from the command line.

use mainstay_model::Instant;
use mainstay_recovery::plan::{PlanOptions, Planned, Target, plan};
use mainstay_recovery::point::FleetPoint;
use mainstay_recovery::window::window;
use mainstay_recovery::{Protected, Refusal};

use super::operation;
use crate::args::TargetArgs;
use crate::failure::{Failure, Result};
use crate::render::read_position;
use crate::session::Session;

/// Reads a target. `what` is the group or the cluster that was named, `members` what it stands for.
pub async fn read(
    session: &Session<'_>,
    what: &str,
    members: &[Protected],
    args: &TargetArgs,
) -> Result<Target> {
    if let Some(at) = &args.at {
        let at: Instant = at.parse().map_err(|e| Failure {
            exit: 2,
            ..Failure::of("bad-time", &e, Some("write it as 2026-01-31T03:04:05Z".to_owned()))
        })?;
        if members.len() > 1 {
            operation::refuse_given_up(session, members, at)?;
        }
        return Ok(Target::At(at));
    }
    if let Some(id) = &args.point {
        return Ok(Target::Point(point(session, what, members, id).await?.target()));
    }
    if let Some(name) = &args.name {
        return Ok(Target::Name(name.clone()));
    }
    let Some(text) = &args.position else { return Ok(Target::Latest) };
    let [of] = members else {
        return Err(Failure::usage(
            "usage",
            "a position is of one cluster, not of a group",
            "name the cluster, or give --at or --point",
        ));
    };
    let mut lanes = Vec::new();
    for incarnation in of.vault.incarnations().await? {
        lanes.extend(of.vault.lanes(&incarnation).await?);
    }
    lanes.sort();
    lanes.dedup();
    let only = if let [only] = lanes.as_slice() { Some(only) } else { None };
    Ok(Target::Position(read_position(of.engine, text, only)?))
}

/// The plan, if it can be run. Of a group whose windows do not hold the instant that was asked for, the refusal names the nearest one that all
/// of its members can be restored to, instead of one for each of them that the others refuse.
///
/// # Errors
/// `Refused`; what the vaults say.
pub async fn accepted(mut planned: Planned, members: &[Protected], target: &Target) -> Result<Planned> {
    if let (Target::At(at), [_, _, ..]) = (target, members)
        && planned.plan.refusals.iter().any(is_outside)
        && let Some(instead) = common(members, *at).await?
    {
        let mut refusals = planned.plan.refusals.iter_mut().filter(|refusal| is_outside(refusal));
        if let Some(first) = refusals.next() {
            first.instead = vec![instead];
        }
        refusals.for_each(|refusal| refusal.instead.clear());
    }
    Ok(planned.accepted()?)
}

fn is_outside(refusal: &Refusal) -> bool {
    refusal.code == "out-of-window"
}

/// The first instant that all members can be restored to, if `at` is before it, else the latest.
async fn common(members: &[Protected], at: Instant) -> Result<Option<String>> {
    let mut first = Instant::MIN;
    for of in members {
        first = first.max(window(of).await?.from.unwrap_or(Instant::MAX));
    }
    let (target, words) = match at < first {
        true => (Target::At(first), "the earliest instant of all"),
        false => (Target::Latest, "the latest instant of all"),
    };
    let found = plan(members, &target, &PlanOptions::default()).await?;
    let or = if target == Target::Latest { ", or --latest" } else { "" };
    let at = found.plan.at.filter(|_| found.plan.refusals.is_empty());
    Ok(at.map(|at| format!("{words}: --at {at}{or}")))
}

/// Finds a fleet point: of the group that was named, or of any group that the cluster is in.
async fn point(session: &Session<'_>, what: &str, members: &[Protected], id: &str) -> Result<FleetPoint> {
    let groups: Vec<&str> = match session.fleet.group(what) {
        Some(group) => vec![group.name.as_str()],
        None => {
            let has = |g: &&mainstay_model::RecoveryGroup| g.members.iter().any(|m| m.as_str() == what);
            session.fleet.recovery_groups.values().filter(has).map(|g| g.name.as_str()).collect()
        }
    };
    let (fleet, environment) = (session.fleet.name.as_str(), session.fleet.environment.name.as_str());
    let mut nearest = Vec::new();
    for group in groups {
        for of in members {
            // A group's points lie in the vault of its first member; members may have other vaults.
            let vault = of.vault.vault();
            let ids = vault.point_ids(fleet, environment, group).await?;
            if ids.iter().any(|there| there == id) {
                return Ok(vault.point(fleet, environment, group, id).await?);
            }
            nearest.extend(ids.into_iter().rev().take(3));
        }
    }
    // Members of one vault all name the same ones.
    nearest.sort_by(|a, b| b.cmp(a));
    nearest.dedup();
    let hint = if nearest.is_empty() {
        "set one: mainstay point".to_owned()
    } else {
        format!("the latest points: {}", nearest.join(", "))
    };
    Err(Failure::failed("unknown-point", format!("there is no point `{id}` of {what}"), hint))
}

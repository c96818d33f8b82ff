//! `mainstay point`: one instant, marked in every log of a recovery group.

use std::time::Duration;

use mainstay_api::{Point, PointMember};
use mainstay_recovery::follow::FollowOptions;
use mainstay_recovery::point::{Member, PointOptions, set_point};

use super::Cx;
use super::backup::holder;
use crate::args::PointArgs;
use crate::failure::{Failure, Result};
use crate::printer::table;
use crate::render::position;
use crate::session::{Missing, Session};

/// The longest that writes are held where the fleet file says nothing.
const STALL: Duration = Duration::from_millis(20);
/// How long the logs may take to cover a point.
const COVER_WITHIN: Duration = Duration::from_secs(90);
const ATTEMPTS: u32 = 10;

pub async fn run(cx: &Cx, args: &PointArgs) -> Result {
    let session = Session::open(cx)?;
    let mut groups = session.fleet.recovery_groups.values();
    let group = match (&args.group, groups.next(), groups.next()) {
        (Some(name), ..) => session.fleet.group(name).ok_or_else(|| {
            let known: Vec<_> = session.fleet.recovery_groups.keys().map(ToString::to_string).collect();
            Failure::usage(
                "unknown-name",
                format!("there is no recovery group `{name}`"),
                format!("name one of: {}", known.join(", ")),
            )
        })?,
        (None, Some(only), None) => only,
        (None, None, _) => {
            return Err(Failure::usage(
                "no-group",
                "the fleet file has no recovery group",
                "add one: recovery_groups:",
            ));
        }
        (None, ..) => return Err(Failure::usage("usage", "there are several recovery groups", "name one")),
    };
    let names: Vec<String> = group.members.iter().map(ToString::to_string).collect();
    let clusters = session.select(&names)?;
    for cluster in &clusters {
        session.running(cluster)?;
    }
    let members = session.all_protected(&clusters, Missing::Make).await?;
    let stall = args.exact.then(|| group.exact.as_ref().map_or(STALL, |exact| exact.stall));
    let options = PointOptions {
        fleet: session.fleet.name.to_string(),
        environment: session.fleet.environment.name.to_string(),
        group: group.name.to_string(),
        stall,
        attempts: ATTEMPTS,
        cover_within: COVER_WITHIN,
        follow: FollowOptions::new(holder()),
    };
    let bar = cx.bar(format!("point of {}", group.name));
    mainstay_engine::Progress::stage(bar.as_ref(), "mark every log, and wait until the vault has them");
    let marked: Vec<_> = members.iter().map(|of| Member { of, follower: None }).collect();
    let done = tokio::select! {
        done = set_point(&marked, &options) => done.map_err(Failure::from),
        () = cx.stopped() => Err(Failure::stopped()),
    };
    bar.finish();
    let set = done?;
    let point = Point {
        point: set.id.clone(),
        at: set.at,
        exact: set.exact,
        why_not_exact: set.why_not_exact.clone(),
        skew_ms: set.skew_ms(),
        stall_ms: set.stall_ms(),
        clusters: set
            .members
            .iter()
            .zip(&members)
            .map(|(m, of)| PointMember {
                cluster: m.cluster.clone(),
                position: position(of.engine, &m.position),
                at: m.at.latest,
            })
            .collect(),
    };
    cx.printer.result(&point, |p| {
        let exact = match (&p.exact, &p.why_not_exact) {
            (true, _) => "exact".to_owned(),
            (false, Some(why)) => format!("not exact: {why}"),
            (false, None) => format!("marks at most {:.1} ms apart", p.skew_ms),
        };
        let row = |m: &PointMember| {
            let places = m
                .position
                .iter()
                .map(|(lane, place)| format!("{lane}={place}"))
                .collect::<Vec<_>>()
                .join(" ");
            vec![m.cluster.clone(), places, m.at.to_string()]
        };
        let rows = table(&["cluster", "position", "marked at"], p.clusters.iter().map(row));
        format!(
            "point {} at {}: {exact}; writes waited {:.1} ms at the longest\n{rows}",
            p.point, p.at, p.stall_ms
        )
    })
}

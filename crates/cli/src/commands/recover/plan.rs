//! `mainstay recover plan`: what a restore would do; touches nothing.

use mainstay_api::{PlanRow, PlannedRestore};
use mainstay_recovery::plan::{PlanOptions, Planned, plan};

use super::{Cx, target};
use crate::args::RecoverPlanArgs;
use crate::failure::Result;
use crate::printer::{bytes, table};
use crate::render::position;
use crate::session::{Missing, Session};

pub async fn run(cx: &Cx, args: &RecoverPlanArgs) -> Result {
    let session = Session::open(cx)?;
    let members =
        session.all_protected(&session.select(std::slice::from_ref(&args.what))?, Missing::Fail).await?;
    let target = target::read(&session, &args.what, &members, &args.target).await?;
    let options = PlanOptions { snapshots: args.begin.snapshots.clone(), ..PlanOptions::default() };
    let planned = target::accepted(plan(&members, &target, &options).await?, &members, &target).await?;
    for warning in planned.ready.iter().flat_map(|ready| &ready.plan.warnings) {
        cx.printer.say(format!("warning: {warning}"));
    }
    cx.printer.result(&describe(&planned), text)
}

/// A plan in the terms that leave.
pub fn describe(planned: &Planned) -> PlannedRestore {
    let row = |ready: &mainstay_recovery::plan::Ready| PlanRow {
        cluster: ready.plan.cluster.clone(),
        snapshot: ready.plan.snapshot.clone(),
        taken_at: ready.plan.taken_at,
        position: position(ready.of.engine, &ready.plan.position),
        segments: ready.plan.segments,
        bytes: ready.plan.bytes,
    };
    PlannedRestore {
        target: planned.plan.target.clone(),
        at: planned.plan.at,
        skew_ms: planned.plan.skew_ms,
        clusters: planned.ready.iter().map(row).collect(),
    }
}

/// A plan for people.
pub fn text(plan: &PlannedRestore) -> String {
    let row = |r: &PlanRow| {
        let places =
            r.position.iter().map(|(lane, place)| format!("{lane}={place}")).collect::<Vec<_>>().join(" ");
        vec![
            r.cluster.clone(),
            r.snapshot.clone(),
            r.taken_at.to_string(),
            bytes(r.bytes),
            r.segments.to_string(),
            places,
        ]
    };
    let rows =
        table(&["cluster", "snapshot", "taken at", "size", "log", "cut at"], plan.clusters.iter().map(row));
    let at = plan.at.map(|at| format!(", as of {at}")).unwrap_or_default();
    format!(
        "restore to {}{at}; the clusters' cuts are at most {:.1} ms apart\n{rows}",
        plan.target, plan.skew_ms
    )
}

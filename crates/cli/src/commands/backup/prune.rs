//! `mainstay backup prune`: what retention lets go, in two phases.

use mainstay_api::{BackupPrune, PrunedSnapshot};
use mainstay_model::{Instant, parse_duration};
use mainstay_recovery::prune;
use mainstay_vault::GoingKind;

use super::{Cx, holder};
use crate::args::PruneArgs;
use crate::failure::{Failure, Result};
use crate::printer::{bytes, table};
use crate::session::{Missing, Session};

pub async fn run(cx: &Cx, args: &PruneArgs) -> Result {
    let grace = parse_duration(&args.grace)
        .map_err(|e| Failure::usage("usage", format!("--grace: {e}"), "write it as 90s, 15m or 1h"))?;
    let session = Session::open(cx)?;
    let clusters = session.backed_up(session.select(&args.clusters)?);
    let all = session.all_protected(&clusters, Missing::Fail).await?;
    let mut done = BackupPrune { dry_run: args.dry_run, ..BackupPrune::default() };
    for of in &all {
        let plan = prune::plan(of, grace, Instant::now()).await?;
        let snapshots = plan.mark.iter().filter(|going| going.kind == GoingKind::Snapshot);
        done.marked.extend(snapshots.map(|going| PrunedSnapshot {
            snapshot: going.what.clone(),
            cluster: of.cluster.name.to_string(),
            reason: going.why.clone(),
        }));
        if args.dry_run {
            done.objects_deleted += plan.delete.len() as u64;
            done.bytes_freed += plan.delete.iter().map(|going| going.bytes).sum::<u64>();
        }
    }
    if !args.dry_run {
        if !done.marked.is_empty() {
            let names: Vec<_> = done
                .marked
                .iter()
                .map(|m| format!("{} of {} ({})", m.snapshot, m.cluster, m.reason))
                .collect();
            let question = format!("Let these go after {}?\n  {}\n", args.grace, names.join("\n  "));
            cx.printer.confirm(&question, args.consent.yes)?;
        }
        for of in &all {
            let (_, pruned) = prune::prune(of, grace, &holder()).await?;
            done.objects_deleted += pruned.objects;
            done.bytes_freed += pruned.bytes;
        }
    }
    cx.printer.result(&done, |done| {
        let row = |m: &PrunedSnapshot| vec![m.cluster.clone(), m.snapshot.clone(), m.reason.clone()];
        let verb = if done.dry_run { "would be" } else { "were" };
        let summary = format!(
            "{} snapshots {verb} marked, {} objects ({}) {verb} deleted",
            done.marked.len(),
            done.objects_deleted,
            bytes(done.bytes_freed)
        );
        if done.marked.is_empty() {
            summary
        } else {
            format!(
                "{}\n{summary}",
                table(&["cluster", "snapshot", "why it goes"], done.marked.iter().map(row))
            )
        }
    })
}

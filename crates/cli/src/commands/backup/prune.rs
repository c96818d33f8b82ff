//! `mainstay backup prune`: what retention lets go, in two phases.

use std::time::Duration;

use mainstay_api::{BackupPrune, PrunedSnapshot};
use mainstay_model::{Instant, parse_duration};
use mainstay_recovery::{Protected, prune};
use mainstay_vault::{ClusterVault, Going, GoingKind, KEEP_NOTHING, PrunePlan, Pruned};

use super::{Cx, gone, holder};
use crate::args::PruneArgs;
use crate::failure::{Failure, Result};
use crate::printer::{bytes, table};
use crate::session::{Missing, Session};

pub async fn run(cx: &Cx, args: &PruneArgs) -> Result {
    let grace = parse_duration(&args.grace)
        .map_err(|e| Failure::usage("usage", format!("--grace: {e}"), "write it as 90s, 15m or 1h"))?;
    let session = Session::open(cx)?;
    let named = gone::select(&session, &args.clusters).await?;
    let there = session.all_protected(&named.there, Missing::Fail).await?;
    let there = there.iter().map(|of| (of.cluster.name.to_string(), Backups::There(of)));
    let all: Vec<_> =
        there.chain(named.gone.into_iter().map(|(name, vault)| (name, Backups::Gone(vault)))).collect();
    let mut done = BackupPrune { dry_run: args.dry_run, ..BackupPrune::default() };
    for (cluster, backups) in &all {
        let plan = backups.plan(grace).await?;
        let snapshots = plan.mark.iter().filter(|going| going.kind == GoingKind::Snapshot);
        done.marked.extend(snapshots.map(|going| PrunedSnapshot {
            snapshot: going.what.clone(),
            cluster: cluster.clone(),
            reason: backups.why(going),
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
        for (_, backups) in &all {
            let pruned = backups.prune(grace).await?;
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

/// The backups of one cluster.
enum Backups<'p> {
    /// The file says how long they are kept.
    There(&'p Protected),
    /// It is no longer in the file, and was named: all but what is pinned goes.
    Gone(ClusterVault),
}

impl Backups<'_> {
    async fn plan(&self, grace: Duration) -> Result<PrunePlan> {
        match self {
            Self::There(of) => Ok(prune::plan(of, grace, Instant::now()).await?),
            Self::Gone(vault) => Ok(vault.plan_prune(&KEEP_NOTHING, grace, Instant::now()).await?),
        }
    }

    async fn prune(&self, grace: Duration) -> Result<Pruned> {
        match self {
            Self::There(of) => Ok(prune::prune(of, grace, &holder()).await?.1),
            Self::Gone(vault) => Ok(vault.apply_prune(&self.plan(grace).await?).await?),
        }
    }

    fn why(&self, going: &Going) -> String {
        match self {
            Self::There(_) => going.why.clone(),
            Self::Gone(_) => "its cluster is no longer in the fleet file".to_owned(),
        }
    }
}

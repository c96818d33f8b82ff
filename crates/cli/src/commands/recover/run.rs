//! `mainstay recover run`: into a sandbox of this machine, or into the environment itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant as Monotonic;

use mainstay_api as api;
use mainstay_engine::Ttl;
use mainstay_model::Objective;
use mainstay_recovery::plan::{Command, PlanOptions, Planned, plan, say_instead};
use mainstay_recovery::restore::{Restored, RunOptions, restore};
use mainstay_runtime::{Sandbox, SandboxCluster};

use super::{Cx, operation, plan as planning, target};
use crate::args::{RecoverRunArgs, TtlArg};
use crate::failure::{Failure, Result};
use crate::progress::Bar;
use crate::render::position;
use crate::sandboxes::sites;
use crate::session::{Missing, Session};

pub async fn run(cx: &Cx, args: &RecoverRunArgs) -> Result {
    let began = Monotonic::now();
    let session = Session::open(cx)?;
    let environment = session.fleet.environment.name.as_str();
    if args.into != "sandbox" && args.into != environment {
        let message = format!(
            "--into {}: backups of {environment} go into a sandbox, or into {environment} itself",
            args.into
        );
        return Err(Failure::usage("usage", message, format!("--into sandbox, or --into {environment}")));
    }
    let members =
        session.all_protected(&session.select(std::slice::from_ref(&args.what))?, Missing::Fail).await?;
    let target = target::read(&session, &args.what, &members, &args.target).await?;
    // What takes the place of running data is read and checked whole before anything is touched.
    let snapshots = args.begin.snapshots.clone();
    let options = PlanOptions { snapshots, check: args.into != "sandbox", ..PlanOptions::default() };
    let planned = target::accepted(plan(&members, &target, &options).await?, &members, &target).await?;
    if args.into != "sandbox" {
        return operation::begin(&session, &planned, args, began).await;
    }
    let ttl = if args.ttl == Some(TtlArg::Absolute) { Ttl::Absolute } else { Ttl::Shift };
    let bar = cx.bar(format!("restore {}", args.what));
    let command = Command {
        verb: format!("mainstay recover run {}", args.what),
        target: args.target.written(),
        rest: String::new(),
        snapshots: args.begin.snapshots.clone(),
    };
    let making = Making { purpose: "recover", ttl, jobs: usize::from(args.jobs), began, command };
    let done = into_sandbox(&session, &planned, &making, bar.clone()).await;
    bar.finish();
    let (mut sandbox, restored) = done?;
    let restored = leaving(&planned, &restored);
    let kept = restored.clusters.iter().map(|c| (c.cluster.clone(), c.restored_to.to_string()));
    sandbox.set_restored(serde_json::to_value(kept.collect::<BTreeMap<_, _>>()).unwrap_or_default())?;
    cx.printer.result(&restored, text)
}

/// How a sandbox is made.
struct Making {
    purpose: &'static str,
    ttl: Ttl,
    jobs: usize,
    began: Monotonic,
    /// How it was asked for.
    command: Command,
}

/// Makes a sandbox and restores a plan into it. Nothing is left of it when that fails or is stopped; where an object is damaged, the failure
/// says what can be had instead.
async fn into_sandbox(
    session: &Session<'_>,
    planned: &Planned,
    making: &Making,
    bar: Arc<Bar>,
) -> Result<(Sandbox, Restored)> {
    let (fleet, environment) = (session.fleet.name.as_str(), session.fleet.environment.name.as_str());
    let wanted: Vec<_> = planned
        .ready
        .iter()
        .map(|r| SandboxCluster { cluster: &r.of.cluster, version: Some(&r.record.taken.version) })
        .collect();
    let sandbox =
        Sandbox::create(&session.home, fleet, environment, making.purpose, &wanted, session.cx.engines)
            .await?;
    let sites = sites(&sandbox)?;
    let options = RunOptions {
        sandbox: sandbox.id().to_owned(),
        ttl: making.ttl,
        jobs: making.jobs,
        in_place: false,
        compared: false,
        began: making.began,
        objectives: objectives(session, planned),
        progress: bar,
    };
    let work = async {
        match restore(planned, &sites, &options).await {
            Ok(restored) => Ok(restored),
            Err(error) => Err(say_instead(error, planned, &making.command).await.into()),
        }
    };
    match session.cx.unless_stopped(work).await {
        Ok(restored) => Ok((sandbox, restored)),
        Err(failure) => {
            if let Err(error) = sandbox.drop_all().await {
                session.cx.printer.say(format!(
                    "the sandbox could not be removed whole ({error}): mainstay recover drop --all"
                ));
            }
            Err(failure)
        }
    }
}

/// What the tiers of the restored clusters allow for losing the data.
pub fn objectives(session: &Session<'_>, planned: &Planned) -> Vec<Objective> {
    let tiers = planned.ready.iter().filter_map(|r| session.fleet.tier_of(&r.of.cluster));
    tiers.filter_map(|tier| tier.corruption.or(tier.total)).collect()
}

/// A restore in the terms that leave.
pub fn leaving(planned: &Planned, restored: &Restored) -> api::Restored {
    let cluster = |c: &mainstay_recovery::restore::RestoredCluster| {
        let ready = planned.ready.iter().find(|r| r.plan.cluster == c.cluster);
        api::RestoredCluster {
            cluster: c.cluster.clone(),
            uris: c.uris.clone(),
            restored_to: c.restored_to,
            position: ready.map(|r| position(r.of.engine, &c.position)).unwrap_or_default(),
            notes: c.notes.clone(),
        }
    };
    api::Restored {
        sandbox: restored.sandbox.clone(),
        clusters: restored.clusters.iter().map(cluster).collect(),
        rto_seconds: restored.rto_seconds,
        rpo_seconds: restored.rpo_seconds,
        skew_ms: restored.skew_ms,
        over_target: restored.over_target,
    }
}

/// A restore for people.
pub fn text(restored: &api::Restored) -> String {
    let mut text = format!(
        "{}: restored in {:.1} s (RTO), {:.1} s before the end of what could be had (RPO), cuts at most {:.1} ms apart{}",
        restored.sandbox,
        restored.rto_seconds,
        restored.rpo_seconds,
        restored.skew_ms,
        if restored.over_target { "; OVER TARGET" } else { "" }
    );
    for cluster in &restored.clusters {
        text.push_str(&format!("\n{} as of {}", cluster.cluster, cluster.restored_to));
        for uri in &cluster.uris {
            text.push_str(&format!("\n  {uri}"));
        }
        for note in &cluster.notes {
            text.push_str(&format!("\n  note: {note}"));
        }
    }
    text
}

/// The plan, shown before it is run in place.
pub fn shown(planned: &Planned) -> String {
    planning::text(&planning::describe(planned))
}

//! `mainstay prove`: exit 3 when anything differs.

use std::time::Instant as Monotonic;

use mainstay_api::{CheckRow, Difference, Proof};
use mainstay_model::Instant;
use mainstay_recovery::plan::Command;
use mainstay_recovery::prove::{ProofCheck, ProveOptions, prove};

use super::Cx;
use super::recover::target;
use crate::args::ProveArgs;
use crate::failure::{Failure, Result};
use crate::printer::table;
use crate::sandboxes::Made;
use crate::session::{Missing, Session};

pub async fn run(cx: &Cx, args: ProveArgs) -> Result {
    let began = Monotonic::now();
    let session = Session::open(cx)?;
    let members =
        session.all_protected(&session.select(std::slice::from_ref(&args.what))?, Missing::Fail).await?;
    let target = target::read(&session, &args.what, &members, &args.target.0).await?;
    let bar = cx.bar(format!("prove {}", args.what));
    let options = ProveOptions {
        id: format!("proof-{}", Instant::now().micros()),
        fleet: session.fleet.name.to_string(),
        environment: session.fleet.environment.name.to_string(),
        subject: args.what.clone(),
        snapshots: args.begin.snapshots.clone(),
        command: Some(Command {
            verb: format!("mainstay prove {}", args.what),
            target: args.target.0.written(),
            rest: String::new(),
            snapshots: args.begin.snapshots.clone(),
        }),
        jobs: 2,
        began,
        progress: bar.clone(),
    };
    let sandboxes = Made::new(&session);
    let work = async { prove(&members, &target, &sandboxes, &options).await.map_err(Failure::from) };
    let done = cx.unless_stopped(work).await;
    bar.finish();
    if done.is_err() {
        sandboxes.clear().await;
    }
    let proven = done?;
    let check = |c: ProofCheck| CheckRow {
        cluster: c.cluster,
        kind: c.kind,
        what: c.what,
        expected: c.expected,
        found: c.found,
    };
    let difference = |c: ProofCheck| Difference {
        cluster: c.cluster,
        kind: c.kind,
        what: c.what,
        expected: c.expected,
        found: c.found,
    };
    let proof = Proof {
        proof: proven.proof,
        at: proven.at,
        checks: proven.checks.into_iter().map(check).collect(),
        differences: proven.differences.into_iter().map(difference).collect(),
        rto_seconds: proven.rto_seconds,
        rpo_seconds: proven.rpo_seconds,
        notes: proven.notes,
    };
    cx.printer.result(&proof, |p| {
        let row = |c: &CheckRow| {
            let verdict = if c.expected == c.found {
                "ok".to_owned()
            } else {
                format!("DIFFERS: expected {}", c.expected)
            };
            vec![c.cluster.clone(), c.kind.clone(), c.what.clone(), c.found.clone(), verdict]
        };
        let notes: String = p.notes.iter().map(|n| format!("note: {n}\n")).collect();
        format!(
            "{}\n{notes}{} as of {}: {} checks, {} differences; RTO {:.1} s, RPO {:.1} s",
            table(&["cluster", "kind", "what", "found", ""], p.checks.iter().map(row)),
            p.proof,
            p.at,
            p.checks.len(),
            p.differences.len(),
            p.rto_seconds,
            p.rpo_seconds
        )
    })?;
    if proof.differences.is_empty() {
        return Ok(());
    }
    let message = format!("{} things are not as they must be", proof.differences.len());
    Err(Failure::verdict(
        "not-proven",
        message,
        "take a new snapshot (mainstay backup run CLUSTER), prove it, and keep the old one to look into",
    ))
}

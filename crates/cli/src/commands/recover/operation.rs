//! Restores into the environment itself: begun, gone on with, undone, finished.

use std::sync::Arc;
use std::time::Instant as Monotonic;

use async_trait::async_trait;
use mainstay_api::OperationRow;
use mainstay_engine::{self as engine, Kind, Ttl};
use mainstay_model::{ClusterName, Instant};
use mainstay_recovery::Protected;
use mainstay_recovery::inplace::{self, Begun, BegunCluster, InPlaceOptions, Swap};
use mainstay_recovery::plan::Planned;
use mainstay_recovery::restore::Site;
use mainstay_runtime::{Environment, swap};
use mainstay_state::{Operation, Progress};
use serde::Serialize;

use super::{Cx, run};
use crate::args::{OperationArgs, RecoverRunArgs, TtlArg};
use crate::failure::{Failure, Result};
use crate::sandboxes::converted;
use crate::session::{Missing, Session};

/// How many operations are looked through: more than anybody leaves open.
const LOOKED_AT: u32 = 1000;

/// Shows the plan, asks, and replaces the environment's data.
pub async fn begin(
    session: &Session<'_>,
    planned: &Planned,
    args: &RecoverRunArgs,
    began: Monotonic,
) -> Result {
    let cx = session.cx;
    let environment = session.fleet.environment.name.as_str();
    for ready in &planned.ready {
        if session.layout(&ready.of.cluster)?.is_none() {
            let message =
                format!("{} was never brought up in {environment} on this machine", ready.plan.cluster);
            return Err(Failure::failed(
                "not-up",
                message,
                "bring it up first: mainstay up; or restore --into sandbox",
            ));
        }
    }
    if let Some(open) = open(session)?.first() {
        let message = format!("operation {} is not finished", open.id);
        return Err(Failure::failed(
            "operation-open",
            message,
            format!("mainstay recover finish {0}, or mainstay recover undo {0}", open.id),
        ));
    }
    let ttl = if args.ttl == Some(TtlArg::Absolute) { Ttl::Absolute } else { Ttl::Shift };
    cx.printer.say(run::shown(planned));
    if planned.ready.iter().any(|ready| ready.of.engine.expires()) {
        cx.printer.say(lives(args.ttl));
    }
    let question = format!(
        "Stop these clusters of {environment} and replace their data? The old data is kept until `recover finish`."
    );
    cx.printer.confirm(&question, args.consent.yes)?;
    let _lock = session.environment.lock("restoring into it").await?;
    let what = format!("{} into {environment}", args.what);
    let operation = inplace::begin(&session.state()?, &what, planned, ttl)?;
    cx.printer
        .say(format!("operation {} (if it is broken off: mainstay recover resume, or undo)", operation.id()));
    let bar = cx.bar(format!("restore {what}"));
    let options = InPlaceOptions {
        ttl,
        jobs: usize::from(args.jobs),
        began,
        objectives: run::objectives(session, planned),
        progress: bar.clone(),
    };
    let done = inplace::run(&operation, planned, &Exchange(&session.environment), &options).await;
    bar.finish();
    let restored = done.map_err(|e| resumable(&operation, e.into()))?;
    cx.printer.result(&run::leaving(planned, &restored), |r| {
        format!(
            "{}\nlook at it, then: mainstay recover finish {id}, or: mainstay recover undo {id}",
            run::text(r),
            id = operation.id()
        )
    })
}

/// What becomes of times to live, as the plan tells it.
fn lives(ttl: Option<TtlArg>) -> &'static str {
    match ttl {
        Some(TtlArg::Absolute) => "keys end when they were to end (absolute): what has expired since is gone",
        Some(TtlArg::Shift) => "every key gets the life left that it had then (shift)",
        None => {
            "every key gets the life left that it had then (shift); with --ttl absolute, what has expired since is gone"
        }
    }
}

/// `mainstay recover resume`.
pub async fn resume(cx: &Cx, args: &OperationArgs) -> Result {
    let began = Monotonic::now();
    let session = Session::open(cx)?;
    let (operation, members) = find(&session, args).await?;
    let _lock = session.environment.lock("going on with a restore").await?;
    let bar = cx.bar("resume");
    // The way with times to live is the operation's own.
    let options =
        InPlaceOptions { ttl: Ttl::Absolute, jobs: 2, began, objectives: Vec::new(), progress: bar.clone() };
    let done = inplace::resume(&operation, &members, &Exchange(&session.environment), &options).await;
    bar.finish();
    done.map_err(|e| resumable(&operation, e.into()))?;
    say(cx, &operation, "restored", "mainstay recover finish, or mainstay recover undo")
}

/// `mainstay recover undo`.
pub async fn undo(cx: &Cx, args: &OperationArgs) -> Result {
    let session = Session::open(cx)?;
    let (operation, members) = find(&session, args).await?;
    let row = operation.row()?;
    cx.printer.confirm(
        &format!("Throw away what {} ({}) restored, and put the old data back?", row.id, row.what),
        args.consent.yes,
    )?;
    let _lock = session.environment.lock("undoing a restore").await?;
    inplace::undo(&operation, &members, &Exchange(&session.environment))
        .await
        .map_err(|e| resumable(&operation, e.into()))?;
    say(cx, &operation, "undone", "mainstay status")
}

/// `mainstay recover finish`.
pub async fn finish(cx: &Cx, args: &OperationArgs) -> Result {
    let session = Session::open(cx)?;
    let (operation, _) = find(&session, args).await?;
    let row = operation.row()?;
    cx.printer.confirm(
        &format!("Delete the data from before {} ({}) for good?", row.id, row.what),
        args.consent.yes,
    )?;
    let _lock = session.environment.lock("finishing a restore").await?;
    inplace::finish(&operation, &Exchange(&session.environment))
        .await
        .map_err(|e| resumable(&operation, e.into()))?;
    say(cx, &operation, "finished", "mainstay status")
}

/// The operations that can still be gone on with, undone or finished.
pub fn rows(session: &Session<'_>) -> Result<Vec<OperationRow>> {
    open(session)
}

/// A restore that did not come to its end, and has set data of this environment aside.
pub fn broken_off(session: &Session<'_>) -> Result<Option<String>> {
    let rows = session.state()?.operations(inplace::KIND, LOOKED_AT)?;
    let broken =
        |row: &&mainstay_state::OperationRow| matches!(row.progress, Progress::Running | Progress::Failed);
    for row in rows.iter().filter(broken) {
        for layout in session.environment.layouts()? {
            if swap::set_asides(&layout)?.contains(&row.id) {
                return Ok(Some(row.id.clone()));
            }
        }
    }
    Ok(None)
}

/// Refuses, of a group, an instant that lies behind what it was restored to in place, and before that was done. A cluster whose engine keeps one
/// history over that answers such an instant from what survived, another from what was given up: together they never were.
///
/// # Errors
/// Failure `given-up`; the state's.
pub fn refuse_given_up(session: &Session<'_>, members: &[Protected], at: Instant) -> Result {
    for row in session.state()?.operations(inplace::KIND, LOOKED_AT)? {
        let Ok(begun) = serde_json::from_value::<Begun>(row.detail) else { continue };
        let of_them = |c: &BegunCluster| members.iter().any(|m| m.cluster.name.as_str() == c.cluster);
        let is_given_up = row.progress != Progress::Undone
            && (begun.target_at < at && at < row.created)
            && begun.clusters.iter().any(of_them);
        if is_given_up {
            let message = format!(
                "{at} was given up: {} restored {} in place, at {}, to {}",
                row.id, row.what, row.created, begun.target_at
            );
            let hint = format!(
                "--at {} is what was kept; of one cluster alone: mainstay recover run CLUSTER --at {at}",
                begun.target_at
            );
            return Err(Failure::failed("given-up", message, hint));
        }
    }
    Ok(())
}

fn open(session: &Session<'_>) -> Result<Vec<OperationRow>> {
    let mut rows = Vec::new();
    for row in session.state()?.operations(inplace::KIND, LOOKED_AT)? {
        let (state, next) = match row.progress {
            Progress::Finished | Progress::Undone => continue,
            Progress::Running => ("broken off, or running", "resume, or undo"),
            Progress::Failed => ("failed", "resume, or undo"),
            Progress::Done => ("restored", "finish, or undo"),
        };
        let clusters = serde_json::from_value::<Begun>(row.detail)
            .map(|b| b.clusters.into_iter().map(|c| c.cluster).collect())
            .unwrap_or_default();
        rows.push(OperationRow {
            id: row.id,
            kind: inplace::KIND.to_owned(),
            created_at: row.created,
            state: state.to_owned(),
            clusters,
            next: format!("mainstay recover {next}"),
        });
    }
    Ok(rows)
}

async fn find(session: &Session<'_>, args: &OperationArgs) -> Result<(Operation, Vec<Protected>)> {
    let id = match (&args.operation, open(session)?.as_slice()) {
        (Some(id), _) => id.clone(),
        (None, [one]) => one.id.clone(),
        (None, []) => {
            return Err(Failure::failed(
                "no-operation",
                "there is no unfinished restore",
                "see mainstay recover list",
            ));
        }
        (None, _) => {
            return Err(Failure::usage(
                "usage",
                "there are several unfinished restores",
                "name one: mainstay recover list",
            ));
        }
    };
    let operation = session.state()?.resume(&id)?;
    let begun: Begun = serde_json::from_value(operation.row()?.detail)
        .map_err(|e| Failure::of("state-damaged", &e, None))?;
    let names: Vec<String> = begun.clusters.into_iter().map(|c| c.cluster).collect();
    let members = session.all_protected(&session.select(&names)?, Missing::Fail).await?;
    Ok((operation, members))
}

fn resumable(operation: &Operation, failure: Failure) -> Failure {
    let hint = format!(
        "{}; then mainstay recover resume {id}, or mainstay recover undo {id}",
        failure.hint,
        id = operation.id()
    );
    Failure { hint, ..failure }
}

fn say(cx: &Cx, operation: &Operation, state: &'static str, next: &str) -> Result {
    #[derive(Serialize)]
    struct Said {
        operation: String,
        state: &'static str,
    }
    cx.printer.result(&Said { operation: operation.id().to_owned(), state }, |s| {
        format!("{} is {}; next: {next}", s.operation, s.state)
    })
}

/// The environment's own clusters, as a restore in place exchanges their data.
struct Exchange<'e>(&'e Environment);

impl Exchange<'_> {
    fn name(cluster: &str) -> engine::Result<ClusterName> {
        ClusterName::new(cluster).map_err(|e| engine::Error::new(Kind::Invalid, e.to_string()))
    }

    fn find(&self, cluster: &str) -> engine::Result<Site> {
        let name = Self::name(cluster)?;
        let layout = self.0.layout(&name).map_err(converted)?;
        let layout = layout.ok_or_else(|| {
            engine::Error::new(Kind::Invalid, format!("{cluster} was never brought up here"))
        })?;
        Ok(Site { layout, host: Arc::new(self.0.host(&name)) })
    }
}

#[async_trait]
impl Swap for Exchange<'_> {
    async fn site(&self, cluster: &str) -> engine::Result<Site> {
        self.find(cluster)
    }

    async fn set_aside(&self, cluster: &str, operation: &str) -> engine::Result<()> {
        let site = self.find(cluster)?;
        swap::set_aside(&site.layout, site.host.as_ref(), operation).map_err(converted)
    }

    async fn bring_back(&self, cluster: &str, operation: &str) -> engine::Result<()> {
        let site = self.find(cluster)?;
        swap::bring_back(&site.layout, site.host.as_ref(), operation).map_err(converted)
    }

    async fn discard(&self, cluster: &str, operation: &str) -> engine::Result<()> {
        swap::discard(&self.find(cluster)?.layout, operation).map_err(converted)
    }

    async fn renew_incarnation(&self, cluster: &str, operation: &str) -> engine::Result<()> {
        self.0.renew_incarnation(&Self::name(cluster)?, operation).map(|_| ()).map_err(converted)
    }

    async fn restore_incarnation(&self, cluster: &str, operation: &str) -> engine::Result<()> {
        self.0.restore_incarnation(&Self::name(cluster)?, operation).map_err(converted)
    }
}

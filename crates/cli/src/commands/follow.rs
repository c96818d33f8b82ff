//! `mainstay follow`: clusters' logs into the vault, in the foreground.

use mainstay_recovery::follow::{FollowOptions, Follower};
use serde::Serialize;

use super::Cx;
use super::backup::holder;
use crate::args::ClustersArgs;
use crate::failure::Result;
use crate::session::{Missing, Session};

#[derive(Serialize)]
struct Followed {
    cluster: String,
    well: bool,
    error: Option<String>,
    spool_to: Option<mainstay_model::Instant>,
    vault_to: Option<mainstay_model::Instant>,
}

pub async fn run(cx: &Cx, args: &ClustersArgs) -> Result {
    let session = Session::open(cx)?;
    let clusters = session.backed_up(session.select(&args.clusters)?);
    let mut followers = Vec::new();
    for cluster in clusters {
        let of = session.protected(cluster, Missing::Spool).await?;
        cx.printer.say(format!("following {} (Ctrl-C ends it)", cluster.name));
        followers.push(Follower::start(of, FollowOptions::new(holder())));
    }
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(|e| crate::failure::Failure::of("io", &e, None))?;
    tokio::select! {
        () = cx.stopped() => {}
        _ = term.recv() => {}
    }
    let mut rows = Vec::new();
    for follower in &followers {
        follower.stop().await;
        let status = follower.status();
        rows.push(Followed {
            cluster: follower.of().cluster.name.to_string(),
            well: status.is_well(),
            error: status.error(),
            spool_to: status.spool_complete_to(),
            vault_to: status.vault_complete_to(),
        });
    }
    cx.printer.result(&rows, |rows| {
        let line = |r: &Followed| match r.vault_to {
            Some(to) => format!("{}: in the vault up to {to}", r.cluster),
            None => format!(
                "{}: nothing in the vault: {}",
                r.cluster,
                r.error.as_deref().unwrap_or("no link yet")
            ),
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

//! `mainstay recover window`: what can be had, from the vault alone.

use mainstay_api::{Hole, Rpo, Window};
use mainstay_model::Instant;
use mainstay_recovery::window::{ClusterWindow, window};

use super::Cx;
use crate::args::ClustersArgs;
use crate::failure::Result;
use crate::printer::table;
use crate::session::{Missing, Session};

pub async fn run(cx: &Cx, args: &ClustersArgs) -> Result {
    let session = Session::open(cx)?;
    let mut windows = Vec::new();
    for cluster in session.backed_up(session.select(&args.clusters)?) {
        let of = match session.protected(cluster, Missing::Fail).await {
            // A vault that was never made holds nothing yet.
            Err(failure) if failure.code == "vault-missing" => {
                windows.push(nothing(cluster.name.as_str()));
                continue;
            }
            of => of?,
        };
        let found = window(&of).await?;
        for damaged in &found.damaged {
            cx.printer
                .say(format!("{damaged} cannot be read and was left out: see `mainstay backup verify`"));
        }
        windows.push(row(found));
    }
    cx.printer.result(&windows, |windows| {
        let at = |at: Option<Instant>| at.map_or_else(|| "nothing yet".to_owned(), |at| at.to_string());
        let seconds = |s: Option<f64>| s.map_or_else(|| "-".to_owned(), |s| format!("{s:.1} s"));
        let line = |w: &Window| {
            vec![
                w.cluster.clone(),
                at(w.from),
                at(w.to),
                seconds(w.rpo.spool_seconds),
                seconds(w.rpo.vault_seconds),
                w.holes.len().to_string(),
            ]
        };
        let mut text =
            table(&["cluster", "from", "to", "rpo spool", "rpo vault", "holes"], windows.iter().map(line));
        for window in windows {
            for hole in &window.holes {
                text.push_str(&format!(
                    "\nhole in {}: {} to {}: {}",
                    window.cluster, hole.from, hole.to, hole.reason
                ));
            }
        }
        text
    })
}

fn nothing(cluster: &str) -> Window {
    let rpo = Rpo { spool_seconds: None, vault_seconds: None };
    Window { cluster: cluster.to_owned(), from: None, to: None, rpo, holes: Vec::new() }
}

fn row(found: ClusterWindow) -> Window {
    Window {
        cluster: found.cluster,
        from: found.from,
        to: found.to,
        rpo: Rpo { spool_seconds: found.rpo.spool_seconds, vault_seconds: found.rpo.vault_seconds },
        holes: found.holes.into_iter().map(|h| Hole { from: h.from, to: h.to, reason: h.reason }).collect(),
    }
}

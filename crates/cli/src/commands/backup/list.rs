//! `mainstay backup list`.

use mainstay_api::SnapshotRow;
use mainstay_vault::SnapshotState;

use super::{Cx, gone};
use crate::args::ClustersArgs;
use crate::failure::Result;
use crate::printer::{bytes, table};
use crate::session::{Missing, Session};

pub async fn run(cx: &Cx, args: &ClustersArgs) -> Result {
    let session = Session::open(cx)?;
    let named = gone::select(&session, &args.clusters).await?;
    let mut all = named.gone;
    for cluster in named.there {
        match session.protected(cluster, Missing::Fail).await {
            // A vault that was never made holds no snapshots.
            Err(failure) if failure.code == "vault-missing" => {}
            of => all.push((cluster.name.to_string(), of?.vault)),
        }
    }
    let mut rows: Vec<SnapshotRow> = Vec::new();
    for (cluster, vault) in all {
        let unique = vault.bytes_unique().await?;
        let (records, damaged) = vault.snapshots_and_damaged().await?;
        for (object, error) in damaged {
            cx.printer.say(format!("{object} cannot be read ({error}): see `mainstay backup verify`"));
        }
        rows.extend(records.into_iter().map(|record| SnapshotRow {
            cluster: cluster.clone(),
            taken_at: record.taken.at.latest,
            state: state(record.state).to_owned(),
            proven_at: record.proven_at,
            pinned: record.pinned,
            bytes_unique: unique.get(&record.id).copied().unwrap_or(0),
            snapshot: record.id,
        }));
    }
    rows.sort_by(|a, b| (&a.cluster, a.taken_at).cmp(&(&b.cluster, b.taken_at)));
    cx.printer.result(&rows, |rows| {
        let row = |r: &SnapshotRow| {
            let pinned = if r.pinned { "pinned" } else { "" };
            let proven = r.proven_at.map(|at| at.to_string()).unwrap_or_default();
            vec![
                r.cluster.clone(),
                r.snapshot.clone(),
                r.taken_at.to_string(),
                r.state.clone(),
                proven,
                bytes(r.bytes_unique),
                pinned.to_owned(),
            ]
        };
        table(&["cluster", "snapshot", "taken at", "state", "proven at", "unique", ""], rows.iter().map(row))
    })
}

pub fn state(state: SnapshotState) -> &'static str {
    match state {
        SnapshotState::Damaged => "damaged",
        SnapshotState::Stored => "stored",
        SnapshotState::Intact => "intact",
        SnapshotState::Proven => "proven",
    }
}

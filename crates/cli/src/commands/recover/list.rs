//! `mainstay recover list`: sandboxes, and restores in place that are not finished.

use mainstay_api::OperationRow;
use mainstay_runtime::Sandbox;

use super::{Cx, operation};
use crate::failure::Result;
use crate::printer::table;
use crate::session::{self, Session};

pub async fn run(cx: &Cx) -> Result {
    let home = session::home(cx)?;
    let mut rows = Vec::new();
    for sandbox in Sandbox::list(&home)? {
        let record = sandbox.record();
        let state = match (record.restored.is_null(), sandbox.running()?) {
            (true, _) if sandbox.maker_alive() => "being made",
            (true, _) => "half made",
            (false, true) => "running",
            (false, false) => "stopped",
        };
        rows.push(OperationRow {
            id: record.id.clone(),
            kind: "sandbox".to_owned(),
            created_at: record.created,
            state: state.to_owned(),
            clusters: record.clusters.iter().map(ToString::to_string).collect(),
            next: format!("mainstay recover drop {}", record.id),
        });
    }
    if cx.global.fleet.exists() {
        rows.extend(operation::rows(&Session::open(cx)?)?);
    }
    cx.printer.result(&rows, |rows| {
        let row = |r: &OperationRow| {
            vec![
                r.id.clone(),
                r.kind.clone(),
                r.state.clone(),
                r.created_at.to_string(),
                r.clusters.join(" "),
                r.next.clone(),
            ]
        };
        if rows.is_empty() {
            "none".to_owned()
        } else {
            table(&["id", "kind", "state", "since", "clusters", "next"], rows.iter().map(row))
        }
    })
}

//! `mainstay vault …`: the vault itself.

use serde::Serialize;

use super::Cx;
use crate::args::VaultCommand;
use crate::failure::Result;
use crate::printer::{bytes, table};
use crate::session::{Missing, Session};

#[derive(Serialize)]
struct Row {
    vault: String,
    url: String,
    id: String,
    can_restore: bool,
    recipients: Vec<String>,
    clusters: Vec<String>,
    snapshots: usize,
    bytes_unique: u64,
}

pub async fn run(cx: &Cx, verb: &VaultCommand) -> Result {
    let session = Session::open(cx)?;
    let missing = if matches!(verb, VaultCommand::Init) { Missing::Init } else { Missing::Fail };
    let mut rows = Vec::new();
    for (name, spec) in &session.fleet.vaults {
        if matches!(verb, VaultCommand::Init) && session.put_format_back(spec).await? {
            cx.printer.say(format!(
                "{name}: format.json was lost, and was written anew; now run mainstay backup verify"
            ));
        }
        let vault = session.vault(name.as_str(), spec, missing).await?;
        if matches!(verb, VaultCommand::Probe) {
            vault.store().probe().await?;
        }
        let mut row = Row {
            vault: name.to_string(),
            url: spec.url.to_string(),
            id: vault.id().to_owned(),
            can_restore: vault.can_restore(),
            recipients: vault.recipients().to_vec(),
            clusters: Vec::new(),
            snapshots: 0,
            bytes_unique: 0,
        };
        for (fleet, environment, cluster) in vault.clusters().await? {
            let of = vault.cluster(&fleet, &environment, &cluster);
            row.snapshots += of.snapshots_and_damaged().await?.0.len();
            row.bytes_unique += of.bytes_unique().await?.values().sum::<u64>();
            row.clusters.push(format!("{fleet}/{environment}/{cluster}"));
        }
        rows.push(row);
    }
    let verb = match verb {
        VaultCommand::Probe => "keeps its promises: create-only, ranges, listing",
        VaultCommand::Init => "is there",
        VaultCommand::Status | VaultCommand::Keys => "",
    };
    cx.printer.result(&rows, |rows| {
        let line = |r: &Row| {
            let keys = if r.can_restore { "identity: can restore" } else { "no identity: cannot restore" };
            vec![
                r.vault.clone(),
                r.url.clone(),
                r.id.clone(),
                keys.to_owned(),
                format!("{} snapshots", r.snapshots),
                bytes(r.bytes_unique),
                verb.to_owned(),
            ]
        };
        let mut text = table(&["vault", "url", "id", "keys", "holds", "unique", ""], rows.iter().map(line));
        for row in rows {
            for recipient in &row.recipients {
                text.push_str(&format!("\n{}: encrypted to {recipient}", row.vault));
            }
        }
        text
    })
}

//! `mainstay backup verify`: exit 3 when anything in the vaults is not what was written.

use mainstay_api::{Damaged, Verified};
use mainstay_vault::VerifyOptions;

use super::Cx;
use super::pin::no_snapshot;
use crate::args::VerifyArgs;
use crate::failure::{Failure, Result};
use crate::printer::{bytes, table};
use crate::session::{Missing, Session};

pub async fn run(cx: &Cx, args: &VerifyArgs) -> Result {
    let session = Session::open(cx)?;
    let sample = args.sample.map_or(1.0, |percent| f64::from(percent) / 100.0);
    let options = VerifyOptions { snapshot: args.snapshot.clone(), sample, contents: true };
    let mut found = Verified { damaged: Vec::new(), objects: 0, bytes_read: 0 };
    let mut seen = args.snapshot.is_none();
    let bar = cx.bar("verify");
    let mut vaults = std::collections::BTreeSet::new();
    for cluster in session.backed_up(session.select(&[])?) {
        let of = match session.protected(cluster, Missing::Fail).await {
            // Of a vault that cannot even be opened that is the verdict, and no failure to judge.
            Err(failure) if ["vault-damaged", "vault-gone"].contains(&failure.code.as_str()) => {
                let object = failure.message.split('`').nth(1).unwrap_or("format.json").to_owned();
                found.damaged.push(Damaged { object, reason: failure.message, snapshots: Vec::new() });
                seen = true;
                continue;
            }
            opened => opened?,
        };
        if let Some(id) = &args.snapshot {
            let (records, damaged) = of.vault.snapshots_and_damaged().await?;
            if !records.iter().any(|r| r.id == *id)
                && !damaged.iter().any(|(object, _)| object.contains(id.as_str()))
            {
                continue;
            }
            seen = true;
        }
        mainstay_engine::Progress::stage(
            bar.as_ref(),
            &format!("read the backups of {} again", cluster.name),
        );
        add(&mut found, mainstay_recovery::verify::verify(&of, &options).await?);
        let vault = of.vault.vault();
        if args.snapshot.is_none() && vaults.insert(vault.id().to_owned()) {
            // What belongs to no cluster (keys, points, proofs) and to clusters that the fleet file no longer has.
            add(&mut found, vault.verify(&options).await?);
        }
    }
    bar.finish();
    if !seen {
        return Err(no_snapshot(args.snapshot.as_deref().unwrap_or_default()));
    }
    found.damaged.sort_by(|a, b| a.object.cmp(&b.object));
    found.damaged.dedup_by(|a, b| a.object == b.object);
    cx.printer.result(&found, |found| {
        let row = |d: &Damaged| vec![d.object.clone(), d.reason.clone(), d.snapshots.join(" ")];
        let damaged =
            table(&["object", "what is wrong", "snapshots that need it"], found.damaged.iter().map(row));
        let summary = format!(
            "{} objects, {} read again, {} damaged",
            found.objects,
            bytes(found.bytes_read),
            found.damaged.len()
        );
        if found.damaged.is_empty() { summary } else { format!("{damaged}\n{summary}") }
    })?;
    if found.damaged.is_empty() {
        return Ok(());
    }
    let message = format!("{} objects in the vaults are damaged", found.damaged.len());
    Err(Failure::verdict(
        "vault-damaged",
        message,
        "take a new snapshot of each cluster now: mainstay backup run CLUSTER",
    ))
}

fn add(found: &mut Verified, more: mainstay_vault::Verified) {
    found.objects += more.objects;
    found.bytes_read += more.bytes;
    found.damaged.extend(more.damaged.into_iter().map(|d| Damaged {
        object: d.object,
        reason: d.reason,
        snapshots: d.snapshots,
    }));
}

//! `mainstay backup pin SNAPSHOT`.

use serde::Serialize;

use super::Cx;
use crate::args::PinArgs;
use crate::failure::{Failure, Result};
use crate::session::{Missing, Session};

pub async fn run(cx: &Cx, args: &PinArgs) -> Result {
    #[derive(Serialize)]
    struct Pinned {
        snapshot: String,
        pinned: bool,
    }
    let session = Session::open(cx)?;
    for cluster in session.backed_up(session.select(&[])?) {
        let of = session.protected(cluster, Missing::Fail).await?;
        if !of.vault.snapshots().await?.iter().any(|r| r.id == args.snapshot) {
            continue;
        }
        of.vault.set_pinned(&args.snapshot, !args.unpin).await?;
        let pinned = Pinned { snapshot: args.snapshot.clone(), pinned: !args.unpin };
        return cx.printer.result(&pinned, |p| {
            let what = if p.pinned { "is kept whatever retention says" } else { "is retention's again" };
            format!("{} {what}", p.snapshot)
        });
    }
    Err(no_snapshot(&args.snapshot))
}

pub fn no_snapshot(id: &str) -> Failure {
    Failure::failed(
        "not-found",
        format!("there is no snapshot {id}"),
        "see which there are: mainstay backup list",
    )
}

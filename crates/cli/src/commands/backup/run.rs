//! `mainstay backup run CLUSTER`.

use mainstay_api::BackupRun;
use mainstay_engine::Way;
use mainstay_recovery::snapshot;

use super::{Cx, holder};
use crate::args::{BackupRunArgs, WayArg};
use crate::failure::Result;
use crate::printer::bytes;
use crate::render::position;
use crate::session::{Missing, Session};

pub async fn run(cx: &Cx, args: &BackupRunArgs) -> Result {
    let session = Session::open(cx)?;
    let cluster = session.cluster(&args.cluster)?;
    session.running(cluster)?;
    let of = session.protected(cluster, Missing::Make).await?;
    let way = match args.way {
        WayArg::Auto => Way::Auto,
        WayArg::Protocol => Way::Protocol,
        WayArg::Files => Way::Files,
    };
    let bar = cx.bar(format!("snapshot of {}", args.cluster));
    let backup = snapshot::backup(&of, way, usize::from(args.jobs), &holder(), bar.clone()).await;
    bar.finish();
    let backup = backup?;
    let run = BackupRun {
        snapshot: backup.snapshot,
        cluster: backup.cluster,
        taken_at: backup.taken_at,
        position: position(of.engine, &backup.position),
        bytes_read: backup.bytes_read,
        bytes_new: backup.bytes_new,
        bytes_stored: backup.bytes_stored,
        seconds: backup.seconds,
    };
    cx.printer.result(&run, |r| {
        format!(
            "snapshot {} of {}, as of {}: read {}, new {}, stored {}, in {:.1} s",
            r.snapshot,
            r.cluster,
            r.taken_at,
            bytes(r.bytes_read),
            bytes(r.bytes_new),
            bytes(r.bytes_stored),
            r.seconds
        )
    })
}

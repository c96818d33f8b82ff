//! `mainstay backup run CLUSTER`. A snapshot of it that somebody else takes just now (the daemon) is waited for, not failed at.

use std::time::{Duration, Instant as Monotonic};

use mainstay_api::BackupRun;
use mainstay_engine::Way;
use mainstay_recovery::{Error, snapshot};
use mainstay_vault::Error as VaultError;

use super::{Cx, holder};
use crate::args::{BackupRunArgs, WayArg};
use crate::failure::{Failure, Result};
use crate::printer::bytes;
use crate::render::position;
use crate::session::{Missing, Session};

/// How long another snapshot of the same cluster is waited for.
const WAIT_MAX: Duration = Duration::from_secs(30 * 60);
/// How often it is looked whether that has ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    let began = Monotonic::now();
    let mut told = false;
    let backup = loop {
        match snapshot::backup(&of, way, usize::from(args.jobs), &holder(), bar.clone()).await {
            Err(Error::Vault { source: VaultError::Held { holder: by, .. }, .. })
                if began.elapsed() < WAIT_MAX =>
            {
                if !told {
                    cx.printer.say(format!(
                        "{by} takes a snapshot of {} just now: waiting for its end",
                        args.cluster
                    ));
                    told = true;
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = cx.stopped() => return Err(Failure::stopped()),
                }
            }
            ended => break ended,
        }
    };
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

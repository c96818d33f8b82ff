//! Spools that nobody follows any more: of incarnations that ended, of lanes that went.
//!
//! What the vault lacks of one is brought there under the lane's lease, and then it goes. One that somebody has open, whose lane somebody else
//! writes, or whose log cannot be brought to the vault now, stays and is looked at again later.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay_model::{Lane, Place};
use mainstay_vault::{self as vault, LogObject};
use tokio::sync::{Notify, Semaphore, watch};

use super::follower::FollowOptions;
use super::resume::{InVault, history_of, open_spool};
use super::sink::blocking;
use super::spool::{Spool, peek};
use super::upload::{Parts, Uploader, Vaulted};
use super::why;
use crate::Protected;

/// How many of them are looked at in one go.
const AT_ONCE_MAX: usize = 64;

/// Brings what is left in them to the vault, and removes the spools of a cluster that `is_followed` says nothing of. Gives how many went.
pub(super) async fn clear(
    of: &Protected,
    options: &FollowOptions,
    long_reads: &Arc<Semaphore>,
    is_followed: impl Fn(&str, &Lane) -> bool,
) -> usize {
    let root = of.spool.clone();
    let found = blocking(move || Ok(spools(&root))).await.unwrap_or_default();
    let mut stale =
        found.into_iter().filter(|(incarnation, lane, _)| !is_followed(incarnation, lane)).peekable();
    if stale.peek().is_none() {
        return 0;
    }
    // Log of a life that the vault knows nothing of is worth nothing there without a snapshot, and its name may be another in the vault.
    let Ok(lives) = of.vault.incarnations().await else { return 0 };
    let stale = stale.filter(|(incarnation, ..)| lives.contains(incarnation));
    let mut gone = 0;
    for (incarnation, lane, dir) in stale.take(AT_ONCE_MAX) {
        let (cluster, shown) = (&of.cluster.name, dir.display().to_string());
        match one(of, options, long_reads, &incarnation, &lane, dir).await {
            Ok(true) => {
                gone += 1;
                tracing::info!(%cluster, incarnation, %lane, "a spool that nobody follows is in the vault, and was removed");
            }
            Ok(false) => {
                tracing::warn!(%cluster, spool = shown, "a spool that nobody follows is not in the vault")
            }
            Err(vault::Error::Held { holder, .. }) => {
                tracing::debug!(%cluster, %lane, holder, "written by another")
            }
            Err(e) => {
                tracing::warn!(%cluster, spool = shown, error = why(&e), "bring a spool that nobody follows to the vault")
            }
        }
    }
    gone
}

/// Every spool below the cluster's folder: incarnation, lane, folder.
fn spools(root: &Path) -> Vec<(String, Lane, PathBuf)> {
    let folders = |path: &Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let folder = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            entry.file_type().ok()?.is_dir().then(|| (name, entry.path()))
        };
        entries.filter_map(folder).collect::<Vec<_>>()
    };
    let of_life = |(incarnation, path): (String, PathBuf)| {
        folders(&path).into_iter().map(move |(lane, dir)| (incarnation.clone(), Lane(lane), dir))
    };
    let mut found: Vec<_> = folders(root).into_iter().flat_map(of_life).collect();
    found.sort();
    found
}

/// Whether the vault has all log up to `last` on its own branch, whether that survived or not.
fn has(objects: &[LogObject], last: &Place) -> bool {
    let line = history_of(objects).line_to(last);
    line.run_from(last).is_some_and(|run| line.is_at_or_below(last, &run.last) == Some(true))
}

async fn one(
    of: &Protected,
    options: &FollowOptions,
    long_reads: &Arc<Semaphore>,
    incarnation: &str,
    lane: &Lane,
    dir: PathBuf,
) -> vault::Result<bool> {
    let failed = |e| vault::Error::io("open a spool", std::io::Error::other(why(&e)));
    let objects = of.vault.log_objects(incarnation, lane).await?;
    let (path, limits) = (dir.clone(), options.limits.clone());
    let last = blocking(move || peek(&path).map_err(|e| mainstay_engine::Error::io("look at spool", e)));
    let is_there = match last.await.map_err(failed)? {
        None => true,
        Some((last, _)) => has(&objects, &last),
    };
    if is_there {
        // Opened first: nobody else may have it.
        let path = dir.clone();
        let open = move || Spool::open(&path, limits).map(|(spool, _)| spool);
        let spool = blocking(open).await.map_err(failed)?;
        let is_told = spool.files().last().is_none_or(|file| !file.is_broken_off());
        if is_told || InVault::of(&objects).is_broken_off {
            return remove(spool, dir).await.map(|()| true);
        }
    }
    upload(of, options, long_reads, incarnation, lane, dir).await
}

/// Brings a spool to the vault; `true` if all of it is there then, and it was removed.
async fn upload(
    of: &Protected,
    options: &FollowOptions,
    long_reads: &Arc<Semaphore>,
    incarnation: &str,
    lane: &Lane,
    dir: PathBuf,
) -> vault::Result<bool> {
    let lease = of.vault.lane_lease(incarnation, lane, &options.holder, options.lease_ttl).await?;
    let done = async {
        let in_vault = InVault::of(&of.vault.log_objects(incarnation, lane).await?);
        let end = in_vault.end.clone();
        let (path, limits) = (dir.clone(), options.limits.clone());
        let opened = blocking(move || open_spool(&path, limits, &in_vault)).await;
        let (spool, damage) =
            opened.map_err(|e| vault::Error::io("open a spool", std::io::Error::other(why(&e))))?;
        for damage in &damage {
            tracing::error!(cluster = %of.cluster.name, %lane, "{damage}");
        }
        let spool = Arc::new(spool);
        let writer = of.vault.log_writer(incarnation, lane, lease.generation()).await?;
        let (vaulted, _) = watch::channel(Vaulted { end: end.clone(), ..Vaulted::default() });
        let parts = Parts {
            spool: spool.clone(),
            target: Box::new(writer),
            pace: options.pace.clone(),
            end,
            vaulted: Arc::new(vaulted),
            urgent: Arc::new(Notify::new()),
            long_reads: long_reads.clone(),
        };
        let mut uploader = Uploader::new(parts);
        uploader.step().await?;
        drop(uploader);
        let objects = of.vault.log_objects(incarnation, lane).await?;
        let is_there = spool.last_place().is_none_or(|last| has(&objects, &last));
        match Arc::try_unwrap(spool) {
            Ok(spool) if is_there => remove(spool, dir).await.map(|()| true),
            _ => Ok(false),
        }
    };
    let done = done.await;
    if let Err(e) = lease.release().await {
        tracing::debug!(%lane, error = %e, "release lease");
    }
    done
}

/// Removes a spool that is open here, and its incarnation's folder if that is empty then.
async fn remove(spool: Spool, dir: PathBuf) -> vault::Result<()> {
    let work = move || {
        let removed = std::fs::remove_dir_all(&dir);
        drop(spool);
        removed.map_err(|e| mainstay_engine::Error::io(format!("remove spool {}", dir.display()), e))?;
        if let Some(above) = dir.parent() {
            // Another lane's may be in it.
            let _ = std::fs::remove_dir(above);
        }
        Ok(())
    };
    blocking(work).await.map_err(|e| vault::Error::io("remove a spool", std::io::Error::other(why(&e))))
}

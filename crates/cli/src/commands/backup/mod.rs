//! `mainstay backup …`: snapshots in the vault.

mod gone;
mod list;
mod pin;
mod prune;
mod run;
mod verify;

use super::Cx;
use crate::args::Backup;
use crate::failure::Result;

pub async fn run(cx: &Cx, verb: Backup) -> Result {
    match verb {
        Backup::Run(args) => run::run(cx, &args).await,
        Backup::List(args) => list::run(cx, &args).await,
        Backup::Pin(args) => pin::run(cx, &args).await,
        Backup::Verify(args) => verify::run(cx, &args).await,
        Backup::Prune(args) => prune::run(cx, &args).await,
    }
}

/// Who works on a vault, for people who find a lease: `mainstay on HOST, pid N`.
pub fn holder() -> String {
    let host =
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "this host".to_owned());
    let host = host.trim();
    format!("mainstay on {host}, pid {}", std::process::id())
}

//! Retention: the vault's own plan, with the cluster's `keep:`, and its application.
//!
//! Two phases: what may go is marked, and deleted by a prune that comes after the grace period, so that whoever reads it now can finish.
//! Refused while anything that decides it cannot be read.

use std::time::Duration;

use mainstay_model::{Instant, Keep};
use mainstay_vault::{PrunePlan, Pruned};

use crate::Protected;
use crate::error::{Doing, Error, Result};

/// How long what was marked stays: a restore that reads it now is over by then.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// What a prune would do now. Touches nothing.
///
/// # Errors
/// `Invalid` for a cluster without `backup:`; what the vault says.
pub async fn plan(of: &Protected, grace: Duration, now: Instant) -> Result<PrunePlan> {
    let keep = keep(of)?;
    of.vault.plan_prune(&keep, grace, now).await.doing(|| format!("plan the prune of {}", of.cluster.name))
}

/// Prunes: the vault sees to it that one does at a time. `holder` says who does, for the log.
///
/// # Errors
/// As [`plan`]; `Held` while another prunes.
pub async fn prune(of: &Protected, grace: Duration, holder: &str) -> Result<(PrunePlan, Pruned)> {
    let plan = plan(of, grace, Instant::now()).await?;
    let pruned = of.vault.apply_prune(&plan).await.doing(|| format!("prune {}", of.cluster.name))?;
    tracing::debug!(cluster = %of.cluster.name, holder, snapshots = pruned.snapshots, objects = pruned.objects, "pruned");
    Ok((plan, pruned))
}

fn keep(of: &Protected) -> Result<Keep> {
    match &of.cluster.backup {
        Some(backup) => Ok(backup.keep),
        None => Err(Error::Invalid {
            what: format!(
                "{} has no `backup:`, so nothing says how long its backups are kept",
                of.cluster.name
            ),
            hint: Some("give it one in the fleet file, or delete its backups by name".to_owned()),
        }),
    }
}

//! `backup verify`: every object re-read, and what is found intact recorded.

use mainstay_model::Instant;
use mainstay_vault::{Verified, VerifyOptions};

use crate::Protected;
use crate::error::{Doing, Result};

/// Verifies a cluster's backups (or one snapshot of them), and records each whole snapshot that was found right.
///
/// # Errors
/// The store's, when it does not answer. What is damaged is no error but in the result.
pub async fn verify(of: &Protected, options: &VerifyOptions) -> Result<Verified> {
    let cluster = &of.cluster.name;
    let verified = of.vault.verify(options).await.doing(|| format!("verify the backups of {cluster}"))?;
    if options.sample < 1.0 {
        return Ok(verified);
    }
    let (records, _) =
        of.vault.snapshots_and_damaged().await.doing(|| format!("list snapshots of {cluster}"))?;
    let now = Instant::now();
    for record in records {
        let asked = options.snapshot.as_ref().is_none_or(|only| *only == record.id);
        let hurt = verified.damaged.iter().any(|d| d.snapshots.contains(&record.id));
        if asked && !hurt {
            of.vault
                .record_intact(&record.id, now)
                .await
                .doing(|| format!("record that {} is intact", record.id))?;
        }
    }
    Ok(verified)
}

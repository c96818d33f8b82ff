//! `backup verify`: every object re-read, and what is found recorded.

use mainstay_model::Instant;
use mainstay_vault::{Verified, VerifyOptions};

use crate::Protected;
use crate::error::{Doing, Result};

/// Verifies a cluster's backups (or one snapshot of them), and records each whole snapshot that was found right, and each that was found
/// damaged. Where the vault cannot be written, the result alone says so.
///
/// # Errors
/// The store's, when it does not answer. What is damaged is no error but in the result.
pub async fn verify(of: &Protected, options: &VerifyOptions) -> Result<Verified> {
    let cluster = &of.cluster.name;
    let began_at = Instant::now();
    let verified = of.vault.verify(options).await.doing(|| format!("verify the backups of {cluster}"))?;
    if let Err(error) = of.vault.record_verified(options, &verified, began_at).await {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        tracing::warn!(%cluster, %error, cause, "could not record what a verification found");
    }
    Ok(verified)
}

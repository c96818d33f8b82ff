//! Clusters by name, whether the fleet file has them or only its vaults do: one that was taken out of the file keeps its backups.

use mainstay_model::{Cluster, ClusterName};
use mainstay_vault::ClusterVault;

use crate::failure::Result;
use crate::session::{Missing, Session};

/// What names stand for.
pub struct Named<'s> {
    /// Clusters of the file that are backed up.
    pub there: Vec<&'s Cluster>,
    /// Clusters that are no longer in it: once for each vault that has backups of them.
    pub gone: Vec<(String, ClusterVault)>,
}

/// Clusters and groups by name; no name stands for all of the file. A name that only the file's vaults know, under this fleet and
/// environment, is a cluster that is gone.
///
/// # Errors
/// `unknown-name` for one that nobody knows; what the vaults say.
pub async fn select<'s>(session: &'s Session<'_>, names: &[String]) -> Result<Named<'s>> {
    let mut known = Vec::new();
    let mut gone: Vec<(String, ClusterVault)> = Vec::new();
    for name in names {
        if session.fleet.cluster(name).is_some() || session.fleet.group(name).is_some() {
            known.push(name.clone());
            continue;
        }
        if gone.iter().any(|(other, _)| other == name) {
            continue;
        }
        let vaults = find(session, name).await?;
        if vaults.is_empty() {
            session.select(std::slice::from_ref(name))?;
        }
        gone.extend(vaults.into_iter().map(|vault| (name.clone(), vault)));
    }
    let there = match known.is_empty() && !names.is_empty() {
        true => Vec::new(),
        false => session.backed_up(session.select(&known)?),
    };
    Ok(Named { there, gone })
}

/// The backups that the file's vaults have under a name.
async fn find(session: &Session<'_>, name: &str) -> Result<Vec<ClusterVault>> {
    let (fleet, environment) = (session.fleet.name.as_str(), session.fleet.environment.name.as_str());
    let mut found = Vec::new();
    // What is no name of a cluster is no folder of one either.
    if ClusterName::new(name).is_err() {
        return Ok(found);
    }
    for (vault, spec) in &session.fleet.vaults {
        let vault = match session.vault(vault.as_str(), spec, Missing::Fail).await {
            Err(failure) if failure.code == "vault-missing" => continue,
            vault => vault?,
        };
        let backups = vault.cluster(fleet, environment, name);
        if !backups.incarnations().await?.is_empty() {
            found.push(backups);
        }
    }
    Ok(found)
}

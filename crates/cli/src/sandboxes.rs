//! Sandboxes for proofs: made by the runtime, found again by the name that the proof gives them.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use mainstay_engine::{self as engine, Kind, Layout};
use mainstay_model::Cluster;
use mainstay_recovery::prove::Sandboxes;
use mainstay_recovery::restore::Site;
use mainstay_runtime::{Home, Sandbox, SandboxCluster};
use tokio::sync::Mutex;

use crate::Engines;
use crate::session::Session;

/// Sandboxes that were made and not yet removed.
pub struct Made {
    home: Home,
    engines: Engines,
    fleet: String,
    environment: String,
    made: Mutex<BTreeMap<String, Sandbox>>,
}

impl Made {
    pub fn new(session: &Session<'_>) -> Self {
        Self {
            home: session.home.clone(),
            engines: session.cx.engines,
            fleet: session.fleet.name.to_string(),
            environment: session.fleet.environment.name.to_string(),
            made: Mutex::new(BTreeMap::new()),
        }
    }

    /// Removes whatever is left, after something was broken off.
    pub async fn clear(&self) {
        for (id, sandbox) in std::mem::take(&mut *self.made.lock().await) {
            if let Err(error) = sandbox.drop_all().await {
                tracing::error!(sandbox = id, %error, "sandbox not removed: mainstay recover drop --all");
            }
        }
    }
}

#[async_trait]
impl Sandboxes for Made {
    async fn make(&self, id: &str, clusters: &[&Cluster]) -> engine::Result<BTreeMap<String, Site>> {
        let wanted: Vec<_> =
            clusters.iter().map(|cluster| SandboxCluster { cluster, version: None }).collect();
        let made =
            Sandbox::create(&self.home, &self.fleet, &self.environment, "prove", &wanted, self.engines).await;
        let sandbox = made.map_err(converted)?;
        let sites = sites(&sandbox).map_err(converted);
        self.made.lock().await.insert(id.to_owned(), sandbox);
        sites
    }

    async fn remove(&self, id: &str) -> engine::Result<()> {
        let made = self.made.lock().await.get(id).cloned();
        if let Some(sandbox) = made {
            sandbox.drop_all().await.map_err(converted)?;
            // Only now: one that could not be removed is tried again by whoever clears up.
            self.made.lock().await.remove(id);
        }
        Ok(())
    }
}

/// Where the clusters of a sandbox are restored to.
pub fn sites(sandbox: &Sandbox) -> Result<BTreeMap<String, Site>, mainstay_runtime::Error> {
    let site = |layout: Layout| {
        let host = Arc::new(sandbox.host(&layout.cluster.name));
        (layout.cluster.name.to_string(), Site { layout, host })
    };
    Ok(sandbox.layouts()?.into_iter().map(site).collect())
}

/// A runtime's error as an adapter's.
pub fn converted(error: mainstay_runtime::Error) -> engine::Error {
    match error {
        mainstay_runtime::Error::Engine(error) => error,
        other => engine::Error::new(Kind::Io, other.to_string()),
    }
}

//! `mainstay health`: a verdict a cluster; exit 3 when one is not well.

use mainstay_api::{ClusterHealth, Health};

use super::{Cx, status};
use crate::args::ClustersArgs;
use crate::failure::Result;
use crate::session::Session;

pub async fn run(cx: &Cx, args: &ClustersArgs) -> Result {
    let session = Session::open(cx)?;
    let mut clusters = Vec::new();
    for cluster in session.select(&args.clusters)? {
        let seen = status::look(&session, cluster).await?;
        clusters.push(ClusterHealth {
            cluster: seen.cluster,
            well: status::well(&seen.findings),
            findings: seen.findings,
        });
    }
    let health = Health { well: clusters.iter().all(|c| c.well), clusters };
    cx.printer.result(&health, |health| {
        let mut lines = Vec::new();
        for cluster in &health.clusters {
            lines.push(format!("{}: {}", cluster.cluster, if cluster.well { "well" } else { "NOT WELL" }));
            for f in &cluster.findings {
                let node = f.node.as_deref().map(|n| format!(" {n}")).unwrap_or_default();
                lines.push(format!("  {}{node}: {}", f.severity, f.message));
            }
        }
        lines.join("\n")
    })?;
    status::verdict(health.well)
}

//! `mainstay status`: clusters, roles, protection; exit 3 when something is not well.

use mainstay_api::{ClusterStatus, FindingRow, NodeStatus, Status};
use mainstay_engine::{Access, Role, Severity, View};
use mainstay_model::Cluster;
use mainstay_recovery::window::window;

use super::Cx;
use crate::args::ClustersArgs;
use crate::failure::{Failure, Result};
use crate::printer::table;
use crate::session::{Missing, Session};

pub async fn run(cx: &Cx, args: &ClustersArgs) -> Result {
    let session = Session::open(cx)?;
    let mut clusters = Vec::new();
    for cluster in session.select(&args.clusters)? {
        clusters.push(look(&session, cluster).await?);
    }
    let status = Status {
        fleet: session.fleet.name.to_string(),
        environment: session.fleet.environment.name.to_string(),
        well: clusters.iter().all(|c| well(&c.findings)),
        clusters,
    };
    cx.printer.result(&status, text)?;
    verdict(status.well)
}

/// Judged, and not well.
pub fn verdict(well: bool) -> Result {
    if well {
        Ok(())
    } else {
        Err(Failure::verdict(
            "not-well",
            "something is not well",
            "see the findings above; `mainstay up` starts what is down",
        ))
    }
}

/// Notes are worth knowing, and no more.
pub fn well(findings: &[FindingRow]) -> bool {
    findings.iter().all(|f| f.severity == "note")
}

/// Looks at one cluster and at its backups.
pub async fn look(session: &Session<'_>, cluster: &Cluster) -> Result<ClusterStatus> {
    let engine = session.engine(cluster)?;
    let access = session.access(cluster)?;
    let mut status = ClusterStatus {
        cluster: cluster.name.to_string(),
        engine: cluster.engine.clone(),
        version: None,
        nodes: Vec::new(),
        snapshots: None,
        last_snapshot_at: None,
        last_proof_at: None,
        window_to: None,
        findings: Vec::new(),
    };
    if access.nodes.is_empty() {
        status.findings.push(finding(
            Severity::Critical,
            None,
            "it was never brought up here: mainstay up".to_owned(),
        ));
    } else if let Some(observe) = engine.observe() {
        match observe.observe(&access).await {
            Ok(view) => seen(&mut status, &access, view),
            Err(error) => status.findings.push(finding(Severity::Critical, None, error.to_string())),
        }
    }
    protection(session, cluster, &mut status).await?;
    Ok(status)
}

fn seen(status: &mut ClusterStatus, access: &Access, view: View) {
    status.version = view.version;
    for (node, seen) in access.nodes.iter().zip(view.nodes) {
        status.nodes.push(NodeStatus {
            node: node.name.clone(),
            role: role(seen.role).to_owned(),
            address: format!("{}:{}", node.host, node.port),
            lag_seconds: seen.lag_seconds,
            note: seen.note,
        });
        let said = view.findings.iter().any(|f| f.node.as_deref() == Some(node.name.as_str()));
        if seen.role == Role::Down && !said {
            status.findings.push(finding(
                Severity::Critical,
                Some(node.name.clone()),
                "does not answer".to_owned(),
            ));
        }
    }
    status.findings.extend(view.findings.into_iter().map(|f| finding(f.severity, f.node, f.message)));
}

async fn protection(session: &Session<'_>, cluster: &Cluster, status: &mut ClusterStatus) -> Result {
    if session.fleet.vault_of(cluster).is_none() {
        status.findings.push(finding(Severity::Note, None, "it has no backup policy".to_owned()));
        return Ok(());
    }
    let of = match session.protected(cluster, Missing::Fail).await {
        Ok(of) => of,
        Err(failure) if failure.code == "vault-missing" => {
            status.snapshots = Some(0);
            status.findings.push(finding(
                Severity::Warning,
                None,
                "it was never backed up: mainstay serve, or mainstay backup run".to_owned(),
            ));
            return Ok(());
        }
        Err(failure) => {
            status.findings.push(finding(
                Severity::Critical,
                None,
                format!("its vault cannot be opened: {}", failure.message),
            ));
            return Ok(());
        }
    };
    let found = window(&of).await?;
    status.snapshots = Some(found.snapshots);
    status.last_snapshot_at = found.snapshot_at;
    status.window_to = found.to;
    status.last_proof_at = of.vault.snapshots_and_damaged().await?.0.iter().filter_map(|r| r.proven_at).max();
    if found.snapshots == 0 {
        status.findings.push(finding(
            Severity::Warning,
            None,
            "it has no snapshot: mainstay backup run".to_owned(),
        ));
    }
    for object in &found.damaged {
        status.findings.push(finding(
            Severity::Critical,
            None,
            format!("{object} in its vault cannot be read: mainstay backup verify"),
        ));
    }
    for hole in &found.holes {
        status.findings.push(finding(
            Severity::Note,
            None,
            format!("its log has a hole from {} to {}: {}", hole.from, hole.to, hole.reason),
        ));
    }
    Ok(())
}

fn finding(severity: Severity, node: Option<String>, message: String) -> FindingRow {
    let severity = match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    };
    FindingRow { severity: severity.to_owned(), node, message }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Replica => "replica",
        Role::Unknown => "unknown",
        Role::Down => "down",
    }
}

fn text(status: &Status) -> String {
    let nodes = status.clusters.iter().flat_map(|c| {
        let row = |n: &NodeStatus| {
            let lag = n.lag_seconds.map(|s| format!("{s:.1} s behind")).unwrap_or_default();
            vec![c.cluster.clone(), n.node.clone(), n.role.clone(), n.address.clone(), lag, n.note.clone()]
        };
        c.nodes.iter().map(row).collect::<Vec<_>>()
    });
    let kept = status.clusters.iter().map(|c| {
        let at =
            |at: Option<mainstay_model::Instant>| at.map_or_else(|| "never".to_owned(), |at| at.to_string());
        vec![
            c.cluster.clone(),
            c.snapshots.unwrap_or(0).to_string(),
            at(c.last_snapshot_at),
            at(c.last_proof_at),
            at(c.window_to),
        ]
    });
    let mut text = table(&["cluster", "node", "role", "address", "", ""], nodes);
    text.push_str("\n\n");
    text.push_str(&table(&["cluster", "snapshots", "last taken", "last proven", "can be had up to"], kept));
    for cluster in &status.clusters {
        for f in &cluster.findings {
            let node = f.node.as_deref().map(|n| format!(" {n}")).unwrap_or_default();
            text.push_str(&format!("\n{}: {}{node}: {}", f.severity, cluster.cluster, f.message));
        }
    }
    text
}

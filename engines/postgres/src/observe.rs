//! Observing a cluster: who takes writes, who follows and how far behind, and what will become a problem.

use async_trait::async_trait;
use mainstay_engine::{Access, Finding, NodeAccess, NodeView, Observe, Result, Role, Severity, View};

use crate::connect::{self, Standing};
use crate::{Postgres, fault};

#[async_trait]
impl Observe for Postgres {
    async fn observe(&self, access: &Access) -> Result<View> {
        let mut view = View { version: None, incarnation: None, nodes: Vec::new(), findings: Vec::new() };
        let standings = connect::standings(access).await;
        for (node, outcome) in access.nodes.iter().zip(&standings) {
            let looked = match outcome {
                Err(error) => {
                    view.findings.push(finding(
                        Some(node),
                        Severity::Critical,
                        format!("does not answer: {error}"),
                    ));
                    NodeView {
                        name: node.name.clone(),
                        role: Role::Down,
                        lag_seconds: None,
                        note: String::new(),
                    }
                }
                Ok(standing) => look(access, node, standing, &mut view).await?,
            };
            view.nodes.push(looked);
        }
        judge(&standings, &mut view);
        // The next mark finds its session open.
        if view.nodes.iter().any(|node| node.role == Role::Primary)
            && let Err(error) = self.sessions.warm(access).await
        {
            tracing::debug!(%error, "no session kept for marks");
        }
        Ok(view)
    }

    fn uri(&self, access: &Access, node: &NodeAccess) -> String {
        let password = access
            .password
            .as_ref()
            .map(|password| format!(":{}", escape(password.expose())))
            .unwrap_or_default();
        format!(
            "postgresql://{}{password}@{}:{}/postgres",
            escape(&access.user),
            escape(&node.host),
            node.port
        )
    }
}

async fn look(access: &Access, node: &NodeAccess, standing: &Standing, view: &mut View) -> Result<NodeView> {
    let what = "look at the server";
    let row = connect::row(
        &standing.sql,
        what,
        "SELECT current_setting('server_version'), \
         CASE WHEN pg_is_in_recovery() THEN CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0 \
         ELSE extract(epoch FROM now() - pg_last_xact_replay_timestamp()) END END, \
         current_setting('synchronous_standby_names'), current_setting('max_slot_wal_keep_size'), \
         current_setting('wal_level'), current_setting('max_wal_senders'), current_setting('max_replication_slots')",
    )
    .await?;
    let version = row.get(0).unwrap_or("").split_whitespace().next().unwrap_or("").to_owned();
    let lag_seconds = row.get(1).and_then(|text| text.parse::<f64>().ok()).map(|lag| lag.max(0.0));
    view.version.get_or_insert(version);
    view.incarnation.get_or_insert(standing.system_id.to_string());
    if !standing.in_recovery && row.get(3) == Some("-1") {
        let message = "max_slot_wal_keep_size is -1: log that a slot keeps may fill the disk; set a limit";
        view.findings.push(finding(Some(node), Severity::Warning, message.into()));
    }
    if row.get(4) == Some("minimal") || row.get(5) == Some("0") || row.get(6) == Some("0") {
        let message = format!("gives its log to nobody: {}", fault::NO_LOG);
        view.findings.push(finding(Some(node), Severity::Critical, message));
    }
    let here = access.nodes.iter().filter(|node| node.data_dir.is_some()).count();
    if !standing.in_recovery && here > 1 {
        let query = "SELECT spcname FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE '/%'";
        for row in connect::rows(&standing.sql, what, query).await? {
            let message = format!(
                "tablespace {} lies in one directory for all nodes of this machine: they overwrite each other's files; \
                 move its tables back and drop it",
                row.get(0).unwrap_or("")
            );
            view.findings.push(finding(Some(node), Severity::Critical, message));
        }
    }
    let slot = connect::quote_text(&connect::slot(access));
    let query = format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = {slot}");
    let slots = connect::rows(&standing.sql, what, &query).await?;
    if let Some(status) = slots.first().and_then(|row| row.get(0))
        && matches!(status, "unreserved" | "lost")
    {
        let message = format!("our slot is {status}: the log that was not fetched is being given up");
        view.findings.push(finding(Some(node), Severity::Critical, message));
    }
    let role = if standing.in_recovery { Role::Replica } else { Role::Primary };
    Ok(NodeView {
        name: node.name.clone(),
        role,
        lag_seconds,
        note: format!("timeline {}", standing.timeline),
    })
}

fn judge(standings: &[Result<Standing>], view: &mut View) {
    let writing = standings.iter().flatten().filter(|standing| !standing.in_recovery).count();
    if writing == 0 && standings.iter().any(Result::is_ok) {
        view.findings.push(finding(
            None,
            Severity::Critical,
            "no node takes writes: promote a standby, or start the primary".into(),
        ));
    }
    if writing > 1 {
        view.findings.push(finding(
            None,
            Severity::Critical,
            "more than one node takes writes: stop the one on the older timeline".into(),
        ));
    }
    let mut ids: Vec<_> = standings.iter().flatten().map(|standing| standing.system_id).collect();
    ids.dedup();
    if ids.len() > 1 {
        view.findings.push(finding(
            None,
            Severity::Critical,
            "the nodes are of different clusters: their system identifiers differ".into(),
        ));
    }
}

fn finding(node: Option<&NodeAccess>, severity: Severity, message: String) -> Finding {
    Finding { node: node.map(|node| node.name.clone()), severity, message }
}

/// Percent-encodes what a URI's parts may not hold.
fn escape(text: &str) -> String {
    let safe = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes()
        .map(|byte| if safe(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

//! `observe`: roles, and how far replicas are behind.

use async_trait::async_trait;
use mainstay_engine::{Access, Finding, NodeAccess, NodeView, Observe, Result, Role, Severity, View};

use crate::fake::{Fake, connect};

#[async_trait]
impl Observe for Fake {
    async fn observe(&self, access: &Access) -> Result<View> {
        let mut view = View { version: None, incarnation: None, nodes: Vec::new(), findings: Vec::new() };
        for node in &access.nodes {
            let file = connect::connect(node).and_then(|node| node.file());
            let role = match &file {
                Ok(file) if file.primary => Role::Primary,
                Ok(_) => Role::Replica,
                Err(_) => Role::Down,
            };
            if let Ok(file) = file {
                view.version = Some("1.0".to_owned());
                view.incarnation = Some(file.incarnation);
            }
            view.nodes.push(NodeView {
                name: node.name.clone(),
                role,
                lag_seconds: None,
                note: String::new(),
            });
        }
        let found = |node: Option<&NodeView>, severity, message: &str| Finding {
            node: node.map(|node| node.name.clone()),
            severity,
            message: message.to_owned(),
        };
        if !view.nodes.iter().any(|node| node.role == Role::Primary) {
            view.findings.push(found(None, Severity::Critical, "no node takes writes"));
        }
        for node in view.nodes.iter().filter(|node| node.role == Role::Down) {
            view.findings.push(found(Some(node), Severity::Warning, "does not run: mainstay up"));
        }
        Ok(view)
    }

    fn uri(&self, access: &Access, node: &NodeAccess) -> String {
        let dir = node.data_dir.as_deref().map(|dir| dir.display().to_string()).unwrap_or_default();
        format!("fake://{}@{dir}", access.user)
    }
}

//! `observe`: what a cluster is now, and whether it is well.

use async_trait::async_trait;
use serde::Serialize;

use crate::{Access, Result};

/// Engines that can be looked at.
#[async_trait]
pub trait Observe: Send + Sync {
    /// Looks at every node. A node that does not answer is a [`Role::Down`], not an error.
    ///
    /// # Errors
    /// Only when nothing at all can be said.
    async fn observe(&self, access: &Access) -> Result<View>;

    /// A connection URI that the engine's own client takes as it is. Holds the password: for stdout on request only.
    fn uri(&self, access: &Access, node: &crate::NodeAccess) -> String;
}

/// What a cluster is now.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// The server's version, from whichever node answered.
    pub version: Option<String>,
    /// As [`crate::Taken::incarnation`].
    pub incarnation: Option<String>,
    /// Every node of the access, in its order.
    pub nodes: Vec<NodeView>,
    /// What is not well, in words; empty when all is.
    pub findings: Vec<Finding>,
}

/// What a node is now.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// As [`crate::NodeAccess::name`].
    pub name: String,
    /// What it does.
    pub role: Role,
    /// How far it is behind its primary, in seconds, where known.
    pub lag_seconds: Option<f64>,
    /// What it says of itself, for people: `slots 0-5460`, `in recovery`.
    pub note: String,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Follows one that does.
    Replica,
    /// Answers, but is neither.
    Unknown,
    /// Does not answer.
    Down,
}

/// Something that is not well.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The node it concerns, if one.
    pub node: Option<String>,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, and what to do.
    pub message: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Will become a problem.
    Warning,
    /// Is one.
    Critical,
}

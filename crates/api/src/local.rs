//! `up`, `status`, `health`, `connect`, `down`.

use mainstay_model::Instant;
use serde::Serialize;

/// What `up` started.
#[derive(Clone, Debug, Serialize)]
pub struct Up {
    /// The environment.
    pub environment: String,
    /// Its clusters.
    pub clusters: Vec<Brought>,
    /// How long it took.
    pub seconds: f64,
}

/// A cluster that is up.
#[derive(Clone, Debug, Serialize)]
pub struct Brought {
    /// Its name.
    pub cluster: String,
    /// Its engine.
    pub engine: String,
    /// The pinned version.
    pub version: String,
    /// Its nodes and their client ports on 127.0.0.1.
    pub nodes: Vec<Taken>,
}

/// A node, and the port that it took.
#[derive(Clone, Debug, Serialize)]
pub struct Taken {
    /// Its name.
    pub node: String,
    /// Its client port.
    pub port: u16,
}

/// What `down` stopped.
#[derive(Clone, Debug, Serialize)]
pub struct Down {
    /// The environment.
    pub environment: String,
    /// The clusters that are down.
    pub clusters: Vec<String>,
    /// Whether their data was erased.
    pub erased: bool,
}

/// The connection URIs of a cluster, primaries first.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterUris {
    /// The cluster.
    pub cluster: String,
    /// One URI a node; the engine's own client takes it as it is.
    pub uris: Vec<String>,
}

/// What there is, and how it is protected.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The fleet.
    pub fleet: String,
    /// The environment.
    pub environment: String,
    /// Whether all is well.
    pub well: bool,
    /// Its clusters.
    pub clusters: Vec<ClusterStatus>,
}

/// One cluster's state and protection.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterStatus {
    /// Its name.
    pub cluster: String,
    /// Its engine.
    pub engine: String,
    /// Its version, as it says it.
    pub version: Option<String>,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// Complete snapshots in the vault.
    pub snapshots: Option<usize>,
    /// When the newest snapshot was taken.
    pub last_snapshot_at: Option<Instant>,
    /// When a snapshot was last proven.
    pub last_proof_at: Option<Instant>,
    /// The end of the newest window.
    pub window_to: Option<Instant>,
    /// What is not well.
    pub findings: Vec<FindingRow>,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// `primary`, `replica`, `unknown`, `down`.
    pub role: String,
    /// Where its clients connect.
    pub address: String,
    /// Seconds behind its primary.
    pub lag_seconds: Option<f64>,
    /// What it says of itself.
    pub note: String,
}

/// What `health` found.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// Whether all is well.
    pub well: bool,
    /// Cluster by cluster.
    pub clusters: Vec<ClusterHealth>,
}

/// One cluster's health.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterHealth {
    /// Its name.
    pub cluster: String,
    /// Whether it is well.
    pub well: bool,
    /// What is not.
    pub findings: Vec<FindingRow>,
}

/// Something that is not well.
#[derive(Clone, Debug, Serialize)]
pub struct FindingRow {
    /// `note`, `warning`, `critical`.
    pub severity: String,
    /// The node, if it concerns one.
    pub node: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
}

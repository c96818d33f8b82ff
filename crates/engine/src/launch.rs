//! Starting nodes here: what a layout is, where processes run, and what an engine does with them.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use mainstay_model::Cluster;

use crate::{Access, NodeAccess, Result, Secret};

/// Engines whose servers Mainstay can start on this machine.
#[async_trait]
pub trait Launch: Send + Sync {
    /// The newest installed version that fits `version` (`15` fits 15.18; none fits all).
    ///
    /// # Errors
    /// `NotInstalled`, with what is installed and how to install it.
    fn find(&self, version: Option<&str>) -> Result<Installation>;

    /// How many ports each node needs; the first is the clients'.
    fn ports_per_node(&self, cluster: &Cluster) -> usize;

    /// How many nodes a sandbox of this cluster has (a primary alone; the masters alone).
    fn sandbox_nodes(&self, cluster: &Cluster) -> usize;

    /// The system user whose programs refuse to run as root, looked up when we are root.
    fn run_as(&self) -> Option<&'static str>;

    /// Starts every node of the layout that does not run, makes data directories that are not there, joins the nodes into one cluster,
    /// and returns when all is ready. Nodes whose data exists keep the roles that they had.
    ///
    /// # Errors
    /// `NotInstalled`, `Io`, `Server` or `Deadline` with the server's own log lines; what was started stays for [`Self::stop`].
    async fn start(&self, layout: &Layout, host: &dyn Host) -> Result<()>;

    /// Stops every node, replicas last where it matters to their data, cleanly, and at the end by force.
    ///
    /// # Errors
    /// `Deadline`, `Io`.
    async fn stop(&self, layout: &Layout, host: &dyn Host) -> Result<()>;
}

/// An installed server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// `15.18`
    pub version: String,
    /// The folder of its programs.
    pub bin: PathBuf,
}

/// The nodes of a cluster on this machine: folders, ports, secret. Made by the runtime, the same over restarts.
#[derive(Clone, Debug)]
pub struct Layout {
    /// What the fleet file says of the cluster.
    pub cluster: Cluster,
    /// As [`Access::scope`].
    pub scope: String,
    /// The pinned server.
    pub installation: Installation,
    /// The nodes.
    pub nodes: Vec<NodeLayout>,
    /// The administrator's name and password, minted by the runtime.
    pub user: String,
    /// The password.
    pub password: Secret,
    /// The user that servers run as; `None`: our own.
    pub owner: Option<RunAs>,
    /// A sandbox: never archives, replicates or runs scheduled jobs outward.
    pub sandbox: bool,
}

impl Layout {
    /// How the running cluster is reached.
    pub fn access(&self) -> Access {
        let node = |n: &NodeLayout| NodeAccess {
            name: n.name.clone(),
            host: "127.0.0.1".to_owned(),
            port: n.ports[0],
            data_dir: Some(n.data()),
        };
        Access {
            cluster: self.cluster.name.to_string(),
            scope: self.scope.clone(),
            nodes: self.nodes.iter().map(node).collect(),
            user: self.user.clone(),
            password: Some(self.password.clone()),
        }
    }
}

/// One node on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLayout {
    /// `orders-1`
    pub name: String,
    /// The node's own folder, owned by the user it runs as: `data/`, `server.log`, config files. Exists.
    pub dir: PathBuf,
    /// Its ports on 127.0.0.1; at least one.
    pub ports: Vec<u16>,
}

impl NodeLayout {
    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }
    /// Where the server's output goes.
    pub fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }
}

/// A system user, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunAs {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct NodeCommand {
    /// The node that it serves ([`NodeLayout::name`]).
    pub node: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments; never a secret.
    pub args: Vec<String>,
    /// Environment variables beside a minimal one (PATH, LANG=C.UTF-8, HOME of the node's folder).
    pub env: Vec<(String, String)>,
    /// The folder to run in.
    pub cwd: PathBuf,
    /// Where stdout and stderr go, appended.
    pub log: PathBuf,
    /// The user to run as.
    pub owner: Option<RunAs>,
}

/// A machine's processes, as adapters need them. The runtime implements it; tests have one in the kit.
#[async_trait]
pub trait Host: Send + Sync {
    /// Starts a server that outlives us (own session, output to its log) and remembers it under the node's name.
    ///
    /// # Errors
    /// `Io`; `Invalid` when one of that name runs.
    async fn start(&self, command: &NodeCommand) -> Result<u32>;

    /// Whether the node's server runs: its process id, checked against the start time so that a reused id is not taken for it.
    fn running(&self, node: &str) -> Option<u32>;

    /// Sends `signal` (`INT`, `TERM`, …) and waits until it is gone; after `grace` it is killed with its whole group.
    ///
    /// # Errors
    /// `Deadline` when it would not even be killed.
    async fn stop(&self, node: &str, signal: &str, grace: Duration) -> Result<()>;

    /// Runs a program to its end and gives its output. Killed after `deadline`.
    ///
    /// # Errors
    /// `Io`, `Deadline`; an exit code other than 0 is `Server` with the output's last lines.
    async fn run(&self, command: &NodeCommand, deadline: Duration) -> Result<String>;
}

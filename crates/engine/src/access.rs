//! How a running cluster is reached.

use std::fmt;
use std::path::PathBuf;

/// Everything an adapter needs to reach the nodes of a running cluster.
#[derive(Clone, Debug)]
pub struct Access {
    /// Name of the cluster in the fleet file; for messages, and part of names we leave in the server (`mainstay_<scope>`).
    pub cluster: String,
    /// What tells this fleet's things from another's in the server: `[a-z0-9_]{1,40}`, stable over restarts.
    pub scope: String,
    /// The nodes, in the order of the layout or the fleet file; roles are for [`crate::Observe`] to find out.
    pub nodes: Vec<NodeAccess>,
    /// The user to log in as.
    pub user: String,
    /// The password, if any.
    pub password: Option<Secret>,
}

/// One node to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAccess {
    /// `orders-1`
    pub name: String,
    /// A host name or address.
    pub host: String,
    /// The port that clients connect to.
    pub port: u16,
    /// The server's data directory, where this process can read it; `None` if it is elsewhere.
    pub data_dir: Option<PathBuf>,
}

/// A secret: never in a log, never in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself: for the wire, for a 0600 file, for a URI that was asked for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

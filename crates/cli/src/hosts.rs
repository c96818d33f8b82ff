//! Several clusters' processes as one [`Host`]: each node is looked up by its name.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use mainstay_engine::{Error, Host, Kind, Layout, NodeCommand, Result};
use mainstay_runtime::Local;

/// The processes of several clusters.
pub struct Hosts(BTreeMap<String, Local>);

impl Hosts {
    /// `host` gives the processes of one cluster.
    pub fn new<'l>(layouts: impl IntoIterator<Item = &'l Layout>, host: impl Fn(&Layout) -> Local) -> Self {
        let mut nodes = BTreeMap::new();
        for layout in layouts {
            let local = host(layout);
            nodes.extend(layout.nodes.iter().map(|n| (n.name.clone(), local.clone())));
        }
        Self(nodes)
    }

    fn of(&self, node: &str) -> Result<&Local> {
        self.0.get(node).ok_or_else(|| Error::new(Kind::Invalid, format!("there is no node {node} here")))
    }
}

#[async_trait]
impl Host for Hosts {
    async fn start(&self, command: &NodeCommand) -> Result<u32> {
        self.of(&command.node)?.start(command).await
    }

    fn running(&self, node: &str) -> Option<u32> {
        self.of(node).ok()?.running(node)
    }

    async fn stop(&self, node: &str, signal: &str, grace: Duration) -> Result<()> {
        self.of(node)?.stop(node, signal, grace).await
    }

    async fn run(&self, command: &NodeCommand, deadline: Duration) -> Result<String> {
        self.of(&command.node)?.run(command, deadline).await
    }
}

//! `launch`: a process that sleeps for each node; while it lives, the node answers.

use std::fs;
use std::time::Duration;

use async_trait::async_trait;
use mainstay_engine::{Error, Host, Installation, Kind, Launch, Layout, NodeCommand, NodeLayout, Result};
use mainstay_model::Cluster;

use crate::fake::Fake;
use crate::fake::node::{Count, Node, log_name};

const GRACE: Duration = Duration::from_secs(30);

#[async_trait]
impl Launch for Fake {
    fn find(&self, version: Option<&str>) -> Result<Installation> {
        match version {
            None | Some("1" | "1.0") => Ok(Installation { version: "1.0".to_owned(), bin: "/bin".into() }),
            Some(other) => {
                Err(Error::new(Kind::NotInstalled, format!("there is no fake engine {other}, only 1.0")))
            }
        }
    }

    fn ports_per_node(&self, _: &Cluster) -> usize {
        1
    }

    fn sandbox_nodes(&self, _: &Cluster) -> usize {
        1
    }

    fn run_as(&self) -> Option<&'static str> {
        None
    }

    async fn start(&self, layout: &Layout, host: &dyn Host) -> Result<()> {
        let Some(first) = layout.nodes.first() else { return Ok(()) };
        let setting = |key: &str| layout.cluster.config.get(key).map(String::as_str);
        if !layout.nodes.iter().any(|node| Node::at(node.data()).exists()) {
            let lanes = setting("lanes").and_then(|lanes| lanes.parse().ok()).unwrap_or(1);
            let count = if setting("count") == Some("records") { Count::Records } else { Count::Bytes };
            Node::create(&first.data(), &layout.scope, lanes, count)?;
        }
        for node in &layout.nodes {
            if !Node::at(node.data()).exists() {
                join(layout, node)?;
            }
            start_node(layout, node, host).await?;
        }
        Ok(())
    }

    async fn stop(&self, layout: &Layout, host: &dyn Host) -> Result<()> {
        for node in &layout.nodes {
            host.stop(&node.name, "TERM", GRACE).await?;
            Node::at(node.data()).set_down()?;
        }
        Ok(())
    }
}

/// Starts the process of a node that has data, if it does not run.
pub(crate) async fn start_node(layout: &Layout, node: &NodeLayout, host: &dyn Host) -> Result<()> {
    if host.running(&node.name).is_some() {
        return Ok(());
    }
    let command = NodeCommand {
        node: node.name.clone(),
        program: "/bin/sleep".into(),
        args: vec!["infinity".to_owned()],
        env: Vec::new(),
        cwd: node.dir.clone(),
        log: node.log(),
        owner: layout.owner,
    };
    let pid = host.start(&command).await?;
    Node::at(node.data()).set_up(pid)
}

/// Makes a node that has no data a copy of the one that takes writes.
fn join(layout: &Layout, node: &NodeLayout) -> Result<()> {
    for other in &layout.nodes {
        let source = Node::at(other.data());
        if !source.exists() || !source.file()?.primary {
            continue;
        }
        let target = Node::at(node.data());
        let _lock = source.lock()?;
        let mut file = source.file()?;
        file.primary = false;
        target.fill(&file, &source.base()?)?;
        for number in 0..file.lanes.len() {
            target.write(&log_name(number), &source.log(number)?)?;
        }
        return Ok(());
    }
    // Nobody to copy from: a folder without data is no harm, the node is joined at the next start.
    fs::create_dir_all(node.data()).map_err(|e| Error::io(format!("make {}", node.data().display()), e))?;
    Err(Error::new(Kind::Server, format!("start {}: no node to join", node.name)))
}

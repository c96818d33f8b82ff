//! What a test does to a cluster: writes at given times, failures, failovers. No adapter has this file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_engine::{Access, Error, Kind, Layout, NodeAccess, Result};
use mainstay_model::{Instant, Offset};

use crate::fake::connect;
use crate::fake::hold::held;
use crate::fake::node::{Content, Count, Node, apply, lane_of, log_name};
use crate::fake::record::{Op, Record};

/// A cluster's folders, and what can be done to them.
#[derive(Clone, Debug)]
pub struct FakeCluster {
    name: String,
    scope: String,
    nodes: Vec<(String, PathBuf)>,
}

impl FakeCluster {
    /// Makes a cluster in `dir` whose servers are this very process: the first node takes writes, the others are copies.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(dir: &Path, name: &str, nodes: usize, lanes: usize, count: Count) -> Result<Self> {
        let nodes: Vec<_> = (1..=nodes.max(1)).map(|n| format!("{name}-{n}")).collect();
        let nodes: Vec<_> =
            nodes.into_iter().map(|node| (node.clone(), dir.join(node).join("data"))).collect();
        let this = Self { name: name.to_owned(), scope: format!("test_{name}"), nodes };
        for (index, (_, data)) in this.nodes.iter().enumerate() {
            let node = Node::create(data, &format!("life-of-{name}"), lanes, count)?;
            let mut file = node.file()?;
            file.primary = index == 0;
            node.write_json("node.json", &file)?;
            node.set_up(std::process::id())?;
        }
        Ok(this)
    }

    /// The cluster of a layout, which the runtime started.
    pub fn of(layout: &Layout) -> Self {
        let node = |node: &mainstay_engine::NodeLayout| (node.name.clone(), node.data());
        Self {
            name: layout.cluster.name.to_string(),
            scope: layout.scope.clone(),
            nodes: layout.nodes.iter().map(node).collect(),
        }
    }

    /// How it is reached.
    pub fn access(&self) -> Access {
        let node = |(name, data): &(String, PathBuf)| NodeAccess {
            name: name.clone(),
            host: "127.0.0.1".to_owned(),
            port: 1,
            data_dir: Some(data.clone()),
        };
        Access {
            cluster: self.name.clone(),
            scope: self.scope.clone(),
            nodes: self.nodes.iter().map(node).collect(),
            user: "mainstay".to_owned(),
            password: None,
        }
    }

    /// Sets a key, once nobody holds the cluster, on the node that takes writes; copies learn of it by [`Self::replicate`].
    ///
    /// # Errors
    /// `Unreachable`, `Io`.
    pub async fn set(&self, key: &str, value: &str) -> Result<()> {
        self.write(key, Op::Set(key.to_owned(), value.to_owned())).await
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.write(key, Op::Delete(key.to_owned())).await
    }

    async fn write(&self, key: &str, op: Op) -> Result<()> {
        loop {
            let node = connect::primary(&self.access())?;
            {
                let _lock = node.lock()?;
                if !held(&node) {
                    let number = lane_of(key, node.file()?.lanes.len());
                    return node.append(number, &Record { time: node.now(), op });
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What a server writes by itself, held or not.
    ///
    /// # Errors
    /// `Unreachable`, `Io`.
    pub fn ping(&self) -> Result<()> {
        let node = connect::primary(&self.access())?;
        let _lock = node.lock()?;
        for number in 0..node.file()?.lanes.len() {
            node.append(number, &Record { time: node.now(), op: Op::Ping })?;
        }
        Ok(())
    }

    /// Brings the copies up to date.
    ///
    /// # Errors
    /// `Unreachable`, `Io`.
    pub fn replicate(&self) -> Result<()> {
        let source = connect::primary(&self.access())?;
        let _lock = source.lock()?;
        let mut file = source.file()?;
        file.primary = false;
        for node in self.access().nodes.iter().filter_map(|node| connect::connect(node).ok()) {
            if node.dir == source.dir || node.file()?.primary {
                continue;
            }
            for number in 0..file.lanes.len() {
                node.write(&log_name(number), &source.log(number)?)?;
            }
            node.write_json("base.json", &source.base()?)?;
            node.write_json("node.json", &file)?;
        }
        Ok(())
    }

    /// The server of a node is gone, as after a power cut.
    ///
    /// # Errors
    /// `Io`.
    pub fn kill(&self, node: usize) -> Result<()> {
        self.node(node)?.set_down()
    }

    /// The server of a node is this process, from now on.
    ///
    /// # Errors
    /// `Io`.
    pub fn revive(&self, node: usize) -> Result<()> {
        self.node(node)?.set_up(std::process::id())
    }

    /// A copy takes writes from now on, in another epoch. What it had not learnt of is not on its history.
    ///
    /// # Errors
    /// `Io`.
    pub fn promote(&self, node: usize) -> Result<()> {
        let node = self.node(node)?;
        let _lock = node.lock()?;
        let mut file = node.file()?;
        for number in 0..file.lanes.len() {
            let end = Node::end(&file, number, &node.log(number)?)?;
            file.lanes[number].branch(end);
        }
        file.primary = true;
        node.write_json("node.json", &file)
    }

    /// The node that takes writes forgets its log, unless somebody keeps it from that.
    ///
    /// # Errors
    /// `Unreachable`, `Io`.
    pub fn trim(&self) -> Result<()> {
        let node = connect::primary(&self.access())?;
        let _lock = node.lock()?;
        let names = std::fs::read_dir(&node.dir).map_err(|e| Error::io("list the node's folder", e))?;
        if names.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("slot-")) {
            return Ok(());
        }
        let mut file = node.file()?;
        let mut base = node.base()?;
        for number in 0..file.lanes.len() {
            let log = node.log(number)?;
            let end: Offset = Node::end(&file, number, &log)?;
            for (record, _) in Record::decode_all(&log)? {
                apply(&mut base, record.op);
            }
            file.lanes[number].start = end;
            node.write(&log_name(number), &[])?;
        }
        node.write_json("base.json", &base)?;
        node.write_json("node.json", &file)
    }

    /// Sets the servers' clock, which then stands still.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_clock(&self, at: Instant) -> Result<()> {
        for index in 0..self.nodes.len() {
            self.node(index)?.write("clock", at.micros().to_string().as_bytes())?;
        }
        Ok(())
    }

    /// All keys, as the node that takes writes has them.
    ///
    /// # Errors
    /// `Unreachable`, `Io`.
    pub fn content(&self) -> Result<Content> {
        let node = connect::primary(&self.access())?;
        let _lock = node.lock()?;
        Ok(node.content()?.0)
    }

    fn node(&self, index: usize) -> Result<Node> {
        match self.nodes.get(index) {
            Some((_, data)) => Ok(Node::at(data)),
            None => Err(Error::new(Kind::Invalid, format!("there is no node {index}"))),
        }
    }
}

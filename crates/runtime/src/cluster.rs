//! What is remembered of a cluster on this machine: the server that made its data, its nodes and their ports, its incarnation.
//!
//! The record is written before anything that it speaks of is made, and removed after all of that is gone: what a crash leaves is
//! always on record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mainstay_engine::{Host, Installation, Launch, Layout, NodeLayout, RunAs, Secret};
use mainstay_model::{Bytes, Cluster, ClusterName, ClusterShape, Instant, Nodes, Version};
use serde::{Deserialize, Serialize};

use crate::{Error, Home, Local, Result, files, ports, users};

/// The administrator's name in every server that we make.
const ADMINISTRATOR: &str = "mainstay";

/// A cluster as it is here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What the servers were last started with.
    pub(crate) spec: Spec,
    /// The version of the server that made, or last ran on, the data.
    pub(crate) version: String,
    /// The folder of its programs.
    pub(crate) bin: PathBuf,
    /// One life of the data.
    pub(crate) incarnation: String,
    /// Incarnations that were left, by the operation that left them.
    #[serde(default)]
    pub(crate) left: BTreeMap<String, String>,
    /// The name of the user whom the servers run as; `None`: our own.
    pub(crate) run_as: Option<String>,
    /// Whether the nodes lie outside the home.
    pub(crate) outside: bool,
    pub(crate) nodes: Vec<NodeRecord>,
    pub(crate) created: Instant,
    /// It is being erased: what is left of it is of no use.
    #[serde(default)]
    pub(crate) erasing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    pub(crate) name: String,
    pub(crate) ports: Vec<u16>,
}

/// The part of a fleet file's cluster that servers are started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    name: ClusterName,
    pub(crate) engine: String,
    pub(crate) replicas: Option<u32>,
    memory: Option<Bytes>,
    config: BTreeMap<String, String>,
}

impl Spec {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self {
            name: cluster.name.clone(),
            engine: cluster.engine.clone(),
            replicas: cluster.cluster.map(|shape| shape.replicas),
            memory: cluster.memory,
            config: cluster.config.clone(),
        }
    }

    pub(crate) fn name(&self) -> &ClusterName {
        &self.name
    }

    /// The cluster that runs: as the fleet file has it where it still is there, but with what it was started with.
    fn cluster(&self, now: Option<&Cluster>, nodes: usize, version: &str) -> Cluster {
        let mut cluster = now.cloned().unwrap_or_else(|| Cluster {
            name: self.name.clone(),
            engine: self.engine.clone(),
            version: parse_version(version),
            nodes: Nodes::Count(1),
            cluster: None,
            tier: None,
            memory: None,
            config: BTreeMap::new(),
            backup: None,
            access: None,
            control: None,
        });
        cluster.nodes = Nodes::Count(u32::try_from(nodes).unwrap_or(u32::MAX));
        cluster.cluster = self.replicas.map(|replicas| ClusterShape { replicas });
        cluster.memory = self.memory;
        cluster.config = self.config.clone();
        cluster
    }
}

/// Where the things of a cluster lie.
#[derive(Clone, Debug)]
pub(crate) struct Rooms {
    /// Its record and its secret.
    pub(crate) folder: PathBuf,
    /// Its processes.
    pub(crate) run: PathBuf,
    /// Its nodes, below [`Home::nodes`].
    pub(crate) nodes: PathBuf,
}

impl Rooms {
    pub(crate) fn record(&self) -> PathBuf {
        self.folder.join("cluster.json")
    }

    fn password(&self) -> PathBuf {
        self.folder.join("password")
    }

    pub(crate) fn host(&self) -> Local {
        Local::new(&self.run)
    }
}

impl Record {
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        files::read_json(path)
    }

    pub(crate) fn load(rooms: &Rooms) -> Result<Option<Self>> {
        Self::read(&rooms.record())
    }

    pub(crate) fn save(&self, rooms: &Rooms) -> Result<()> {
        files::write_json(&rooms.record(), self)
    }

    /// Puts a new cluster down: version pinned, incarnation and secret minted, ports chosen. Its folders are made later.
    pub(crate) fn create(
        home: &Home,
        rooms: &Rooms,
        cluster: &Cluster,
        launch: &dyn Launch,
        installation: Installation,
        nodes: usize,
    ) -> Result<Self> {
        let run_as = users::user_of(launch).map(str::to_owned);
        let owner = run_as.as_deref().map(users::look_up).transpose()?;
        files::private_dir(&rooms.folder)?;
        files::write_atomic(&rooms.password(), files::random_hex(24)?.as_bytes())?;
        let mut record = Self {
            spec: Spec::of(cluster),
            version: installation.version,
            bin: installation.bin,
            incarnation: files::random_hex(8)?,
            left: BTreeMap::new(),
            run_as,
            outside: home.must_be_outside(owner),
            nodes: Vec::new(),
            created: Instant::now(),
            erasing: false,
        };
        record.grow(rooms, launch.ports_per_node(cluster), nodes)?;
        record.save(rooms)?;
        Ok(record)
    }

    /// Adds nodes until there are that many. To be saved.
    pub(crate) fn grow(&mut self, rooms: &Rooms, ports_per_node: usize, nodes: usize) -> Result<()> {
        let more = nodes.saturating_sub(self.nodes.len());
        let per_node = ports_per_node.max(1);
        let chosen = ports::reserve(&rooms.record(), more * per_node)?;
        for ports in chosen.chunks(per_node) {
            let name = format!("{}-{}", self.spec.name, self.nodes.len() + 1);
            self.nodes.push(NodeRecord { name, ports: ports.to_vec() });
        }
        Ok(())
    }

    /// Gives nodes that do not run other ports where somebody else has taken theirs. To be saved.
    pub(crate) fn refresh_ports(&mut self, rooms: &Rooms) -> Result<()> {
        let host = rooms.host();
        for node in &mut self.nodes {
            if host.running(&node.name).is_some() {
                continue;
            }
            for port in &mut node.ports {
                if ports::bindable(*port) {
                    continue;
                }
                let other = ports::reserve(&rooms.record(), 1)?;
                tracing::info!(node = node.name, taken = port, "another port is chosen");
                if let Some(other) = other.first() {
                    let taken = std::mem::replace(port, *other);
                    ports::release(&rooms.record(), std::iter::once(taken))?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn owner(&self) -> Result<Option<RunAs>> {
        self.run_as.as_deref().map(users::look_up).transpose()
    }

    /// Makes the folders of all nodes that are not there yet.
    pub(crate) fn make_folders(&self, home: &Home, rooms: &Rooms) -> Result<()> {
        let owner = self.owner()?;
        for node in &self.nodes {
            home.make_node_folder(self.outside, &rooms.nodes.join(&node.name), owner)?;
        }
        Ok(())
    }

    /// The layout that adapters take. `now`: what the fleet file says of the cluster now, if anything.
    pub(crate) fn layout(
        &self,
        home: &Home,
        rooms: &Rooms,
        now: Option<&Cluster>,
        scope: String,
        sandbox: bool,
    ) -> Result<Layout> {
        let base = home.nodes(self.outside).join(&rooms.nodes);
        let path = rooms.password();
        let password = std::fs::read_to_string(&path).map_err(Error::at("read", &path))?;
        let node = |n: &NodeRecord| NodeLayout {
            name: n.name.clone(),
            dir: base.join(&n.name),
            ports: n.ports.clone(),
        };
        if let Some(node) = self.nodes.iter().find(|node| node.ports.is_empty()) {
            let reason = format!("node {} has no port", node.name);
            return Err(Error::Damaged { path: rooms.record(), reason });
        }
        Ok(Layout {
            cluster: self.spec.cluster(now, self.nodes.len(), &self.version),
            scope,
            installation: Installation { version: self.version.clone(), bin: self.bin.clone() },
            nodes: self.nodes.iter().map(node).collect(),
            user: ADMINISTRATOR.to_owned(),
            password: Secret::new(password),
            owner: self.owner()?,
            sandbox,
        })
    }

    /// Removes all that there is of it; the servers are stopped. May be run again after a crash.
    pub(crate) async fn erase(mut self, home: &Home, rooms: &Rooms) -> Result<()> {
        if !self.erasing {
            self.erasing = true;
            self.save(rooms)?;
        }
        home.remove_node_folders(self.outside, &rooms.nodes).await?;
        files::remove(&rooms.run)?;
        let ports = self.nodes.iter().flat_map(|node| node.ports.iter().copied());
        ports::release(&rooms.record(), ports)?;
        files::remove(&rooms.folder)
    }
}

/// The server that is to run on data that `made_by` made (or on new data), where the fleet file wants `wanted`.
///
/// Within a major version newer servers take over; nothing else is started on existing data.
pub(crate) fn choose(
    launch: &dyn Launch,
    what: &str,
    wanted: Option<&Version>,
    made_by: Option<&str>,
) -> Result<Installation> {
    let text = wanted.map(ToString::to_string);
    let Some(made_by) = made_by else { return Ok(launch.find(text.as_deref())?) };
    let Some(data) = parse_version(made_by) else { return Ok(launch.find(Some(made_by))?) };
    let refuse = |server: &str| {
        Error::refused(
            format!(
                "the data of {what} was made by version {made_by}: version {server} is not started on it"
            ),
            format!("write `version: \"{}\"`, or begin anew: mainstay down --erase", data.major()),
        )
    };
    let fits = wanted.is_none_or(|wanted| wanted.covers(&data));
    match wanted {
        Some(wanted) if !fits && wanted.major() != data.major() => return Err(refuse(&wanted.to_string())),
        _ if fits => {
            if let Ok(exactly) = launch.find(Some(made_by)) {
                return Ok(exactly);
            }
        }
        _ => {}
    }
    let other = if fits { data.major().to_string() } else { text.unwrap_or_default() };
    let found = launch.find(Some(&other))?;
    match parse_version(&found.version) {
        Some(server) if server.major() == data.major() && server >= data => Ok(found),
        _ => Err(refuse(&found.version)),
    }
}

/// The leading numbers of a version: `16beta1` is 16.
fn parse_version(text: &str) -> Option<Version> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text[..end].trim_end_matches('.').parse().ok()
}

//! Starting Redis here: finding the server, writing its file, waiting until it is ready, stopping it.
//!
//! Nodes of a Redis Cluster keep their roles in their own `nodes.conf`. For plain replication the name of the master is kept in
//! the first node's data folder and brought up to date whenever a cluster is looked at or stopped, so that after a failover the roles
//! survive `down` and `up`, and go with the data when these are set aside and brought back. A stop saves: masters go first, while their replicas can still hear them.

use std::collections::BTreeSet;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::join_all;
use mainstay_engine::{
    Error, Host, Installation, Kind, Launch, Layout, NodeCommand, NodeLayout, Result, RunAs,
};
use mainstay_model::{Cluster, Version};

use crate::Redis;
use crate::assemble::{Member, assemble, even_slots, wait_until_well};
use crate::config::{self, Purpose};
use crate::connect::{self, Client};
use crate::topology::{Topology, ask};

/// How long a server may take to answer, while it does not say that it is loading its data.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How long it may load.
const LOAD_DEADLINE: Duration = Duration::from_secs(3600);
/// How long a server may take to save and end.
const STOP_GRACE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(25);
/// A file in the first node's data folder, for as long as a new Redis Cluster has not come together.
const ASSEMBLING: &str = "assembling";

#[async_trait]
impl Launch for Redis {
    fn find(&self, version: Option<&str>) -> Result<Installation> {
        find(version)
    }

    fn ports_per_node(&self, cluster: &Cluster) -> usize {
        if cluster.cluster.is_some() { 2 } else { 1 }
    }

    fn sandbox_nodes(&self, cluster: &Cluster) -> usize {
        config::masters(cluster)
    }

    fn run_as(&self) -> Option<&'static str> {
        Some("redis")
    }

    async fn start(&self, layout: &Layout, host: &dyn Host) -> Result<()> {
        if layout.cluster.cluster.is_some() {
            start_cluster(layout, host).await
        } else {
            start_replicated(layout, host).await
        }
    }

    async fn stop(&self, layout: &Layout, host: &dyn Host) -> Result<()> {
        let running: Vec<&NodeLayout> =
            layout.nodes.iter().filter(|node| host.running(&node.name).is_some()).collect();
        let mut masters = BTreeSet::new();
        if !running.is_empty()
            && let Ok(topology) = Topology::look(&layout.access()).await
        {
            remember_master(layout.nodes.first().map(NodeLayout::data).as_deref(), &topology);
            masters.extend(topology.shards.iter().map(|shard| topology.nodes[shard.master].name.clone()));
            let clients = topology.nodes.iter().filter_map(|node| node.state.as_ref().ok());
            join_all(clients.map(|(_, client)| save_at_end(client))).await;
        }
        let (first, then): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|node| masters.contains(&node.name));
        for group in [first, then] {
            let stops = group.iter().map(|node| host.stop(&node.name, "TERM", STOP_GRACE));
            join_all(stops).await.into_iter().collect::<Result<Vec<()>>>()?;
        }
        Ok(())
    }
}

/// Looks for servers: the folders of `scripts/engines`, then PATH, then where distributions put them.
fn find(version: Option<&str>) -> Result<Installation> {
    let wanted = match version.map(str::parse::<Version>).transpose() {
        Ok(wanted) => wanted,
        Err(error) => return Err(Error::new(Kind::Invalid, error.to_string())),
    };
    let mut installed = BTreeSet::new();
    for bin in folders() {
        let server = bin.join("redis-server");
        if let Some(found) = server.is_file().then(|| version_of(&server)).flatten() {
            installed.insert((found, bin));
        }
    }
    let fits =
        |found: &Version| found.major() >= 7 && wanted.as_ref().is_none_or(|wanted| wanted.covers(found));
    if let Some((found, bin)) = installed.iter().rev().find(|(found, _)| fits(found)) {
        return Ok(Installation { version: found.to_string(), bin: bin.clone() });
    }
    let there: Vec<String> = installed.iter().map(|(found, _)| found.to_string()).collect();
    let there =
        if there.is_empty() { "none is".to_owned() } else { format!("installed: {}", there.join(", ")) };
    let what = match &wanted {
        Some(wanted) => format!("find a Redis server of version {wanted}: {there}"),
        None => format!("find a Redis server of version 7.0 or later: {there}"),
    };
    Err(Error::new(Kind::NotInstalled, what).hint("run scripts/engines, or apt-get install redis-server"))
}

fn folders() -> Vec<PathBuf> {
    let mut roots = Vec::new();
    roots.extend(std::env::var_os("MAINSTAY_ENGINES").map(PathBuf::from));
    roots.push(PathBuf::from("/var/cache/mainstay/engines"));
    roots.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/mainstay/engines")));
    let mut bins = Vec::new();
    for root in roots {
        let Ok(entries) = std::fs::read_dir(&root) else { continue };
        let redis = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("redis-"))
        };
        bins.extend(entries.flatten().map(|entry| entry.path()).filter(redis).map(|path| path.join("bin")));
    }
    if let Some(path) = std::env::var_os("PATH") {
        bins.extend(std::env::split_paths(&path).filter(|folder| folder.is_absolute()));
    }
    bins.extend(["/usr/bin", "/usr/local/bin", "/opt/redis/bin"].map(PathBuf::from));
    bins
}

/// What a server says of itself: `Redis server v=7.0.15 sha=…`.
fn version_of(server: &Path) -> Option<Version> {
    let mut command = std::process::Command::new(server);
    // Ctrl-C at a terminal is for us, and no answer.
    let output = command.arg("--version").env_clear().process_group(0).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = text.strip_prefix("Redis server v=")?.split_ascii_whitespace().next()?;
    word.parse().ok()
}

async fn start_replicated(layout: &Layout, host: &dyn Host) -> Result<()> {
    let master = current_master(layout, host).await;
    let port = layout.nodes[master].ports[0];
    // The master first: a replica that finds nobody waits a second before it tries again.
    let order = std::iter::once(master).chain((0..layout.nodes.len()).filter(|index| *index != master));
    for index in order {
        let node = &layout.nodes[index];
        let purpose = if index == master { Purpose::Master } else { Purpose::Replica(port) };
        start_node(layout, node, host, &purpose).await?;
        if index == master {
            wait_ready(layout, node, host).await?;
        }
    }
    let clients = wait_all_ready(layout, host).await?;
    wait_until_well(&clients, layout, false).await?;
    let topology = Topology::look(&layout.access()).await?;
    remember_master(layout.nodes.first().map(NodeLayout::data).as_deref(), &topology);
    Ok(())
}

async fn start_cluster(layout: &Layout, host: &dyn Host) -> Result<()> {
    let fresh = layout.nodes.iter().all(|node| !node.data().join("nodes.conf").exists());
    let mark = layout.nodes.first().map(|node| node.data().join(ASSEMBLING)).unwrap_or_default();
    if let (true, Some(node)) = (fresh, layout.nodes.first()) {
        make_folder(&node.data(), layout.owner)?;
        write_private(&mark, b"", layout.owner)?;
    }
    for node in &layout.nodes {
        start_node(layout, node, host, &Purpose::Clustered).await?;
    }
    let clients = wait_all_ready(layout, host).await?;
    // One that was broken off is gone on with: each of its steps may be done again.
    if mark.exists() {
        let masters = if layout.sandbox { layout.nodes.len() } else { config::masters(&layout.cluster) };
        let members: Vec<Member> = (0..layout.nodes.len())
            .map(|index| match index.checked_sub(masters) {
                None => Member::Master(even_slots(index, masters)),
                Some(replica) => Member::ReplicaOf(replica % masters),
            })
            .collect();
        assemble(&clients, layout, &members).await?;
        wait_until_well(&clients, layout, true).await?;
        return std::fs::remove_file(&mark)
            .map_err(|error| Error::io(format!("remove {}", mark.display()), error));
    }
    join_newcomers(layout, &clients).await?;
    wait_until_well(&clients, layout, true).await
}

/// Nodes without a `nodes.conf` beside others that have one: the masters were restored, their replicas come new.
async fn join_newcomers(layout: &Layout, clients: &[Client]) -> Result<()> {
    let mut states = Vec::new();
    for client in clients {
        states.push(crate::topology::ask_again(client).await?);
    }
    let alone = |index: &usize| {
        states[*index]
            .clustered
            .as_ref()
            .is_some_and(|said| said.slots.is_empty() && said.master_id.is_none())
    };
    let newcomers: Vec<usize> = (0..clients.len()).filter(alone).collect();
    if newcomers.is_empty() {
        return Ok(());
    }
    let masters: Vec<usize> = (0..clients.len())
        .filter(|index| states[*index].clustered.as_ref().is_some_and(|said| !said.slots.is_empty()))
        .collect();
    if masters.is_empty() {
        return Err(Error::new(
            Kind::Server,
            format!("start {}: no node owns any slot", layout.cluster.name),
        ));
    }
    let members: Vec<Member> = (0..clients.len())
        .map(|index| match newcomers.iter().position(|newcomer| *newcomer == index) {
            Some(position) => Member::ReplicaOf(masters[position % masters.len()]),
            None => Member::AsItIs,
        })
        .collect();
    assemble(clients, layout, &members).await
}

/// Which node is the master: whoever says so and runs, then whoever was when it was last seen, then the first.
async fn current_master(layout: &Layout, host: &dyn Host) -> usize {
    let index_of = |name: &str| layout.nodes.iter().position(|node| node.name == name);
    if layout.nodes.iter().any(|node| host.running(&node.name).is_some())
        && let Ok(topology) = Topology::look(&layout.access()).await
        && let Some(shard) = topology.shards.first()
    {
        return shard.master;
    }
    let remembered =
        layout.nodes.first().and_then(|node| std::fs::read_to_string(master_file(&node.data())).ok());
    remembered.and_then(|name| index_of(name.trim())).unwrap_or(0)
}

fn master_file(data: &Path) -> PathBuf {
    data.join("master")
}

/// Writes down who the master is, for the next start. `data` is the first node's data folder.
pub(crate) fn remember_master(data: Option<&Path>, topology: &Topology) {
    let (Some(data), false, Some(shard)) = (data, topology.clustered, topology.shards.first()) else {
        return;
    };
    let name = &topology.nodes[shard.master].name;
    remember(data, name);
}

/// Writes down that a node is the master, in the first node's data folder.
pub(crate) fn remember(data: &Path, name: &str) {
    let file = master_file(data);
    if std::fs::read_to_string(&file).is_ok_and(|known| known.trim() == name) {
        return;
    }
    let fresh = data.join("master.new");
    if let Err(error) = std::fs::write(&fresh, name).and_then(|()| std::fs::rename(&fresh, &file)) {
        tracing::warn!(%error, master = name, "could not write down who the master is");
    }
}

/// A server without save points would forget all at its end; one with an append-only file need not save.
async fn save_at_end(client: &Client) {
    let Ok(answers) =
        client.calls(&[vec!["CONFIG", "GET", "save"], vec!["CONFIG", "GET", "appendonly"]]).await
    else {
        return;
    };
    let value =
        |index: usize| answers.get(index).and_then(|pair| pair.list().get(1)).map(connect::Answer::text);
    if value(0).as_deref() == Some("") && value(1).as_deref() == Some("no") {
        // The server saves at its end if there is any save point.
        if let Err(error) = client.call(&["CONFIG", "SET", "save", "3600 1"]).await {
            tracing::warn!(%error, node = client.node(), "server may end without saving");
        }
    }
}

/// Writes the node's file and starts it, if it does not run.
pub(crate) async fn start_node(
    layout: &Layout,
    node: &NodeLayout,
    host: &dyn Host,
    purpose: &Purpose,
) -> Result<()> {
    if host.running(&node.name).is_some() {
        return Ok(());
    }
    make_folder(&node.data(), layout.owner)?;
    let file = write_config(layout, node, purpose)?;
    let command = NodeCommand {
        node: node.name.clone(),
        program: layout.installation.bin.join("redis-server"),
        args: vec![file.to_string_lossy().into_owned()],
        env: Vec::new(),
        cwd: node.data(),
        log: node.log(),
        owner: layout.owner,
    };
    host.start(&command).await.map(|_| ())
}

/// Writes the node's file and says where it is.
pub(crate) fn write_config(layout: &Layout, node: &NodeLayout, purpose: &Purpose) -> Result<PathBuf> {
    let file = node.dir.join("redis.conf");
    write_private(&file, config::render(layout, node, purpose).as_bytes(), layout.owner)?;
    Ok(file)
}

pub(crate) async fn wait_all_ready(layout: &Layout, host: &dyn Host) -> Result<Vec<Client>> {
    join_all(layout.nodes.iter().map(|node| wait_ready(layout, node, host))).await.into_iter().collect()
}

/// Waits until a node answers and has its data.
pub(crate) async fn wait_ready(layout: &Layout, node: &NodeLayout, host: &dyn Host) -> Result<Client> {
    let access = layout.access();
    let begun = Instant::now();
    loop {
        let Some(at) = access.nodes.iter().find(|candidate| candidate.name == node.name) else {
            return Err(Error::new(Kind::Invalid, format!("start {}: it is not in the layout", node.name)));
        };
        let error = match ask(&node.name, &connect::door(&access, at)).await {
            Ok((state, client)) if !state.loading || state.upstream.is_some() => return Ok(client),
            Ok(_) => None,
            Err(error) => Some(error),
        };
        if host.running(&node.name).is_none() {
            return Err(last_words(node, Kind::Server, "it ended"));
        }
        match error {
            // It runs and answers, but knows another password: the port is somebody else's, or the file is.
            Some(error) if error.kind == Kind::Refused => return Err(error),
            Some(_) if begun.elapsed() > READY_DEADLINE && !is_loading(node) => {
                return Err(last_words(node, Kind::Deadline, "it does not answer"));
            }
            _ if begun.elapsed() > LOAD_DEADLINE => {
                return Err(last_words(node, Kind::Deadline, "it is still loading"));
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

fn is_loading(node: &NodeLayout) -> bool {
    tail(&node.log()).last().is_some_and(|line| line.contains("Loading") || line.contains("RDB"))
}

/// An error that ends in the server's own last lines.
pub(crate) fn last_words(node: &NodeLayout, kind: Kind, what: &str) -> Error {
    let lines = tail(&node.log());
    let words = if lines.is_empty() { "its log is empty".to_owned() } else { lines.join("\n") };
    Error::new(kind, format!("start {}: {what}:\n{words}", node.name))
        .hint(format!("see {}", node.log().display()))
}

fn tail(log: &Path) -> Vec<String> {
    const LINES: usize = 8;
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| (*line).to_owned()).collect()
}

/// A folder of the server's own: 0700, belonging to the user it runs as.
pub(crate) fn make_folder(path: &Path, owner: Option<RunAs>) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| give(path, owner))
        .map_err(|error| Error::io(format!("make folder {}", path.display()), error))
}

/// A file of the server's own: 0600, replaced in one step.
pub(crate) fn write_private(path: &Path, content: &[u8], owner: Option<RunAs>) -> Result<()> {
    use std::io::Write;
    let fresh = path.with_extension("new");
    let write = || {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all(content)?;
        file.sync_all()?;
        give(&fresh, owner)?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(|error| Error::io(format!("write {}", path.display()), error))
}

fn give(path: &Path, owner: Option<RunAs>) -> std::io::Result<()> {
    match owner {
        Some(owner) => std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid)),
        None => Ok(()),
    }
}

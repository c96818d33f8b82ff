//! A checked tree to the model: overrides laid over, defaults filled in.
//!
//! Notes no mistakes: what has not the right form was noted by [`crate::shape`], and is left out or replaced by a default here so
//! that [`crate::judge`] can look at the rest. What is made from a file with mistakes is never given out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use mainstay_model::{
    Access, Backup, Cluster, ClusterName, ClusterShape, Control, Environment, EnvironmentName, Exact, Fleet,
    GroupName, Hosts, Keep, Nodes, Objective, RecoveryGroup, Schedule, Tier, TierName, Tls, TlsMode,
    VaultName, VaultSpec, VaultUrl, parse_duration,
};

use crate::tree::{Node, Value};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// What a file says for one environment.
pub struct Draft {
    /// The fleet, without what is wrong.
    pub fleet: Fleet,
    /// The file's tree with the environment's overrides laid over, to find places in.
    pub tree: Node,
}

/// Who runs the servers of an environment; `None` if the file has none of that name, or does not say.
///
/// `local` is there even when the file does not name it.
pub fn hosts(root: &Node, environment: &str) -> Option<Hosts> {
    let Some(section) = root.find(&["environments", environment]) else {
        let named = root.find(&["environments"]).is_some_and(|all| all.entry(environment).is_some());
        return (environment == "local" && !named).then_some(Hosts::Local);
    };
    let hosts = section.get("hosts")?;
    let kind = hosts.text().or_else(|| hosts.get("kind")?.text())?;
    match kind {
        "local" => Some(Hosts::Local),
        "external" => Some(Hosts::External),
        "kubernetes" => Some(Hosts::Kubernetes { namespace: read(hosts.get("namespace")) }),
        _ => None,
    }
}

/// Makes the fleet.
pub fn draft(root: &Node, environment: EnvironmentName, hosts: Hosts, base_dir: &Path) -> Draft {
    let tree = overlaid(root, environment.as_str());
    let vaults = vaults(&tree);
    let clusters = names::<ClusterName>(&tree, "clusters")
        .filter_map(|(name, node)| Some((name.clone(), cluster(name, node, &hosts, &vaults)?)))
        .collect();
    let fleet = Fleet {
        name: read(tree.get("fleet")).unwrap_or_else(|| placeholder("fleet")),
        environment: Environment { name: environment, hosts },
        vaults,
        tiers: names::<TierName>(&tree, "tiers").map(|(name, node)| (name, tier(node))).collect(),
        clusters,
        recovery_groups: names::<GroupName>(&tree, "recovery_groups")
            .map(|(name, node)| (name.clone(), group(name, node)))
            .collect(),
        base_dir: base_dir.to_owned(),
    };
    Draft { fleet, tree }
}

/// The tree with an environment's overrides laid over its clusters. Those of clusters that are not there are left out.
fn overlaid(root: &Node, environment: &str) -> Node {
    let (Some(over), Some(below)) =
        (root.find(&["environments", environment, "clusters"]), root.get("clusters"))
    else {
        return root.clone();
    };
    let known = over.entries().iter().filter(|entry| below.entry(&entry.key).is_some()).cloned().collect();
    let clusters = below.overlaid(&Node { at: over.at, value: Value::Map(known) });
    let mut tree = root.clone();
    if let Value::Map(entries) = &mut tree.value {
        for entry in entries.iter_mut().filter(|entry| entry.key == "clusters" && entry.again.is_none()) {
            entry.value = clusters.clone();
        }
    }
    tree
}

fn vaults(tree: &Node) -> BTreeMap<VaultName, VaultSpec> {
    if tree.entry("vaults").is_none() {
        let folder = VaultSpec {
            url: VaultUrl::File(PathBuf::from("vault")),
            recipients: Vec::new(),
            copies: Vec::new(),
            endpoint: None,
            region: None,
            access_key: None,
            secret_key: None,
        };
        return BTreeMap::from([(placeholder("main"), folder)]);
    }
    names::<VaultName>(tree, "vaults").filter_map(|(name, node)| Some((name, vault(node)?))).collect()
}

fn vault(node: &Node) -> Option<VaultSpec> {
    Some(VaultSpec {
        url: read(node.get("url"))?,
        recipients: texts(node.get("recipients")),
        copies: items(node.get("copies")),
        endpoint: text(node.get("endpoint")).map(|url| url.trim_end_matches('/').to_owned()),
        region: text(node.get("region")),
        access_key: read(node.get("access_key")),
        secret_key: read(node.get("secret_key")),
    })
}

fn tier(node: &Node) -> Tier {
    let objective = |name| {
        let node: &Node = node.get(name)?;
        Some(Objective { rto: duration(node.get("rto")), rpo: duration(node.get("rpo")) })
    };
    Tier {
        node: objective("node"),
        zone: objective("zone"),
        region: objective("region"),
        corruption: objective("corruption"),
        total: objective("total"),
    }
}

fn cluster(
    name: ClusterName,
    node: &Node,
    hosts: &Hosts,
    vaults: &BTreeMap<VaultName, VaultSpec>,
) -> Option<Cluster> {
    let local = *hosts == Hosts::Local;
    let nodes = match node.get("nodes") {
        // Where the file has other environments for the hosts, a local one rehearses with as many servers of its own.
        Some(list) if local && !list.items().is_empty() => {
            Nodes::Count(u32::try_from(list.items().len()).ok()?)
        }
        Some(list) if !list.items().is_empty() => Nodes::Named(items(Some(list))),
        count => Nodes::Count(read(count).unwrap_or(1)),
    };
    let shape = |node: &Node| ClusterShape { replicas: read(node.get("replicas")).unwrap_or(0) };
    let access = |node: &Node| Access {
        user: text(node.get("user")),
        password: read(node.get("password")),
        tls: node.get("tls").map(tls),
    };
    let control = |node: &Node| Control {
        stop: text(node.get("stop")),
        start: text(node.get("start")),
        data: path(node.get("data")),
    };
    let setting = |entry: &crate::tree::Entry| Some((entry.key.clone(), entry.value.text()?.to_owned()));
    Some(Cluster {
        name,
        engine: text(node.get("engine"))?,
        version: read(node.get("version")),
        nodes,
        cluster: node.get("cluster").map(shape),
        tier: read(node.get("tier")),
        memory: read(node.get("memory")),
        config: node
            .get("config")
            .map(|all| all.entries().iter().filter_map(setting).collect())
            .unwrap_or_default(),
        backup: node.get("backup").map(|node| backup(node, vaults)),
        access: node.get("access").filter(|_| !local).map(access),
        control: node.get("control").filter(|_| !local).map(control),
    })
}

fn backup(node: &Node, vaults: &BTreeMap<VaultName, VaultSpec>) -> Backup {
    let only = if vaults.len() == 1 { vaults.keys().next().cloned() } else { None };
    Backup {
        snapshot: match node.get("snapshot") {
            None => read_text("daily 02:00"),
            some => read(some),
        },
        follow: text(node.get("follow")).is_none_or(|word| word == "true"),
        prove: read::<Schedule>(node.get("prove")),
        keep: keep(node.get("keep")),
        vault: read(node.get("vault")).or(only).unwrap_or_else(|| placeholder("main")),
    }
}

fn keep(node: Option<&Node>) -> Keep {
    let count = |name| read::<u32>(node.and_then(|node| node.get(name)));
    let length = |name| duration(node.and_then(|node| node.get(name)));
    let (daily, weekly, monthly, yearly) =
        (count("daily"), count("weekly"), count("monthly"), count("yearly"));
    let counted = daily.or(weekly).or(monthly).or(yearly).is_some();
    let within = length("within").unwrap_or(if counted { Duration::ZERO } else { 30 * DAY });
    Keep {
        within,
        daily: daily.unwrap_or(0),
        weekly: weekly.unwrap_or(0),
        monthly: monthly.unwrap_or(0),
        yearly: yearly.unwrap_or(0),
        least: count("least").unwrap_or(2).max(1),
        log: length("log").unwrap_or(if within > Duration::ZERO { within } else { 7 * DAY }),
    }
}

fn tls(node: &Node) -> Tls {
    let mode = match text(node.get("mode")).as_deref() {
        Some("require") => TlsMode::Require,
        Some("verify-ca") => TlsMode::VerifyCa,
        _ => TlsMode::VerifyFull,
    };
    Tls { mode, ca: path(node.get("ca")), cert: path(node.get("cert")), key: path(node.get("key")) }
}

fn group(name: GroupName, node: &Node) -> RecoveryGroup {
    let every = match node.get("every") {
        None => Some(MINUTE),
        some => duration(some),
    };
    let exact = |node: &Node| Exact {
        every: duration(node.get("every")).unwrap_or((15 * MINUTE).max(every.unwrap_or_default())),
        stall: duration(node.get("stall")).unwrap_or(Duration::from_millis(20)),
    };
    RecoveryGroup { name, members: items(node.get("members")), every, exact: node.get("exact").map(exact) }
}

/// The sections of a mapping from names, without those whose name is none.
fn names<'n, N: FromStr>(tree: &'n Node, key: &str) -> impl Iterator<Item = (N, &'n Node)> {
    let entries = tree.get(key).map(Node::entries).unwrap_or_default();
    let section = |entry: &'n crate::tree::Entry| Some((entry.key.parse::<N>().ok()?, &entry.value));
    entries.iter().filter(|entry| entry.again.is_none()).filter_map(section)
}

/// Our own names, which are names.
fn placeholder<N: FromStr<Err: std::fmt::Debug>>(name: &str) -> N {
    name.parse().expect("a name in the source is one")
}

fn text(node: Option<&Node>) -> Option<String> {
    node?.text().map(str::to_owned)
}

fn read<T: FromStr>(node: Option<&Node>) -> Option<T> {
    read_text(node?.text()?)
}

fn read_text<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn duration(node: Option<&Node>) -> Option<Duration> {
    parse_duration(node?.text()?).ok()
}

fn path(node: Option<&Node>) -> Option<PathBuf> {
    let text = node?.text()?;
    Some(PathBuf::from(text.strip_prefix("file:").unwrap_or(text)))
}

fn items<T: FromStr>(node: Option<&Node>) -> Vec<T> {
    node.map(Node::items).unwrap_or_default().iter().filter_map(|item| read(Some(item))).collect()
}

fn texts(node: Option<&Node>) -> Vec<String> {
    node.map(Node::items).unwrap_or_default().iter().filter_map(|item| text(Some(item))).collect()
}

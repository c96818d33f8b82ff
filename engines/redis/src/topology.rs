//! Who is who: asks every node what it is, and puts the answers together as shards.
//!
//! A shard is what has one stream of writes: a standalone server, a master with its replicas, or one master of a Redis Cluster
//! with its replicas. Its lane is named for what it holds (`main`, or the slots: `slots-0-5460`), so that the name outlives a
//! failover. Nothing is believed of a node that it does not say of itself; of two masters that claim the same slots, the one
//! with the higher configuration epoch is right.

use futures::future::join_all;
use mainstay_engine::{Access, Error, Kind, Result};
use mainstay_model::Lane;

use crate::connect::{self, Client};
use crate::link::Door;

/// Slots of a Redis Cluster.
pub const SLOTS: u32 = 16384;

/// What the nodes of a cluster said.
#[derive(Clone)]
pub struct Topology {
    /// Every node of the access, in its order.
    pub nodes: Vec<Node>,
    /// The shards, by their first slot.
    pub shards: Vec<Shard>,
    /// Whether it is a Redis Cluster.
    pub clustered: bool,
}

/// One node.
#[derive(Clone)]
pub struct Node {
    /// As in the access.
    pub name: String,
    /// How to get in.
    pub door: Door,
    /// What it said, and the connection; or why it said nothing.
    pub state: std::result::Result<(State, Client), String>,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// `7.0.15`
    pub version: String,
    /// This life of the process.
    pub run_id: String,
    /// Whether it is a master.
    pub master: bool,
    /// The replication id.
    pub replid: String,
    /// The replication id before a promotion; 40 zeros if none.
    pub replid2: String,
    /// The first offset (counted from 1) that the former id no longer covers; -1 if none.
    pub second_offset: i64,
    /// How far its stream has come.
    pub offset: u64,
    /// The first offset (counted from 1) that it can still send; none without a backlog.
    pub backlog_first: Option<u64>,
    /// How many replicas it has.
    pub replicas: u32,
    /// As a replica: its master's port and host, and whether the link is up.
    pub upstream: Option<(String, u16, bool)>,
    /// As a replica: it takes writes of its own, which its master never sees.
    pub writable: bool,
    /// It is reading its data.
    pub loading: bool,
    /// Of a Redis Cluster: what it says of itself there.
    pub clustered: Option<Clustered>,
}

/// What a node of a Redis Cluster says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clustered {
    /// Its id.
    pub id: String,
    /// Its master's id, as a replica.
    pub master_id: Option<String>,
    /// The configuration epoch.
    pub epoch: u64,
    /// Slots that it owns, as ranges, both ends included.
    pub slots: Vec<(u16, u16)>,
    /// A slot is moving to or from it.
    pub moving: bool,
    /// `cluster_state:ok`
    pub ok: bool,
}

/// One stream of writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Its lane.
    pub lane: Lane,
    /// Its slots; empty where there are none.
    pub slots: Vec<(u16, u16)>,
    /// Index of the node that takes its writes.
    pub master: usize,
    /// Indices of its replicas that are up.
    pub replicas: Vec<usize>,
}

impl Topology {
    /// Asks every node.
    ///
    /// # Errors
    /// `Unreachable` when none answers, `Refused` when none lets us in.
    pub async fn look(access: &Access) -> Result<Topology> {
        let asked = access.nodes.iter().map(|node| async {
            let door = connect::door(access, node);
            let state = ask(&node.name, &door).await;
            (Node { name: node.name.clone(), door, state: Err(String::new()) }, state)
        });
        let mut nodes = Vec::new();
        let mut refused = None;
        let mut unreachable = None;
        for (mut node, state) in join_all(asked).await {
            node.state = state.map_err(|error| {
                let text = error.to_string();
                if error.kind == Kind::Refused {
                    refused = Some(error)
                } else {
                    unreachable = Some(error)
                }
                text
            });
            nodes.push(node);
        }
        if nodes.iter().all(|node| node.state.is_err()) {
            let none = || Error::new(Kind::Invalid, format!("look at {}: it has no nodes", access.cluster));
            return Err(refused.or(unreachable).unwrap_or_else(none));
        }
        let states: Vec<Option<&State>> = nodes.iter().map(Node::said).collect();
        let ports: Vec<u16> = nodes.iter().map(|node| node.door.port).collect();
        let clustered = states.iter().flatten().any(|state| state.clustered.is_some());
        let shards = if clustered { shards_of_cluster(&states) } else { shard_of_replicas(&states, &ports) };
        Ok(Topology { clustered, shards, nodes })
    }

    /// The shard of that lane.
    ///
    /// # Errors
    /// `Unreachable`, with the lanes that there are.
    pub fn shard(&self, lane: &Lane) -> Result<&Shard> {
        self.shards.iter().find(|shard| &shard.lane == lane).ok_or_else(|| {
            let lanes: Vec<&str> = self.shards.iter().map(|shard| shard.lane.0.as_str()).collect();
            Error::new(
                Kind::Unreachable,
                format!("find the master of {lane}: no node says that it is; there are {}", lanes.join(", ")),
            )
        })
    }

    /// Checks that writes of every slot have one place to go, and that none is moving.
    ///
    /// # Errors
    /// `Unreachable` when a master is missing, `Refused` while slots move.
    pub fn complete(&self, cluster: &str) -> Result<()> {
        let missing = |what: String| Err(Error::new(Kind::Unreachable, format!("look at {cluster}: {what}")));
        if self.shards.is_empty() {
            return missing("no node says that it is a master".into());
        }
        if !self.clustered {
            return Ok(());
        }
        let ranges = self.shards.iter().flat_map(|shard| &shard.slots);
        let served: u32 = ranges.map(|(first, last)| u32::from(*last) + 1 - u32::from(*first)).sum();
        if served != SLOTS {
            return missing(format!("{served} of {SLOTS} slots have a master that answers"));
        }
        let moving = |node: &&Node| {
            node.said().and_then(|state| state.clustered.as_ref()).is_some_and(|clustered| clustered.moving)
        };
        match self.nodes.iter().find(moving) {
            Some(node) => Err(Error::new(
                Kind::Refused,
                format!("look at {cluster}: slots of {} are moving", node.name),
            )
            .hint("wait until resharding has ended")),
            None => Ok(()),
        }
    }

    /// A node that is up, by its index in a shard.
    ///
    /// # Errors
    /// `Unreachable` when it is not.
    pub fn up(&self, index: usize) -> Result<(&Node, &State, &Client)> {
        let node = &self.nodes[index];
        match &node.state {
            Ok((state, client)) => Ok((node, state, client)),
            Err(text) => Err(Error::new(Kind::Unreachable, text.clone())),
        }
    }

    /// The node to copy or stream from: a replica that is well, has caught up with its link and holds nothing of its own, otherwise the
    /// master.
    pub fn source(&self, shard: &Shard) -> usize {
        let well = |index: &&usize| {
            self.nodes[**index].said().is_some_and(|state| {
                !state.loading
                    && !state.writable
                    && state.upstream.as_ref().is_some_and(|(_, _, link_up)| *link_up)
            })
        };
        shard.replicas.iter().find(well).copied().unwrap_or(shard.master)
    }
}

impl Node {
    /// What it said, if it did.
    pub fn said(&self) -> Option<&State> {
        self.state.as_ref().ok().map(|(state, _)| state)
    }
}

/// Asks one node what it is.
///
/// # Errors
/// As [`Client::call`].
pub async fn ask(name: &str, door: &Door) -> Result<(State, Client)> {
    let client = Client::open(name, door).await?;
    let state = ask_again(&client).await?;
    Ok((state, client))
}

/// Asks one node what it is, over a connection that is open.
///
/// # Errors
/// As [`Client::call`].
pub async fn ask_again(client: &Client) -> Result<State> {
    let mut state = state_of(&client.call(&["INFO"]).await?.info());
    if state.clustered.is_some() {
        let answers = client.calls(&[vec!["CLUSTER", "NODES"], vec!["CLUSTER", "INFO"]]).await?;
        let [nodes, info] = &answers[..] else {
            return Err(Error::new(
                Kind::Server,
                format!("ask {} for its cluster: no answer", client.node()),
            ));
        };
        let mut clustered = parse_myself(&nodes.text()).ok_or_else(|| {
            Error::new(Kind::Server, format!("ask {} for its cluster: {}", client.node(), nodes.text()))
        })?;
        clustered.ok = info.info().get("cluster_state").is_some_and(|state| state == "ok");
        state.clustered = Some(clustered);
    }
    Ok(state)
}

fn state_of(info: &std::collections::HashMap<String, String>) -> State {
    let text = |key: &str| info.get(key).cloned().unwrap_or_default();
    let number = |key: &str| info.get(key).and_then(|value| value.parse::<i64>().ok());
    let unsigned = |key: &str| number(key).and_then(|value| u64::try_from(value).ok());
    let master = text("role") == "master";
    let upstream = (!master).then(|| {
        let port = info.get("master_port").and_then(|port| port.parse().ok()).unwrap_or(0);
        (text("master_host"), port, text("master_link_status") == "up")
    });
    State {
        version: text("redis_version"),
        run_id: text("run_id"),
        master,
        replid: text("master_replid"),
        replid2: text("master_replid2"),
        second_offset: number("second_repl_offset").unwrap_or(-1),
        offset: unsigned("master_repl_offset").unwrap_or(0),
        backlog_first: (number("repl_backlog_active") == Some(1))
            .then(|| unsigned("repl_backlog_first_byte_offset").unwrap_or(0)),
        replicas: unsigned("connected_slaves").and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        upstream,
        writable: !master && number("slave_read_only") == Some(0),
        loading: number("loading") == Some(1) || number("master_sync_in_progress") == Some(1),
        clustered: (text("cluster_enabled") == "1").then(Clustered::default),
    }
}

/// The line of `CLUSTER NODES` that a node says of itself.
fn parse_myself(nodes: &str) -> Option<Clustered> {
    let line =
        nodes.lines().find(|line| line.split(' ').nth(2).is_some_and(|flags| flags.contains("myself")))?;
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [id, _, _, master_id, _, _, epoch, _, slots @ ..] = &fields[..] else { return None };
    let mut clustered = Clustered {
        id: (*id).to_owned(),
        master_id: (*master_id != "-").then(|| (*master_id).to_owned()),
        epoch: epoch.parse().ok()?,
        ..Clustered::default()
    };
    for slot in slots {
        if slot.starts_with('[') {
            clustered.moving = true;
            continue;
        }
        let (first, last) = slot.split_once('-').unwrap_or((slot, slot));
        clustered.slots.push((first.parse().ok()?, last.parse().ok()?));
    }
    Some(clustered)
}

fn shards_of_cluster(states: &[Option<&State>]) -> Vec<Shard> {
    let clustered = |index: usize| states[index].and_then(|state| state.clustered.as_ref());
    let mut masters: Vec<usize> = (0..states.len())
        .filter(|&index| states[index].is_some_and(|state| state.master))
        .filter(|&index| clustered(index).is_some_and(|clustered| !clustered.slots.is_empty()))
        .collect();
    // A master that was cut off still claims what another has taken over with a higher epoch.
    masters.sort_by_key(|&index| std::cmp::Reverse(clustered(index).map_or(0, |clustered| clustered.epoch)));
    let mut taken = vec![false; SLOTS as usize];
    let mut shards = Vec::new();
    for master in masters {
        let Some(said) = clustered(master) else { continue };
        let mut claimed = said.slots.iter().flat_map(|&(first, last)| first..=last).map(usize::from);
        if claimed.clone().any(|slot| taken.get(slot).copied().unwrap_or(true)) {
            continue;
        }
        claimed.by_ref().for_each(|slot| taken[slot] = true);
        let replicas = (0..states.len())
            .filter(|&index| {
                clustered(index).is_some_and(|replica| replica.master_id.as_ref() == Some(&said.id))
            })
            .collect();
        shards.push(Shard { lane: lane_of(&said.slots), slots: said.slots.clone(), master, replicas });
    }
    shards.sort_by_key(|shard| shard.slots.first().copied());
    shards
}

fn shard_of_replicas(states: &[Option<&State>], ports: &[u16]) -> Vec<Shard> {
    let followers = |port: u16| {
        let of = |state: &&&State| state.upstream.as_ref().is_some_and(|(_, upstream, _)| *upstream == port);
        states.iter().flatten().filter(of).count()
    };
    let master = (0..states.len())
        .filter_map(|index| states[index].filter(|state| state.master).map(|state| (index, state)))
        // A former master that came back thinks that it still is one; the one that others follow, or that was promoted, is.
        .max_by_key(|(index, state)| (followers(ports[*index]), state.second_offset >= 0, state.offset));
    let Some((master, _)) = master else { return Vec::new() };
    let replicas = (0..states.len())
        .filter(|&index| {
            states[index].and_then(|state| state.upstream.as_ref()).is_some_and(|up| up.1 == ports[master])
        })
        .collect();
    vec![Shard { lane: Lane::new("main"), slots: Vec::new(), master, replicas }]
}

/// The name of the lane that holds these slots.
pub fn lane_of(slots: &[(u16, u16)]) -> Lane {
    let range = |&(first, last): &(u16, u16)| {
        if first == last { format!("{first}") } else { format!("{first}-{last}") }
    };
    let all: Vec<String> = slots.iter().map(range).collect();
    let name = format!("slots-{}", all.join("."));
    if name.len() <= 80 {
        return Lane::new(&name);
    }
    // Many fragments: the first range and a number that stands for the rest (FNV-1a, stable for ever).
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Lane::new(&format!("slots-{}.{hash:016x}", all[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(epoch: u64, slots: &[(u16, u16)]) -> State {
        let clustered =
            Clustered { id: format!("m{epoch}"), epoch, slots: slots.to_vec(), ..Clustered::default() };
        State { master: true, clustered: Some(clustered), ..State::default() }
    }

    #[test]
    fn a_line_of_cluster_nodes_is_read() {
        let text = "aa 127.0.0.1:7001@17001 master - 0 0 3 connected 0-5\n\
                    bb 127.0.0.1:7000@17000,h myself,master - 0 1 2 connected 10-20 30 [31->-aa]\n";
        let expected = Clustered {
            id: "bb".into(),
            epoch: 2,
            slots: vec![(10, 20), (30, 30)],
            moving: true,
            ..Clustered::default()
        };
        assert_eq!(parse_myself(text), Some(expected));
    }

    #[test]
    fn of_two_owners_the_later_is_right() {
        let stale = master(1, &[(0, 99)]);
        let fresh = master(5, &[(0, 99)]);
        let other = master(2, &[(100, 16383)]);
        let shards = shards_of_cluster(&[Some(&stale), Some(&other), Some(&fresh), None]);
        let owners: Vec<(&str, usize)> =
            shards.iter().map(|shard| (shard.lane.0.as_str(), shard.master)).collect();
        assert_eq!(owners, [("slots-0-99", 2), ("slots-100-16383", 1)]);
    }

    #[test]
    fn a_former_master_is_not_taken_for_the_master() {
        let former = State { master: true, offset: 900, second_offset: -1, ..State::default() };
        let promoted = State { master: true, offset: 500, second_offset: 400, ..State::default() };
        let shards = shard_of_replicas(&[Some(&former), Some(&promoted)], &[1, 2]);
        assert_eq!(shards[0].master, 1);
    }

    #[test]
    fn lanes_of_many_fragments_have_short_names() {
        let slots: Vec<(u16, u16)> = (0..400).map(|n| (n * 3, n * 3 + 1)).collect();
        let lane = lane_of(&slots);
        assert!(lane.0.len() < 60 && lane != lane_of(&slots[1..]), "{lane}");
        assert_eq!(lane_of(&[(0, 5460), (5462, 5462)]).0, "slots-0-5460.5462");
    }
}

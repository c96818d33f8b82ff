//! Joining nodes into a Redis Cluster, and waiting until they agree.
//!
//! Each step may be done again: slots that a node has are not given to it twice, a node that is known is not met again.

use std::time::{Duration, Instant};

use futures::future::join_all;
use mainstay_engine::{Error, Kind, Layout, Result};

use crate::connect::Client;
use crate::topology::{Clustered, SLOTS, State, ask_again};

/// How long nodes may take to agree.
const AGREE_DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// What a node shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// A master with these slots.
    Master(Vec<(u16, u16)>),
    /// A replica of the node at this index.
    ReplicaOf(usize),
    /// What it is already.
    AsItIs,
}

/// The slots of one of so many masters, divided evenly.
pub fn even_slots(index: usize, masters: usize) -> Vec<(u16, u16)> {
    let bound = |index: usize| index * SLOTS as usize / masters;
    let number = |slot: usize| u16::try_from(slot).unwrap_or(u16::MAX);
    vec![(number(bound(index)), number(bound(index + 1) - 1))]
}

/// Gives every node its part and lets them meet. Does not wait until all is well: see [`wait_until_well`].
///
/// # Errors
/// `Server`, `Unreachable`, `Deadline`.
pub async fn assemble(clients: &[Client], layout: &Layout, members: &[Member]) -> Result<()> {
    let mut ids = Vec::new();
    for (index, (client, member)) in clients.iter().zip(members).enumerate() {
        let state = clustered(client).await?;
        if let Member::Master(slots) = member {
            give_slots(client, &state, slots).await?;
        }
        if *member != Member::AsItIs && state.epoch == 0 {
            // Different epochs from the first on, so that nodes need not find out who yields. Known nodes refuse it: then they have one.
            let _ = client.call(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]).await;
        }
        ids.push(state.id);
    }
    for (client, node) in clients.iter().zip(&layout.nodes).skip(1) {
        let (port, bus) = (node.ports[0].to_string(), node.ports.get(1).map(u16::to_string));
        let mut words = vec!["CLUSTER", "MEET", "127.0.0.1", &port];
        words.extend(bus.as_deref());
        clients[0].call(&words).await?;
        tracing::debug!(node = client.node(), "met");
    }
    let begun = Instant::now();
    for (client, member) in clients.iter().zip(members) {
        let Member::ReplicaOf(master) = member else { continue };
        let id = ids.get(*master).cloned().unwrap_or_default();
        loop {
            match client.call(&["CLUSTER", "REPLICATE", &id]).await {
                Ok(_) => break,
                // It has not heard of its master yet.
                Err(error) if begun.elapsed() > AGREE_DEADLINE => return Err(error),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }
    Ok(())
}

/// Waits until every node sees the whole cluster, all slots are served, and every replica hears its master.
///
/// # Errors
/// `Deadline`, with what was not well at the end.
pub async fn wait_until_well(clients: &[Client], layout: &Layout, clustered: bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let looks = clients.iter().map(|client| look(client, clients.len(), clustered));
        let not_well: Vec<String> = join_all(looks).await.into_iter().flatten().collect();
        if not_well.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > AGREE_DEADLINE {
            return Err(Error::new(
                Kind::Deadline,
                format!("start {}: its nodes do not agree: {}", layout.cluster.name, not_well.join("; ")),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What is not well with one node.
async fn look(client: &Client, nodes: usize, clustered: bool) -> Option<String> {
    let node = client.node();
    let state: State = match ask_again(client).await {
        Ok(state) => state,
        Err(error) => return Some(error.to_string()),
    };
    if let Some((_, _, false)) = state.upstream {
        return Some(format!("{node} does not hear its master"));
    }
    if state.loading {
        return Some(format!("{node} is loading"));
    }
    if !clustered {
        return None;
    }
    if !state.clustered.as_ref().is_some_and(|said| said.ok) {
        return Some(format!("{node} says that not all slots are served"));
    }
    let answers = match client.calls(&[vec!["CLUSTER", "NODES"], vec!["CLUSTER", "SLOTS"]]).await {
        Ok(answers) => answers,
        Err(error) => return Some(error.to_string()),
    };
    let [lines, slots] = &answers[..] else { return Some(format!("{node} does not answer")) };
    let lines = lines.text();
    let known = lines.lines().filter(|line| !line.contains("handshake") && !line.contains("fail")).count();
    if known != nodes {
        return Some(format!("{node} knows {known} of {nodes} nodes"));
    }
    // A replica is listed with the slots of its master only once it has caught up; clients find it there.
    let mut listed: Vec<String> = slots
        .list()
        .iter()
        .flat_map(|range| range.list().iter().skip(2))
        .filter_map(|node| node.list().get(2).map(crate::connect::Answer::text))
        .collect();
    listed.sort_unstable();
    listed.dedup();
    (listed.len() != nodes).then(|| format!("{node} lists {} of {nodes} nodes", listed.len()))
}

async fn clustered(client: &Client) -> Result<Clustered> {
    ask_again(client).await?.clustered.ok_or_else(|| {
        Error::new(Kind::Server, format!("join {}: it is no node of a Redis Cluster", client.node()))
    })
}

async fn give_slots(client: &Client, state: &Clustered, slots: &[(u16, u16)]) -> Result<()> {
    // A node that starts with data takes the slots of its keys by itself.
    let has = |slot: &u16| state.slots.iter().any(|(first, last)| (first..=last).contains(&slot));
    let mut missing: Vec<(u16, u16)> = Vec::new();
    for slot in slots.iter().flat_map(|(first, last)| *first..=*last).filter(|slot| !has(slot)) {
        match missing.last_mut() {
            Some((_, last)) if u32::from(*last) + 1 == u32::from(slot) => *last = slot,
            _ => missing.push((slot, slot)),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let numbers: Vec<String> =
        missing.iter().flat_map(|(first, last)| [first.to_string(), last.to_string()]).collect();
    let mut words = vec!["CLUSTER", "ADDSLOTSRANGE"];
    words.extend(numbers.iter().map(String::as_str));
    client.call(&words).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_divided_without_gap_or_overlap() {
        for masters in [1, 3, 5, 7, 100] {
            let mut next = 0;
            for index in 0..masters {
                for (first, last) in even_slots(index, masters) {
                    assert_eq!(u32::from(first), next);
                    next = u32::from(last) + 1;
                }
            }
            assert_eq!(next, SLOTS);
        }
    }
}

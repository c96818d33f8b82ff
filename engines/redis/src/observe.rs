//! `observe`: what every node says of itself, and what is not well.

use async_trait::async_trait;
use mainstay_engine::{Access, Finding, NodeAccess, NodeView, Observe, Result, Role, Severity, View};

use crate::Redis;
use crate::launch::remember_master;
use crate::topology::{Node, State, Topology};

/// How far a replica may be behind before it is worth a word.
const LAG_BYTES: u64 = 16 * 1024 * 1024;

#[async_trait]
impl Observe for Redis {
    async fn observe(&self, access: &Access) -> Result<View> {
        let down = |name: &String, note: String| NodeView {
            name: name.clone(),
            role: Role::Down,
            lag_seconds: None,
            note,
        };
        let topology = match Topology::look(access).await {
            Ok(topology) => topology,
            Err(error) => {
                let message = error.to_string();
                let nodes = access.nodes.iter().map(|node| down(&node.name, message.clone())).collect();
                let finding = Finding { node: None, severity: Severity::Critical, message: message.clone() };
                return Ok(View { version: None, incarnation: None, nodes, findings: vec![finding] });
            }
        };
        let first = access.nodes.first().and_then(|node| node.data_dir.as_deref());
        remember_master(first.filter(|data| data.is_dir()), &topology);
        let nodes = topology.nodes.iter().map(|node| match node.said() {
            Some(state) => NodeView {
                name: node.name.clone(),
                role: if state.master { Role::Primary } else { Role::Replica },
                lag_seconds: None,
                note: note(state),
            },
            None => down(&node.name, node.state.as_ref().err().cloned().unwrap_or_default()),
        });
        Ok(View {
            version: topology.nodes.iter().find_map(Node::said).map(|state| state.version.clone()),
            incarnation: None,
            nodes: nodes.collect(),
            findings: findings(&topology, &access.cluster),
        })
    }

    fn uri(&self, access: &Access, node: &NodeAccess) -> String {
        let user = if access.user == "default" { "" } else { &access.user };
        let login = access
            .password
            .as_ref()
            .map(|password| format!("{}:{}@", escaped(user), escaped(password.expose())));
        let host = if node.host.contains(':') { format!("[{}]", node.host) } else { node.host.clone() };
        format!("redis://{}{host}:{}", login.unwrap_or_default(), node.port)
    }
}

fn note(state: &State) -> String {
    let mut parts = Vec::new();
    if let Some(clustered) = &state.clustered
        && state.master
    {
        let range = |(first, last): &(u16, u16)| format!("{first}-{last}");
        let slots: Vec<String> = clustered.slots.iter().map(range).collect();
        parts.push(format!("slots {}", if slots.is_empty() { "none".to_owned() } else { slots.join(" ") }));
    }
    if state.loading {
        parts.push("loading".to_owned());
    }
    match &state.upstream {
        Some((host, port, true)) => parts.push(format!("of {host}:{port}")),
        Some((host, port, false)) => parts.push(format!("of {host}:{port}, link down")),
        None => {}
    }
    parts.push(format!("at {}", state.offset));
    parts.join(", ")
}

fn findings(topology: &Topology, cluster: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |node: Option<&str>, severity: Severity, message: String| {
        findings.push(Finding { node: node.map(str::to_owned), severity, message });
    };
    for node in &topology.nodes {
        let Some(state) = node.said() else {
            let why = node.state.as_ref().err().cloned().unwrap_or_default();
            find(Some(&node.name), Severity::Critical, format!("does not answer: {why}"));
            continue;
        };
        if state.loading {
            find(Some(&node.name), Severity::Warning, "is loading its data".to_owned());
        }
        if state.writable {
            let message = "takes writes of its own, which no backup holds: CONFIG SET replica-read-only yes";
            find(Some(&node.name), Severity::Warning, message.to_owned());
        }
        if let Some((host, port, false)) = &state.upstream {
            find(Some(&node.name), Severity::Warning, format!("does not hear its master {host}:{port}"));
        }
        if state.clustered.as_ref().is_some_and(|clustered| !clustered.ok) {
            find(
                Some(&node.name),
                Severity::Critical,
                "says that the Redis Cluster is down: see CLUSTER INFO".to_owned(),
            );
        }
    }
    if let Err(error) = topology.complete(cluster) {
        find(None, Severity::Critical, error.to_string());
    }
    for shard in &topology.shards {
        let Some(master) = topology.nodes[shard.master].said() else { continue };
        for replica in &shard.replicas {
            let Some(state) = topology.nodes[*replica].said() else { continue };
            let behind = master.offset.saturating_sub(state.offset);
            if behind > LAG_BYTES {
                let name = &topology.nodes[*replica].name;
                find(Some(name), Severity::Warning, format!("is {behind} bytes behind its master"));
            }
        }
    }
    let others = |(index, node): (usize, &Node)| {
        let claims = node.said().is_some_and(|state| state.master && state.clustered.is_none());
        let real = topology.shards.iter().any(|shard| shard.master == index);
        (claims && !real).then(|| node.name.clone())
    };
    if !topology.clustered {
        for name in topology.nodes.iter().enumerate().filter_map(others) {
            let message =
                "is a master beside the real one: writes to it are lost; make it a replica again".to_owned();
            find(Some(&name), Severity::Critical, message);
        }
    }
    findings
}

/// A part of a URI, with all but unreserved characters escaped.
fn escaped(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_engine::Secret;

    #[test]
    fn a_uri_is_one_that_redis_cli_takes() {
        let node = NodeAccess { name: "a".into(), host: "127.0.0.1".into(), port: 7, data_dir: None };
        let access = |user: &str, password: Option<&str>| Access {
            cluster: "c".into(),
            scope: "s".into(),
            nodes: vec![node.clone()],
            user: user.into(),
            password: password.map(Secret::new),
        };
        let redis = Redis::default();
        assert_eq!(redis.uri(&access("default", Some("p/w")), &node), "redis://:p%2Fw@127.0.0.1:7");
        assert_eq!(redis.uri(&access("me", Some("pw")), &node), "redis://me:pw@127.0.0.1:7");
        assert_eq!(redis.uri(&access("default", None), &node), "redis://127.0.0.1:7");
    }
}

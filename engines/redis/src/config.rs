//! The engine's section of the fleet file, and what a node's own `redis.conf` says.
//!
//! Settings are checked against the lists in `settings/`, which are what a server of that version answers to `CONFIG GET *`. What
//! Mainstay decides itself (ports, folders, passwords, roles) is refused. The file holds the password, so it is 0600.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mainstay_engine::{Layout, Mistake, NodeLayout};
use mainstay_model::{Cluster, Version};

/// What 7.0.15 knows.
const KNOWN_7_0: &str = include_str!("settings/7.0.txt");
/// What 8.2.3 knows.
const KNOWN_8_2: &str = include_str!("settings/8.2.txt");

/// What Mainstay sets, and why nobody else may.
const RESERVED: [(&str, &str); 30] = [
    ("aclfile", "users are in the file that Mainstay writes"),
    ("appenddirname", "Mainstay decides where data lies"),
    ("appendfilename", "Mainstay decides where data lies"),
    ("bind", "servers listen on loopback"),
    ("bind-source-addr", "servers listen on loopback"),
    ("cluster-announce-bus-port", "Mainstay decides the ports"),
    ("cluster-announce-ip", "servers listen on loopback"),
    ("cluster-announce-port", "Mainstay decides the ports"),
    ("cluster-config-file", "Mainstay decides where data lies"),
    ("cluster-enabled", "write `cluster: { replicas: 1 }` instead"),
    ("cluster-port", "Mainstay decides the ports"),
    ("daemonize", "Mainstay starts and stops the servers"),
    ("dbfilename", "Mainstay decides where data lies"),
    ("dir", "Mainstay decides where data lies"),
    ("enable-debug-command", "it lets every client crash the server"),
    ("include", "all settings are in the fleet file"),
    ("loadmodule", "modules are not supported"),
    ("logfile", "Mainstay keeps the log"),
    ("masterauth", "Mainstay keeps the password"),
    ("masteruser", "Mainstay keeps the password"),
    ("pidfile", "Mainstay starts and stops the servers"),
    ("port", "Mainstay decides the ports"),
    ("rename-command", "Mainstay needs the commands under their names"),
    ("replica-read-only", "a replica that takes writes is no copy"),
    ("replicaof", "Mainstay decides the roles"),
    ("requirepass", "Mainstay keeps the password"),
    ("slaveof", "Mainstay decides the roles"),
    ("supervised", "Mainstay starts and stops the servers"),
    ("tls-port", "servers listen on loopback"),
    ("user", "Mainstay keeps the password"),
];

/// Settings that keep links and servers well; the fleet file may say otherwise.
const DEFAULTS: [(&str, &str); 10] = [
    ("appendonly", "no"),
    ("client-output-buffer-limit", "replica 1gb 512mb 120"),
    ("repl-backlog-size", "64mb"),
    // Without replicas a backlog would be dropped after an hour, and with it the place to follow on from.
    ("repl-backlog-ttl", "0"),
    ("repl-diskless-sync", "yes"),
    ("repl-diskless-sync-delay", "0"),
    ("repl-ping-replica-period", "1"),
    ("save", "3600 1 300 100 60 10000"),
    ("shutdown-timeout", "5"),
    ("stop-writes-on-bgsave-error", "yes"),
];

/// The same for nodes of a Redis Cluster.
const DEFAULTS_CLUSTER: [(&str, &str); 2] =
    [("cluster-allow-replica-migration", "no"), ("cluster-node-timeout", "3000")];

/// What a sandbox has whatever the fleet file says: it evicts nothing, replicates nowhere, and can be asked for digests.
const SANDBOX: [(&str, &str); 6] = [
    ("appendonly", "no"),
    ("cluster-node-timeout", "15000"),
    ("enable-debug-command", "local"),
    ("maxmemory", "0"),
    ("min-replicas-to-write", "0"),
    // It saves when it is stopped. Saves in between would hide that nobody has written to it since it was proven.
    ("save", ""),
];

/// What a server has while it is fed: it waits for us as long as it takes, reads the copy from the socket, and writes nothing by
/// itself.
const FED: [(&str, &str); 11] = [
    ("appendonly", "no"),
    // What scripts tell us may be large.
    ("client-output-buffer-limit", "pubsub 0 0 0"),
    ("enable-debug-command", "local"),
    ("maxmemory", "0"),
    ("min-replicas-to-write", "0"),
    // What it dumps must be readable here, and saving is faster.
    ("rdbcompression", "no"),
    ("repl-diskless-load", "on-empty-db"),
    ("repl-timeout", "86400"),
    ("replica-priority", "0"),
    ("save", ""),
    ("timeout", "0"),
];

/// What a node's file is written for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A master without replicas of its own yet, or a standalone server.
    Master,
    /// A replica of the server at this port.
    Replica(u16),
    /// A node of a Redis Cluster; its role is in its own `nodes.conf`.
    Clustered,
    /// A plain server that will be fed.
    Fed,
}

/// How many masters a cluster of so many nodes has.
pub fn masters(cluster: &Cluster) -> usize {
    let nodes = cluster.nodes.count() as usize;
    match &cluster.cluster {
        None => 1,
        Some(shape) => (nodes / (1 + shape.replicas as usize)).max(1),
    }
}

/// Checks what the fleet file says of one cluster.
pub fn check(cluster: &Cluster) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    let mut mistake = |key: &str, message: String, hint: Option<String>| {
        mistakes.push(Mistake { key: key.to_owned(), message, hint });
    };
    if let Some(version) = &cluster.version
        && version.major() < 7
    {
        mistake("version", format!("Redis {version} is not supported"), Some("7.0 is the oldest".into()));
    }
    if let Some(shape) = &cluster.cluster {
        let nodes = cluster.nodes.count();
        let group = 1 + shape.replicas;
        if !nodes.is_multiple_of(group) {
            let hint =
                format!("write {} or {}", (nodes / group).max(3) * group, (nodes / group + 1).max(3) * group);
            mistake(
                "nodes",
                format!("{nodes} nodes cannot be divided into masters with {} replicas each", shape.replicas),
                Some(hint),
            );
        } else if nodes / group < 3 {
            mistake(
                "nodes",
                format!("{nodes} nodes make {} masters; a Redis Cluster needs 3", nodes / group),
                Some(format!("write {}", 3 * group)),
            );
        }
    }
    let known = known(cluster.version.as_ref());
    for (key, value) in &cluster.config {
        let at = format!("config.{key}");
        let lower = key.to_ascii_lowercase();
        if let Some((_, why)) = RESERVED.iter().find(|(reserved, _)| *reserved == lower) {
            mistake(&at, format!("`{key}` cannot be set"), Some((*why).to_owned()));
        } else if !known.contains(&lower.as_str()) {
            let hint = nearest(&lower, &known).map(|near| format!("did you mean `{near}`?"));
            mistake(&at, format!("Redis{} has no setting `{key}`", of(cluster.version.as_ref())), hint);
        } else if value.chars().any(char::is_control) {
            mistake(&at, format!("the value of `{key}` has a line break or control character"), None);
        }
    }
    mistakes
}

/// The text of a node's `redis.conf`. Holds the password.
pub fn render(layout: &Layout, node: &NodeLayout, purpose: &Purpose) -> String {
    let mut text = String::from("# Written by Mainstay at each start: change the fleet file instead.\n");
    let mut line = |key: &str, value: &str| {
        let value = if value.is_empty() { "\"\"" } else { value };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key} {value}");
    };
    line("bind", "127.0.0.1");
    line("protected-mode", "yes");
    line("port", &node.ports[0].to_string());
    line("dir", &quoted(&node.data().to_string_lossy()));
    line("dbfilename", "dump.rdb");
    line("logfile", "");
    line("daemonize", "no");
    line("always-show-logo", "no");
    line("proc-title-template", &quoted(&format!("{{title}} {} {{listen-addr}} {{server-mode}}", node.name)));
    let password = layout.password.expose();
    line("requirepass", &quoted(password));
    line("masterauth", &quoted(password));
    if layout.user != "default" {
        line("user", &format!("{} on {} ~* &* +@all", layout.user, quoted(&format!(">{password}"))));
    }
    match purpose {
        Purpose::Replica(port) => line("replicaof", &format!("127.0.0.1 {port}")),
        Purpose::Clustered => {
            line("cluster-enabled", "yes");
            line("cluster-config-file", "nodes.conf");
            // Otherwise a node has no address to send clients to before another has told it.
            line("cluster-announce-ip", "127.0.0.1");
            if let Some(bus) = node.ports.get(1) {
                line("cluster-port", &bus.to_string());
            }
        }
        Purpose::Master | Purpose::Fed => {}
    }
    for (key, value) in settings(layout, purpose) {
        line(&key, &value);
    }
    text
}

/// The settings of a node beside what makes it itself: defaults, the fleet file's, and what its purpose demands.
pub fn settings(layout: &Layout, purpose: &Purpose) -> BTreeMap<String, String> {
    let mut settings: BTreeMap<String, String> =
        DEFAULTS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    if *purpose == Purpose::Clustered {
        settings.extend(DEFAULTS_CLUSTER.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    }
    if let Some(memory) = layout.cluster.memory {
        settings.insert("maxmemory".to_owned(), memory.0.to_string());
    }
    for (key, value) in &layout.cluster.config {
        settings.insert(key.to_ascii_lowercase(), value.clone());
    }
    let forced: &[(&str, &str)] = match purpose {
        Purpose::Fed => &FED,
        _ if layout.sandbox => &SANDBOX,
        _ => &[],
    };
    for (key, value) in forced {
        settings.insert((*key).to_owned(), (*value).to_owned());
    }
    if *purpose != Purpose::Clustered {
        settings.retain(|key, _| !key.starts_with("cluster-"));
    }
    settings
}

/// Whether the fleet file asks for an append-only file.
pub fn append_only(layout: &Layout) -> bool {
    !layout.sandbox && layout.cluster.config.iter().any(|(key, value)| key == "appendonly" && value == "yes")
}

fn of(version: Option<&Version>) -> String {
    version.map_or_else(String::new, |version| format!(" {version}"))
}

fn known(version: Option<&Version>) -> Vec<&'static str> {
    let lists: &[&str] = match version {
        Some(version) if version.major() < 8 => &[KNOWN_7_0],
        Some(_) => &[KNOWN_8_2],
        None => &[KNOWN_7_0, KNOWN_8_2],
    };
    lists.iter().flat_map(|list| list.lines()).collect()
}

/// A word as Redis's own file takes it: in double quotes, with what would end them escaped.
fn quoted(word: &str) -> String {
    let mut out = String::from("\"");
    for byte in word.bytes() {
        match byte {
            b'"' | b'\\' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            0x20..=0x7e => out.push(char::from(byte)),
            other => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\x{other:02x}");
            }
        }
    }
    out.push('"');
    out
}

/// The known word that is fewest changes away, if it is near enough to have been meant.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, near) = known.iter().map(|other| (edits(word, other), *other)).min()?;
    (distance <= 1 + word.len() / 5).then_some(near)
}

/// How many letters must be changed, added or taken away (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_reserved_settings_are_sorted_and_apart() {
        assert!(RESERVED.is_sorted());
        for (key, _) in DEFAULTS.iter().chain(&SANDBOX).chain(&FED).chain(&DEFAULTS_CLUSTER) {
            assert!(KNOWN_7_0.lines().any(|known| known == *key), "{key}");
            assert!(KNOWN_8_2.lines().any(|known| known == *key), "{key}");
        }
    }

    #[test]
    fn what_is_misspelt_is_suggested() {
        assert_eq!(nearest("maxmemory-polcy", &known(None)), Some("maxmemory-policy"));
        assert_eq!(nearest("shared_buffers", &known(None)), None);
    }

    #[test]
    fn words_are_quoted() {
        assert_eq!(quoted("a \"b\\é"), "\"a \\\"b\\\\\\xc3\\xa9\"");
    }
}

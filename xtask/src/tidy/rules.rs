//! Which way things depend. The rules are numbered as in ARCHITECTURE.md.
//!
//! 1. `model` stands alone, `engine` stands on `model`, and an adapter on these and `engine-kit` alone: never on another
//!    adapter, never on a crate that holds a capability.
//! 2. Capability crates know engines only through `engine`: `app`, and the rooms that test or measure the whole, are the
//!    only ones to depend on adapters.
//! 3. A database driver is named in the Cargo.toml of its adapter and nowhere else.
//! 4. `model`, `engine`, `plan` and `render` have neither tokio nor a network in their tree.
//! 5. What leaves is typed in `api`, which knows no on-disk type, and no on-disk type is made of `api`'s.
//! 6. Nothing depends on `cli`, `daemon` or `app`, but that `app` ties all together and `cli` starts the daemon.

use super::graph::{Graph, Package};

/// Every breach of the rules in this workspace.
pub fn check(graph: &Graph) -> Vec<String> {
    let rules = [layers, adapters_only_in_app, drivers, no_network, api_apart, nothing_on_top];
    graph.packages.iter().flat_map(|package| rules.iter().flat_map(|rule| rule(graph, package))).collect()
}

/// Drivers, and the room of the adapter that may name each. `octree` keeps stores of its own.
const DRIVERS: &[(&str, &[&str])] = &[
    ("async-nats", &["engines/nats"]),
    ("fred", &["engines/redis", "crates/octree"]),
    ("kafka-protocol", &["engines/kafka"]),
    ("mongodb", &["engines/mongodb"]),
    ("mysql_async", &["engines/mysql"]),
    ("pg_walstream", &["engines/postgres"]),
    ("postgres-protocol", &["engines/postgres"]),
    ("rdkafka", &["engines/kafka"]),
    ("redis", &["engines/redis", "crates/octree"]),
    ("rskafka", &["engines/kafka"]),
    ("scylla", &["engines/cassandra", "crates/octree"]),
    ("tokio-postgres", &["engines/postgres"]),
];

/// Crates whose name begins so mean a runtime or a network.
const NETWORK: &[&str] = &[
    "async-std",
    "axum",
    "h2",
    "hyper",
    "mio",
    "native-tls",
    "object_store",
    "quinn",
    "reqwest",
    "rustls",
    "smol",
    "socket2",
    "tokio",
];

/// The rooms of the whole: they may use anything.
fn is_of_the_whole(package: &Package) -> bool {
    ["crates/app", "tests", "bench"]
        .iter()
        .any(|room| package.room == *room || package.room.starts_with(&format!("{room}/")))
}

fn ours<'a>(graph: &'a Graph, package: &'a Package) -> impl Iterator<Item = &'a Package> {
    package
        .direct
        .iter()
        .filter_map(|dependency| graph.find(&dependency.name))
        .filter(|other| other.name != package.name)
}

fn layers(graph: &Graph, package: &Package) -> Vec<String> {
    let allowed: &[&str] = match package.room.as_str() {
        "crates/model" => &[],
        "crates/engine" => &["crates/model"],
        room if room.starts_with("engines/") => &["crates/model", "crates/engine", "crates/engine-kit"],
        _ => return Vec::new(),
    };
    ours(graph, package)
        .filter(|other| !allowed.contains(&other.room.as_str()))
        .map(|other| {
            format!(
                "{}: may not depend on {} (rule 1: model <- engine <- adapters)",
                package.room, other.room
            )
        })
        .collect()
}

fn adapters_only_in_app(graph: &Graph, package: &Package) -> Vec<String> {
    if is_of_the_whole(package) || package.is_engine() {
        return Vec::new();
    }
    ours(graph, package)
        .filter(|other| other.is_engine())
        .map(|other| {
            format!("{}: may not depend on {} (rule 2: only app lists engines)", package.room, other.room)
        })
        .collect()
}

fn drivers(_: &Graph, package: &Package) -> Vec<String> {
    let named = package
        .direct
        .iter()
        .filter_map(|dependency| DRIVERS.iter().find(|(driver, _)| *driver == dependency.name));
    named
        .filter(|(_, rooms)| !rooms.contains(&package.room.as_str()))
        .map(|(driver, rooms)| {
            format!(
                "{}: may not name the driver {driver} (rule 3: it belongs to {})",
                package.room,
                rooms.join(" and ")
            )
        })
        .collect()
}

fn no_network(_: &Graph, package: &Package) -> Vec<String> {
    if !["crates/model", "crates/engine", "crates/plan", "crates/render"].contains(&package.room.as_str()) {
        return Vec::new();
    }
    let means_network = |name: &str| {
        NETWORK.iter().any(|network| {
            name.strip_prefix(network).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
    };
    let found: Vec<&str> =
        package.tree.iter().map(String::as_str).filter(|name| means_network(name)).collect();
    if found.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "{}: has {} in its tree (rule 4: neither runtime nor network)",
        package.room,
        found.join(", ")
    )]
}

fn api_apart(graph: &Graph, package: &Package) -> Vec<String> {
    let forbidden: &[&str] = match package.room.as_str() {
        "crates/api" => &["crates/vault", "crates/state", "crates/store"],
        "crates/vault" | "crates/state" | "crates/store" | "crates/model" | "crates/engine" => {
            &["crates/api"]
        }
        _ => return Vec::new(),
    };
    ours(graph, package)
        .filter(|other| forbidden.contains(&other.room.as_str()))
        .map(|other| {
            format!(
                "{}: may not depend on {} (rule 5: what leaves and what is stored are apart)",
                package.room, other.room
            )
        })
        .collect()
}

fn nothing_on_top(graph: &Graph, package: &Package) -> Vec<String> {
    if is_of_the_whole(package) {
        return Vec::new();
    }
    ours(graph, package)
        .filter(|other| match other.room.as_str() {
            "crates/cli" | "crates/app" => true,
            "crates/daemon" => package.room != "crates/cli",
            _ => false,
        })
        .map(|other| {
            format!("{}: may not depend on {} (rule 6: nothing stands on the top)", package.room, other.room)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::graph::{Dependency, Kind};
    use super::*;

    /// A workspace in which `room` depends on the rooms and crates named.
    fn findings(room: &str, direct: &[&str], tree: &[&str]) -> Vec<String> {
        let package = |room: &str| Package { name: name(room), room: room.to_owned(), ..Package::default() };
        fn name(room: &str) -> String {
            match room.split_once('/') {
                Some((_, noun)) => format!("mainstay-{noun}"),
                None => room.to_owned(),
            }
        }
        let rooms = [
            "crates/model",
            "crates/engine",
            "crates/engine-kit",
            "crates/vault",
            "crates/recovery",
            "crates/state",
        ];
        let more =
            ["crates/api", "crates/daemon", "crates/cli", "crates/app", "engines/redis", "engines/postgres"];
        let mut graph = Graph { packages: rooms.iter().chain(&more).map(|room| package(room)).collect() };
        if !graph.packages.iter().any(|package| package.room == room) {
            graph.packages.push(package(room));
        }
        for package in graph.packages.iter_mut().filter(|package| package.room == room) {
            package.direct = direct
                .iter()
                .map(|to| Dependency {
                    name: name(to),
                    ident: name(to).replace('-', "_"),
                    kind: Kind::Normal,
                })
                .collect();
            package.tree = tree.iter().map(|name| (*name).to_owned()).collect();
        }
        check(&graph)
    }

    #[track_caller]
    fn refuses(room: &str, direct: &[&str], tree: &[&str], rule: &str) {
        let found = findings(room, direct, tree);
        assert!(found.iter().any(|finding| finding.contains(rule)), "{room} on {direct:?}: {found:?}");
    }

    #[track_caller]
    fn accepts(room: &str, direct: &[&str], tree: &[&str]) {
        assert_eq!(findings(room, direct, tree), Vec::<String>::new(), "{room} on {direct:?}");
    }

    #[test]
    fn layers_hold() {
        refuses("crates/model", &["crates/engine"], &[], "rule 1");
        refuses("crates/engine", &["crates/vault"], &[], "rule 1");
        refuses("engines/redis", &["engines/postgres"], &[], "rule 1");
        refuses("engines/redis", &["crates/recovery"], &[], "rule 1");
        accepts("engines/redis", &["crates/engine", "crates/model", "crates/engine-kit"], &["tokio"]);
    }

    #[test]
    fn only_app_lists_engines() {
        refuses("crates/recovery", &["engines/redis"], &[], "rule 2");
        refuses("crates/cli", &["engines/redis"], &[], "rule 2");
        accepts("crates/app", &["engines/redis", "engines/postgres", "crates/cli"], &[]);
        accepts("tests", &["engines/redis", "crates/recovery"], &[]);
    }

    #[test]
    fn drivers_have_one_home() {
        refuses("crates/vault", &["redis"], &[], "rule 3");
        refuses("engines/redis", &["tokio-postgres"], &[], "rule 3");
        accepts("engines/redis", &["redis"], &[]);
    }

    #[test]
    fn the_pure_have_no_network() {
        refuses("crates/engine", &[], &["bytes", "tokio-util"], "rule 4");
        refuses("crates/model", &[], &["hyper"], "rule 4");
        accepts("crates/model", &[], &["tokiotruth", "serde"]);
        accepts("crates/vault", &[], &["tokio"]);
    }

    #[test]
    fn api_and_disk_are_apart() {
        refuses("crates/api", &["crates/vault"], &[], "rule 5");
        refuses("crates/vault", &["crates/api"], &[], "rule 5");
        accepts("crates/daemon", &["crates/api", "crates/vault"], &[]);
    }

    #[test]
    fn nothing_stands_on_the_top() {
        refuses("crates/recovery", &["crates/daemon"], &[], "rule 6");
        refuses("crates/daemon", &["crates/cli"], &[], "rule 6");
        refuses("crates/cli", &["crates/app"], &[], "rule 6");
        accepts("crates/cli", &["crates/daemon"], &[]);
    }
}

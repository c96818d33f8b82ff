//! What right files mean.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_fleet::{check_text, load, template};
use mainstay_model::{Bytes, Fleet, HostPort, Hosts, Nodes, SecretRef, TlsMode, VaultUrl};

use crate::engines::ENGINES;

const ISSUE: &str = r#"fleet: shop
environments: { local: { hosts: local } }
vaults: { main: { url: "file:vault" } }
clusters:
  orders: { engine: postgres, nodes: 2, backup: { follow: true } }
  stock: { engine: redis, nodes: 6, cluster: { replicas: 1 }, backup: { follow: true } }
recovery_groups:
  shop: { members: [orders, stock], every: 1m, exact: { every: 5m, stall: 20ms } }
"#;

fn read(text: &str, environment: &str) -> Fleet {
    check_text(text, "/srv/shop/fleet.yaml", environment, &ENGINES)
        .unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

#[test]
fn the_small_file_works_as_it_is() {
    let fleet = read(ISSUE, "local");
    assert_eq!((fleet.name.as_str(), fleet.environment.hosts.clone()), ("shop", Hosts::Local));
    assert_eq!(fleet.base_dir, Path::new("/srv/shop"));
    let stock = fleet.cluster("stock").unwrap();
    assert_eq!(
        (&*stock.engine, &stock.nodes, stock.cluster.unwrap().replicas),
        ("redis", &Nodes::Count(6), 1)
    );
    let (name, vault) = fleet.vault_of(stock).unwrap();
    assert_eq!((name.as_str(), &vault.url), ("main", &VaultUrl::File("vault".into())));
    let backup = stock.backup.as_ref().unwrap();
    assert_eq!(backup.snapshot.as_ref().unwrap().text(), "daily 02:00");
    assert!(backup.follow && backup.prove.is_none());
    assert_eq!((backup.keep.within, backup.keep.log, backup.keep.least), (days(30), days(30), 2));
    let group = fleet.group("shop").unwrap();
    assert_eq!(group.members.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["orders", "stock"]);
    assert_eq!(group.every, Some(Duration::from_secs(60)));
    let exact = group.exact.unwrap();
    assert_eq!((exact.every, exact.stall), (Duration::from_secs(300), Duration::from_millis(20)));
}

#[test]
fn everything_has_a_default() {
    let fleet =
        read("fleet: f\nclusters: { a: { engine: postgres }, b: { engine: redis, backup: {} } }\n", "local");
    let (a, b) = (fleet.cluster("a").unwrap(), fleet.cluster("b").unwrap());
    assert_eq!((&a.nodes, a.backup.is_none(), a.version.is_none()), (&Nodes::Count(1), true, true));
    assert!(b.backup.as_ref().unwrap().follow);
    assert_eq!(fleet.vault_of(b).unwrap().1.url, VaultUrl::File("vault".into()));

    let text = "fleet: f\nvaults: { far: { url: s3://bkt }, main: { url: file:v } }\nclusters:\n  \
                a: { engine: redis, backup: { snapshot: never, keep: { daily: 7 } } }\n  \
                b: { engine: redis, backup: { vault: far, keep: { within: 2d, log: 1d } } }\n\
                recovery_groups: { g: { members: [a], every: 1h, exact: {} }, h: { members: [b], every: never } }\n";
    let fleet = read(text, "local");
    let backup = |name: &str| fleet.cluster(name).unwrap().backup.clone().unwrap();
    assert_eq!((backup("a").vault.as_str(), backup("b").vault.as_str()), ("main", "far"));
    assert_eq!(
        (backup("a").snapshot, backup("a").keep.within, backup("a").keep.daily),
        (None, Duration::ZERO, 7)
    );
    assert_eq!((backup("a").keep.log, backup("b").keep.log), (days(7), days(1)));
    assert_eq!(fleet.group("g").unwrap().exact.unwrap().every, Duration::from_secs(3600));
    assert_eq!(fleet.group("h").unwrap().every, None);
}

#[test]
fn values_are_taken_as_they_are_written() {
    let text = r#"
fleet: f
clusters:
  a:
    engine: postgres
    version: 15.10
    memory: 1.5GiB
    config: { track_commit_timestamp: on, a.b: "x: y", work_mem: 64MB, jit: false, ratio: 0.10, empty: "", hex: 0x10 }
"#;
    let fleet = read(text, "local");
    let a = fleet.cluster("a").unwrap();
    assert_eq!(a.version.as_ref().unwrap().to_string(), "15.10");
    assert_eq!(a.memory, Some(Bytes(3 << 29)));
    let config: Vec<_> = a.config.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(
        config,
        [
            "a.b=x: y",
            "empty=",
            "hex=0x10",
            "jit=false",
            "ratio=0.10",
            "track_commit_timestamp=on",
            "work_mem=64MB"
        ]
    );
}

#[test]
fn an_environment_overrides_any_field() {
    let text = r#"
fleet: f
environments:
  local: { hosts: local, clusters: { a: { nodes: 1, config: { fsync: "off", jit: ~ }, backup: ~ } } }
  prod: { hosts: { kind: kubernetes, namespace: chat }, clusters: { a: { backup: { keep: { within: 60d } } } } }
clusters:
  a: { engine: postgres, nodes: 3, config: { jit: "off", work_mem: 64MB }, backup: { prove: daily, keep: { within: 7d, monthly: 3 } } }
"#;
    let local = read(text, "local");
    let a = local.cluster("a").unwrap();
    assert_eq!((&a.nodes, a.backup.is_none()), (&Nodes::Count(1), true));
    assert_eq!(
        a.config.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
        ["fsync=off", "work_mem=64MB"]
    );
    let prod = read(text, "prod");
    assert_eq!(prod.environment.hosts, Hosts::Kubernetes { namespace: Some("chat".into()) });
    let backup = prod.cluster("a").unwrap().backup.clone().unwrap();
    assert_eq!((backup.keep.within, backup.keep.monthly, backup.prove.is_some()), (days(60), 3, true));
}

#[test]
fn external_servers_are_named_and_rehearsed_locally() {
    let fleet = example("external.yaml", "colo");
    let orders = fleet.cluster("orders").unwrap();
    let node = |port| HostPort { host: format!("db{port}"), port: 5432 };
    assert_eq!(orders.nodes, Nodes::Named(vec![node(1), node(2)]));
    let access = orders.access.as_ref().unwrap();
    assert_eq!(
        (access.user.as_deref(), &access.password),
        (Some("mainstay"), &Some(SecretRef::Env("PGPASSWORD".into())))
    );
    let tls = access.tls.as_ref().unwrap();
    assert_eq!((tls.mode, tls.ca.as_deref()), (TlsMode::VerifyFull, Some(Path::new("ca.pem"))));
    let control = orders.control.as_ref().unwrap();
    assert_eq!(control.data.as_deref(), Some(Path::new("/var/lib/postgresql/15/main")));
    assert_eq!(fleet.cluster("stock").unwrap().nodes.count(), 2);

    let local = example("external.yaml", "local");
    let orders = local.cluster("orders").unwrap();
    assert_eq!(
        (&orders.nodes, orders.access.is_none(), orders.control.is_none()),
        (&Nodes::Count(2), true, true)
    );
}

#[test]
fn anchors_aliases_and_merge_keys_work() {
    let text = r#"
fleet: f
x-backup: &backup { follow: true, keep: { within: 7d } }
x-base: &base { engine: redis, nodes: 3 }
clusters:
  a: { <<: *base, backup: *backup }
  b: { <<: [*base], nodes: 1, backup: { <<: *backup, snapshot: hourly } }
"#;
    let fleet = read(text, "local");
    assert_eq!(fleet.cluster("a").unwrap().nodes, Nodes::Count(3));
    let b = fleet.cluster("b").unwrap();
    assert_eq!((&b.nodes, b.backup.as_ref().unwrap().keep.within), (&Nodes::Count(1), days(7)));
}

#[test]
fn the_examples_and_the_template_are_right() {
    for entry in std::fs::read_dir(fleets()).unwrap() {
        let path = entry.unwrap().path();
        load(&path, "local", &ENGINES).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    }
    for engines in [&ENGINES[..], &ENGINES[..1], &ENGINES[1..]] {
        let text = template(engines);
        let fleet = check_text(&text, "fleet.yaml", "local", engines)
            .unwrap_or_else(|mistakes| panic!("{text}\n{mistakes}"));
        assert_eq!((fleet.clusters.len(), fleet.recovery_groups.len()), (engines.len(), 1));
    }
    let windows = format!("\u{feff}{}", ISSUE.replace('\n', "\r\n"));
    assert_eq!(read(&windows, "local"), read(ISSUE, "local"));
}

#[test]
fn relative_paths_begin_in_the_files_folder() {
    let fleet = load(&fleets().join("../fleets/shop.yaml"), "local", &ENGINES).unwrap();
    assert!(fleet.base_dir.is_absolute() && fleet.base_dir.join("shop.yaml").exists());
}

fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

fn fleets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fleets")
}

fn example(name: &str, environment: &str) -> Fleet {
    load(&fleets().join(name), environment, &ENGINES).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

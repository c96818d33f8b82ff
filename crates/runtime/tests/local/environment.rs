//! Environments: up, down, erase, pins, ports, and what is refused.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use mainstay_engine::{Engine, Host, Layout, Quiet};
use mainstay_model::{Fleet, Nodes};
use mainstay_runtime::{Environment, Error, Home};

use crate::sleeper::{NOBODY, SLEEPER, Sleeper, TestHome, fleet, name, shard};

async fn up(home: &Home, fleet: &Fleet, engine: &Sleeper) -> Result<mainstay_runtime::Up, Error> {
    let environment = Environment::open(home, fleet)?;
    Ok(environment.up(&[engine as &dyn Engine], None, &Quiet).await?.remove(0))
}

async fn down(home: &Home, fleet: &Fleet, erase: bool) {
    let environment = Environment::open(home, fleet).unwrap();
    environment.down(&[&SLEEPER as &dyn Engine], erase, &Quiet).await.unwrap();
}

fn lives(layout: &Layout) -> usize {
    fs::read_to_string(layout.nodes[0].data().join("up")).unwrap().lines().count()
}

fn set(fleet: &mut Fleet, change: impl FnOnce(&mut mainstay_model::Cluster)) {
    change(fleet.clusters.get_mut("orders").unwrap());
}

#[tokio::test]
async fn up_and_down_keep_data_ports_secret_and_incarnation() {
    let at = TestHome::new();
    let fleet = fleet(&at.dir, 2);
    let first = up(&at.home, &fleet, &SLEEPER).await.unwrap();
    assert!(first.created && !first.restarted);
    assert_eq!(first.layout.installation.version, "2.0", "the newest");
    let ports: Vec<u16> = first.layout.nodes.iter().flat_map(|node| node.ports.clone()).collect();
    let mut distinct = ports.clone();
    distinct.dedup();
    assert_eq!(distinct.len(), 4);
    let again = up(&at.home, &fleet, &SLEEPER).await.unwrap();
    assert!(!again.created && !again.restarted);
    assert_eq!(lives(&again.layout), 1, "what runs stays");

    let environment = Environment::open(&at.home, &fleet).unwrap();
    let incarnation = environment.incarnation(&name("orders")).unwrap().unwrap();
    down(&at.home, &fleet, false).await;
    let host = environment.host(&name("orders"));
    assert!(first.layout.nodes.iter().all(|node| host.running(&node.name).is_none()));
    let second = up(&at.home, &fleet, &SLEEPER).await.unwrap();
    assert_eq!(lives(&second.layout), 2);
    assert_eq!(second.layout.nodes, first.layout.nodes);
    assert_eq!(second.layout.password.expose(), first.layout.password.expose());
    assert_eq!(second.layout.scope, first.layout.scope);
    assert_eq!(environment.incarnation(&name("orders")).unwrap().unwrap(), incarnation);
    let layouts = environment.layouts().unwrap();
    assert_eq!(layouts.len(), 1);
    assert_eq!(layouts[0].nodes, first.layout.nodes);

    down(&at.home, &fleet, true).await;
    assert!(!first.layout.nodes[0].dir.exists());
    assert!(environment.layouts().unwrap().is_empty());
    let left: Vec<_> = ["nodes", "fleets/shop", "run/shop"].map(|f| at.home.path().join(f)).into();
    let left: Vec<_> = left.into_iter().filter(|path| path.join("local").exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    let third = up(&at.home, &fleet, &SLEEPER).await.unwrap();
    assert!(third.created);
    assert_ne!(environment.incarnation(&name("orders")).unwrap().unwrap(), incarnation);
}

#[tokio::test]
async fn private_things_are_private() {
    let at = TestHome::new();
    let fleet = fleet(&at.dir, 1);
    let layout = up(&at.home, &fleet, &SLEEPER).await.unwrap().layout;
    let check = |path: &Path| {
        let mode = fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} is {mode:o}", path.display());
    };
    check(at.home.path());
    check(&at.home.keys());
    check(&layout.nodes[0].dir);
    check(&layout.nodes[0].data());
    check(&at.home.path().join("fleets/shop/local/orders/password"));
    assert!(!format!("{layout:?}").contains(layout.password.expose()));
}

#[tokio::test]
async fn changed_settings_are_applied() {
    let at = TestHome::new();
    let mut fleet = fleet(&at.dir, 1);
    up(&at.home, &fleet, &SLEEPER).await.unwrap();
    set(&mut fleet, |cluster| drop(cluster.config.insert("color".into(), "blue".into())));
    let changed = up(&at.home, &fleet, &SLEEPER).await.unwrap();
    assert!(changed.restarted);
    let colors = fs::read_to_string(changed.layout.nodes[0].data().join("up")).unwrap();
    assert_eq!(colors, "red\nblue\n");
    assert!(!up(&at.home, &fleet, &SLEEPER).await.unwrap().restarted);
}

#[tokio::test]
async fn data_of_one_major_version_is_never_given_to_another() {
    let at = TestHome::new();
    let mut fleet = fleet(&at.dir, 1);
    set(&mut fleet, |cluster| cluster.version = Some("1.0".parse().unwrap()));
    assert_eq!(up(&at.home, &fleet, &SLEEPER).await.unwrap().layout.installation.version, "1.0");
    down(&at.home, &fleet, false).await;
    // Without a version, what was pinned goes on, though a newer one is installed.
    set(&mut fleet, |cluster| cluster.version = None);
    assert_eq!(up(&at.home, &fleet, &SLEEPER).await.unwrap().layout.installation.version, "1.0");
    down(&at.home, &fleet, false).await;
    set(&mut fleet, |cluster| cluster.version = Some("2".parse().unwrap()));
    let refused = up(&at.home, &fleet, &SLEEPER).await.unwrap_err();
    assert!(refused.to_string().contains("was made by version 1.0"), "{refused}");
    // What was pinned is gone: a newer one of the same major version takes over, an older or other one does not.
    set(&mut fleet, |cluster| cluster.version = None);
    let newer = Sleeper { versions: &["1.2", "2.0"], run_as: None };
    assert_eq!(up(&at.home, &fleet, &newer).await.unwrap().layout.installation.version, "1.2");
    down(&at.home, &fleet, false).await;
    let older = Sleeper { versions: &["1.0"], run_as: None };
    assert!(up(&at.home, &fleet, &older).await.is_err());
    let other = Sleeper { versions: &["2.0"], run_as: None };
    assert!(up(&at.home, &fleet, &other).await.is_err());
}

#[tokio::test]
async fn nodes_are_added_but_not_taken_away() {
    let at = TestHome::new();
    let mut fleet = fleet(&at.dir, 1);
    up(&at.home, &fleet, &SLEEPER).await.unwrap();
    set(&mut fleet, |cluster| cluster.nodes = Nodes::Count(3));
    let grown = up(&at.home, &fleet, &SLEEPER).await.unwrap();
    assert_eq!(
        grown.layout.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(),
        ["orders-1", "orders-2", "orders-3"]
    );
    assert_eq!(lives(&grown.layout), 1);
    set(&mut fleet, |cluster| cluster.nodes = Nodes::Count(2));
    let refused = up(&at.home, &fleet, &SLEEPER).await.unwrap_err();
    assert!(refused.to_string().contains("cannot be reshaped"), "{refused}");
    set(&mut fleet, |cluster| cluster.nodes = Nodes::Count(4));
    shard(&mut fleet);
    assert!(up(&at.home, &fleet, &SLEEPER).await.is_err());
    set(&mut fleet, |cluster| cluster.engine = "other".into());
    assert!(up(&at.home, &fleet, &SLEEPER).await.is_err());
    // Taken out of the file, it is still stopped.
    fleet.clusters.clear();
    let environment = Environment::open(&at.home, &fleet).unwrap();
    let stopped = environment.down(&[&SLEEPER as &dyn Engine], false, &Quiet).await.unwrap();
    assert_eq!(stopped, [name("orders")]);
    assert_eq!(environment.host(&name("orders")).running("orders-1"), None);
}

#[tokio::test]
async fn a_taken_port_is_exchanged_and_a_put_down_one_left_alone() {
    let (at, other) = (TestHome::new(), TestHome::new());
    let fleet = fleet(&at.dir, 1);
    let first = up(&at.home, &fleet, &SLEEPER).await.unwrap().layout;
    down(&at.home, &fleet, false).await;
    // Down, but its ports are still its own: the other home, whatever it would like, takes others.
    let mut ports = Vec::new();
    for round in 0..3 {
        let mut other_fleet = crate::sleeper::fleet(&other.dir, 1);
        set(&mut other_fleet, |cluster| cluster.name = name(&format!("other-{round}")));
        other_fleet.clusters = other_fleet.clusters.into_values().map(|c| (c.name.clone(), c)).collect();
        ports.extend(up(&other.home, &other_fleet, &SLEEPER).await.unwrap().layout.nodes.remove(0).ports);
    }
    assert!(ports.iter().all(|port| !first.nodes[0].ports.contains(port)));
    let taken = std::net::TcpListener::bind(("127.0.0.1", first.nodes[0].ports[0])).unwrap();
    let second = up(&at.home, &fleet, &SLEEPER).await.unwrap().layout;
    assert_ne!(second.nodes[0].ports[0], first.nodes[0].ports[0]);
    assert_eq!(second.nodes[0].ports[1], first.nodes[0].ports[1]);
    drop(taken);
}

#[tokio::test]
async fn another_fleet_of_the_same_name_is_refused() {
    let at = TestHome::new();
    let first = fleet(&at.dir, 1);
    up(&at.home, &first, &SLEEPER).await.unwrap();
    let elsewhere = tempfile::TempDir::new().unwrap();
    let second = fleet(&elsewhere, 1);
    let refused = Environment::open(&at.home, &second).unwrap_err();
    assert!(refused.to_string().contains("another fleet named shop"), "{refused}");
    assert_ne!(refused.hint(), None);
    let moved = Fleet { base_dir: at.dir.path().join("gone"), ..first };
    down(&at.home, &fleet(&at.dir, 1), true).await;
    Environment::open(&at.home, &moved).unwrap();
}

#[tokio::test]
async fn servers_of_another_user_reach_their_folders_wherever_the_home_lies() {
    if !nix::unistd::geteuid().is_root() {
        return; // then servers run as ourselves
    }
    // A folder that `nobody` cannot pass.
    let at = TestHome::new();
    fs::set_permissions(at.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let closed = fleet(&at.dir, 1);
    let layout = up(&at.home, &closed, &NOBODY).await.unwrap().layout;
    let outside = Path::new("/var/lib/mainstay").join(at.home.id());
    assert!(layout.nodes[0].dir.starts_with(&outside));
    assert_ne!(fs::metadata(layout.nodes[0].data().join("up")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(at.dir.path()).unwrap().mode() & 0o777, 0o700, "not ours to loosen");
    assert_eq!(fs::metadata(at.home.path()).unwrap().mode() & 0o777, 0o700);
    down(&at.home, &closed, true).await;
    assert!(!outside.exists());

    // One that it can.
    let at = TestHome::new();
    fs::set_permissions(at.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let open = fleet(&at.dir, 1);
    let layout = up(&at.home, &open, &NOBODY).await.unwrap().layout;
    assert!(layout.nodes[0].dir.starts_with(at.home.path()));
    assert_eq!(fs::metadata(at.home.path()).unwrap().mode() & 0o777, 0o711);
    assert_eq!(fs::metadata(at.home.keys()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(&layout.nodes[0].dir).unwrap().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn who_waits_is_told_for_whom() {
    let at = TestHome::new();
    let held = at.home.lock("x", "the thing", "restoring", std::time::Duration::ZERO).await.unwrap();
    let busy = at.home.lock("x", "the thing", "starting", std::time::Duration::ZERO).await.unwrap_err();
    assert_eq!(busy.code(), "busy");
    let expected = format!("the thing is in use by another mainstay (pid {}, restoring)", std::process::id());
    assert_eq!(busy.to_string(), expected);
    drop(held);
    drop(at.home.lock("x", "the thing", "starting", std::time::Duration::ZERO).await.unwrap());
}

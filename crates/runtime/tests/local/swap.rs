//! Data exchanged in place, cut off between any two renames.

use std::fs;
use std::path::{Path, PathBuf};

use mainstay_engine::{Engine, Layout, Quiet};
use mainstay_runtime::{Environment, Local, swap};

use crate::sleeper::{SLEEPER, TestHome, fleet, name};

/// A cluster of two nodes with data `old`, which does not run.
async fn cluster(at: &TestHome) -> (Layout, Local) {
    let fleet = fleet(&at.dir, 2);
    let environment = Environment::open(&at.home, &fleet).unwrap();
    let engines = [&SLEEPER as &dyn Engine];
    let layout = environment.up(&engines, None, &Quiet).await.unwrap().remove(0).layout;
    let host = environment.host(&name("orders"));
    let refused = swap::set_aside(&layout, &host, "op1").unwrap_err();
    assert!(refused.to_string().contains("runs"), "{refused}");
    environment.down(&engines, false, &Quiet).await.unwrap();
    put(&layout, "old");
    (layout, host)
}

fn put(layout: &Layout, what: &str) {
    for node in &layout.nodes {
        fs::create_dir_all(node.data()).unwrap();
        fs::write(node.data().join("what"), what).unwrap();
    }
}

fn what(layout: &Layout) -> Vec<String> {
    layout.nodes.iter().map(|node| fs::read_to_string(node.data().join("what")).unwrap_or_default()).collect()
}

fn asides(layout: &Layout) -> Vec<PathBuf> {
    let all = layout.nodes.iter().flat_map(|node| fs::read_dir(&node.dir).unwrap());
    let aside = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("data.");
    all.map(|entry| entry.unwrap().path()).filter(aside).collect()
}

#[tokio::test]
async fn old_data_come_back_or_go() {
    let at = TestHome::new();
    let (layout, host) = cluster(&at).await;
    for _ in 0..2 {
        swap::set_aside(&layout, &host, "op1").unwrap();
        assert_eq!(what(&layout), ["", ""]);
    }
    put(&layout, "new");
    swap::set_aside(&layout, &host, "op1").unwrap();
    assert_eq!(what(&layout), ["new", "new"], "done already");
    assert_eq!(swap::set_asides(&layout).unwrap(), ["op1"]);
    for _ in 0..2 {
        swap::bring_back(&layout, &host, "op1").unwrap();
        assert_eq!(what(&layout), ["old", "old"]);
        assert_eq!(asides(&layout), Vec::<PathBuf>::new());
    }
    swap::set_aside(&layout, &host, "op2").unwrap();
    put(&layout, "new");
    for _ in 0..2 {
        swap::discard(&layout, "op2").unwrap();
        assert_eq!(what(&layout), ["new", "new"]);
        assert_eq!(asides(&layout), Vec::<PathBuf>::new());
    }
    assert!(swap::discard(&layout, "../x").is_err());
}

#[tokio::test]
async fn cut_off_between_any_two_renames_it_goes_on() {
    let at = TestHome::new();
    let (layout, host) = cluster(&at).await;
    let dir = &layout.nodes[0].dir;
    let mv = |from: &str, to: &str| fs::rename(dir.join(from), dir.join(to)).unwrap();
    // Set aside: one of two nodes.
    mv("data", "data.before-op");
    swap::set_aside(&layout, &host, "op").unwrap();
    assert_eq!(what(&layout), ["", ""]);
    // Nobody may begin anew there now.
    let environment = Environment::open(&at.home, &fleet(&at.dir, 2)).unwrap();
    let refused = environment.up(&[&SLEEPER as &dyn Engine], None, &Quiet).await.unwrap_err();
    assert!(refused.to_string().contains("was broken off (op)"), "{refused}");
    put(&layout, "new");
    // Brought back: the new data moved, the old not yet; then half of the new removed.
    mv("data", "data.failed-op");
    swap::bring_back(&layout, &host, "op").unwrap();
    assert_eq!(what(&layout), ["old", "old"]);
    fs::create_dir(dir.join("data.failed-op")).unwrap();
    swap::bring_back(&layout, &host, "op").unwrap();
    assert_eq!(what(&layout), ["old", "old"]);
    assert_eq!(asides(&layout), Vec::<PathBuf>::new());
    // Discarded: half of it removed.
    swap::set_aside(&layout, &host, "op").unwrap();
    put(&layout, "new");
    mv("data.before-op", "data.gone-op");
    fs::remove_file(dir.join("data.gone-op/what")).unwrap();
    swap::discard(&layout, "op").unwrap();
    assert_eq!(what(&layout), ["new", "new"]);
    assert_eq!(asides(&layout), Vec::<PathBuf>::new());
    // A node that had no data has none again.
    fs::remove_dir_all(layout.nodes[1].data()).unwrap();
    swap::set_aside(&layout, &host, "op3").unwrap();
    put(&layout, "newer");
    swap::bring_back(&layout, &host, "op3").unwrap();
    assert_eq!(what(&layout), ["new", ""]);
    assert!(!Path::new(&layout.nodes[1].data()).exists());
}

#[tokio::test]
async fn an_operation_begins_another_incarnation_once() {
    let at = TestHome::new();
    cluster(&at).await;
    let environment = Environment::open(&at.home, &fleet(&at.dir, 2)).unwrap();
    let now = || environment.incarnation(&name("orders")).unwrap().unwrap();
    let first = now();
    let second = environment.renew_incarnation(&name("orders"), "op").unwrap();
    assert_ne!(first, second);
    assert_eq!(environment.renew_incarnation(&name("orders"), "op").unwrap(), second);
    assert_eq!(now(), second);
    for _ in 0..2 {
        environment.restore_incarnation(&name("orders"), "op").unwrap();
        assert_eq!(now(), first);
    }
}

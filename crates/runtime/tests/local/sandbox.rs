//! Sandboxes: made, listed, dropped, half-made ones too.

use mainstay_engine::{Engine, Host, Launch};
use mainstay_runtime::{Sandbox, SandboxCluster};

use crate::sleeper::{SLEEPER, TestHome, fleet, name};

#[tokio::test]
async fn a_sandbox_comes_and_goes() {
    let at = TestHome::new();
    let fleet = fleet(&at.dir, 3);
    let engines = [&SLEEPER as &dyn Engine];
    let cluster = &fleet.clusters["orders"];
    let clusters = [SandboxCluster { cluster, version: Some("1.0") }];
    let mut sandbox = Sandbox::create(&at.home, "shop", "local", "prove", &clusters, &engines).await.unwrap();
    let other = Sandbox::create(&at.home, "shop", "local", "recover", &clusters, &engines).await.unwrap();
    assert_ne!(sandbox.layouts().unwrap()[0].nodes[0].ports, other.layouts().unwrap()[0].nodes[0].ports);
    sandbox.set_restored(serde_json::json!({"at": "now"})).unwrap();

    let layout = sandbox.layouts().unwrap().remove(0);
    assert!(layout.sandbox);
    assert_eq!(layout.nodes.len(), 1);
    assert_eq!(layout.cluster.nodes.count(), 1);
    assert_eq!(layout.installation.version, "1.0", "the server that made the data");
    SLEEPER.start(&layout, &sandbox.host(&name("orders"))).await.unwrap();
    assert!(sandbox.running().unwrap());

    let found = Sandbox::find(&at.home, sandbox.id()).unwrap();
    assert_eq!(found.record(), sandbox.record());
    assert!(found.maker_alive());
    assert_eq!(Sandbox::list(&at.home).unwrap().len(), 2);
    let host = found.host(&name("orders"));
    found.drop_all().await.unwrap();
    assert_eq!(host.running("orders-1"), None);
    assert!(!layout.nodes[0].dir.exists());
    assert_eq!(Sandbox::list(&at.home).unwrap().len(), 1);
    assert!(Sandbox::find(&at.home, sandbox.id()).is_err());
    assert!(Sandbox::find(&at.home, "../fleets").is_err());
    other.drop_all().await.unwrap();
    assert!(std::fs::read_dir(at.home.path().join("sandboxes")).unwrap().next().is_none());
    assert!(!at.home.path().join("nodes").exists());
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_made_leaves_nothing() {
    let at = TestHome::new();
    let fleet = fleet(&at.dir, 1);
    let engines = [&SLEEPER as &dyn Engine];
    let good = SandboxCluster { cluster: &fleet.clusters["orders"], version: None };
    let mut other = fleet.clusters["orders"].clone();
    other.name = name("other");
    let bad = SandboxCluster { cluster: &other, version: Some("7.0") };
    let failed = Sandbox::create(&at.home, "shop", "local", "prove", &[good, bad], &engines).await;
    assert_eq!(failed.unwrap_err().code(), "engine-not-installed");
    assert!(Sandbox::list(&at.home).unwrap().is_empty());
    assert!(!at.home.path().join("nodes").exists());
}

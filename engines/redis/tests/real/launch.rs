//! Starting and stopping.

use mainstay_engine::{Kind, Launch, Observe, Role};

use crate::kit::{Fixture, Shape, VERSIONS, until};

#[tokio::test(flavor = "multi_thread")]
async fn roles_and_data_survive_a_stop_and_a_start() {
    let fixture = Fixture::start(VERSIONS[0], Shape::Replicated(1)).await;
    fixture.client(0).run(&["SET", "a", "1"]);
    fixture.client(0).run(&["FAILOVER"]);
    let mut second = fixture.client(1);
    until("a failover", || second.info("role") == "master").await;
    second.run(&["SET", "a", "2"]);
    fixture.redis.stop(&fixture.layout, &*fixture.host).await.unwrap();
    fixture.redis.start(&fixture.layout, &*fixture.host).await.unwrap();
    let view = fixture.redis.observe(&fixture.access()).await.unwrap();
    let roles: Vec<Role> = view.nodes.iter().map(|node| node.role).collect();
    assert_eq!(roles, [Role::Replica, Role::Primary]);
    assert!(view.findings.is_empty(), "{:?}", view.findings);
    assert_eq!(fixture.client(1).run(&["GET", "a"]).text(), "2");
    // A start of what runs changes nothing.
    let before = fixture.client(1).info("run_id");
    fixture.redis.start(&fixture.layout, &*fixture.host).await.unwrap();
    assert_eq!(fixture.client(1).info("run_id"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_its_roles_too() {
    let fixture =
        Fixture::start_with(VERSIONS[0], Shape::Cluster(3, 1), &[("cluster-node-timeout", "1000")]).await;
    let view = fixture.redis.observe(&fixture.access()).await.unwrap();
    assert!(view.findings.is_empty(), "{:?}", view.findings);
    let mut replica = fixture.client(3);
    replica.run(&["CLUSTER", "FAILOVER"]);
    until("a failover", || replica.info("role") == "master").await;
    let mut former = fixture.client(0);
    until("the former master to follow", || {
        former.info("role") == "slave" && former.info("master_link_status") == "up"
    })
    .await;
    fixture.redis.stop(&fixture.layout, &*fixture.host).await.unwrap();
    fixture.redis.start(&fixture.layout, &*fixture.host).await.unwrap();
    assert_eq!(fixture.client(3).info("role"), "master");
    assert_eq!(fixture.client(0).info("role"), "slave");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_will_not_start_says_why() {
    let fixture = Fixture::prepare(VERSIONS[0], Shape::Standalone, &[("maxmemory-policy", "nonsense")]);
    let error = fixture.redis.start(&fixture.layout, &*fixture.host).await.unwrap_err();
    assert_eq!(error.kind, Kind::Server);
    assert!(error.to_string().contains("maxmemory-policy"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_saved_that_would_be_lost() {
    let fixture = Fixture::start_with(VERSIONS[1], Shape::Standalone, &[("save", "")]).await;
    fixture.client(0).run(&["SET", "a", "1"]);
    fixture.redis.stop(&fixture.layout, &*fixture.host).await.unwrap();
    fixture.redis.start(&fixture.layout, &*fixture.host).await.unwrap();
    assert_eq!(fixture.client(0).run(&["GET", "a"]).text(), "1");
}

#[test]
fn a_version_that_is_not_there_is_said_to_be_missing() {
    let error = mainstay_redis::REDIS.find(Some("99")).unwrap_err();
    assert_eq!(error.kind, Kind::NotInstalled);
    assert!(error.hint.unwrap().contains("scripts/engines"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_broken_off_in_the_making_is_gone_on_with() {
    let fixture = Fixture::prepare(VERSIONS[0], Shape::Cluster(3, 1), &[]);
    for after_ms in [200, 500, 900, 1300] {
        let start = fixture.redis.start(&fixture.layout, &*fixture.host);
        // Not synchronisation: it is to be broken off at different moments.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(after_ms), start).await;
    }
    fixture.redis.start(&fixture.layout, &*fixture.host).await.unwrap();
    let view = fixture.redis.observe(&fixture.access()).await.unwrap();
    assert!(view.findings.is_empty(), "{:?}", view.findings);
    assert_eq!(view.nodes.iter().filter(|node| node.role == Role::Primary).count(), 3);
    // And only then.
    fixture.redis.start(&fixture.layout, &*fixture.host).await.unwrap();
}

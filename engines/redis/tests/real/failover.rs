//! A master lost while we follow.

use mainstay_engine::{LogSource, Mark, SnapshotSource, Ttl};

use crate::kit::{ClusterClient, Fixture, Following, Leaked, Shape, VERSIONS, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_window_goes_on_past_a_promotion() {
    for version in VERSIONS {
        let fixture = Leaked::new(Fixture::start(version, Shape::Replicated(2)).await);
        let mut master = fixture.client(0);
        master.run(&["SET", "a", "before"]);
        let snapshot = fixture.snapshot().await;
        let following = Following::start(fixture.0, &snapshot.taken().position);
        master.run(&["SET", "b", "before"]);
        assert_eq!(master.run(&["WAIT", "2", "0"]).int(), 2);
        let before = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
        following.wait_for(&before.position).await;
        fixture.host.crash("stock-1");
        let mut promoted = fixture.client(1);
        promoted.run(&["REPLICAOF", "NO", "ONE"]);
        fixture.client(2).run(&["REPLICAOF", "127.0.0.1", &fixture.layout.nodes[1].ports[0].to_string()]);
        promoted.run(&["SET", "b", "after"]);
        let after = marked_when_up(&fixture).await;
        following.wait_for(&after.position).await;
        let log = following.log.source(1);
        assert_eq!(log.branches(&fixture.lane()).len(), 1);
        for (marked, expected) in [(&before, "before"), (&after, "after")] {
            let (sandbox, _) = fixture
                .restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift)
                .await
                .unwrap();
            assert_eq!(sandbox.client(0).run(&["GET", "b"]).text(), expected);
            assert_eq!(sandbox.client(0).run(&["GET", "a"]).text(), "before");
        }
        assert!(following.alive());
    }
}

async fn marked_when_up(fixture: &Fixture) -> mainstay_engine::Marked {
    let begun = std::time::Instant::now();
    loop {
        match Mark::mark(&fixture.redis, &fixture.access(), "m").await {
            Ok(marked) => return marked,
            Err(error) => assert!(begun.elapsed() < crate::kit::LIMIT, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ahead_of_the_promoted_one_our_branch_ends_and_the_window_goes_on() {
    for version in VERSIONS {
        let fixture = Leaked::new(Fixture::start(version, Shape::Replicated(1)).await);
        let mut master = fixture.client(0);
        master.run(&["SET", "a", "shared"]);
        let snapshot = fixture.snapshot().await;
        let mut replica = fixture.client(1);
        assert_eq!(master.run(&["WAIT", "1", "0"]).int(), 1);
        // The replica stops hearing, and the master is followed.
        replica.run(&["CONFIG", "SET", "masterauth", "wrong"]);
        replica.run(&["CLIENT", "KILL", "TYPE", "master"]);
        until("the replica to lose its link", || replica.info("master_link_status") == "down").await;
        let following = Following::start(fixture.0, &snapshot.taken().position);
        master.run(&["SET", "a", "lost"]);
        master.run(&["SET", "lost", "1"]);
        let lost = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
        following.wait_for(&lost.position).await;
        fixture.host.crash("stock-1");
        replica.run(&["REPLICAOF", "NO", "ONE"]);
        replica.run(&["SET", "b", "survived"]);
        let survived = marked_when_up(&fixture).await;
        following.wait_for(&survived.position).await;
        assert!(following.log.ended_bytes(&fixture.lane()) > 0);
        assert!(following.alive());
        // Nobody was made to copy its data because we were ahead.
        assert_eq!(replica.info("sync_full"), "1");
        let log = following.log.source(1);
        let (sandbox, _) = fixture
            .restore(&snapshot, &log, &survived.position, survived.at.latest, Ttl::Shift)
            .await
            .unwrap();
        let mut restored = sandbox.client(0);
        assert_eq!(restored.run(&["GET", "a"]).text(), "shared");
        assert_eq!(restored.run(&["GET", "b"]).text(), "survived");
        assert_eq!(restored.run(&["EXISTS", "lost"]).int(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_server_goes_on_from_its_file() {
    let fixture = Leaked::new(Fixture::start(VERSIONS[0], Shape::Standalone).await);
    let mut client = fixture.client(0);
    let snapshot = fixture.snapshot().await;
    let following = Following::start(fixture.0, &snapshot.taken().position);
    client.run(&["SET", "a", "saved"]);
    // The child that sent the copy may not have ended yet.
    until("a save", || client.try_run(&["SAVE"]) == crate::kit::Reply::Text(b"OK".to_vec())).await;
    client.run(&["SET", "a", "lost"]);
    let lost = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
    following.wait_for(&lost.position).await;
    fixture.host.crash("stock-1");
    mainstay_engine::Launch::start(&fixture.redis, &fixture.layout, &*fixture.host).await.unwrap();
    let mut client = fixture.client(0);
    assert_eq!(client.run(&["GET", "a"]).text(), "saved");
    client.run(&["SET", "b", "1"]);
    let marked = marked_when_up(&fixture).await;
    following.wait_for(&marked.position).await;
    let log = following.log.source(1);
    let (sandbox, _) =
        fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
    assert_eq!(sandbox.client(0).run(&["GET", "a"]).text(), "saved");
    assert_eq!(sandbox.client(0).run(&["GET", "b"]).text(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_fails_over_by_itself_is_followed_on() {
    {
        let version = VERSIONS[1];
        let config = [("cluster-node-timeout", "1000")];
        let fixture = Leaked::new(Fixture::start_with(version, Shape::Cluster(3, 1), &config).await);
        let ports: Vec<u16> = fixture.layout.nodes.iter().map(|node| node.ports[0]).collect();
        let mut client = ClusterClient::new(&ports);
        for number in 0..100 {
            client.run(&["SET", &format!("key-{number}"), "before"]);
        }
        let snapshot = fixture.snapshot().await;
        let following = Following::start(fixture.0, &snapshot.taken().position);
        let marked = Mark::mark(&fixture.redis, &fixture.access(), "m").await.unwrap();
        following.wait_for(&marked.position).await;
        fixture.host.crash("stock-1");
        let mut replica = fixture.client(3);
        until("the replica to be elected", || replica.info("role") == "master").await;
        let mut other = fixture.client(1);
        until("the cluster to be well", || {
            other.run(&["CLUSTER", "INFO"]).text().contains("cluster_state:ok")
        })
        .await;
        let mut client = ClusterClient::new(&ports[1..]);
        for number in 0..100 {
            client.run(&["SET", &format!("key-{number}"), "after"]);
        }
        let marked = marked_when_up(&fixture).await;
        following.wait_for(&marked.position).await;
        assert!(following.alive());
        let log = following.log.source(1000);
        let (sandbox, _) =
            fixture.restore(&snapshot, &log, &marked.position, marked.at.latest, Ttl::Shift).await.unwrap();
        let ports: Vec<u16> = sandbox.layout.nodes.iter().map(|node| node.ports[0]).collect();
        let mut restored = ClusterClient::new(&ports);
        for number in 0..100 {
            assert_eq!(restored.run(&["GET", &format!("key-{number}")]).text(), "after");
        }
    }
}

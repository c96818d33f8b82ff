//! Daemons over the fake engine and a vault in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_engine::Follow;
use mainstay_engine_kit::fake::{Count, FAKE, FakeCluster};
use mainstay_model::{
    Backup, Environment, EnvironmentName, Exact, FleetName, GroupName, Hosts, Instant, Keep, Nodes,
    RecoveryGroup, VaultName,
};
use mainstay_recovery::follow::{Limits, Pace};
use mainstay_recovery::point::points;
use mainstay_recovery::restore::Site;
use mainstay_store::{Fault, Faults, Faulty, Limits as StoreLimits, Memory, Store};
use mainstay_vault::Vault;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// No wait in a test is longer.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    dir: tempfile::TempDir,
    server: FakeCluster,
    faulty: Faulty<Memory>,
    vault: Vault,
    is_up: Arc<AtomicBool>,
}

/// The fleet as one home sees it.
struct Here {
    server: FakeCluster,
    vault: Vault,
    spool: std::path::PathBuf,
    is_up: Arc<AtomicBool>,
}

#[async_trait]
impl World for Here {
    async fn protected(&self, cluster: &Cluster) -> Result<Protected, BoxError> {
        let mut access = self.server.access();
        if !self.is_up.load(Ordering::SeqCst) {
            access.nodes.clear();
        }
        Ok(Protected {
            cluster: cluster.clone(),
            engine: &FAKE,
            vault: self.vault.cluster("shop", "local", cluster.name.as_str()),
            access,
            spool: self.spool.clone(),
            incarnation: None,
        })
    }

    fn sandboxes(&self) -> &dyn Sandboxes {
        &NoSandboxes
    }
}

struct NoSandboxes;

#[async_trait]
impl Sandboxes for NoSandboxes {
    async fn make(&self, _: &str, _: &[&Cluster]) -> mainstay_engine::Result<BTreeMap<String, Site>> {
        Err(mainstay_engine::Error::new(mainstay_engine::Kind::NotInstalled, "make a sandbox: not here"))
    }
    async fn remove(&self, _: &str) -> mainstay_engine::Result<()> {
        Ok(())
    }
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = FakeCluster::create(&dir.path().join("servers"), "orders", 1, 1, Count::Bytes).unwrap();
        let faulty = Faulty::new(Memory::default(), Faults::choose(|_, _, _| None));
        let store = Store::with(faulty.clone(), StoreLimits { attempts: 2, ..StoreLimits::hasty() });
        let vault = Vault::open_or_create(store, &[], &dir.path().join("keys")).await.unwrap().vault;
        Self { dir, server, faulty, vault, is_up: Arc::new(AtomicBool::new(true)) }
    }

    fn config(&self, home: &str, prove: bool) -> Config {
        let name = ClusterName::new("orders").unwrap();
        let keep = Keep {
            within: Duration::from_secs(3600),
            daily: 1,
            weekly: 0,
            monthly: 0,
            yearly: 0,
            least: 1,
            log: Duration::from_secs(3600),
        };
        let backup = Backup {
            snapshot: Some("daily 02:00".parse().unwrap()),
            follow: true,
            prove: prove.then(|| "* * * * *".parse().unwrap()),
            keep,
            vault: VaultName::new("main").unwrap(),
        };
        let cluster = Cluster {
            name: name.clone(),
            engine: "fake".into(),
            version: None,
            nodes: Nodes::Count(1),
            cluster: None,
            tier: None,
            memory: None,
            config: BTreeMap::new(),
            backup: Some(backup),
            access: None,
            control: None,
        };
        let group = RecoveryGroup {
            name: GroupName::new("all").unwrap(),
            members: vec![name.clone()],
            every: Some(Duration::from_millis(400)),
            exact: Some(Exact { every: Duration::from_millis(400), stall: Duration::from_secs(2) }),
        };
        let fleet = Fleet {
            name: FleetName::new("shop").unwrap(),
            environment: Environment { name: EnvironmentName::new("local").unwrap(), hosts: Hosts::Local },
            vaults: BTreeMap::new(),
            tiers: BTreeMap::new(),
            clusters: BTreeMap::from([(name, cluster)]),
            recovery_groups: BTreeMap::from([(group.name.clone(), group)]),
            base_dir: self.dir.path().to_owned(),
        };
        let world = Here {
            server: self.server.clone(),
            vault: self.vault.clone(),
            spool: self.dir.path().join(home),
            is_up: self.is_up.clone(),
        };
        let follow = FollowOptions {
            lease_ttl: Duration::from_secs(5),
            limits: Limits { disk_bytes_free_min: 0, ..Limits::default() },
            pace: Pace {
                tail_every: Duration::from_millis(40),
                beat_every: Duration::from_millis(100),
                ..Pace::default()
            },
            look_every: Duration::from_millis(300),
            ..FollowOptions::new(home)
        };
        let rhythm = Rhythm {
            tick: Duration::from_millis(50),
            refresh: Duration::from_millis(200),
            retry: (Duration::from_millis(100), Duration::from_secs(1)),
            catch_up: PATIENCE,
            ..Rhythm::default()
        };
        Config {
            fleet,
            world: Arc::new(world),
            state: Some(State::open(&self.dir.path().join(format!("{home}.db"))).unwrap()),
            holder: home.to_owned(),
            follow,
            jobs: 1,
            listen: None,
            rhythm,
        }
    }

    async fn snapshots(&self) -> usize {
        self.vault.cluster("shop", "local", "orders").snapshots().await.unwrap().len()
    }

    async fn point_times(&self) -> Vec<Instant> {
        let ids = self.vault.point_ids("shop", "local", "all").await.unwrap();
        ids.iter().map(|id| due::time_of_point(id).unwrap()).collect()
    }

    fn serve(&self, home: &str) -> (tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let config = self.config(home, false);
        let task = tokio::spawn(async move {
            serve(config, async { drop(stopped.await) }).await.unwrap();
        });
        (stop, task)
    }
}

async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let began = Monotonic::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_does_what_is_due_and_no_more() {
    let b = Bench::new().await;
    let once = serve_once(b.config("home", false)).await;
    assert_eq!(once.failed, Vec::<String>::new());
    assert_eq!(once.done, ["snapshot of orders", "point of all", "prune of orders", "log of orders"]);
    b.server.set("key", "value").await.unwrap();
    let again = serve_once(b.config("home", false)).await;
    assert_eq!(again.failed, Vec::<String>::new());
    assert!(
        !again.done.iter().any(|done| done.starts_with("snapshot") || done.starts_with("prune")),
        "{again:?}"
    );
    assert!(again.done.contains(&"log of orders".to_owned()));
    b.is_up.store(false, Ordering::SeqCst);
    let down = serve_once(b.config("home", false)).await;
    assert_eq!(down.skipped, ["orders"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_do_each_thing_once_and_one_takes_over() {
    let b = Bench::new().await;
    let (stop_first, first) = b.serve("first");
    let (stop_second, second) = b.serve("second");
    until("a few points", || async { b.point_times().await.len() >= 5 }).await;
    assert_eq!(b.snapshots().await, 1);
    // One of them is killed; whichever it is, the other goes on.
    first.abort();
    let _ = first.await;
    let had = b.point_times().await.len();
    until("more points", || async { b.point_times().await.len() >= had + 3 }).await;
    drop(stop_first);
    stop_second.send(()).unwrap();
    second.await.unwrap();
    let times = b.point_times().await;
    let is_close = |pair: &&[Instant]| pair[1].since(pair[0]) < Duration::from_millis(390);
    // One that the killed daemon had on its way may have arrived after the other had looked.
    assert!(times.windows(2).filter(is_close).count() <= 1, "{times:?}");
    assert_eq!(b.snapshots().await, 1);
    let stored = points(&b.vault, "shop", "local", "all").await.unwrap();
    assert!(stored.iter().any(|point| point.exact), "{stored:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_waited_for_and_a_hole_brings_a_snapshot() {
    let b = Bench::new().await;
    b.is_up.store(false, Ordering::SeqCst);
    let (stop, task) = b.serve("home");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(b.snapshots().await, 0);
    b.is_up.store(true, Ordering::SeqCst);
    until("a snapshot", || async { b.snapshots().await == 1 }).await;
    until("a point", || async { !b.point_times().await.is_empty() }).await;
    b.server.kill(0).unwrap();
    FAKE.release(&b.server.access()).await.unwrap();
    b.server.revive(0).unwrap();
    // The follower may have come back in between and keeps the log: cut it off until the log was trimmed without it.
    until("a hole, and a snapshot", || async {
        b.server.kill(0).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let node = b.server.access().nodes[0].data_dir.clone().unwrap();
        for entry in std::fs::read_dir(&node).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("slot-") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        b.server.revive(0).unwrap();
        let _ = b.server.set("lost", "before anybody came back").await;
        let _ = b.server.trim();
        tokio::time::sleep(Duration::from_millis(700)).await;
        b.snapshots().await >= 2
    })
    .await;
    stop.send(()).unwrap();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_say_what_the_vault_holds_and_are_silent_when_it_is_away() {
    let b = Bench::new().await;
    let daemon = Daemon::new(b.config("home", true), false);
    let (end, ended) = watch::channel(false);
    let cluster = daemon.kept().remove(0);
    let group = daemon.config.fleet.recovery_groups.values().next().unwrap().clone();
    let listener = http::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = [
        tokio::spawn(cluster::keep(daemon.clone(), cluster, ended.clone())),
        tokio::spawn(group::keep(daemon.clone(), group, ended.clone())),
        tokio::spawn(http::serve(daemon.clone(), listener, ended.clone())),
    ];
    let everything = [
        "mainstay_up 1",
        "mainstay_vault_reachable{cluster=\"orders\"} 1",
        "mainstay_last_snapshot_age_seconds{cluster=\"orders\"}",
        "mainstay_log_age_seconds{cluster=\"orders\"}",
        "mainstay_window_start_timestamp_seconds{cluster=\"orders\"}",
        "mainstay_window_end_timestamp_seconds{cluster=\"orders\"}",
        "mainstay_rpo_spool_seconds{cluster=\"orders\"}",
        "mainstay_rpo_vault_seconds{cluster=\"orders\"}",
        "mainstay_holes{cluster=\"orders\"} 0",
        "mainstay_snapshot_read_bytes_total{cluster=\"orders\"}",
        "mainstay_run_duration_seconds{kind=\"snapshot\",what=\"orders\"}",
        "mainstay_log_vaulted_bytes_total{cluster=\"orders\",lane=\"lane-0\"}",
        "mainstay_last_point_age_seconds{group=\"all\"}",
        "mainstay_point_exact_ratio{group=\"all\"}",
        "mainstay_point_stall_seconds{group=\"all\"}",
    ];
    let page = || get(address, "/metrics");
    until("all metrics", || async {
        let page = page().await;
        everything.iter().all(|metric| page.contains(metric))
    })
    .await;
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    b.faulty.set(Faults::choose(|_, _, _| Some(Fault::Before)));
    until("silence", || async {
        let page = page().await;
        page.contains("mainstay_vault_reachable{cluster=\"orders\"} 0")
            && !page.contains("mainstay_last_snapshot_age_seconds{")
            && !page.contains("mainstay_rpo_vault_seconds{")
    })
    .await;
    b.faulty.set(Faults::choose(|_, _, _| None));
    until("all metrics again", || async {
        let page = page().await;
        everything.iter().all(|metric| page.contains(metric))
    })
    .await;
    end.send_replace(true);
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn started_without_the_vault_it_spools_and_says_so_loudly() {
    let b = Bench::new().await;
    let (stop, task) = b.serve("home");
    until("a snapshot", || async { b.snapshots().await == 1 }).await;
    until("a point", || async { !b.point_times().await.is_empty() }).await;
    stop.send(()).unwrap();
    task.await.unwrap();
    b.faulty.set(Faults::choose(|_, _, _| Some(Fault::Before)));
    let daemon = Daemon::new(b.config("home", false), false);
    let (end, ended) = watch::channel(false);
    let cluster = daemon.kept().remove(0);
    let listener = http::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = [
        tokio::spawn(cluster::keep(daemon.clone(), cluster, ended.clone())),
        tokio::spawn(http::serve(daemon.clone(), listener, ended.clone())),
    ];
    let only = |flag: u8| format!("mainstay_lane_spool_only{{cluster=\"orders\",lane=\"lane-0\"}} {flag}");
    until("the spool alone", || async {
        let page = get(address, "/metrics").await;
        page.contains(&only(1)) && page.contains("mainstay_follower_well{cluster=\"orders\"} 0")
    })
    .await;
    assert!(get(address, "/healthz").await.contains("spool of this machine alone"));
    b.server.set("key", "while it was away").await.unwrap();
    b.faulty.set(Faults::choose(|_, _, _| None));
    until("the vault", || async {
        let page = get(address, "/metrics").await;
        page.contains(&only(0)) && page.contains("mainstay_follower_well{cluster=\"orders\"} 1")
    })
    .await;
    end.send_replace(true);
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_counted_and_tried_again_later() {
    let b = Bench::new().await;
    let daemon = Daemon::new(b.config("home", true), false);
    let of = daemon.config.world.protected(&daemon.kept()[0]).await.unwrap();
    assert!(daemon.snapshot_if_due(&of, false).await.unwrap());
    assert!(!daemon.prove_if_due(&of).await.unwrap(), "not before the next minute");
    let result = daemon.run("proof", "orders", async { Err("no sandbox".to_owned()) }).await;
    assert_eq!(result.unwrap_err(), "no sandbox");
    assert!(metrics::render(&daemon).contains("mainstay_failures_total{kind=\"proof\",what=\"orders\"} 1"));
    let state = daemon.config.state.clone().unwrap();
    let runs = state.runs("proof", "orders", 10).unwrap();
    assert_eq!(runs[0].error.as_deref(), Some("no sandbox"));
    let mut retry = view::Retry::default();
    assert!(retry.is_open());
    retry.failed((Duration::from_secs(60), Duration::from_secs(600)));
    assert!(!retry.is_open());
    retry.succeeded();
    assert!(retry.is_open());
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

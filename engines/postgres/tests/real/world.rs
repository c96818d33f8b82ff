//! What the tests run in: a folder, processes that end with it, clusters of either version.

use std::collections::HashMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use mainstay_engine::*;
use mainstay_engine_kit::memory::{MemoryLog, MemorySnapshot, MemorySnapshotSource};
use mainstay_model::{Cluster, Lane, Nodes, Place};
use mainstay_postgres::Postgres;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A machine whose processes end with it.
#[derive(Clone, Default)]
pub struct TestHost {
    processes: Arc<Processes>,
}

#[derive(Default)]
struct Processes {
    running: Mutex<HashMap<String, Child>>,
    /// What each server finds in its environment.
    env: Mutex<Vec<(String, String)>>,
}

impl TestHost {
    /// As a power cut: nothing is said.
    pub fn kill(&self, node: &str) {
        self.processes.kill(node);
    }

    /// What each server that is started from now on finds in its environment.
    pub fn set_env(&self, env: Vec<(String, String)>) {
        *self.processes.env.lock().unwrap() = env;
    }
}

impl Processes {
    fn kill(&self, node: &str) {
        let child = self.running.lock().unwrap().remove(node);
        if let Some(mut child) = child {
            // A server's processes are groups of their own.
            let all = children(child.id());
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            for pid in all {
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = child.wait();
        }
    }
}

/// The processes that `parent` started.
fn children(parent: u32) -> Vec<i32> {
    let numbers = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let child = |number: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        // `pid (name) state ppid …`
        let of: u32 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()?;
        (of == parent).then(|| number.parse().ok()).flatten()
    };
    numbers.filter_map(|number| child(&number)).collect()
}

impl Drop for Processes {
    fn drop(&mut self) {
        let nodes: Vec<_> = self.running.lock().unwrap().keys().cloned().collect();
        nodes.iter().for_each(|node| self.kill(node));
    }
}

fn prepare(command: &NodeCommand) -> Command {
    let mut process = Command::new(&command.program);
    process.args(&command.args).current_dir(&command.cwd).stdin(Stdio::null()).process_group(0);
    process
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", &command.cwd)
        .envs(command.env.iter().cloned());
    if let Some(owner) = command.owner {
        process.uid(owner.uid).gid(owner.gid);
    }
    process
}

#[async_trait]
impl Host for TestHost {
    async fn start(&self, command: &NodeCommand) -> Result<u32> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&command.log).unwrap();
        let mut process = prepare(command);
        process.envs(self.processes.env.lock().unwrap().iter().cloned());
        process.stdout(log.try_clone().unwrap()).stderr(log);
        let child = process.spawn().map_err(|error| Error::io("start", error))?;
        let pid = child.id();
        self.processes.running.lock().unwrap().insert(command.node.clone(), child);
        Ok(pid)
    }

    fn running(&self, node: &str) -> Option<u32> {
        let mut running = self.processes.running.lock().unwrap();
        let child = running.get_mut(node)?;
        if child.try_wait().unwrap().is_some() {
            running.remove(node);
            return None;
        }
        Some(child.id())
    }

    async fn stop(&self, node: &str, signal: &str, grace: Duration) -> Result<()> {
        let Some(pid) = self.running(node) else { return Ok(()) };
        let signal: Signal = format!("SIG{signal}").parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(pid as i32), signal).unwrap();
        let begun = Instant::now();
        while self.running(node).is_some() {
            if begun.elapsed() > grace {
                self.kill(node);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn run(&self, command: &NodeCommand, _: Duration) -> Result<String> {
        let output = prepare(command).output().map_err(|error| Error::io("run", error))?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(text) } else { Err(Error::new(Kind::Server, text)) }
    }
}

/// A folder, a machine, an adapter.
pub struct World {
    pub engine: Arc<Postgres>,
    pub host: TestHost,
    pub version: &'static str,
    folder: tempfile::TempDir,
    owner: Option<RunAs>,
}

impl World {
    pub fn new(version: &'static str) -> Self {
        let folder = tempfile::Builder::new().prefix("mainstay-pg-").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let owner = nix::unistd::Uid::effective().is_root().then(|| {
            let user = nix::unistd::User::from_name("postgres")
                .unwrap()
                .expect("user postgres: run scripts/engines");
            RunAs { uid: user.uid.as_raw(), gid: user.gid.as_raw() }
        });
        Self { engine: Arc::new(Postgres::new()), host: TestHost::default(), version, folder, owner }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder that the servers' user owns.
    pub fn owned(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        if let Some(owner) = self.owner {
            chown(&path, Some(owner.uid), Some(owner.gid)).unwrap();
        }
        path
    }

    pub fn layout(&self, name: &str, nodes: usize, config: &[(&str, &str)], sandbox: bool) -> Layout {
        let launch: &dyn Launch = &*self.engine;
        let node = |index: usize| NodeLayout {
            name: format!("{name}-{}", index + 1),
            dir: self.owned(&format!("{name}-{}", index + 1)),
            ports: vec![free_port()],
        };
        Layout {
            cluster: Cluster {
                name: name.parse().unwrap(),
                engine: "postgres".into(),
                version: Some(self.version.parse().unwrap()),
                nodes: Nodes::Count(nodes as u32),
                cluster: None,
                tier: None,
                memory: None,
                config: config
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
                backup: None,
                access: None,
                control: None,
            },
            scope: "shop_local_orders".into(),
            installation: launch.find(Some(self.version)).expect("run scripts/engines"),
            nodes: (0..nodes).map(node).collect(),
            user: "mainstay".into(),
            password: Secret::new("it's a secret: \\o/"),
            owner: self.owner,
            sandbox,
        }
    }

    pub async fn up(&self, name: &str, nodes: usize, config: &[(&str, &str)]) -> Layout {
        let layout = self.layout(name, nodes, config, false);
        self.engine.start(&layout, &self.host).await.unwrap();
        layout
    }

    pub async fn snapshot(&self, layout: &Layout, way: Way) -> MemorySnapshotSource {
        let sink = MemorySnapshot::new();
        let taken = self.snapshot_into(layout, way, 3, sink.clone()).await.unwrap();
        sink.finish(taken)
    }

    pub async fn snapshot_into(
        &self,
        layout: &Layout,
        way: Way,
        jobs: usize,
        sink: Arc<dyn SnapshotSink>,
    ) -> Result<Taken> {
        let options = SnapshotOptions { way, jobs, label: "mainstay test".into() };
        Snapshot::snapshot(&*self.engine, &layout.access(), &options, sink, Arc::new(Quiet)).await
    }

    /// Restores into a sandbox and gives its layout.
    pub async fn restore(
        &self,
        name: &str,
        snapshot: &dyn SnapshotSource,
        log: &dyn LogSource,
        cut: &Place,
    ) -> Layout {
        self.try_restore(name, snapshot, log, cut).await.unwrap().0
    }

    pub async fn try_restore(
        &self,
        name: &str,
        snapshot: &dyn SnapshotSource,
        log: &dyn LogSource,
        cut: &Place,
    ) -> Result<(Layout, Replayed)> {
        let layout = self.layout(name, 1, &[], true);
        let replayed = self.restore_into(&layout, snapshot, log, cut).await?;
        Ok((layout, replayed))
    }

    /// Restores into whatever layout: in place where that is no sandbox.
    pub async fn restore_into(
        &self,
        layout: &Layout,
        snapshot: &dyn SnapshotSource,
        log: &dyn LogSource,
        cut: &Place,
    ) -> Result<Replayed> {
        self.restore_around(layout, snapshot, log, cut, || {}).await
    }

    /// The same, with something done between the files and the log.
    pub async fn restore_around(
        &self,
        layout: &Layout,
        snapshot: &dyn SnapshotSource,
        log: &dyn LogSource,
        cut: &Place,
        between: impl FnOnce(),
    ) -> Result<Replayed> {
        let position = mainstay_model::Position::single(lane(), cut.clone());
        let job = RestoreJob {
            layout,
            host: &self.host,
            snapshot,
            log,
            cut: &position,
            at: mainstay_model::Instant::now(),
            ttl: Ttl::Shift,
            in_place: !layout.sandbox,
            compared: true,
            jobs: 2,
            progress: Arc::new(Quiet),
        };
        Restore::restore(&*self.engine, &job).await?;
        between();
        Replay::replay(&*self.engine, &job).await
    }

    pub async fn drop_sandbox(&self, layout: &Layout) {
        for node in &layout.nodes {
            self.host.kill(&node.name);
            std::fs::remove_dir_all(&node.dir).unwrap();
        }
    }
}

pub fn lane() -> Lane {
    mainstay_postgres::snapshot::lane()
}

/// A session on one node.
pub async fn sql(layout: &Layout, index: usize) -> tokio_postgres::Client {
    let access = layout.access();
    mainstay_postgres::connect::session(&access, &access.nodes[index], "postgres").await.unwrap()
}

/// The first column of the first row.
pub async fn one(client: &tokio_postgres::Client, query: &str) -> String {
    let row = mainstay_postgres::connect::row(client, query, query).await.unwrap();
    row.get(0).unwrap_or("").to_owned()
}

/// A follower in the background, which goes on as a caller does.
pub struct Follower {
    task: tokio::task::JoinHandle<()>,
    pub log: MemoryLog,
    pub errors: Arc<Mutex<Vec<Error>>>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    pub fn begin(world: &World, access: Access, from: Place) -> Self {
        Self::resume(world, access, from, MemoryLog::new())
    }

    pub fn resume(world: &World, access: Access, mut from: Place, log: MemoryLog) -> Self {
        let engine = Arc::clone(&world.engine);
        let errors: Arc<Mutex<Vec<Error>>> = Arc::default();
        let (kept, noted) = (log.clone(), Arc::clone(&errors));
        let task = tokio::spawn(async move {
            loop {
                let sink = log.sink(&lane(), &from);
                let Err(error) = Follow::follow(&*engine, &access, &lane(), &from, &sink).await;
                from = log.durable(&lane()).unwrap();
                if let Kind::Diverged { branched: Some(place) } = &error.kind {
                    from = place.clone();
                    log.end_branch(&lane(), &from);
                }
                noted.lock().unwrap().push(error);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { task, log: kept, errors }
    }

    pub async fn caught_up(&self, place: &Place) {
        if let Err(error) = self.log.wait_for(&lane(), place, PATIENCE).await {
            panic!("{error}; links ended with {:?}", self.errors.lock().unwrap());
        }
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn position(marked: &mainstay_model::Position) -> Place {
    marked.get(&lane()).unwrap().clone()
}

/// Waits until a query's first column is what is expected.
pub async fn until_is(client: &tokio_postgres::Client, query: &str, expected: &str) {
    let begun = Instant::now();
    while one(client, query).await != expected {
        assert!(begun.elapsed() < PATIENCE, "{query}: not {expected} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for a condition, for as long as a loaded machine may need.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A small file of a snapshot.
pub fn stored(snapshot: &dyn SnapshotSource, path: &str) -> String {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut snapshot.open(path).unwrap(), &mut text).unwrap();
    text
}

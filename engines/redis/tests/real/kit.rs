//! Servers of a test, a small client, and what every test does.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant as Tick};

use async_trait::async_trait;
use mainstay_engine::{
    Access, Error, Follow, Host, Installation, Kind, Launch, Layout, LogSource, NodeCommand, NodeLayout,
    Quiet, Replay, Replayed, Restore, RestoreJob, Result, RunAs, Secret, Snapshot, SnapshotOptions,
    SnapshotSource, Target, Ttl, Way,
};
use mainstay_engine_kit::memory::{MemoryLog, MemorySnapshot, MemorySnapshotSource};
use mainstay_model::{Cluster, ClusterShape, Instant, Lane, Nodes, Position};
use mainstay_redis::Redis;

/// How long anything may take on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The versions that are tested, oldest first.
pub const VERSIONS: [&str; 2] = ["7.0", "8.2"];

/// Processes of one test, killed at its end.
#[derive(Default)]
pub struct TestHost {
    children: Mutex<BTreeMap<String, Child>>,
    /// What each server finds in its environment.
    pub env: Mutex<Vec<(String, String)>>,
}

impl TestHost {
    /// Kills a node as a crash would.
    pub fn crash(&self, node: &str) {
        if let Some(mut child) = self.children.lock().unwrap().remove(node) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops a node without ending it, or lets it go on.
    pub fn freeze(&self, node: &str, frozen: bool) {
        let pid = self.running(node).unwrap().to_string();
        let signal = if frozen { "-STOP" } else { "-CONT" };
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        for child in self.children.lock().unwrap().values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn prepare(command: &NodeCommand) -> Command {
    let mut prepared = Command::new(&command.program);
    prepared
        .args(&command.args)
        .envs(command.env.iter().cloned())
        .current_dir(&command.cwd)
        .stdin(Stdio::null());
    if let Some(owner) = command.owner {
        prepared.uid(owner.uid).gid(owner.gid);
    }
    prepared
}

/// A host that several hold.
pub struct Shared(pub Arc<TestHost>);

#[async_trait]
impl Host for Shared {
    async fn start(&self, command: &NodeCommand) -> Result<u32> {
        self.0.start(command).await
    }
    fn running(&self, node: &str) -> Option<u32> {
        self.0.running(node)
    }
    async fn stop(&self, node: &str, signal: &str, grace: Duration) -> Result<()> {
        self.0.stop(node, signal, grace).await
    }
    async fn run(&self, command: &NodeCommand, deadline: Duration) -> Result<String> {
        self.0.run(command, deadline).await
    }
}

#[async_trait]
impl Host for TestHost {
    async fn start(&self, command: &NodeCommand) -> Result<u32> {
        assert!(self.running(&command.node).is_none(), "{} runs", command.node);
        let io = |error| Error::io(format!("start {}", command.program.display()), error);
        let log = std::fs::File::options().create(true).append(true).open(&command.log).map_err(io)?;
        let child = prepare(command)
            .envs(self.env.lock().unwrap().iter().cloned())
            .process_group(0)
            .stdout(log.try_clone().map_err(io)?)
            .stderr(log)
            .spawn()
            .map_err(io)?;
        let pid = child.id();
        self.children.lock().unwrap().insert(command.node.clone(), child);
        Ok(pid)
    }

    fn running(&self, node: &str) -> Option<u32> {
        let mut children = self.children.lock().unwrap();
        let child = children.get_mut(node)?;
        match child.try_wait() {
            Ok(None) => Some(child.id()),
            _ => None,
        }
    }

    async fn stop(&self, node: &str, signal: &str, grace: Duration) -> Result<()> {
        let Some(pid) = self.running(node) else { return Ok(()) };
        Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().unwrap();
        let begun = Tick::now();
        while self.running(node).is_some() {
            if begun.elapsed() > grace {
                self.crash(node);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn run(&self, command: &NodeCommand, _deadline: Duration) -> Result<String> {
        let output = prepare(command).output().map_err(|error| Error::io("run", error))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(text) } else { Err(Error::new(Kind::Server, text)) }
    }
}

/// A shape of cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Standalone,
    /// A master with so many replicas.
    Replicated(u32),
    /// So many masters, each with so many replicas.
    Cluster(u32, u32),
}

/// A cluster of a test.
pub struct Fixture {
    pub redis: Redis,
    pub host: Arc<TestHost>,
    pub layout: Layout,
    pub folder: tempfile::TempDir,
    started: Mutex<u32>,
}

impl Fixture {
    /// Starts one.
    pub async fn start(version: &str, shape: Shape) -> Fixture {
        Fixture::start_with(version, shape, &[]).await
    }

    /// Starts one with settings.
    pub async fn start_with(version: &str, shape: Shape, config: &[(&str, &str)]) -> Fixture {
        let fixture = Fixture::prepare(version, shape, config);
        fixture.redis.start(&fixture.layout, &*fixture.host).await.unwrap();
        fixture
    }

    /// Makes the folders of one.
    pub fn prepare(version: &str, shape: Shape, config: &[(&str, &str)]) -> Fixture {
        let redis = Redis::new();
        let installation =
            redis.find(Some(version)).unwrap_or_else(|error| panic!("{error}: run scripts/engines"));
        let folder = tempfile::Builder::new().prefix("mainstay-redis-").tempdir().unwrap();
        let cluster = cluster(shape, config);
        let nodes = cluster.nodes.count() as usize;
        let layout = layout(folder.path(), cluster, &installation, nodes, false);
        Fixture { redis, host: Arc::default(), layout, folder, started: Mutex::new(0) }
    }

    pub fn access(&self) -> Access {
        self.layout.access()
    }

    /// A client of a node, by its index.
    pub fn client(&self, node: usize) -> Client {
        Client::connect(self.layout.nodes[node].ports[0])
    }

    /// The only lane.
    pub fn lane(&self) -> Lane {
        Lane::new("main")
    }

    pub async fn snapshot(&self) -> MemorySnapshotSource {
        let sink = MemorySnapshot::new();
        let options = SnapshotOptions { way: Way::Auto, jobs: 2, label: "test".into() };
        let taken = Snapshot::snapshot(&self.redis, &self.access(), &options, sink.clone(), Arc::new(Quiet))
            .await
            .unwrap();
        sink.finish(taken)
    }

    /// An empty layout to restore into: the masters alone, as a sandbox.
    pub fn sandbox(&self) -> Sandbox {
        let mut started = self.started.lock().unwrap();
        *started += 1;
        let path = self.folder.path().join(format!("sandbox-{started}"));
        let nodes = self.redis.sandbox_nodes(&self.layout.cluster);
        let layout = layout(&path, self.layout.cluster.clone(), &self.layout.installation, nodes, true);
        Sandbox { host: Arc::default(), layout }
    }

    /// Restores into a sandbox, to a position.
    pub async fn restore(
        &self,
        snapshot: &dyn SnapshotSource,
        log: &dyn LogSource,
        cut: &Position,
        at: Instant,
        ttl: Ttl,
    ) -> Result<(Sandbox, Replayed)> {
        let sandbox = self.sandbox();
        let job = RestoreJob {
            layout: &sandbox.layout,
            host: &*sandbox.host,
            snapshot,
            log,
            cut,
            at,
            ttl,
            in_place: false,
            compared: true,
            jobs: 2,
            progress: Arc::new(Quiet),
        };
        Restore::restore(&self.redis, &job).await?;
        let replayed = Replay::replay(&self.redis, &job).await?;
        Ok((sandbox, replayed))
    }

    /// The cut of every lane for one target.
    pub fn cuts(
        &self,
        snapshot: &dyn SnapshotSource,
        log: &dyn LogSource,
        target: &Target,
    ) -> Result<Position> {
        let position = &snapshot.taken().position.0;
        let one = |(lane, from)| Ok((Lane::clone(lane), self.redis.cut(lane, from, log, target)?.place));
        position.iter().map(one).collect()
    }
}

/// A sandbox and its servers.
pub struct Sandbox {
    pub host: Arc<TestHost>,
    pub layout: Layout,
}

impl Sandbox {
    pub fn client(&self, node: usize) -> Client {
        Client::connect(self.layout.nodes[node].ports[0])
    }
}

/// Followers of all lanes, ended when dropped.
pub struct Following {
    pub log: MemoryLog,
    lanes: Vec<Lane>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Following {
    /// Follows every lane from a position on, again and again when a link breaks.
    pub fn start(fixture: &'static Fixture, position: &Position) -> Following {
        let log = MemoryLog::new();
        let tasks = position.0.iter().map(|(lane, from)| {
            let (lane, mut from, log) = (lane.clone(), from.clone(), log.clone());
            tokio::spawn(async move {
                loop {
                    if let Some(durable) = log.durable(&lane) {
                        from = durable;
                    }
                    let sink = log.sink(&lane, &from);
                    let error =
                        match Follow::follow(&fixture.redis, &fixture.access(), &lane, &from, &sink).await {
                            Ok(never) => match never {},
                            Err(error) => error,
                        };
                    eprintln!("link of {lane} ended: {error} ({:?})", error.kind);
                    match error.kind {
                        Kind::Unreachable => tokio::time::sleep(Duration::from_millis(50)).await,
                        Kind::Diverged { branched: Some(place) } => log.end_branch(&lane, &place),
                        _ => return,
                    }
                }
            })
        });
        Following { tasks: tasks.collect(), lanes: position.0.keys().cloned().collect(), log }
    }

    /// Waits until every lane is complete up to a time.
    pub async fn wait(&self, at: Instant) {
        for lane in &self.lanes {
            self.log.wait_for_time(lane, at, LIMIT).await.unwrap();
        }
    }

    /// Waits until every lane covers a position.
    pub async fn wait_for(&self, position: &Position) {
        for (lane, place) in &position.0 {
            self.log.wait_for(lane, place, LIMIT).await.unwrap();
        }
    }

    /// Whether every follower still runs.
    pub fn alive(&self) -> bool {
        self.tasks.iter().all(|task| !task.is_finished())
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A fixture that lives as long as the followers of the test, which are tasks of their own. The servers are ended by [`Leaked::drop`].
pub struct Leaked(pub &'static Fixture);

impl Leaked {
    pub fn new(fixture: Fixture) -> Leaked {
        Leaked(Box::leak(Box::new(fixture)))
    }
}

impl std::ops::Deref for Leaked {
    type Target = Fixture;
    fn deref(&self) -> &Fixture {
        self.0
    }
}

impl Drop for Leaked {
    fn drop(&mut self) {
        for node in &self.0.layout.nodes {
            self.0.host.crash(&node.name);
        }
        let _ = std::fs::remove_dir_all(self.0.folder.path());
    }
}

fn cluster(shape: Shape, config: &[(&str, &str)]) -> Cluster {
    let (nodes, cluster) = match shape {
        Shape::Standalone => (1, None),
        Shape::Replicated(replicas) => (1 + replicas, None),
        Shape::Cluster(masters, replicas) => (masters * (1 + replicas), Some(ClusterShape { replicas })),
    };
    Cluster {
        name: "stock".parse().unwrap(),
        engine: "redis".into(),
        version: None,
        nodes: Nodes::Count(nodes),
        cluster,
        tier: None,
        memory: None,
        config: config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        backup: None,
        access: None,
        control: None,
    }
}

fn layout(path: &Path, cluster: Cluster, installation: &Installation, nodes: usize, sandbox: bool) -> Layout {
    let owner = owner();
    let ports_each = if cluster.cluster.is_some() { 2 } else { 1 };
    let mut ports = free_ports(nodes * ports_each).into_iter();
    let nodes = (1..=nodes).map(|number| {
        let name = format!("stock-{number}");
        let dir = path.join(&name);
        std::fs::create_dir_all(&dir).unwrap();
        for made in [path, &dir] {
            give(made, owner);
        }
        NodeLayout { name, dir, ports: ports.by_ref().take(ports_each).collect() }
    });
    Layout {
        nodes: nodes.collect(),
        cluster,
        scope: "test".into(),
        // As the runtime does it: an administrator beside the default user.
        installation: installation.clone(),
        user: "mainstay".into(),
        password: Secret::new(PASSWORD),
        owner,
        sandbox,
    }
}

pub const PASSWORD: &str = "sesame-0123";

fn give(path: &Path, owner: Option<RunAs>) {
    if let Some(owner) = owner {
        std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid)).unwrap();
    }
}

/// The `redis` user, when we are root.
fn owner() -> Option<RunAs> {
    let id = |flag: &str, of: &[&str]| -> Option<u32> {
        let output = Command::new("id").arg(flag).args(of).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    };
    if id("-u", &[])? != 0 {
        return None;
    }
    Some(RunAs { uid: id("-u", &["redis"])?, gid: id("-g", &["redis"])? })
}

/// Ports that nobody has now, and that nobody is given while a server of ours is down: they lie below those that the system gives to
/// whoever asks for any, and no two tests of this process get the same. Where they begin differs from process to process.
fn free_ports(count: usize) -> Vec<u16> {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(7919);
    let mut ports = Vec::new();
    for _ in 0..COUNT {
        let next = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(begin) % COUNT;
        let port = u16::try_from(FIRST + next).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.push(port);
        }
        if ports.len() == count {
            return ports;
        }
    }
    panic!("no {count} ports are free");
}

/// A client that speaks the protocol and nothing more. Panics on errors, unless asked not to.
pub struct Client {
    stream: std::io::BufReader<TcpStream>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Nil,
    Int(i64),
    Text(Vec<u8>),
    List(Vec<Reply>),
    Error(String),
}

impl Reply {
    pub fn text(&self) -> String {
        match self {
            Reply::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Reply::Int(number) => number.to_string(),
            other => panic!("{other:?} is no text"),
        }
    }

    pub fn int(&self) -> i64 {
        match self {
            Reply::Int(number) => *number,
            other => panic!("{other:?} is no number"),
        }
    }

    pub fn ints(&self) -> Vec<i64> {
        match self {
            Reply::List(list) => list.iter().map(Reply::int).collect(),
            other => panic!("{other:?} is no list"),
        }
    }

    pub fn texts(&self) -> Vec<String> {
        match self {
            Reply::List(list) => list.iter().map(Reply::text).collect(),
            other => panic!("{other:?} is no list"),
        }
    }
}

impl Client {
    pub fn connect(port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Client { stream: std::io::BufReader::new(stream) };
        client.run(&["AUTH", PASSWORD]);
        client
    }

    pub fn run(&mut self, words: &[&str]) -> Reply {
        match self.try_run(words) {
            Reply::Error(error) => panic!("{words:?}: {error}"),
            reply => reply,
        }
    }

    pub fn try_run(&mut self, words: &[&str]) -> Reply {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.send(&words);
        self.reply()
    }

    pub fn run_bytes(&mut self, words: &[&[u8]]) -> Reply {
        self.send(words);
        self.reply()
    }

    pub fn send(&mut self, words: &[&[u8]]) {
        use std::io::Write;
        self.stream.get_mut().write_all(&mainstay_redis::link::encode(words)).unwrap();
    }

    /// One of the fields of `INFO`.
    pub fn info(&mut self, key: &str) -> String {
        let info = self.run(&["INFO"]).text();
        let line = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {key} in {info}")).trim().to_owned()
    }

    /// The server's clock.
    pub fn time(&mut self) -> Instant {
        let time = self.run(&["TIME"]).texts();
        Instant(time[0].parse::<i64>().unwrap() * 1_000_000 + time[1].parse::<i64>().unwrap())
    }

    pub fn reply(&mut self) -> Reply {
        use std::io::{BufRead, Read};
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let line = line.trim_end();
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" => Reply::Text(rest.as_bytes().to_vec()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Int(rest.parse().unwrap()),
            "$" if rest == "-1" => Reply::Nil,
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.stream.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Reply::Text(bytes)
            }
            "*" if rest == "-1" => Reply::Nil,
            "*" => Reply::List((0..rest.parse::<usize>().unwrap()).map(|_| self.reply()).collect()),
            _ => panic!("{line}"),
        }
    }
}

/// Runs the same for several things at once, each as a task of its own: servers spend their time waiting.
pub async fn at_once<T, F>(things: impl IntoIterator<Item = T>, run: impl Fn(T) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let tasks: Vec<_> = things.into_iter().map(|thing| tokio::spawn(run(thing))).collect();
    for task in tasks {
        if let Err(error) = task.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Tick::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Writes every kind of data, in two databases. `mark` makes values differ.
pub fn write_all_kinds(client: &mut Client, mark: &str) {
    client.run(&["SELECT", "0"]);
    client.run(&["SET", "text", mark]);
    client.run(&["SET", "number", "41"]);
    client.run(&["INCR", "number"]);
    client.run_bytes(&[b"SET", b"bin\x00\r\n\xff", b"\x00\r\n*3\r\n$3\r\nSET\r\n\xfe"]);
    client.run(&["RPUSH", "list", "a", mark, "c"]);
    client.run(&["SADD", "set", "a", mark]);
    client.run(&["ZADD", "zset", "1.5", "a", "2", mark]);
    client.run(&["HSET", "hash", "f", mark, "g", "2"]);
    client.run(&["XADD", "stream", "*", "field", mark]);
    client.try_run(&["XGROUP", "CREATE", "stream", "group", "0"]);
    client.run(&["XREADGROUP", "GROUP", "group", "me", "COUNT", "1", "STREAMS", "stream", ">"]);
    client.run(&["PFADD", "hll", mark]);
    client.run(&["SETBIT", "bits", "100", "1"]);
    client.run(&["GEOADD", "geo", "13.4", "52.5", mark]);
    client.run(&[
        "FUNCTION",
        "LOAD",
        "REPLACE",
        "#!lua name=lib\nredis.register_function('f', function() return 1 end)",
    ]);
    client.run(&["MULTI"]);
    client.run(&["SET", "multi-a", mark]);
    client.run(&["SET", "multi-b", mark]);
    client.run(&["EXEC"]);
    client.run(&["EVAL", "redis.call('SET','scripted',ARGV[1]); redis.call('INCR','scripted-n')", "0", mark]);
    client.run(&["SET", "mortal", mark, "PX", "100000"]);
    client.run(&["SELECT", "7"]);
    client.run(&["SET", "seven", mark]);
    client.run(&["SELECT", "0"]);
}

/// A client of a Redis Cluster: goes where it is sent.
pub struct ClusterClient {
    clients: BTreeMap<u16, Client>,
    first: u16,
}

impl ClusterClient {
    pub fn new(ports: &[u16]) -> ClusterClient {
        ClusterClient { clients: BTreeMap::new(), first: ports[0] }
    }

    pub fn run(&mut self, words: &[&str]) -> Reply {
        let mut port = self.first;
        for _ in 0..5 {
            let client = self.clients.entry(port).or_insert_with(|| Client::connect(port));
            match client.try_run(words) {
                Reply::Error(error) if error.starts_with("MOVED ") => {
                    port = error.rsplit(':').next().unwrap().parse().unwrap();
                }
                Reply::Error(error) => panic!("{words:?}: {error}"),
                reply => return reply,
            }
        }
        panic!("{words:?} was sent in circles");
    }
}

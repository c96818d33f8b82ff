//! An engine of a few lines: numbers under names, a log of fixed records, failovers. Its servers are files in their nodes' folders.
//!
//! A record is 16 bytes: key, value, time in microseconds. Epochs are `e1`, `e2`, …; a failover begins another where the new primary's log
//! ends, and what the old one had behind that is lost.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mainstay_engine::*;
use mainstay_model::{Bracket, Branch, Cluster, Epoch, Instant, Lane, Offset, Place, Position};

pub const RECORD: u64 = 16;

/// One epoch: where it branched off, and its records from there on.
#[derive(Clone, Default)]
struct Era {
    name: String,
    parent: Option<(String, u64)>,
    first: u64,
    log: Vec<(u32, u32, i64)>,
}

impl Era {
    fn end(&self) -> u64 {
        self.first + self.log.len() as u64 * RECORD
    }
}

/// The truth of one cluster.
#[derive(Default)]
pub struct World {
    eras: Vec<Era>,
    now: i64,
    /// The log below this is no longer to be had.
    kept_from: u64,
    pub incarnation: String,
    /// How often a restored one was started.
    pub starts: u64,
    /// What the next snapshot forgets in silence.
    pub forget: Option<u32>,
}

pub type Values = BTreeMap<u32, u32>;

pub fn lane() -> Lane {
    Lane::new("log")
}

impl World {
    pub fn write(&mut self, key: u32, value: u32) -> Instant {
        let Instant(now) = self.now();
        self.eras.last_mut().unwrap().log.push((key, value, now));
        Instant(now)
    }

    /// The source's clock: never the same twice.
    pub fn now(&mut self) -> Instant {
        self.now = Instant::now().0.max(self.now + 1);
        Instant(self.now)
    }

    pub fn end(&self) -> Place {
        let era = self.eras.last().unwrap();
        Place::new(era.name.clone(), era.end())
    }

    /// A standby that lacks the last `lost` records takes over.
    pub fn fail_over(&mut self, lost: u64) {
        let era = self.eras.last_mut().unwrap();
        let keep = (era.log.len() as u64).saturating_sub(lost);
        era.log.truncate(usize::try_from(keep).unwrap());
        let (parent, first) = (era.name.clone(), era.end());
        let name = format!("e{}", self.eras.len() + 1);
        self.eras.push(Era { name, parent: Some((parent, first)), first, log: vec![] });
    }

    /// The source throws away its log up to now.
    pub fn lose_log(&mut self) {
        self.kept_from = self.end().offset.low();
    }

    /// What is there at `at`.
    pub fn values_at(&self, at: Instant) -> Values {
        self.values(|_, time| time <= at.0)
    }

    /// What is below a place of the surviving history.
    pub fn values_below(&self, offset: u64) -> Values {
        self.values(|end, _| end <= offset)
    }

    fn values(&self, within: impl Fn(u64, i64) -> bool) -> Values {
        let mut values = Values::new();
        for era in &self.eras {
            for (n, (key, value, time)) in era.log.iter().enumerate() {
                if within(era.first + (n as u64 + 1) * RECORD, *time) {
                    values.insert(*key, *value);
                }
            }
        }
        values
    }

    fn branches(&self) -> Vec<Branch> {
        let branch = |era: &Era| Branch {
            epoch: Epoch(era.name.clone()),
            parent: era.parent.clone().map(|(epoch, offset)| Place::new(epoch, offset)),
            first: era.first.into(),
        };
        self.eras.iter().map(branch).collect()
    }
}

#[derive(Clone)]
pub struct Fake {
    world: Arc<Mutex<World>>,
}

impl Fake {
    /// An engine whose one cluster is `world`; lives as long as the tests.
    pub fn new(incarnation: &str) -> &'static Self {
        let era = Era { name: "e1".into(), ..Era::default() };
        let world = World { eras: vec![era], incarnation: incarnation.into(), ..World::default() };
        Box::leak(Box::new(Self { world: Arc::new(Mutex::new(world)) }))
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.to_owned();
    move |e| Error::io(what, e)
}

fn encode(values: &Values) -> Vec<u8> {
    values.iter().flat_map(|(k, v)| [k.to_be_bytes(), v.to_be_bytes()].concat()).collect()
}

pub fn decode(bytes: &[u8]) -> Values {
    let word = |b: &[u8]| u32::from_be_bytes(b.try_into().unwrap());
    bytes.chunks_exact(8).map(|c| (word(&c[..4]), word(&c[4..]))).collect()
}

/// What a restored node holds.
pub fn read_node(layout: &Layout) -> Option<Values> {
    std::fs::read(layout.nodes[0].data().join("values")).ok().map(|bytes| decode(&bytes))
}

pub fn is_running(layout: &Layout) -> bool {
    layout.nodes.iter().any(|n| n.dir.join("running").exists())
}

impl Engine for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn check(&self, _: &Cluster) -> Vec<Mistake> {
        vec![]
    }
    fn write_place(&self, place: &Place) -> String {
        format!("{}:{}", place.epoch, place.offset.low())
    }
    fn read_place(&self, text: &str) -> Result<Place> {
        let parsed = text.split_once(':').and_then(|(e, o)| Some(Place::new(e, o.parse().ok()?)));
        parsed.ok_or_else(|| Error::new(Kind::Invalid, "a place is EPOCH:OFFSET"))
    }
    fn snapshot(&self) -> Option<&dyn Snapshot> {
        Some(self)
    }
    fn follow(&self) -> Option<&dyn Follow> {
        Some(self)
    }
    fn restore(&self) -> Option<&dyn Restore> {
        Some(self)
    }
    fn replay(&self) -> Option<&dyn Replay> {
        Some(self)
    }
    fn observe(&self) -> Option<&dyn Observe> {
        Some(self)
    }
    fn launch(&self) -> Option<&dyn Launch> {
        Some(self)
    }
    fn prove(&self) -> Option<&dyn Prove> {
        Some(self)
    }
}

#[async_trait]
impl Snapshot for Fake {
    async fn snapshot(
        &self,
        _: &Access,
        _: &SnapshotOptions,
        sink: Arc<dyn SnapshotSink>,
        _: Arc<dyn Progress>,
    ) -> Result<Taken> {
        let (mut values, end, at, incarnation, branches) = {
            let mut world = self.world();
            let (end, now) = (world.end(), world.now());
            (world.values_below(end.offset.low()), end, now, world.incarnation.clone(), world.branches())
        };
        if let Some(key) = self.world().forget.take() {
            values.remove(&key);
        }
        // Some that never changes, and what does.
        let files = vec![
            ("base".to_owned(), vec![7_u8; 40_000]),
            ("values".to_owned(), encode(&values)),
            ("small/label".to_owned(), end.offset.to_string().into_bytes()),
        ];
        for (path, content) in files {
            let sink = sink.clone();
            let put = move || {
                let spec = FileSpec { path, kind: FileKind::Regular, mode: 0o600, cut: Cut::Pages(8192) };
                sink.put(&spec, &mut &content[..])
            };
            tokio::task::spawn_blocking(put).await.map_err(|e| Error::new(Kind::Io, e.to_string()))??;
        }
        let position = Position::single(lane(), end);
        Ok(Taken {
            started: position.clone(),
            position,
            at: Bracket::exactly(at),
            incarnation: Some(incarnation),
            version: "1".into(),
            branches: branches.into_iter().map(|b| (lane(), b)).collect(),
            meta: serde_json::Value::Null,
        })
    }
}

#[async_trait]
impl Follow for Fake {
    async fn lanes(&self, _: &Access) -> Result<Vec<Lane>> {
        Ok(vec![lane()])
    }
    async fn tip(&self, _: &Access, _: &Lane) -> Result<Place> {
        Ok(self.world().end())
    }
    async fn follow(&self, _: &Access, _: &Lane, from: &Place, sink: &dyn LogSink) -> Result<Never> {
        let mut at = from.clone();
        loop {
            let step = self.next_step(&at)?;
            match step {
                FollowStep::Chunk(chunk, end) => {
                    sink.append(chunk).await?;
                    sink.sync().await?;
                    at = end;
                }
                FollowStep::Branch(branch) => {
                    at = Place { epoch: branch.epoch.clone(), offset: branch.first };
                    sink.branch(branch, Some(Bytes::from_static(b"history"))).await?;
                }
                FollowStep::Idle(now) => {
                    sink.beat(&at, Bracket::exactly(now)).await?;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }
    async fn release(&self, _: &Access) -> Result<()> {
        Ok(())
    }
}

enum FollowStep {
    Chunk(Chunk, Place),
    Branch(Branch),
    Idle(Instant),
}

impl Fake {
    fn next_step(&self, at: &Place) -> Result<FollowStep> {
        let mut world = self.world();
        let now = world.now();
        let Some(index) = world.eras.iter().position(|e| e.name == at.epoch.0) else {
            return Err(Error::new(Kind::LogGone, "that epoch was never here"));
        };
        let (era, offset) = (&world.eras[index], at.offset.low());
        let next = world.eras.get(index + 1);
        if offset > era.end() {
            return Err(Error::new(
                Kind::Diverged { branched: Some(Place::new(era.name.clone(), era.end())) },
                "branched",
            ));
        }
        if offset < world.kept_from {
            return Err(Error::new(Kind::LogGone, "the source threw that away"));
        }
        if offset < era.end() {
            let skip = usize::try_from((offset - era.first) / RECORD).unwrap();
            let (mut bytes, mut times) = (Vec::new(), Vec::new());
            for (n, (key, value, time)) in era.log[skip..].iter().take(8).enumerate() {
                bytes.extend([&key.to_be_bytes()[..], &value.to_be_bytes(), &time.to_be_bytes()].concat());
                let offset = Offset::from(offset + (n as u64 + 1) * RECORD);
                times.push(TimeMark { offset, at: Bracket::exactly(Instant(*time)) });
            }
            let end = Place::new(era.name.clone(), offset + bytes.len() as u64);
            let chunk = Chunk { at: at.clone(), bytes: bytes.into(), times, carry: Some(String::new()) };
            return Ok(FollowStep::Chunk(chunk, end));
        }
        Ok(match next {
            Some(_) => FollowStep::Branch(world.branches()[index + 1].clone()),
            None => FollowStep::Idle(now),
        })
    }
}

#[async_trait]
impl Restore for Fake {
    async fn restore(&self, job: &RestoreJob<'_>) -> Result<()> {
        let data = job.layout.nodes[0].data();
        let files: Vec<_> =
            job.snapshot.files()?.into_iter().map(|(f, _)| (f.path.clone(), data.join(&f.path))).collect();
        tokio::task::yield_now().await;
        job.snapshot.place(&files, None, job.jobs, job.progress.as_ref())?;
        tokio::task::yield_now().await;
        let mut base = Vec::new();
        job.snapshot.open("base")?.read_to_end(&mut base).map_err(io("read base"))?;
        assert_eq!(base, vec![7_u8; 40_000]);
        Ok(())
    }
}

#[async_trait]
impl Replay for Fake {
    fn cut(&self, lane: &Lane, from: &Place, log: &dyn LogSource, target: &Target) -> Result<Cutting> {
        let mut place = from.clone();
        let mut behind = Instant::MAX;
        let mut below = Instant::MIN;
        'all: for (index, segment) in log.segments(lane).iter().enumerate() {
            for mark in log.read(lane, index)?.times {
                let here = Place { epoch: segment.first.epoch.clone(), offset: mark.offset };
                if mark.offset <= from.offset && here.epoch == from.epoch {
                    continue;
                }
                let within = match target {
                    Target::Time(at) => mark.at.latest <= *at,
                    Target::Place(to) => here.epoch != to.epoch || mark.offset <= to.offset,
                    Target::End => true,
                    Target::Name(_) => false,
                };
                if !within {
                    behind = mark.at.earliest;
                    break 'all;
                }
                (place, below) = (here, mark.at.latest);
            }
        }
        match target {
            Target::Name(_) => Err(Error::new(Kind::OutOfLog, "no such name")),
            Target::Place(to) if place.offset != to.offset => {
                Err(Error::new(Kind::Invalid, "not the end of a record"))
            }
            Target::Place(to) => {
                Ok(Cutting { place: to.clone(), at: Bracket { earliest: below, latest: behind } })
            }
            _ => Ok(Cutting { place, at: Bracket { earliest: below, latest: behind } }),
        }
    }

    async fn replay(&self, job: &RestoreJob<'_>) -> Result<Replayed> {
        let path = job.layout.nodes[0].data().join("values");
        let mut values = decode(&std::fs::read(&path).map_err(io("read values"))?);
        let (lane, from) = (lane(), &job.snapshot.taken().position);
        let (from, to) = (from.get(&lane).unwrap(), job.cut.get(&lane).unwrap());
        let mut reached = from.clone();
        for (index, segment) in job.log.segments(&lane).iter().enumerate() {
            if reached == *to {
                break;
            }
            tokio::task::yield_now().await;
            let bytes = job.log.read(&lane, index)?.bytes;
            for (n, record) in bytes.chunks_exact(16).enumerate() {
                let end = segment.first.offset.low() + (n as u64 + 1) * RECORD;
                let before = segment.first.epoch == from.epoch && end <= from.offset.low();
                let after = segment.first.epoch == to.epoch && end > to.offset.low();
                if before || after {
                    continue;
                }
                values.extend(decode(&record[..8]));
                reached = Place::new(segment.first.epoch.0.clone(), end);
            }
        }
        std::fs::write(&path, encode(&values)).map_err(io("write values"))?;
        std::fs::write(job.layout.nodes[0].dir.join("running"), b"").map_err(io("start"))?;
        self.world().starts += 1;
        tokio::task::yield_now().await;
        let position = Position::single(lane, reached);
        Ok(Replayed { position, notes: vec![] })
    }
}

#[async_trait]
impl Observe for Fake {
    async fn observe(&self, access: &Access) -> Result<View> {
        let role = |n: &NodeAccess| match n.data_dir.as_ref().and_then(|d| d.parent()) {
            Some(dir) if !dir.join("running").exists() => Role::Down,
            _ => Role::Primary,
        };
        let node = |n: &NodeAccess| NodeView {
            name: n.name.clone(),
            role: role(n),
            lag_seconds: None,
            note: String::new(),
        };
        let incarnation = Some(self.world().incarnation.clone());
        let nodes = access.nodes.iter().map(node).collect();
        Ok(View { version: None, incarnation, nodes, findings: vec![] })
    }
    fn uri(&self, _: &Access, node: &NodeAccess) -> String {
        format!("fake://{}:{}", node.host, node.port)
    }
}

#[async_trait]
impl Launch for Fake {
    fn find(&self, _: Option<&str>) -> Result<Installation> {
        Ok(Installation { version: "1".into(), bin: "/".into() })
    }
    fn ports_per_node(&self, _: &Cluster) -> usize {
        1
    }
    fn sandbox_nodes(&self, _: &Cluster) -> usize {
        1
    }
    fn run_as(&self) -> Option<&'static str> {
        None
    }
    async fn start(&self, layout: &Layout, _: &dyn Host) -> Result<()> {
        for node in &layout.nodes {
            tokio::task::yield_now().await;
            std::fs::create_dir_all(node.data()).map_err(io("make data"))?;
            std::fs::write(node.dir.join("running"), b"").map_err(io("start"))?;
        }
        Ok(())
    }
    async fn stop(&self, layout: &Layout, _: &dyn Host) -> Result<()> {
        for node in &layout.nodes {
            tokio::task::yield_now().await;
            remove(&node.dir.join("running"))?;
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", e)),
        _ => Ok(()),
    }
}

#[async_trait]
impl Prove for Fake {
    async fn integrity(
        &self,
        layout: &Layout,
        _: &dyn Host,
        snapshot: &dyn SnapshotSource,
    ) -> Result<Vec<Check>> {
        let check = |what: &str, expected: &str, found: String| Check {
            kind: "fake".into(),
            what: what.into(),
            expected: expected.into(),
            found,
        };
        Ok(vec![
            check("running", "true", is_running(layout).to_string()),
            check("files", "3", snapshot.files()?.len().to_string()),
        ])
    }
    async fn content(&self, access: &Access) -> Result<Vec<Content>> {
        let data = access.nodes[0].data_dir.as_ref().unwrap();
        let values = std::fs::read(data.join("values")).map_err(io("read values"))?;
        let digest = format!("{:?}", decode(&values));
        Ok(vec![Content { what: "values".into(), count: decode(&values).len() as i64, digest, tolerance: 0 }])
    }
}

/// Its servers are files: there are no processes.
pub struct NoProcesses {
    /// Where the nodes' folders are.
    pub dir: std::path::PathBuf,
}

#[async_trait]
impl Host for NoProcesses {
    async fn start(&self, _: &NodeCommand) -> Result<u32> {
        Err(Error::new(Kind::Unsupported, "no processes here"))
    }
    fn running(&self, node: &str) -> Option<u32> {
        self.dir.join(node).join("running").exists().then_some(1)
    }
    async fn stop(&self, _: &str, _: &str, _: Duration) -> Result<()> {
        Ok(())
    }
    async fn run(&self, _: &NodeCommand, _: Duration) -> Result<String> {
        Err(Error::new(Kind::Unsupported, "no processes here"))
    }
}

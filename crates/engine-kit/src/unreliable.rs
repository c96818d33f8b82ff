//! An engine that fails where a test wants it to: at the n-th call, or at random by a seed, with each kind of error.
//!
//! It fails before the call it stands in front of, so that nothing of that call has happened; and in the midst of long ones, by
//! the sinks and sources that it hands to the engine.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mainstay_engine::{
    Access, Check, Chunk, Content, Cutting, Engine, Error, FileSpec, Follow, Held, Hold, Host, Installation,
    Kind, Launch, Layout, LogSink, LogSource, Mark, Marked, Mistake, Never, NodeAccess, Observe, Progress,
    Prove, Replay, Replayed, Restore, RestoreJob, Result, Segment, SegmentData, Snapshot, SnapshotOptions,
    SnapshotSink, SnapshotSource, Stored, Taken, Target, View,
};
use mainstay_model::{Bracket, Branch, Cluster, Instant, Lane, Offset, Place};

/// When calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Never; calls are only counted.
    Never,
    /// The n-th call, from 1, and no other.
    At(u64),
    /// One call in so many, by a seed.
    OneIn {
        /// In how many.
        calls: u64,
        /// The same seed fails at the same calls.
        seed: u64,
    },
}

/// Decides which call fails, and counts. Shared by an engine and all that it hands out.
#[derive(Debug)]
pub struct Faults {
    when: When,
    kind: Kind,
    calls: AtomicU64,
    failed: AtomicU64,
}

impl Faults {
    /// Failures of that kind.
    pub fn new(when: When, kind: Kind) -> Arc<Self> {
        Arc::new(Self { when, kind, calls: AtomicU64::new(0), failed: AtomicU64::new(0) })
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// How many of them failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::SeqCst)
    }

    /// Counts a call; an error if it is to fail.
    ///
    /// # Errors
    /// The kind that was asked for.
    pub fn check(&self, what: &str) -> Result<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let fails = match self.when {
            When::Never => false,
            When::At(at) => call == at,
            When::OneIn { calls, seed } => mixed(seed.wrapping_add(call)).is_multiple_of(calls.max(1)),
        };
        if !fails {
            return Ok(());
        }
        self.failed.fetch_add(1, Ordering::SeqCst);
        Err(Error::new(self.kind.clone(), format!("{what}: failed on purpose (call {call})")))
    }
}

/// Numbers that look random (splitmix64).
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Every kind of error, to fail with each in turn.
pub fn kinds() -> Vec<Kind> {
    vec![
        Kind::Unreachable,
        Kind::Refused,
        Kind::NotInstalled,
        Kind::Server,
        Kind::LogGone,
        Kind::Diverged { branched: None },
        Kind::Ambiguous { candidates: vec!["1:1".to_owned(), "1:2".to_owned()] },
        Kind::OutOfLog,
        Kind::Damaged,
        Kind::SpoolFull,
        Kind::Cancelled,
        Kind::Deadline,
        Kind::Io,
        Kind::Unsupported,
        Kind::Invalid,
    ]
}

/// `inner`, failing by `faults`.
#[derive(Clone, Debug)]
pub struct Unreliable<E> {
    inner: E,
    faults: Arc<Faults>,
}

impl<E: Engine> Unreliable<E> {
    /// Puts `faults` in front of every call of `inner`.
    pub fn new(inner: E, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

/// A capability of `inner` that is there, since ours was only handed out then.
fn have<T>(capability: Option<T>) -> Result<T> {
    capability.ok_or_else(|| Error::new(Kind::Unsupported, "the engine has no such capability"))
}

impl<E: Engine> Engine for Unreliable<E> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn aliases(&self) -> &'static [&'static str] {
        self.inner.aliases()
    }
    fn check(&self, cluster: &Cluster) -> Vec<Mistake> {
        self.inner.check(cluster)
    }
    fn write_place(&self, place: &Place) -> String {
        self.inner.write_place(place)
    }
    fn read_place(&self, text: &str) -> Result<Place> {
        self.inner.read_place(text)
    }
    fn snapshot(&self) -> Option<&dyn Snapshot> {
        self.inner.snapshot().map(|_| self as &dyn Snapshot)
    }
    fn follow(&self) -> Option<&dyn Follow> {
        self.inner.follow().map(|_| self as &dyn Follow)
    }
    fn mark(&self) -> Option<&dyn Mark> {
        self.inner.mark().map(|_| self as &dyn Mark)
    }
    fn hold(&self) -> Option<&dyn Hold> {
        self.inner.hold().map(|_| self as &dyn Hold)
    }
    fn restore(&self) -> Option<&dyn Restore> {
        self.inner.restore().map(|_| self as &dyn Restore)
    }
    fn replay(&self) -> Option<&dyn Replay> {
        self.inner.replay().map(|_| self as &dyn Replay)
    }
    fn observe(&self) -> Option<&dyn Observe> {
        self.inner.observe().map(|_| self as &dyn Observe)
    }
    fn launch(&self) -> Option<&dyn Launch> {
        self.inner.launch().map(|_| self as &dyn Launch)
    }
    fn prove(&self) -> Option<&dyn Prove> {
        self.inner.prove().map(|_| self as &dyn Prove)
    }
}

#[async_trait]
impl<E: Engine> Snapshot for Unreliable<E> {
    async fn snapshot(
        &self,
        access: &Access,
        options: &SnapshotOptions,
        sink: Arc<dyn SnapshotSink>,
        progress: Arc<dyn Progress>,
    ) -> Result<Taken> {
        self.faults.check("snapshot")?;
        let sink = Arc::new(UnreliableSink { inner: sink, faults: Arc::clone(&self.faults) });
        let taken = have(self.inner.snapshot())?.snapshot(access, options, sink, progress).await?;
        self.faults.check("snapshot's end")?;
        Ok(taken)
    }
}

struct UnreliableSink {
    inner: Arc<dyn SnapshotSink>,
    faults: Arc<Faults>,
}

impl SnapshotSink for UnreliableSink {
    fn put(&self, file: &FileSpec, content: &mut dyn Read) -> Result<Stored> {
        self.faults.check("put")?;
        self.inner.put(file, content)
    }
}

#[async_trait]
impl<E: Engine> Follow for Unreliable<E> {
    async fn lanes(&self, access: &Access) -> Result<Vec<Lane>> {
        self.faults.check("lanes")?;
        have(self.inner.follow())?.lanes(access).await
    }
    async fn tip(&self, access: &Access, lane: &Lane) -> Result<Place> {
        self.faults.check("tip")?;
        have(self.inner.follow())?.tip(access, lane).await
    }
    async fn follow(&self, access: &Access, lane: &Lane, from: &Place, sink: &dyn LogSink) -> Result<Never> {
        self.faults.check("follow")?;
        let sink = UnreliableLogSink { inner: sink, faults: &self.faults };
        have(self.inner.follow())?.follow(access, lane, from, &sink).await
    }
    async fn release(&self, access: &Access) -> Result<()> {
        self.faults.check("release")?;
        have(self.inner.follow())?.release(access).await
    }
}

struct UnreliableLogSink<'a> {
    inner: &'a dyn LogSink,
    faults: &'a Faults,
}

#[async_trait]
impl LogSink for UnreliableLogSink<'_> {
    async fn append(&self, chunk: Chunk) -> Result<()> {
        self.faults.check("append")?;
        self.inner.append(chunk).await
    }
    async fn append_counted(&self, chunk: Chunk, end: Offset) -> Result<()> {
        self.faults.check("append")?;
        self.inner.append_counted(chunk, end).await
    }
    async fn sync(&self) -> Result<Place> {
        self.faults.check("sync")?;
        self.inner.sync().await
    }
    async fn branch(&self, branch: Branch, history: Option<Bytes>) -> Result<()> {
        self.faults.check("branch")?;
        self.inner.branch(branch, history).await
    }
    async fn beat(&self, at: &Place, time: Bracket) -> Result<()> {
        self.inner.beat(at, time).await
    }
    fn vaulted(&self) -> Option<Place> {
        self.inner.vaulted()
    }
    async fn before(&self, from: &Place) -> Result<Option<Chunk>> {
        self.faults.check("before")?;
        self.inner.before(from).await
    }
}

#[async_trait]
impl<E: Engine> Mark for Unreliable<E> {
    async fn mark(&self, access: &Access, id: &str) -> Result<Marked> {
        self.faults.check("mark")?;
        have(self.inner.mark())?.mark(access, id).await
    }
}

#[async_trait]
impl<E: Engine> Hold for Unreliable<E> {
    async fn hold(&self, access: &Access, limit: Duration) -> Result<Box<dyn Held>> {
        self.faults.check("hold")?;
        have(self.inner.hold())?.hold(access, limit).await
    }
    fn is_quiet(&self, lane: &Lane, carry: &str, log: &[u8]) -> bool {
        self.inner.hold().is_some_and(|hold| hold.is_quiet(lane, carry, log))
    }
}

#[async_trait]
impl<E: Engine> Restore for Unreliable<E> {
    async fn restore(&self, job: &RestoreJob<'_>) -> Result<()> {
        self.faults.check("restore")?;
        have(self.inner.restore())?.restore(job).await?;
        self.faults.check("restore's end")
    }
}

#[async_trait]
impl<E: Engine> Replay for Unreliable<E> {
    fn cut(&self, lane: &Lane, from: &Place, log: &dyn LogSource, target: &Target) -> Result<Cutting> {
        self.faults.check("cut")?;
        have(self.inner.replay())?.cut(
            lane,
            from,
            &UnreliableLog { inner: log, faults: &self.faults },
            target,
        )
    }
    async fn replay(&self, job: &RestoreJob<'_>) -> Result<Replayed> {
        self.faults.check("replay")?;
        let log = UnreliableLog { inner: job.log, faults: &self.faults };
        let job = RestoreJob { log: &log, progress: Arc::clone(&job.progress), ..*job };
        have(self.inner.replay())?.replay(&job).await
    }
}

struct UnreliableLog<'a> {
    inner: &'a dyn LogSource,
    faults: &'a Faults,
}

impl LogSource for UnreliableLog<'_> {
    fn lanes(&self) -> Vec<Lane> {
        self.inner.lanes()
    }
    fn segments(&self, lane: &Lane) -> Vec<Segment> {
        self.inner.segments(lane)
    }
    fn read(&self, lane: &Lane, index: usize) -> Result<SegmentData> {
        self.faults.check("read log")?;
        self.inner.read(lane, index)
    }
    fn branches(&self, lane: &Lane) -> Vec<(Branch, Option<Bytes>)> {
        self.inner.branches(lane)
    }
    fn complete_to(&self, lane: &Lane) -> Option<Instant> {
        self.inner.complete_to(lane)
    }
}

#[async_trait]
impl<E: Engine> Observe for Unreliable<E> {
    async fn observe(&self, access: &Access) -> Result<View> {
        self.faults.check("observe")?;
        have(self.inner.observe())?.observe(access).await
    }
    fn uri(&self, access: &Access, node: &NodeAccess) -> String {
        self.inner.observe().map_or_else(String::new, |observe| observe.uri(access, node))
    }
}

#[async_trait]
impl<E: Engine> Launch for Unreliable<E> {
    fn find(&self, version: Option<&str>) -> Result<Installation> {
        have(self.inner.launch())?.find(version)
    }
    fn ports_per_node(&self, cluster: &Cluster) -> usize {
        self.inner.launch().map_or(1, |launch| launch.ports_per_node(cluster))
    }
    fn sandbox_nodes(&self, cluster: &Cluster) -> usize {
        self.inner.launch().map_or(1, |launch| launch.sandbox_nodes(cluster))
    }
    fn run_as(&self) -> Option<&'static str> {
        self.inner.launch().and_then(Launch::run_as)
    }
    async fn start(&self, layout: &Layout, host: &dyn Host) -> Result<()> {
        self.faults.check("start")?;
        have(self.inner.launch())?.start(layout, host).await
    }
    async fn stop(&self, layout: &Layout, host: &dyn Host) -> Result<()> {
        self.faults.check("stop")?;
        have(self.inner.launch())?.stop(layout, host).await
    }
}

#[async_trait]
impl<E: Engine> Prove for Unreliable<E> {
    async fn integrity(
        &self,
        layout: &Layout,
        host: &dyn Host,
        snapshot: &dyn SnapshotSource,
    ) -> Result<Vec<Check>> {
        self.faults.check("integrity")?;
        have(self.inner.prove())?.integrity(layout, host, snapshot).await
    }
    async fn content(&self, access: &Access) -> Result<Vec<Content>> {
        self.faults.check("content")?;
        have(self.inner.prove())?.content(access).await
    }
}

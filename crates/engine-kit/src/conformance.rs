//! The suite that every adapter passes: what the contract promises, tried on a real cluster of the engine.
//!
//! An adapter's test makes a [`Fixture`] and calls [`run`], which fails by panicking, with what was expected. It asks of the engine
//! whatever capabilities it has; where one is missing, what needs it is left out. It uses one cluster and a handful of sandboxes,
//! so that it can be run on engines that take seconds to start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mainstay_engine::{
    Access, Cutting, Engine, Follow, Host, Kind, Layout, Marked, Quiet, RestoreJob, SnapshotOptions,
    SnapshotSource, Taken, Target, Ttl, Way,
};
use mainstay_model::{Instant, Lane, Position};

use crate::memory::{MemoryLog, MemoryLogSource, MemorySnapshot, MemorySnapshotSource};

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Keys and values, in whatever form the engine keeps them.
pub type Content = BTreeMap<String, String>;

/// What the suite needs of an adapter's test.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The adapter.
    fn engine(&self) -> &dyn Engine;
    /// Starts a new cluster with replicas, if the engine has such, and nothing in it.
    async fn start(&self) -> Layout;
    /// A layout with the same topology as a sandbox of that cluster has, whose folders are empty, to restore into.
    async fn sandbox(&self, of: &Layout) -> Layout;
    /// The processes of one of these layouts.
    fn host(&self, layout: &Layout) -> Box<dyn Host>;
    /// Sets a key, and returns when the engine has said that it did.
    async fn set(&self, layout: &Layout, key: &str, value: &str);
    /// Deletes a key.
    async fn delete(&self, layout: &Layout, key: &str);
    /// All keys that were set and not deleted.
    async fn content(&self, layout: &Layout) -> Content;
    /// Kills the primary and has a replica take over; returns when writes are taken again. `false`: the engine has no such thing.
    async fn fail_over(&self, layout: &Layout) -> bool;
    /// Makes sure that what was written before and what is written after can be told apart by time, and gives a time in between, by
    /// the servers' clock.
    async fn instant_between(&self) -> Instant {
        // More than the coarsest of clocks: Redis's is looked at ten times a second.
        tokio::time::sleep(Duration::from_millis(400)).await;
        let between = Instant::now();
        tokio::time::sleep(Duration::from_millis(400)).await;
        between
    }
}

/// Runs the suite.
pub async fn run(fixture: &dyn Fixture) {
    let layout = fixture.start().await;
    let suite = Suite { fixture, access: layout.access(), layout };
    for number in 0..20 {
        suite.set(&format!("first-{number}"), "0").await;
    }
    suite.a_snapshot_stands_alone().await;
    let past = suite.the_log_is_followed_without_a_gap().await;
    suite.every_target_is_reached(&past).await;
    suite.writes_wait_while_they_are_held().await;
    suite.a_log_begins_at_its_tip().await;
    suite.a_failover_is_followed().await;
    if let Some(follow) = suite.engine().follow() {
        follow.release(&suite.access).await.expect("release");
    }
    let launch = suite.engine().launch().expect("the engine is launched here");
    launch.stop(&suite.layout, &*fixture.host(&suite.layout)).await.expect("stop the cluster");
    let running =
        suite.layout.nodes.iter().filter_map(|node| fixture.host(&suite.layout).running(&node.name));
    assert_eq!(running.collect::<Vec<_>>(), Vec::<u32>::new(), "processes that still run");
}

struct Suite<'a> {
    fixture: &'a dyn Fixture,
    layout: Layout,
    access: Access,
}

/// What happened while the log was followed.
struct Past {
    first: MemorySnapshotSource,
    second: MemorySnapshotSource,
    log: MemoryLog,
    /// What was there at each mark.
    marks: Vec<(Marked, Content)>,
    /// What was there at one time.
    between: (Instant, Content),
}

impl Suite<'_> {
    fn engine(&self) -> &dyn Engine {
        self.fixture.engine()
    }

    async fn set(&self, key: &str, value: &str) {
        self.fixture.set(&self.layout, key, value).await;
    }

    async fn content(&self) -> Content {
        self.fixture.content(&self.layout).await
    }

    async fn snapshot(&self) -> MemorySnapshotSource {
        let sink = MemorySnapshot::new();
        let options = SnapshotOptions { way: Way::Auto, jobs: 2, label: "conformance".to_owned() };
        let snapshot = self.engine().snapshot().expect("the engine is copied");
        let copied = snapshot.snapshot(&self.access, &options, Arc::clone(&sink) as _, Arc::new(Quiet));
        let taken = within("a snapshot", copied).await.expect("a snapshot");
        self.places_are_written_and_read(&taken);
        sink.finish(taken)
    }

    fn places_are_written_and_read(&self, taken: &Taken) {
        for place in taken.position.0.values().chain(taken.started.0.values()) {
            let text = self.engine().write_place(place);
            assert_eq!(self.engine().read_place(&text).expect("a place that was written"), *place, "{text}");
        }
        for wrong in ["", "x", "1:", "::", "-1:-1"] {
            let error = self.engine().read_place(wrong).expect_err("not a place");
            assert_eq!(error.kind, Kind::Invalid, "{wrong}");
        }
    }

    /// Restores to `cut` in a sandbox, hands that to `look`, and stops it.
    async fn restored(
        &self,
        snapshot: &MemorySnapshotSource,
        log: &MemoryLogSource,
        cut: &Position,
        at: Instant,
    ) -> (Content, Option<Vec<mainstay_engine::Content>>) {
        let layout = self.fixture.sandbox(&self.layout).await;
        let host = self.fixture.host(&layout);
        let job = RestoreJob {
            layout: &layout,
            host: &*host,
            snapshot,
            log,
            cut,
            at,
            ttl: Ttl::Shift,
            in_place: false,
            compared: true,
            jobs: 2,
            progress: Arc::new(Quiet),
        };
        let restore = self.engine().restore().expect("the engine is restored");
        within("a restore", restore.restore(&job)).await.expect("restore");
        let replay = self.engine().replay().expect("log is replayed");
        let replayed = within("a replay", replay.replay(&job)).await.expect("replay");
        assert_eq!(replayed.position, *cut, "replay stops where it is told to");
        let content = self.fixture.content(&layout).await;
        let mut proven = None;
        if let Some(prove) = self.engine().prove() {
            let checks = within("integrity checks", prove.integrity(&layout, &*host, snapshot)).await;
            for check in checks.expect("integrity checks") {
                assert!(
                    check.passed(),
                    "{} of {}: {}, not {}",
                    check.kind,
                    check.what,
                    check.found,
                    check.expected
                );
            }
            proven = Some(prove.content(&layout.access()).await.expect("the content's digests"));
        }
        let launch = self.engine().launch().expect("the engine is launched here");
        launch.stop(&layout, &*host).await.expect("stop a sandbox");
        (content, proven)
    }

    async fn a_snapshot_stands_alone(&self) {
        let expected = self.content().await;
        let snapshot = self.snapshot().await;
        self.set("after", "the snapshot").await;
        let taken = snapshot.taken();
        let nothing = MemoryLog::new().source(0);
        let (content, _) = self.restored(&snapshot, &nothing, &taken.position, taken.at.latest).await;
        assert_eq!(content, expected, "what was there when the snapshot was taken");
        self.fixture.delete(&self.layout, "after").await;
    }

    /// Follows all lanes into `log`, each from where it is durable, while `body` runs.
    async fn followed<T>(&self, log: &MemoryLog, body: impl Future<Output = T>) -> T {
        let follow = self.engine().follow().expect("the log is followed");
        let lanes = log.lanes();
        assert!(!lanes.is_empty(), "the engine has no lane");
        let all = futures::future::join_all(lanes.iter().map(|lane| self.follow_lane(follow, log, lane)));
        tokio::select! {
            _ = all => panic!("following never ends"),
            result = body => result,
        }
    }

    async fn follow_lane(&self, follow: &dyn Follow, log: &MemoryLog, lane: &Lane) {
        loop {
            let from = log.durable(lane).expect("a lane that was begun");
            let sink = log.sink(lane, &from);
            let error = match follow.follow(&self.access, lane, &from, &sink).await {
                Err(error) => error,
                Ok(never) => match never {},
            };
            match error.kind {
                Kind::Unreachable => tokio::time::sleep(Duration::from_millis(50)).await,
                Kind::Diverged { branched: Some(place) } => log.end_branch(lane, &place),
                _ => panic!("follow {lane} from {from:?}: {error} ({:?})", error.source),
            }
        }
    }

    async fn mark(&self, id: &str) -> Marked {
        let mark = self.engine().mark().expect("the engine can be marked");
        within("a mark", mark.mark(&self.access, id)).await.expect("mark")
    }

    async fn caught_up(&self, log: &MemoryLog, position: &Position) {
        for (lane, place) in &position.0 {
            log.wait_for(lane, place, LIMIT).await.expect("the log catches up");
        }
    }

    async fn the_log_is_followed_without_a_gap(&self) -> Past {
        let first = self.snapshot().await;
        let log = MemoryLog::new();
        for (lane, place) in &first.taken().position.0 {
            log.begin(lane, place);
        }
        let mut marks: Vec<(Marked, Content)> = Vec::new();
        // Three links; what is written between two of them is not missed.
        let (mut second, mut between) = (None, None);
        for round in 0..3 {
            self.set(&format!("unfollowed-{round}"), "1").await;
            let body = async {
                for number in 0..8 {
                    self.set(&format!("followed-{number}"), &format!("{round}")).await;
                }
                self.fixture.delete(&self.layout, &format!("first-{round}")).await;
                self.fixture.delete(&self.layout, &format!("followed-{}", round + 3)).await;
                let marked = self.mark(&format!("round-{round}")).await;
                let content = self.content().await;
                self.set(&format!("behind-{round}"), &"x".repeat(5000)).await;
                self.caught_up(&log, &marked.position).await;
                (marked, content)
            };
            marks.push(self.followed(&log, body).await);
            if round == 1 {
                let content = self.content().await;
                // Where a log has no times of its own, they are those at which it was followed.
                let body = async {
                    let at = self.fixture.instant_between().await;
                    for lane in log.lanes() {
                        log.wait_for_time(&lane, at, LIMIT).await.expect("an idle log is complete up to now");
                    }
                    at
                };
                between = Some((self.followed(&log, body).await, content));
                second = Some(self.snapshot().await);
            }
        }
        for pair in marks.windows(2) {
            let (earlier, later) = (&pair[0].0, &pair[1].0);
            assert!(earlier.at.earliest <= later.at.latest, "marks are in order of time");
            for (lane, place) in &earlier.position.0 {
                let after = later.position.get(lane).expect("lanes stay");
                assert!(
                    after.epoch == place.epoch && after.offset > place.offset,
                    "marks are in order: {pair:?}"
                );
            }
        }
        let at_end = Instant::now();
        let complete = async {
            for lane in log.lanes() {
                log.wait_for_time(&lane, at_end, LIMIT).await.expect("an idle log is complete up to now");
            }
        };
        self.followed(&log, complete).await;
        Past { first, second: second.expect("round 1"), log, marks, between: between.expect("round 1") }
    }

    /// The cut that a target stands for in every lane, and the brackets.
    fn cut(
        &self,
        snapshot: &MemorySnapshotSource,
        log: &MemoryLogSource,
        target: &Target,
    ) -> Vec<(Lane, Cutting)> {
        let replay = self.engine().replay().expect("log is replayed");
        let from = &snapshot.taken().position;
        let cut = |(lane, from)| match replay.cut(lane, from, log, target) {
            Ok(cutting) => (lane.clone(), cutting),
            Err(error) => panic!("{target:?} in {lane}: {error} ({:?})", error.source),
        };
        from.0.iter().map(cut).collect()
    }

    async fn every_target_is_reached(&self, past: &Past) {
        let log = past.log.source(2000);
        let (last, content) = past.marks.last().expect("there are marks");
        // Crossed: one position from two snapshots.
        let mut proven = Vec::new();
        for snapshot in [&past.first, &past.second] {
            for (lane, place) in &last.position.0 {
                let replay = self.engine().replay().expect("log is replayed");
                let from = snapshot.taken().position.get(lane).expect("lanes stay");
                let found =
                    replay.cut(lane, from, &log, &Target::Place(place.clone())).expect("a marked place");
                assert_eq!(found.place, *place);
            }
            let (restored, contents) = self.restored(snapshot, &log, &last.position, last.at.latest).await;
            assert_eq!(&restored, content, "what was there at the last mark");
            proven.extend(contents);
        }
        if let [one, other] = &proven[..] {
            for (one, other) in one.iter().zip(other) {
                assert_eq!(one.what, other.what);
                assert!((one.count - other.count).abs() <= one.tolerance, "{one:?} and {other:?}");
                assert!(one.digest == other.digest || one.tolerance > 0, "{one:?} and {other:?}");
            }
            assert_eq!(one.len(), other.len(), "the same objects");
        }
        let (first, content) = &past.marks[0];
        let (restored, _) = self.restored(&past.first, &log, &first.position, first.at.latest).await;
        assert_eq!(&restored, content, "what was there at the first mark");

        let (between, content) = &past.between;
        let cuttings = self.cut(&past.first, &log, &Target::Time(*between));
        for (lane, cutting) in &cuttings {
            let at = cutting.at;
            assert!(at.earliest <= *between && *between <= at.latest, "{between} in {lane}: {cutting:?}");
        }
        let position = cuttings.into_iter().map(|(lane, cutting)| (lane, cutting.place)).collect();
        let (restored, _) = self.restored(&past.first, &log, &position, *between).await;
        assert_eq!(&restored, content, "what was there at {between}");

        let replay = self.engine().replay().expect("log is replayed");
        for (lane, from) in &past.first.taken().position.0 {
            let late = Target::Time(Instant::now() + Duration::from_secs(3600));
            for target in [late, Target::Name("never-was".to_owned())] {
                let error =
                    replay.cut(lane, from, &log, &target).expect_err("a target that is not in the log");
                assert!(matches!(error.kind, Kind::OutOfLog | Kind::Unsupported), "{target:?}: {error}");
            }
        }
    }

    async fn writes_wait_while_they_are_held(&self) {
        let Some(hold) = self.engine().hold() else { return };
        let log = self.log_from_here().await;
        let body = async {
            let held = within("a hold", hold.hold(&self.access, LIMIT)).await.expect("hold");
            let before = held.marked().clone();
            let mut write = std::pin::pin!(self.set("held", "at last"));
            let early = tokio::time::timeout(Duration::from_millis(300), &mut write).await;
            assert!(early.is_err(), "a write does not end while it is held");
            let released = within("a release", held.release()).await.expect("release");
            assert_eq!(released.broken, None, "every node stood still");
            within("a held write", write).await;
            let after = self.mark("after-the-hold").await;
            self.caught_up(&log, &after.position).await;
            (before, released)
        };
        let (before, released) = self.followed(&log, body).await;
        for (lane, from) in &before.position.0 {
            let to = released.position.get(lane).expect("lanes stay");
            let quiet = log.slice(lane, from, to).expect("the log of the hold");
            assert!(hold.is_quiet(lane, &quiet.0, &quiet.1), "nothing was written to {lane} meanwhile");
        }
        assert_eq!(self.content().await.get("held").map(String::as_str), Some("at last"));

        // Nobody lets go: the server does.
        let held = within("a hold", hold.hold(&self.access, Duration::from_millis(300))).await.expect("hold");
        within("a write that outlasts a hold", self.set("outlasted", "1")).await;
        let released = within("a late release", held.release()).await;
        assert!(released.is_ok_and(|released| released.broken.is_some()), "a hold that ended is told");
        drop(within("a hold that is dropped", hold.hold(&self.access, LIMIT)).await.expect("hold"));
        within("a write after a dropped hold", self.set("dropped", "1")).await;
    }

    /// A log that begins now.
    async fn log_from_here(&self) -> MemoryLog {
        let follow = self.engine().follow().expect("the log is followed");
        let log = MemoryLog::new();
        for lane in within("the lanes", follow.lanes(&self.access)).await.expect("the lanes") {
            let tip = within("a tip", follow.tip(&self.access, &lane)).await.expect("a tip");
            log.begin(&lane, &tip);
        }
        log
    }

    async fn a_log_begins_at_its_tip(&self) {
        let log = self.log_from_here().await;
        let body = async {
            self.set("after-the-tip", "1").await;
            let marked = self.mark("after-the-tip").await;
            self.caught_up(&log, &marked.position).await;
        };
        self.followed(&log, body).await;
        assert!(log.lanes().iter().any(|lane| !log.bytes(lane).is_empty()), "what came after the tip");
    }

    async fn a_failover_is_followed(&self) {
        let snapshot = self.snapshot().await;
        let log = MemoryLog::new();
        for (lane, place) in &snapshot.taken().position.0 {
            log.begin(lane, place);
        }
        let body = async {
            self.set("before-the-failover", "1").await;
            let before = self.mark("before-the-failover").await;
            self.caught_up(&log, &before.position).await;
            if !within("a failover", self.fixture.fail_over(&self.layout)).await {
                return None;
            }
            within("a write after the failover", self.set("after-the-failover", "1")).await;
            let after = self.mark("after-the-failover").await;
            let content = self.content().await;
            self.caught_up(&log, &after.position).await;
            Some((before, after, content))
        };
        let Some((before, after, content)) = self.followed(&log, body).await else { return };
        for (lane, place) in &after.position.0 {
            let was = before.position.get(lane).expect("lanes stay");
            assert_ne!(was.epoch, place.epoch, "a failover begins another epoch in {lane}");
            let branches = log.source(2000);
            let branches = mainstay_engine::LogSource::branches(&branches, lane);
            assert!(branches.iter().any(|(branch, _)| branch.epoch == place.epoch), "{branches:?}");
        }
        let (restored, _) =
            self.restored(&snapshot, &log.source(2000), &after.position, after.at.latest).await;
        assert_eq!(restored, content, "what was there after the failover");
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what} took longer than {LIMIT:?}"),
    }
}

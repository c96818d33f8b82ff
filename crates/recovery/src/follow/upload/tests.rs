//! Uploads: tails, seals, retirement, failing stores.

use std::sync::Mutex;

use mainstay_engine::{Chunk, TimeMark};
use mainstay_model::{Branch, Epoch, Offset};

use super::*;
use crate::follow::spool::Limits;
use crate::history::{self, History};

/// Keeps what it is given, as a vault does, and fails when told to.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<KeptInner>>);

#[derive(Default)]
struct KeptInner {
    entries: Vec<LogEntry>,
    generation: u64,
    /// The pieces of earlier generations.
    pieces: Vec<history::Piece>,
    branches: Vec<history::Branched>,
    calls: u64,
    fail_every: Option<u64>,
}

#[async_trait]
impl Target for Kept {
    async fn put(&mut self, entry: &LogEntry) -> vault::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.calls += 1;
        let fails = inner.fail_every.is_some_and(|n| inner.calls.is_multiple_of(n));
        // Every other failure is one whose outcome was good after all.
        if !fails || inner.calls.is_multiple_of(2) {
            let (generation, seq) = (inner.generation, inner.entries.len() as u64);
            match entry {
                LogEntry::Tail(log) | LogEntry::Sealed(log) => {
                    assert_eq!(log.bytes, bytes(log.segment.first.offset.low(), log.bytes.len()));
                    assert_eq!(log.carry, format!("at {}", log.segment.first.offset.low()));
                    let Segment { first, last, bracket } = log.segment.clone();
                    let is_sealed = matches!(entry, LogEntry::Sealed(_));
                    inner.pieces.push(history::Piece { generation, seq, is_sealed, first, last, bracket });
                }
                LogEntry::Branch { branch, .. } => {
                    inner.branches.push(history::Branched { generation, seq, branch: branch.clone() });
                }
                _ => {}
            }
            inner.entries.push(entry.clone());
        }
        match fails {
            true => Err(vault::Error::Invalid("the store failed".to_owned())),
            false => Ok(()),
        }
    }
    async fn retire(&mut self) -> vault::Result<()> {
        Ok(())
    }
}

impl Kept {
    fn take(&self) -> Vec<String> {
        let show = |entry: &LogEntry| match entry {
            LogEntry::Tail(log) => format!("tail {}", range(&log.segment)),
            LogEntry::Sealed(log) => format!("sealed {}", range(&log.segment)),
            LogEntry::Beat { at, .. } => format!("beat {}", at.offset.low()),
            LogEntry::Branch { branch, .. } => format!("branch {}", branch.epoch),
            LogEntry::Hole { from, reason, .. } => format!("hole {} {reason}", from.offset.low()),
        };
        std::mem::take(&mut self.0.lock().unwrap().entries).iter().map(show).collect()
    }
    /// Where a reader finds the surviving log to begin and to end.
    fn reach(&self) -> (u64, u64) {
        let inner = self.0.lock().unwrap();
        let history = History::new(inner.pieces.clone(), inner.branches.clone(), vec![], vec![]);
        let line = history.lines().pop().unwrap();
        assert_eq!(line.runs.len(), 1, "{:?}", line.runs);
        (line.runs[0].first.offset.low(), line.runs[0].last.offset.low())
    }
}

fn range(segment: &Segment) -> String {
    format!("{}:{}-{}", segment.first.epoch, segment.first.offset.low(), segment.last.offset.low())
}

fn bytes(from: u64, len: usize) -> Bytes {
    (from..from + len as u64).map(|n| (n * 7 + n / 256) as u8).collect::<Vec<_>>().into()
}

fn append(spool: &Spool, len: usize, carries: bool) {
    let at = spool.end().unwrap();
    let from = at.offset.low();
    let end = Offset(at.offset.0 + len as u128);
    let time = Bracket::exactly(Instant(from as i64));
    let chunk = Chunk {
        at,
        bytes: bytes(from, len),
        times: vec![TimeMark { offset: end, at: time }],
        carry: carries.then(|| format!("at {from}")),
    };
    spool.append(&chunk, end).unwrap();
}

struct Bench {
    dir: tempfile::TempDir,
    spool: Arc<Spool>,
    kept: Kept,
    uploader: Uploader,
    vaulted: watch::Receiver<Vaulted>,
}

fn limits() -> Limits {
    Limits { disk_bytes_free_min: 0, file_bytes: 1000, ..Limits::default() }
}

fn uploader(spool: &Arc<Spool>, kept: &Kept, end: Option<Place>) -> (Uploader, watch::Receiver<Vaulted>) {
    let (vaulted, receiver) = watch::channel(Vaulted { end: end.clone(), ..Vaulted::default() });
    let pace = Pace { beat_every: Duration::ZERO, keep_sealed: Duration::ZERO, ..Pace::default() };
    let parts = Parts {
        spool: spool.clone(),
        target: Box::new(kept.clone()),
        pace,
        end,
        vaulted: Arc::new(vaulted),
        urgent: Arc::new(Notify::new()),
        long_reads: Arc::new(Semaphore::new(2)),
    };
    (Uploader::new(parts), receiver)
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let spool = Arc::new(Spool::open(dir.path(), limits()).unwrap().0);
    spool.begin(Place::new("1", 0)).unwrap();
    let kept = Kept::default();
    let (uploader, vaulted) = uploader(&spool, &kept, None);
    Bench { dir, spool, kept, uploader, vaulted }
}

impl Bench {
    async fn check(&mut self, expect: &[&str]) {
        self.spool.flush().unwrap();
        self.uploader.step().await.unwrap();
        assert_eq!(self.kept.take(), expect);
    }

    /// The process was killed and another one goes on, in a later generation.
    fn restart(self) -> Self {
        let Self { dir, spool, kept, uploader: old, vaulted } = self;
        let end = vaulted.borrow().end.clone();
        drop((old, spool, vaulted));
        kept.0.lock().unwrap().generation += 1;
        let spool = Arc::new(Spool::open(dir.path(), limits()).unwrap().0);
        let (uploader, vaulted) = uploader(&spool, &kept, end);
        Self { dir, spool, kept, uploader, vaulted }
    }
}

#[tokio::test]
async fn tails_hold_only_what_is_new_and_a_sealed_segment_supersedes_them() {
    let mut b = bench();
    b.check(&[]).await;
    append(&b.spool, 100, true);
    append(&b.spool, 50, true);
    b.check(&["tail 1:0-150"]).await;
    b.check(&[]).await;
    append(&b.spool, 950, true);
    b.check(&["tail 1:150-1100"]).await;
    append(&b.spool, 10, true);
    b.check(&["sealed 1:0-1100", "tail 1:1100-1110"]).await;
    assert_eq!(b.vaulted.borrow().end, Some(Place::new("1", 1110)));
    assert_eq!(b.vaulted.borrow().complete_to, Some(Instant(1100)));
    assert_eq!(b.spool.files().len(), 1, "what is sealed goes");
    assert!(b.spool.set_beat(&Place::new("1", 1110), Bracket::exactly(Instant(5000))));
    b.check(&["beat 1110"]).await;
    b.check(&[]).await;
    assert!(b.spool.set_beat(&Place::new("1", 1110), Bracket::exactly(Instant(6000))));
    append(&b.spool, 10, true);
    b.check(&["tail 1:1110-1120"]).await;
}

#[tokio::test]
async fn log_that_goes_on_in_the_midst_of_a_command_is_written_again_from_its_beginning() {
    let mut b = bench();
    append(&b.spool, 100, true);
    append(&b.spool, 100, true);
    b.check(&["tail 1:0-200"]).await;
    append(&b.spool, 100, false);
    b.check(&["sealed 1:100-300"]).await;
    append(&b.spool, 100, false);
    append(&b.spool, 100, true);
    b.check(&["sealed 1:100-500"]).await;
    append(&b.spool, 100, true);
    b.check(&["tail 1:500-600"]).await;
    b = b.restart();
    append(&b.spool, 500, false);
    b.check(&["sealed 1:500-1100"]).await;
    append(&b.spool, 5, true);
    b.check(&["sealed 1:500-1100", "tail 1:1100-1105"]).await;
    assert_eq!(b.kept.reach(), (0, 1105));
}

#[tokio::test]
async fn branches_and_holes_are_told_where_they_are() {
    let mut b = bench();
    append(&b.spool, 100, true);
    b.check(&["tail 1:0-100"]).await;
    let branch = |epoch: &str, from: &str, at: u64| Branch {
        epoch: Epoch(epoch.to_owned()),
        parent: Some(Place::new(from, at)),
        first: at.into(),
    };
    append(&b.spool, 20, true);
    b.spool.branch(branch("2", "1", 90), None).unwrap();
    append(&b.spool, 10, true);
    b.check(&["sealed 1:0-120", "branch 2", "tail 2:90-100"]).await;
    b = b.restart();
    append(&b.spool, 10, true);
    b.check(&["tail 2:100-110"]).await;
    b.spool.break_off("slot-lost").unwrap();
    b.check(&["hole 110 slot-lost"]).await;
    b.spool.begin(Place::new("2", 500)).unwrap();
    append(&b.spool, 10, true);
    b.check(&["sealed 2:100-110", "tail 2:500-510"]).await;
    assert_eq!(b.vaulted.borrow().holes, 1);
}

#[tokio::test]
async fn a_failing_vault_gets_everything_in_the_end() {
    let mut b = bench();
    b.kept.0.lock().unwrap().fail_every = Some(3);
    let mut restarts = 0;
    for n in 0..400_usize {
        append(&b.spool, 1 + n * 37 % 400, n % 5 != 3);
        b.spool.flush().unwrap();
        let _ = b.uploader.step().await;
        if n % 41 == 40 {
            // Killed: what it believed to be in the vault is looked up again.
            let mut end = b.vaulted.borrow().clone();
            end.end = Some(Place::new("1", b.kept.reach().1));
            b.vaulted = watch::channel(end).1;
            b = b.restart();
            restarts += 1;
        }
    }
    b.kept.0.lock().unwrap().fail_every = None;
    b.uploader.step().await.unwrap();
    assert!(restarts > 5);
    assert_eq!(b.kept.reach(), (0, b.spool.end().unwrap().offset.low()));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_given_up_with_a_hole() {
    let mut b = bench();
    append(&b.spool, 100, true);
    b.check(&["tail 1:0-100"]).await;
    append(&b.spool, 950, true);
    append(&b.spool, 10, true);
    b.spool.flush().unwrap();
    let path = b.dir.path().join("0000000000000000.log");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for _ in 1..UNREADABLE_MAX {
        assert!(b.uploader.step().await.is_err());
    }
    b.check(&["hole 100 spool-unreadable", "tail 1:1050-1060"]).await;
    assert_eq!(b.vaulted.borrow().unreadable, 1);
}

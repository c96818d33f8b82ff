//! From the spool to the vault, one lane: tails with what is new every few seconds, sealed segments that supersede them, beats.
//!
//! A file of the spool becomes one sealed segment when it ends; until then each tail holds only what no tail before it held. Everything is
//! read from the spool anew, so that a vault that is slow or away costs no memory and holds nobody up; an entry whose outcome is not known
//! is given again as it was. Where log goes on in the midst of what a tail ended in (its state there is not known), the stretch is
//! written again from where a reader can begin.
//!
//! Nothing below the place where this generation began is written again: what a generation wrote past its successor's first place is dropped
//! by readers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use async_trait::async_trait;
use bytes::Bytes;
use mainstay_engine::{Result, Segment};
use mainstay_model::{Bracket, Instant, Place};
use mainstay_vault::{self as vault, LogBytes, LogEntry, LogWriter};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use super::sink::blocking;
use super::spool::record::{BranchNote, Note};
use super::spool::{FileInfo, Spool, Stretch};

/// How soon what is where.
#[derive(Clone, Debug)]
pub struct Pace {
    /// From one tail to the next.
    pub tail_every: Duration,
    /// From one beat to the next, while nothing comes.
    pub beat_every: Duration,
    /// The longest pause after a failure of the vault.
    pub retry_max: Duration,
    /// How long a sealed file stays in the spool, for whoever asks for a stretch of log.
    pub keep_sealed: Duration,
    /// How long the last upload may take when following ends.
    pub stop_within: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            tail_every: Duration::from_secs(2),
            beat_every: Duration::from_secs(4),
            retry_max: Duration::from_secs(10),
            keep_sealed: Duration::from_secs(120),
            stop_within: Duration::from_secs(20),
        }
    }
}

/// The longest tail; what is more goes into the next one, at once.
const TAIL_BYTES_MAX: usize = 4 << 20;
/// How long tails stay when a sealed segment covers them: a restore that was planned before still reads them.
const RETIRE_AFTER: Duration = Duration::from_secs(15 * 60);
/// Sealed files that stay in the spool at most.
const SEALED_FILES_MAX: usize = 8;

/// How often a file is tried that cannot be read.
const UNREADABLE_MAX: u32 = 4;
/// The reason of such a hole.
const UNREADABLE: &str = "spool-unreadable";

/// Where entries go.
#[async_trait]
pub(super) trait Target: Send + Sync {
    async fn put(&mut self, entry: &LogEntry) -> vault::Result<()>;
    async fn retire(&mut self) -> vault::Result<()>;
}

#[async_trait]
impl Target for LogWriter {
    async fn put(&mut self, entry: &LogEntry) -> vault::Result<()> {
        Self::put(self, entry).await.map(|_| ())
    }
    async fn retire(&mut self) -> vault::Result<()> {
        self.retire_after(RETIRE_AFTER).await.map(|_| ())
    }
}

/// What is in the vault, as far as this uploader knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Vaulted {
    /// The place behind all that is there.
    pub end: Option<Place>,
    /// Up to when the log there is complete.
    pub complete_to: Option<Instant>,
    /// Bytes of log given to it since the start.
    pub bytes: u64,
    /// Holes declared since the start.
    pub holes: u64,
    /// Of these, holes where the spool itself could not be read any more.
    pub unreadable: u64,
    /// Why the last attempt failed; `None` when it did not.
    pub error: Option<String>,
    /// Failures since the start.
    pub failures: u64,
}

/// What an uploader works with; the rest is its own.
pub(super) struct Parts {
    pub spool: Arc<Spool>,
    pub target: Box<dyn Target>,
    pub pace: Pace,
    /// The end of the lane's log in the vault.
    pub end: Option<Place>,
    pub vaulted: Arc<watch::Sender<Vaulted>>,
    /// Rung to upload at once.
    pub urgent: Arc<Notify>,
    /// Limits how many long stretches are in memory at once.
    pub long_reads: Arc<Semaphore>,
}

/// Uploads one lane until its lease is lost.
pub(super) struct Uploader {
    parts: Parts,
    cursor: Option<Cursor>,
    /// What was given to the vault last, if it is not known to be there.
    pending: Option<Next>,
    /// Sealed files that are still in the spool.
    sealed: VecDeque<(u64, Monotonic)>,
    beaten: Option<(Place, Instant)>,
    last_beat: Option<Monotonic>,
    /// It ends: what is known up to then is told once more, however short ago the last beat was.
    tells_end: bool,
    /// How often a file could not be read, one time after the other.
    unreadable: (u64, u32),
}

/// How far a file has gone to the vault.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    file: u64,
    /// Where this generation may begin its sealed segment.
    seal_pos: u64,
    /// Behind what is in the vault.
    pos: u64,
    /// Bytes of log in the entry that began in the midst of a tail, to pace the next one.
    again_bytes: usize,
    notes: usize,
    told_branch: bool,
}

/// An entry that is to be written, what is done then, and the right to keep a long one in memory meanwhile.
struct Next {
    entry: LogEntry,
    after: After,
    _permit: Option<OwnedSemaphorePermit>,
}

/// What is done when an entry is in the vault.
#[derive(Clone, Debug)]
enum After {
    Advance {
        pos: u64,
        again_bytes: usize,
    },
    SealedFile,
    ToldBranch,
    ToldNote,
    Beaten(Place, Instant),
    /// What the file still held is lost.
    GivenUp,
}

impl Uploader {
    pub fn new(parts: Parts) -> Self {
        let beaten = None;
        let (sealed, unreadable) = (VecDeque::new(), (0, 0));
        let (last_beat, tells_end) = (None, false);
        Self { parts, cursor: None, pending: None, sealed, beaten, last_beat, tells_end, unreadable }
    }

    /// Uploads until `stop` says so, then once more; ends early only when the lease is lost.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> vault::Result<()> {
        let mut pause = Duration::ZERO;
        loop {
            let stopping = *stop.borrow();
            self.tells_end = stopping;
            match self.step().await {
                Ok(()) => {
                    pause = Duration::ZERO;
                    self.parts.vaulted.send_if_modified(|vaulted| vaulted.error.take().is_some());
                }
                Err(e @ vault::Error::LeaseLost { .. }) => return Err(e),
                Err(e) => {
                    pause = (pause * 2).clamp(Duration::from_millis(250), self.parts.pace.retry_max);
                    let why = super::why(&e);
                    tracing::warn!(error = %why, retry_ms = pause.as_millis(), "upload log");
                    self.parts.vaulted.send_modify(|vaulted| {
                        vaulted.error = Some(why);
                        vaulted.failures += 1;
                    });
                }
            }
            if stopping && pause.is_zero() {
                return Ok(());
            }
            let wait = if pause.is_zero() { self.parts.pace.tail_every } else { pause };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Whoever is in a hurry does not make a vault that fails answer sooner.
                () = self.parts.urgent.notified(), if pause.is_zero() => {}
                changed = stop.changed(), if !stopping => {
                    // A sender that is gone wants the same.
                    if changed.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Uploads all that is there.
    pub async fn step(&mut self) -> vault::Result<()> {
        loop {
            let next = match self.pending.take() {
                Some(next) => next,
                None => match self.next().await.map_err(spool_error)? {
                    Some(next) => next,
                    None => break,
                },
            };
            if let Err(e) = self.parts.target.put(&next.entry).await {
                // Long ones are read again rather than kept in memory while the vault is away: the bytes are the same.
                self.pending = Some(next).filter(|next| bytes_of(&next.entry) <= TAIL_BYTES_MAX);
                return Err(e);
            }
            self.advance(&next.entry, next.after).await;
        }
        self.tidy().await;
        Ok(())
    }

    async fn advance(&mut self, entry: &LogEntry, after: After) {
        let Some(cursor) = &mut self.cursor else { return };
        match after {
            After::Advance { pos, again_bytes } => {
                cursor.pos = pos;
                cursor.again_bytes = again_bytes;
            }
            After::ToldBranch => cursor.told_branch = true,
            After::ToldNote => cursor.notes += 1,
            After::SealedFile => cursor.pos = u64::MAX,
            After::GivenUp => *cursor = Cursor::at(cursor.file + 1, 0),
            After::Beaten(..) => {}
        }
        if matches!(after, After::SealedFile | After::Beaten(..))
            && let Err(e) = self.parts.target.retire().await
        {
            // What is superseded costs space and nothing else; the next one retires it.
            tracing::debug!(error = %e, "retire what is superseded");
        }
        if let After::Beaten(place, time) = after {
            self.beaten = Some((place, time));
            self.last_beat = Some(Monotonic::now());
            self.tells_end = false;
        }
        self.parts.vaulted.send_modify(|vaulted| match entry {
            LogEntry::Tail(log) | LogEntry::Sealed(log) => {
                vaulted.end = Some(log.segment.last.clone());
                vaulted.bytes += log.bytes.len() as u64;
                if log.segment.bracket.latest != Instant::MAX {
                    vaulted.complete_to = vaulted.complete_to.max(Some(log.segment.bracket.latest));
                }
            }
            LogEntry::Beat { at, time } => {
                vaulted.end = Some(at.clone());
                vaulted.complete_to = vaulted.complete_to.max(Some(time.earliest));
            }
            LogEntry::Branch { branch, .. } => {
                vaulted.end = Some(Place { epoch: branch.epoch.clone(), offset: branch.first });
            }
            LogEntry::Hole { reason, .. } => {
                vaulted.holes += 1;
                vaulted.unreadable += u64::from(reason == UNREADABLE);
            }
        });
    }

    /// What is to be written next.
    async fn next(&mut self) -> Result<Option<Next>> {
        let files = self.parts.spool.files();
        if self.cursor.is_none() {
            self.cursor = self.begin(&files).await?;
        }
        loop {
            let Some(cursor) = self.cursor else { return Ok(None) };
            let Some(info) = files.iter().find(|file| file.seq == cursor.file).cloned() else {
                // Removed under us, or none was there yet.
                match files.iter().find(|file| file.seq > cursor.file) {
                    Some(next) => self.cursor = Some(Cursor::at(next.seq, 0)),
                    None => return Ok(None),
                }
                continue;
            };
            let found = match self.next_of(&info, cursor).await {
                Ok(found) => found,
                Err(e) => return self.give_up(&info, e),
            };
            self.unreadable = (info.seq, 0);
            if found.is_some() {
                return Ok(found);
            }
            if !info.closed {
                return Ok(self.next_beat(&info));
            }
            self.sealed.push_back((info.seq, Monotonic::now()));
            self.cursor = Some(Cursor::at(info.seq + 1, 0));
        }
    }

    /// A file that cannot be read, again and again, must not keep what is behind it from the vault: it is given up, and its hole declared.
    fn give_up(&mut self, info: &FileInfo, error: mainstay_engine::Error) -> Result<Option<Next>> {
        let times = if self.unreadable.0 == info.seq { self.unreadable.1 + 1 } else { 1 };
        self.unreadable = (info.seq, times);
        if times < UNREADABLE_MAX {
            return Err(error);
        }
        if !info.closed {
            // What comes goes to another file; then this one is given up.
            self.parts.spool.ask_rotate();
            return Err(error);
        }
        tracing::error!(error = %super::why(&error), "a part of the spool is lost");
        let end = self.parts.vaulted.borrow().end.clone();
        let entry = LogEntry::Hole {
            from: end.unwrap_or_else(|| info.start.place.clone()),
            time: Bracket::exactly(Instant::now()),
            reason: UNREADABLE.to_owned(),
        };
        Ok(Some(Next::short(entry, After::GivenUp)))
    }

    async fn next_of(&self, info: &FileInfo, cursor: Cursor) -> Result<Option<Next>> {
        if let Some(branch) = info.start.branch.as_ref().filter(|_| !cursor.told_branch) {
            return Ok(Some(Next::short(self.branch(branch), After::ToldBranch)));
        }
        let log = match info.closed {
            true => self.sealed_of(info, cursor).await?,
            false => self.tail_of(info, cursor).await?,
        };
        if log.is_some() {
            return Ok(log);
        }
        // What is noted in a file is told behind its log: a hole is where that ends.
        Ok(info.notes.get(cursor.notes).map(|note| {
            let entry = match note {
                Note::Branch(branch) => self.branch(branch),
                Note::Hole { reason, found_at } => LogEntry::Hole {
                    from: info.end.clone(),
                    time: Bracket::exactly(*found_at),
                    reason: reason.clone(),
                },
            };
            Next::short(entry, After::ToldNote)
        }))
    }

    async fn sealed_of(&self, info: &FileInfo, cursor: Cursor) -> Result<Option<Next>> {
        if cursor.pos == u64::MAX || cursor.seal_pos >= info.len {
            return Ok(None);
        }
        let permit = self.parts.long_reads.clone().acquire_owned().await.ok();
        let (spool, file) = (self.parts.spool.clone(), info.clone());
        let read = blocking(move || {
            let read = spool.read(&file, cursor.seal_pos, usize::MAX)?;
            if read.as_ref().is_none_or(|stretch| stretch.carry.is_some()) {
                return Ok(read);
            }
            spool.read(&file, spool.carry_before(&file, cursor.seal_pos)?, usize::MAX)
        })
        .await?;
        Ok(read.map(|stretch| Next {
            entry: LogEntry::Sealed(self.log_of(stretch)),
            after: After::SealedFile,
            _permit: permit,
        }))
    }

    async fn tail_of(&self, info: &FileInfo, cursor: Cursor) -> Result<Option<Next>> {
        if cursor.pos >= info.len {
            return Ok(None);
        }
        let (spool, file) = (self.parts.spool.clone(), info.clone());
        let Some(stretch) = blocking(move || spool.read(&file, cursor.pos, TAIL_BYTES_MAX)).await? else {
            return Ok(None);
        };
        if stretch.carry.is_some() {
            let after = After::Advance { pos: stretch.next_pos, again_bytes: 0 };
            return Ok(Some(Next::short(LogEntry::Tail(self.log_of(stretch)), after)));
        }
        let permit = self.parts.long_reads.clone().acquire_owned().await.ok();
        let (spool, file) = (self.parts.spool.clone(), info.clone());
        let again = blocking(move || {
            let begin = spool.carry_before(&file, cursor.pos)?;
            spool.read(&file, begin, usize::MAX)
        });
        let Some(stretch) = again.await? else { return Ok(None) };
        // One huge command that comes slowly: nobody can be restored into its midst, so it may wait, rather than be written over and
        // over.
        let size = stretch.bytes.len();
        if size > TAIL_BYTES_MAX && size < cursor.again_bytes.saturating_mul(2) {
            return Ok(None);
        }
        let after = After::Advance { pos: stretch.next_pos, again_bytes: size };
        Ok(Some(Next { entry: LogEntry::Sealed(self.log_of(stretch)), after, _permit: permit }))
    }

    fn next_beat(&self, info: &FileInfo) -> Option<Next> {
        let (at, time) = self.parts.spool.beat()?;
        let is_due = self.last_beat.is_none_or(|last| last.elapsed() >= self.parts.pace.beat_every);
        let says_more =
            self.beaten.as_ref().is_none_or(|(place, last)| *place != at || *last < time.earliest);
        // Asked only when all of the spool is in the vault.
        let is_there = at == info.end;
        ((is_due || self.tells_end) && says_more && is_there).then(|| {
            let after = After::Beaten(at.clone(), time.earliest);
            Next::short(LogEntry::Beat { at, time }, after)
        })
    }

    fn branch(&self, note: &BranchNote) -> LogEntry {
        let time = Bracket::exactly(self.parts.spool.complete_to().unwrap_or_else(Instant::now));
        LogEntry::Branch { branch: note.branch.clone(), time, history: note.history.clone().map(Bytes::from) }
    }

    fn log_of(&self, stretch: Stretch) -> LogBytes {
        let unknown = Bracket { earliest: Instant::MIN, latest: Instant::MAX };
        let bracket = stretch.bracket().unwrap_or(unknown);
        LogBytes {
            segment: Segment { first: stretch.first, last: stretch.last, bracket },
            times: stretch.times,
            carry: stretch.carry.unwrap_or_default(),
            bytes: stretch.bytes,
        }
    }

    /// Where to begin: behind what the vault has, and nothing of it again.
    async fn begin(&mut self, files: &[FileInfo]) -> Result<Option<Cursor>> {
        let Some(first) = files.first() else { return Ok(None) };
        let had = self.parts.end.as_ref().and_then(|end| Some((end, self.parts.spool.file_behind(end)?)));
        let Some((end, info)) = had else { return Ok(Some(Cursor::at(first.seq, 0))) };
        let (spool, file, end) = (self.parts.spool.clone(), info.clone(), end.clone());
        let pos = blocking(move || match spool.position_of(&file, &end)? {
            Some(pos) => Ok(pos),
            // The vault's log ends in the midst of what is one chunk here.
            None => spool.carry_at_or_before(&file, &end),
        })
        .await?;
        let now = Monotonic::now();
        self.sealed.extend(files.iter().filter(|file| file.seq < info.seq).map(|file| (file.seq, now)));
        let told_branch = info.start.place.offset != info.end.offset;
        Ok(Some(Cursor { told_branch, ..Cursor::at(info.seq, pos) }))
    }

    /// Removes files that are sealed and have stayed long enough.
    async fn tidy(&mut self) {
        let keep_all = self.parts.spool.bytes() < self.parts.spool.limits().lane_bytes_max / 2;
        while let Some((seq, since)) = self.sealed.front().copied() {
            let stays = keep_all
                && self.sealed.len() <= SEALED_FILES_MAX
                && since.elapsed() < self.parts.pace.keep_sealed;
            if stays {
                break;
            }
            let spool = self.parts.spool.clone();
            if let Err(e) = blocking(move || spool.remove(seq)).await {
                tracing::warn!(error = %e, "remove spool file");
                break;
            }
            self.sealed.pop_front();
        }
    }
}

impl Next {
    fn short(entry: LogEntry, after: After) -> Self {
        Self { entry, after, _permit: None }
    }
}

impl Cursor {
    fn at(file: u64, pos: u64) -> Self {
        Self { file, seal_pos: pos, pos, again_bytes: 0, notes: 0, told_branch: false }
    }
}

fn bytes_of(entry: &LogEntry) -> usize {
    match entry {
        LogEntry::Tail(log) | LogEntry::Sealed(log) => log.bytes.len(),
        _ => 0,
    }
}

fn spool_error(e: mainstay_engine::Error) -> vault::Error {
    let source = std::io::Error::other(super::why(&e));
    vault::Error::io("read the spool", source)
}

#[cfg(test)]
mod tests;

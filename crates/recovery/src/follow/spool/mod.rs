//! The spool of a lane: its log on this machine, durable before anything is acknowledged to the source.
//!
//! A folder of append-only files, each of one epoch, each beginning where an adapter may begin to read: what one file holds becomes
//! one sealed segment in the vault, and then the file goes. Log is gathered in memory (bounded) until [`Spool::flush`] writes and
//! fsyncs all of it at once. After a crash at any byte a file is cut behind its last record whose checksum holds; everything
//! that a flush had returned is before that.
//!
//! Refused: a gap or an overlap; a file that would begin in the midst of a command. A disk that is full or fails loses nothing that was
//! returned: what could not be written stays in memory, and the file is cut back to what was good.
//!
//! Invariant: `files` says what is durable; `ops` what is not yet; `end` is the place behind both.

mod open;
mod read;
pub(super) mod record;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Monotonic};

use bytes::Bytes;
use mainstay_engine::{Chunk, Error, Kind, Result};
use mainstay_model::{Bracket, Branch, Epoch, Instant, Offset, Place};
use tokio::sync::{Notify, watch};

pub(super) use open::{peek, read_holder, write_holder};
pub(super) use read::{Stretch, range};
use record::{BODY_BYTES_MAX, BranchNote, Note, Start, write_chunk, write_note, write_start};

/// What a spool may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a lane's files, all in all; more waits.
    pub lane_bytes_max: u64,
    /// What is left free on the disk, whoever uses it; less waits.
    pub disk_bytes_free_min: u64,
    /// How long a write waits for room before it is `SpoolFull`.
    pub wait: Duration,
    /// A file that has grown to this ends where the next chunk allows.
    pub file_bytes: u64,
    /// And one of this age.
    pub file_age: Duration,
    /// Bytes not yet written that are kept in memory.
    pub pending_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lane_bytes_max: 4 << 30,
            disk_bytes_free_min: 256 << 20,
            wait: Duration::from_secs(10),
            file_bytes: 16 << 20,
            file_age: Duration::from_secs(120),
            pending_bytes_max: 2 << 20,
        }
    }
}

/// A durable file of the spool.
#[derive(Clone, Debug)]
pub(super) struct FileInfo {
    /// Its number; grows.
    pub seq: u64,
    /// Where it begins.
    pub start: Start,
    /// The place behind its last byte of log.
    pub end: Place,
    /// Its durable length.
    pub len: u64,
    /// Whether a later file follows, so that no more comes.
    pub closed: bool,
    /// What was told of epochs while it was written (its own start's branch is in `start`).
    pub notes: Vec<Note>,
    /// The latest time of what is in it.
    pub latest: Option<Instant>,
}

impl FileInfo {
    /// Whether it holds no log.
    pub fn is_empty(&self) -> bool {
        self.end == self.start.place
    }

    /// Whether what would follow it is lost.
    pub fn is_broken_off(&self) -> bool {
        self.notes.iter().any(|note| matches!(note, Note::Hole { .. }))
    }
}

/// The spool of one lane.
pub(super) struct Spool {
    dir: PathBuf,
    limits: Limits,
    shared: Mutex<Shared>,
    disk: Mutex<Disk>,
    /// Rung when files were removed.
    room: Notify,
    /// The durable end, for whoever waits for it.
    durable: watch::Sender<Option<Place>>,
    /// Held as long as the spool is open: two processes must not append to one folder.
    _lock: File,
}

#[derive(Default)]
struct Shared {
    ops: Vec<Op>,
    ops_bytes: usize,
    end: Option<Place>,
    /// The file that chunks go to, with what is not yet written counted in.
    current: Option<Current>,
    files: BTreeMap<u64, FileInfo>,
    /// How far each epoch is held, here or in the vault.
    known: BTreeMap<Epoch, Offset>,
    latest: Option<Instant>,
    beat: Option<(Place, Bracket)>,
    beat_written: Option<Instant>,
    disk_low: bool,
    rotate_asked: bool,
}

#[derive(Clone, Copy)]
struct Current {
    seq: u64,
    len: u64,
    has_log: bool,
    opened: Monotonic,
}

/// What is to be written, in order.
enum Op {
    /// Another file begins.
    Open { seq: u64, start: Start },
    /// Frames for the file that is open.
    Data { bytes: Vec<u8>, end: Place, latest: Option<Instant>, notes: Vec<Note> },
}

#[derive(Default)]
struct Disk {
    file: Option<(u64, File)>,
    len: u64,
}

impl Spool {
    /// The place behind all that was appended; `None` before [`Self::begin`], and behind a hole.
    pub fn end(&self) -> Option<Place> {
        self.shared().end.clone()
    }

    /// The place behind all that is durable.
    pub fn durable(&self) -> watch::Receiver<Option<Place>> {
        self.durable.subscribe()
    }

    /// Up to when the log is known to be complete, durable or not.
    pub fn complete_to(&self) -> Option<Instant> {
        let shared = self.shared();
        let beat = shared.beat.as_ref().map(|(_, time)| time.earliest);
        shared.latest.max(beat)
    }

    /// When what lies behind `place` happened at the earliest: a beat below it said that there was nothing yet.
    pub fn not_before(&self, place: &Place) -> Option<Instant> {
        let shared = self.shared();
        let (at, time) = shared.beat.as_ref()?;
        (at.epoch == place.epoch && at.offset <= place.offset).then_some(time.earliest)
    }

    /// The last beat, if nothing came since.
    pub fn beat(&self) -> Option<(Place, Bracket)> {
        let shared = self.shared();
        shared.beat.clone().filter(|(at, _)| shared.end.as_ref() == Some(at))
    }

    /// The place behind the last durable log, whether a hole follows or not.
    pub fn last_place(&self) -> Option<Place> {
        self.shared().files.values().last().map(|file| file.end.clone())
    }

    /// The durable files, oldest first.
    pub fn files(&self) -> Vec<FileInfo> {
        self.shared().files.values().cloned().collect()
    }

    /// Bytes used on disk and in memory.
    pub fn bytes(&self) -> u64 {
        let shared = self.shared();
        shared.files.values().map(|file| file.len).sum::<u64>() + shared.ops_bytes as u64
    }

    /// Begins at `place`, whatever was before it. Where that is not where the log ended, log is missing in between.
    pub fn begin(&self, place: Place) -> Result<()> {
        {
            let mut shared = self.shared();
            let continues = shared.end.as_ref() == Some(&place);
            if continues && shared.current.is_some_and(|current| !current.has_log) {
                return Ok(());
            }
            shared.open_file(Start { place: place.clone(), continues, branch: None });
            shared.beat = None;
        }
        self.flush().map(|_| ())
    }

    /// Forgets that it was begun, where that brought nothing.
    pub fn unbegin(&self) {
        self.shared().end = None;
    }

    /// Says that log of `place`'s epoch up to it is in the vault, so that a branch there is no surprise.
    pub fn know(&self, place: &Place) {
        self.shared().know(place);
    }

    /// How far the log of `epoch` is had.
    pub fn known(&self, epoch: &Epoch) -> Option<Offset> {
        self.shared().known.get(epoch).copied()
    }

    /// Takes log that ends at `until`, in memory until the next [`Self::flush`]; `true` asks for one.
    pub fn append(&self, chunk: &Chunk, until: Offset) -> Result<bool> {
        let mut guard = self.shared();
        let shared = &mut *guard;
        let gap = |what: String| Error::new(Kind::Invalid, format!("append to spool: {what}"));
        let (Some(end), Some(current)) = (shared.end.clone(), shared.current) else {
            return Err(gap("it was not begun".to_owned()));
        };
        if chunk.at != end {
            let (at, end) = (show(&chunk.at), show(&end));
            return Err(gap(format!("log at {at} does not follow what ends at {end}")));
        }
        if until == end.offset && chunk.bytes.is_empty() {
            return Ok(false);
        }
        if until <= end.offset {
            return Err(gap(format!("a chunk at {} does not end behind it", show(&end))));
        }
        let size = chunk.bytes.len() + chunk.times.len() * 32 + chunk.carry.as_ref().map_or(0, String::len);
        if size + 64 > BODY_BYTES_MAX {
            return Err(gap(format!("a chunk of {size} bytes is too long")));
        }
        if !current.has_log && chunk.carry.is_none() {
            return Err(gap(format!("nothing can begin at {}: the state there is not known", show(&end))));
        }
        let is_due = current.len >= self.limits.file_bytes
            || current.opened.elapsed() >= self.limits.file_age
            || shared.rotate_asked;
        if is_due && current.has_log && chunk.carry.is_some() {
            shared.open_file(Start { place: end.clone(), continues: true, branch: None });
        }
        let end = Place { epoch: end.epoch, offset: until };
        let latest = chunk.times.iter().map(|mark| mark.at.latest).max();
        shared.push(end.clone(), latest, None, |out| write_chunk(out, chunk, until));
        if let Some(current) = &mut shared.current {
            current.has_log = true;
        }
        shared.know(&end);
        shared.end = Some(end);
        shared.latest = shared.latest.max(latest);
        Ok(shared.ops_bytes >= self.limits.pending_bytes_max)
    }

    /// The lane goes on in another epoch, or tells how the one that it is in came to be.
    pub fn branch(&self, branch: Branch, history: Option<Bytes>) -> Result<()> {
        let note = BranchNote { branch, history: history.map(|bytes| bytes.to_vec()) };
        let mut guard = self.shared();
        let shared = &mut *guard;
        let refuse = |what: String| Err(Error::new(Kind::Invalid, format!("branch in spool: {what}")));
        let Some(end) = shared.end.clone() else { return refuse("it was not begun".to_owned()) };
        if note.branch.epoch == end.epoch {
            let file = shared.current.and_then(|current| shared.files.get(&current.seq));
            let is_told = file.is_some_and(|file| {
                file.start.branch.as_ref() == Some(&note)
                    || file.notes.iter().any(|told| matches!(told, Note::Branch(told) if *told == note))
            });
            if !is_told {
                shared.push_note(end, Note::Branch(note));
            }
            return Ok(());
        }
        let Some(parent) = &note.branch.parent else {
            return refuse(format!("epoch {} has no parent that we know", note.branch.epoch));
        };
        match shared.known.get(&parent.epoch) {
            None => return refuse(format!("epoch {} is not known here", parent.epoch)),
            Some(had) if *had < parent.offset => {
                return refuse(format!("it leaves at {}, behind what we have", show(parent)));
            }
            Some(_) => {}
        }
        let place = Place { epoch: note.branch.epoch.clone(), offset: note.branch.first };
        shared.open_file(Start { place, continues: true, branch: Some(note) });
        Ok(())
    }

    /// What would follow is lost, because of `reason` (`[a-z0-9-]{1,60}`): nothing more can be appended before [`Self::begin`].
    pub fn break_off(&self, reason: &str) -> Result<()> {
        {
            let mut shared = self.shared();
            let Some(end) = shared.end.take() else { return Ok(()) };
            shared.beat = None;
            shared.push_note(end, Note::Hole { reason: reason.to_owned(), found_at: Instant::now() });
        }
        self.flush().map(|_| ())
    }

    /// At `time` the source had nothing behind `at`. Returns whether that is where we are.
    pub fn set_beat(&self, at: &Place, time: Bracket) -> bool {
        let mut shared = self.shared();
        if shared.end.as_ref() != Some(at) {
            return false;
        }
        shared.beat = Some((at.clone(), time));
        // Clocks are set back, too.
        let apart = |last: Instant| time.earliest.since(last).max(last.since(time.earliest));
        let due = shared.beat_written.is_none_or(|last| apart(last) >= Duration::from_secs(1));
        if due {
            shared.beat_written = Some(time.earliest);
            drop(shared);
            // Only for those who look at the spool from another process: losing one loses nothing.
            open::write_beat(&self.dir, at, time);
        }
        true
    }

    /// Writes and fsyncs all that was appended; gives the durable end. Blocks.
    pub fn flush(&self) -> Result<Option<Place>> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let ops = {
            let mut shared = self.shared();
            shared.ops_bytes = 0;
            std::mem::take(&mut shared.ops)
        };
        let mut ops = ops.into_iter().peekable();
        let mut failed = None;
        while let Some(op) = ops.peek() {
            match self.apply(&mut disk, op) {
                Ok(()) => drop(ops.next()),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        let mut guard = self.shared();
        let shared = &mut *guard;
        if let Some(e) = failed {
            // What came in meanwhile goes behind what is still to be written.
            let newer = std::mem::take(&mut shared.ops);
            shared.ops = ops.chain(newer).collect();
            shared.ops_bytes = shared.ops.iter().map(Op::len).sum();
            return Err(e);
        }
        shared.disk_low = bytes_free(&self.dir).is_some_and(|free| free < self.limits.disk_bytes_free_min);
        let end = shared.files.last_key_value().map(|(_, file)| file.end.clone());
        drop(guard);
        self.durable.send_replace(end.clone());
        Ok(end)
    }

    /// Forgets what is not durable, after a flush that failed: the source still has it, since it was not acknowledged.
    pub fn roll_back(&self) -> Option<Place> {
        let _disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut guard = self.shared();
        let shared = &mut *guard;
        shared.ops.clear();
        shared.ops_bytes = 0;
        let last = shared.files.last_entry().map(|mut entry| {
            entry.get_mut().closed = false;
            entry.get().clone()
        });
        shared.current = last.as_ref().map(Current::of);
        shared.end = last.filter(|file| !file.is_broken_off()).map(|file| file.end);
        shared.latest = shared.files.values().filter_map(|file| file.latest).max();
        shared.know_again();
        shared.end.clone()
    }

    /// Whether there is room for more.
    pub fn has_room(&self) -> bool {
        if self.shared().disk_low {
            let low = bytes_free(&self.dir).is_some_and(|free| free < self.limits.disk_bytes_free_min);
            self.shared().disk_low = low;
        }
        !self.shared().disk_low && self.bytes() < self.limits.lane_bytes_max
    }

    /// Rung when there may be room again.
    pub fn room(&self) -> &Notify {
        &self.room
    }

    /// What it may use.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Ends the current file at the next chunk that allows it.
    pub fn ask_rotate(&self) {
        self.shared().rotate_asked = true;
    }

    /// Removes a closed file whose log is sealed in the vault.
    pub fn remove(&self, seq: u64) -> Result<()> {
        let path = path_of(&self.dir, seq);
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format!("remove spool file {}", path.display()), e)),
        }
        self.shared().files.remove(&seq);
        self.room.notify_waiters();
        Ok(())
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, disk: &mut Disk, op: &Op) -> Result<()> {
        match op {
            Op::Open { seq, start } => self.create(disk, *seq, start),
            Op::Data { bytes, end, latest, notes } => {
                let Disk { file: Some((seq, file)), len } = disk else {
                    return Err(Error::new(Kind::Io, "write spool: no file is open"));
                };
                let written = file.write_all(bytes).and_then(|()| file.sync_data());
                if let Err(e) = written {
                    // After a failed fsync the kernel may call pages clean that never reached the disk: cut them off and write
                    // them anew, from memory.
                    let _ = file.set_len(*len);
                    return Err(disk_error(&self.dir, e));
                }
                *len += bytes.len() as u64;
                if let Some(info) = self.shared().files.get_mut(seq) {
                    info.len = *len;
                    info.end = end.clone();
                    info.latest = info.latest.max(*latest);
                    info.notes.extend(notes.iter().cloned());
                }
                Ok(())
            }
        }
    }

    fn create(&self, disk: &mut Disk, seq: u64, start: &Start) -> Result<()> {
        let path = path_of(&self.dir, seq);
        let mut bytes = Vec::new();
        write_start(&mut bytes, start);
        let made = (|| {
            let mut file =
                File::options().append(true).create(true).truncate(false).mode(0o600).open(&path)?;
            file.set_len(0)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            File::open(&self.dir)?.sync_all()?;
            Ok(file)
        })();
        let file = made.map_err(|e| {
            let _ = std::fs::remove_file(&path);
            disk_error(&self.dir, e)
        })?;
        *disk = Disk { file: Some((seq, file)), len: bytes.len() as u64 };
        let info = FileInfo {
            seq,
            start: start.clone(),
            end: start.place.clone(),
            len: bytes.len() as u64,
            closed: false,
            notes: Vec::new(),
            latest: None,
        };
        let mut shared = self.shared();
        for file in shared.files.values_mut() {
            file.closed = true;
        }
        shared.files.insert(seq, info);
        Ok(())
    }
}

impl Shared {
    fn open_file(&mut self, start: Start) {
        let seq = self.current.map_or(0, |current| current.seq + 1);
        self.know(&start.place);
        self.end = Some(start.place.clone());
        self.current = Some(Current { seq, len: 0, has_log: false, opened: Monotonic::now() });
        self.rotate_asked = false;
        self.ops.push(Op::Open { seq, start });
    }

    /// Writes frames behind what waits already: one buffer per file and flush.
    fn push(
        &mut self,
        end: Place,
        latest: Option<Instant>,
        note: Option<Note>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if !matches!(self.ops.last(), Some(Op::Data { .. })) {
            let (bytes, end) = (Vec::new(), end.clone());
            self.ops.push(Op::Data { bytes, end, latest: None, notes: Vec::new() });
        }
        if let Some(Op::Data { bytes, end: last_end, latest: last_latest, notes }) = self.ops.last_mut() {
            let before = bytes.len();
            write(bytes);
            let added = bytes.len() - before;
            *last_end = end;
            *last_latest = (*last_latest).max(latest);
            notes.extend(note);
            self.ops_bytes += added;
            if let Some(current) = &mut self.current {
                current.len += added as u64;
            }
        }
    }

    fn push_note(&mut self, end: Place, note: Note) {
        let written = note.clone();
        self.push(end, None, Some(note), |out| write_note(out, &written));
    }

    fn know(&mut self, place: &Place) {
        let had = self.known.entry(place.epoch.clone()).or_default();
        *had = (*had).max(place.offset);
    }

    /// After a roll-back: no more than the files say of their epochs. What the vault has beyond them is found again when asked.
    fn know_again(&mut self) {
        for file in self.files.values() {
            self.known.insert(file.end.epoch.clone(), file.end.offset);
        }
        if let Some(end) = &self.end {
            self.known.insert(end.epoch.clone(), end.offset);
        }
    }
}

impl Op {
    fn len(&self) -> usize {
        match self {
            Self::Open { .. } => 0,
            Self::Data { bytes, .. } => bytes.len(),
        }
    }
}

impl Current {
    fn of(file: &FileInfo) -> Self {
        Self { seq: file.seq, len: file.len, has_log: !file.is_empty(), opened: Monotonic::now() }
    }
}

/// For messages between us; the engine's own way of writing places is not known here.
pub(super) fn show(place: &Place) -> String {
    format!("{}:{:x}", place.epoch, place.offset.0)
}

fn path_of(dir: &Path, seq: u64) -> PathBuf {
    dir.join(format!("{seq:016}.log"))
}

fn bytes_free(dir: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(dir).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn disk_error(dir: &Path, e: io::Error) -> Error {
    let full = matches!(
        e.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    );
    let kind = if full { Kind::SpoolFull } else { Kind::Io };
    Error::new(kind, format!("write spool {}", dir.display()))
        .source(e)
        .hint("free space on the spool's disk, or move MAINSTAY_HOME to a larger one")
}

#[cfg(test)]
mod tests;

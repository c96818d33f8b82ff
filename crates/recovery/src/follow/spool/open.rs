//! Opening a spool that a process, or the machine, left in whatever state; and looking at one that another process writes.

use std::fs::{DirBuilder, File};
use std::io::{self, BufReader, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use mainstay_engine::{Error, Kind, Result};
use mainstay_model::{Bracket, Instant, Place};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::record::{Reader, Record};
use super::{Current, Disk, FileInfo, Limits, Shared, Spool, path_of, show};

/// What was found wrong with a spool beyond a torn end, which is no damage.
pub(in crate::follow) type Damage = Vec<String>;

const BEAT: &str = "beat.json";
const LOCK: &str = "lock";
const HOLDER: &str = "holder";

impl Spool {
    /// Opens the spool in `dir`, or makes it. Cuts a torn end; says in words what else is damaged (the log behind it is kept). Blocks.
    ///
    /// # Errors
    /// `Io`; `Invalid` when another process has it open.
    pub fn open(dir: &Path, limits: Limits) -> Result<(Self, Damage)> {
        let failed = |e| Error::io(format!("open spool {}", dir.display()), e);
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(LOCK))
            .map_err(failed)?;
        if lock.try_lock().is_err() {
            let what = format!("open spool {}: another process has it open", dir.display());
            return Err(Error::new(Kind::Invalid, what));
        }
        let mut damage = Vec::new();
        let mut shared = Shared::default();
        let mut seqs = numbers(dir).map_err(failed)?;
        while let Some(seq) = seqs.first().copied() {
            seqs.remove(0);
            let path = path_of(dir, seq);
            let (scanned, len) = scan(&path, seq, u64::MAX).map_err(failed)?;
            let is_last = seqs.is_empty();
            let Some(mut info) = scanned else {
                // A file that has not even its start was never acknowledged.
                if !is_last {
                    damage.push(format!("spool file {} does not begin as one", path.display()));
                }
                std::fs::remove_file(&path).map_err(failed)?;
                continue;
            };
            if info.len < len {
                if !is_last {
                    damage.push(format!(
                        "spool file {} is damaged behind {}",
                        path.display(),
                        show(&info.end)
                    ));
                }
                let file = File::options().write(true).open(&path).map_err(failed)?;
                file.set_len(info.len).and_then(|()| file.sync_all()).map_err(failed)?;
            }
            info.closed = !is_last;
            shared.know(&info.end);
            shared.latest = shared.latest.max(info.latest);
            shared.files.insert(seq, info);
        }
        let mut disk = Disk::default();
        if let Some(last) = shared.files.values().last().cloned() {
            let file = File::options().append(true).open(path_of(dir, last.seq)).map_err(failed)?;
            // What was read may be in the page cache only, if the process before died between write and fsync.
            file.sync_all().map_err(failed)?;
            disk = Disk { file: Some((last.seq, file)), len: last.len };
            shared.current = Some(Current::of(&last));
            shared.end = Some(last).filter(|last| !last.is_broken_off()).map(|last| last.end);
        }
        shared.beat = read_beat(dir).filter(|(at, _)| shared.end.as_ref() == Some(at));
        let last = shared.files.values().last();
        let durable = watch::Sender::new(last.map(|file| file.end.clone()));
        let (shared, disk) = (Mutex::new(shared), Mutex::new(disk));
        let room = Notify::new();
        let spool = Self { dir: dir.to_owned(), limits, shared, disk, room, durable, _lock: lock };
        Ok((spool, damage))
    }
}

/// The end of the spool in `dir`, and up to when its log is complete, read beside whichever process writes it. `None` where there is
/// nothing.
///
/// # Errors
/// The disk's.
pub(in crate::follow) fn peek(dir: &Path) -> io::Result<Option<(Place, Option<Instant>)>> {
    let beat = read_beat(dir);
    for seq in numbers(dir)?.into_iter().rev() {
        let info = match scan(&path_of(dir, seq), seq, u64::MAX) {
            Ok((Some(info), _)) => info,
            Ok((None, _)) => continue,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let beat = beat.filter(|(at, _)| *at == info.end).map(|(_, time)| time.earliest);
        return Ok(Some((info.end, info.latest.max(beat))));
    }
    Ok(beat.map(|(at, time)| (at, Some(time.earliest))))
}

/// The numbers of the files, ascending.
pub(super) fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut seqs = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let seq =
            name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|n| n.parse::<u64>().ok());
        seqs.extend(seq);
    }
    seqs.sort_unstable();
    Ok(seqs)
}

/// Reads a file to its last good record: what it holds (without a start: `None`), and its length on disk.
pub(super) fn scan(path: &Path, seq: u64, limit: u64) -> io::Result<(Option<FileInfo>, u64)> {
    let file = File::open(path)?;
    let len = file.metadata()?.len().min(limit);
    let mut reader = Reader::new(BufReader::with_capacity(256 << 10, file), 0, len);
    let Some(Record::Start(start)) = reader.next()? else { return Ok((None, len)) };
    let mut info = FileInfo {
        seq,
        end: start.place.clone(),
        start,
        len: reader.pos(),
        closed: false,
        notes: Vec::new(),
        latest: None,
    };
    while let Some(record) = reader.next()? {
        match record {
            Record::Chunk(chunk) if chunk.offset == info.end.offset => {
                info.end.offset = chunk.end;
                info.latest = info.latest.max(chunk.times.iter().map(|mark| mark.at.latest).max());
            }
            Record::Note(note) => info.notes.push(note),
            // A good checksum over what cannot be here: not ours, or not written in this order.
            Record::Chunk(_) | Record::Start(_) => break,
        }
        info.len = reader.pos();
    }
    Ok((Some(info), len))
}

#[derive(Serialize, Deserialize)]
struct Beat {
    at: Place,
    time: Bracket,
}

/// Says whether the lane was this home's to write, the last time that the vault was asked. Best effort: what is not said, or lost in a
/// crash, is not ours.
pub(in crate::follow) fn write_holder(dir: &Path, generation: Option<u64>) {
    let (path, new) = (dir.join(HOLDER), dir.join("holder.new"));
    let written = (|| match generation {
        Some(generation) => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            writeln!(file, "{generation}")?;
            std::fs::rename(&new, &path)
        }
        None => match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        },
    })();
    if let Err(e) = written {
        tracing::debug!(dir = %dir.display(), error = %e, "write who holds the lane");
    }
}

/// The generation in which this home last wrote the lane, if nobody else was seen to since.
pub(in crate::follow) fn read_holder(dir: &Path) -> Option<u64> {
    std::fs::read_to_string(dir.join(HOLDER)).ok()?.trim().parse().ok()
}

/// Best effort; see [`Spool::set_beat`].
pub(super) fn write_beat(dir: &Path, at: &Place, time: Bracket) {
    let beat = Beat { at: at.clone(), time };
    let (path, new) = (dir.join(BEAT), dir.join("beat.new"));
    let written = (|| {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        serde_json::to_writer(file, &beat).map_err(io::Error::other)?;
        std::fs::rename(&new, &path)
    })();
    if let Err(e) = written {
        tracing::debug!(dir = %dir.display(), error = %e, "write beat of spool");
    }
}

fn read_beat(dir: &Path) -> Option<(Place, Bracket)> {
    let text = std::fs::read(dir.join(BEAT)).ok()?;
    let beat: Beat = serde_json::from_slice(&text).ok()?;
    Some((beat.at, beat.time))
}

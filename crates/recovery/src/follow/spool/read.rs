//! Reading a spool: what is to go to the vault, and stretches that somebody asks for.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Seek, SeekFrom};
use std::path::Path;

use bytes::{Bytes, BytesMut};
use mainstay_engine::{Chunk, Error, Kind, Result, TimeMark};
use mainstay_model::{Bracket, Offset, Place};

use super::open::{numbers, scan};
use super::record::{Reader, Record};
use super::{FileInfo, Spool, path_of, show};

/// No more is gathered for [`Spool::before`] and [`range`]: what lies further back is not had.
const GATHER_BYTES_MAX: usize = 64 << 20;

/// Log of one file, gathered for one object.
#[derive(Debug)]
pub(in crate::follow) struct Stretch {
    /// The place of its first byte.
    pub first: Place,
    /// The place behind its last byte.
    pub last: Place,
    /// The adapter's state at `first`; `None` where no object may begin there.
    pub carry: Option<String>,
    /// Times in it.
    pub times: Vec<TimeMark>,
    /// The log.
    pub bytes: Bytes,
    /// Where the next stretch begins in the file.
    pub next_pos: u64,
}

impl Stretch {
    /// When what is in it happened; `None` if no time is known.
    pub fn bracket(&self) -> Option<Bracket> {
        self.times.iter().map(|mark| mark.at).reduce(Bracket::union)
    }
}

/// Log between two places, and the adapter's state at the start of the chunk that holds the first.
#[derive(Debug)]
pub(in crate::follow) struct Range {
    pub carry: String,
    pub bytes: Bytes,
}

impl Spool {
    /// The log of a file from byte `pos` on (0: its beginning), whole chunks, at most about `bytes_max`. `None` when there is none. Blocks.
    pub fn read(&self, info: &FileInfo, pos: u64, bytes_max: usize) -> Result<Option<Stretch>> {
        let path = path_of(&self.dir, info.seq);
        let mut reader = reader(&path, pos, info.len)?;
        let failed = |e| Error::io(format!("read spool file {}", path.display()), e);
        let mut found: Option<(Stretch, BytesMut)> = None;
        loop {
            let before = reader.pos();
            match reader.next().map_err(failed)? {
                None if reader.pos() < info.len => {
                    let what = format!("read spool file {}: damaged at byte {before}", path.display());
                    return Err(Error::new(Kind::Damaged, what));
                }
                None => break,
                Some(Record::Chunk(chunk)) => {
                    let place = |offset| Place { epoch: info.start.place.epoch.clone(), offset };
                    let (stretch, bytes) = found.get_or_insert_with(|| {
                        let (first, carry) = (place(chunk.offset), chunk.carry.clone());
                        let last = first.clone();
                        let (times, bytes) = (Vec::new(), Bytes::new());
                        (Stretch { first, last, carry, times, bytes, next_pos: pos }, BytesMut::new())
                    });
                    // Ends only where the next may begin, so that no stretch has to begin in the midst of a command.
                    let is_full = bytes.len() + chunk.bytes.len() > bytes_max && !bytes.is_empty();
                    if is_full && chunk.carry.is_some() {
                        break;
                    }
                    stretch.last = place(chunk.end);
                    stretch.times.extend(chunk.times);
                    stretch.next_pos = reader.pos();
                    bytes.extend_from_slice(&chunk.bytes);
                }
                Some(Record::Start(_) | Record::Note(_)) => {}
            }
        }
        Ok(found.map(|(mut stretch, bytes)| {
            stretch.bytes = bytes.freeze();
            stretch
        }))
    }

    /// The byte in a file where the chunk at `place` begins (or its end). `None` when no chunk begins there. Blocks.
    pub fn position_of(&self, info: &FileInfo, place: &Place) -> Result<Option<u64>> {
        if *place == info.end {
            return Ok(Some(info.len));
        }
        let path = path_of(&self.dir, info.seq);
        let mut reader = reader(&path, 0, info.len)?;
        loop {
            let pos = reader.pos();
            match reader.next().map_err(|e| Error::io(format!("read spool file {}", path.display()), e))? {
                None => return Ok(None),
                Some(Record::Chunk(chunk)) if chunk.offset == place.offset => return Ok(Some(pos)),
                Some(Record::Chunk(chunk)) if chunk.offset > place.offset => return Ok(None),
                Some(_) => {}
            }
        }
    }

    /// The byte in a file of the last chunk before byte `pos` where an object may begin. Blocks.
    pub fn carry_before(&self, info: &FileInfo, pos: u64) -> Result<u64> {
        self.last_carry(info, |at, _| at < pos)
    }

    /// The same for the last such chunk that begins at or before `place`. Blocks.
    pub fn carry_at_or_before(&self, info: &FileInfo, place: &Place) -> Result<u64> {
        self.last_carry(info, |_, offset| offset <= place.offset)
    }

    fn last_carry(&self, info: &FileInfo, counts: impl Fn(u64, Offset) -> bool) -> Result<u64> {
        let path = path_of(&self.dir, info.seq);
        let mut reader = reader(&path, 0, info.len)?;
        let mut found = 0;
        loop {
            let pos = reader.pos();
            match reader.next().map_err(|e| Error::io(format!("read spool file {}", path.display()), e))? {
                Some(Record::Chunk(chunk)) if !counts(pos, chunk.offset) => return Ok(found),
                Some(Record::Chunk(chunk)) if chunk.carry.is_some() => found = pos,
                Some(_) => {}
                None => return Ok(found),
            }
        }
    }

    /// As [`mainstay_engine::LogSink::before`]. Blocks.
    pub fn before(&self, from: &Place) -> Result<Option<Chunk>> {
        self.flush()?;
        let files = self.files();
        let holds = |file: &&FileInfo| {
            file.end.epoch == from.epoch
                && file.start.place.offset < from.offset
                && from.offset <= file.end.offset
        };
        let Some(file) = files.iter().rev().find(holds) else {
            // The first of an epoch: what is before it is the end of the parent's.
            let begins = files.iter().rev().find(|file| file.start.place == *from);
            return match begins.and_then(|file| file.start.branch.as_ref()?.branch.parent.clone()) {
                Some(parent) if parent != *from => self.before(&parent),
                _ => Ok(None),
            };
        };
        let path = path_of(&self.dir, file.seq);
        let mut reader = reader(&path, 0, file.len)?;
        let mut gathered: Option<(Chunk, BytesMut)> = None;
        while let Some(record) =
            reader.next().map_err(|e| Error::io(format!("read spool file {}", path.display()), e))?
        {
            let Record::Chunk(chunk) = record else { continue };
            if chunk.offset >= from.offset {
                break;
            }
            let part = chunk.cut(chunk.offset, from.offset);
            match &mut gathered {
                Some((_, bytes)) if chunk.carry.is_none() => bytes.extend_from_slice(&part),
                _ => gathered = Some((chunk.into_chunk(&from.epoch), BytesMut::from(&part[..]))),
            }
            if gathered.as_ref().is_some_and(|(_, bytes)| bytes.len() > GATHER_BYTES_MAX) {
                return Ok(None);
            }
        }
        Ok(gathered.map(|(chunk, bytes)| Chunk { bytes: bytes.freeze(), times: Vec::new(), ..chunk }))
    }
}

/// The log between two places of one epoch, read beside whichever process writes the spool in `dir`. `None` when it is not (or no
/// longer) all there. Blocks.
pub(in crate::follow) fn range(dir: &Path, from: &Place, to: &Place) -> Result<Option<Range>> {
    let failed = |e| Error::io(format!("read spool {}", dir.display()), e);
    let mut carry: Option<String> = None;
    let mut bytes = BytesMut::new();
    let mut at = from.offset;
    for seq in numbers(dir).map_err(failed)? {
        let path = path_of(dir, seq);
        // Only what is wholly there is looked at; what a writer appends meanwhile is for the next time.
        let info = match scan(&path, seq, u64::MAX) {
            Ok((Some(info), _)) => info,
            Ok((None, _)) => continue,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(failed(e)),
        };
        let overlaps = info.end.epoch == from.epoch
            && info.start.place.offset <= at
            && (at < info.end.offset || (at == to.offset && at == info.end.offset));
        if !overlaps {
            continue;
        }
        let mut reader = match reader(&path, 0, info.len) {
            Ok(reader) => reader,
            Err(_) => continue,
        };
        while let Some(record) = reader.next().map_err(failed)? {
            let Record::Chunk(chunk) = record else { continue };
            if chunk.end <= at && !(at == to.offset && chunk.end == at) {
                // The state at a chunk before is still the best known if the next has none of its own.
                if chunk.carry.is_some() {
                    carry = chunk.carry;
                }
                continue;
            }
            if chunk.offset > at {
                break;
            }
            if at == from.offset && bytes.is_empty() && chunk.carry.is_some() {
                carry.clone_from(&chunk.carry);
            }
            let part = chunk.cut(at, to.offset);
            bytes.extend_from_slice(&part);
            at = chunk.end.min(to.offset);
            if bytes.len() > GATHER_BYTES_MAX {
                return Ok(None);
            }
            if at >= to.offset {
                let carry = carry.unwrap_or_default();
                return Ok(Some(Range { carry, bytes: bytes.freeze() }));
            }
        }
    }
    Ok(None)
}

fn reader(path: &Path, pos: u64, end: u64) -> Result<Reader<BufReader<File>>> {
    let opened = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(pos))?;
        Ok(file)
    });
    let file = opened.map_err(|e| Error::io(format!("read spool file {}", path.display()), e))?;
    Ok(Reader::new(BufReader::with_capacity(256 << 10, file), pos, end))
}

impl Spool {
    /// Which file holds the log right behind `place`, if any.
    pub fn file_behind(&self, place: &Place) -> Option<FileInfo> {
        self.files().into_iter().rev().find(|file| {
            file.end.epoch == place.epoch
                && file.start.place.offset <= place.offset
                && place.offset <= file.end.offset
        })
    }

    /// For messages: where the spool is, from where to where.
    pub fn describe(&self) -> String {
        let files = self.files();
        match (files.first(), files.last()) {
            (Some(first), Some(last)) => {
                format!("{} holds {} to {}", self.dir.display(), show(&first.start.place), show(&last.end))
            }
            _ => format!("{} is empty", self.dir.display()),
        }
    }
}

//! A lane's log in the vault: what is written, and what is read again.
//!
//! An object's bytes are an age file (to the recipients) of zstd of one line of JSON (places, times, the adapter's state), a newline, and the log
//! itself. Its name tells the rest ([`crate::names`]). Objects are written in order, one at a time, each naming the one before; a short
//! tail goes when a sealed object covers it, a beat when anything follows it that says more of time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use bytes::Bytes;
use mainstay_engine::{Segment, SegmentData, TimeMark};
use mainstay_model::{Bracket, Branch, Instant, Lane, Offset, Place};
use serde::{Deserialize, Serialize};

use crate::keys::{Keys, TAG_DIGITS};
use crate::names::{Name, epoch_is_ok, reason_is_ok};
use crate::{ClusterVault, Error, Result, Vault};

/// Something to be written to a lane's log.
#[derive(Clone, Debug)]
pub enum LogEntry {
    /// A short stretch: only what is new since the last one. Goes when a sealed one covers it.
    Tail(LogBytes),
    /// A long stretch, that supersedes the tails within it.
    Sealed(LogBytes),
    /// At `time` the source had nothing behind `at`.
    Beat {
        /// The end of the log.
        at: Place,
        /// When.
        time: Bracket,
    },
    /// The lane goes on in another epoch.
    Branch {
        /// Which, and where it began.
        branch: Branch,
        /// When it was seen.
        time: Bracket,
        /// The engine's own record (a timeline history file).
        history: Option<Bytes>,
    },
    /// What follows `from` was lost: the window ends there, and another begins with a later snapshot.
    Hole {
        /// The end of the log before it.
        from: Place,
        /// When it was found.
        time: Bracket,
        /// Why, in a few words that can be part of a name: `[a-z0-9-]{1,60}`.
        reason: String,
    },
}

/// A stretch of log to be written.
#[derive(Clone, Debug)]
pub struct LogBytes {
    /// Its places and its time bracket.
    pub segment: Segment,
    /// Times within it.
    pub times: Vec<TimeMark>,
    /// The adapter's state at its first place.
    pub carry: String,
    /// The log.
    pub bytes: Bytes,
}

/// An object of a lane's log, as its name alone tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogObject {
    /// Its key in the store.
    pub key: String,
    /// The incarnation.
    pub incarnation: String,
    /// The lane.
    pub lane: Lane,
    /// The generation of its writer.
    pub generation: u64,
    /// Its number within the generation, from 0.
    pub sequence: u64,
    /// What it is.
    pub kind: LogKind,
    /// Its places and its time bracket. Of a beat and of a branch, first and last are the same.
    pub segment: Segment,
    /// Of a branch: where it branched off.
    pub parent: Option<Place>,
    /// Of a hole: why, as [`LogEntry::Hole`] said.
    #[serde(default)]
    pub reason: Option<String>,
    /// What it names itself by: a keyed hash of its name and its bytes.
    pub tag: String,
    /// The tag of the object before it in its generation; of one that lasts (sealed, branch, hole), that of the last such. Zeros for the first.
    pub previous: String,
    /// Its size in the store.
    pub bytes: u64,
    /// Where a later generation begins: what lies behind is not to be used. Set by [`crate::surviving`].
    pub cut_at: Option<Offset>,
}

/// What a [`LogObject`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogKind {
    /// A short stretch.
    Tail,
    /// A long stretch.
    Sealed,
    /// A sign of life.
    Beat,
    /// A switch to another epoch.
    Branch,
    /// A declared hole.
    Hole,
}

impl LogKind {
    /// Whether it is never superseded.
    pub fn lasts(self) -> bool {
        matches!(self, Self::Sealed | Self::Branch | Self::Hole)
    }
}

/// A [`LogObject`] that was read, decrypted and checked.
#[derive(Clone, Debug)]
pub enum LogContent {
    /// Of a tail or a sealed one.
    Segment(SegmentData),
    /// Of a beat: nothing that its name does not tell.
    Beat,
    /// Of a hole: nothing that its name does not tell.
    Hole,
    /// Of a branch.
    Branch {
        /// Which.
        branch: Branch,
        /// The engine's own record.
        history: Option<Bytes>,
    },
}

/// The line before an object's bytes. Of a branch, the bytes are the history, if `history` says that there is one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    times: Vec<TimeMark>,
    carry: String,
    #[serde(default)]
    history: bool,
}

/// The compression level: log is compressed once and read seldom, but a commit waits for it.
const LEVEL: i32 = 3;
/// No object of a log is larger, decompressed: what claims to be is damaged.
const PLAIN_BYTES_MAX: usize = 1 << 30;

/// Writes one lane's log in one generation: one at a time, in order.
#[derive(Debug)]
pub struct LogWriter {
    vault: Vault,
    prefix: String,
    incarnation: String,
    lane: Lane,
    generation: u64,
    /// What is there, in order; superseded ones go by [`Self::retire`].
    written: Vec<LogObject>,
    sequence: u64,
    previous: String,
    /// The last object that is never superseded: each such names the one before, so that none can go missing unseen.
    previous_lasting: String,
    /// What was tried last and may have arrived: the same bytes are tried again.
    pending: Option<(Name, Bytes)>,
    /// When each sealed object was written, by its number; of those that were there at [`Self::begin`], `begun`.
    sealed_at: HashMap<u64, Monotonic>,
    begun: Monotonic,
}

impl LogWriter {
    pub(crate) async fn begin(
        cluster: &ClusterVault,
        incarnation: &str,
        lane: &Lane,
        generation: u64,
    ) -> Result<Self> {
        let objects = cluster.log_objects(incarnation, lane).await?;
        if objects.iter().any(|object| object.generation > generation) {
            return Err(Error::LeaseLost { lease: format!("log of {lane}, generation {generation}") });
        }
        let written: Vec<_> = objects.into_iter().filter(|object| object.generation == generation).collect();
        let last = written.last();
        Ok(Self {
            vault: cluster.vault().clone(),
            prefix: generation_prefix(cluster.prefix(), incarnation, lane, generation),
            incarnation: incarnation.to_owned(),
            lane: lane.clone(),
            generation,
            sequence: last.map_or(0, |object| object.sequence + 1),
            previous: tag_or_zeros(last),
            previous_lasting: tag_or_zeros(written.iter().rfind(|object| object.kind.lasts())),
            written,
            pending: None,
            sealed_at: HashMap::new(),
            begun: Monotonic::now(),
        })
    }

    /// The generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Writes an entry; durable in the vault when it returns. After an error the same entry may be given again, or another one.
    ///
    /// # Errors
    /// `Invalid` for a segment that ends before it begins, or in another epoch, or an epoch that is no name; the store's.
    pub async fn put(&mut self, entry: &LogEntry) -> Result<LogObject> {
        // An attempt of unknown outcome may have arrived: its number and its place in the chain are taken until it surely has.
        if let Some((name, bytes)) = self.pending.clone() {
            let object = self.write(name, bytes).await?;
            if same_entry(&object, entry) {
                return Ok(object);
            }
        }
        let (name, bytes) = self.encode(entry)?;
        self.pending = Some((name.clone(), bytes.clone()));
        self.write(name, bytes).await
    }

    async fn write(&mut self, name: Name, bytes: Bytes) -> Result<LogObject> {
        let key = format!("{}/{}", self.prefix, name.render());
        let size = bytes.len() as u64;
        self.vault.store().put(&key, bytes).await?;
        self.pending = None;
        if name.kind == LogKind::Sealed {
            self.sealed_at.insert(name.sequence, Monotonic::now());
        }
        self.sequence = name.sequence + 1;
        self.previous.clone_from(&name.tag);
        if name.kind.lasts() {
            self.previous_lasting.clone_from(&name.tag);
        }
        let object = object(key, &self.incarnation, &self.lane, self.generation, name, size);
        self.written.push(object.clone());
        Ok(object)
    }

    fn encode(&self, entry: &LogEntry) -> Result<(Name, Bytes)> {
        let point =
            |at: &Place, time: Bracket| Segment { first: at.clone(), last: at.clone(), bracket: time };
        let (kind, segment, parent) = match entry {
            LogEntry::Tail(log) => (LogKind::Tail, log.segment.clone(), None),
            LogEntry::Sealed(log) => (LogKind::Sealed, log.segment.clone(), None),
            LogEntry::Beat { at, time } => (LogKind::Beat, point(at, *time), None),
            LogEntry::Branch { branch, time, .. } => {
                let at = Place { epoch: branch.epoch.clone(), offset: branch.first };
                (LogKind::Branch, point(&at, *time), branch.parent.clone())
            }
            LogEntry::Hole { from, time, .. } => (LogKind::Hole, point(from, *time), None),
        };
        let epochs_ok = epoch_is_ok(&segment.first.epoch.0)
            && parent.as_ref().is_none_or(|parent| epoch_is_ok(&parent.epoch.0))
            && segment.first.epoch == segment.last.epoch;
        if !epochs_ok || segment.first.offset > segment.last.offset {
            return Err(Error::Invalid(format!(
                "no object of a log can reach from {:?} to {:?}",
                segment.first, segment.last
            )));
        }
        let reason = match entry {
            LogEntry::Hole { reason, .. } if reason_is_ok(reason) => Some(reason.clone()),
            LogEntry::Hole { reason, .. } => {
                return Err(Error::Invalid(format!("`{reason}` cannot be part of a name")));
            }
            _ => None,
        };
        let body = match entry {
            LogEntry::Tail(log) | LogEntry::Sealed(log) => {
                let header = Header { times: log.times.clone(), carry: log.carry.clone(), history: false };
                self.encrypt(&header, &log.bytes)?
            }
            LogEntry::Beat { .. } | LogEntry::Hole { .. } => Bytes::new(),
            LogEntry::Branch { history, .. } => {
                let header = Header { times: Vec::new(), carry: String::new(), history: history.is_some() };
                self.encrypt(&header, history.as_deref().unwrap_or_default())?
            }
        };
        let mut name = Name {
            sequence: self.sequence,
            kind,
            segment,
            parent,
            reason,
            previous: if kind.lasts() { self.previous_lasting.clone() } else { self.previous.clone() },
            tag: String::new(),
        };
        name.tag = tag(self.vault.keys(), &self.prefix, &name, &body);
        Ok((name, body))
    }

    fn encrypt(&self, header: &Header, bytes: &[u8]) -> Result<Bytes> {
        let mut plain = serde_json::to_vec(header).map_err(|e| Error::Invalid(e.to_string()))?;
        plain.push(b'\n');
        plain.extend_from_slice(bytes);
        let packed = zstd::bulk::compress(&plain, LEVEL).map_err(|e| Error::io("compress log", e))?;
        Ok(self.vault.keys().encrypt_content(&packed)?.into())
    }

    /// Deletes the tails of this generation that a sealed object covers, and the beats that were outdated.
    ///
    /// # Errors
    /// The store's; they are deleted the next time then.
    pub async fn retire(&mut self) -> Result<u64> {
        self.retire_after(Duration::ZERO).await
    }

    /// As [`Self::retire`], for what was covered at least `settled` ago: a restore that was planned before that still reads the tails.
    ///
    /// # Errors
    /// The store's; they are deleted the next time then.
    pub async fn retire_after(&mut self, settled: Duration) -> Result<u64> {
        let covers = |object: &&LogObject| {
            let written = self.sealed_at.get(&object.sequence).unwrap_or(&self.begun);
            object.kind != LogKind::Sealed || written.elapsed() >= settled
        };
        let gone = superseded(&self.written.iter().filter(covers).cloned().collect::<Vec<_>>());
        for key in &gone {
            self.vault.store().delete(key).await?;
            self.written.retain(|object| object.key != *key);
        }
        Ok(gone.len() as u64)
    }
}

/// Whether an object that was written is what the entry asks for.
fn same_entry(object: &LogObject, entry: &LogEntry) -> bool {
    match (object.kind, entry) {
        (LogKind::Tail, LogEntry::Tail(log)) | (LogKind::Sealed, LogEntry::Sealed(log)) => {
            object.segment == log.segment
        }
        (LogKind::Branch, LogEntry::Branch { branch, .. }) => {
            object.segment.first.epoch == branch.epoch && object.segment.first.offset == branch.first
        }
        (LogKind::Hole, LogEntry::Hole { from, reason, .. }) => {
            object.segment.first == *from && object.reason.as_ref() == Some(reason)
        }
        // A beat costs nothing to say again.
        _ => false,
    }
}

fn tag_or_zeros(object: Option<&LogObject>) -> String {
    object.map_or_else(|| "0".repeat(TAG_DIGITS), |object| object.tag.clone())
}

/// The keys of objects of one generation, given in order, that others stand for: tails in a sealed object, beats that were outdated.
pub(crate) fn superseded(objects: &[LogObject]) -> Vec<String> {
    let sealed: Vec<_> = objects.iter().filter(|o| o.kind == LogKind::Sealed).collect();
    let covered = |tail: &LogObject| {
        sealed.iter().any(|s| {
            s.segment.first.epoch == tail.segment.first.epoch
                && s.segment.first.offset <= tail.segment.first.offset
                && s.segment.last.offset >= tail.segment.last.offset
        })
    };
    // Log may say nothing of time, or nothing new: then the beat before it is all that is known.
    let outdated = |beat: &LogObject| {
        objects.iter().any(|o| {
            let latest = o.segment.bracket.latest;
            let says_more = match o.kind {
                LogKind::Tail | LogKind::Sealed => {
                    latest != Instant::MAX && latest >= beat.segment.bracket.earliest
                }
                LogKind::Beat | LogKind::Branch | LogKind::Hole => true,
            };
            o.sequence > beat.sequence && says_more
        })
    };
    let gone = |o: &&LogObject| match o.kind {
        LogKind::Tail => covered(o),
        LogKind::Beat => outdated(o),
        LogKind::Sealed | LogKind::Branch | LogKind::Hole => false,
    };
    objects.iter().filter(gone).map(|o| o.key.clone()).collect()
}

/// Objects of one generation, given in order, that name one before them which is not there though nothing stands for it.
pub(crate) fn missing_before(objects: &[LogObject]) -> Vec<&LogObject> {
    let tags: HashSet<_> = objects.iter().map(|o| o.tag.as_str()).collect();
    let zeros = "0".repeat(TAG_DIGITS);
    let segments = || objects.iter().filter(|o| o.kind != LogKind::Branch);
    let wrong = |object: &LogObject| {
        let first = &object.segment.first;
        // The oldest ones were pruned, and what is first now names one of them. Branches and holes outlive them.
        let mut before = segments().filter(|o| o.sequence < object.sequence);
        if object.kind.lasts() {
            return before.any(|o| o.kind == LogKind::Sealed);
        }
        // Behind a declared hole the log begins anew, and the beats that it began with go.
        let hole = objects.iter().rfind(|o| o.kind == LogKind::Hole && o.sequence < object.sequence);
        let mut before = before.filter(|o| hole.is_none_or(|hole| o.sequence > hole.sequence));
        let reaches = |o: &LogObject| {
            o.segment.first.epoch == first.epoch
                && o.segment.first.offset < first.offset
                && o.segment.last.offset >= first.offset
        };
        before.any(|o| o.segment.first.epoch == first.epoch && o.segment.last.offset < first.offset)
            && !segments().any(reaches)
    };
    let absent = |o: &&LogObject| o.previous != zeros && !tags.contains(o.previous.as_str());
    objects.iter().filter(absent).filter(|object| wrong(object)).collect()
}

/// Objects of one generation, given in order, that name one before them which is not there though one of these snapshots, which begin reading
/// at these places, needs it: with those snapshots. Only the first ones that last, for [`missing_before`] tells of the rest. Prunes leave
/// what a snapshot needs.
pub(crate) fn needed_before<'a>(
    objects: &'a [LogObject],
    begin: &[(String, Place)],
) -> Vec<(&'a LogObject, Vec<String>)> {
    let lasting = || objects.iter().filter(|object| object.kind.lasts());
    let sealed = lasting().position(|object| object.kind == LogKind::Sealed);
    let first = lasting().take(sealed.map_or(usize::MAX, |n| n + 1));
    let absent = |o: &&LogObject| {
        o.previous.bytes().any(|b| b != b'0') && !objects.iter().any(|other| other.tag == o.previous)
    };
    let needed = |object: &'a LogObject| {
        // Where the one before ended: log has no gap but for holes, which last.
        let end = match object.kind {
            LogKind::Branch => object.parent.as_ref()?,
            _ => &object.segment.first,
        };
        let needs = |(_, begin): &&(String, Place)| begin.epoch == end.epoch && begin.offset < end.offset;
        let ids: Vec<String> = begin.iter().filter(needs).map(|(id, _)| id.clone()).collect();
        (!ids.is_empty()).then_some((object, ids))
    };
    first.filter(absent).filter_map(needed).collect()
}

/// Where a generation's objects are.
pub(crate) fn generation_prefix(cluster: &str, incarnation: &str, lane: &Lane, generation: u64) -> String {
    format!("{cluster}/{incarnation}/log/{lane}/{generation:08x}")
}

/// Reads an object's key, without the lane's prefix: `GENERATION/NAME`.
pub(crate) fn parse_object(
    key: &str,
    below_lane: &str,
    incarnation: &str,
    lane: &Lane,
    bytes: u64,
) -> Option<LogObject> {
    let (generation, name) = below_lane.split_once('/')?;
    let name = Name::parse(name)?;
    let number = u64::from_str_radix(generation, 16).ok()?;
    (format!("{number:08x}") == generation)
        .then(|| object(key.to_owned(), incarnation, lane, number, name, bytes))
}

fn object(key: String, incarnation: &str, lane: &Lane, generation: u64, name: Name, bytes: u64) -> LogObject {
    LogObject {
        key,
        incarnation: incarnation.to_owned(),
        lane: lane.clone(),
        generation,
        sequence: name.sequence,
        kind: name.kind,
        segment: name.segment,
        parent: name.parent,
        reason: name.reason,
        tag: name.tag,
        previous: name.previous,
        bytes,
        cut_at: None,
    }
}

fn tag(keys: &Keys, prefix: &str, name: &Name, body: &[u8]) -> String {
    let hash = blake3::hash(body);
    keys.tag(&[b"log", prefix.as_bytes(), name.untagged().as_bytes(), hash.as_bytes()])
}

/// Checks an object's bytes against its name, without decrypting.
pub(crate) fn check(keys: &Keys, object: &LogObject, body: &[u8]) -> Result<()> {
    let (prefix, name) = object.key.rsplit_once('/').unwrap_or(("", &object.key));
    let name = Name::parse(name)
        .ok_or_else(|| Error::damaged(&object.key, "its name is not that of a log's object"))?;
    if tag(keys, prefix, &name, body) == name.tag {
        Ok(())
    } else {
        Err(Error::damaged(&object.key, "its bytes are not those that its name stands for"))
    }
}

/// Decrypts an object whose bytes were checked, and cuts it at its `cut_at`.
pub(crate) fn decode(keys: &Arc<Keys>, object: &LogObject, body: &[u8]) -> Result<LogContent> {
    match object.kind {
        LogKind::Beat => return Ok(LogContent::Beat),
        LogKind::Hole => return Ok(LogContent::Hole),
        LogKind::Tail | LogKind::Sealed | LogKind::Branch => {}
    }
    let damaged = |reason: &str| Error::damaged(&object.key, reason);
    let packed = keys.decrypt_content(&object.key, body)?;
    let size = zstd::bulk::Decompressor::upper_bound(&packed).filter(|size| *size <= PLAIN_BYTES_MAX);
    let size = size.ok_or_else(|| damaged("it is not zstd, or of an impossible size"))?;
    let plain = zstd::bulk::decompress(&packed, size).map_err(|_| damaged("it does not decompress"))?;
    let line = plain.iter().position(|b| *b == b'\n').ok_or_else(|| damaged("it has no header"))?;
    let header: Header =
        serde_json::from_slice(&plain[..line]).map_err(|_| damaged("its header cannot be read"))?;
    let bytes = Bytes::from(plain).slice(line + 1..);
    if object.kind == LogKind::Branch {
        let Place { epoch, offset } = object.segment.first.clone();
        let branch = Branch { epoch, parent: object.parent.clone(), first: offset };
        return Ok(LogContent::Branch { branch, history: header.history.then_some(bytes) });
    }
    let mut data =
        SegmentData { segment: object.segment.clone(), times: header.times, carry: header.carry, bytes };
    if let Some(end) = object.cut_at {
        cut(&mut data, end)
            .ok_or_else(|| damaged("a later writer begins in its midst, where it cannot be cut"))?;
    }
    Ok(LogContent::Segment(data))
}

/// Cuts a stretch of log at `end`, where its offsets count bytes.
fn cut(data: &mut SegmentData, end: Offset) -> Option<()> {
    let Segment { first, last, .. } = &mut data.segment;
    if end >= last.offset {
        return Some(());
    }
    let length = usize::try_from(end.0.checked_sub(first.offset.0)?).ok()?;
    let whole = last.offset.0 - first.offset.0;
    (whole == data.bytes.len() as u128).then_some(())?;
    data.bytes.truncate(length);
    last.offset = end;
    // The mark that reaches over the cut still speaks of what is below it.
    let over = data.times.iter().position(|mark| mark.offset >= end);
    if let Some(over) = over {
        data.times.truncate(over + 1);
        data.times[over].offset = end;
    }
    Some(())
}

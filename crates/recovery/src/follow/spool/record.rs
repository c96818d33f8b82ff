//! The records of a spool file: how they are framed, written and read back.
//!
//! A frame is `length u32 | crc32c u32 | body`, little endian, the checksum over the body; the first byte of a body is its kind. A
//! reader stops at the first frame that is short or does not match its checksum: what is before it is good, what is behind it was
//! never acknowledged. Bytes from a disk are foreign: no length in them is believed beyond what the file holds.

use std::io::{self, Read};

use bytes::Bytes;
use mainstay_engine::{Chunk, TimeMark};
use mainstay_model::{Bracket, Branch, Epoch, Instant, Offset, Place};
use serde::{Deserialize, Serialize};

/// No body is longer; a chunk that would be is refused.
pub(in crate::follow) const BODY_BYTES_MAX: usize = 256 << 20;

/// Bytes of a frame's head.
const HEAD: usize = 8;
const KIND_START: u8 = 1;
const KIND_CHUNK: u8 = 2;
const KIND_NOTE: u8 = 3;

/// What a spool file holds.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::follow) enum Record {
    /// Where the file begins; the first record of each.
    Start(Start),
    /// Some log.
    Chunk(ChunkRecord),
    /// Something to be known of the log at this place.
    Note(Note),
}

/// Where a file begins, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::follow) struct Start {
    /// The place of its first byte.
    pub place: Place,
    /// Whether the file before ends here. Not so where log is missing (or never was).
    pub continues: bool,
    /// Set where this file begins another epoch.
    pub branch: Option<BranchNote>,
}

/// Something to be known of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::follow) enum Note {
    /// How an epoch came to be that the lane is in already.
    Branch(BranchNote),
    /// What would follow is lost.
    Hole {
        /// Why, in a few words: `[a-z0-9-]{1,60}`.
        reason: String,
        /// When that was found.
        found_at: Instant,
    },
}

/// A branch, and the engine's own record of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::follow) struct BranchNote {
    /// How the epoch came to be.
    pub branch: Branch,
    /// A timeline history file, where there is one.
    pub history: Option<Vec<u8>>,
}

/// A [`Chunk`] within a file, whose epoch is the file's.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::follow) struct ChunkRecord {
    /// The offset of its first byte.
    pub offset: Offset,
    /// The offset behind it: further by its bytes, unless this lane counts something else.
    pub end: Offset,
    /// As [`Chunk::carry`].
    pub carry: Option<String>,
    /// As [`Chunk::times`].
    pub times: Vec<TimeMark>,
    /// The log.
    pub bytes: Bytes,
}

impl ChunkRecord {
    /// The part between two offsets. Where offsets do not count bytes a chunk is one piece: all of it, or nothing.
    pub fn cut(&self, from: Offset, to: Offset) -> Bytes {
        if self.end.0 - self.offset.0 != self.bytes.len() as u128 {
            let is_within = from <= self.offset && self.end <= to;
            return if is_within { self.bytes.clone() } else { Bytes::new() };
        }
        let within = |offset: Offset| {
            let ahead = offset.0.saturating_sub(self.offset.0);
            usize::try_from(ahead).unwrap_or(usize::MAX).min(self.bytes.len())
        };
        let (from, to) = (within(from), within(to));
        self.bytes.slice(from..to.max(from))
    }

    /// As the chunk that it was.
    pub fn into_chunk(self, epoch: &Epoch) -> Chunk {
        Chunk {
            at: Place { epoch: epoch.clone(), offset: self.offset },
            bytes: self.bytes,
            times: self.times,
            carry: self.carry,
        }
    }
}

/// Appends the frame of a chunk to `out`, without copying its bytes more than once.
pub(in crate::follow) fn write_chunk(out: &mut Vec<u8>, chunk: &Chunk, end: Offset) {
    let carry_len = chunk.carry.as_ref().map_or(0, String::len);
    frame(out, KIND_CHUNK, 56 + carry_len + chunk.times.len() * 32 + chunk.bytes.len(), |out| {
        out.extend_from_slice(&chunk.at.offset.0.to_le_bytes());
        out.extend_from_slice(&end.0.to_le_bytes());
        match &chunk.carry {
            None => out.extend_from_slice(&u32::MAX.to_le_bytes()),
            Some(carry) => {
                out.extend_from_slice(&length(carry.len()).to_le_bytes());
                out.extend_from_slice(carry.as_bytes());
            }
        }
        out.extend_from_slice(&length(chunk.times.len()).to_le_bytes());
        for mark in &chunk.times {
            out.extend_from_slice(&mark.offset.0.to_le_bytes());
            out.extend_from_slice(&mark.at.earliest.0.to_le_bytes());
            out.extend_from_slice(&mark.at.latest.0.to_le_bytes());
        }
        out.extend_from_slice(&chunk.bytes);
    });
}

/// Appends the frame of a start.
pub(in crate::follow) fn write_start(out: &mut Vec<u8>, start: &Start) {
    write_json(out, KIND_START, start);
}

/// Appends the frame of a note.
pub(in crate::follow) fn write_note(out: &mut Vec<u8>, note: &Note) {
    write_json(out, KIND_NOTE, note);
}

fn write_json<T: Serialize>(out: &mut Vec<u8>, kind: u8, value: &T) {
    // Strings, numbers and options only: nothing in these types can fail to become JSON.
    let json = serde_json::to_vec(value).unwrap_or_default();
    frame(out, kind, json.len(), |out| out.extend_from_slice(&json));
}

fn frame(out: &mut Vec<u8>, kind: u8, size_hint: usize, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.reserve(HEAD + 1 + size_hint);
    out.extend_from_slice(&[0; HEAD]);
    out.push(kind);
    body(out);
    let crc = crc32c::crc32c(&out[at + HEAD..]);
    let len = length(out.len() - at - HEAD);
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
    out[at + 4..at + HEAD].copy_from_slice(&crc.to_le_bytes());
}

/// Lengths fit 32 bits: [`BODY_BYTES_MAX`] is checked before anything is framed.
fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX - 1)
}

/// Reads records one after the other from a file of which `left` bytes may be believed.
pub(in crate::follow) struct Reader<R> {
    from: R,
    left: u64,
    /// Where the next frame begins.
    pos: u64,
}

impl<R: Read> Reader<R> {
    /// `from` stands at byte `pos` of the file, of which `end` bytes may be believed.
    pub fn new(from: R, pos: u64, end: u64) -> Self {
        Self { from, left: end.saturating_sub(pos), pos }
    }

    /// Where the next frame begins: behind the last good one.
    pub fn pos(&self) -> u64 {
        self.pos
    }

    /// The next record; `None` at the end, or at the first frame that is not good.
    ///
    /// # Errors
    /// The disk's.
    pub fn next(&mut self) -> io::Result<Option<Record>> {
        if self.left < HEAD as u64 {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        if !fill(&mut self.from, &mut head)? {
            return Ok(None);
        }
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if len == 0 || len > BODY_BYTES_MAX || (len + HEAD) as u64 > self.left {
            return Ok(None);
        }
        let mut body = vec![0; len];
        if !fill(&mut self.from, &mut body)? || crc32c::crc32c(&body) != crc {
            return Ok(None);
        }
        let Some(record) = parse(Bytes::from(body)) else { return Ok(None) };
        self.left -= (len + HEAD) as u64;
        self.pos += (len + HEAD) as u64;
        Ok(Some(record))
    }
}

/// `read_exact`, but an early end is `false`.
fn fill(from: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(into) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

fn parse(body: Bytes) -> Option<Record> {
    let (kind, rest) = (*body.first()?, body.slice(1..));
    match kind {
        KIND_START => serde_json::from_slice(&rest).ok().map(Record::Start),
        KIND_NOTE => serde_json::from_slice(&rest).ok().map(Record::Note),
        KIND_CHUNK => parse_chunk(rest).map(Record::Chunk),
        _ => None,
    }
}

fn parse_chunk(mut body: Bytes) -> Option<ChunkRecord> {
    let mut take = |n: usize| (body.len() >= n).then(|| body.split_to(n));
    let offset = Offset(u128::from_le_bytes(take(16)?.as_ref().try_into().ok()?));
    let end = Offset(u128::from_le_bytes(take(16)?.as_ref().try_into().ok()?));
    let carry_len = u32::from_le_bytes(take(4)?.as_ref().try_into().ok()?);
    let carry = match carry_len {
        u32::MAX => None,
        n => Some(String::from_utf8(take(n as usize)?.to_vec()).ok()?),
    };
    let count = u32::from_le_bytes(take(4)?.as_ref().try_into().ok()?) as usize;
    let marks = take(count.checked_mul(32)?)?;
    let mark = |m: &[u8]| -> Option<TimeMark> {
        let instant = |at: usize| Some(Instant(i64::from_le_bytes(m.get(at..at + 8)?.try_into().ok()?)));
        Some(TimeMark {
            offset: Offset(u128::from_le_bytes(m.get(..16)?.try_into().ok()?)),
            at: Bracket { earliest: instant(16)?, latest: instant(24)? },
        })
    };
    let times = marks.chunks_exact(32).map(mark).collect::<Option<Vec<_>>>()?;
    (end > offset).then_some(ChunkRecord { offset, end, carry, times, bytes: body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(file: &[u8]) -> (Vec<Record>, u64) {
        let mut reader = Reader::new(file, 0, file.len() as u64);
        let mut records = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            records.push(record);
        }
        (records, reader.pos())
    }

    fn sample() -> (Vec<u8>, Vec<Record>) {
        let place = Place::new("1", 77);
        let note = BranchNote {
            branch: Branch {
                epoch: place.epoch.clone(),
                parent: Some(Place::new("0", 77)),
                first: 77.into(),
            },
            history: Some(b"1\t0/4D\tno reason".to_vec()),
        };
        let start = Start { place: place.clone(), continues: false, branch: Some(note.clone()) };
        let chunk = Chunk {
            at: place.clone(),
            bytes: Bytes::from_static(b"some log"),
            times: vec![TimeMark { offset: 85.into(), at: Bracket::between(Instant(5), Instant(9)) }],
            carry: Some("db 3".to_owned()),
        };
        let mut file = Vec::new();
        write_start(&mut file, &start);
        write_chunk(&mut file, &chunk, 85.into());
        write_note(&mut file, &Note::Branch(note.clone()));
        let record = ChunkRecord {
            offset: chunk.at.offset,
            end: 85.into(),
            carry: chunk.carry.clone(),
            times: chunk.times.clone(),
            bytes: chunk.bytes,
        };
        (file, vec![Record::Start(start), Record::Chunk(record), Record::Note(Note::Branch(note))])
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let (file, records) = sample();
        assert_eq!(all(&file), (records, file.len() as u64));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_torn_or_flipped_file_ends_at_its_last_good_record(cut in 0_usize..1000, flip in 0_usize..1000, bit in 0_u8..8) {
            let (file, records) = sample();
            let mut torn = file[..cut % (file.len() + 1)].to_vec();
            let (read, end) = all(&torn);
            prop_assert_eq!(&read[..], &records[..read.len()]);
            prop_assert!(end as usize <= torn.len());
            if !torn.is_empty() {
                let at = flip % torn.len();
                torn[at] ^= 1 << bit;
                let (read, _) = all(&torn);
                prop_assert_eq!(&read[..], &records[..read.len()]);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = all(&bytes);
            let mut framed = Vec::new();
            frame(&mut framed, KIND_CHUNK, bytes.len(), |out| out.extend_from_slice(&bytes));
            let _ = all(&framed);
        }
    }
}

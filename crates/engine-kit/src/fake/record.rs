//! The log's records, as they lie in a lane's file, travel, and are read back.
//!
//! `length u32 | crc32c u32 | time i64 | kind u8 | key length u32 | key | value`, little endian; the length and the checksum are of
//! what follows them. What is read may come from anywhere: no length in it is believed.

use mainstay_engine::{Error, Kind, Result};
use mainstay_model::Instant;

/// Bytes before the checked part.
const HEAD: usize = 8;

/// One entry of a lane's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it happened, by the server's clock.
    pub time: Instant,
    /// What happened.
    pub op: Op,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A key has this value from now on.
    Set(String, String),
    /// A key is gone.
    Delete(String),
    /// A barrier of that name.
    Mark(String),
    /// The server is there, and has nothing to say.
    Ping,
}

impl Record {
    /// As it lies in the file.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, key, value) = match &self.op {
            Op::Set(key, value) => (1, key.as_str(), value.as_str()),
            Op::Delete(key) => (2, key.as_str(), ""),
            Op::Mark(name) => (3, name.as_str(), ""),
            Op::Ping => (4, "", ""),
        };
        let mut body = Vec::with_capacity(13 + key.len() + value.len());
        body.extend_from_slice(&self.time.0.to_le_bytes());
        body.push(kind);
        body.extend_from_slice(&length(key.len()).to_le_bytes());
        body.extend_from_slice(key.as_bytes());
        body.extend_from_slice(value.as_bytes());
        let mut bytes = Vec::with_capacity(HEAD + body.len());
        bytes.extend_from_slice(&length(body.len()).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        bytes.append(&mut body);
        bytes
    }

    /// Reads the record at the start of `bytes`, and how many bytes it takes; `None` if it is not all there.
    ///
    /// # Errors
    /// `Damaged` when the bytes are not a record.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>> {
        let damaged = |what: &str| Error::new(Kind::Damaged, format!("the log: {what}"));
        let Some(size) = number(bytes, 0) else { return Ok(None) };
        if !(13..=1 << 30).contains(&size) {
            return Err(damaged("a record of an impossible length"));
        }
        let (Some(body), Some(crc)) = (bytes.get(HEAD..HEAD + size), number(bytes, 4)) else {
            return Ok(None);
        };
        if crc32c::crc32c(body) as usize != crc {
            return Err(damaged("a record whose checksum is another"));
        }
        let time = body.first_chunk::<8>().map(|time| Instant(i64::from_le_bytes(*time)));
        let key_end = number(body, 9).map(|key| key.saturating_add(13)).filter(|end| *end <= body.len());
        let (Some(time), Some(key_end)) = (time, key_end) else {
            return Err(damaged("a key beyond its record"));
        };
        let text =
            |part: &[u8]| String::from_utf8(part.to_vec()).map_err(|_| damaged("a key that is no text"));
        let key = text(&body[13..key_end])?;
        let op = match body[8] {
            1 => Op::Set(key, text(&body[key_end..])?),
            2 => Op::Delete(key),
            3 => Op::Mark(key),
            4 => Op::Ping,
            _ => return Err(damaged("a record of an unknown kind")),
        };
        Ok(Some((Self { time, op }, HEAD + size)))
    }

    /// Reads all whole records, each with the number of bytes up to its end; what is left at the end is not whole.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<(Self, usize)>> {
        let mut records = Vec::new();
        let mut at = 0;
        while let Some((record, size)) = Self::decode(&bytes[at..])? {
            at += size;
            records.push((record, at));
        }
        Ok(records)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at + 4)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*four)).ok()
}

fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX) // which no reader takes
}

//! Looks at an RDB file as it passes by: its head, what it says of its place, and its checksum.
//!
//! Nothing is gathered but the first kilobytes. The checksum is CRC-64 as Redis computes it (Jones' polynomial, reflected, initial value 0)
//! over all but its own eight bytes, which are zero where the server was told not to compute one.

use std::collections::BTreeMap;

use crc_fast::{CrcAlgorithm, Digest};

/// How much of the beginning is kept to read the auxiliary fields from. They come first, and are a few hundred bytes.
const HEAD_BYTES: usize = 4096;
/// The last bytes: the end opcode and the checksum.
const TAIL_BYTES: usize = 9;
const OPCODE_AUX: u8 = 0xfa;
const OPCODE_END: u8 = 0xff;

/// The bytes are not a whole RDB file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RdbError {
    /// It does not begin as one.
    #[error("the copy does not begin as an RDB file")]
    Head,
    /// It does not end as one.
    #[error("the copy ends after {0} bytes, before its end mark")]
    Cut(u64),
    /// Its checksum is another.
    #[error("the copy has checksum {found:016x}, and {expected:016x} is written in it")]
    Checksum {
        /// What is written.
        expected: u64,
        /// What it is.
        found: u64,
    },
}

/// What a whole RDB file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdbFacts {
    /// The format's version.
    pub version: u32,
    /// Its auxiliary fields: `redis-ver`, `repl-id`, `repl-offset`, `repl-stream-db`, …
    pub aux: BTreeMap<String, String>,
    /// Whether a checksum was written (and was right).
    pub checked: bool,
    /// How long it is.
    pub bytes: u64,
}

/// Takes in an RDB file piece by piece.
#[derive(Debug, Clone)]
pub struct RdbCheck {
    head: Vec<u8>,
    tail: Vec<u8>,
    crc: Digest,
    bytes: u64,
}

impl Default for RdbCheck {
    fn default() -> Self {
        Self { head: Vec::new(), tail: Vec::new(), crc: Digest::new(CrcAlgorithm::Crc64Redis), bytes: 0 }
    }
}

impl RdbCheck {
    /// The next piece.
    pub fn feed(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        let room = HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(&piece[..room.min(piece.len())]);
        // What may be the end is held back: the checksum does not cover itself.
        if piece.len() >= TAIL_BYTES {
            self.crc.update(&self.tail);
            let (sure, tail) = piece.split_at(piece.len() - TAIL_BYTES);
            self.crc.update(sure);
            self.tail.clear();
            self.tail.extend_from_slice(tail);
        } else {
            self.tail.extend_from_slice(piece);
            let sure = self.tail.len().saturating_sub(TAIL_BYTES);
            self.crc.update(&self.tail[..sure]);
            self.tail.drain(..sure);
        }
    }

    /// What it was, if it was whole.
    ///
    /// # Errors
    /// As [`RdbError`].
    pub fn finish(&self) -> Result<RdbFacts, RdbError> {
        let version = self
            .head
            .get(..9)
            .filter(|head| head.starts_with(b"REDIS"))
            .and_then(|head| std::str::from_utf8(&head[5..]).ok())
            .and_then(|digits| digits.parse().ok())
            .ok_or(RdbError::Head)?;
        let (Some(&OPCODE_END), Some(written)) = (self.tail.first(), self.tail.get(1..TAIL_BYTES)) else {
            return Err(RdbError::Cut(self.bytes));
        };
        let mut expected = [0; 8];
        expected.copy_from_slice(written);
        let expected = u64::from_le_bytes(expected);
        let mut crc = self.crc;
        crc.update(&[OPCODE_END]);
        let found = crc.finalize();
        if expected != 0 && expected != found {
            return Err(RdbError::Checksum { expected, found });
        }
        let aux = aux_fields(&self.head[9..]);
        Ok(RdbFacts { version, aux, checked: expected != 0, bytes: self.bytes })
    }
}

/// The auxiliary fields at the beginning, as far as they can be read.
fn aux_fields(mut bytes: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some((&OPCODE_AUX, rest)) = bytes.split_first() {
        let Some((key, rest)) = string(rest) else { break };
        let Some((value, rest)) = string(rest) else { break };
        fields.insert(key, value);
        bytes = rest;
    }
    fields
}

/// A length-prefixed string, or a number where one was stored as such. Compressed ones do not occur here.
fn string(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let number = |width: usize| -> Option<(String, &[u8])> {
        let (digits, rest) = rest.split_at_checked(width)?;
        let mut value = [0; 8];
        // Sign-extended by the last byte, which is the highest.
        if digits.last().is_some_and(|byte| *byte >= 0x80) {
            value = [0xff; 8];
        }
        value[..width].copy_from_slice(digits);
        Some((i64::from_le_bytes(value).to_string(), rest))
    };
    let (length, rest) = match first >> 6 {
        0 => (usize::from(first & 0x3f), rest),
        1 => {
            let (&second, rest) = rest.split_first()?;
            (usize::from(first & 0x3f) << 8 | usize::from(second), rest)
        }
        3 => {
            return match first & 0x3f {
                0 => number(1),
                1 => number(2),
                2 => number(4),
                _ => None,
            };
        }
        _ => return None,
    };
    let (text, rest) = rest.split_at_checked(length)?;
    Some((String::from_utf8_lossy(text).into_owned(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(body: &[u8]) -> Vec<u8> {
        let mut bytes =
            b"REDIS0010\xfa\x0erepl-stream-db\xc0\x03\xfa\x0brepl-offset\xc2\x01\x00\x00\x01".to_vec();
        bytes.extend_from_slice(body);
        bytes.push(OPCODE_END);
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Redis, &bytes);
        bytes.extend(crc.to_le_bytes());
        bytes
    }

    fn run(pieces: &[&[u8]]) -> Result<RdbFacts, RdbError> {
        let mut check = RdbCheck::default();
        for piece in pieces {
            check.feed(piece);
        }
        check.finish()
    }

    #[test]
    fn the_checksum_is_redis_own() {
        // The check value in Redis's crc64.c.
        assert_eq!(crc_fast::checksum(CrcAlgorithm::Crc64Redis, b"123456789"), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn the_head_is_read() {
        let facts = run(&[&file(b"\xfb\x00\x00")]).unwrap();
        assert_eq!(facts.version, 10);
        assert_eq!(facts.aux["repl-stream-db"], "3");
        assert_eq!(facts.aux["repl-offset"], "16777217");
        assert!(facts.checked);
    }

    proptest! {
        #[test]
        fn any_division_gives_the_same_answer_and_any_damage_is_found(
            body in proptest::collection::vec(any::<u8>(), 0..6000),
            cut in any::<prop::sample::Index>(),
            size in 1usize..40,
            bit in any::<prop::sample::Index>(),
        ) {
            let mut bytes = file(&body);
            let whole = run(&[&bytes]);
            prop_assert!(whole.is_ok());
            let at = cut.index(bytes.len());
            prop_assert_eq!(&run(&[&bytes[..at], &bytes[at..]]), &whole);
            prop_assert_eq!(&run(&bytes.chunks(size).collect::<Vec<_>>()), &whole);
            // A file cut short ends in an end mark and eight bytes only by chance, and then its checksum is wrong.
            prop_assert!(run(&[&bytes[..at]]).is_err());
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(run(&[&bytes]).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = run(&[&bytes]);
            let _ = run(&[b"REDIS0010", &bytes]);
        }
    }
}

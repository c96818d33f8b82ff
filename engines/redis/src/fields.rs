//! Fields of hashes that have an end of life of their own (Redis 7.4 and later), read from what `DUMP` gives.
//!
//! No command shows a field whose time has passed, not even to the master of a replica; `DUMP` gives them all. Its payload is the value as
//! it would stand in an RDB file: a type, the value, the format's version and a checksum. Two types have such fields: a table
//! (each field with its end relative to the earliest one) and a listpack of (field, value, end). Strings may not be compressed
//! (`rdbcompression no`, as servers have that are fed).

/// A hash as a table, some of whose fields have an end.
pub const TYPE_TABLE: u8 = 24;
/// A hash as a listpack, some of whose fields have an end.
pub const TYPE_LISTPACK: u8 = 25;
/// The format's version and the checksum at the end of a payload.
const FOOTER_BYTES: usize = 10;
/// The length of a listpack's own head: its bytes and its number of elements.
const LISTPACK_HEAD_BYTES: usize = 6;
const LISTPACK_END: u8 = 0xff;

/// Fields and the times at which they end, in milliseconds since the epoch. None when the payload cannot be read; empty when no field of
/// it has an end.
pub fn ends_of(dump: &[u8]) -> Option<Vec<(Vec<u8>, u64)>> {
    let (&kind, rest) = dump.get(..dump.len().checked_sub(FOOTER_BYTES)?)?.split_first()?;
    if kind != TYPE_TABLE && kind != TYPE_LISTPACK {
        return Some(Vec::new());
    }
    let (earliest, mut rest) = rest.split_first_chunk::<8>()?;
    let earliest = u64::from_le_bytes(*earliest);
    if kind == TYPE_LISTPACK {
        return listpack_ends(&string(&mut rest)?);
    }
    let mut ends = Vec::new();
    let Length::Plain(count) = length(&mut rest)? else { return None };
    for _ in 0..count {
        let Length::Plain(after) = length(&mut rest)? else { return None };
        let field = string(&mut rest)?;
        string(&mut rest)?;
        // 0 is none; 1 is the earliest.
        if let Some(after) = after.checked_sub(1) {
            ends.push((field, earliest.checked_add(after)?));
        }
    }
    Some(ends)
}

enum Length {
    Plain(u64),
    /// A number in so many bytes, instead of a string.
    Number(usize),
}

fn length(bytes: &mut &[u8]) -> Option<Length> {
    let first = take(bytes, 1)?[0];
    Some(match first >> 6 {
        0 => Length::Plain(u64::from(first & 0x3f)),
        1 => Length::Plain(u64::from(first & 0x3f) << 8 | u64::from(take(bytes, 1)?[0])),
        2 if first == 0x80 => Length::Plain(big_endian(take(bytes, 4)?)),
        2 if first == 0x81 => Length::Plain(big_endian(take(bytes, 8)?)),
        3 if first & 0x3f < 3 => Length::Number(1 << (first & 0x3f)),
        _ => return None,
    })
}

fn string(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    match length(bytes)? {
        Length::Plain(length) => take(bytes, usize::try_from(length).ok()?).map(<[u8]>::to_vec),
        Length::Number(width) => Some(little_endian(take(bytes, width)?).to_string().into_bytes()),
    }
}

/// Elements of a listpack come in threes: field, value, end (0 for none).
fn listpack_ends(listpack: &[u8]) -> Option<Vec<(Vec<u8>, u64)>> {
    let mut rest = listpack.get(LISTPACK_HEAD_BYTES..)?;
    let mut ends = Vec::new();
    let mut three = Vec::new();
    loop {
        if rest.first() == Some(&LISTPACK_END) {
            return (three.is_empty() && rest.len() == 1).then_some(ends);
        }
        three.push(element(&mut rest)?);
        if let [field, _, end] = &mut three[..] {
            let end: u64 = std::str::from_utf8(end).ok()?.parse().ok()?;
            if end > 0 {
                ends.push((std::mem::take(field), end));
            }
            three.clear();
        }
    }
}

/// One element of a listpack, numbers as text. Behind each stands its own length, to be read backwards; it is skipped.
fn element(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let before = bytes.len();
    let first = take(bytes, 1)?[0];
    let number = |bytes: &mut &[u8], width| Some(little_endian(take(bytes, width)?).to_string().into_bytes());
    let value = match first {
        0x00..=0x7f => first.to_string().into_bytes(),
        0x80..=0xbf => take(bytes, usize::from(first & 0x3f))?.to_vec(),
        0xc0..=0xdf => {
            let raw = i64::from(first & 0x1f) << 8 | i64::from(take(bytes, 1)?[0]);
            // 13 bits with a sign.
            let value = if raw >= 1 << 12 { raw - (1 << 13) } else { raw };
            value.to_string().into_bytes()
        }
        0xe0..=0xef => {
            let length = usize::from(first & 0x0f) << 8 | usize::from(take(bytes, 1)?[0]);
            take(bytes, length)?.to_vec()
        }
        0xf0 => {
            let length = u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?);
            take(bytes, usize::try_from(length).ok()?)?.to_vec()
        }
        0xf1 => number(bytes, 2)?,
        0xf2 => number(bytes, 3)?,
        0xf3 => number(bytes, 4)?,
        0xf4 => number(bytes, 8)?,
        _ => return None,
    };
    // Seven bits of the length to a byte.
    let back = match before - bytes.len() {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        2_097_152..=268_435_455 => 4,
        _ => 5,
    };
    take(bytes, back)?;
    Some(value)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// With the sign of the last byte, which is the highest.
pub(crate) fn little_endian(bytes: &[u8]) -> i64 {
    let negative = bytes.last().is_some_and(|byte| *byte >= 0x80);
    let start = if negative { -1 } else { 0 };
    bytes.iter().rev().fold(start, |value, byte| value << 8 | i64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_have_their_signs() {
        assert_eq!(little_endian(&[0xff, 0xff]), -1);
        assert_eq!(little_endian(&[0x00, 0x80]), -32768);
        assert_eq!(little_endian(&[0xff, 0x7f]), 32767);
        assert_eq!(big_endian(&[1, 0]), 256);
    }

    #[test]
    fn a_table_is_read() {
        let mut dump = vec![TYPE_TABLE];
        dump.extend(1000_u64.to_le_bytes());
        dump.extend([3, 0, 1, b'a', 1, b'x', 1, 0xc0, 7, 1, b'y', 0x40, 0x65, 1, b'c', 1, b'z']);
        dump.extend([0; FOOTER_BYTES]);
        assert_eq!(ends_of(&dump), Some(vec![(b"7".to_vec(), 1000), (b"c".to_vec(), 1100)]));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(kind in prop_oneof![Just(TYPE_TABLE), Just(TYPE_LISTPACK), any::<u8>()],
            bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut dump = vec![kind];
            dump.extend(bytes);
            let _ = ends_of(&dump);
        }
    }
}

//! Walks through an RDB file as it passes by, and tells the keys that have an end of life.
//!
//! The file is a row of opcodes and keys with values; a value's type says how it is written. Each type is a short list of steps,
//! and the walk is a stack of what is still to come, so values of any size are passed over with a constant amount of memory. What
//! it does not know (types of a later version) ends the walk; then its caller does without.

/// A key longer than this is not told.
const KEY_BYTES_MAX: u64 = 1 << 20;
/// The most bytes that one step needs at once: a mark, and two lengths of nine bytes.
const STEP_BYTES_MAX: usize = 19;
const HEAD_BYTES: u64 = 9;
const CHECKSUM_BYTES: u64 = 8;

/// One thing that is read.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// An opcode, or the type of a value, whose key is next.
    Opcode,
    /// A length, of no interest.
    Length,
    /// So many bytes.
    Raw(u64),
    /// A string.
    Text,
    /// A length, and as often these.
    Many(&'static [Step]),
    /// These, so many times more.
    Again(u64, &'static [Step]),
    /// A score as text: a byte that says how long it is.
    Score,
    /// The parts of a module's value, up to its end.
    Module,
    /// The number of a database.
    Database,
    /// A key, to be told if it has an end of life.
    Key,
    /// So many bytes of a key; how long it will be, if it is compressed.
    KeyBytes(u64, Option<u64>),
    /// Nothing may follow.
    End,
}

use Step::{Again, Database, End, Key, KeyBytes, Length, Many, Module, Opcode, Raw, Score, Text};

/// A stream's listpacks, by their first ids.
const LISTPACKS: Step = Many(&[Text, Text]);
/// What a consumer group has not heard of yet: id, time, how often.
const PENDING: Step = Many(&[Raw(24), Length]);
/// The same of one consumer: ids.
const ITS_PENDING: Step = Many(&[Raw(16)]);
/// The number of entries and the last id; groups with name and last id, what is pending, and consumers.
const STREAM_1: &[Step] = &[
    LISTPACKS,
    Again(3, &[Length]),
    Many(&[Text, Again(2, &[Length]), PENDING, Many(&[Text, Raw(8), ITS_PENDING])]),
];
/// With first and deleted ids, and how many entries were ever added and read.
const STREAM_2: &[Step] = &[
    LISTPACKS,
    Again(8, &[Length]),
    Many(&[Text, Again(3, &[Length]), PENDING, Many(&[Text, Raw(8), ITS_PENDING])]),
];
/// With the time at which each consumer was active.
const STREAM_3: &[Step] = &[
    LISTPACKS,
    Again(8, &[Length]),
    Many(&[Text, Again(3, &[Length]), PENDING, Many(&[Text, Raw(16), ITS_PENDING])]),
];

/// How a value of a type is written (rdb.h of Redis 8.2).
fn value(kind: u8) -> Option<&'static [Step]> {
    Some(match kind {
        // Strings, and what is packed into one: zipmap, ziplists, intset, listpacks.
        0 | 9..=13 | 16 | 17 | 20 => &[Text],
        // Lists and sets.
        1 | 2 | 14 => &[Many(&[Text])],
        3 => &[Many(&[Text, Score])],
        4 => &[Many(&[Text, Text])],
        5 => &[Many(&[Text, Raw(8)])],
        7 => &[Length, Module],
        15 => STREAM_1,
        18 => &[Many(&[Length, Text])],
        19 => STREAM_2,
        21 => STREAM_3,
        // Hashes whose fields have ends of life.
        24 => &[Raw(8), Many(&[Length, Text, Text])],
        25 => &[Raw(8), Text],
        _ => return None,
    })
}

/// What follows an opcode that is no value.
fn opcode(code: u8) -> Option<&'static [Step]> {
    Some(match code {
        // The size of a slot's table.
        0xf4 => &[Again(3, &[Length])],
        // A library of functions.
        0xf5 => &[Text],
        // What a module keeps beside keys.
        0xf7 => &[Length, Length, Length, Module],
        // How long the next key was not used; how often it was.
        0xf8 => &[Length],
        0xf9 => &[Raw(1)],
        // A field about the file.
        0xfa => &[Text, Text],
        // The size of the tables to come.
        0xfb => &[Length, Length],
        // The end of the next key's life, in milliseconds and in seconds.
        0xfc => &[Raw(8)],
        0xfd => &[Raw(4)],
        0xfe => &[Database],
        0xff => &[Raw(CHECKSUM_BYTES), End],
        _ => return None,
    })
}

/// The walk. See the module's head.
#[derive(Debug)]
pub struct Walk {
    /// What is to come, the next last.
    steps: Vec<Step>,
    /// The beginning of a step that is not all here.
    carry: Vec<u8>,
    db: u32,
    key: Vec<u8>,
    mortal: bool,
    lost: bool,
}

impl Default for Walk {
    fn default() -> Self {
        Walk {
            steps: vec![Opcode, Raw(HEAD_BYTES)],
            carry: Vec::new(),
            db: 0,
            key: Vec::new(),
            mortal: false,
            lost: false,
        }
    }
}

impl Walk {
    /// The next piece; `tell` is given each key that has an end of life, with its database.
    pub fn feed(&mut self, mut piece: &[u8], mut tell: impl FnMut(u32, &[u8])) {
        while !self.lost && !piece.is_empty() {
            if self.carry.is_empty() {
                let used = self.steps(piece, &mut tell);
                piece = &piece[used..];
                // What is left is less than one step.
                if piece.len() < STEP_BYTES_MAX {
                    self.carry.extend_from_slice(piece);
                    return;
                }
            } else {
                // The step that was cut, from what is kept and as little as may be of what came.
                let kept = self.carry.len();
                let take = piece.len().min(STEP_BYTES_MAX);
                let mut both = std::mem::take(&mut self.carry);
                both.extend_from_slice(&piece[..take]);
                let used = self.steps(&both, &mut tell);
                if used >= kept {
                    piece = &piece[used - kept..];
                } else {
                    both.drain(..used);
                    self.carry = both;
                    piece = &piece[take..];
                }
            }
        }
    }

    /// Whether all that was fed was understood, up to the file's end.
    pub fn ended(&self) -> bool {
        !self.lost && self.carry.is_empty() && matches!(self.steps[..], [End])
    }

    /// Goes on as far as whole steps are there, and says how many bytes they took.
    fn steps(&mut self, bytes: &[u8], tell: &mut impl FnMut(u32, &[u8])) -> usize {
        let mut rest = bytes;
        while let Some(step) = self.steps.pop() {
            let before = rest;
            match self.step(step, &mut rest, tell) {
                Ok(()) => {}
                Err(Short::Bytes) => {
                    self.steps.push(step);
                    return bytes.len() - before.len();
                }
                Err(Short::Lost) => {
                    self.lost = true;
                    break;
                }
            }
            if rest.is_empty() && !matches!(self.steps.last(), Some(Raw(0) | Again(0, _) | KeyBytes(0, _))) {
                break;
            }
        }
        bytes.len() - rest.len()
    }

    fn step(&mut self, step: Step, rest: &mut &[u8], tell: &mut impl FnMut(u32, &[u8])) -> Result<(), Short> {
        match step {
            Opcode => {
                let code = take(rest, 1)?[0];
                self.steps.push(Opcode);
                if let Some(steps) = value(code) {
                    self.push(steps);
                    self.steps.push(Key);
                } else {
                    let steps = opcode(code).ok_or(Short::Lost)?;
                    match code {
                        0xfc | 0xfd => self.mortal = true,
                        0xff => self.steps.clear(),
                        _ => {}
                    }
                    self.push(steps);
                }
            }
            Length => {
                length(rest)?.plain()?;
            }
            Raw(count) => {
                let left = pass(rest, count);
                if left > 0 {
                    self.steps.push(Raw(left));
                }
            }
            Text => {
                let (bytes, _) = length(rest)?.text(rest)?;
                self.steps.push(Raw(bytes));
            }
            Many(steps) => {
                let count = length(rest)?.plain()?;
                self.steps.push(Again(count, steps));
            }
            Again(count, steps) => {
                if let Some(left) = count.checked_sub(1) {
                    self.steps.push(Again(left, steps));
                    self.push(steps);
                }
            }
            Score => {
                let bytes = take(rest, 1)?[0];
                // Beyond these it says infinity, or no number.
                self.steps.push(Raw(if bytes < 253 { u64::from(bytes) } else { 0 }));
            }
            Module => {
                let next = match length(rest)?.plain()? {
                    0 => return Ok(()),
                    1 | 2 => Length,
                    3 => Raw(4),
                    4 => Raw(8),
                    5 => Text,
                    _ => return Err(Short::Lost),
                };
                self.steps.push(Module);
                self.steps.push(next);
            }
            Database => self.db = u32::try_from(length(rest)?.plain()?).map_err(|_| Short::Lost)?,
            Key => {
                let begin = length(rest)?;
                self.key.clear();
                if let Number(width) = begin {
                    let digits = take(rest, width)?;
                    self.key.extend_from_slice(crate::fields::little_endian(digits).to_string().as_bytes());
                    self.steps.push(KeyBytes(0, None));
                } else {
                    let (bytes, inflated) = begin.text(rest)?;
                    if bytes.max(inflated.unwrap_or(0)) > KEY_BYTES_MAX {
                        return Err(Short::Lost);
                    }
                    self.steps.push(KeyBytes(bytes, inflated));
                }
            }
            KeyBytes(count, inflated) => {
                let before = *rest;
                let left = pass(rest, count);
                self.key.extend_from_slice(&before[..before.len() - rest.len()]);
                if left > 0 {
                    self.steps.push(KeyBytes(left, inflated));
                } else if std::mem::take(&mut self.mortal) {
                    match inflated {
                        Some(length) => tell(self.db, &inflate(&self.key, length).ok_or(Short::Lost)?),
                        None => tell(self.db, &self.key),
                    }
                }
            }
            End => return Err(Short::Lost),
        }
        Ok(())
    }

    fn push(&mut self, steps: &[Step]) {
        self.steps.extend(steps.iter().rev());
    }
}

/// Why a step is not done.
enum Short {
    /// More bytes are needed.
    Bytes,
    /// It is not understood.
    Lost,
}

/// What a length says.
enum Begin {
    Plain(u64),
    /// A number in so many bytes, instead of a string.
    Number(usize),
    /// Two lengths follow, and a string that is compressed.
    Compressed,
}

use Begin::{Compressed, Number, Plain};

impl Begin {
    fn plain(self) -> Result<u64, Short> {
        match self {
            Plain(length) => Ok(length),
            Number(_) | Compressed => Err(Short::Lost),
        }
    }

    /// How many bytes of the string follow, and how long it is if that is compressed.
    fn text(self, rest: &mut &[u8]) -> Result<(u64, Option<u64>), Short> {
        match self {
            Plain(length) => Ok((length, None)),
            Number(width) => Ok((width as u64, None)),
            Compressed => {
                let packed = length(rest)?.plain()?;
                Ok((packed, Some(length(rest)?.plain()?)))
            }
        }
    }
}

fn length(rest: &mut &[u8]) -> Result<Begin, Short> {
    let first = take(rest, 1)?[0];
    let number = |bytes: &[u8]| bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    Ok(match (first >> 6, first & 0x3f) {
        (0, low) => Plain(u64::from(low)),
        (1, low) => Plain(u64::from(low) << 8 | u64::from(take(rest, 1)?[0])),
        (2, 0) => Plain(number(take(rest, 4)?)),
        (2, 1) => Plain(number(take(rest, 8)?)),
        (3, low @ 0..=2) => Number(1 << low),
        (3, 3) => Compressed,
        _ => return Err(Short::Lost),
    })
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], Short> {
    let (taken, left) = rest.split_at_checked(count).ok_or(Short::Bytes)?;
    *rest = left;
    Ok(taken)
}

/// Passes over as many bytes as are there, and says how many are left.
fn pass(rest: &mut &[u8], count: u64) -> u64 {
    let here = usize::try_from(count).unwrap_or(usize::MAX).min(rest.len());
    *rest = &rest[here..];
    count - here as u64
}

/// Undoes LZF: runs of plain bytes, and copies of what came before.
fn inflate(mut packed: &[u8], length: u64) -> Option<Vec<u8>> {
    let length = usize::try_from(length).ok()?;
    let mut out = Vec::with_capacity(length);
    while let Some((&head, rest)) = packed.split_first() {
        packed = rest;
        if head < 32 {
            let (plain, rest) = packed.split_at_checked(usize::from(head) + 1)?;
            out.extend_from_slice(plain);
            packed = rest;
            continue;
        }
        let mut count = usize::from(head >> 5) + 2;
        if count == 9 {
            let (&more, rest) = packed.split_first()?;
            count += usize::from(more);
            packed = rest;
        }
        let (&low, rest) = packed.split_first()?;
        packed = rest;
        let from = out.len().checked_sub((usize::from(head & 0x1f) << 8 | usize::from(low)) + 1)?;
        // What is copied may be what is being written.
        for at in from..from + count {
            out.push(out[at]);
        }
        if out.len() > length {
            return None;
        }
    }
    (out.len() == length).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(pieces: &[&[u8]]) -> (Vec<(u32, Vec<u8>)>, bool) {
        let mut walk = Walk::default();
        let mut told = Vec::new();
        for piece in pieces {
            walk.feed(piece, |db, key| told.push((db, key.to_vec())));
        }
        let ended = walk.ended();
        (told, ended)
    }

    /// Keys of many types, every second with an end of life.
    fn file() -> Vec<u8> {
        let mut bytes = b"REDIS0012\xfa\x09redis-ver\x055.0.0\xf5\x03fun\xfe\x02\xfb\x08\x04".to_vec();
        let mut number = 0_u8;
        let mut key = |bytes: &mut Vec<u8>, kind: u8, value: &[u8]| {
            if number.is_multiple_of(2) {
                bytes.push(0xfc);
                bytes.extend([9; 8]);
            }
            bytes.extend([kind, 2, b'k', b'a' + number]);
            bytes.extend_from_slice(value);
            number += 1;
        };
        key(&mut bytes, 0, b"\x05hello");
        key(&mut bytes, 0, b"\xc1\x01\x02");
        key(&mut bytes, 0, &[&b"\xc3\x03\x44\x00"[..], &[7; 3]].concat());
        key(&mut bytes, 1, b"\x02\x01a\xc0\x07");
        key(&mut bytes, 5, &[&b"\x01\x01a"[..], &[0; 8]].concat());
        key(&mut bytes, 18, b"\x02\x01\x01x\x02\x80\x00\x00\x00\x02ab");
        key(&mut bytes, 3, b"\x02\x01a\xff\x01b\x033.5");
        key(&mut bytes, 7, &[&b"\x81\0\0\0\0\0\0\0\x01\x02\x09\x05\x03abc\x04"[..], &[1; 8], &[0]].concat());
        let pending = [&[0; 24][..], &[1]].concat();
        let consumer = [&b"\x01c"[..], &[0; 16], &[1], &[0; 16]].concat();
        let group = [&b"\x01g\x01\x02\x03\x01"[..], &pending, &[1], &consumer].concat();
        key(&mut bytes, 21, &[&b"\x01\x02id\x02lp\x01\x02\x03\x04\x05\x06\x07\x08\x01"[..], &group].concat());
        key(&mut bytes, 24, &[&[0; 8][..], b"\x01\x01\x01f\x01v"].concat());
        bytes
            .extend(b"\xfe\x00\xf4\x01\x02\x03\xf8\x40\x50\xf9\x07\xfd\x01\x02\x03\x04\x00\xc1\xff\xff\x01v");
        bytes.push(0xff);
        bytes.extend([0xaa; 8]);
        bytes
    }

    #[test]
    fn keys_with_an_end_of_life_are_told() {
        let (told, ended) = run(&[&file()]);
        assert!(ended);
        let keys: Vec<_> = told.iter().map(|(db, key)| (*db, String::from_utf8_lossy(key))).collect();
        let in_two = ["ka", "kc", "ke", "kg", "ki"].map(|key| (2, key.into()));
        assert_eq!(keys, [&in_two[..], &[(0, "-1".into())]].concat());
    }

    #[test]
    fn what_is_compressed_is_inflated() {
        // Two plain bytes, and seven copied from two before: `ababababa`.
        assert_eq!(inflate(b"\x01ab\xa0\x01", 9).unwrap(), b"ababababa");
        assert_eq!(inflate(b"\x01ab\xa0\x01", 8), None);
        assert_eq!(inflate(b"\x01ab\xa0\x02", 9), None);
    }

    #[test]
    fn what_is_not_known_ends_the_walk() {
        let (told, ended) = run(&[b"REDIS0099\xfe\x00\xc8\x01k\x01v\xff\0\0\0\0\0\0\0\0"]);
        assert!(told.is_empty() && !ended);
    }

    proptest! {
        #[test]
        fn any_division_gives_the_same(
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
            size in 1_usize..30,
        ) {
            let bytes = file();
            let whole = run(&[&bytes]);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(&run(&pieces), &whole);
            prop_assert_eq!(&run(&bytes.chunks(size).collect::<Vec<_>>()), &whole);
            for pair in at.windows(2).take(1) {
                prop_assert_eq!(run(&[&bytes[..pair[1]]]).1, pair[1] == bytes.len());
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            run(&[b"REDIS0012", &bytes]);
        }
    }
}

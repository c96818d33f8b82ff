//! The stream as it must be sent late: one command is not applied by a replica as its master applied it.
//!
//! `HPERSIST` passes over a field whose time has passed, on a replica too (seen on 8.2.3), so that a field which was made permanent in
//! time would die in a restore that comes later. So each one is preceded by an `HPEXPIREAT` of the same fields, far in the future: that is
//! applied whatever the time, and then there is something to make permanent. Offsets in the log are not those that are sent: a
//! caller compares the place in the log by [`Reviver::clean`], and what was sent by what it sent.

use crate::stream::{Boundary, Command, Splitter, StreamError};

/// In milliseconds: the year 2200. A field's end is stored in 48 bits.
const LATER: &[u8] = b"7258118400000";
/// How much of an unfinished command is kept back in case it turns out to be the one. A longer one is only if it says so in its name.
const KEPT_BYTES: usize = 64 * 1024;
const NAME: &str = "HPERSIST";

/// Passes a stream on, with what must be put in. See the module's head.
#[derive(Debug)]
pub struct Reviver {
    splitter: Splitter,
    /// Bytes of a command that has not ended, not passed on yet.
    kept: Vec<u8>,
}

impl Reviver {
    /// At a boundary of the log.
    pub fn new(at: Boundary) -> Reviver {
        Reviver { splitter: Splitter::new(at), kept: Vec::new() }
    }

    /// As [`Splitter::clean`], in the log's offsets.
    pub fn clean(&self) -> Option<Boundary> {
        self.splitter.clean()
    }

    /// Takes in a piece of the log and gives what is to be sent, in one or more pieces. What belongs to a command that has not ended may
    /// be kept back. `see` is shown every command that ends.
    ///
    /// # Errors
    /// What `send` gives; a piece that is no stream, as `E`.
    pub fn feed<E: From<StreamError>>(
        &mut self,
        piece: &[u8],
        mut see: impl FnMut(&Command<'_>),
        mut send: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let base = self.splitter.offset() - self.kept.len() as u64;
        let mut found = Vec::new();
        self.splitter.feed(piece, |command| {
            see(command);
            if command.is(NAME) {
                found.push((command.start, command.end));
            }
        })?;
        if found.is_empty() && self.kept.is_empty() && self.splitter.at_boundary() {
            return send(piece);
        }
        self.kept.extend_from_slice(piece);
        // All within what is in memory.
        let index = |offset: u64| usize::try_from(offset.saturating_sub(base)).unwrap_or(usize::MAX);
        let mut sent = 0;
        for (start, end) in found {
            let command = &self.kept[index(start)..index(end)];
            if let Some(before) = expire_instead(command) {
                send(&self.kept[sent..index(start)])?;
                send(&before)?;
                sent = index(start);
            }
        }
        let unfinished = index(self.splitter.boundary().offset);
        let may_be = self.splitter.unfinished().is_none_or(|name| name.eq_ignore_ascii_case(NAME.as_bytes()));
        let upto =
            if self.kept.len() - unfinished <= KEPT_BYTES || may_be { unfinished } else { self.kept.len() };
        if upto > sent {
            send(&self.kept[sent..upto])?;
        }
        self.kept.drain(..upto);
        Ok(())
    }

    /// What is kept back: nothing at a clean place.
    #[cfg(test)]
    fn rest(&self) -> &[u8] {
        &self.kept
    }
}

/// `HPEXPIREAT key LATER FIELDS …` for `HPERSIST key FIELDS …`.
fn expire_instead(command: &[u8]) -> Option<Vec<u8>> {
    let line = |from: usize| memchr::memchr(b'\n', &command[from..]).map(|at| from + at + 1);
    let number = |from: usize, to: usize, prefix: u8| -> Option<usize> {
        std::str::from_utf8(command.get(from..to)?.strip_prefix(&[prefix])?).ok()?.trim_end().parse().ok()
    };
    let name = line(0)?;
    let count = number(0, name, b'*')?;
    let name_text = line(name)?;
    let key = name_text + number(name, name_text, b'$')? + 2;
    let key_text = line(key)?;
    let rest = key_text + number(key, key_text, b'$')? + 2;
    let mut out = format!("*{}\r\n$10\r\nHPEXPIREAT\r\n", count + 1).into_bytes();
    out.extend_from_slice(command.get(key..rest)?);
    out.extend_from_slice(format!("${}\r\n", LATER.len()).as_bytes());
    out.extend_from_slice(LATER);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&command[rest..]);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::encode;
    use proptest::prelude::*;

    const START: Boundary = Boundary { offset: 50, db: None, in_multi: false };

    fn run(pieces: &[&[u8]]) -> Vec<u8> {
        let mut reviver = Reviver::new(START);
        let mut out = Vec::new();
        for piece in pieces {
            let taken = reviver.feed(
                piece,
                |_| {},
                |bytes| {
                    out.extend_from_slice(bytes);
                    Ok::<(), StreamError>(())
                },
            );
            taken.unwrap();
        }
        out.extend_from_slice(reviver.rest());
        out
    }

    #[test]
    fn a_field_is_given_a_life_before_it_is_made_permanent() {
        let persist = encode(&[b"HPERSIST", b"k\r\n", b"FIELDS", b"2", b"a", b"b"]);
        let set = encode(&[b"SET", b"a", b"HPERSIST"]);
        let expire = encode(&[b"HPEXPIREAT", b"k\r\n", LATER, b"FIELDS", b"2", b"a", b"b"]);
        let log = [set.clone(), persist.clone(), set.clone()].concat();
        assert_eq!(run(&[&log]), [set.clone(), expire, persist, set].concat());
    }

    proptest! {
        #[test]
        fn any_division_gives_the_same(
            kinds in proptest::collection::vec(0..4, 0..12),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let command = |kind: &i32| match kind {
                0 => encode(&[b"HPERSIST", b"key", b"FIELDS", b"1", b"field"]),
                1 => encode(&[b"SET", b"a", &vec![b'x'; 3 * KEPT_BYTES]]),
                2 => encode(&[b"hpersist", &vec![b'k'; 2 * KEPT_BYTES], b"FIELDS", b"1", b"f"]),
                _ => encode(&[b"PING"]),
            };
            let log: Vec<u8> = kinds.iter().flat_map(command).collect();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(log.len() + 1)).collect();
            at.extend([0, log.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &log[pair[0]..pair[1]]).collect();
            let expected: Vec<u8> = kinds.iter().flat_map(|kind| {
                let command = command(kind);
                let before = if kind % 2 == 0 { expire_instead(&command).unwrap() } else { Vec::new() };
                [before, command].concat()
            }).collect();
            prop_assert!(run(&pieces) == expected);
        }
    }
}

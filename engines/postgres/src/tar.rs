//! Tar archives as BASE_BACKUP sends them, split as they come.
//!
//! Understands what PostgreSQL writes (`src/port/tar.c`): ustar headers, octal or base-256 sizes, files, directories, links.
//! Refuses names that leave the folder, wrong checksums, and anything else.

use bytes::{Buf, Bytes};

const BLOCK_BYTES: usize = 512;

/// What an archive holds at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative, without `.` and `..`.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of content.
    pub size: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link(String),
}

/// A step through an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// An entry begins.
    Begin(Entry),
    /// Content of the entry that began last.
    Data(Bytes),
    /// The entry is whole.
    End,
}

/// Bytes that are no archive of PostgreSQL's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an archive of PostgreSQL's: {0}")]
pub struct TarError(pub String);

enum State {
    Header,
    Content { left: u64, padding: u64 },
    Padding(u64),
}

/// Splits one archive.
pub struct Splitter {
    state: State,
    header: Vec<u8>,
}

impl Default for Splitter {
    fn default() -> Self {
        Self { state: State::Header, header: Vec::with_capacity(BLOCK_BYTES) }
    }
}

impl Splitter {
    /// Takes the next bytes and gives each piece in them.
    ///
    /// # Errors
    /// The bytes are no archive; what `each` gives.
    pub fn push(&mut self, mut bytes: Bytes) -> Result<Vec<Piece>, TarError> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            match self.state {
                State::Header => {
                    let n = (BLOCK_BYTES - self.header.len()).min(bytes.len());
                    self.header.extend_from_slice(&bytes.split_to(n));
                    if self.header.len() == BLOCK_BYTES {
                        self.begin(&mut pieces)?;
                        self.header.clear();
                    }
                }
                State::Content { left, padding } => {
                    let now = bytes.split_to(left.min(bytes.len() as u64) as usize);
                    let left = left - now.len() as u64;
                    pieces.push(Piece::Data(now));
                    self.state = State::Content { left, padding };
                    if left == 0 {
                        pieces.push(Piece::End);
                        self.state = if padding > 0 { State::Padding(padding) } else { State::Header };
                    }
                }
                State::Padding(left) => {
                    let n = left.min(bytes.len() as u64);
                    bytes.advance(n as usize);
                    self.state = if n == left { State::Header } else { State::Padding(left - n) };
                }
            }
        }
        Ok(pieces)
    }

    /// Whether the archive may end here.
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Header) && self.header.is_empty()
    }

    fn begin(&mut self, pieces: &mut Vec<Piece>) -> Result<(), TarError> {
        let header = &self.header;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let sum: u32 = header
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        if number(&header[148..156]) != Some(u64::from(sum)) {
            return Err(TarError("a header whose checksum is wrong".into()));
        }
        let path = relative(&text(&header[0..100]))?;
        let short = || TarError(format!("numbers of {path:?}"));
        let size = number(&header[124..136]).ok_or_else(short)?;
        let mode = (number(&header[100..108]).ok_or_else(short)? & 0o7777) as u32;
        let kind = match header[156] {
            b'0' | 0 => EntryKind::File,
            b'5' => EntryKind::Directory,
            b'2' => EntryKind::Link(text(&header[157..257])),
            other => return Err(TarError(format!("an entry of kind {:?}", char::from(other)))),
        };
        let size = if kind == EntryKind::File { size } else { 0 };
        if size > u64::MAX / 4 {
            return Err(short());
        }
        pieces.push(Piece::Begin(Entry { path, kind, mode, size }));
        if size == 0 {
            pieces.push(Piece::End);
        } else {
            let padding = size.next_multiple_of(BLOCK_BYTES as u64) - size;
            self.state = State::Content { left: size, padding };
        }
        Ok(())
    }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Octal digits, or a binary number behind 0x80.
fn number(field: &[u8]) -> Option<u64> {
    if field.first() == Some(&0x80) {
        return field[1..]
            .iter()
            .try_fold(0u64, |all, byte| all.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let digits = text(field);
    u64::from_str_radix(digits.trim_matches(' '), 8).ok()
}

/// A path without `./` in front and `/` behind; refuses one that leaves the folder.
pub fn relative(path: &str) -> Result<String, TarError> {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if path.starts_with('/') || parts.contains(&"..") {
        return Err(TarError(format!("a path that leaves the folder: {path:?}")));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, length) in [("base/1/1259", 20_000), ("PG_VERSION", 3), ("empty", 0), ("exact", 1024)] {
            let mut header = tar::Header::new_ustar();
            header.set_path(path).unwrap();
            header.set_size(length);
            header.set_mode(0o600);
            header.set_cksum();
            builder.append(&header, std::io::repeat(7).take(length)).unwrap();
        }
        builder.into_inner().unwrap()
    }

    use std::io::Read;

    #[test]
    fn archives_are_split_whatever_the_pieces() {
        let archive = archive();
        for piece in [1, 100, 512, 5000, 100_000] {
            let mut splitter = Splitter::default();
            let mut seen: Vec<(String, u64)> = Vec::new();
            for bytes in archive.chunks(piece) {
                for piece in splitter.push(Bytes::copy_from_slice(bytes)).unwrap() {
                    match piece {
                        Piece::Begin(entry) => seen.push((entry.path, 0)),
                        Piece::Data(bytes) => seen.last_mut().unwrap().1 += bytes.len() as u64,
                        Piece::End => {}
                    }
                }
            }
            assert!(splitter.is_between());
            let expected = [("base/1/1259", 20_000), ("PG_VERSION", 3), ("empty", 0), ("exact", 1024)];
            assert_eq!(seen, expected.map(|(path, size)| (path.to_owned(), size)));
        }
    }

    #[test]
    fn paths_stay_inside() {
        assert_eq!(relative("./base//1/").as_deref(), Ok("base/1"));
        assert!(relative("/etc/passwd").is_err());
        assert!(relative("base/../../x").is_err());
    }

    proptest::proptest! {
        #[test]
        fn foreign_bytes_never_panic(at in 0usize..1500, with in proptest::collection::vec(proptest::num::u8::ANY, 1..600)) {
            let mut archive = archive();
            archive.splice(at..at + with.len().min(200), with.iter().copied());
            let mut splitter = Splitter::default();
            for bytes in archive.chunks(333) {
                if splitter.push(Bytes::copy_from_slice(bytes)).is_err() {
                    break;
                }
            }
        }
    }
}

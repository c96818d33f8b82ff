//! The keys that may have an end of life, noted as they pass on their way to a server that is fed.
//!
//! Asking a server for them means looking at each of its keys, in a script, which takes longer than loading the file did. They are noted from the
//! copy ([`crate::walk`]) and from the commands behind it that can give a key a life, into a file beside the node, so that memory stays
//! as it is. A key may be noted that has no end, or twice. One may also be missing: whoever uses them counts, and looks at all keys
//! if too few were noted.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use crate::stream::Command;
use crate::walk::Walk;

/// The commands that can give a key a life, and the argument that names the key.
const GIVE_LIFE: [(&str, usize); 14] = [
    ("SET", 1),
    ("PEXPIREAT", 1),
    ("EXPIREAT", 1),
    ("PEXPIRE", 1),
    ("EXPIRE", 1),
    ("SETEX", 1),
    ("PSETEX", 1),
    ("GETEX", 1),
    ("RESTORE", 1),
    ("RESTORE-ASKING", 1),
    ("RENAME", 2),
    ("RENAMENX", 2),
    ("COPY", 2),
    ("MOVE", 1),
];
/// `SET key value` alone gives none.
const SET_PLAIN_ARGUMENTS: u64 = 3;
/// Longer keys are not noted: from the stream, only their beginning is known.
const KEY_BYTES_MAX: usize = 191;
const BUFFER_BYTES: usize = 256 * 1024;

/// Keys that are being noted.
#[derive(Debug)]
pub struct Noting {
    /// `None` when something made the notes useless.
    out: Option<BufWriter<File>>,
    walk: Walk,
    /// The database that is selected in the stream.
    db: Option<u32>,
}

impl Noting {
    /// Into a file without a name in `dir`. `db` is the database that is selected where the stream begins.
    pub fn begin(dir: &Path, db: Option<u32>) -> Noting {
        let file = tempfile::tempfile_in(dir);
        let file = file.inspect_err(|error| tracing::warn!(%error, "cannot note keys")).ok();
        let out = file.map(|file| BufWriter::with_capacity(BUFFER_BYTES, file));
        Noting { out, walk: Walk::default(), db }
    }

    /// A piece of the copy.
    pub fn copy(&mut self, piece: &[u8]) {
        let Noting { out, walk, .. } = self;
        if out.is_some() {
            walk.feed(piece, |db, key| note(out, db, key));
        }
    }

    /// A command of the stream behind it.
    pub fn command(&mut self, command: &Command<'_>) {
        let argument = |index: usize| command.arguments.get(index).map(Vec::as_slice);
        let number = |index: usize| std::str::from_utf8(argument(index)?).ok()?.parse::<u32>().ok();
        if command.is("SELECT") {
            self.db = number(1);
            return;
        }
        if command.is("SWAPDB") {
            self.out = None;
            return;
        }
        let Some((_, index)) = GIVE_LIFE.iter().find(|(name, _)| command.is(name)) else { return };
        if command.is("SET") && command.argument_count <= SET_PLAIN_ARGUMENTS {
            return;
        }
        let db = if command.is("MOVE") { number(2) } else { self.db };
        if let (Some(key), Some(db)) = (argument(*index), db)
            && key.len() <= KEY_BYTES_MAX
        {
            note(&mut self.out, db, key);
        }
    }

    /// All that was noted; none if the copy was not understood to its end, or the notes could not be written.
    pub fn end(self) -> Option<Noted> {
        let out = self.out.filter(|_| self.walk.ended())?;
        let file = out.into_inner().map_err(|error| error.into_error());
        file.map(|file| Noted { file }).inspect_err(|error| tracing::warn!(%error, "cannot note keys")).ok()
    }
}

fn note(out: &mut Option<BufWriter<File>>, db: u32, key: &[u8]) {
    let Some(file) = out else { return };
    // A key of the copy is at most a MiB.
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
    let head = [db.to_le_bytes(), length.to_le_bytes()].concat();
    if let Err(error) = file.write_all(&head).and_then(|()| file.write_all(key)) {
        tracing::warn!(%error, "cannot note keys");
        *out = None;
    }
}

/// Keys that were noted.
#[derive(Debug)]
pub struct Noted {
    file: File,
}

impl Noted {
    /// The keys of one database, in the order in which they passed.
    ///
    /// # Errors
    /// That of the file.
    pub fn keys(&mut self, db: u32) -> std::io::Result<impl Iterator<Item = std::io::Result<Vec<u8>>>> {
        self.file.rewind()?;
        let mut file = BufReader::with_capacity(BUFFER_BYTES, &self.file);
        let mut next = move || -> std::io::Result<Option<Vec<u8>>> {
            while !file.fill_buf()?.is_empty() {
                let mut head = [[0; 4]; 2];
                file.read_exact(head.as_flattened_mut())?;
                let [of, length] = head.map(u32::from_le_bytes);
                let mut key = vec![0; length as usize];
                file.read_exact(&mut key)?;
                if of == db {
                    return Ok(Some(key));
                }
            }
            Ok(None)
        };
        Ok(std::iter::from_fn(move || next().transpose()))
    }
}

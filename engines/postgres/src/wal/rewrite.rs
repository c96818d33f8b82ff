//! Makes log harmless to this machine: no replayed record may reach a file outside the data directory.
//!
//! One kind of record carries a path: CREATE TABLESPACE. Replayed as it is, it links to the original directory, and on the
//! machine it came from the sandbox would then write into the live files. The path is emptied in place and the
//! record's checksum computed anew; PostgreSQL 15 and later take an empty path as "inside the data directory", in recovery
//! whatever `allow_in_place_tablespaces` says (`create_tablespace_directories`). Lengths and places stay as they are.
//!
//! All log that is fed goes through here, so every record's checksum was checked before a server sees it.

use super::event::{Event, decode, is_tablespace_create, main_data_at};
use super::scan::{Record, Scanner, WalError};
use super::{LONG_HEADER_BYTES, PAGE_BYTES, PAGE_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::lsn::Lsn;

/// Bytes to be put in place of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Where.
    pub at: Lsn,
    /// What.
    pub bytes: Vec<u8>,
}

/// Looks for paths in log.
pub struct Rewriter {
    scanner: Scanner,
    segment_size: u64,
    patches: Vec<Patch>,
    tablespaces: Vec<(u32, String)>,
    settings: [i32; 5],
}

impl Rewriter {
    /// Begins with `scanner`.
    pub fn new(scanner: Scanner, segment_size: u64) -> Self {
        Self { scanner, segment_size, patches: Vec::new(), tablespaces: Vec::new(), settings: [0; 5] }
    }

    /// Looks at the next bytes, and gives every event in them.
    ///
    /// # Errors
    /// What is no log: see [`Scanner::push`].
    pub fn push(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&Record<'_>, Option<&Event>),
    ) -> Result<(), WalError> {
        let Self { scanner, segment_size, patches, tablespaces, .. } = self;
        let settings = &mut self.settings;
        scanner.push(bytes, |record| {
            let event = decode(record);
            match &event {
                Some(Event::TablespaceCreate { oid, path }) if !path.is_empty() => {
                    tablespaces.push((*oid, path.clone()));
                    patches.extend(patch(record, *segment_size));
                }
                Some(Event::Parameters {
                    max_connections,
                    max_worker_processes,
                    max_wal_senders,
                    max_prepared_transactions,
                    max_locks_per_transaction,
                }) => {
                    let now = [
                        *max_connections,
                        *max_worker_processes,
                        *max_wal_senders,
                        *max_prepared_transactions,
                        *max_locks_per_transaction,
                    ];
                    for (kept, now) in settings.iter_mut().zip(now) {
                        *kept = (*kept).max(now);
                    }
                }
                _ => {}
            }
            each(record, event.as_ref());
        })
    }

    /// Below this no further patch can come: what lies below may be handed on. A record of another kind is let go while it is
    /// still incomplete, so that one of a gigabyte does not hold a gigabyte back.
    pub fn settled(&self) -> Lsn {
        match self.scanner.clean() {
            Some(clean) if clean < self.scanner.at() => match self.scanner.pending() {
                Some(header) if header.len() >= RECORD_HEADER_BYTES && !is_tablespace_create(header) => {
                    self.scanner.at()
                }
                Some(_) => clean,
                None => self.scanner.at(),
            },
            _ => self.scanner.at(),
        }
    }

    /// The end of the last whole record.
    pub fn clean(&self) -> Option<Lsn> {
        self.scanner.clean()
    }

    /// Puts every patch that lies in it into `bytes`, which begin at `at`.
    pub fn apply(&self, at: Lsn, bytes: &mut [u8]) {
        for patch in &self.patches {
            for (n, byte) in patch.bytes.iter().enumerate() {
                let Some(index) = patch.at.plus(n as u64).0.checked_sub(at.0) else { continue };
                if let Some(place) = usize::try_from(index).ok().and_then(|index| bytes.get_mut(index)) {
                    *place = *byte;
                }
            }
        }
    }

    /// The tablespaces that were made in this log, with the directories that they had.
    pub fn tablespaces(&self) -> &[(u32, String)] {
        &self.tablespaces
    }

    /// The highest settings that the log names, in the order of [`Event::Parameters`].
    pub fn settings(&self) -> [i32; 5] {
        self.settings
    }
}

/// The patches that empty the path of a CREATE TABLESPACE record and put its checksum right.
fn patch(record: &Record<'_>, segment_size: u64) -> Vec<Patch> {
    let Some(data) = main_data_at(record.bytes) else { return Vec::new() };
    let path = data + 4;
    let mut bytes = record.bytes.to_vec();
    let Some(text) = bytes.get_mut(path..) else { return Vec::new() };
    text.fill(0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[RECORD_HEADER_BYTES..]), &bytes[..20]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    let mut patches: Vec<Patch> = Vec::new();
    let mut at = record.start;
    for (n, byte) in bytes.iter().enumerate() {
        if at.0.is_multiple_of(PAGE_BYTES) {
            let long = at.0.is_multiple_of(segment_size);
            at = at.plus(if long { LONG_HEADER_BYTES } else { PAGE_HEADER_BYTES } as u64);
        }
        if (20..24).contains(&n) || n >= path {
            match patches.last_mut() {
                Some(last) if last.at.plus(last.bytes.len() as u64) == at => last.bytes.push(*byte),
                _ => patches.push(Patch { at, bytes: vec![*byte] }),
            }
        }
        at = at.plus(1);
    }
    patches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::testing::Log;

    #[test]
    fn paths_are_emptied_and_the_log_stays_a_log() {
        for shift in 0..300 {
            let mut log = Log::new(Lsn(1 << 20), 1 << 20);
            // The record moves over the end of a page, byte by byte.
            log.append(10, 0, &vec![1; 7700 + shift * 2]);
            log.tablespace(16_500, "/srv/live/tablespace/of/the/source");
            log.append(10, 0, &[2; 20]);
            let mut rewriter = Rewriter::new(Scanner::new(log.first, 1 << 20, None), 1 << 20);
            for (n, bytes) in log.bytes.chunks(97).enumerate() {
                rewriter.push(bytes, |_, _| {}).unwrap();
                assert!(rewriter.settled() <= log.first.plus((n as u64 + 1) * 97));
            }
            assert_eq!(rewriter.tablespaces(), [(16_500, "/srv/live/tablespace/of/the/source".to_owned())]);
            rewriter.apply(log.first, &mut log.bytes);
            let mut scanner = Scanner::new(log.first, 1 << 20, None);
            let mut events = Vec::new();
            scanner.push(&log.bytes, |record| events.extend(decode(record))).unwrap();
            assert_eq!(events, [Event::TablespaceCreate { oid: 16_500, path: String::new() }]);
        }
    }
}

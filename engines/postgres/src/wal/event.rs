//! What a record says, where it says something that matters to a restore.

use super::scan::Record;
use super::{RECORD_HEADER_BYTES, i64_at, rmgr, u16_at, u32_at, u64_at};
use crate::lsn::{Lsn, Timeline};
use crate::replication::EPOCH_OFFSET_US;

/// Something that a record says. Times are microseconds since the Unix epoch, by the source's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A transaction was committed (also a prepared one).
    Commit {
        /// When.
        time_us: i64,
    },
    /// A transaction was rolled back (also a prepared one).
    Abort {
        /// When.
        time_us: i64,
    },
    /// `pg_create_restore_point`.
    RestorePoint {
        /// Its name.
        name: String,
        /// When.
        time_us: i64,
    },
    /// `pg_logical_emit_message`.
    Message {
        /// Who it is meant for.
        prefix: String,
        /// As much of it as was kept.
        content: Vec<u8>,
    },
    /// CREATE TABLESPACE: replay would link to this directory.
    TablespaceCreate {
        /// Its OID.
        oid: u32,
        /// The directory; empty for one within the data directory.
        path: String,
    },
    /// A checkpoint.
    Checkpoint {
        /// From where redo would start.
        redo: Lsn,
        /// The server was shut down cleanly.
        shutdown: bool,
    },
    /// Recovery ended here; another timeline begins.
    EndOfRecovery {
        /// When.
        time_us: i64,
        /// The new timeline.
        timeline: Timeline,
        /// The one before.
        previous: Timeline,
    },
    /// Settings that a standby must not be below.
    Parameters {
        /// `max_connections`
        max_connections: i32,
        /// `max_worker_processes`
        max_worker_processes: i32,
        /// `max_wal_senders`
        max_wal_senders: i32,
        /// `max_prepared_transactions`
        max_prepared_transactions: i32,
        /// `max_locks_per_transaction`
        max_locks_per_transaction: i32,
    },
    /// The rest of the segment is unused.
    Switch,
}

/// What `record` says, if anything of interest here.
pub fn decode(record: &Record<'_>) -> Option<Event> {
    match record.rmgr {
        rmgr::XACT | rmgr::XLOG | rmgr::TBLSPC | rmgr::LOGICALMSG => {}
        _ => return None,
    }
    let kind = record.info & 0xF0;
    let data = main_data(record)?;
    match record.rmgr {
        rmgr::XACT => match kind & 0x70 {
            0x00 | 0x30 => Some(Event::Commit { time_us: time_at(data, 0)? }),
            0x20 | 0x40 => Some(Event::Abort { time_us: time_at(data, 0)? }),
            _ => None,
        },
        rmgr::XLOG => match kind {
            0x00 | 0x10 => Some(Event::Checkpoint { redo: Lsn(u64_at(data, 0)?), shutdown: kind == 0 }),
            0x40 => Some(Event::Switch),
            0x60 => {
                let field = |index: usize| u32_at(data, index * 4).map(u32::cast_signed);
                Some(Event::Parameters {
                    max_connections: field(0)?,
                    max_worker_processes: field(1)?,
                    max_wal_senders: field(2)?,
                    max_prepared_transactions: field(3)?,
                    max_locks_per_transaction: field(4)?,
                })
            }
            0x70 => Some(Event::RestorePoint { time_us: time_at(data, 0)?, name: text(data.get(8..)?) }),
            0x90 => Some(Event::EndOfRecovery {
                time_us: time_at(data, 0)?,
                timeline: u32_at(data, 8)?,
                previous: u32_at(data, 12)?,
            }),
            _ => None,
        },
        rmgr::TBLSPC if kind == 0 => {
            Some(Event::TablespaceCreate { oid: u32_at(data, 0)?, path: text(data.get(4..)?) })
        }
        rmgr::LOGICALMSG => {
            let prefix_bytes = usize::try_from(u64_at(data, 8)?).ok()?;
            let prefix = data.get(24..24usize.checked_add(prefix_bytes)?)?;
            Some(Event::Message { prefix: text(prefix), content: data[24 + prefix_bytes..].to_vec() })
        }
        _ => None,
    }
}

/// Where the main data of a record without block references begins, in the record, and what is there of it.
pub(super) fn main_data_at(bytes: &[u8]) -> Option<usize> {
    let mut at = RECORD_HEADER_BYTES;
    loop {
        match *bytes.get(at)? {
            255 => return Some(at + 2),
            254 => return Some(at + 5),
            253 => at += 3,
            252 => at += 5,
            // A block reference: none of the records that are decoded has one.
            _ => return None,
        }
    }
}

fn main_data<'a>(record: &Record<'a>) -> Option<&'a [u8]> {
    // A switch has no data at all.
    if record.length as usize == RECORD_HEADER_BYTES {
        return Some(&[]);
    }
    record.bytes.get(main_data_at(record.bytes)?..)
}

fn time_at(data: &[u8], at: usize) -> Option<i64> {
    Some(i64_at(data, at)?.saturating_add(EPOCH_OFFSET_US))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Whether a record header's beginning could be a tablespace's creation: info and resource manager, at 16 and 17.
pub(super) fn is_tablespace_create(header: &[u8]) -> bool {
    header.get(17) == Some(&rmgr::TBLSPC)
        && header.get(16).is_some_and(|info| info & 0xF0 == 0)
        && u16_at(header, 16).is_some()
}

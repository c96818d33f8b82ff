//! The write-ahead log, read without a server: pages, records, what they say of time, and where to cut.
//!
//! Everything here takes foreign bytes: it is pure, bounded in memory (a record's first [`RECORD_BYTES_KEPT`] bytes are kept,
//! however long it is), and never panics. Layouts are those of `src/include/access/xlog_internal.h`, `xlogrecord.h` and
//! the `*_xlog.h` of PostgreSQL 15 to 18.

mod cut;
mod event;
mod rewrite;
mod scan;
#[cfg(test)]
pub(crate) mod testing;

pub use self::cut::{CutError, Finder, Found, Wanted};
pub use self::event::{Event, decode};
pub use self::rewrite::{Patch, Rewriter};
pub use self::scan::{Record, Scanner, WalError};

/// Bytes of a page of log (XLOG_BLCKSZ); other builds are refused.
pub const PAGE_BYTES: u64 = 8192;
/// Bytes of the header of a page, and of a segment's first page.
pub const PAGE_HEADER_BYTES: usize = 24;
/// Bytes of the header of a segment's first page.
pub const LONG_HEADER_BYTES: usize = 40;
/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 24;
/// How much of a record is kept to be decoded.
pub const RECORD_BYTES_KEPT: usize = 64 << 10;
/// The longest record that PostgreSQL writes (XLogRecordMaxSize).
pub const RECORD_BYTES_MAX: u32 = 1020 << 20;

/// Resource managers whose records mean something here (`rmgrlist.h`).
pub mod rmgr {
    #![expect(missing_docs, reason = "the names are PostgreSQL's")]
    pub const XLOG: u8 = 0;
    pub const XACT: u8 = 1;
    pub const DBASE: u8 = 4;
    pub const TBLSPC: u8 = 5;
    pub const LOGICALMSG: u8 = 21;
}

/// The page magic of a major version.
pub fn magic_of(major: u32) -> Option<u16> {
    Some(match major {
        14 => 0xD10D,
        15 => 0xD110,
        16 => 0xD113,
        17 => 0xD116,
        18 => 0xD118,
        _ => return None,
    })
}

/// The header of a segment's first page, as the server writes it: for segments whose beginning is not needed and not known.
pub fn long_header(
    magic: u16,
    timeline: u32,
    start: crate::lsn::Lsn,
    system_id: u64,
    segment_size: u32,
) -> [u8; LONG_HEADER_BYTES] {
    let mut header = [0; LONG_HEADER_BYTES];
    header[0..2].copy_from_slice(&magic.to_le_bytes());
    header[2..4].copy_from_slice(&2u16.to_le_bytes());
    header[4..8].copy_from_slice(&timeline.to_le_bytes());
    header[8..16].copy_from_slice(&start.0.to_le_bytes());
    header[24..32].copy_from_slice(&system_id.to_le_bytes());
    header[32..36].copy_from_slice(&segment_size.to_le_bytes());
    header[36..40].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
    header
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

pub(crate) fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    bytes.get(at..)?.first_chunk().map(|chunk| i64::from_le_bytes(*chunk))
}

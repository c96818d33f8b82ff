//! Checksums of relation pages, and which files have them.
//!
//! The checksum is PostgreSQL's own: FNV-1a in 32 lanes over the page with its checksum field zeroed, folded to 16 bits with
//! the block's number (`src/include/storage/checksum_impl.h`). A page that fails may have been read while it was written: it is
//! read again, and forgiven only when its LSN is not before the snapshot's start, because then the log has it whole.

use crate::lsn::Lsn;

/// Bytes of a page (BLCKSZ); other builds are refused.
pub const PAGE_BYTES: usize = 8192;
/// Blocks in a file of a relation (RELSEG_SIZE).
pub const SEGMENT_BLOCKS: u32 = 131_072;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
const OFFSETS: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// The checksum that `page` should carry as block `block` of its relation; `None` unless it is one whole page.
pub fn checksum(page: &[u8], block: u32) -> Option<u16> {
    let page: &[u8; PAGE_BYTES] = page.try_into().ok()?;
    let mut sums = OFFSETS;
    for (row_number, row) in page.chunks_exact(LANES * 4).enumerate() {
        let mut words = [0u32; LANES];
        for (word, bytes) in words.iter_mut().zip(row.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        if row_number == 0 {
            // pd_checksum: the two bytes at 8.
            words[2] &= 0xFFFF_0000;
        }
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = mix(*sum, word);
        }
    }
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = mix(*sum, 0);
        }
    }
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    Some((folded % 65_535 + 1) as u16)
}

fn mix(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Never used: all zeros, or without an upper end.
    New,
    /// Its checksum is right.
    Good,
    /// It is not; with the page's LSN, which says whether the log has it whole.
    Bad(Lsn),
}

/// Judges one page as block `block` of its relation.
pub fn judge(page: &[u8], block: u32) -> Page {
    let field = |at: usize| page.get(at..at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    // PageIsNew: pd_upper is 0.
    if field(14) == 0 {
        return Page::New;
    }
    if checksum(page, block) == Some(field(8)) {
        return Page::Good;
    }
    let half = |at: usize| u64::from(field(at)) | u64::from(field(at + 2)) << 16;
    Page::Bad(Lsn(half(0) << 32 | half(4)))
}

/// The number of the first block in a relation's file, if `path` (relative to the data directory) is such a file: any fork of a
/// relation, in `global`, `base` or a tablespace. Other files have no page checksums.
pub fn first_block(path: &str) -> Option<u32> {
    let mut parts = path.rsplit('/');
    let name = parts.next()?;
    let folder = parts.next()?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let inside = path.starts_with("base/") || path.starts_with("pg_tblspc/");
    if !(folder == "global" && path == format!("global/{name}") || inside && number(folder)) {
        return None;
    }
    let (stem, segment) = name.split_once('.').map_or((name, None), |(stem, segment)| (stem, Some(segment)));
    let relation = stem
        .split_once('_')
        .map_or(stem, |(relation, fork)| if matches!(fork, "vm" | "fsm" | "init") { relation } else { "" });
    if !number(relation) {
        return None;
    }
    match segment {
        None => Some(0),
        Some(segment) if number(segment) => segment.parse::<u32>().ok()?.checked_mul(SEGMENT_BLOCKS),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relation_files_are_told_from_others() {
        assert_eq!(first_block("base/5/1259"), Some(0));
        assert_eq!(first_block("base/5/1259.2"), Some(262_144));
        assert_eq!(first_block("base/5/1259_vm"), Some(0));
        assert_eq!(first_block("base/5/1259_fsm.1"), Some(131_072));
        assert_eq!(first_block("global/1260"), Some(0));
        assert_eq!(first_block("pg_tblspc/16400/PG_15_202209061/5/16401"), Some(0));
        for other in [
            "global/pg_control",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "pg_xact/0000",
            "base/5/t3_16400",
            "PG_VERSION",
            "1259",
            "base/5/1259_x",
            "base/5/1259.x",
            "pg_wal/000000010000000000000001",
            "base/x/1",
        ] {
            assert_eq!(first_block(other), None, "{other}");
        }
    }

    #[test]
    fn a_page_knows_its_block() {
        let mut page = vec![0u8; PAGE_BYTES];
        assert_eq!(judge(&page, 0), Page::New);
        page[14] = 0x20;
        page[100] = 9;
        page[0..8].copy_from_slice(&[1, 0, 0, 0, 0x48, 0x01, 0, 3]);
        let sum = checksum(&page, 7).unwrap();
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(judge(&page, 7), Page::Good);
        assert_eq!(judge(&page, 8), Page::Bad(Lsn(0x1_0300_0148)));
        page[5000] ^= 1;
        assert_eq!(judge(&page, 7), Page::Bad(Lsn(0x1_0300_0148)));
        assert_eq!(checksum(&page[1..], 7), None);
    }
}

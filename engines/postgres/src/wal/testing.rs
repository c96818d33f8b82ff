//! Log as the server would write it, for tests of what reads it.

use super::{LONG_HEADER_BYTES, PAGE_BYTES, PAGE_HEADER_BYTES, RECORD_HEADER_BYTES, rmgr};
use crate::lsn::Lsn;
use crate::replication::EPOCH_OFFSET_US;

/// A log that grows.
pub(crate) struct Log {
    pub first: Lsn,
    pub bytes: Vec<u8>,
    pub timeline: u32,
    segment_size: u64,
    previous: u64,
}

impl Log {
    pub fn new(first: Lsn, segment_size: u64) -> Self {
        Self { first, bytes: Vec::new(), timeline: 1, segment_size, previous: 0 }
    }

    pub fn end(&self) -> Lsn {
        self.first.plus(self.bytes.len() as u64)
    }

    fn page_header(&mut self, rest: u32) {
        let at = self.end().0;
        let long = at.is_multiple_of(self.segment_size);
        let info: u16 = if rest > 0 { 1 } else { 0 } | if long { 2 } else { 0 };
        let mut header = vec![0; if long { LONG_HEADER_BYTES } else { PAGE_HEADER_BYTES }];
        header[0..2].copy_from_slice(&0xD110u16.to_le_bytes());
        header[2..4].copy_from_slice(&info.to_le_bytes());
        header[4..8].copy_from_slice(&self.timeline.to_le_bytes());
        header[8..16].copy_from_slice(&at.to_le_bytes());
        header[16..20].copy_from_slice(&rest.to_le_bytes());
        if long {
            header[32..36].copy_from_slice(&(self.segment_size as u32).to_le_bytes());
            header[36..40].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        }
        self.bytes.extend(header);
    }

    /// Appends a record with this main data and gives where it begins and ends.
    pub fn append(&mut self, rmgr: u8, info: u8, data: &[u8]) -> (Lsn, Lsn) {
        let mut body = vec![0; RECORD_HEADER_BYTES];
        if !data.is_empty() {
            if data.len() < 256 {
                body.extend([255, data.len() as u8]);
            } else {
                body.push(254);
                body.extend((data.len() as u32).to_le_bytes());
            }
            body.extend(data);
        }
        let length = body.len() as u32;
        body[0..4].copy_from_slice(&length.to_le_bytes());
        body[4..8].copy_from_slice(&700u32.to_le_bytes());
        body[8..16].copy_from_slice(&self.previous.to_le_bytes());
        body[16] = info;
        body[17] = rmgr;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&body[24..]), &body[..20]);
        body[20..24].copy_from_slice(&crc.to_le_bytes());
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
        if self.end().0.is_multiple_of(PAGE_BYTES) {
            self.page_header(0);
        }
        let start = self.end();
        for (written, byte) in body.iter().enumerate() {
            if self.end().0.is_multiple_of(PAGE_BYTES) {
                self.page_header(length - written as u32);
            }
            self.bytes.push(*byte);
        }
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
        self.previous = start.0;
        (start, self.end())
    }

    pub fn commit(&mut self, time_us: i64) -> (Lsn, Lsn) {
        self.append(rmgr::XACT, 0, &(time_us - EPOCH_OFFSET_US).to_le_bytes())
    }

    pub fn restore_point(&mut self, name: &str, time_us: i64) -> (Lsn, Lsn) {
        let mut data = (time_us - EPOCH_OFFSET_US).to_le_bytes().to_vec();
        data.extend(name.bytes());
        data.resize(72, 0);
        self.append(rmgr::XLOG, 0x70, &data)
    }

    pub fn tablespace(&mut self, oid: u32, path: &str) -> (Lsn, Lsn) {
        let mut data = oid.to_le_bytes().to_vec();
        data.extend(path.bytes());
        data.push(0);
        self.append(rmgr::TBLSPC, 0, &data)
    }

    pub fn switch(&mut self) -> (Lsn, Lsn) {
        let (start, _) = self.append(rmgr::XLOG, 0x40, &[]);
        while !self.end().0.is_multiple_of(self.segment_size) {
            self.bytes.push(0);
        }
        (start, self.end())
    }

    pub fn zeros(&mut self, count: usize) {
        self.bytes.extend(std::iter::repeat_n(0, count));
    }
}

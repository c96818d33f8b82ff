//! Records out of log bytes, as they come, in pieces of any length.
//!
//! The scanner checks what PostgreSQL's reader checks: page magic, address and continuation length, record length, the
//! link to the record before, CRC-32C. The first thing that does not fit ends the scan with an error that says where and
//! what; [`WalError::Zeros`] is how log ends that was padded.

use super::{
    LONG_HEADER_BYTES, PAGE_BYTES, PAGE_HEADER_BYTES, RECORD_BYTES_KEPT, RECORD_BYTES_MAX,
    RECORD_HEADER_BYTES,
};
use super::{rmgr, u16_at, u32_at, u64_at};
use crate::lsn::{Lsn, Timeline};

const FIRST_IS_CONTRECORD: u16 = 1;
const LONG_HEADER: u16 = 2;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 8;
const XLOG_SWITCH: u8 = 0x40;
const SWITCHED: &str = "switched";

/// Why a scan ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// Zeros where a record should begin: log that ends here.
    #[error("the log ends at {0}")]
    Zeros(Lsn),
    /// Bytes that are no log.
    #[error("log at {at}: {what}")]
    Damaged {
        /// The place of the page or record.
        at: Lsn,
        /// What did not fit.
        what: &'static str,
    },
}

/// One whole record whose checksum is right.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Where it begins.
    pub start: Lsn,
    /// Where the next one begins: a cut here keeps this one.
    pub end: Lsn,
    /// The transaction it belongs to, or 0.
    pub xid: u32,
    /// Its resource manager.
    pub rmgr: u8,
    /// Its info byte.
    pub info: u8,
    /// The timeline that its first page names.
    pub timeline: Timeline,
    /// The record from its header on, up to [`RECORD_BYTES_KEPT`].
    pub bytes: &'a [u8],
    /// How long it is in all.
    pub length: u32,
}

enum State {
    /// Skipping the rest of a record that began before the first byte; how many bytes of it are left is known.
    Skip(u64),
    /// Skipping to the next page, to learn there where a record begins.
    Resync,
    /// At the place of a record, or in its padding.
    Between,
    /// Within a record.
    Within,
    /// Behind a segment switch: the rest of the segment means nothing.
    Switched,
}

/// Takes log in order and gives its records.
pub struct Scanner {
    magic: Option<u16>,
    segment_size: u64,
    at: Lsn,
    timeline: Timeline,
    state: State,
    header: Vec<u8>,
    record: Vec<u8>,
    start: Lsn,
    length: u32,
    taken: u32,
    crc: u32,
    previous: Option<Lsn>,
    dead: Option<WalError>,
}

impl Scanner {
    /// Begins at `at`. `rest` is how much of a record is still to come there ([`Scanner::rest`]; 0 where one begins), `None`
    /// where that is not known: then records are given from the next page on that says where one begins.
    pub fn new(at: Lsn, segment_size: u64, rest: Option<u64>) -> Self {
        let header = at.0 % PAGE_BYTES < PAGE_HEADER_BYTES as u64;
        let state = match rest {
            _ if header => State::Resync,
            None => State::Resync,
            Some(0) => State::Between,
            Some(rest) => State::Skip(rest),
        };
        Self {
            magic: None,
            segment_size: segment_size.max(PAGE_BYTES),
            at,
            timeline: 0,
            state,
            header: Vec::new(),
            record: Vec::new(),
            start: at,
            length: 0,
            taken: 0,
            crc: 0,
            previous: None,
            // No server lives so long; arithmetic on places cannot overflow below it.
            dead: (at.0 > u64::MAX / 2)
                .then_some(WalError::Damaged { at, what: "a place that no server reaches" }),
        }
    }

    /// Begins at `at` with what [`Scanner::carry`] gave there.
    pub fn resume(at: Lsn, segment_size: u64, carry: &str) -> Self {
        let mut scanner = Self::new(at, segment_size, carry.parse().ok());
        if carry == SWITCHED {
            scanner.state = State::Switched;
        }
        scanner
    }

    /// What a scan that begins at this place must know; empty where nothing is known.
    pub fn carry(&self) -> String {
        match self.state {
            State::Switched => SWITCHED.to_owned(),
            _ => self.rest().map(|rest| rest.to_string()).unwrap_or_default(),
        }
    }

    /// Demands this magic of every page.
    #[must_use]
    pub fn expecting(mut self, magic: u16) -> Self {
        self.magic = Some(magic);
        self
    }

    /// The place of the next byte.
    pub fn at(&self) -> Lsn {
        self.at
    }

    /// The end of the last whole record: the last clean place.
    pub fn clean(&self) -> Option<Lsn> {
        match self.state {
            State::Within | State::Between | State::Switched => Some(self.start),
            State::Skip(_) | State::Resync => None,
        }
    }

    /// What is there of a record that is not complete yet.
    pub(super) fn pending(&self) -> Option<&[u8]> {
        matches!(self.state, State::Within).then_some(&self.record)
    }

    /// How much of a record is still to come at this place: what a scan that begins here must know. `None` where it is not
    /// known (yet), and inside a page's header.
    pub fn rest(&self) -> Option<u64> {
        if !self.header.is_empty() {
            return None;
        }
        match self.state {
            State::Skip(rest) => Some(rest),
            State::Between => Some(0),
            // The padding behind a record belongs to it.
            State::Within if self.record.len() < 4 => None,
            State::Within => {
                let length = if self.length > 0 { self.length } else { u32_at(&self.record, 0)? };
                Some(u64::from(length.saturating_sub(self.taken)))
            }
            State::Resync | State::Switched => None,
        }
    }

    /// Takes the next bytes and gives every record that ends in them.
    ///
    /// # Errors
    /// The first thing that is no log; the scanner gives the same error ever after.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&Record<'_>)) -> Result<(), WalError> {
        if let Some(error) = &self.dead {
            return Err(error.clone());
        }
        let outcome = self.take(bytes, &mut each);
        if let Err(error) = &outcome {
            self.dead = Some(error.clone());
        }
        outcome
    }

    fn take(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(&Record<'_>)) -> Result<(), WalError> {
        while !bytes.is_empty() {
            let in_page = (self.at.0 % PAGE_BYTES) as usize;
            if matches!(self.state, State::Switched) {
                if self.at.0.is_multiple_of(self.segment_size) {
                    self.state = State::Between;
                    continue;
                }
                let left = self.segment_size - self.at.0 % self.segment_size;
                self.advance(&mut bytes, left);
                continue;
            }
            let header_bytes = self.header_bytes();
            if in_page < header_bytes && (in_page == 0 || !self.header.is_empty()) {
                let missing = header_bytes - self.header.len();
                let (now, rest) = bytes.split_at(missing.min(bytes.len()));
                self.header.extend_from_slice(now);
                self.at.0 += now.len() as u64;
                bytes = rest;
                if self.header.len() == header_bytes {
                    self.page()?;
                }
                continue;
            }
            let left_in_page = PAGE_BYTES - in_page as u64;
            match self.state {
                State::Resync => self.advance(&mut bytes, left_in_page),
                State::Skip(rest) => {
                    let done = self.advance_by(&mut bytes, left_in_page.min(rest));
                    self.state = if rest == done { State::Between } else { State::Skip(rest - done) };
                    if rest == done {
                        self.start = aligned(self.at);
                    }
                }
                State::Between => {
                    let padding = (8 - self.at.0 % 8) % 8;
                    if padding > 0 {
                        self.advance(&mut bytes, padding);
                        continue;
                    }
                    self.begin();
                }
                State::Within => {
                    let wanted = if (self.taken as usize) < RECORD_HEADER_BYTES {
                        RECORD_HEADER_BYTES as u64 - u64::from(self.taken)
                    } else {
                        u64::from(self.length - self.taken)
                    };
                    let n = wanted.min(left_in_page).min(bytes.len() as u64) as usize;
                    let (now, rest) = bytes.split_at(n);
                    bytes = rest;
                    self.within(now, each)?;
                }
                State::Switched => {}
            }
        }
        Ok(())
    }

    fn header_bytes(&self) -> usize {
        let page = self.at.0 - self.at.0 % PAGE_BYTES;
        if page.is_multiple_of(self.segment_size) { LONG_HEADER_BYTES } else { PAGE_HEADER_BYTES }
    }

    fn advance(&mut self, bytes: &mut &[u8], most: u64) {
        let _ = self.advance_by(bytes, most);
    }

    fn advance_by(&mut self, bytes: &mut &[u8], most: u64) -> u64 {
        let n = most.min(bytes.len() as u64);
        *bytes = &bytes[n as usize..];
        self.at.0 += n;
        n
    }

    fn begin(&mut self) {
        self.state = State::Within;
        self.start = self.at;
        self.record.clear();
        self.length = 0;
        self.taken = 0;
        self.crc = 0;
    }

    /// A page's header is complete.
    fn page(&mut self) -> Result<(), WalError> {
        let header = std::mem::take(&mut self.header);
        let page = Lsn(self.at.0 - header.len() as u64);
        let damaged = |what| Err(WalError::Damaged { at: page, what });
        let field = |value: Option<u32>| value.unwrap_or(0);
        let magic = u16_at(&header, 0).unwrap_or(0);
        let info = u16_at(&header, 2).unwrap_or(0);
        if magic == 0 && header.iter().all(|byte| *byte == 0) {
            // Begun behind a segment switch: the log goes on with the next segment, if it goes on.
            if matches!(self.state, State::Resync) {
                self.state = State::Switched;
                return Ok(());
            }
            return Err(WalError::Zeros(self.clean().unwrap_or(page)));
        }
        if magic != *self.magic.get_or_insert(magic) {
            return damaged("a page of another version");
        }
        if u64_at(&header, 8) != Some(page.0) {
            return damaged("a page of another place");
        }
        let long = header.len() == LONG_HEADER_BYTES;
        if (info & LONG_HEADER != 0) != long {
            return damaged("a page header of the wrong kind");
        }
        if long
            && (u64::from(field(u32_at(&header, 32))) != self.segment_size
                || u64::from(field(u32_at(&header, 36))) != PAGE_BYTES)
        {
            return damaged("a segment or page size that is not the cluster's");
        }
        self.timeline = field(u32_at(&header, 4));
        let rest = field(u32_at(&header, 16));
        let continued = info & FIRST_IS_CONTRECORD != 0;
        match self.state {
            State::Resync if continued => {
                // A record that fills the whole page and more says so again on the next one.
                self.state = State::Skip(u64::from(rest));
            }
            State::Resync => {
                self.state = State::Between;
                self.start = self.at;
            }
            State::Skip(_) | State::Within if info & FIRST_IS_OVERWRITE_CONTRECORD != 0 => {
                // The record was never finished: the server crashed, and went on here.
                self.state = State::Between;
                self.start = self.at;
            }
            State::Skip(left) if !continued || u64::from(rest) != left => {
                return damaged("the record that goes on has another length");
            }
            State::Within => {
                let left = self.length.saturating_sub(self.taken);
                if !continued || rest == 0 || (self.taken as usize >= 4 && rest != self.left_by_length(left))
                {
                    return damaged("the record that goes on has another length");
                }
            }
            State::Between if continued => return damaged("a continuation of no record"),
            // The end of the record before stays the clean place: the header behind it belongs to neither.
            State::Between if self.previous.is_none() => self.start = self.at,
            State::Between | State::Skip(_) | State::Switched => {}
        }
        Ok(())
    }

    /// What is left of the record; its length may be known before its header is complete.
    fn left_by_length(&self, left: u32) -> u32 {
        if self.length > 0 { left } else { u32_at(&self.record, 0).unwrap_or(0).saturating_sub(self.taken) }
    }

    fn within(&mut self, now: &[u8], each: &mut dyn FnMut(&Record<'_>)) -> Result<(), WalError> {
        let before = self.taken as usize;
        if before >= RECORD_HEADER_BYTES {
            self.crc = crc32c::crc32c_append(self.crc, now);
        }
        let room = RECORD_BYTES_KEPT.saturating_sub(self.record.len());
        self.record.extend_from_slice(&now[..now.len().min(room)]);
        self.taken += now.len() as u32;
        self.at.0 += now.len() as u64;
        if before < 4 && self.taken >= 4 && u32_at(&self.record, 0) == Some(0) {
            return Err(WalError::Zeros(self.start));
        }
        if before < RECORD_HEADER_BYTES && self.taken as usize >= RECORD_HEADER_BYTES {
            self.record_header()?;
        }
        if self.length > 0 && self.taken == self.length {
            self.complete(each)?;
        }
        Ok(())
    }

    fn record_header(&mut self) -> Result<(), WalError> {
        let damaged = |what| Err(WalError::Damaged { at: self.start, what });
        let length = u32_at(&self.record, 0).unwrap_or(0);
        if !(RECORD_HEADER_BYTES as u32..=RECORD_BYTES_MAX).contains(&length) {
            return damaged("a record of impossible length");
        }
        let rmgr = self.record[17];
        if rmgr > rmgr::LOGICALMSG && rmgr < 128 {
            return damaged("a record of an unknown resource manager");
        }
        let previous = Lsn(u64_at(&self.record, 8).unwrap_or(0));
        if self.previous.map_or(previous >= self.start, |last| last != previous) {
            return damaged("a record that does not follow the one before");
        }
        self.length = length;
        Ok(())
    }

    fn complete(&mut self, each: &mut dyn FnMut(&Record<'_>)) -> Result<(), WalError> {
        let crc = crc32c::crc32c_append(self.crc, &self.record[..20]);
        if u32_at(&self.record, 20) != Some(crc) {
            return Err(WalError::Damaged { at: self.start, what: "a record whose checksum is wrong" });
        }
        let (rmgr, info) = (self.record[17], self.record[16]);
        let switched = rmgr == rmgr::XLOG && info & 0xF0 == XLOG_SWITCH;
        let end = if switched {
            Lsn(self.at.segment_start(self.segment_size).0 + self.segment_size)
        } else {
            aligned(self.at)
        };
        // A switch record that ends its segment exactly leaves nothing to skip.
        let end = if switched && self.at.0.is_multiple_of(self.segment_size) { self.at } else { end };
        each(&Record {
            start: self.start,
            end,
            xid: u32_at(&self.record, 4).unwrap_or(0),
            rmgr,
            info,
            timeline: self.timeline,
            bytes: &self.record,
            length: self.length,
        });
        self.previous = Some(self.start);
        self.start = end;
        self.length = 0;
        self.state = if switched { State::Switched } else { State::Between };
        Ok(())
    }
}

fn aligned(at: Lsn) -> Lsn {
    Lsn(at.0.next_multiple_of(8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::testing::Log;

    type Places = Vec<(Lsn, Lsn, u32)>;

    fn scan(log: &[u8], at: Lsn, piece: usize, rest: Option<u64>) -> (Places, Result<(), WalError>) {
        let mut scanner = Scanner::new(at, 1 << 20, rest);
        let mut records = Vec::new();
        for bytes in log.chunks(piece) {
            let outcome =
                scanner.push(bytes, |record| records.push((record.start, record.end, record.length)));
            if outcome.is_err() {
                return (records, outcome);
            }
        }
        (records, Ok(()))
    }

    #[test]
    fn records_come_out_whole_whatever_the_pieces() {
        let mut log = Log::new(Lsn(1 << 20), 1 << 20);
        let lengths = [0, 5, 9000, 100, 30_000, 8100, 8160, 1, 70_000, 200, 2_000_000];
        let places: Vec<_> = lengths.iter().map(|length| log.append(10, 0, &vec![7; *length])).collect();
        log.zeros(100);
        for piece in [1, 7, 24, 8192, 100_000, 10_000_000] {
            let (records, outcome) = scan(&log.bytes, Lsn(1 << 20), piece, None);
            assert_eq!(
                records.iter().map(|(start, end, _)| (*start, *end)).collect::<Vec<_>>(),
                places,
                "{piece}"
            );
            assert_eq!(outcome, Err(WalError::Zeros(places.last().unwrap().1)));
        }
    }

    #[test]
    fn a_scan_may_begin_anywhere() {
        let mut log = Log::new(Lsn(1 << 20), 1 << 20);
        let places: Vec<_> = (0..400).map(|n| log.append(10, 0, &vec![1; n * 37 % 9000])).collect();
        let mut whole = Scanner::new(Lsn(1 << 20), 1 << 20, None);
        let mut at = 0;
        for piece in [13, 4099, 8192, 777, 64_000, 8000].iter().cycle().take(60) {
            let rest = whole.rest();
            let (records, outcome) = scan(&log.bytes[at..], Lsn((1 << 20) + at as u64), 5000, rest);
            assert_eq!(outcome, Ok(()));
            let expected: Vec<_> = match rest {
                Some(_) => {
                    places.iter().filter(|(start, _)| start.0 >= (1 << 20) + at as u64).copied().collect()
                }
                None => places[places.len() - records.len()..].to_vec(),
            };
            assert_eq!(
                records.iter().map(|(start, end, _)| (*start, *end)).collect::<Vec<_>>(),
                expected,
                "{at} {rest:?}"
            );
            let end = (at + piece).min(log.bytes.len());
            whole.push(&log.bytes[at..end], |_| {}).unwrap();
            at = end;
        }
    }

    #[test]
    fn a_scan_may_begin_behind_a_switch() {
        let mut log = Log::new(Lsn(1 << 20), 1 << 20);
        log.append(10, 0, &[1; 50]);
        log.switch();
        log.append(10, 0, &[2; 50]);
        for at in [300, 8192 * 3, 8192 * 3 + 77, 500_000] {
            let mut whole = Scanner::new(log.first, 1 << 20, None);
            whole.push(&log.bytes[..at], |_| {}).unwrap();
            assert_eq!(whole.carry(), "switched");
            for carry in ["switched", ""] {
                let mut records = 0;
                let mut scanner = Scanner::resume(log.first.plus(at as u64), 1 << 20, carry);
                scanner.push(&log.bytes[at..], |_| records += 1).unwrap();
                assert_eq!(records, 1);
            }
        }
    }

    #[test]
    fn a_switch_skips_the_segment() {
        let mut log = Log::new(Lsn(1 << 20), 1 << 20);
        log.append(10, 0, &[1; 50]);
        let (_, end) = log.switch();
        assert_eq!(end, Lsn(2 << 20));
        let (start, _) = log.append(10, 0, &[2; 50]);
        assert_eq!(start, Lsn((2 << 20) + 40));
        let (records, outcome) = scan(&log.bytes, Lsn(1 << 20), 1000, None);
        assert_eq!((records.len(), outcome), (3, Ok(())));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..3000), at: u64, rest: Option<u16>) {
            let mut scanner = Scanner::new(Lsn(at), 16 << 20, rest.map(u64::from));
            let _ = scanner.push(&bytes, |record| { let _ = crate::wal::decode(record); });
            let _ = (scanner.rest(), scanner.clean());
        }

        #[test]
        fn a_flipped_bit_is_an_error_and_never_a_panic(bit in 0usize..(120_000 * 8), piece in 1usize..20_000) {
            let mut log = Log::new(Lsn(1 << 20), 1 << 20);
            let mut n = 0;
            while log.bytes.len() < 130_000 {
                log.append(10, 0, &vec![3; n * 131 % 5000]);
                n += 1;
            }
            let (good, _) = scan(&log.bytes, Lsn(1 << 20), piece, None);
            log.bytes[bit / 8] ^= 1 << (bit % 8);
            let (bad, _) = scan(&log.bytes, Lsn(1 << 20), piece, None);
            // Padding, and what page headers do not check, may be flipped without harm; no record may come out changed.
            proptest::prop_assert!(good.starts_with(&bad));
        }
    }
}
